"""Eigenvectors of symmetric matrices on the host, made only where they are needed.

LAPACK's `syevd` takes three steps: to a tridiagonal matrix by reflections, its
eigenvectors, and those of the matrix by all reflections of each. To have some rows in
the basis of the eigenvectors it is enough to reflect these, which leaves out a third of
the time.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy.linalg import get_lapack_funcs

from ._large import computed, product

SMALL = 512
"""Rows below which the eigenvectors are made at once."""

_BLOCK = 64
"""Reflections that LAPACK applies at a time."""


class Eigen:
    r"""$K = Q Z \Lambda Z^T Q^T$ with reflections Q and a tridiagonal matrix's Z.

    Args:
        k: a symmetric matrix of finite float64 numbers.

    Attributes:
        values: the eigenvalues, ascending.
    """

    def __init__(self, k: np.ndarray) -> None:
        self._reflections: tuple[np.ndarray, np.ndarray] | None = None
        steps = _steps()
        if len(k) >= SMALL and steps is not None:
            reduce, solve, _ = steps
            # Transposed it is the same matrix, in the order of axes that LAPACK has.
            size = _BLOCK * len(k)
            reduced, main, beside, scales, _ = reduce(k.T, lower=1, lwork=size)
            self.values, self._inner, failed = solve(main, beside)
            if not failed:
                self._reflections = np.asfortranarray(reduced[1:, :-1]), scales
                return
        # The default driver waits for its threads, very long on a busy machine, and is
        # slower on an idle one.
        self.values, self._inner = scipy.linalg.eigh(
            k, driver="evd", check_finite=False
        )

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """The eigenvectors as columns."""
        return self._reflected("N", self._inner)

    def rows(self, a: np.ndarray) -> np.ndarray:
        """Rows (m, n) in the basis of the eigenvectors, a V."""
        if "vectors" in self.__dict__ or 2 * len(a) > len(self.values):
            return computed(np, product, a, self.vectors.T)
        return computed(np, product, self._reflected("T", a.T).T, self._inner.T)

    def columns(self, b: np.ndarray) -> np.ndarray:
        """Columns (n, m) from the basis of the eigenvectors, V b."""
        if "vectors" in self.__dict__ or 2 * b.shape[1] > len(self.values):
            return self.vectors @ b
        return self._reflected("N", self._inner @ b)

    def _reflected(self, transposed: str, columns: Any) -> np.ndarray:
        """Q or its transpose times some columns."""
        steps = _steps()
        if self._reflections is None or steps is None:
            return columns
        # The first entry is in no reflection.
        size = _BLOCK * (columns.shape[1] + _BLOCK + 1)
        below, _, _ = steps[2]("L", transposed, *self._reflections, columns[1:], size)
        return np.concatenate([columns[:1], below])


@functools.cache
def _steps() -> Any:
    """The routines, or None where an older SciPy does not have them."""
    try:
        return get_lapack_funcs(("sytrd", "stevd", "ormqr"), dtype=np.float64)
    except ValueError:
        return None


class Whole:
    """The same of an array that stays with JAX: all eigenvectors, at once."""

    def __init__(self, k: Any) -> None:
        self.values, self.vectors = jnp.linalg.eigh(k)

    def rows(self, a: Any) -> Any:
        """Rows (m, n) in the basis of the eigenvectors."""
        return a @ self.vectors

    def columns(self, b: Any) -> Any:
        """Columns (n, m) from the basis of the eigenvectors."""
        return self.vectors @ b
