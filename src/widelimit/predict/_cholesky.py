"""Cholesky factors that are not made of rounding errors."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg

from .._errors import InputError
from .._jax import is_concrete
from ._check import smallest


def cholesky(k: Any, added: Any, least: Any, refusal: Callable[[], InputError]) -> Any:
    """The lower factor of `k + added * I`, shape (n, n).

    Args:
        k: shape (n, n); a NumPy array is factorised on the host, a JAX array by JAX.
            One that is traced cannot be refused: if singular, its factor is NaN.
        added: to the diagonal.
        least: the eigenvalue of `k + added * I` below which it counts as singular.
        refusal: makes the error for a singular one.

    Raises:
        InputError: the matrix is singular.
    """
    if not isinstance(k, np.ndarray):
        factor = jnp.linalg.cholesky(k + added * jnp.eye(len(k), dtype=k.dtype))
        if not is_concrete(factor):
            return factor
        broken = not bool(jnp.isfinite(jnp.diagonal(factor)).all())
    else:
        try:
            factor = scipy.linalg.cholesky(k + added * np.eye(len(k)), lower=True)
            broken = False
        except np.linalg.LinAlgError:
            factor, broken = None, True
    # The estimate costs O(n^2) and errs by a small factor. It only says when the
    # eigenvalues, several times the cost of the factorisation, are worth having.
    if broken or (
        smallest_estimate(factor) < 10 * float(least)
        and smallest(np.asarray(k)) + float(added) < float(least)
    ):
        raise refusal()
    return factor


def smallest_estimate(factor: Any) -> float:
    """About the smallest eigenvalue of a matrix with this lower factor; never below it.

    Inverse iteration from a fixed start: wrong by at most a small factor unless the
    start has, by chance, nothing along the eigenvector.
    """
    vector = np.random.default_rng(0).standard_normal((len(factor), 1))
    for _ in range(4):
        vector = solve(factor, vector)
        size = float(np.linalg.norm(vector))
        if not (np.isfinite(size) and size > 0):
            return 0.0
        vector = np.asarray(vector) / size
    return 1 / float(np.linalg.norm(solve(factor, vector)))


def half_solve(factor: Any, b: Any) -> Any:
    """L^-1 b for a lower factor L and a matrix b, shape (n, m)."""
    if isinstance(factor, np.ndarray) and isinstance(b, np.ndarray):
        return scipy.linalg.solve_triangular(factor, b, lower=True)
    return jax.scipy.linalg.solve_triangular(factor, b, lower=True)


def solve(factor: Any, b: Any) -> Any:
    """(L L^T)^-1 b for a lower factor L and a matrix b, shape (n, m)."""
    if isinstance(factor, np.ndarray) and isinstance(b, np.ndarray):
        return scipy.linalg.cho_solve((factor, True), b)
    factor = jnp.asarray(factor)
    return jax.scipy.linalg.cho_solve((factor, True), jnp.asarray(b, factor.dtype))
