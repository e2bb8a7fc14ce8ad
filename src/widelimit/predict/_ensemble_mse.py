"""Ensembles of infinitely wide networks under gradient flow, from a kernel function."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from .._errors import InputError
from .._kernel import check_names, returned, wanted
from ._factorised import FactorisedKernel
from ._flow import flow, times
from ._gaussian import (
    Gaussian,
    as_gaussian,
    conditional_covariance,
    congruent,
    kernel_part,
    symmetric_part,
    trained_covariance,
)
from ._interleaved import as_matrix, outputs_of
from ._kernel_blocks import KernelOfTest
from ._large import computed, each, side_by_side
from ._namespace import namespace, positive, real

BLOCK = 1024
"""Test inputs in one call of a kernel function, unless the user says otherwise."""


class GradientDescentMSEEnsemble:
    """The course of training; made by `gradient_descent_mse_ensemble`."""

    def __init__(
        self,
        kernel_fn: Callable[..., Any],
        x_train: Any,
        y_train: Any,
        learning_rate: Any,
        regularised: tuple[Any, bool],
        trace_axes: Any,
        block: int | None,
        options: dict[str, Any],
    ) -> None:
        if block is not None and not (isinstance(block, int) and block > 0):
            raise InputError(f"block should be a whole number or None, got {block!r}.")
        self._kernel_fn, self._x_train, self._y = kernel_fn, x_train, y_train
        self._learning_rate = positive("learning_rate", learning_rate)
        self._regularised, self._block, self._options = regularised, block, options
        self._outputs = outputs_of(jnp.shape(y_train), trace_axes)
        self._kernels: dict[str, FactorisedKernel] = {}
        real(namespace(y_train), "y_train", y_train)

    def kernel(self, name: str) -> FactorisedKernel:
        """The kernel `nngp` or `ntk` of the training inputs with its factorisations."""
        return self._train((name,))[name]

    def __call__(
        self,
        t: Any = None,
        x_test: Any = None,
        get: str | Iterable[str] | None = None,
        compute_cov: bool = False,
        **kernel_fn_test_test_kwargs: Any,
    ) -> Any:
        """The distribution of the outputs at time[s] `t`.

        Args:
            t: number of steps, or an array of them of any shape; fractions and
                infinity are numbers. None is infinity, without eigenvectors.
            x_test: test inputs. None for the training inputs, as without `diag_reg`
                at infinite time.
            get: "nngp" or "ntk", which gives one result, or both, which gives a named
                tuple; None is ("nngp", "ntk").
            compute_cov: whether to compute covariances.
            **kernel_fn_test_test_kwargs: options of the kernel function at the test
                inputs, of those that were given for the training inputs.

        Returns:
            For every name a `Gaussian`, or the mean alone without `compute_cov`. The
            axes of `t` come first.

        Raises:
            ShapeMismatchError: a kernel does not fit the targets.
            InputError: a kernel is not finite, or singular where `t` is None; options
                of the kernel function disagree.
        """
        names = wanted(("nngp", "ntk") if get is None else get) or ()
        check_names(names, ("nngp", "ntk"))
        needed = tuple(
            n for n in ("nngp", "ntk") if n in names or (n == "nngp" and compute_cov)
        )
        kernels = self._train(needed)
        if x_test is None:
            values = {n: self._at_train(n, kernels, t, compute_cov) for n in names}
            return returned(values, get, "Gaussians")
        of_test = KernelOfTest(
            self._kernel_fn, x_test, self._x_train, self._options,
            kernel_fn_test_test_kwargs, self._block,
        )  # fmt: skip
        values = self._at_test(names, kernels, t, compute_cov, of_test)
        return returned(values, get, "Gaussians")

    def _train(self, names: tuple[str, ...]) -> dict[str, FactorisedKernel]:
        missing = tuple(n for n in names if n not in self._kernels)
        found = {n: self._kernels[n] for n in names if n in self._kernels}
        if missing:
            asked = missing[0] if len(missing) == 1 else missing
            k = self._kernel_fn(self._x_train, None, asked, **self._options)
            for n in missing:
                title = f"kernel_fn(x_train, None, '{n}')"
                part = kernel_part("kernel_fn(x_train, None, ..)", k, n)
                found[n] = FactorisedKernel(part, *self._regularised, name=title)
                self._outputs.check_train(title, found[n])
        # What a trace has made may not outlive it.
        self._kernels.update({n: k for n, k in found.items() if k.known})
        return {n: found[n] for n in names}

    def _when(self, xp: Any, t: Any) -> tuple[Any, tuple]:
        return times(xp, t, self._learning_rate, self._outputs.size)

    def _at_train(
        self, name: str, kernels: dict[str, FactorisedKernel], t: Any, compute_cov: bool
    ) -> Any:
        kernel = kernels[name]
        xp = namespace(kernel.matrix, self._y, t, self._learning_rate)
        y = real(xp, "y_train", self._y)
        if t is None:
            _ = kernel.cholesky  # with a singular kernel the targets are not reached
            mean = jnp.asarray(y, kernel.dtype)
            zero = jnp.zeros(kernel.shape, kernel.dtype)
            return Gaussian(mean, zero) if compute_cov else mean
        s, shape = self._when(xp, t)
        values, vectors = kernel.eigen
        left, _ = flow(xp, kernel, s)
        along = xp.matmul(vectors.T, self._outputs.columns(xp, y))
        flat = each(xp, lambda e: vectors @ ((1 - e)[:, None] * along), left)
        mean = self._mean(xp, flat, self._outputs.rows, shape, kernel.dtype)
        if not compute_cov:
            return mean
        if name == "nngp":
            inside = xp.diag(values)
        else:
            inside = vectors.T @ kernels["nngp"].matrix @ vectors
        cov = each(xp, lambda e: congruent(vectors * e[None], inside), left)
        return as_gaussian(mean, cov, self._outputs.rows, shape, kernel.dtype)

    def _at_test(
        self,
        names: tuple[str, ...],
        kernels: dict[str, FactorisedKernel],
        t: Any,
        compute_cov: bool,
        of_test: KernelOfTest,
    ) -> dict[str, Any]:
        first = of_test.cross(0, tuple(kernels))
        xp = namespace(
            *(k.matrix for k in kernels.values()), first, self._y, t,
            self._learning_rate,
        )  # fmt: skip
        y = self._outputs.columns(xp, real(xp, "y_train", self._y))
        shape: tuple = ()
        s = None
        if t is not None:
            s, shape = self._when(xp, t)
        else:
            makers = [functools.partial(getattr, kernels[n], "cholesky") for n in names]
            side_by_side(xp, makers, kernels[names[0]].matrix)
        weights = {n: self._weights(xp, kernels[n], y, s) for n in names}
        means: dict[str, list[Any]] = {n: [] for n in names}
        cross: dict[str, list[Any]] = {n: [] for n in kernels}
        rows: tuple[int, ...] = ()
        inputs = 0
        for i in range(of_test.blocks):
            for n, k in (of_test.cross(i, tuple(kernels)) if i else first).items():
                k = real(xp, "kernel_fn(x_test, x_train)", k)
                rows = self._outputs.check_test("kernel_fn(x_test, x_train)", k)
                matrix = as_matrix(k)
                if n in names:
                    means[n].append(_stacked(matrix.__matmul__, weights[n]))
                if compute_cov:  # only then is it kept
                    cross[n].append(matrix)
            inputs += rows[0] if rows else 0
        rows = (inputs, *rows[1:]) if rows else rows
        found = {
            n: self._mean(
                xp, xp.concatenate(means[n], 1), rows, shape, kernels[n].dtype
            )
            for n in names
        }
        if not compute_cov:
            return found
        whole = {n: xp.concatenate(parts) for n, parts in cross.items()}
        prior = of_test.test(xp)
        for n in names:
            cov = _covariances(xp, n, kernels, whole, prior, s)
            found[n] = as_gaussian(found[n], cov, rows, shape, kernels[n].dtype)
        return found

    def _weights(self, xp: Any, kernel: FactorisedKernel, y: Any, s: Any) -> Any:
        """Of the training inputs in the mean function at every time, (T, n, O)."""
        if s is None:
            return kernel.solve(y)[None]
        _, weight = flow(xp, kernel, s)
        along = kernel.in_basis(y.T).T
        return _stacked(kernel.from_basis, weight[:, :, None] * along)

    def _mean(
        self, xp: Any, flat: Any, rows: tuple[int, ...], shape: tuple, dtype: Any
    ) -> Any:
        mean = self._outputs.arrays(xp, flat, rows)
        return jnp.asarray(mean.reshape((*shape, *mean.shape[1:])), dtype)


def _covariances(
    xp: Any,
    name: str,
    kernels: dict[str, FactorisedKernel],
    cross: dict[str, Any],
    prior: Any,
    s: Any,
) -> Any:
    """Covariances of the test outputs at every time, (T, m, m)."""
    kernel, k = kernels[name], cross[name]
    if s is None and name == "nngp":
        half = kernel.half_solve(k.T)
        return computed(xp, conditional_covariance, prior, half)[None]
    inside, beside = kernels["nngp"].matrix, cross["nngp"]
    if s is None:
        weights = kernel.solve(k.T).T
        found = computed(xp, trained_covariance, prior, weights, inside, beside)
        return found[None]
    if name == "nngp":
        # The square of what is left of an error is what is left after twice the time.
        _, weight = flow(xp, kernel, 2 * s)
        return each(xp, _of_last_layer, weight, prior, kernel.in_basis(k))
    _, weight = flow(xp, kernel, s)
    vectors = kernel.eigen[1]
    rows = kernel.in_basis(xp.concatenate([k, beside]))
    k, beside = rows[: len(k)], rows[len(k) :]
    inside = computed(xp, _inside, vectors.T, inside)
    return each(xp, _of_all_layers, weight, prior, k, inside, beside)


def _inside(transposed: Any, k: Any) -> Any:
    return transposed @ k @ transposed.T


def _of_last_layer(weight: Any, prior: Any, k: Any) -> Any:
    return symmetric_part(prior - (k * weight) @ k.T)


def _of_all_layers(weight: Any, prior: Any, k: Any, inside: Any, beside: Any) -> Any:
    return trained_covariance(prior, k * weight, inside, beside)


def _stacked(times: Callable[[Any], Any], stack: Any) -> Any:
    """A matrix times each of a stack (T, n, O), as one product of all columns."""
    count, n, outputs = stack.shape
    flat = times(stack.transpose(1, 0, 2).reshape(n, count * outputs))
    return flat.reshape(-1, count, outputs).transpose(1, 0, 2)


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    block: int | None = BLOCK,
    **kernel_fn_train_train_kwargs: Any,
) -> GradientDescentMSEEnsemble:
    r"""Predict gradient flow of an ensemble of infinitely wide networks.

    The networks start as draws of the process with covariance K, the NNGP, and each
    follows gradient flow on half the mean squared error over all m entries of the
    targets, in which only the tangent kernel $\Theta$ counts ("ntk"). With
    $A_t = \Theta(x, X) \Theta^{-1} (I - \exp(-\eta \Theta t/m))$, the mean is $A_t y$
    and the covariance $K(x, x) + A_t K A_t^T - A_t K(X, x) - K(x, X) A_t^T$. "nngp" is
    the same where the last layer alone is trained, $\Theta = K$: after infinite time it
    is the posterior of the Bayesian network. With `diag_reg`, all that is inverted or
    exponentiated is regularised, and for "nngp" so is K.

    Kernels that are singular, and times, are as for `gradient_descent_mse`.

    Args:
        kernel_fn: `kernel_fn(x1, x2, get, **options)`, which gives a kernel for a name,
            and for several an object with them as attributes `nngp`, `ntk`, each of
            shape (N1, N2, a, a', ..). `x2` is None for a batch with itself.
        x_train: training inputs.
        y_train: targets, shape (N, a, b, .., O) for `trace_axes=(-1,)`.
        learning_rate: $\eta$. A step is one unit of time.
        diag_reg: added to the diagonals of the kernels of the training inputs.
        diag_reg_absolute_scale: False for `diag_reg` in units of the mean of the
            diagonal.
        trace_axes: axes of the targets of which the kernels have no pair, and are the
            same for all entries.
        block: the most test inputs in one call of `kernel_fn`, which bounds its memory;
            the results are the same. None for all at once, as it is anyway where an
            option is a pair of arrays, one for each batch, or `rng`.
        **kernel_fn_train_train_kwargs: options of `kernel_fn`, for the training inputs
            and, unless they are given again, for test inputs. Of options that are pairs
            of arrays, one for each batch, that of the test inputs with the training
            inputs is put together.

    Returns:
        A function of `(t, x_test, get, compute_cov)`; its method `kernel("ntk")` gives
        the kernel of the training inputs with its factorisations, which are made once.

    Raises:
        InputError: the targets are not finite, or a number is out of range.

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, section 2.4 and corollary
        1. Names and conventions are those of
        `neural_tangents.predict.gradient_descent_mse_ensemble`.
    """
    return GradientDescentMSEEnsemble(
        kernel_fn, x_train, y_train, learning_rate, (diag_reg, diag_reg_absolute_scale),
        trace_axes, block, kernel_fn_train_train_kwargs,
    )  # fmt: skip
