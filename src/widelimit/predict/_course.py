"""From the distribution of functions at time 0 to that at any other."""

import dataclasses
from typing import Any

import numpy as np

from .._errors import InputError
from ._check import double, not_negative, resolution, rounding, smallest, symmetric
from ._dynamics import Dynamics, not_below_zero
from ._matrix import kernel_block


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """The covariance of the outputs at time 0, as matrices.

    Attributes:
        train: shape (n, n).
        cross: shape (m, n), or None.
        test: shape (m, m), or (m,), or None.
        accuracy: relative error of their entries.
    """

    train: np.ndarray
    cross: np.ndarray | None
    test: np.ndarray | None
    accuracy: float


def prior_blocks(
    nngp: tuple[Any | None, Any | None, Any | None],
    rows: tuple[int, ...],
    tested: tuple[int, ...] | None,
) -> Prior | None:
    """The kernels of the outputs at time 0, checked; None if none is given.

    Args:
        nngp: for the training inputs, test with training inputs, test inputs.
        rows: shape of the training outputs that have a kernel.
        tested: the same of the test outputs, or None without test inputs.
    """
    k_train, k_cross, k_test = nngp
    given = [part is not None for part in nngp]
    if not any(given):
        return None
    if given != [True, tested is not None, tested is not None]:
        names = ("nngp_train", "nngp_cross", "nngp_test")
        found = [name for name, there in zip(names, given, strict=True) if there]
        raise InputError(
            "For covariances give `nngp_train`, and with `k_cross` also `nngp_cross` "
            f"and `nngp_test`; got {', '.join(found)} "
            f"{'without' if tested is None else 'with'} `k_cross`."
        )
    accuracy = max(resolution(part) for part in nngp if part is not None)
    train = kernel_block("nngp_train", k_train, rows, rows)
    symmetric("nngp_train", train, accuracy)
    not_below_zero("nngp_train", smallest(train), rounding(train, accuracy))
    if tested is None or k_test is None:
        return Prior(train, None, None, accuracy)
    cross = kernel_block("nngp_cross", k_cross, tested, rows)
    if np.shape(k_test) == tested:
        return Prior(train, cross, double("nngp_test", k_test).ravel(), accuracy)
    test = kernel_block("nngp_test", k_test, tested, tested)
    symmetric("nngp_test", test, accuracy)
    return Prior(train, cross, test, accuracy)


class Course:
    """Means and covariances at every time, from those at time 0."""

    def __init__(self, motion: Dynamics, when: np.ndarray) -> None:
        states = [motion.at(float(t)) for t in when]
        self._vectors = motion.vectors
        self._weights = np.stack([weight for weight, _ in states])
        self._left = np.stack([left for _, left in states])

    def left(self, error: np.ndarray) -> np.ndarray:
        """What is left of an error (n, O), given along the eigenvectors: (T, n, O)."""
        return self._vectors @ (self._left[..., None] * error)

    def moved(self, cross: np.ndarray, error: np.ndarray) -> np.ndarray:
        """How far an error moves the test outputs, (T, m, O).

        Args:
            cross: tangent kernel with every eigenvector, (m, n).
            error: along every eigenvector, (n, O).
        """
        return cross @ (self._weights[..., None] * error)

    def train_cov(self, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        """Variances (T, n) and covariances (T, n, n) for the training inputs."""
        inside = self._vectors.T @ prior.train @ self._vectors
        found = []
        for left in self._left:
            mixed = self._vectors * left
            found.append(_symmetric_part(mixed @ inside @ mixed.T))
        cov = np.stack(found)
        # Rounding of a square, whose diagonal is not negative.
        variance = np.maximum(np.einsum("tii->ti", cov), 0.0)
        np.einsum("tii->ti", cov)[:] = variance
        return variance, cov

    def test_cov(
        self, prior: Prior, cross: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Variances (T, m) and covariances (T, m, m) for the test inputs."""
        assert prior.cross is not None
        assert prior.test is not None
        inside = self._vectors.T @ prior.train @ self._vectors
        beside = prior.cross @ self._vectors
        whole = prior.test.ndim == 2
        before = np.diag(prior.test) if whole else prior.test
        scale = max(float(np.abs(before).max()), float(np.diag(prior.train).max()))
        accuracy = prior.accuracy + len(inside) * float(np.finfo(float).eps)
        variances, covs = [], []
        for weights in self._weights:
            a = cross * weights
            twice = a @ inside - 2 * beside
            variance = before + np.einsum("mn,mn->m", twice, a)
            total = np.abs(a @ self._vectors.T).sum(axis=1)
            variance = not_negative(
                variance, scale, total, accuracy,
                "variance after training", "`nngp_train`, `nngp_cross` and `nngp_test`",
            )  # fmt: skip
            variances.append(variance)
            if whole:
                cov = _symmetric_part(prior.test + twice @ a.T)
                np.fill_diagonal(cov, variance)
                covs.append(cov)
        return np.stack(variances), np.stack(covs) if whole else None


def _symmetric_part(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)
