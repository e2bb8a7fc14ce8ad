"""Expectations that the user gives: E f(u) f(v) as a function of the covariances."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..scalar import Arg, Call, Const, Expr, define, evaluate
from ._factors import product_factors

Dual = Callable[[Any, Any, Any], Any]
"""(covariance, variance, variance) -> E f(u) f(v), entry by entry, for means 0."""

_DUALS: dict[str, Dual] = {}


def define_dual(fn: Callable[[Any], Any], dual: Dual, slope: Dual | None = None) -> str:
    """Name a function whose expectations are given.

    Args:
        fn: the function; its values are used where no given expectation applies.
        dual: E f(u) f(v) for Gaussian u, v of mean 0, a function of three scalars: the
            covariance and both variances.
        slope: E f'(u) f'(v); by default the derivative of `dual` by the covariance
            (Price's theorem).

    Returns:
        The name of the operation; see `scalar.define`.
    """
    names = define(fn, jnp.vectorize(jax.grad(fn)))
    rate = jax.grad(dual) if slope is None else slope
    for name, each in zip(names, (dual, rate), strict=True):
        _DUALS[name] = jnp.vectorize(each)
    return names[0]


def quadrature_dual(
    fn: Callable[[Any], Any], points: int, derivative: Callable[[Any], Any] | None
) -> str:
    """Name a function whose expectations are a Gauss-Hermite rule.

    The rule of Neural Tangents' `ElementwiseNumerical`, for comparison with it:
    `points` in u, and as many in the part of v that is independent of u. It is *not*
    the integral (2e-3 from it for tanh and 25 points); `expect` chooses its own rule.

    Args:
        fn: the function.
        points: how many.
        derivative: of `fn`; by automatic differentiation if None.

    References:
        Han et al. (2022), https://arxiv.org/abs/2209.04121, equation 13.
    """
    slope = jnp.vectorize(jax.grad(fn)) if derivative is None else derivative
    nodes, weights = np.polynomial.hermite.hermgauss(points)
    grid = np.outer(weights, weights) / np.pi

    def rule(f: Callable[[Any], Any]) -> Dual:
        def dual(c: Any, a: Any, b: Any) -> Any:
            # Nothing is divided by a variance of 0, where v tells nothing of u.
            safe = jnp.where(a > 0, a, 1.0)
            along = jnp.where(a > 0, c / jnp.sqrt(safe), 0.0)
            rest = b - along**2
            across = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1.0)), 0.0)
            root = jnp.where(a > 0, jnp.sqrt(safe), 0.0)
            s = jnp.sqrt(2.0) * jnp.asarray(nodes, root.dtype)
            u, v = root * s[:, None], along * s[:, None] + across * s
            return (jnp.asarray(grid, root.dtype) * f(u) * f(v)).sum()

        return dual

    names = define(fn, slope)
    for name, f in zip(names, (fn, slope), strict=True):
        _DUALS[name] = jnp.vectorize(rule(f))
    return names[0]


def given_dual(
    factors: Sequence[Expr],
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
) -> Array | None:
    """The expectation of a product of one named function of two leaves (or of one).

    None where it is not of this form, or a mean is not 0 by structure.
    """
    d = len(means)
    scale, calls, leaves, names = [], [], [], set()
    for part in (p for f in factors for p in product_factors(f)):
        match part:
            case Const():
                scale.append(part)
            case Call("pow", (Call() as call, Const(2.0))):
                calls += [call, call]
            case Call() as call:
                calls.append(call)
            case _:
                return None
    for call in calls:
        found = _leaf(call.args[0], d) if call.op in _DUALS else None
        if found is None:
            return None
        leaves.append(found)
        names.add(call.op)
    if len(leaves) != 2 or len(names) != 1 or any(m is not None for m in means):
        return None
    (i, r), (j, s) = leaves

    def entry(p: int, q: int) -> Any:
        value = cov[p][q]
        return jnp.zeros(()) if value is None else value

    dual = _DUALS[names.pop()]
    value = dual(entry(i, j) * r * s, entry(i, i) * r * r, entry(j, j) * s * s)
    for factor in scale:
        value = value * evaluate(factor, [])
    return value


def _leaf(inner: Expr, d: int) -> tuple[int, float] | None:
    """A leaf times a number."""
    number, place = 1.0, None
    for part in product_factors(inner):
        match part:
            case Const(value):
                number *= value
            case Arg(i) if i < d and place is None:
                place = i
            case _:
                return None
    return None if place is None else (place, number)
