"""How the operands of a line are read from text."""

from .. import scalar
from .._errors import ParseError
from ._index import parse_map
from ._lines import (
    AxisMap,
    Line,
    Ref,
    Tensor,
    TensorArg,
    Type,
)
from ._tokens import Tokens


class Scope:
    """The lines that are defined so far."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.types: list[Type] = []
        self.refs: dict[str, Ref] = {}

    def ref(self, t: Tokens) -> Ref:
        """A name that is defined above."""
        name = t.name("the name of a line")
        if name not in self.refs:
            raise ParseError(f"`{name}` is not defined above this line")
        return self.refs[name]

    def only_ref(self, t: Tokens) -> Ref:
        """A name and nothing else."""
        ref = self.ref(t)
        t.end()
        return ref


def bounds(t: Tokens) -> dict[str, int]:
    """`i<8, j<3`: letters and their sizes."""
    sizes: dict[str, int] = {}
    for part in t.split():
        letter = part.name("an index letter")
        part.expect("<")
        if letter in sizes:
            raise ParseError(f"the letter `{letter}` is used twice")
        sizes[letter] = part.size()
        part.end()
    return sizes


class Operands:
    """The operands of one line, whose index letters are `letters`."""

    def __init__(self, scope: Scope, t: Tokens, letters: dict[str, int]) -> None:
        self.scope = scope
        self.t = t
        self.sizes = letters

    def operand(self, letters: dict[str, int]) -> tuple[Ref, tuple[AxisMap, ...]]:
        """A vector read at index maps."""
        ref = self.scope.ref(self.t)
        shape = self.scope.types[ref].shape
        parts = self.t.group("[", "]").split() if self.t.next == "[" else []
        if len(parts) != len(shape):
            raise ParseError(
                f"`{self.scope.lines[ref].name}` needs {len(shape)} indices, "
                f"got {len(parts)}"
            )
        numbers = {letter: i for i, letter in enumerate(letters)}
        sizes = list(letters.values())
        maps = [
            parse_map(p.text, numbers, sizes, s)
            for p, s in zip(parts, shape, strict=True)
        ]
        return ref, tuple(maps)

    def tensor_arg(self, t: Tokens, ref: Ref, letters: list[str]) -> TensorArg:
        """The letters at which a tensor, or a matrix family, is read."""
        parts = t.group("[", "]").split() if t.next == "[" else []
        at = []
        for part in parts:
            if part.text not in ("0", *letters):
                known = ", ".join(letters) or "none"
                raise ParseError(
                    f"expected an index letter (known: {known}) or 0, found "
                    f"`{part.text}`"
                )
            at.append(-1 if part.text == "0" else letters.index(part.text))
        return TensorArg(ref, tuple(at))

    def function(
        self, t: Tokens
    ) -> tuple[scalar.Expr, tuple[Ref, ...], tuple[TensorArg, ...]]:
        """A function and its arguments, vectors first."""
        written = t.until(";")
        bound: dict[str, Ref | TensorArg] | None = None
        if t.take(";"):
            bound = {}
            for part in t.split():
                name = part.name("the name of an argument")
                part.expect("=")
                bound[name] = self.leaf(part)
                part.end()
        t.end()
        pieces, order = self.placeholders(written, bound)
        leaves = (
            list(bound.values()) if bound is not None else list(dict.fromkeys(order))
        )
        xs = [a for a in leaves if not isinstance(a, TensorArg)]
        tensors = [a for a in leaves if isinstance(a, TensorArg)]
        if bound is not None:
            numbers = {f"_{i}": n for i, n in enumerate(range(len(leaves)))}
            if leaves != [*xs, *tensors]:
                raise ParseError("expected the vectors before the tensors after `;`")
        else:
            kept = [*xs, *tensors]
            numbers = {f"_{i}": kept.index(a) for i, a in enumerate(order)}
        return scalar.parse(" ".join(pieces), numbers), tuple(xs), tuple(tensors)

    def placeholders(
        self, t: Tokens, bound: dict[str, Ref | TensorArg] | None
    ) -> tuple[list[str], list[Ref | TensorArg]]:
        """The pieces of an expression with `_0`, `_1`, .. for what it reads."""
        pieces: list[str] = []
        order: list[Ref | TensorArg] = []
        while t.next:
            token = t.tokens[t.at]
            if not token.is_name or (token.kind == "name" and t.after == "("):
                pieces.append(token.text)
                t.at += 1
            elif bound is not None:
                if token.name not in bound:
                    raise ParseError(
                        f"`{token.name}` is not among the arguments after `;`"
                    )
                pieces.append(f"_{list(bound).index(token.name)}")
                t.at += 1
            else:
                pieces.append(f"_{len(order)}")
                order.append(self.leaf(t))
        return pieces, order

    def leaf(self, t: Tokens) -> Ref | TensorArg:
        ref = self.scope.ref(t)
        if isinstance(self.scope.types[ref], Tensor):
            return self.tensor_arg(t, ref, list(self.sizes))
        if t.next == "[":
            raise ParseError(
                "inside a function a vector stands without indices: "
                "take positions in a linear combination above"
            )
        return ref
