"""Keep what is asked for."""

from ..program import Ref, TensorProgram, ancestors, renumber
from ._rewritten import Rewritten


def drop_dead(program: TensorProgram, keep: tuple[Ref, ...] = ()) -> Rewritten:
    """Drop every line that no output, tap or kept line depends on.

    Keeps: the value of outputs, taps and the lines of `keep`, at every finite width.
    Gives: every line is needed by one of them.
    """
    asked = (*program.outputs, *(r for _, r in program.taps), *keep)
    order = sorted(ancestors(program.lines, *asked))
    place = {old: new for new, old in enumerate(order)}
    return Rewritten(
        TensorProgram(
            tuple(renumber(program.lines[old], place) for old in order),
            tuple(place[r] for r in program.outputs),
            tuple((name, place[r]) for name, r in program.taps),
        ),
        place,
    )
