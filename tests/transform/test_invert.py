"""Inverted index maps, against the indicator of who reads what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.program import AxisMap
from widelimit.transform._invert import Inverse, invert


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[AxisMap], list[int], list[int]]:
    """Maps of an array that is read at one to three letters."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))
    maps = []
    for size in shape:
        letters = [a for a in range(len(sizes)) if draw(st.booleans())]
        if len(letters) == 1 and sizes[letters[0]] == size and draw(st.booleans()):
            maps.append(AxisMap.identity(letters[0], size))
            continue
        space = [sizes[a] for a in letters]
        count = int(np.prod(space, dtype=int))
        table = draw(
            st.lists(st.integers(-1, size - 1), min_size=count, max_size=count)
        )
        maps.append(AxisMap(tuple(letters), np.reshape(table, space)))
    return maps, sizes, shape


def indicator(maps: list[AxisMap], sizes: list[int], shape: list[int]) -> np.ndarray:
    """1 where position i is read at the letters, of shape sizes + shape."""
    hit = np.zeros((*sizes, *shape))
    for at in np.ndindex(*sizes):
        i = tuple(int(m.table[tuple(at[a] for a in m.letters)]) for m in maps)
        if min(i, default=0) >= 0:
            hit[at + i] += 1.0
    return hit


def indicator_of(
    inverse: Inverse | None, sizes: list[int], shape: list[int], kept: set[int]
) -> np.ndarray:
    """The same, summed over letters that are not kept, from the inverse."""
    hit = np.zeros((*(s if a in kept else 1 for a, s in enumerate(sizes)), *shape))
    if inverse is None:
        return hit
    new = (*shape, *inverse.sums)

    def value(m: AxisMap, at: tuple[int, ...]) -> int:
        return int(m.table[tuple(at[a] for a in m.letters)])

    for at in np.ndindex(*new):
        letters = [value(inverse.letters[a], at) for a in sorted(kept)]
        allowed = inverse.mask is None or value(inverse.mask, at) >= 0
        if allowed and min(letters, default=0) >= 0:
            place = [0] * len(sizes)
            for a, letter in zip(sorted(kept), letters, strict=True):
                place[a] = letter
            hit[(*place, *at[: len(shape)])] += inverse.times
    return hit


@given(readings(), st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2)))
@settings(max_examples=300, deadline=None)
def test_inverse_reads_what_is_read(
    reading: tuple[list[AxisMap], list[int], list[int]], some: set[int], pin: set[int]
) -> None:
    maps, sizes, shape = reading
    letters = set(range(len(sizes)))
    pinned = letters & pin
    kept = (letters & some) | pinned
    inverse = invert(maps, sizes, shape, 0, kept, pinned)
    dropped = tuple(sorted(letters - kept))
    expected = indicator(maps, sizes, shape).sum(axis=dropped, keepdims=True)
    np.testing.assert_array_equal(indicator_of(inverse, sizes, shape, kept), expected)
    if inverse is not None:
        for a in pinned:
            m = inverse.letters[a]
            assert m.is_identity
            assert m.table.size == sizes[a]


def test_convolution_becomes_a_convolution() -> None:
    """i = p + k - 1 is p = i - k + 1: one sum, over k, and no mask."""
    grid = np.add.outer(np.arange(4), np.arange(3)) - 1
    window = AxisMap((0, 1), np.where((grid < 0) | (grid > 3), -1, grid))
    inverse = invert([window], [4, 3], [4], 0, {0}, {1})
    assert inverse is not None
    assert inverse.sums == (3,)
    assert inverse.mask is None
    back = np.subtract.outer(np.arange(4), np.arange(3)) + 1
    expected = np.where((back < 0) | (back > 3), -1, back)
    assert inverse.letters[0] == AxisMap((0, 1), expected)


def test_merged_axes_are_split_without_a_sum() -> None:
    """i = 3 p + q is p = i // 3 and q = i % 3."""
    merged = AxisMap((0, 1), np.arange(6).reshape(2, 3))
    inverse = invert([merged], [2, 3], [6], 0, {0, 1})
    assert inverse is not None
    assert inverse.sums == ()
    assert inverse.letters == (
        AxisMap((0,), np.arange(6) // 3),
        AxisMap((0,), np.arange(6) % 3),
    )


@pytest.mark.parametrize("window", [2, 3])
def test_pooling_sums_over_the_windows_of_a_position(window: int) -> None:
    grid = 2 * np.arange(3)[:, None] + np.arange(window)
    inverse = invert([AxisMap((0, 1), grid)], [3, window], [7], 0, {0})
    assert inverse is not None
    assert inverse.sums == ((2,) if window == 3 else ())


def test_what_is_never_read_has_no_inverse() -> None:
    assert invert([AxisMap((0,), [-1, -1])], [2], [3], 0, {0}) is None
