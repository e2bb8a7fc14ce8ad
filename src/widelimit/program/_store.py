"""The lines of a program in the making, and their names."""

import dataclasses
import keyword
import weakref
from typing import Any, Self

from .._errors import InputError, InvalidProgramError, ShapeMismatchError
from ._handles import Handle
from ._lines import (
    Line,
    Ref,
    Transpose,
    Type,
)
from ._program import TensorProgram, type_of
from ._source import at, caller, quote
from ._text import line_text, to_text
from ._verify import verify


class Store:
    """Lines in order; generated names give way to those that the user chooses."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._types: list[Type] = []
        self._names: dict[str, Ref] = {}
        self._generated: set[Ref] = set()
        self._transposes: dict[Ref, Ref] = {}
        self._held: list[weakref.ref[Handle]] = []
        self._outputs: tuple[Ref, ...] = ()
        self._taps: tuple[tuple[str, Ref], ...] = ()

    @classmethod
    def from_program(cls, program: TensorProgram) -> Self:
        """A builder that goes on where `program` ends.

        Raises:
            InvalidProgramError: the program breaks a rule of the language.
        """
        verify(program)
        p = cls()
        p._lines, p._types = list(program.lines), list(program.types)
        p._names = {line.name: ref for ref, line in enumerate(program.lines)}
        for ref, line in enumerate(program.lines):
            if isinstance(line, Transpose):
                p._transposes.setdefault(line.matrix, ref)
                p._transposes.setdefault(ref, line.matrix)
        p._outputs, p._taps = program.outputs, program.taps
        return p

    @property
    def tensor_program(self) -> TensorProgram:
        """The program so far, as data."""
        held, self._held = self._held, []
        for weak in held:
            handle = weak()
            if handle is not None:
                _ = handle.ref
        return TensorProgram(tuple(self._lines), self._outputs, self._taps)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self.tensor_program)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Store):
            return NotImplemented
        return self.tensor_program == other.tensor_program

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return to_text(self.tensor_program)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._lines)} lines>\n{self}"

    def _append(self, line: Line, prefix: str = "l") -> Ref:
        ref = len(self._lines)
        if not line.name:
            line = dataclasses.replace(line, name=self._generate(prefix))
            self._generated.add(ref)
        self._types.append(type_of(line, self._types))
        self._lines.append(line)
        self._names[line.name] = ref
        return ref

    def _transpose(self, ref: Ref) -> Ref:
        if ref not in self._transposes:
            name = f"{self._lines[ref].name}_T"
            name = self._generate(name) if name in self._names else name
            line = Transpose(name=name, matrix=ref, source=caller())
            made = self._append(line)
            self._generated.add(made)
            self._transposes |= {ref: made, made: ref}
        return self._transposes[ref]

    def _hold(self, handle: Handle) -> None:
        self._held.append(weakref.ref(handle))

    def _generate(self, prefix: str) -> str:
        number = 1
        while f"{prefix}{number}" in self._names:
            number += 1
        return f"{prefix}{number}"

    def _free(self, name: str) -> str:
        """A name that the user chose; a generated one gives way to it."""
        if (
            not isinstance(name, str)
            or not name.isidentifier()
            or keyword.iskeyword(name)
        ):
            raise InputError(
                f"A line is named by a Python identifier, such as 'x' or 'h_1'; "
                f"got {name!r}.{at(caller())}"
            )
        ref = self._names.get(name)
        if ref is not None and ref not in self._generated:
            made = quote(self._lines[ref].source) or "above"
            raise InvalidProgramError(
                f"The name `{name}` is used twice; first at {made}.{at(caller())}"
            )
        if ref is not None:
            prefix = name.rstrip("0123456789") or "l"
            self._set_name(ref, self._generate(prefix))
        return name

    def _rename(self, ref: Ref, name: str) -> None:
        if self._lines[ref].name != name:
            self._free(name)
            self._set_name(ref, name)
        self._generated.discard(ref)

    def _set_name(self, ref: Ref, name: str) -> None:
        del self._names[self._lines[ref].name]
        self._lines[ref] = dataclasses.replace(self._lines[ref], name=name)
        self._names[name] = ref

    def _own(self, handle: Handle) -> None:
        if handle.program is not self:
            raise InvalidProgramError(
                f"{handle._describe()} belongs to another program: make it with the "
                f"same "
                f"`p`.{at(caller())}"
            )

    def _made(self, *handles: Handle) -> str:
        """Where the operands of a failed operation were made, for its message."""
        text = ""
        for h in handles:
            made = h._ref is not None and h._ref >= 0
            source = self._lines[h._ref or 0].source if made else h.source
            text += f"\n  {h._describe()} is made at {quote(source)}" if source else ""
        return text

    def _line_text(self, ref: Ref) -> str:
        return line_text(self.tensor_program, ref)

    def _same_shape(self, a: Any, b: Any) -> None:
        if a.shape != b.shape:
            raise ShapeMismatchError(
                f"{a._describe()} has shape {a.shape}, {b._describe()} has "
                f"{b.shape}: scalars combine with scalars.{at(caller())}"
            )
