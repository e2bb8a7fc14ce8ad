"""The passes between tracing and the limit, in order."""

from collections.abc import Callable

from ..program import Ref, TensorProgram, verify
from ._drop_dead import drop_dead
from ._merge_equal import merge_equal
from ._rewritten import Rewritten

Pass = Callable[[TensorProgram, tuple[Ref, ...]], Rewritten]

STAGES: dict[str, Pass] = {"merge-equal": merge_equal, "drop-dead": drop_dead}
"""The passes by name, in the order in which they run."""


def normal_form(program: TensorProgram, keep: tuple[Ref, ...] = ()) -> Rewritten:
    """Run all passes, verifying the program after each.

    Args:
        program: any program.
        keep: lines that must survive, besides outputs and taps.
    """
    place = {r: r for r in range(len(program))}
    for run in STAGES.values():
        done = run(program, tuple(place[r] for r in keep))
        program = done.program
        verify(program)
        place = {
            old: done.place[new] for old, new in place.items() if new in done.place
        }
    return Rewritten(program, place)
