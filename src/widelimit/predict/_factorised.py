"""A kernel of the training inputs with its factorisations, made once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._errors import InputError, ShapeMismatchError
from .._jax import is_concrete
from ._check import resolution, rounding, singular, symmetric
from ._cholesky import cholesky, half_solve, solve
from ._dynamics import not_below_zero
from ._eigen import Eigen, Whole
from ._interleaved import as_matrix
from ._namespace import dtype_of, namespace, positive, real


class FactorisedKernel:
    r"""A kernel of the training inputs, regularised, and what it is factorised into.

    Give it to `gradient_descent_mse` or `gp_inference` in place of the kernel, to as
    many of them as there are targets: each factorisation is made when it is first
    needed, and kept here. Numbers on the CPU are factorised in float64 whatever the
    type of the kernel and JAX's settings; arrays on an accelerator where they are, in
    float64 if JAX has it. A kernel that is traced by JAX is factorised at every use.

    Args:
        k_train_train: shape (N, N, a, a, b, b, ..), a pair of axes for every axis of
            the targets that has a kernel.
        diag_reg: added to the diagonal.
        diag_reg_absolute_scale: False for `diag_reg` in units of the mean of the
            diagonal.
        name: of the kernel, for messages.

    Attributes:
        rows: the sizes of the pairs of axes, (N, a, b, ..).
        matrix: the kernel without `diag_reg`, as a matrix of n = prod(rows) rows.
        reg: what is added to the diagonal of the matrix, in its units.
        dtype: of the kernel, and of predictions from it.
        tolerance: eigenvalues of the regularised matrix that are not larger cannot be
            told from 0. Without `diag_reg`, those that the roundings of the entries
            make in the type of the kernel; with it, no more than half of `reg`, as long
            as float64 can resolve that.

    Raises:
        ShapeMismatchError: the axes of the kernel are not pairs of equal ones.
        InputError: it is empty, not symmetric, not finite or not real; `diag_reg` is
            negative or not finite.
    """

    def __init__(
        self,
        k_train_train: Any,
        diag_reg: Any = 0.0,
        diag_reg_absolute_scale: bool = False,
        *,
        name: str = "k_train_train",
    ) -> None:
        diag_reg = positive("diag_reg", diag_reg, zero=True)
        xp = namespace(k_train_train, diag_reg)
        k = real(xp, name, k_train_train)
        shape = tuple(k.shape)
        if shape[::2] != shape[1::2]:
            raise ShapeMismatchError(
                f"`{name}` should be a kernel of the training inputs with themselves, "
                f"of shape (N, N, a, a, b, b, ..), got {shape}."
            )
        if not k.size:
            raise InputError(f"`{name}` is empty: shape {shape}.")
        self.name = name
        self.shape = shape
        self.rows: tuple[int, ...] = shape[::2]
        self.dtype = dtype_of(k_train_train)
        self.matrix = as_matrix(k)
        self.known = is_concrete(self.matrix)
        self._accuracy = resolution(k_train_train)
        if self.known:
            symmetric(name, np.asarray(self.matrix), self._accuracy)
        mean = xp.trace(self.matrix) / len(self.matrix)
        self._unit = 1.0 if diag_reg_absolute_scale else mean
        self.reg = diag_reg * self._unit
        self._xp = xp
        self._kept: dict[str, Any] = {}

    @property
    def tolerance(self) -> Any:
        """Eigenvalues of the regularised matrix up to this one count as 0."""
        return self._once("tolerance", self._tolerance)

    @property
    def eigenvalues(self) -> Any:
        """Those of the regularised matrix, (n,), ascending; zero if below by rounding.

        Raises:
            InputError: an eigenvalue is negative beyond rounding.
        """
        return self._once("eigenvalues", self._eigenvalues)

    @property
    def eigen(self) -> tuple[Any, Any]:
        """The eigenvalues, and the eigenvectors as columns, (n, n).

        Raises:
            InputError: an eigenvalue is negative beyond rounding.
        """
        values = self.eigenvalues
        return values, self._spectrum.vectors

    @property
    def cholesky(self) -> Any:
        """The lower Cholesky factor of the regularised matrix, shape (n, n).

        Raises:
            InputError: the matrix is singular to the precision of its numbers. A kernel
                that is traced cannot be refused; the factor is then NaN.
        """
        return self._once("cholesky", self._cholesky)

    @property
    def unlearned(self) -> Any:
        """The eigenvalues, regularised, that cannot be told from 0; often none."""
        values = self.eigenvalues
        return values[values <= self.tolerance]

    def in_basis(self, rows: Any) -> Any:
        """Rows (m, n) in the basis of the eigenvectors V, which is a product with V."""
        return self._spectrum.rows(rows)

    def from_basis(self, columns: Any) -> Any:
        """V times columns (n, m); if they are few, V itself is not made."""
        return self._spectrum.columns(columns)

    def solve(self, b: Any) -> Any:
        """The inverse of the regularised matrix times a matrix (n, m), by Cholesky."""
        return solve(self.cholesky, b)

    def half_solve(self, b: Any) -> Any:
        """$L^{-1} b$ for the Cholesky factor L and a matrix (n, m)."""
        return half_solve(self.cholesky, b)

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        """What is made of numbers is kept; of what is traced, nothing may be."""
        if not self.known:
            return make()
        if what not in self._kept:
            # Also where a user compiles the prediction: the kernel is numbers already.
            with jax.ensure_compile_time_eval():
                self._kept[what] = make()
        return self._kept[what]

    def _tolerance(self) -> Any:
        xp, k = self._xp, self.matrix
        least = rounding(k, self._accuracy, xp)
        floor = rounding(k, 0.0, xp)
        asked = xp.maximum(floor, xp.minimum(least, self.reg / 2))
        return xp.where(self.reg > 0, asked, least)

    @property
    def _spectrum(self) -> Eigen | Whole:
        of = Eigen if self._xp is np else Whole
        return self._once("spectrum", lambda: of(self.matrix))

    def _eigenvalues(self) -> Any:
        values = self._spectrum.values + self.reg
        if self.known:
            not_below_zero(self.name, float(values[0]), float(self.tolerance))
        return self._xp.maximum(values, 0.0)

    def _cholesky(self) -> Any:
        return cholesky(self.matrix, self.reg, self.tolerance, self._singular)

    def _singular(self) -> InputError:
        unit = float(self._unit)
        return singular(
            np.asarray(self.matrix), float(self.reg), self._accuracy, name=self.name,
            option="diag_reg", unit=unit if unit > 0 else 1.0,
        )  # fmt: skip


def factorised(
    k_train_train: Any,
    diag_reg: Any,
    diag_reg_absolute_scale: bool,
    name: str = "k_train_train",
) -> FactorisedKernel:
    """A kernel with its factorisations, or the one that is given instead.

    Raises:
        InputError: `diag_reg` is given where the factorisations are.
    """
    if not isinstance(k_train_train, FactorisedKernel):
        return FactorisedKernel(
            k_train_train, diag_reg, diag_reg_absolute_scale, name=name
        )
    if not is_concrete(diag_reg) or diag_reg != 0 or diag_reg_absolute_scale:
        raise InputError(
            f"`{name}` is factorised already, with {k_train_train.reg:.3g} added to "
            f"its diagonal; got also diag_reg={diag_reg!r}. Give `diag_reg` to "
            "FactorisedKernel instead."
        )
    return k_train_train
