"""Randomised quasi-Monte Carlo, and square roots of singular covariances."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._quadrature import safe_divide, safe_sqrt

Array = Any

LOG2_POINTS = (10, 13, 14)
"""Base-2 logarithm of the number of points at each level of accuracy."""


@functools.lru_cache(maxsize=64)
def normal_points(dimension: int, log2_count: int, scramble: int) -> np.ndarray:
    """Scrambled Sobol points, mapped to N(0, I): shape (2**log2_count, dimension).

    Different scrambles are independent, and each has the right expectation.

    References:
        Owen (1998), Scrambling Sobol' and Niederreiter-Xing points.
    """
    return sobol_normal(dimension, log2_count, [dimension, scramble, 20190213])


def sobol_normal(
    dimension: int, log2_count: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Scrambled Sobol points, mapped to N(0, I): shape (2**log2_count, dimension).

    Beyond the dimensions that there are Sobol numbers for (21201, in SciPy), the
    columns are independent normal numbers.
    """
    # SciPy takes a while to import and only this route needs it.
    from scipy.special import ndtri
    from scipy.stats import qmc

    rng = np.random.default_rng(seed)
    sobol = min(dimension, qmc.Sobol.MAXDIM)
    if sobol == 0:
        return np.zeros((2**log2_count, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uniform = qmc.Sobol(sobol, scramble=True, rng=rng).random_base2(log2_count)
    tiny = 2.0**-64
    points = ndtri(np.clip(uniform, tiny, 1.0 - 2.0**-53))
    rest = rng.standard_normal((len(points), dimension - sobol))
    return np.concatenate([points, rest], axis=1)


SCRAMBLES = 16
"""How many scrambles `all_normal_points` holds."""


@functools.lru_cache(maxsize=16)
def all_normal_points(dimension: int, log2_count: int) -> np.ndarray:
    """`normal_points` of the first scrambles, stacked."""
    each = [normal_points(dimension, log2_count, s) for s in range(SCRAMBLES)]
    return np.stack(each)


def psd_root(
    cov: Sequence[Sequence[Array | None]],
) -> list[list[Array | None]]:
    """A lower triangular L with L L^T = cov, for covariances that may be singular.

    A pivot that is zero up to rounding makes a zero column; so do zero variances.
    The derivative through such a pivot is zero, never NaN.

    Args:
        cov: entries that broadcast together; None is a structural zero.
    """
    d = len(cov)
    root: list[list[Array | None]] = [[None] * d for _ in range(d)]
    for j in range(d):
        variance = cov[j][j]
        if variance is None:
            continue
        pivot = variance
        for k in range(j):
            if (r := root[j][k]) is not None:
                pivot = pivot - r * r
        tolerance = 16 * d * float(jnp.finfo(pivot.dtype).eps)
        pivot = jnp.where(pivot > tolerance * variance, pivot, 0)
        root[j][j] = diagonal = safe_sqrt(pivot)
        for i in range(j + 1, d):
            entry = _remainder(cov[i][j], root, i, j)
            root[i][j] = None if entry is None else safe_divide(entry, diagonal)
    return root


def _remainder(
    entry: Array | None, root: list[list[Array | None]], i: int, j: int
) -> Array | None:
    for k in range(j):
        left, right = root[i][k], root[j][k]
        if left is not None and right is not None:
            product = left * right
            entry = -product if entry is None else entry - product
    return entry
