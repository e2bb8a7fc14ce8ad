"""The largest learning rate at which gradient descent converges."""

import contextlib
import math
from typing import Any

import numpy as np
import scipy.linalg

from .._errors import InputError, ShapeMismatchError
from ._check import double, resolution, symmetric
from ._interleaved import as_matrix


def max_learning_rate(
    ntk_train_train: Any,
    y_train_size: int | None = None,
    momentum: float = 0.0,
    eps: float = 1e-12,
    *,
    interleaved: bool | None = None,
) -> float:
    r"""The learning rate up to which gradient descent on an MSE is stable.

    $$ \eta_{\max} = \frac{2 (1 + \mu) m}{\lambda_{\max}(\Theta) + \epsilon} $$

    for a loss of half the *mean* of the squared errors over the m entries of the
    targets: with plain descent the error of an eigenvector is multiplied by
    $1 - \eta \lambda/m$ at every step, and $\mu$ is that of heavy-ball momentum,
    $v \leftarrow \mu v + \nabla$, $\theta \leftarrow \theta - \eta v$ (`optax.sgd`).
    Exact for a linear model; a network that is wide enough follows its linearisation.

    Args:
        ntk_train_train: tangent kernel of the training inputs, shape (N, N, *I, *I) or
            with the pairs of axes side by side, (N, N, a, a, b, b, ..).
        y_train_size: m, the size of the array of targets. The number of rows of the
            kernel if None, which is right where the kernel is not averaged over an
            output axis, or that axis has size one.
        momentum: $\mu$, from 0 to 1.
        eps: added to the eigenvalue, so that a kernel of zeros has a finite rate.
        interleaved: whether the pairs of axes are side by side. None for the order in
            which the kernel is square and symmetric, as it almost never is in both.

    Raises:
        ShapeMismatchError: the kernel is not square.
        InputError: it is not symmetric, finite, real or known yet (traced by JAX), or
            is symmetric in either order of its axes; `momentum` or `y_train_size` is
            out of range.

    References:
        The convention is that of `neural_tangents.predict.max_learning_rate`; with
        momentum, Polyak (1964), Some methods of speeding up the convergence of
        iteration methods, theorem 9.
    """
    k = double("ntk_train_train", ntk_train_train)
    matrix = _matrix(k, resolution(ntk_train_train), interleaved)
    if not (np.isfinite(momentum) and 0 <= momentum <= 1):
        raise InputError(f"momentum should be from 0 to 1, got {momentum!r}.")
    size = len(matrix) if y_train_size is None else y_train_size
    if isinstance(size, bool) or not size > 0 or size != int(size):
        raise InputError(
            "y_train_size should be the number of entries of the targets, y.size, got "
            f"{y_train_size!r}."
        )
    last = len(matrix) - 1
    top = scipy.linalg.eigvalsh(matrix, subset_by_index=(last, last))[0]
    return 2 * (1 + momentum) * size / (float(top) + eps)


def _matrix(k: np.ndarray, accuracy: float, interleaved: bool | None) -> np.ndarray:
    """A kernel with either order of axes as a symmetric matrix."""
    half = k.ndim // 2
    beside = k.shape[::2] == k.shape[1::2]
    apart = k.shape == (*k.shape[:1] * 2, *k.shape[2 : 1 + half] * 2)
    orders = [o for o, fits in ((True, beside), (False, apart)) if fits]
    if interleaved is not None:
        orders = [o for o in orders if o == interleaved]
    if k.ndim < 2 or not orders:
        raise ShapeMismatchError(
            "`ntk_train_train` should be the kernel of the training inputs with "
            "themselves, of shape (N, N, *I, *I), or (N, N, a, a, b, b, ..)"
            f"{'' if interleaved is None else f' (interleaved={interleaved})'}, got "
            f"{k.shape}."
        )
    if not k.size:
        raise InputError(f"`ntk_train_train` is empty: shape {k.shape}.")
    rows = math.prod(k.shape[::2] if orders[0] else k.shape[1 : 1 + half])
    found = [
        as_matrix(k) if o else np.moveaxis(k, 1, half).reshape(rows, rows)
        for o in orders
    ]
    if len(found) == 2:
        found = found[:1] if half <= 2 else [_symmetric_one(*found, accuracy)]
    symmetric("ntk_train_train", found[0], accuracy)
    return found[0]


def _symmetric_one(beside: np.ndarray, apart: np.ndarray, accuracy: float) -> Any:
    """The matrix that is symmetric, or the first if neither is."""
    good = []
    for matrix in (beside, apart):
        with contextlib.suppress(InputError):
            symmetric("ntk_train_train", matrix, accuracy)
            good.append(matrix)
    if len(good) == 2 and not np.array_equal(beside, apart):
        raise InputError(
            "`ntk_train_train` is symmetric whether its pairs of axes are side by "
            "side, (N, N, a, a, b, b), or not, (N, N, a, b, a, b). Say with "
            "interleaved=True or interleaved=False."
        )
    return good[0] if good else beside
