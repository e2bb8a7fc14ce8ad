"""The result of a pass."""

import dataclasses
from collections.abc import Mapping, Sequence

from ..program import Ref, TensorProgram, renumber


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A program after a pass.

    Attributes:
        program: the new program.
        place: for every old line that is left, the new one with the same value.
    """

    program: TensorProgram
    place: Mapping[Ref, Ref]


def of_lines(program: TensorProgram, order: Sequence[Ref]) -> Rewritten:
    """The program of some of its lines, in another order.

    Args:
        program: any program.
        order: its lines, behind those that they read; all that is asked for.
    """
    place = {old: new for new, old in enumerate(order)}
    if all(old == new for old, new in place.items()) and len(place) == len(program):
        return Rewritten(program, place)
    return Rewritten(
        TensorProgram(
            tuple(renumber(program.lines[old], place) for old in order),
            tuple(place[r] for r in program.outputs),
            tuple((name, place[r]) for name, r in program.taps),
        ),
        place,
    )
