"""Orthant probability of two correlated Gaussians.

Drezner and Wesolowsky's integral over the correlation, with Genz's modification near
|rho| = 1 (A. Genz, "Numerical computation of rectangular bivariate and trivariate
normal and t probabilities", Statistics and Computing 14, 2004; routine BVND). All parts
carry a common factor exp(logz), so that exponentially tilted Gaussians do not overflow.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import ndtr

_NODES = {4: 12, 8: 20}
"""Bytes of a float -> nodes that integrate to its accuracy."""


@functools.cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return 0.5 * (x + 1.0), 0.5 * w


def orthant(h: Array, k: Array, rho: Array, gap: Array, logz: Any = 0.0) -> Array:
    """exp(logz) P(X > -h, Y > -k) for standard Gaussians of correlation `rho`.

    Not differentiable in reverse mode: callers give Price's derivatives.

    Args:
        h: minus the threshold of X.
        k: minus the threshold of Y.
        rho: the correlation, in [-1, 1].
        gap: 1 - rho^2, computed by the caller without cancellation.
        logz: logarithm of a common factor.
    """
    near = jnp.abs(rho) >= 0.925
    if isinstance(logz, float) and logz == 0:
        middle = _middle(h, k, jnp.where(near, 0.0, rho))
        return jnp.where(near, _edge(h, k, rho, gap, near, 0.0), middle)
    # Far out the probability is small beside the terms that `_edge` subtracts.
    below = (rho < 0) & (h + k < -0.3)
    near = near & ~below & ((gap * jnp.abs(h * k) < 4.0) | (rho < 0))
    inside = jnp.where(gap > 0, rho, 0.0)
    tilted = _tilted(h, k, inside, jnp.where(gap > 0, gap, 1.0), below, logz)
    tilted = jnp.where(below & (gap <= 0), 0.0, tilted)
    return jnp.where(near, _edge(h, k, rho, gap, near, logz), tilted)


def log_ndtr(h: Array) -> Array:
    """Log P(X > -h), also far out in the tail; cheaper than JAX's."""
    cut = -12.0 if h.dtype == jnp.float32 else -36.0
    far = jnp.minimum(h, cut)
    u = 1.0 / (far * far)
    series = 1.0 - u * (1.0 - 3.0 * u * (1.0 - 5.0 * u * (1.0 - 7.0 * u)))
    tail = -0.5 * far * far + jnp.log(-series / (far * math.sqrt(2 * math.pi)))
    return jnp.where(h > cut, jnp.log(ndtr(jnp.maximum(h, cut))), tail)


def _tail(h: Array, logz: Any) -> Array:
    """exp(logz) P(X > -h)."""
    if isinstance(logz, float) and logz == 0:
        return ndtr(h)
    return jnp.exp(log_ndtr(h) + logz)


def _integral(f: Callable[[Array], Array], like: Array, times: int = 1) -> Array:
    """Gauss-Legendre on [0, 1]; a loop, as unrolled nodes compile for minutes."""
    rule = _rule(times * _NODES[like.dtype.itemsize])
    nodes, weights = (jnp.asarray(r, like.dtype) for r in rule)

    def step(i: Array, total: Array) -> Array:
        return total + weights[i] * f(nodes[i])

    return lax.fori_loop(0, len(rule[0]), step, jnp.zeros_like(like))


def _middle(h: Array, k: Array, rho: Array) -> Array:
    """From the product at rho = 0, an integral over t, where rho = 2 t / (1 + t^2)."""
    end = rho / (1.0 + jnp.sqrt(1.0 - rho * rho))
    hk, hs = h * k, 0.5 * (h * h + k * k)

    def density(x: Array) -> Array:
        t = end * x
        inverse = 1.0 / (1.0 + t * t)
        r, cos = 2.0 * t * inverse, (1.0 - t * t) * inverse
        return jnp.exp((r * hk - hs) / (cos * cos)) * inverse

    return ndtr(h) * ndtr(k) + _integral(density, hk + rho) * end / math.pi


