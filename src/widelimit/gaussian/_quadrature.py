"""Deterministic rules for one to three Gaussians, split at kinks.

A smooth integrand gets the trapezoidal rule, which converges geometrically for
functions analytic in a strip. A function with kinks gets Gauss-Legendre rules on
panels that end at the kinks. For two Gaussians of correlation rho >= 0 the panels
live in the rotated coordinates

    u = m1 + s1 (p x + q y),   v = m2 + s2 (p x - q y),   p, q = sqrt((1 +- rho) / 2),

where kinks are lines; for rho < 0 the sign of v - m2 is reversed, so that p >= q
always and rho = +-1 is no special case.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..scalar import Expr, evaluate

Array = Any

REACH = (11.5, 12.5, 13.5)
"""Standard deviations that the trapezoidal rule covers, by level: the difference of
two levels then also shows what the tails hold."""

_SPLIT_REACH = (9.5, 10.0, 11.0)
_ELEMENTS = 1 << 21


def safe_sqrt(x: Array) -> Array:
    """The square root of max(x, 0), with derivative 0 where it is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_divide(x: Array, y: Array, otherwise: Array = 0.0) -> Array:
    """Divide; `otherwise` where y is 0, without NaN in the derivative."""
    bad = y == 0
    return jnp.where(bad, otherwise, x / jnp.where(bad, 1, y))


def correlation(a: Array, b: Array, c: Array) -> Array:
    """The correlation in [-1, 1], 0 where a variance is 0."""
    return jnp.clip(safe_divide(c, safe_sqrt(a) * safe_sqrt(b)), -1, 1)


