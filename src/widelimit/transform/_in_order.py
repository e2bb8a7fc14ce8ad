"""Lines where they are used: so that equal layers are equal stretches of a program."""

from collections.abc import Mapping

from ..program import (
    Input,
    Line,
    Map,
    MatIn,
    Ref,
    TensorProgram,
    VecIn,
    operands,
)
from ._rewritten import Rewritten, of_lines


def in_order(
    program: TensorProgram, beside: Mapping[Ref, Ref] | None = None
) -> Rewritten:
    """Move inputs to their first use, and other lines to where they belong.

    Keeps: the value of every line.
    Gives: inputs stand before the line that reads them first.

    Args:
        program: any program.
        beside: for some lines an earlier one, behind which they are to stand.
    """
    anchors = [(beside or {}).get(ref, ref) for ref in range(len(program))]
    computed = [r for r, line in enumerate(program.lines) if not _is_input(line)]
    order: dict[Ref, None] = {}

    def place(ref: Ref) -> None:
        for r in operands(program.lines[ref]):
            if r not in order:
                place(r)
        order[ref] = None

    # Those of one layer in their own order.
    for ref in sorted(computed, key=lambda r: (anchors[r], r)):
        place(ref)
    for ref in range(len(program)):
        if ref not in order:
            order[ref] = None  # nothing reads this input
    return of_lines(program, list(order))


def _is_input(line: Line) -> bool:
    return isinstance(line, VecIn | MatIn) or (
        isinstance(line, Map) and isinstance(line.op, Input)
    )
