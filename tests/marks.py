"""Which cases of a parametrised test are slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(names: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All names, of which those that are not `fast` run with the slow tests."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]