@functools.lru_cache(maxsize=64)
def trapezoid(count: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the trapezoidal rule for N(0, 1); weights sum to 1."""
    x = (np.arange(count) + 0.5) * (2.0 * reach / count) - reach
    w = np.exp(-0.5 * x**2)
    return x, w / w.sum()


@functools.lru_cache(maxsize=64)
def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return 0.5 * (x + 1.0), 0.5 * w


def accumulate(
    points: Array, size: int, term: Callable[[Array], Array], dtype: Any
) -> Array:
    """Sum `term(rows)` over blocks of rows of `points`, sized to bound the memory.

    Args:
        points: (count, columns); rows of zeros may be added at the end, so that a
            weight among the columns must make them count for nothing.
        size: numbers that one row makes.
        term: maps (block, columns) to the sum over the block.
        dtype: of the points on the device.
    """
    block = max(1, min(len(points), _ELEMENTS // max(size, 1)))
    blocks = -(-len(points) // block)
    missing = blocks * block - len(points)
    rows = jnp.pad(jnp.asarray(points, dtype), ((0, missing), (0, 0)))
    rows = rows.reshape(blocks, block, points.shape[1])
    if blocks == 1:
        return term(rows[0])
    like = jax.eval_shape(term, rows[0])
    start = jnp.zeros(like.shape, like.dtype)
    return lax.scan(lambda s, r: (s + term(r), None), start, rows)[0]


def mean_smooth(
    f: Expr, mean: Array, variance: Array, params: Sequence[Array], level: int
) -> Array:
    """E f(z) for one Gaussian and a smooth f."""
    dtype = jnp.result_type(mean, variance, float, *params)
    x, w = trapezoid((256, 512, 1024)[level], REACH[level])
    m, s = mean[..., None], safe_sqrt(variance)[..., None]
    values = evaluate(
        f, [m + s * jnp.asarray(x, dtype), *(p[..., None] for p in params)]
    )
    return jnp.sum(values * jnp.asarray(w, dtype), axis=-1)


def mean_split(
    f: Expr,
    kinks: Sequence[Expr],
    mean: Array,
    variance: Array,
    params: Sequence[Array],
    level: int,
) -> Array:
    """E f(z) for one Gaussian, on panels that end at the kinks of f."""
    s = safe_sqrt(variance)
    dtype, reach = s.dtype, _SPLIT_REACH[level]
    marks = [safe_divide(t - mean, s, reach) for t in _places(kinks, params, dtype)]
    x, w = _panels(marks, level, dtype)
    values = evaluate(
        f,
        [
            mean[..., None, None] + s[..., None, None] * x,
            *(p[..., None, None] for p in params),
        ],
    )
    return jnp.sum(values * w * _density(x), axis=(-1, -2))


def _places(kinks: Sequence[Expr], params: Sequence[Array], dtype: Any) -> list[Array]:
    return [jnp.asarray(evaluate(k, [0.0, *params]), dtype) for k in kinks]


def _density(x: Array) -> Array:
    return jnp.exp(-0.5 * x * x) * float(1.0 / np.sqrt(2.0 * np.pi))


def _panels(marks: Sequence[Array], level: int, dtype: Any) -> tuple[Array, Array]:
    """Gauss-Legendre points and weights (..., panels, points) between the marks."""
    shape = jnp.broadcast_shapes(*(jnp.shape(m) for m in marks), ())
    reach = _SPLIT_REACH[level]
    base = np.linspace(-reach, reach, 5)
    ends = [jnp.broadcast_to(jnp.asarray(e, dtype), shape) for e in base]
    inner = [jnp.broadcast_to(jnp.clip(m, -reach, reach), shape) for m in marks]
    edges = jnp.sort(jnp.stack([*ends, *inner], axis=-1), axis=-1)
    t, w = legendre((20, 32, 48)[level])
    low, gap = edges[..., :-1, None], jnp.diff(edges, axis=-1)[..., None]
    return low + gap * jnp.asarray(t, dtype), gap * jnp.asarray(w, dtype)


def pair_split(
    f: Expr,
    kinks: tuple[Sequence[Expr], Sequence[Expr]],
    means: tuple[Array, Array],
    cov: tuple[Array, Array, Array],
    params: Sequence[Array],
    level: int,
) -> Array:
    """E f(u, v) for two Gaussians; f has kinks where u or v passes a given place.

    Args:
        f: a function of arguments 0 and 1, and of the parameters after them.
        kinks: the places of u, and of v.
        means: of u and of v.
        cov: Var u, Var v, Cov(u, v).
        params: parameters.
        level: see `Accuracy`.
    """
    (m1, m2), (a, b, c) = means, cov
    s1, s2, rho = safe_sqrt(a), safe_sqrt(b), correlation(a, b, c)
    side = jnp.where(rho < 0, -1, 1).astype(rho.dtype)
    p, q = safe_sqrt((1 + jnp.abs(rho)) / 2), safe_sqrt((1 - jnp.abs(rho)) / 2)
    far = 4 * _SPLIT_REACH[level]
    first = [
        jnp.clip(safe_divide(t - m1, s1, far), -far, far)
        for t in _places(kinks[0], params, rho.dtype)
    ]
    second = [
        jnp.clip(side * safe_divide(t - m2, s2, far), -far, far)
        for t in _places(kinks[1], params, rho.dtype)
    ]
    # Two lines of kinks cross at one y; between crossings the inner integral is smooth.
    marks = [safe_divide(t - r, 2 * q, far) for t in first for r in second]
    y, weight = (_flatten(z) for z in _panels(marks, level, rho.dtype))
    shape = jnp.broadcast_shapes(*(jnp.shape(z) for z in (m1, m2, rho, *params)))
    y, weight = (jnp.broadcast_to(z, (*shape, z.shape[-1])) for z in (y, weight))

    def inner(carry: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        at, w = column
        lines = [(t - q * at) / p for t in first] + [(t + q * at) / p for t in second]
        x, v = _panels(lines, level, rho.dtype)
        at2 = at[..., None, None]
        deep = [z[..., None, None] for z in (m1, s1, p, q, m2, s2, side)]
        n1, d1, p2, q2, n2, d2, sign = deep
        left, right = (
            n1 + d1 * (p2 * x + q2 * at2),
            n2 + sign * d2 * (p2 * x - q2 * at2),
        )
        value = evaluate(f, [left, right, *(z[..., None, None] for z in params)])
        total = jnp.sum(value * v * _density(x), axis=(-1, -2))
        return carry + w * _density(at) * total, None

    columns = (jnp.moveaxis(y, -1, 0), jnp.moveaxis(weight, -1, 0))
    return lax.scan(inner, jnp.zeros(shape, rho.dtype), columns)[0]


def _flatten(z: Array) -> Array:
    return z.reshape(*z.shape[:-2], -1)


def tensor_rule(dimension: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, dimension) and weights of a product rule, tiny weights dropped."""
    count = {1: (256, 512, 1024), 2: (72, 128, 192), 3: (28, 44, 60)}[dimension][level]
    reach = {1: REACH, 2: (9.0, 9.5, 10.5), 3: (7.5, 8.0, 8.5)}[dimension][level]
    x, w = trapezoid(count, reach)
    grids = np.meshgrid(*[x] * dimension, indexing="ij")
    weights = functools.reduce(np.multiply.outer, [w] * dimension).ravel()
    keep = weights > 1e-22
    points = np.stack([g.ravel() for g in grids], axis=-1)[keep]
    return points, weights[keep]


def weighted_sum(
    f: Expr,
    points: Array,
    weights: Array,
    means: Sequence[Array],
    root: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
) -> Array:
    """Sum of w f(means + root x) over points x of N(0, 1)^d; root lower triangular."""
    shape = jnp.broadcast_shapes(
        *(jnp.shape(z) for z in (*means, *params)),
        *(jnp.shape(r) for row in root for r in row if r is not None),
    )
    dtype = jnp.result_type(float, *means, *params)

    def term(rows: Array) -> Array:
        leaves = []
        for i, mean in enumerate(means):
            z = jnp.asarray(mean)[..., None]
            for j, r in enumerate(root[i][: i + 1]):
                z = z if r is None else z + r[..., None] * rows[:, j]
            leaves.append(z)
        value = evaluate(f, [*leaves, *(p[..., None] for p in params)])
        return jnp.broadcast_to(jnp.sum(value * rows[:, -1], axis=-1), shape)

    join = np if isinstance(points, np.ndarray) else jnp
    columns = join.concatenate([points, weights[:, None]], axis=1)
    return accumulate(columns, int(np.prod(shape)), term, dtype)


def density_times(
    g: Callable[[Array, Array], Array],
    place: float,
    mean: Array,
    variance: Array,
    other: tuple[Array, Array, Array],
) -> Array:
    """N(place; mean, variance) E[g(v) | u = place], 0 where the variance is 0.

    Args:
        g: maps the conditional mean and variance of v to the expectation.
        place: the value of u.
        mean: of u.
        variance: of u.
        other: mean and variance of v, and its covariance with u.
    """
    m2, b, c = other
    s = safe_sqrt(variance)
    z = safe_divide(place - mean, s)
    gain = safe_divide(c, variance)
    inner = g(m2 + gain * (place - mean), jnp.maximum(b - gain * c, 0))
    return safe_divide(_density(z), s) * inner


def broadcast(*arrays: Array) -> list[Array]:
    """Arrays of one floating type, shapes unchanged."""
    dtype = jnp.result_type(float, *arrays)
    return [jnp.asarray(z, dtype) for z in arrays]
