"""Posteriors of infinitely wide networks, from kernels with interleaved axes."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError
from .._kernel import check_names, returned, wanted
from ._factorised import FactorisedKernel, factorised
from ._gaussian import (
    Gaussian,
    as_gaussian,
    conditional_covariance,
    kernel_part,
    trained_covariance,
)
from ._interleaved import as_matrix, outputs_of
from ._namespace import namespace, real

_KINDS = ("nngp", "ntk", "ntkgp")
_FOR_COVARIANCE = ", of which the covariance of a trained network is made"


class GPInference:
    """Posteriors given the training data; made by `gp_inference`, which says all."""

    def __init__(
        self,
        k_train_train: Any,
        y_train: Any,
        diag_reg: Any,
        diag_reg_absolute_scale: bool,
        trace_axes: Any,
    ) -> None:
        self._k_train = k_train_train
        self._y = y_train
        self._regularised = (diag_reg, diag_reg_absolute_scale)
        self._outputs = outputs_of(jnp.shape(y_train), trace_axes)
        self._kernels: dict[str, FactorisedKernel] = {}
        real(namespace(y_train), "y_train", y_train)

    def kernel(self, part: str) -> FactorisedKernel:
        """The kernel `nngp` or `ntk` of the training inputs with its factorisations.

        Raises:
            ShapeMismatchError: its shape does not fit the targets.
            InputError: there is no such kernel, or it is none.
        """
        if part not in self._kernels:
            k = kernel_part("k_train_train", self._k_train, part)
            name = "k_train_train" if k is self._k_train else f"k_train_train.{part}"
            found = factorised(k, *self._regularised, name)
            self._outputs.check_train(name, found)
            if not found.known:  # it may be of an inner trace
                return found
            self._kernels[part] = found
        return self._kernels[part]

    def __call__(
        self,
        get: str | Iterable[str] | None = None,
        k_test_train: Any = None,
        k_test_test: Any = None,
    ) -> Any:
        """The posterior at test inputs.

        Args:
            get: "nngp", "ntk" or "ntkgp", which gives one result, or several of them,
                which gives a named tuple; None is ("nngp", "ntk").
            k_test_train: kernel of test inputs with training inputs, shape
                (M, N, a', a, ..), or an object with `nngp` and `ntk`. Without it the
                result is for the training inputs: their targets, without variance, as
                without `diag_reg`.
            k_test_test: kernel of the test inputs, shape (M, M, a', a', ..), or an
                object with them; "nngp" and "ntk" take its NNGP, "ntkgp" its NTK. Give
                it for covariances; True for those of the training inputs.

        Returns:
            For every name a `Gaussian`, or the mean alone without `k_test_test`.

        Raises:
            ShapeMismatchError: the shapes of kernels and targets disagree.
            InputError: a kernel is missing, not finite, or singular.
        """
        names = wanted(("nngp", "ntk") if get is None else get) or ()
        check_names(names, _KINDS)
        values = {
            name: self._posterior(name, k_test_train, k_test_test) for name in names
        }
        return returned(values, get, "Gaussians")

    def _posterior(self, name: str, k_test_train: Any, k_test_test: Any) -> Any:
        part = "nngp" if name == "nngp" else "ntk"
        kernel = self.kernel(part)
        k_cross = None
        if k_test_train is not None:
            k_cross = kernel_part("k_test_train", k_test_train, part)
        xp = namespace(kernel.matrix, self._y, k_cross)
        y = real(xp, "y_train", self._y)
        if k_cross is None:
            _ = kernel.cholesky  # there is no posterior that a singular kernel has
            mean = jnp.asarray(y, kernel.dtype)
            if k_test_test is None:
                return mean
            return Gaussian(mean, jnp.zeros(kernel.shape, kernel.dtype))
        k = real(xp, "k_test_train", k_cross)
        rows = self._outputs.check_test("k_test_train", k)
        flat = as_matrix(k) @ kernel.solve(self._outputs.columns(xp, y))
        mean = jnp.asarray(self._outputs.arrays(xp, flat, rows), kernel.dtype)
        if k_test_test is None:
            return mean
        prior = "ntk" if name == "ntkgp" else "nngp"
        k_test = kernel_part("k_test_test", k_test_test, prior)
        cov = self._covariance(name, kernel, as_matrix(k), rows, k_test_train, k_test)
        return as_gaussian(mean, cov[None], rows, (), kernel.dtype)

    def _covariance(
        self,
        name: str,
        kernel: FactorisedKernel,
        k_cross: Any,
        rows: tuple[int, ...],
        k_test_train: Any,
        k_test: Any,
    ) -> Any:
        xp = namespace(kernel.matrix, k_cross, k_test)
        prior = real(xp, "k_test_test", k_test)
        _check_square("k_test_test", prior, rows)
        if name != "ntk":
            return conditional_covariance(
                as_matrix(prior), kernel.half_solve(k_cross.T)
            )
        for what, k in (
            ("k_train_train", self._k_train), ("k_test_train", k_test_train)
        ):  # fmt: skip
            if hasattr(k, "shape"):
                raise InputError(
                    f"`{what}` is one array; for the covariance of 'ntk' it should "
                    "have both kernels, `nngp` and `ntk`: the networks start with the "
                    "covariance `nngp`."
                )
        inside = self.kernel("nngp").matrix
        beside = kernel_part("k_test_train", k_test_train, "nngp", _FOR_COVARIANCE)
        beside = real(namespace(prior, beside), "k_test_train.nngp", beside)
        self._outputs.check_test("k_test_train.nngp", beside)
        weights = kernel.solve(k_cross.T).T
        return trained_covariance(as_matrix(prior), weights, inside, as_matrix(beside))


def _check_square(name: str, k: Any, rows: tuple[int, ...]) -> None:
    expected = tuple(s for s in rows for _ in range(2))
    if tuple(k.shape) != expected:
        raise ShapeMismatchError(
            f"With the test inputs of `k_test_train`, `{name}` should have shape "
            f"{expected}, got {tuple(k.shape)}."
        )


def gp_inference(
    k_train_train: Any,
    y_train: Any,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> GPInference:
    r"""Posteriors of infinitely wide networks, given their kernels.

    "nngp" is the posterior of the Bayesian network, with prior covariance K:
    $K(x, X) K^{-1} y$ and $K(x, x) - K(x, X) K^{-1} K(X, x)$. "ntkgp" is the same of
    the tangent kernel $\Theta$. "ntk" is the distribution of networks that start as
    draws of the prior and are trained for infinite time; with
    $A = \Theta(x, X) \Theta^{-1}$, its mean is $A y$ and its covariance
    $K(x, x) + A K A^T - A K(X, x) - K(x, X) A^T$.

    Args:
        k_train_train: an object with the kernels `nngp` and `ntk`, as a kernel function
            gives it, each of shape (N, N, a, a, b, b, ..) or a `FactorisedKernel`; or
            one such array, which is then whatever kernel is asked for.
        y_train: targets, shape (N, a, b, .., O) for `trace_axes=(-1,)`.
        diag_reg: added to the diagonals of what is inverted, variance of noise.
        diag_reg_absolute_scale: False for `diag_reg` in units of the mean of the
            diagonal.
        trace_axes: axes of the targets of which the kernels have no pair, and are the
            same for all entries.

    Returns:
        A function of `(get, k_test_train, k_test_test)`; its method `kernel("nngp")`
        gives the factorisations, which are made once.

    Raises:
        ShapeMismatchError: the shapes of kernel and targets disagree.
        InputError: an array is not finite; a number is out of range.

    References:
        Lee et al. (2018), https://arxiv.org/abs/1711.00165; Lee et al. (2019),
        https://arxiv.org/abs/1902.06720, section 2.4; He et al. (2020),
        https://arxiv.org/abs/2007.05864 ("ntkgp"). Names and conventions are those of
        `neural_tangents.predict.gp_inference`.
    """
    return GPInference(
        k_train_train, y_train, diag_reg, diag_reg_absolute_scale, trace_axes
    )
