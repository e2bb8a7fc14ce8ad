"""Gradient flow of the mean squared error along the eigenvectors of a kernel."""

from typing import Any

import numpy as np

from .._errors import InputError
from ._factorised import FactorisedKernel
from ._namespace import real


def checked_times(xp: Any, t: Any) -> Any:
    """Times as they are given, zero or more or infinite, of any shape.

    Raises:
        InputError: a time is negative, or not a number, or there is none.
    """
    steps = real(xp, "t", t, infinite=True)
    if not steps.size:
        raise InputError(f"`t` is empty: shape {tuple(steps.shape)}.")
    if isinstance(steps, np.ndarray) and (steps < 0).any():
        raise InputError(f"`t` should be 0 or more, got {float(steps.min()):g}.")
    return steps


def times(xp: Any, t: Any, learning_rate: Any, size: int) -> tuple[Any, tuple]:
    r"""Times in units of the inverse of an eigenvalue, $\eta t / m$, shape (T,).

    Args:
        xp: where to compute.
        t: numbers of steps, zero or more, of any shape, infinite perhaps.
        learning_rate: $\eta$.
        size: m, the number of targets.

    Returns:
        The times in one row, and the shape of `t`.
    """
    steps = checked_times(xp, t)
    return steps.reshape(-1) * (learning_rate / size), tuple(steps.shape)


def flow(xp: Any, kernel: FactorisedKernel, s: Any) -> tuple[Any, Any]:
    r"""What is left of an error along every eigenvector, and its weight.

    With an eigenvalue $\lambda$, $e^{-\lambda s}$ of the error is left, and
    $(1 - e^{-\lambda s}) / \lambda$ is its weight in the function, which is s at 0.

    An eigenvalue that cannot be told from 0 counts as 0, and its weight stays 0, once
    the time is long enough for one as large as the kernel's `tolerance` to be learned:
    what is learned along it would be made of rounding errors.

    Args:
        xp: where to compute.
        kernel: its eigenvalues are regularised.
        s: times, shape (T,).

    Returns:
        Two arrays (T, n).
    """
    values, tolerance = kernel.eigenvalues[None, :], kernel.tolerance
    s = s[:, None]
    infinite = xp.isinf(s)
    late = infinite | (xp.where(infinite, 0.0, s) * tolerance >= 1)
    # Zeros are replaced before they divide: derivatives are taken of both branches.
    some = values > 0
    divisor = xp.where(some, values, 1.0)
    z = divisor * s
    left = xp.where(some, xp.exp(-z), 1.0)
    weight = xp.where(some, -xp.expm1(-z) / divisor, s)
    unlearned = late & (values <= tolerance)
    return xp.where(unlearned, 1.0, left), xp.where(unlearned, 0.0, weight)
