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
            factor = _of_host(k, added)
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

    Inverse iteration from fixed starts: wrong by at most a small factor unless all of
    them have, by chance, nothing along the eigenvector. Many starts cost hardly more
    than one, since what takes the time is to read the factor.
    """
    vectors = np.random.default_rng(0).standard_normal((len(factor), 16))
    sizes = np.linalg.norm(vectors, axis=0)
    for _ in range(2):
        vectors = np.asarray(solve(factor, vectors / sizes))
        sizes = np.linalg.norm(vectors, axis=0)
        if not (np.isfinite(sizes).all() and (sizes > 0).all()):
            return 0.0
    return 1 / float(sizes.max())


def _of_host(k: np.ndarray, added: Any) -> np.ndarray:
    """The factor of a symmetric matrix, in the order of axes that LAPACK has."""
    a = k.copy().T if k.flags.c_contiguous else np.array(k, order="F")
    a[np.diag_indices(len(a))] += added
    return scipy.linalg.cholesky(a, lower=True, overwrite_a=True, check_finite=False)


def half_solve(factor: Any, b: Any) -> Any:
    """L^-1 b for a lower factor L and a matrix b, shape (n, m)."""
    if isinstance(factor, np.ndarray) and isinstance(b, np.ndarray):
        return scipy.linalg.solve_triangular(factor, b, lower=True, check_finite=False)
    return jax.scipy.linalg.solve_triangular(factor, b, lower=True)


def solve(factor: Any, b: Any) -> Any:
    """(L L^T)^-1 b for a lower factor L and a matrix b, shape (n, m)."""
    if isinstance(factor, np.ndarray) and isinstance(b, np.ndarray):
        return scipy.linalg.cho_solve((factor, True), b, check_finite=False)
    factor = jnp.asarray(factor)
    return jax.scipy.linalg.cho_solve((factor, True), jnp.asarray(b, factor.dtype))
