"""Index arithmetic of queries: which positions of a family are asked for.

A query runs over *letters*, integers with sizes. An `Index` says which position of one
axis of a family each value of some letters reads; -1 reads zero. Everything here is
static: plain NumPy at trace time.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ..program import AxisMap

Letter = int
Index = AxisMap
"""An `AxisMap` whose letters are those of a query instead of those of a line."""


class Letters:
    """Gives out fresh letters and remembers their sizes."""

    def __init__(self) -> None:
        self.sizes: dict[Letter, int] = {}
        self._next: Iterator[int] = itertools.count()

    def new(self, size: int) -> Letter:
        """A letter that no query has used."""
        letter = next(self._next)
        self.sizes[letter] = size
        return letter

    def identity(self, letter: Letter) -> Index:
        """The index that is the letter itself."""
        return AxisMap.identity(letter, self.sizes[letter])


def compose(outer: AxisMap, indices: Sequence[Index]) -> Index:
    """`outer`, a map over the letters of a line, read at `indices` of a query."""
    used = [indices[i] for i in outer.letters]
    letters = tuple(sorted({a for index in used for a in index.letters}))
    if all(i.is_identity and len(i.letters) == 1 for i in used) and len(letters) == len(
        used
    ):
        order = np.argsort([i.letters[0] for i in used])
        return AxisMap(letters, outer.table.transpose(order))
    tables = [_spread(index, letters) for index in used]
    outside = np.zeros((1,) * len(letters), bool)
    for t in tables:
        outside = outside | (t < 0)
    values = (
        outer.table[tuple(np.maximum(t, 0) for t in tables)] if tables else outer.table
    )
    shape = np.broadcast_shapes(values.shape, outside.shape)
    return AxisMap(letters, np.where(np.broadcast_to(outside, shape), -1, values))


def _spread(index: Index, letters: tuple[Letter, ...]) -> np.ndarray:
    """The table with one axis for each of `letters`, of size one where not used."""
    shape = iter(index.table.shape)
    return index.table.reshape(
        [next(shape) if a in index.letters else 1 for a in letters]
    )


def equality(x: Index, y: Index) -> tuple[np.ndarray, tuple[Letter, ...]]:
    """Where two indices name the same position (and neither is outside)."""
    letters = tuple(sorted(set(x.letters) | set(y.letters)))
    a, b = _spread(x, letters), _spread(y, letters)
    return (a == b) & (a >= 0), letters


def inside(index: Index) -> bool:
    """Whether the index never reads outside."""
    return index.table.size == 0 or bool(index.table.min() >= 0)


def clipped(index: Index) -> Index:
    """The index with outside positions moved to position zero."""
    return AxisMap(index.letters, np.maximum(index.table, 0))


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A line of one side of the query, read at indices."""

    side: int
    ref: int
    indices: tuple[Index, ...]