def _tilted(
    h: Array, k: Array, rho: Array, gap: Array, below: Array, logz: Any
) -> Array:
    """With relative accuracy: sums of positive parts only, however small.

    In y = atanh(r) the density at correlation r is exp(-(h^2 + k^2) / 4 - ((h - k)^2
    e^2y + (h + k)^2 e^-2y) / 8): it is integrated where it is not negligible, from
    r = 0 on, or from r = -1 on (`below`), where the probability is 0.
    """
    deep = 45.0
    end = jnp.arctanh(jnp.clip(rho, -0.99, 0.99))
    # atanh from the gap, which rho has lost near 1.
    steep = jnp.log((1.0 + jnp.abs(rho)) / jnp.sqrt(gap)) * jnp.sign(rho)
    end = jnp.where(jnp.abs(rho) < 0.5, end, steep)
    low = jnp.where(below, -deep, jnp.minimum(end, 0.0))
    high = jnp.where(below, end, jnp.maximum(end, 0.0))
    tiny = jnp.finfo(h.dtype).tiny ** 0.5
    d, s = (h - k) ** 2 + tiny, (h + k) ** 2 + tiny
    peak = jnp.clip(0.25 * jnp.log(s / d), low, high)
    level = d * jnp.exp(2 * peak) + s * jnp.exp(-2 * peak) + 8 * deep
    root = 1.0 + jnp.sqrt(jnp.maximum(1.0 - 4.0 * (d / level) * (s / level), 0.0))
    low = jnp.maximum(low, 0.5 * jnp.log(2 * s / (level * root)))
    high = jnp.minimum(high, 0.5 * jnp.log(level * root / (2 * d)))
    middle = logz - 0.25 * (h * h + k * k)

    def density(x: Array) -> Array:
        y = low + (high - low) * x
        up = jnp.exp(y)
        down = 1.0 / up
        size = d * up * up + s * down * down
        return jnp.exp(middle - 0.125 * size) * 2.0 / (up + down)

    total = _integral(density, h + k + rho, 2) * (high - low) / (2 * math.pi)
    start = _tail(h, 0.5 * logz) * _tail(k, 0.5 * logz)
    return jnp.where(below, total, start + jnp.sign(rho) * total)


def _edge(h: Array, k: Array, rho: Array, gap: Array, near: Array, logz: Any) -> Array:
    """From the degenerate case |rho| = 1, an integral over the gap."""
    positive = rho > 0
    k = jnp.where(positive, k, -k)
    hk = h * k
    room = near & (gap > 0)
    a = jnp.sqrt(jnp.where(room, gap, 1.0))
    b = jnp.abs(h - k)
    bs = b * b
    c, d = (4.0 - hk) / 8.0, (12.0 - hk) / 16.0
    series = 1.0 - c * (bs - a * a) * (1.0 - d * bs / 5.0) / 3.0 + c * d * a**4 / 5.0
    total = a * jnp.exp(-0.5 * (bs / (a * a) + hk) + logz) * series
    # The exponent is large only where the probability beside it vanishes.
    limit = 80.0 if h.dtype == jnp.float32 else 700.0
    rest = jnp.exp(jnp.minimum(logz - 0.5 * hk, limit)) * ndtr(-b / a)
    rest = rest * b * math.sqrt(2 * math.pi)
    total = total - rest * (1.0 - c * bs * (1.0 - d * bs / 5.0) / 3.0)

    def remainder(x: Array) -> Array:
        xs = (a * x) ** 2
        rs = jnp.sqrt(1.0 - xs)
        level = -0.5 * (bs / xs + hk) + logz
        exact = jnp.exp(level - hk * xs / (2 * (1 + rs) ** 2)) / rs
        return a * (exact - jnp.exp(level) * (1.0 + c * xs * (1.0 + d * xs)))

    total = total + _integral(remainder, hk + a + logz)
    total = jnp.where(room, total / (2 * math.pi), 0.0)
    low, high = jnp.minimum(h, k), jnp.maximum(h, k)
    same = _tail(low, logz) - total
    # P(low < X < high), the difference taken in the tail where both are small.
    flip = high + low > 0
    upper, lower = jnp.where(flip, -low, high), jnp.where(flip, -high, low)
    between = jnp.where(k > h, 0.0, _tail(upper, logz) - _tail(lower, logz))
    return jnp.where(positive, same, between + total)
