"""The growth classes of the nonlinear lines of a program."""

import dataclasses
from collections.abc import Iterable

from .. import scalar
from ..gaussian import growth, is_singular
from ..program import Moment, Nonlin, TensorProgram
from ._signs import LineSigns

_CLASSES = ("bounded", "polynomial", "controlled", "beyond", "singular")


@dataclasses.dataclass(frozen=True, slots=True)
class Growth:
    """How fast a nonlinear line grows.

    Attributes:
        line: its name.
        kind: "bounded", "polynomial", "controlled" or "beyond" (Yang 2019, section 4);
            "singular", where it may be infinite at a finite argument.
        function: the function, as text.
        source: the user's line, if known.
    """

    line: str
    kind: str
    function: str
    source: str

    @property
    def polynomial(self) -> bool:
        """Whether it is polynomially bounded, as theorems 5 and 6 need."""
        return self.kind in ("bounded", "polynomial")

    @property
    def controlled(self) -> bool:
        """Whether it is controlled, as theorem 4 needs."""
        return self.polynomial or self.kind == "controlled"

    def __str__(self) -> str:
        return f"{self.line} = {self.function}: {self.kind}"


def growths(program: TensorProgram) -> tuple[Growth, ...]:
    """The growth classes of all nonlinear lines, in their order."""
    lines, signs = program.lines, LineSigns(program)
    found = []
    for line in lines:
        if isinstance(line, Nonlin | Moment):
            names = [lines[r].name for r in line.xs]
            names += [lines[t.ref].name for t in line.tensors]
            known, arguments = signs.of(line), range(len(line.xs))
            kind = _worst(growth(line.fn, i, known) for i in arguments)
            if kind == "beyond" and any(
                is_singular(line.fn, i, known) for i in arguments
            ):
                kind = "singular"
            text = scalar.to_text(line.fn, names)
            found.append(Growth(line.name, kind, text, line.source))
    return tuple(found)


def _worst(kinds: Iterable[str]) -> str:
    return max(kinds, key=_CLASSES.index)
