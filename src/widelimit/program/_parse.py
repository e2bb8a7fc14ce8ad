"""The text form of tensor programs, read back; `to_text` says what it looks like."""

import ast

from .._errors import InvalidProgramError, ParseError
from ._body import Body
from ._lines import (
    Dim,
    Matrix,
    Output,
    Ref,
    Tensor,
    Type,
    Vector,
)
from ._literal import parse_dim
from ._operands import Scope, bounds
from ._program import TensorProgram, type_of
from ._text import type_text
from ._tokens import Tokens


def parse(text: str) -> TensorProgram:
    """The tensor program that `text` spells.

    Raises:
        ParseError: with the number of the line, its text and what was expected.
    """
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            tokens = Tokens.of(line)
            if tokens.next:
                reader.statement(tokens)
        except (ParseError, InvalidProgramError) as error:
            message = str(error).rstrip(".")
            raise ParseError(f"Line {number}: `{line.strip()}`: {message}.") from None
    return TensorProgram(tuple(reader.lines), tuple(reader.outputs), tuple(reader.taps))


class _Reader(Scope):
    """The lines read so far."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Ref] = []
        self.taps: list[tuple[str, Ref]] = []

    def statement(self, t: Tokens) -> None:
        """One line: a definition, a tap or the outputs."""
        if t.next == "return" and t.after not in (":", "["):
            t.take("return")
            self.outputs += [self.only_ref(part) for part in t.split()]
        elif t.next == "tap" and t.after not in (":", "["):
            t.take("tap")
            name = ast.literal_eval(t.string("the tap's name in quotes"))
            t.expect("=")
            self.taps.append((name, self.ref(t)))
            t.end()
        else:
            self.definition(t)

    def definition(self, t: Tokens) -> None:
        """`name[letters] : type := body`."""
        name = t.name("the name of a line")
        if name in self.refs:
            raise ParseError(f"`{name}` is defined twice")
        letters = bounds(t.group("[", "]")) if t.next == "[" else {}
        t.expect(":")
        declared = _type(t, tuple(letters.values()))
        t.expect(":=")
        line = Body(self, t, name, declared, letters).read()
        t.end()
        found = type_of(line, self.types)
        if found != declared:
            shape = "" if found.shape == declared.shape else f" of shape {found.shape}"
            raise ParseError(
                f"`{name}` is declared {type_text(declared)}, but it is "
                f"{type_text(found)}{shape}"
            )
        self.refs[name] = len(self.lines)
        self.lines.append(line)
        self.types.append(found)


def _type(t: Tokens, shape: tuple[int, ...]) -> Type:
    word = t.name("a type: G[n], H[n], A[m, n], scalar, tensor or output")
    if word in ("G", "H", "A"):
        dims: list[Dim] = [parse_dim(p.text) for p in t.group("[", "]").split()]
        if len(dims) != (2 if word == "A" else 1):
            raise ParseError("expected one width for G and H, two widths for A")
        if word == "A":
            return Matrix(shape, *dims)
        return Vector(shape, dims[0], word)
    if word == "output":
        return Output(shape)
    if word == ("tensor" if shape else "scalar"):
        return Tensor(shape)
    raise ParseError(
        f"expected a type: G[n], H[n], A[m, n], scalar (tensor with letters) or "
        f"output, "
        f"found `{word}`"
    )
