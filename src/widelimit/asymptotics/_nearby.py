"""Squared distances of data, to relative accuracy also between near rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._once import unless
from ..gaussian import safe_divide

# Up to so many entries a row, differences cost no more than products.
_FEW = 4

# Of rows of so many entries the origin is not moved before differences are taken.
_SHORT = 64

# Entries whose differences are summed in one pass over the pairs.
_CHUNK = 4

# d / (a + b) from where on a product has the digits that kinks need, by bytes a number:
# sqrt(2 d g) = (a + b) / (2 pi) times the wanted accuracy over that of a number.
_NEAR = {4: 1 / 40, 8: 1e-6}


def half_squares(x: Any, y: Any, count: int, same: Any) -> Any:
    """sum_k (x_k - y_k)^2 / 2.

    Args:
        x: its last axes are those of k; the others broadcast with those of `y`.
        y: the same.
        count: how many axes k has.
        same: where x and y are the same row, whose distance does not matter; or None.

    Returns:
        The other axes, of size 1 where neither depends on them. By products of rows
        where these are long; and where two of them are so near that their product has
        lost the difference, by differences.
    """
    lead = x.ndim - count
    shape = np.broadcast_shapes(x.shape[lead:], y.shape[lead:])
    x, y = (
        jnp.broadcast_to(a, (*a.shape[:lead], *shape)).reshape(*a.shape[:lead], -1)
        for a in (x, y)
    )
    if x.shape[-1] <= _FEW:
        return _by_differences(jnp.moveaxis(x, -1, 0), jnp.moveaxis(y, -1, 0))
    return _by_products(x, y, False if same is None else same)


def _by_differences(x: Any, y: Any) -> Any:
    """Sums of few squares, over the first axes."""
    total: Any = 0.0
    for one, two in zip(x, y, strict=True):
        between = one - two
        total = total + between * between
    return 0.5 * total


@jax.custom_jvp
def _by_products(x: Any, y: Any, same: Any) -> Any:
    """The same by products, where that is accurate, over the last axes."""
    raw = _squares(x), _squares(y)

    def by_differences() -> Any:
        return _by_all_differences(x, y)

    if x.shape[-1] <= _SHORT:
        return _unless_near(x, y, raw, 1.0, same, by_differences)

    def centred() -> Any:
        # Distances do not change with the origin, and the digits of products do.
        origin = jnp.mean(y, tuple(range(y.ndim - 1)), keepdims=True)
        u, v = x - origin, y - origin
        own = _squares(u), _squares(v)
        parts = (jnp.max(safe_divide(s, t)) for s, t in zip(own, raw, strict=True))
        return _unless_near(
            u, v, own, functools.reduce(jnp.maximum, parts), same, by_differences
        )

    return _unless_near(x, y, raw, 1.0, same, centred)


def _unless_near(
    x: Any, y: Any, squares: tuple[Any, Any], part: Any, same: Any, otherwise: Any
) -> Any:
    """Half squares by products, or otherwise if one is too small.

    Args:
        x: the rows.
        y: the other rows.
        squares: sums of squares of both.
        part: the largest part of the square of a row that they are.
        same: where x and y are the same row.
        otherwise: computes d in another way.
    """
    a, b = (0.5 * s for s in squares)
    least = 2 * _NEAR[x.dtype.itemsize] * part
    if x.shape[-1] <= _SHORT:
        # The product of matrices gives the difference: no pass over all pairs.
        one = jnp.ones_like
        rows = [-x, ((1 - least) * a)[..., None], one(a)[..., None]]
        cols = [y, one(b)[..., None], ((1 - least) * b)[..., None]]
        far = _products(jnp.concatenate(rows, -1), jnp.concatenate(cols, -1))
    else:
        far = (1 - least) * a + (1 - least) * b - _products(x, y)
    # XLA finds the least number of many several times faster than any truth.
    near = jnp.min(jnp.where(same, 1, far)) < 0
    # What was taken off is added outside, in no pass of its own. To differences nothing
    # is added: they have digits that it has not.
    least = jnp.where(near, 0, least)
    return unless(near, far, lambda _: otherwise()) + least * a + least * b


def _squares(x: Any) -> Any:
    return jnp.sum(x * x, -1)


def _products(x: Any, y: Any) -> Any:
    """sum_k x_k y_k, of the broadcast shape of the other axes."""
    names = "abcdefghijlmnopqrstuvw"[: x.ndim - 1]
    wide = [[a for a, n in zip(names, z.shape, strict=False) if n > 1] for z in (x, y)]
    parts = [
        z.reshape(*(n for n in z.shape[:-1] if n > 1), z.shape[-1]) for z in (x, y)
    ]
    out = [a for a in names if a in wide[0] or a in wide[1]]
    spec = ",".join("".join(w) + "k" for w in wide) + "->" + "".join(out)
    found = jnp.einsum(spec, *parts, precision=lax.Precision.HIGHEST)
    return found.reshape(np.broadcast_shapes(x.shape[:-1], y.shape[:-1]))


def _by_all_differences(x: Any, y: Any) -> Any:
    """Sums of many squares, some entries at a time."""
    size = x.shape[-1]
    count = -(-size // _CHUNK)
    x, y = (
        jnp.pad(
            jnp.moveaxis(z, -1, 0),
            [(0, count * _CHUNK - size), *[(0, 0)] * (z.ndim - 1)],
        ).reshape(count, _CHUNK, *z.shape[:-1])
        for z in (x, y)
    )
    start = jnp.zeros(np.broadcast_shapes(x.shape[2:], y.shape[2:]), x.dtype)
    return lax.scan(lambda t, z: (t + _by_differences(*z), None), start, (x, y))[0]


@_by_products.defjvp
def _by_products_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, y, same = primals
    dx, dy, _ = tangents
    own = jnp.sum(x * dx, -1) + jnp.sum(y * dy, -1)
    return _by_products(x, y, same), own - _products(dx, y) - _products(x, dy)
