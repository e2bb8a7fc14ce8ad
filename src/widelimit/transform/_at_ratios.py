"""Ratios of widths as numbers."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..program import Array, Constant, Line, Map, Ratio, TensorProgram


def at_ratios(
    program: TensorProgram, ratios: Mapping[str, float] | None = None
) -> TensorProgram:
    """The program with a number in the place of every ratio of widths.

    Keeps: the number of every line; its value where widths are in these ratios.
    Gives: no Ratio lines, so that the limit can be taken.

    Args:
        program: any program.
        ratios: widths over their common scale; 1 where missing.
    """
    given = ratios or {}

    def number(line: Line) -> Line:
        if isinstance(line, Map) and isinstance(line.op, Ratio):
            value = line.op.over.ratio(given) / line.op.under.ratio(given)
            return dataclasses.replace(line, op=Constant(Array(np.asarray(value))))
        return line

    lines = tuple(number(line) for line in program.lines)
    if all(new is old for new, old in zip(lines, program.lines, strict=True)):
        return program
    return dataclasses.replace(program, lines=lines)
