"""Index maps turned around: which positions read a given one.

A line reads `x` at `maps(letters)`, its letters being positions and summed letters.
Its transpose stands at the positions `i` of `x` and sums over the letters with
`maps(letters) = i`. Here these letters are solved for, as index maps over `i` and over
as few new summed letters as it takes; -1 where nothing reads the position.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..program import AxisMap, compose, unravel


@dataclasses.dataclass(frozen=True)
class Inverse:
    """The old letters over new ones: leading letters, positions of `x`, sums.

    Attributes:
        letters: every old letter as an index map over the new letters.
        sums: the sizes of the new summed letters.
        times: how often every summand counts.
        mask: 0 where the old letters read the position, -1 elsewhere; None when the
            maps in `letters` that are to be read say so themselves.
    """

    letters: tuple[AxisMap, ...]
    sums: tuple[int, ...]
    times: int
    mask: AxisMap | None

    def letter(self, old: int) -> int:
        """The new letter that stands for an old one, which was pinned or known."""
        (new,) = self.letters[old].letters
        return new

    def read(self, maps: Iterable[AxisMap]) -> tuple[AxisMap, ...]:
        """Maps over the old letters, over the new ones."""
        return tuple(compose(m, self.letters) for m in maps)


def invert(
    maps: Sequence[AxisMap],
    sizes: Sequence[int],
    shape: Sequence[int],
    lead: int,
    kept: Iterable[int],
    pinned: Iterable[int] = (),
    known: Mapping[int, int] | None = None,
) -> Inverse | None:
    """Solve `maps(letters) = i` for the letters.

    Args:
        maps: where an array of this shape is read, over the old letters.
        sizes: of the old letters.
        shape: of the array that is read: the sizes of `i`.
        lead: how many new letters stand before `i`.
        kept: old letters that the result will read; the others may drop out.
        pinned: old letters that must become single new letters, unchanged.
        known: old letters that are leading letters.

    Returns:
        The inverse, or None when no position is ever read.
    """
    return _Solver(maps, sizes, shape, lead, set(kept) | set(pinned)).solve(
        pinned, known or {}
    )


class _Solver:
    def __init__(
        self,
        maps: Sequence[AxisMap],
        sizes: Sequence[int],
        shape: Sequence[int],
        lead: int,
        kept: set[int],
    ) -> None:
        self.maps, self.sizes, self.shape = maps, sizes, shape
        self.lead, self.kept = lead, kept
        self.found: dict[int, AxisMap] = {}
        self.sums: list[int] = []
        self.mask: AxisMap | None = None

    def solve(self, pinned: Iterable[int], known: Mapping[int, int]) -> Inverse | None:
        """The letters in the order of what they cost: renamed, summed, looked up."""
        for old, new in known.items():
            self.found[old] = AxisMap.identity(new, self.sizes[old])
        rest = [a for a in range(len(self.maps)) if not self._rename(a)]
        for old in sorted(set(pinned)):
            self._sum_over(old)
        for a in rest:
            if not self._look_up(a):
                return None
        times = 1
        for old, size in enumerate(self.sizes):
            if old in self.kept:
                self._sum_over(old)
            elif old not in self.found:
                self.found[old] = AxisMap((), 0)
                times *= size
        letters = tuple(self.found[old] for old in range(len(self.sizes)))
        return Inverse(letters, tuple(self.sums), times, self.mask)

    def _position(self, axis: int) -> AxisMap:
        return AxisMap.identity(self.lead + axis, self.shape[axis])

    def _rename(self, axis: int) -> bool:
        """A letter that is the position itself."""
        m = self.maps[axis]
        whole = len(m.letters) == 1 and m.is_identity
        if not whole or m.table.size != self.shape[axis] or m.letters[0] in self.found:
            return False
        self.found[m.letters[0]] = self._position(axis)
        return True

    def _sum_over(self, old: int) -> None:
        if old not in self.found:
            self.found[old] = self._new_sum(self.sizes[old])

    def _new_sum(self, size: int) -> AxisMap:
        self.sums.append(size)
        letter = self.lead + len(self.shape) + len(self.sums) - 1
        return AxisMap.identity(letter, size)

    def _look_up(self, axis: int) -> bool:
        """The letters of one map that are still free, from a table of preimages."""
        m = self.maps[axis]
        free = [a for a in m.letters if a not in self.found]
        if not free:
            self._restrict(_equal(compose(m, self._letters()), self._position(axis)))
            return True
        given = [a for a in m.letters if a in self.found]
        order = [m.letters.index(a) for a in (*given, *free)]
        table = m.table.transpose(order).reshape(*(self.sizes[a] for a in given), -1)
        found = _preimages(table, self.shape[axis])
        if not found.shape[-1]:
            return False
        inner = [*(self.found[a] for a in given), self._position(axis)]
        if found.shape[-1] > 1:
            inner.append(self._new_sum(found.shape[-1]))
        else:
            found = found[..., 0]
        outside = found < 0
        parts = unravel(np.maximum(found, 0), [self.sizes[a] for a in free])
        for old, part in zip(free, parts, strict=True):
            values = AxisMap(tuple(range(found.ndim)), np.where(outside, -1, part))
            self.found[old] = compose(values, inner)
        if not self.kept.intersection(free):
            some = self.found[free[0]]
            self._restrict(AxisMap(some.letters, np.minimum(some.table, 0)))
        return True

    def _letters(self) -> list[AxisMap]:
        nothing = AxisMap((), 0)
        return [self.found.get(a, nothing) for a in range(len(self.sizes))]

    def _restrict(self, mask: AxisMap) -> None:
        if self.mask is not None:
            mask = masked(mask, self.mask)
        self.mask = None if mask.is_inside else mask


def _preimages(table: np.ndarray, size: int) -> np.ndarray:
    """For every row of the table and every value: the columns that hold it.

    Returns:
        Shape (*rows, size, most), -1 where there are fewer than `most` columns.
    """
    rows = table.reshape(-1, table.shape[-1])
    order = np.argsort(rows, axis=1, kind="stable")
    values = np.take_along_axis(rows, order, axis=1)
    first = np.stack([np.searchsorted(v, v) for v in values])
    rank = np.arange(rows.shape[1]) - first
    inside = values >= 0
    most = int(rank[inside].max()) + 1 if inside.any() else 0
    found = np.full((len(rows), size, most), -1, dtype=np.int64)
    row = np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)
    found[row[inside], values[inside], rank[inside]] = order[inside]
    return found.reshape(*table.shape[:-1], size, most)


def _spread(*maps: AxisMap) -> tuple[tuple[int, ...], list[np.ndarray]]:
    letters = tuple(sorted({a for m in maps for a in m.letters}))
    tables: list[Any] = [m.spread(letters) for m in maps]
    return letters, list(np.broadcast_arrays(*tables))


def _equal(x: AxisMap, y: AxisMap) -> AxisMap:
    """0 where two maps agree, else -1."""
    letters, (a, b) = _spread(x, y)
    return AxisMap(letters, np.where((a == b) & (a >= 0), 0, -1))


def masked(m: AxisMap, mask: AxisMap) -> AxisMap:
    """The map, reading nothing where the mask is -1."""
    letters, (a, b) = _spread(m, mask)
    return AxisMap(letters, np.where(b < 0, -1, a))
