"""Gradient descent of a model that is linear in its parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._descent import descend


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
    r"""Gradient descent of one function on the mean squared error, in closed form.

    The loss is half the *mean* of the squared errors over all m = `y.size` entries, so
    that with the tangent kernel $\Theta$, rate $\eta$ and $E_t = (I - \eta \Theta/m)^t$
    after t steps, or $E_t = \exp(-\eta \Theta t/m)$ after time t of gradient flow,

    $$ f_t(X) = y + E_t (f_0(X) - y), \qquad
       f_t(x) = f_0(x) + \Theta(x, X) \Theta^{-1} (I - E_t) (y - f_0(X)). $$

    Singular kernels are no exception. It is `trained_ensemble` of an ensemble that
    starts as one function, without covariance.

    Args:
        k_train: tangent kernel of the training inputs, shape (N, N, *I, *I), averaged
            over the last axis of the output; or (N, N, *I, O, *I, O), not averaged.
        y: targets, shape (N, *I, O), or (N,).
        f_train: outputs for the training inputs at time 0, of the shape of `y`.
        steps: whole numbers of steps, or times if `continuous`, or `np.inf`.
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
    course = descend(
        k_train, y, steps, learning_rate, k_cross=k_cross, f_train=f_train,
        f_test=f_test, continuous=continuous, name="steps",
    )  # fmt: skip
    return Linearised(course.times, course.losses, course.mean, course.test_mean)
