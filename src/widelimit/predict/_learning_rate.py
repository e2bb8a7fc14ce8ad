"""The largest learning rate at which gradient descent converges."""

import math
from typing import Any

import numpy as np
import scipy.linalg

from .._errors import InputError, ShapeMismatchError
from ._check import double, resolution, symmetric


def max_learning_rate(
    k_train: Any,
    y_train_size: int | None = None,
    momentum: float = 0.0,
    eps: float = 1e-12,
) -> float:
    r"""The learning rate up to which gradient descent on an MSE is stable.

    $$ \eta_{\max} = \frac{2 (1 + \mu) m}{\lambda_{\max}(\Theta) + \epsilon} $$

    for a loss of half the *mean* of the squared errors over the m entries of the
    targets: with plain descent the error of an eigenvector is multiplied by
    $1 - \eta \lambda/m$ at every step, and $\mu$ is that of heavy-ball momentum,
    $v \leftarrow \mu v + \nabla$, $\theta \leftarrow \theta - \eta v$ (`optax.sgd`).
    Exact for a linear model; a network that is wide enough follows its linearisation.

    Args:
        k_train: tangent kernel of the training inputs, shape (N, N, *I, *I).
        y_train_size: m, the size of the array of targets. The number of rows of the
            kernel if None, which is right where the kernel is not averaged over an
            output axis, or that axis has size one.
        momentum: $\mu$, from 0 to 1.
        eps: added to the eigenvalue, so that a kernel of zeros has a finite rate.

    Raises:
        ShapeMismatchError: the kernel is not square.
        InputError: it is not symmetric, finite, real or known yet (traced by JAX);
            `momentum` or `y_train_size` is out of range.

    References:
        The convention is that of `neural_tangents.predict.max_learning_rate`; with
        momentum, Polyak (1964), Some methods of speeding up the convergence of
        iteration methods, theorem 9.
    """
    k = double("k_train", k_train)
    half = k.ndim // 2
    shape = (*k.shape[:1], *k.shape[2 : 1 + half])
    if k.ndim < 2 or k.shape != (k.shape[0], k.shape[0], *shape[1:], *shape[1:]):
        raise ShapeMismatchError(
            "`k_train` should be the kernel of the training inputs with themselves, of "
            f"shape (N, N, *I, *I), got {k.shape}."
        )
    if not k.size:
        raise InputError(f"`k_train` is empty: shape {k.shape}.")
    matrix = np.moveaxis(k, 1, half).reshape(math.prod(shape), -1)
    symmetric("k_train", matrix, resolution(k_train))
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
