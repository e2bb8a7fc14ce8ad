"""Widths over their common scale."""

import math
from collections.abc import Mapping

from .._errors import InputError
from ._program import TensorProgram


def check_ratios(
    program: TensorProgram, ratios: Mapping[str, float] | None
) -> dict[str, float]:
    """The ratios given for the widths of a program; those missing count 1.

    Raises:
        InputError: a ratio is not positive, or names no width of the program.
    """
    names = set()
    for t in program.types:
        for dim in (getattr(t, a, None) for a in ("dim", "rows", "cols")):
            names |= {name for name, _ in dim.terms} if dim is not None else set()
    for name, ratio in (ratios or {}).items():
        if name not in names:
            raise InputError(
                f"ratios names the width {name!r}; the program has "
                f"{', '.join(sorted(names))}."
            )
        if not ratio > 0 or not math.isfinite(ratio):
            raise InputError(f"The ratio of {name!r} should be positive, got {ratio}.")
    return {name: float(ratio) for name, ratio in (ratios or {}).items()}
