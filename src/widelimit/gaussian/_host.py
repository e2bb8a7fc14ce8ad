"""Expectations of concrete numbers, each with an honest error."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .._errors import InputError
from .._jax import enable_x64
from ..scalar import Expr, arity, evaluate, from_callable
from ._estimate import Accuracy, Estimate
from ._expect import expect, is_exact, route
from ._growth import growth
from ._qmc import normal_points

SCRAMBLES = 16


def estimate(
    f: Expr | Callable[..., Any] | Sequence[Expr | Callable[..., Any]],
    mean: Any,
    cov: Any,
    params: Sequence[float] = (),
) -> Estimate:
    """E f(z), or E prod_k f_k(z), for z ~ N(mean, cov), with its error.

    Works in float64 whatever JAX's setting. A deterministic route is run at two
    levels of accuracy, which also reach differently far into the tails; the error is
    their difference, plus what rounding of the
    covariance and of the sum can do. Quasi-Monte Carlo is run with 16 independent
    scrambles; the error is three standard errors.

    Args:
        f: a function of d numbers (then of the parameters), or several whose product
            is meant.
        mean: (d,), or a number when d = 1.
        cov: (d, d), positive semidefinite, or a number when d = 1.
        params: values of further arguments of f.

    Raises:
        InputError: mean and cov do not fit each other or f, are not finite, or cov is
            not a covariance; or the expectation is not finite.
    """
    means, covariance = _checked(mean, cov)
    d = len(means)
    functions: list[Any] = list(f) if isinstance(f, list | tuple) else [f]
    factors = tuple(_traced(g, d, len(params)) for g in functions)
    for g in factors:
        if arity(g) > d + len(params):
            raise InputError(
                f"The function reads {arity(g)} arguments, but there are {d} Gaussian "
                f"variables and {len(params)} parameters; give a mean, a covariance or "
                "a parameter for each."
            )
    with enable_x64():
        return _estimate(factors, means, covariance, [float(p) for p in params])


def _traced(f: Expr | Callable[..., Any], d: int, params: int) -> Expr:
    if callable(f):
        try:
            inspect.signature(f).bind(*range(d + params))
        except TypeError:
            raise InputError(
                f"The function takes arguments {inspect.signature(f)}, but there are "
                f"{d} Gaussian variables and {params} parameters to give it."
            ) from None
    return from_callable(f, d + params)


def _checked(mean: Any, cov: Any) -> tuple[np.ndarray, np.ndarray]:
    means = np.atleast_1d(np.asarray(mean, np.float64))
    d = means.size
    covariance = np.asarray(cov, np.float64)
    covariance = covariance.reshape(1, 1) if covariance.size == 1 else covariance
    if means.ndim != 1 or covariance.shape != (d, d):
        raise InputError(
            f"A mean of shape (d,) and a covariance of shape (d, d) are needed, got "
            f"{np.shape(mean)} and {np.shape(cov)}."
        )
    if not (np.all(np.isfinite(means)) and np.all(np.isfinite(covariance))):
        raise InputError("The mean and the covariance must be finite; got NaN or inf.")
    scale = float(np.max(np.abs(covariance), initial=0.0))
    if not np.allclose(covariance, covariance.T, rtol=0.0, atol=1e-10 * scale):
        raise InputError("The covariance is not symmetric; use (cov + cov.T) / 2.")
    lowest = float(np.linalg.eigvalsh(covariance)[0]) if d else 0.0
    if lowest < -1e-9 * scale:
        raise InputError(
            f"The covariance has the negative eigenvalue {lowest:.3g}: it is not "
            "one of any Gaussian. Check how it was computed."
        )
    return means, (covariance + covariance.T) / 2.0


def _estimate(
    factors: tuple[Expr, ...], means: np.ndarray, cov: np.ndarray, params: list[float]
) -> Estimate:
    d, name = len(means), route(factors, len(means))

    def run(level: int, scramble: int = 0, shrink: float = 1.0) -> float:
        off = cov * np.where(np.eye(d, dtype=bool), 1.0, shrink)
        function = _runner(factors, d, len(params), Accuracy(level, scramble))
        return float(function(means, off, np.asarray(params)))

    floor = _rounding(factors, means, cov, params)
    if "QMC" in name:
        samples = np.array([run(1, s) for s in range(SCRAMBLES)])
        value = float(samples.mean())
        stderr = float(samples.std(ddof=1) / np.sqrt(SCRAMBLES))
        _finite(value)
        return Estimate(value, 3.0 * stderr + floor, stderr, name)
    value = run(2)
    # Closed forms are the same at all levels.
    coarse = value if is_exact(factors, d) else run(1)
    _finite(value)
    # How far the last digits of the correlations matter, as they do near rho = 1.
    conditioning = abs(run(2, shrink=1.0 - 2.0**-50) - value) if d > 1 else 0.0
    error = abs(value - coarse) + conditioning + floor
    wild = any(growth(f, i) == "beyond" for f in factors for i in range(d))
    if wild and error > 1e-3 * abs(value):
        _finite(float("inf"))
    return Estimate(value, error, 0.0, name)


def _finite(value: float) -> None:
    if not np.isfinite(value):
        raise InputError(
            f"The expectation came out as {value}: the function is not defined, or not "
            "integrable, under this Gaussian. Check its domain (log, sqrt, division) "
            "and its growth, which must stay below exp(C |x|^a) with a < 2."
        )


def _rounding(
    factors: tuple[Expr, ...], means: np.ndarray, cov: np.ndarray, params: list[float]
) -> float:
    """What rounding of the sums can do: some ulps of the root mean square."""
    # Its size is enough: from a sample.
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    leaves = means + normal_points(len(means), 12, 0) @ root.T
    args = [*leaves.T, *(np.full(len(leaves), p) for p in params)]
    with np.errstate(all="ignore"):
        product = np.prod([np.asarray(evaluate(f, args)) for f in factors], axis=0)
        size = float(np.mean(np.square(product)))
    scale = np.sqrt(size) if np.isfinite(size) else 0.0
    return 64.0 * float(np.finfo(np.float64).eps) * scale


@functools.lru_cache(maxsize=512)
def _runner(
    factors: tuple[Expr, ...], d: int, count: int, accuracy: Accuracy
) -> Callable[..., Any]:
    def run(means: Any, cov: Any, params: Any) -> Any:
        rows = [[cov[i, j] for j in range(d)] for i in range(d)]
        leaves = [means[i] for i in range(d)]
        return expect(
            factors, leaves, rows, [params[i] for i in range(count)], accuracy
        )

    return jax.jit(run)
