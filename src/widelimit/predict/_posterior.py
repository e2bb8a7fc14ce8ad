"""The posterior of a Gaussian process, given its kernel matrices."""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.linalg

from .._errors import InputError, ShapeMismatchError
from ._check import (
    double,
    not_negative,
    resolution,
    rounding,
    singular,
    symmetric,
)
from ._cholesky import cholesky


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """What a Gaussian process says at the test inputs, given the training data.

    It describes the noise-free outputs: for new observations add the noise to the
    variance. The outputs (columns of `y`) share one covariance.

    Attributes:
        mean: shape (test, *outputs), where `y` has shape (train, *outputs).
        variance: shape (test,).
        cov: shape (test, test); None if only the diagonal of the test kernel was given.
        log_marginal_likelihood: log p(y), summed over the outputs.
    """

    mean: np.ndarray
    variance: np.ndarray
    cov: np.ndarray | None
    log_marginal_likelihood: float

    @property
    def std(self) -> np.ndarray:
        """The standard deviation at each test input, shape (test,)."""
        return np.sqrt(self.variance)


def gp_posterior(
    k_train: Any, k_cross: Any, k_test: Any, y: Any, noise: float = 0.0
) -> Posterior:
    r"""Condition an infinitely wide Bayesian network on data.

    $$ m = K_{*X} (K_{XX} + \sigma^2 I)^{-1} y, \qquad
       C = K_{**} - K_{*X} (K_{XX} + \sigma^2 I)^{-1} K_{X*}. $$

    One Cholesky factorisation in float64, whatever the arrays are: O(n^3) time and
    O(n^2) memory in the n training inputs.

    Args:
        k_train: kernel of the training inputs, shape (train, train), symmetric.
        k_cross: kernel between test and training inputs, shape (test, train): the test
            inputs come first, as in `net.nngp(x_test, x_train)`.
        k_test: kernel of the test inputs, shape (test, test), or its diagonal alone,
            shape (test,), which gives variances and no covariance.
        y: targets, shape (train,) or (train, *outputs).
        noise: variance of the noise on the targets, in the squared units of `y`.

    Returns:
        The posterior, in float64.

    Raises:
        ShapeMismatchError: the arrays disagree on how many inputs there are.
        InputError: an array is not finite, empty, complex or traced; `k_train` is not
            symmetric; the kernels cannot come from one process; `noise` is negative;
            `k_train + noise * I` is singular to the precision of its numbers (the
            message says which noise is enough).

    References:
        Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, Alg. 2.1.
        Lee et al. (2018), https://arxiv.org/abs/1711.00165: limit kernels as priors.
    """
    accuracy = max(resolution(k) for k in (k_train, k_cross, k_test))
    k_train, k_cross = double("k_train", k_train), double("k_cross", k_cross)
    k_test, targets = double("k_test", k_test), double("y", y)
    _check_shapes(k_train, k_cross, k_test, targets)
    noise = _check_noise(noise)
    symmetric("k_train", k_train, accuracy)
    if k_test.ndim == 2:
        symmetric("k_test", k_test, accuracy)

    n = len(k_train)
    factor = cholesky(
        k_train, noise, rounding(k_train, accuracy),
        lambda: singular(k_train, noise, accuracy),
    )  # fmt: skip
    flat = targets.reshape(n, -1)
    # Two solves against the factor keep the covariance symmetric to rounding; an
    # inverse does not.
    a = scipy.linalg.solve_triangular(factor, k_cross.T, lower=True)
    b = scipy.linalg.solve_triangular(factor, flat, lower=True)
    fit = -0.5 * float(np.sum(b * b))
    volume = float(np.sum(np.log(np.diag(factor)))) + 0.5 * n * math.log(2 * math.pi)
    cov = k_test - a.T @ a if k_test.ndim == 2 else None
    prior = np.diag(k_test) if k_test.ndim == 2 else k_test
    variance = prior - np.einsum("nm,nm->m", a, a)
    weights = scipy.linalg.solve_triangular(factor, a, lower=True, trans=1)
    variance = not_negative(
        variance, float(np.abs(prior).max()), np.abs(weights).sum(axis=0), accuracy,
        "posterior variance", "`k_train`, `k_cross` and `k_test`",
    )  # fmt: skip
    if cov is not None:
        np.fill_diagonal(cov, variance)
    return Posterior(
        mean=(a.T @ b).reshape(len(k_cross), *targets.shape[1:]),
        variance=variance,
        cov=cov,
        log_marginal_likelihood=fit - flat.shape[1] * volume,
    )


def _check_shapes(
    k_train: np.ndarray, k_cross: np.ndarray, k_test: np.ndarray, y: np.ndarray
) -> None:
    if y.ndim == 0:
        raise ShapeMismatchError(
            "`y` is a single number; it should hold one row of targets for each "
            "training input."
        )
    n, m = len(y), len(k_cross) if k_cross.ndim else 0
    if n == 0 or m == 0:
        raise InputError(
            f"There are {n} training targets (`y`) and {m} test inputs (rows of "
            "`k_cross`); at least one of each is needed."
        )
    good = k_train.shape == (n, n) and k_cross.shape == (m, n)
    if not good or k_test.shape not in ((m, m), (m,)):
        raise ShapeMismatchError(
            f"With {n} training targets and {m} test inputs, `k_train`, `k_cross` and "
            f"`k_test` should have shapes ({n}, {n}), ({m}, {n}) and ({m}, {m}) or "
            f"({m},); got {k_train.shape}, {k_cross.shape} and {k_test.shape}. "
            "`k_cross` has the test inputs first."
        )


def _check_noise(noise: Any) -> float:
    try:
        value = float(noise)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(
            f"`noise` is {noise!r}; it is a variance: a finite number, zero or more."
        )
    return value
