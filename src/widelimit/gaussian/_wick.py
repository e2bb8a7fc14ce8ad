"""Polynomials of jointly Gaussian variables: Wick's theorem, means included.

    E[z_i P(z)] = m_i E[P] + sum_j Cov(z_i, z_j) E[dP/dz_j]

Reference: Isserlis (1918), https://doi.org/10.1093/biomet/12.1-2.134.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ..scalar import Arg, Call, Const, Expr, call, evaluate
from ._factors import used

Array = Any
Powers = tuple[int, ...]
Polynomial = dict[Powers, Expr]

MAX_DEGREE = 24


def polynomial(expr: Expr, d: int) -> Polynomial | None:
    """`expr` as a polynomial in arguments 0..d-1: powers -> coefficient.

    Coefficients are expressions in the other arguments. None when it is not a
    polynomial, or one of a degree above `MAX_DEGREE`.
    """
    if not any(i < d for i in used(expr)):
        return {(0,) * d: expr}
    match expr:
        case Arg(i):
            return {tuple(int(k == i) for k in range(d)): Const(1.0)}
        case Call("add", (x, y)):
            return _sum(polynomial(x, d), polynomial(y, d))
        case Call("sub", (x, y)):
            return _sum(polynomial(x, d), _scale(polynomial(y, d), Const(-1.0)))
        case Call("neg", (x,)):
            return _scale(polynomial(x, d), Const(-1.0))
        case Call("mul", (x, y)):
            return multiply_polynomials(polynomial(x, d), polynomial(y, d))
        case Call("div", (x, y)) if not any(i < d for i in used(y)):
            return _scale(polynomial(x, d), call("div", Const(1.0), y))
        case Call("pow", (x, Const(n))) if n in range(MAX_DEGREE + 1):
            base = polynomial(x, d)
            result: Polynomial | None = {(0,) * d: Const(1.0)}
            for _ in range(int(n)):
                result = multiply_polynomials(result, base)
            return result
    return None


def _sum(x: Polynomial | None, y: Polynomial | None) -> Polynomial | None:
    if x is None or y is None:
        return None
    total = dict(x)
    for powers, c in y.items():
        total[powers] = call("add", total[powers], c) if powers in total else c
    return {k: c for k, c in total.items() if c != Const(0.0)}


def _scale(x: Polynomial | None, factor: Expr) -> Polynomial | None:
    if x is None:
        return None
    return {k: call("mul", factor, c) for k, c in x.items()}


def multiply_polynomials(
    x: Polynomial | None, y: Polynomial | None
) -> Polynomial | None:
    """The product; None when a factor is None or the degree is too high."""
    if x is None or y is None:
        return None
    total: Polynomial | None = {}
    for p, c in x.items():
        for q, e in y.items():
            powers = tuple(a + b for a, b in zip(p, q, strict=True))
            if sum(powers) > MAX_DEGREE:
                return None
            total = _sum(total, {powers: call("mul", c, e)})
    return total


def wick_mean(
    terms: Polynomial,
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
) -> Array:
    """The expectation of a polynomial; None among means or cov is a structural zero."""
    d = len(means)
    moments: dict[Powers, Array | None] = {(0,) * d: 1.0}

    def moment(powers: Powers) -> Array | None:
        if powers not in moments:
            moments[powers] = _stein(powers)
        return moments[powers]

    def _stein(powers: Powers) -> Array | None:
        i = next(k for k in range(d) if powers[k])
        rest = _lower(powers, i)
        parts = [] if means[i] is None else [(means[i], moment(rest))]
        for j in range(d):
            c = cov[i][j]
            if rest[j] and c is not None:
                parts.append((rest[j] * c, moment(_lower(rest, j))))
        return _total([x * y for x, y in parts if y is not None])

    values = []
    for powers, coefficient in terms.items():
        value = moment(powers)
        if value is not None:
            scale = evaluate(coefficient, [0.0] * d + list(params))
            values.append(scale * value)
    result = _total(values)
    return jnp.zeros(()) if result is None else result


def _lower(powers: Powers, i: int) -> Powers:
    return (*powers[:i], powers[i] - 1, *powers[i + 1 :])


def _total(values: Sequence[Array]) -> Array | None:
    total = None
    for v in values:
        total = v if total is None else total + v
    return total
