"""Widths over their common scale."""

import math
from collections.abc import Mapping

from .._errors import InputError
from ._program import TensorProgram
from ._run import dims


def width_names(program: TensorProgram) -> set[str]:
    """The names of the widths of a program."""
    return {name for t in program.types for d in dims(t) for name in d.widths}


def check_ratios(
    program: TensorProgram, ratios: Mapping[str, float] | None
) -> dict[str, float]:
    """The ratios given for the widths of a program; those missing count 1.

    Raises:
        InputError: a ratio is not positive, or names no width of the program.
    """
    names = width_names(program)
    for name, ratio in (ratios or {}).items():
        if name not in names:
            raise InputError(
                f"ratios names the width {name!r}; the program has "
                f"{', '.join(sorted(names))}."
            )
        if not ratio > 0 or not math.isfinite(ratio):
            raise InputError(f"The ratio of {name!r} should be positive, got {ratio}.")
    return {name: float(ratio) for name, ratio in (ratios or {}).items()}
