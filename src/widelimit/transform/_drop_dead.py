"""Keep what is asked for."""

from ..program import Ref, TensorProgram, ancestors
from ._rewritten import Rewritten, of_lines


def drop_dead(program: TensorProgram, keep: tuple[Ref, ...] = ()) -> Rewritten:
    """Drop every line that no output, tap or kept line depends on.

    Keeps: the value of outputs, taps and the lines of `keep`, at every finite width.
    Gives: every line is needed by one of them.
    """
    asked = (*program.outputs, *(r for _, r in program.taps), *keep)
    return of_lines(program, sorted(ancestors(program.lines, *asked)))
