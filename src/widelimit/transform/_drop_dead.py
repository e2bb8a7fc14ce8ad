"""Keep what is asked for."""

from ..program import Ref, TensorProgram, operands, renumber
from ._rewritten import Rewritten


def drop_dead(program: TensorProgram, keep: tuple[Ref, ...] = ()) -> Rewritten:
    """Drop every line that no output, tap or kept line depends on.

    Keeps: the value of outputs, taps and the lines of `keep`, at every finite width.
    Gives: every line is needed by one of them.
    """
    needed: set[Ref] = set()
    stack = [*program.outputs, *(r for _, r in program.taps), *keep]
    while stack:
        ref = stack.pop()
        if ref not in needed:
            needed.add(ref)
            stack += operands(program.lines[ref])
    order = sorted(needed)
    place = {old: new for new, old in enumerate(order)}
    return Rewritten(
        TensorProgram(
            tuple(renumber(program.lines[old], place) for old in order),
            tuple(place[r] for r in program.outputs),
            tuple((name, place[r]) for name, r in program.taps),
        ),
        place,
    )
