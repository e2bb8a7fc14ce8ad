"""Derivatives of Gaussian expectations, by Price's theorem.

    dE/dm_i = E[dF/dz_i],   dE/dK_ii = 1/2 E[d2F/dz_i2],   dE/dK_ij = E[d2F/dz_i dz_j]

Unlike the derivative of a quadrature rule, these hold where a variance is 0 and where
a correlation is +-1. A kink of F at t, where F' jumps by delta, adds to dE/dK_ii the
term 1/2 delta N(t; m_i, K_ii) E[rest | z_i = t].

Reference: Price (1958), https://doi.org/10.1109/TIT.1958.1057444.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..scalar import Const, Expr, differentiate

Array = Any
Factors = tuple[Expr, ...]
Gaussian = tuple[list[Array], list[list[Array | None]], list[Array]]
Pairs = tuple[tuple[int, int], ...]

_SymbolicZero = jax.custom_derivatives.SymbolicZero


def with_derivative(  # noqa: C901
    value: Callable[..., Array],
    expectation: Callable[..., Array],
    factors: Factors,
    d: int,
    pairs: Pairs,
    kinks: Callable[..., Array | None],
) -> Callable[..., Array]:
    """Give `value` the derivative of Price's theorem.

    Args:
        value: (means, cov, params) -> the expectation of the product of `factors`.
        expectation: (factors, means, cov, params) -> the same for other factors.
        factors: functions of leaves 0..d-1 and of the parameters after them.
        d: the number of leaves.
        pairs: (i, j), i <= j, of the covariances that are not structurally zero.
        kinks: (leaf, means, cov, params) -> the sum of delta N(t; ..) E[rest | t]
            over the kinks of the factors of one leaf, or None.

    Returns:
        A function of d means, one covariance for each pair, and the parameters.
    """

    def unpack(flat: Sequence[Array]) -> Gaussian:
        means, entries = list(flat[:d]), flat[d : d + len(pairs)]
        cov: list[list[Array | None]] = [[None] * d for _ in range(d)]
        for (i, j), entry in zip(pairs, entries, strict=True):
            cov[i][j] = cov[j][i] = entry
        return means, cov, list(flat[d + len(pairs) :])

    @jax.custom_jvp
    def function(*flat: Array) -> Array:
        return value(*unpack(flat))

    def rule(
        primals: Sequence[Array], tangents: Sequence[Array]
    ) -> tuple[Array, Array]:
        out = function(*primals)
        point = unpack(primals)
        total = jnp.zeros_like(out)
        for k, tangent in enumerate(tangents):
            if isinstance(tangent, _SymbolicZero):
                continue
            slope = _slope(k, point)
            if slope is not None:
                total = total + jnp.broadcast_to(slope * tangent, out.shape)
        return out, total

    def _slope(k: int, point: Gaussian) -> Array | None:
        if d <= k < d + len(pairs):
            i, j = pairs[k - d]
            products = [q for p in derive(factors, i) for q in derive(p, j)]
            parts = [expectation(p, *point) for p in products]
            if i == j and (extra := kinks(i, *point)) is not None:
                parts.append(extra)
            scale = 0.5 if i == j else 1.0
        else:
            scale, argument = 1.0, k if k < d else k - len(pairs)
            parts = [expectation(p, *point) for p in derive(factors, argument)]
        return scale * sum(parts[1:], parts[0]) if parts else None

    function.defjvp(rule, symbolic_zeros=True)
    return function


def derive(factors: Factors, argument: int) -> list[Factors]:
    """The product rule: products whose sum is the derivative of the product."""
    terms = []
    for k, f in enumerate(factors):
        slope = differentiate(f, argument)
        if slope != Const(0.0):
            terms.append((*factors[:k], slope, *factors[k + 1 :]))
    return terms
