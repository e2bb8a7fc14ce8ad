"""Index arithmetic of queries: which positions of a family are asked for.

A query runs over *letters*, integers with sizes. An `Index` says which position of one
axis of a family each value of some letters reads; -1 reads zero. Everything here is
static: plain NumPy at trace time.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from ..program import AxisMap

Letter = int
Index = AxisMap
"""An `AxisMap` whose letters are those of a query instead of those of a line."""


class Letters:
    """Gives out fresh letters and remembers their sizes."""

    def __init__(self) -> None:
        self.sizes: dict[Letter, int] = {}
        self._identities: dict[Letter, Index] = {}
        self._next: Iterator[int] = itertools.count()

    def new(self, size: int) -> Letter:
        """A letter that no query has used."""
        letter = next(self._next)
        self.sizes[letter] = size
        return letter

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
