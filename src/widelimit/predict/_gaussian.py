"""Gaussian processes at test inputs, as matrices."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from .._errors import InputError
from ._factorised import FactorisedKernel
from ._interleaved import as_kernel


class Gaussian(NamedTuple):
    """Mean and covariance of the outputs; entries of traced axes are independent.

    Attributes:
        mean: of the shape of the outputs.
        covariance: of the shape of the kernel, (M, M, a, a', b, b', ..).
    """

    mean: Any
    covariance: Any


def conditional_covariance(prior: Any, half: Any) -> Any:
    r"""$K_{**} - K_{*X} K_{XX}^{-1} K_{X*}$, shape (m, m).

    Args:
        prior: $K_{**}$.
        half: $L^{-1} K_{X*}$ with the Cholesky factor L of $K_{XX}$, shape (n, m).
    """
    return symmetric_part(prior - half.T @ half)


def trained_covariance(prior: Any, weights: Any, inside: Any, beside: Any) -> Any:
    r"""The covariance of $f_0(x) - A f_0(X)$: $K_{**} + A K A^T - A K_{X*} - ..$.

    Args:
        prior: $K_{**}$, shape (m, m).
        weights: A, shape (m, n), in any orthonormal basis of the training outputs.
        inside: $K_{XX}$ in that basis.
        beside: $K_{*X}$ in that basis, shape (m, n).

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, equation 16.
    """
    return symmetric_part(prior + (weights @ inside - 2 * beside) @ weights.T)


def congruent(a: Any, k: Any) -> Any:
    """The symmetric matrix a k a^T, whose halves have the same roundings."""
    return symmetric_part(a @ k @ a.T)


def symmetric_part(matrix: Any) -> Any:
    """Half of a matrix and its transpose."""
    return 0.5 * (matrix + matrix.T)


def kernel_part(name: str, k: Any, part: str, why: str = "") -> Any:
    """The kernel `nngp` or `ntk` of an object that has both, or the one array given.

    Raises:
        InputError: the object has no such kernel.
    """
    if isinstance(k, FactorisedKernel) or hasattr(k, "shape"):
        return k
    found = getattr(k, part, None)
    if found is None:
        raise InputError(
            f"`{name}` should be an array or have the kernel `{part}`{why}; got a "
            f"{type(k).__name__} without."
        )
    return found


def as_gaussian(
    mean: Any,
    covariances: Any,
    rows: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Any,
) -> Gaussian:
    """A mean of its own shape, and covariances (T, m, m) at times of a shape."""
    kernels = as_kernel(covariances, rows, rows)
    return Gaussian(
        mean, jnp.asarray(kernels.reshape((*shape, *kernels.shape[1:])), dtype)
    )
