"""Index arithmetic of queries: which positions of a family are asked for.

A query runs over *letters*, integers with sizes. An `Index` says which position of one
axis of a family each value of some letters reads; -1 reads zero. Everything here is
static: plain NumPy at trace time.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._once import once
from ..program import AxisMap

Letter = int
Index = AxisMap
"""An `AxisMap` whose letters are those of a query instead of those of a line."""


# Letters from here on stand behind all others.
_LAST = 2**40


def is_last(letter: Letter) -> bool:
    """Whether a letter stands behind all others."""
    return letter >= _LAST


class Letters:
    """Gives out fresh letters and remembers their sizes.

    The axes of an array stand in the order of its letters.

    Args:
        true: a truth that XLA does not know when it compiles; None where arrays may be
            computed again.
    """

    def __init__(self, true: Any = None) -> None:
        self.sizes: dict[Letter, int] = {}
        self._identities: dict[Letter, Index] = {}
        self._next: Iterator[int] = itertools.count()
        self._next_last: Iterator[int] = itertools.count(_LAST)
        self.true = true
        self._kept: dict[int, Any] = {}

    def new(self, size: int, last: bool = False) -> Letter:
        """A letter that no query has used, which may stand behind all others."""
        letter = next(self._next_last if last else self._next)
        self.sizes[letter] = size
        return letter

    def once(self, array: Any) -> Any:
        """The array, which XLA is not to compute again for every one of its readers."""
        known = isinstance(array, np.ndarray) or id(array) in self._kept
        if self.true is None or known:
            return array
        array = once(self.true, array)
        self._kept[id(array)] = array
        return array

    def identity(self, letter: Letter) -> Index:
        """The index that is the letter itself."""
        if letter not in self._identities:
            self._identities[letter] = AxisMap.identity(letter, self.sizes[letter])
        return self._identities[letter]


def equality(x: Index, y: Index) -> tuple[np.ndarray, tuple[Letter, ...]]:
    """Where two indices name the same position (and neither is outside)."""
    letters = tuple(sorted(set(x.letters) | set(y.letters)))
    a, b = x.spread(letters), y.spread(letters)
    return (a == b) & (a >= 0), letters


def constant(position: int) -> Index:
    """The index that is always this position."""
    return AxisMap((), position)


def clipped(index: Index) -> Index:
    """The index with outside positions moved to position zero."""
    if index.is_inside:
        return index
    return AxisMap(index.letters, np.maximum(index.table, 0))


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A line of one side of the query, read at indices."""

    side: int
    ref: int
    indices: tuple[Index, ...]
