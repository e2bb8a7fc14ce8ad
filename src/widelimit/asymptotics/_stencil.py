"""Sums over windows: an array that is padded once, and slices of it that are added.

XLA's own convolutions of one channel take ten times as long.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ..program import fit_affine
from ._index import Index, Letter, Letters
from ._slices import Slices, sum_of

# So many slices are added in one pass; of more, those along one axis after another.
_AT_ONCE = 9


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """An array; axis `i` is read at `indices[i]`."""

    array: Any
    indices: tuple[Index, ...]

    def letters(self) -> set[Letter]:
        """The letters that the factor depends on."""
        return {a for i in self.indices for a in i.letters}


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """An axis that is read at start + stride * o + sum_k steps[k] * k.

    Attributes:
        own: the letter o, or None.
        count: the number of positions o.
        start: where the window begins, in the padded axis.
        stride: of o.
        steps: of the summed letters.
        pads: how many zeros stand before and after the axis.
    """

    own: Letter | None
    count: int
    start: int
    stride: int
    steps: dict[Letter, int]
    pads: tuple[int, int]

    def at(self, values: dict[Letter, int]) -> int:
        """Where the axis is read first, at values of the summed letters."""
        return self.start + sum(step * values[a] for a, step in self.steps.items())


def sum_of_slices(
    factor: Factor, summed: Sequence[Letter], letters: Letters
) -> Factor | None:
    """The sum over letters that move along axes; None where it is none of slices."""
    windows: dict[int, _Window] = {}
    for axis, index in enumerate(factor.indices):
        if not any(a in index.letters for a in summed):
            continue
        window = _window(index, factor.array.shape[axis], summed)
        if window is None:
            return None
        windows[axis] = window
    own = [w.own for w in windows.values() if w.own is not None]
    beside = (i for k, i in enumerate(factor.indices) if k not in windows)
    if len(set(own)) < len(own) or any(a in own for i in beside for a in i.letters):
        return None
    array = factor.array
    for group in _groups(windows, summed, letters):
        moved = {k: w for k, w in windows.items() if not group.isdisjoint(w.steps)}
        slices = _slices(array.shape, moved, group, letters)
        array = sum_of(letters.once(array), slices, letters.true)
    gone = tuple(k for k, w in windows.items() if w.own is None)
    indices = tuple(
        letters.identity(w.own) if (w := windows.get(k)) and w.own is not None else i
        for k, i in enumerate(factor.indices)
        if k not in gone
    )
    return Factor(jnp.squeeze(array, gone), indices)


def _window(index: Index, size: int, summed: Sequence[Letter]) -> _Window | None:
    """How an index moves with the summed letters, if by steps."""
    own = [a for a in index.letters if a not in summed]
    grid = fit_affine(index.table, size)
    if grid is None or len(own) > 1:
        return None
    first = (0,) * grid.ndim
    steps = {}
    for axis, a in enumerate(index.letters):
        there = tuple(int(k == axis) for k in range(grid.ndim))
        moves = grid.shape[axis] > 1
        steps[a] = int(grid[there] - grid[first]) if moves else 0
    stride = steps.pop(own[0]) if own else 1
    count = grid.shape[index.letters.index(own[0])] if own else 1
    if stride < 1 and count > 1:
        return None
    before = max(0, -int(grid.min()))
    after = max(0, int(grid.max()) + 1 - size)
    return _Window(
        own[0] if own else None, count, int(grid[first]) + before, max(stride, 1),
        steps, (before, after),
    )  # fmt: skip


def _slices(
    shape: tuple[int, ...],
    moved: dict[int, _Window],
    summed: set[Letter],
    letters: Letters,
) -> Slices:
    """One slice for all values of the summed letters, of windows along some axes."""
    order = sorted(summed)
    values = [
        dict(zip(order, at, strict=True))
        for at in itertools.product(*(range(letters.sizes[a]) for a in order))
    ]
    axes = [moved.get(k) for k in range(len(shape))]
    return Slices(
        pads=tuple(w.pads if w else (0, 0) for w in axes),
        strides=tuple(w.stride if w else 1 for w in axes),
        counts=tuple(w.count if w else n for w, n in zip(axes, shape, strict=True)),
        starts=tuple(tuple(w.at(v) if w else 0 for w in axes) for v in values),
    )


def _groups(
    windows: dict[int, _Window], summed: Sequence[Letter], letters: Letters
) -> list[set[Letter]]:
    """The letters whose slices are added in one pass: all, or those of one axis."""
    if math.prod(letters.sizes[a] for a in summed) <= _AT_ONCE:
        return [set(summed)]
    groups: list[set[Letter]] = []
    for window in windows.values():
        joined = [g for g in groups if not g.isdisjoint(window.steps)]
        groups = [g for g in groups if g.isdisjoint(window.steps)]
        groups.append(set(window.steps).union(*joined))
    return groups
