"""Gradient descent of a model that is linear in its parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from .._errors import InputError, ShapeMismatchError
from ._check import double, resolution, rounding, symmetric
from ._matrix import kernel_matrix


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Linearised:
    """The course of training of a linear model.

    Attributes:
        steps: numbers of steps, or times, shape (S,).
        losses: half the mean squared error of the training outputs, shape (S,).
        outputs: for the training inputs, shape (S, N, *I, O).
        test_outputs: for the test inputs, or None.
    """

    steps: np.ndarray
    losses: np.ndarray
    outputs: np.ndarray
    test_outputs: np.ndarray | None


def linearised(
    k_train: Any,
    y: Any,
    f_train: Any,
    steps: Sequence[float] | np.ndarray,
    learning_rate: float,
    *,
    k_cross: Any | None = None,
    f_test: Any | None = None,
    continuous: bool = False,
) -> Linearised:
    r"""Gradient descent on the mean squared error, in closed form.

    The loss is half the *mean* of the squared errors over all m = `y.size` entries, so
    that with the tangent kernel $\Theta$, rate $\eta$ and $E_t = (I - \eta \Theta/m)^t$
    after t steps, or $E_t = \exp(-\eta \Theta t/m)$ after time t of gradient flow,

    $$ f_t(X) = y + E_t (f_0(X) - y), \qquad
       f_t(x) = f_0(x) + \Theta(x, X) \Theta^{-1} (I - E_t) (y - f_0(X)). $$

    $\Theta^{-1}(I - E_t)$ is one function of the eigenvalues with a finite value at 0,
    and nothing is inverted: a singular kernel is no exception. One eigendecomposition
    in float64.

    Args:
        k_train: tangent kernel of the training inputs, shape (N, N, *I, *I), averaged
            over the last axis of the output; or (N, N, *I, O, *I, O), not averaged.
        y: targets, shape (N, *I, O), or (N,).
        f_train: outputs for the training inputs at time 0, of the shape of `y`.
        steps: whole numbers of steps, or times if `continuous`.
        learning_rate: $\eta$; a parameter's own `lr` is in the kernel.
        k_cross: tangent kernel of the test inputs with the training inputs, shape
            (M, N, *I', *I) or (M, N, *I', O, *I, O): test inputs first.
        f_test: outputs for the test inputs at time 0.
        continuous: gradient flow rather than gradient descent.

    Raises:
        ShapeMismatchError: the arrays disagree.
        InputError: an array is not finite, empty, complex or traced; `k_train` is not
            symmetric or has a negative eigenvalue beyond rounding; steps are negative,
            or not whole; only one of `k_cross` and `f_test` is given.

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, equations 8 to 11. The
        normalisation is that of `neural_tangents.predict.gradient_descent_mse`.
    """
    accuracy = resolution(k_train)
    targets, start = double("y", y), double("f_train", f_train)
    if start.shape != targets.shape or targets.ndim == 0 or targets.size == 0:
        raise ShapeMismatchError(
            f"`y` and `f_train` should have one shape (N, ..), got {targets.shape} and "
            f"{start.shape}."
        )
    matrix, outputs = kernel_matrix("k_train", k_train, targets.shape, targets.shape)
    symmetric("k_train", matrix, accuracy)
    values, vectors = _eigen(matrix, accuracy)
    times = _times(steps, continuous)
    z = values * positive_rate(learning_rate) / targets.size
    error = vectors.T @ (targets - start).reshape(-1, outputs)
    if (k_cross is None) != (f_test is None):
        raise InputError("Give both of `k_cross` and `f_test`, or neither.")
    tested = None
    # Too large a rate overflows, as training at it does: the result is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.stack([_left(z, t, continuous) for t in times])
        change = vectors @ (left[..., None] * error)
        trained = targets - change.reshape(-1, *targets.shape)
        if k_cross is not None:
            before = double("f_test", f_test)
            cross, _ = kernel_matrix("k_cross", k_cross, before.shape, targets.shape)
            moved = np.stack([_moved(z, t, continuous) for t in times])
            moved *= float(learning_rate) / targets.size
            change = cross @ (vectors @ (moved[..., None] * error))
            tested = before + change.reshape(-1, *before.shape)
        losses = 0.5 * np.mean((trained - targets) ** 2, axis=_after_first(trained))
    return Linearised(times, losses, trained, tested)


def _after_first(array: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def _eigen(k: np.ndarray, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = scipy.linalg.eigh(k)
    least = rounding(k, accuracy)
    if values[0] < -1e3 * least:
        raise InputError(
            f"`k_train` has the eigenvalue {values[0]:.3g}, below zero by more than "
            "rounding, so it is not the kernel of any model; check how it was computed."
        )
    return np.maximum(values, 0.0), vectors


def _left(z: np.ndarray, t: float, continuous: bool) -> np.ndarray:
    """How much of an error is left."""
    with np.errstate(over="ignore"):
        return np.exp(-z * t) if continuous else np.power(1.0 - z, t)


def _moved(z: np.ndarray, t: float, continuous: bool) -> np.ndarray:
    """(1 - what is left) / z: finite where z is zero, exact where it is small."""
    small = z < 0.5
    exponent = -z if continuous else np.log1p(-np.where(small, z, 0.0))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ratio = np.where(
            small, -np.expm1(t * exponent) / z, (1.0 - _left(z, t, continuous)) / z
        )
    return np.where(z > 0, ratio, t)


def _times(steps: Any, continuous: bool) -> np.ndarray:
    times = np.atleast_1d(double("steps", steps))
    bad = (times < 0) | ((times != np.round(times)) if not continuous else False)
    if times.ndim != 1 or bad.any():
        raise InputError(
            "steps should be whole numbers, 0 or more (any such numbers if "
            f"continuous=True), got {steps!r}."
        )
    return times


def positive_rate(learning_rate: Any) -> float:
    """The learning rate as a number, refused where it is not positive and finite."""
    rate = float(learning_rate)
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(
            f"learning_rate should be a positive number, got {learning_rate!r}."
        )
    return rate
