"""What kernels are asked of: lines of a program, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..program import Ref, TensorProgram
from ..trace import Traced


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The derivative of the output at a tap.

    Attributes:
        refs: adjoints of index shape O + I, for each block of the tap's wide axis,
            with the size of the block over that of the dimension they are measured by.
        lead: the index shape O of the output.
        axis: the wide axis of the tap.
        shape: its shape.
    """

    refs: tuple[tuple[Ref, float], ...]
    lead: tuple[int, ...]
    axis: int | None
    shape: tuple[int, ...]

    def moved(self, place: Mapping[Ref, Ref]) -> "Gradient":
        """The gradient in a rewritten program."""
        refs = tuple((place[r], w) for r, w in self.refs)
        return dataclasses.replace(self, refs=refs)


@dataclasses.dataclass(frozen=True)
class Quantities:
    """Lines whose covariances are asked for.

    Attributes:
        program: where they are; it uses no matrix and its transpose.
        outputs: what is averaged over `trace_axes`: "nngp", "ntk" and "ntk:parameter".
        taps: what is averaged over its wide axis.
        gradients: the derivatives of the output at taps.
    """

    program: TensorProgram
    outputs: Mapping[str, Traced] = dataclasses.field(default_factory=dict)
    taps: Mapping[str, Traced] = dataclasses.field(default_factory=dict)
    gradients: Mapping[str, Gradient] = dataclasses.field(default_factory=dict)

    def moved(self, program: TensorProgram, place: Mapping[Ref, Ref]) -> "Quantities":
        """The same quantities in a rewritten program."""

        def each(some: Mapping[str, Any]) -> dict[str, Any]:
            return {name: one.moved(place) for name, one in some.items()}

        return Quantities(
            program, each(self.outputs), each(self.taps), each(self.gradients)
        )
