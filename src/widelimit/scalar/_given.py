"""Functions that a user names: known by their values, not by what they are made of."""

import itertools
from collections.abc import Callable
from typing import Any

from ._expr import OPS

_numbers = itertools.count()
DERIVATIVES: dict[str, str] = {}
"""The name of the derivative of a named function, where it has one."""


def define(*fns: Callable[[Any], Any]) -> tuple[str, ...]:
    """Give names to a function and to its derivatives, which follow it.

    Each is an operation of one argument then, which `evaluate` and `differentiate`
    know, and nothing looks into.

    Args:
        *fns: functions on arrays, entry by entry.

    Returns:
        Their names.
    """
    number = next(_numbers)
    names = tuple(f"given{number}{'d' * order}" for order in range(len(fns)))
    for name, fn in zip(names, fns, strict=True):
        OPS[name] = (1, fn)
    DERIVATIVES.update(itertools.pairwise(names))
    return names
