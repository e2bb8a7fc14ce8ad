"""Hermite series: E f(u) g(v) = sum_k a_k b_k rho^k.

With f(m + s x) = sum_k a_k h_k(x) in the normalised Hermite polynomials h_k, and g
likewise with b_k, Mehler's formula gives the sum above: the coefficients are work per
input, the polynomial in rho is work per pair. For f analytic in a strip of half-width
d, a_k decays like exp(-d sqrt(2 k) / s).

The coefficients come from the trapezoidal rule and the three-term recurrence of the
Hermite *functions* h_k(x) exp(-x^2/4), which is stable where the polynomials overflow.
Terms are added in blocks until Parseval's identity and Cauchy-Schwarz bound the tail:

    |sum_{k>=K} a_k b_k rho^k|^2 <= (|f|^2 - sum_{k<K} a_k^2)(|g|^2 - sum_{k<K} b_k^2).

The differences cannot be known better than to rounding; when they are that small and
a whole block adds less, the series has converged.

Reference: Daniely, Frostig and Singer (2016), https://arxiv.org/abs/1602.05897.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..scalar import Expr, evaluate
from ._quadrature import REACH, correlation, safe_sqrt

Array = Any

BLOCK = 32
"""Terms that are added between two tests of convergence."""
NODES = (448, 640, 1024)
TERMS = (1024, 2048, 4096)
"""Nodes and the largest number of terms at each level of accuracy (float64)."""

_ROUNDING = 64.0
_TAIL = (1e-10, 1e-12, 0.0)


def hermite_dual(
    f: Expr,
    g: Expr,
    means: tuple[Array, Array],
    cov: tuple[Array, Array, Array],
    params: Sequence[Array],
    level: int,
    parity: int = 0,
) -> Array:
    """E f(u) g(v) for smooth f and g, by their Hermite series.

    Cost: one multiply-add per pair and term, and as many terms as the tail needs:
    about 64 for tanh at variance 1, 300 at variance 5.

    Args:
        f: a function of one leaf (argument 0) and the parameters.
        g: likewise.
        means: of u and of v.
        cov: Var u, Var v, Cov(u, v).
        params: parameters.
        level: see `Accuracy`.
        parity: 1 when u and v have mean 0 and f and g are even, -1 when both are
            odd: half of the terms vanish. 0 when nothing is known.
    """
    args = (*means, *cov, *params)
    return _series(f, g, level, parity)(*(jnp.asarray(x) for x in args))


@functools.lru_cache(maxsize=4096)
def _series(f: Expr, g: Expr, level: int, parity: int) -> Callable[..., Array]:
    """The series as a function of arrays, mapped by broadcasting.

    The loop below stops when all pairs have converged. Mapped by JAX, its test would be
    one for each pair, and every input's coefficients would be copied to every pair.
    """

    @jax.custom_batching.custom_vmap
    def run(*args: Array) -> Array:
        m1, m2, a, b, c, *params = args
        return _sum_series(f, g, (m1, m2), (a, b, c), params, level, parity)

    @run.def_vmap
    def _rule(size: int, batched: Sequence[bool], *args: Array) -> tuple[Array, bool]:
        del size
        ranks = [x.ndim - on for x, on in zip(args, batched, strict=True)]
        rank = max(ranks)
        moved = [
            x.reshape(x.shape[:1] + (1,) * (rank - x.ndim + 1) + x.shape[1:])
            if on
            else x
            for x, on in zip(args, batched, strict=True)
        ]
        return run(*moved), True

    return run


def _sum_series(
    f: Expr,
    g: Expr,
    means: tuple[Array, Array],
    cov: tuple[Array, Array, Array],
    params: Sequence[Array],
    level: int,
    parity: int,
) -> Array:
    (m1, m2), (a, b, c) = means, cov
    rho = correlation(a, b, c)
    dtype = rho.dtype
    nodes, terms, reach = _size(dtype, level)
    x = np.linspace(-reach, reach, nodes, endpoint=False) + reach / nodes
    step = 2.0 * reach / nodes
    # The weights are split evenly: sqrt(h phi) goes to f, and sqrt(h) to each psi_k.
    half = np.sqrt(step * np.exp(-0.5 * x**2) / np.sqrt(2.0 * np.pi))
    left = _on_nodes(f, m1, a, params, x, half, dtype)
    right = _on_nodes(g, m2, b, params, x, half, dtype)
    norm1, norm2 = jnp.sum(left**2, axis=-1), jnp.sum(right**2, axis=-1)
    shape = jnp.broadcast_shapes(norm1.shape, norm2.shape, rho.shape)
    nearest = jnp.max(jnp.abs(rho), initial=0)
    points = jnp.asarray(x, dtype)
    stride, ratio = (2 * BLOCK, rho * rho) if parity else (BLOCK, rho)
    eps = float(jnp.finfo(dtype).eps)

    def unfinished(state: tuple[Array, ...]) -> Array:
        k, _, _, _, _, rest1, rest2, block = state
        # What is missing of a norm is known to rounding only: never take it for 0.
        missing = [_worst(r, n) for r, n in ((rest1, norm1), (rest2, norm2))]
        near = nearest ** (2 * k)
        tail = near * jnp.prod(jnp.maximum(jnp.stack(missing), 4 * eps))
        rounding = (tail < (_ROUNDING * eps) ** 2) & (block * near < (eps / 16) ** 2)
        return (k < terms) & (tail > max(8 * eps, _TAIL[level]) ** 2) & ~rounding

    def add_block(state: tuple[Array, ...]) -> tuple[Array, ...]:
        k, before, now, total, power, rest1, rest2, _ = state
        (before, now), basis = _functions(k, before, now, points, stride)
        basis = basis[(1 - parity) // 2 :: 2] if parity else basis
        a_k, b_k = (jnp.einsum("kx,...x->k...", basis, z) for z in (left, right))
        inner = jnp.zeros((), dtype)
        for i in reversed(range(BLOCK)):
            inner = inner * ratio + a_k[i] * b_k[i]
        total = total + power * inner
        power = power * ratio**BLOCK
        gain1, gain2 = jnp.sum(a_k**2, 0), jnp.sum(b_k**2, 0)
        block = _worst(gain1, norm1) * _worst(gain2, norm2)
        rest1, rest2 = rest1 - gain1, rest2 - gain2
        return k + stride, before, now, total, power, rest1, rest2, block

    start = (
        jnp.asarray(0.0, dtype),
        jnp.zeros_like(points),
        jnp.asarray(half, dtype),
        jnp.zeros(shape, dtype),
        rho if parity < 0 else jnp.ones_like(rho),
        norm1,
        norm2,
        jnp.ones((), dtype),
    )
    return lax.while_loop(unfinished, add_block, start)[3]


def _size(dtype: Any, level: int) -> tuple[int, int, float]:
    if dtype == jnp.float64:
        return NODES[level], TERMS[level], REACH[level]
    return (192, 256, 384)[level], (256, 512, 1024)[level], REACH[level] - 4.0


def _on_nodes(
    f: Expr,
    mean: Array,
    variance: Array,
    params: Sequence[Array],
    x: np.ndarray,
    half: np.ndarray,
    dtype: Any,
) -> Array:
    z = mean[..., None] + safe_sqrt(variance)[..., None] * jnp.asarray(x, dtype)
    return evaluate(f, [z, *(p[..., None] for p in params)]) * jnp.asarray(half, dtype)


def _worst(rest: Array, norm: Array) -> Array:
    """The largest share of the squared norm that is still missing."""
    share = jnp.where(norm > 0, rest / jnp.where(norm > 0, norm, 1), 0)
    return jnp.maximum(jnp.max(share, initial=0), 0)


def _functions(
    first: Array, before: Array, now: Array, x: Array, count: int
) -> tuple[tuple[Array, Array], Array]:
    """The next Hermite functions, sqrt(k+1) psi_{k+1} = x psi_k - sqrt(k) psi_{k-1}."""

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        before, now = carry
        k = first + i
        after = (x * now - jnp.sqrt(k) * before) / jnp.sqrt(k + 1)
        return (now, after), now

    return lax.scan(step, (before, now), jnp.arange(count, dtype=x.dtype))
