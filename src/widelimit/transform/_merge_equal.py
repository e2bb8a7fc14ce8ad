"""Compute each value once."""

import dataclasses

from ..program import Line, MatIn, Ref, TensorProgram, VecIn, renumber
from ._rewritten import Rewritten


def merge_equal(program: TensorProgram, keep: tuple[Ref, ...] = ()) -> Rewritten:
    """Drop every line that recomputes an earlier one.

    Input lines are never merged: two draws of one law are different vectors.

    Keeps: the value of every line, at every finite width.
    Gives: no two lines but inputs differ in their names alone.
    """
    del keep
    place: dict[Ref, Ref] = {}
    lines: list[Line] = []
    first: dict[Line, Ref] = {}
    for ref, line in enumerate(program.lines):
        moved = renumber(line, place)
        drawn = isinstance(moved, VecIn | MatIn)
        key = moved if drawn else dataclasses.replace(moved, name="")
        if key not in first:
            first[key] = len(lines)
            lines.append(moved)
        place[ref] = first[key]
    if len(lines) == len(program):
        return Rewritten(program, place)
    return Rewritten(
        TensorProgram(
            tuple(lines),
            tuple(place[r] for r in program.outputs),
            tuple((name, place[r]) for name, r in program.taps),
        ),
        place,
    )
