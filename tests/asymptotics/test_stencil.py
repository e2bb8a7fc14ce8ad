"""Sums of slices, against the definition: one entry at a time, zero outside."""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from widelimit.asymptotics import _stencil
from widelimit.asymptotics._index import Index, Letter, Letters
from widelimit.asymptotics._stencil import Factor, sum_of_slices
from widelimit.program import AxisMap

RNG = np.random.default_rng(0)


def by_definition(
    factor: Factor,
    summed: Sequence[Letter],
    out: Sequence[Letter],
    letters: Letters,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The sum over some letters, and the derivative of its sum with weights."""
    total, slope = np.zeros(weights.shape), np.zeros(factor.array.shape)
    ranges = [range(letters.sizes[a]) for a in (*out, *summed)]
    for values in itertools.product(*ranges):
        at = dict(zip((*out, *summed), values, strict=True))
        place = tuple(
            int(i.table[tuple(at[a] for a in i.letters)]) for i in factor.indices
        )
        if min(place) >= 0:
            total[values[: len(out)]] += factor.array[place]
            slope[place] += weights[values[: len(out)]]
    return total, slope


def by_slices(
    factor: Factor, summed: Sequence[Letter], letters: Letters, weights: np.ndarray
) -> tuple[Any, Any] | None:
    """The same by slices, as it is compiled; None if it is none of slices."""
    found: list[Factor | None] = []

    def total(array: Any) -> tuple[Any, Any]:
        one = sum_of_slices(Factor(array, factor.indices), summed, letters)
        found.append(one)
        value = jnp.zeros(weights.shape) if one is None else one.array
        return jnp.sum(weights * value), value

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, value), slope = both(jnp.asarray(factor.array))
    return None if found[0] is None else (value, slope)


def window(letters: Letters, size: int, start: int, slopes: dict[Letter, int]) -> Index:
    """The index start + sum of slope * letter into an axis, -1 outside."""
    shape = [letters.sizes[a] for a in slopes]
    grid = np.full(shape, start)
    for axis, slope in enumerate(slopes.values()):
        steps = np.arange(shape[axis])
        grid = grid + slope * steps.reshape([-1] + [1] * (len(shape) - axis - 1))
    return AxisMap(tuple(slopes), np.where((grid < 0) | (grid >= size), -1, grid))


@st.composite
def stencils(draw: st.DrawFn) -> tuple[Factor, list[Letter], list[Letter], Letters]:
    """A factor, the letters to sum over, those that are left, and their sizes.

    Windows have strides, dilations of either sign and paddings; a letter may move along
    several axes, and an axis be moved along by several letters.
    """
    letters = Letters()
    summed = [
        letters.new(k)
        for k in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ]
    out, indices, shape = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 8))
        moving = draw(st.lists(st.sampled_from(summed), unique=True, max_size=2))
        if not moving:
            own = letters.new(size)
            indices.append(letters.identity(own))
        else:
            own = letters.new(draw(st.integers(1, 4)))
            slopes = {own: draw(st.integers(1, 3))} if draw(st.integers(0, 3)) else {}
            slopes |= {a: draw(st.sampled_from((1, 2, 0, -1, -2))) for a in moving}
            start = draw(st.integers(-2, size))
            indices.append(window(letters, size, start, slopes))
        if own in indices[-1].letters:
            out.append(own)
        shape.append(size)
    # Whole numbers, whose sums are exact in any order.
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(-99, 99, shape)
    return Factor(array.astype(float), tuple(indices)), summed, out, letters


def check(
    case: tuple[Factor, list[Letter], list[Letter], Letters], at_once: int
) -> None:
    factor, summed, out, letters = case
    summed = [a for a in summed if a in factor.letters()]
    shape = [letters.sizes[a] for a in out]
    weights = RNG.integers(-99, 99, shape).astype(float)
    with mock.patch.object(_stencil, "_AT_ONCE", at_once):
        found = by_slices(factor, summed, letters, weights)
    # Few tables do not show their steps.
    assume(found is not None)
    wanted = by_definition(factor, summed, out, letters, weights)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, two)


@given(stencils(), st.sampled_from((1, 9)))
@settings(max_examples=25, deadline=None)
def test_the_sum_of_slices_is_the_sum_over_the_letters(case, at_once) -> None:
    check(case, at_once)


@pytest.mark.slow
@given(stencils(), st.sampled_from((1, 9)))
@settings(max_examples=200, deadline=None)
def test_many_sums_of_slices(case, at_once) -> None:
    check(case, at_once)


def two_axes(
    sizes: tuple[int, int], steps: tuple[tuple[int, int], ...], taps: tuple[int, ...]
) -> tuple[Factor, list[Letter], list[Letter], Letters]:
    """A(s o + k - 1, t p + k' - 1), each axis with (stride, dilation) of its own."""
    letters = Letters()
    summed = [letters.new(k) for k in taps]
    out, indices = [], []
    for axis, (size, (stride, step)) in enumerate(zip(sizes, steps, strict=True)):
        own = letters.new(-(-size // stride))
        slopes = {own: stride, summed[axis % len(summed)]: step}
        indices.append(window(letters, size, -1, slopes))
        out.append(own)
    return Factor(RNG.normal(size=sizes), tuple(indices)), summed, out, letters


@pytest.mark.parametrize("sizes", [(6, 5), (100, 120)])
@pytest.mark.parametrize(
    ("steps", "taps"),
    [
        (((1, 1), (1, 1)), (3,)),  # one letter along both axes, as in a convolution
        (((2, 1), (1, 2)), (2, 3)),
        (((1, 1), (2, 1)), (4, 5)),  # more than are added at once
    ],
)
def test_values_and_gradients_are_those_of_a_gather(steps, taps, sizes) -> None:
    """Also of large arrays, which are computed once for all that read them."""
    factor, summed, out, letters = two_axes(sizes, steps, taps)
    order = (*out, *summed)
    weights = RNG.normal(size=[letters.sizes[a] for a in out])

    def by_slices(array, true):
        given = Letters(true)
        given.sizes = letters.sizes
        found = sum_of_slices(Factor(array * array, factor.indices), summed, given)
        assert [i.letters for i in found.indices] == [(a,) for a in out]
        return found.array

    def by_gather(array, true):
        places = [i.spread(order) for i in factor.indices]
        inside = functools.reduce(operator.and_, [p >= 0 for p in places])
        read = (array * array)[tuple(np.maximum(p, 0) for p in places)]
        taken = jnp.where(inside, read, 0)
        shape = [letters.sizes[a] for a in order]
        return jnp.broadcast_to(taken, shape).sum(tuple(range(len(out), len(order))))

    def both(f):
        def weighted(array, true):
            value = f(array, true)
            return (weights * value**2).sum(), value

        return jax.jit(jax.value_and_grad(weighted, has_aux=True))(
            jnp.asarray(factor.array), jnp.asarray(True)
        )

    ((_, value), slope), ((_, wanted), wanted_slope) = map(both, (by_slices, by_gather))
    np.testing.assert_allclose(value, wanted, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-12, atol=1e-12)


def test_what_is_no_sum_of_slices_is_refused() -> None:
    letters = Letters()
    k, o = letters.new(2), letters.new(4)
    array = np.zeros((4, 4))
    table = AxisMap((k,), [2, 0])  # steps back, which an index alone may
    moved = window(letters, 4, 0, {o: 1, k: 1})
    mirrored = window(letters, 4, 3, {o: -1, k: 1})
    uneven = AxisMap((o, k), [[0, 1], [1, 2], [3, 0], [2, 2]])
    plain = letters.identity(o)
    for indices in ((moved, moved), (moved, plain), (mirrored, table), (uneven, table)):
        assert sum_of_slices(Factor(array, indices), [k], letters) is None
