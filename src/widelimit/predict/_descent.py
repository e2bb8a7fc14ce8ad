"""Gradient descent of an ensemble of infinitely wide networks."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import InputError, ShapeMismatchError
from ._check import double, resolution
from ._course import Course, prior_blocks
from ._dynamics import Dynamics, check_times, dynamics
from ._matrix import kernel_array, kernel_block, kernel_matrix


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrainedEnsemble:
    """The Gaussian process that an ensemble of networks is, as it is trained.

    One entry of the first axis for every time. The outputs that share a kernel (the
    last axis of `y`, where the kernels have none for it) share one covariance, and are
    independent.

    Attributes:
        times: numbers of steps, or times of gradient flow, shape (T,).
        losses: half the mean squared error on the training targets, on average over
            the ensemble, shape (T,).
        mean: of the outputs for the training inputs, shape (T, N, *I, O).
        variance: shape (T, N, *I), or (T, N, *I, O) for kernels that have an axis for
            the output. None, as are all variances and covariances, without the kernel
            of the outputs at time 0: the mean is then all there is to know.
        cov: shape (T, N, N, *I, *I), the axes of `k_train`.
        test_mean: of the outputs for the test inputs, (T, M, *I', O), or None.
        test_variance: shape (T, M, *I').
        test_cov: shape (T, M, M, *I', *I'); None if only the diagonal of the kernel
            was given.
        unlearned: the eigenvalues of `k_train` that cannot be told from 0, nor can
            with the ridge added, so that no length of training shows what the targets
            are along their eigenvectors; often empty.
    """

    times: np.ndarray
    losses: np.ndarray
    mean: np.ndarray
    variance: np.ndarray | None
    cov: np.ndarray | None
    test_mean: np.ndarray | None
    test_variance: np.ndarray | None
    test_cov: np.ndarray | None
    unlearned: np.ndarray

    @property
    def std(self) -> np.ndarray | None:
        """The standard deviation for the training inputs, of `variance`'s shape."""
        return None if self.variance is None else np.sqrt(self.variance)

    @property
    def test_std(self) -> np.ndarray | None:
        """The standard deviation for the test inputs, of `test_variance`'s shape."""
        return None if self.test_variance is None else np.sqrt(self.test_variance)


def trained_ensemble(
    k_train: Any,
    y: Any,
    times: float | Sequence[float] | np.ndarray,
    learning_rate: float,
    *,
    k_cross: Any | None = None,
    nngp_train: Any | None = None,
    nngp_cross: Any | None = None,
    nngp_test: Any | None = None,
    f_train: Any | None = None,
    f_test: Any | None = None,
    continuous: bool = False,
    momentum: float = 0.0,
    ridge: float = 0.0,
) -> TrainedEnsemble:
    r"""Train an ensemble of infinitely wide networks on the mean squared error.

    At time 0 the outputs are a Gaussian process with the kernel K of `net.nngp`; every
    network then follows gradient descent, in which only the tangent kernel $\Theta$ of
    `net.ntk` counts, and the ensemble stays Gaussian. The loss is half the *mean* of
    the squared errors over all m = `y.size` entries, so that with a rate $\eta$
    $E_t = (I - \eta \Theta/m)^t$ of the error is left after t steps, or
    $E_t = \exp(-\eta \Theta t/m)$ after time t of gradient flow, and with
    $A_t = \Theta(x, X) \Theta^{-1} (I - E_t)$ and the prior mean $f_0$

    $$ \bar f_t(x) = f_0(x) + A_t (y - f_0(X)), \quad
       C_t = K(x, x) + A_t K(X, X) A_t^\top - A_t K(X, x) - K(x, X) A_t^\top, $$

    the covariance of $f_0(x) - A_t f_0(X)$. To train the last layer only, give K for
    $\Theta$ as well; after infinite time that is `gp_posterior` without noise.

    A ridge r adds $r / 2m$ times the squared distance of the parameters from where they
    started, each over its own `lr`, to the loss: $\Theta^{-1}$ is then
    $(\Theta + r I)^{-1}$ here and in $E_t$, and infinite time is kernel ridge
    regression. It is not noise on the targets: for that, of variance r, add r to the
    diagonal of `nngp_train` as well, and infinite time of the last layer alone is then
    `gp_posterior` with noise r at the test inputs.

    Momentum is the heavy ball of `optax.sgd`, $v \leftarrow \mu v + \nabla$,
    $\theta \leftarrow \theta - \eta v$, started at rest: $E_t$ is another function of
    the eigenvalues. In continuous time, with one unit for a step, it obeys
    $\ddot f = -(1 - \mu) \dot f - \eta \Theta (f - y)/m$, which follows descent while
    little happens in a step, and $1 - \mu$ is small. It does not tend to gradient flow
    as $\mu \to 0$; `momentum=0` is gradient flow.

    Nothing is inverted: $\Theta^{-1} (I - E_t)$ is one function of the eigenvalues with
    a finite value at 0, so singular kernels are no exception. Along an eigenvector
    whose eigenvalue cannot be told from 0, the targets are not learned, and a warning
    counts such directions if the time is long enough for that to be a choice. One
    eigendecomposition in float64, O(N^3), and then O(N^3 + M N^2 + M^2 N) for the
    covariances at every time.

    Args:
        k_train: tangent kernel of the training inputs, shape (N, N, *I, *I), one for
            all entries of the last axis of the output; or (N, N, *I, O, *I, O).
        y: targets, shape (N, *I, O), or (N,).
        times: whole numbers of steps, or times if `continuous`, or `np.inf`.
        learning_rate: $\eta$; a parameter's own `lr` is in the kernel.
        k_cross: tangent kernel of the test inputs with the training inputs, shape
            (M, N, *I', *I) or (M, N, *I', O, *I, O): test inputs first. Without it
            there are predictions for the training inputs only.
        nngp_train: K of the training inputs, of the shape of `k_train`. Without it
            all networks start as one function, and there is no covariance.
        nngp_cross: K of the test inputs with the training inputs.
        nngp_test: K of the test inputs, shape (M, M, *I', *I'), or its diagonal alone,
            shape (M, *I'), which gives variances and no covariance.
        f_train: mean of the outputs for the training inputs at time 0, of the shape of
            `y`; 0 without it, as of a network whose last layer has mean 0.
        f_test: the same for the test inputs.
        continuous: gradient flow rather than gradient descent.
        momentum: $\mu$, from 0 to below 1.
        ridge: r, in the units of the eigenvalues of `k_train`.

    Raises:
        ShapeMismatchError: the arrays disagree.
        InputError: an array is not finite, empty, complex or traced; a kernel is not
            symmetric or has a negative eigenvalue beyond rounding, or the parts of K
            are not of one process; times are negative, or not whole; the rate is too
            large for infinite time, or for the outputs to be finite numbers; parts of
            K or of the outputs at time 0 are missing.

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, equations 8 to 11 and
        corollary 1. Normalisation and times are those of
        `neural_tangents.predict.gradient_descent_mse_ensemble`, whose `diag_reg` is
        `ridge` over the mean of the diagonal of `k_train`, and which at the training
        inputs takes $\Theta (\Theta + r I)^{-1}$ to be I; momentum in continuous time
        is that of `neural_tangents.predict.gradient_descent`. Heavy ball: Polyak
        (1964); its continuous time: Qian (1999), On the momentum term in gradient
        descent learning algorithms.
    """
    found = descend(
        k_train, y, times, learning_rate, k_cross=k_cross, f_train=f_train,
        f_test=f_test, nngp=(nngp_train, nngp_cross, nngp_test), name="times",
        continuous=continuous, momentum=momentum, ridge=ridge,
    )  # fmt: skip
    for array in (found.losses, found.test_mean, found.test_variance):
        if array is not None and not np.isfinite(array).all():
            raise InputError(
                f"Gradient descent at learning_rate={learning_rate:g} diverges until "
                "the outputs are too large for float64. Take a rate below "
                "`wl.max_learning_rate(k_train, y.size, momentum)`, or fewer steps."
            )
    return found


def descend(
    k_train: Any,
    y: Any,
    times: Any,
    learning_rate: Any,
    *,
    k_cross: Any | None,
    f_train: Any | None,
    f_test: Any | None,
    continuous: bool,
    name: str,
    nngp: tuple[Any | None, Any | None, Any | None] = (None, None, None),
    momentum: Any = 0.0,
    ridge: Any = 0.0,
) -> TrainedEnsemble:
    """`trained_ensemble`, with results that are not finite where it diverges far.

    `name` is what the caller calls `times`, and `nngp` holds the three kernels.
    """
    targets = double("y", y)
    if not targets.size or not targets.ndim:
        raise ShapeMismatchError(
            "`y` should hold the targets, of shape (N,) or (N, .., O) with N at least "
            f"1, got shape {targets.shape}."
        )
    matrix, outputs = kernel_matrix("k_train", k_train, targets.shape, targets.shape)
    motion = dynamics(
        matrix, targets.size, resolution(k_train), learning_rate,
        continuous=continuous, momentum=momentum, ridge=ridge,
    )  # fmt: skip
    when = check_times(name, times, continuous)
    _check_motion(motion, when)
    # Axes that the kernels have; the last one of the outputs may share a kernel.
    rows = targets.shape[: np.ndim(k_train) // 2]
    shared = targets.shape[len(rows) :]
    tested = None if k_cross is None else _test_rows(k_cross, rows, shared)
    start, test_start = _starts(f_train, f_test, targets.shape, tested, shared)
    prior = prior_blocks(nngp, rows, tested)

    course = Course(motion, when)
    error = motion.vectors.T @ (targets - start).reshape(-1, outputs)
    # Too large a rate overflows, as training at it does: the result is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        gap = course.left(error).reshape(-1, *targets.shape)
        variance = cov = test_mean = test_variance = test_cov = None
        losses = 0.5 * np.mean(gap**2, axis=tuple(range(1, gap.ndim)))
        if prior is not None:
            variance, cov = course.train_cov(prior)
            losses += 0.5 * variance.mean(axis=1)
            variance = variance.reshape(-1, *rows)
            cov = kernel_array(cov, rows)
        if tested is not None:
            cross = kernel_block("k_cross", k_cross, tested, rows) @ motion.vectors
            change = course.moved(cross, error)
            test_mean = test_start + change.reshape(-1, *tested, *shared)
            if prior is not None:
                test_variance, test_cov = course.test_cov(prior, cross)
                test_variance = test_variance.reshape(-1, *tested)
                test_cov = None if test_cov is None else kernel_array(test_cov, tested)
    return TrainedEnsemble(
        times=when,
        losses=losses,
        mean=targets - gap,
        variance=variance,
        cov=cov,
        test_mean=test_mean,
        test_variance=test_variance,
        test_cov=test_cov,
        unlearned=motion.unlearned,
    )


def _check_motion(motion: Dynamics, when: np.ndarray) -> None:
    """Refuse what never converges, and tell what is never learned."""
    if np.isinf(when).any() and not motion.converges:
        largest = 2 * (1 + motion.momentum) / (motion.values[-1] + motion.ridge)
        raise InputError(
            "At this learning rate gradient descent does not converge, so there is no "
            "prediction for infinite time: the rate is "
            f"{motion.rate / largest:.3g} times the largest that does "
            "(`wl.max_learning_rate`). Take a smaller one, or continuous=True."
        )
    if any(motion.matters(t) for t in when):
        count, n = len(motion.unlearned), len(motion.values)
        size = float(np.abs(motion.unlearned).max())
        warnings.warn(
            f"{count} of the {n} eigenvalues of `k_train` cannot be told from 0 (the "
            f"largest of them is {size:.1g}; rounding is {motion.tolerance:.1g}), as "
            "when inputs coincide or outnumber the features of the kernel. In the time "
            "given, the targets are not learned along their eigenvectors. A ridge "
            f"above {motion.tolerance:.1g} makes this a smooth choice.",
            stacklevel=4,
        )


def _test_rows(
    k_cross: Any, rows: tuple[int, ...], shared: tuple[int, ...]
) -> tuple[int, ...]:
    """The axes of the test outputs that have a kernel, (M, *I') or (M, *I', O)."""
    array = double("k_cross", k_cross)
    if array.ndim != 2 * len(rows):
        raise ShapeMismatchError(
            f"`k_cross` should have {2 * len(rows)} axes, as `k_train` has, with the "
            f"test inputs first; got shape {array.shape}."
        )
    last = () if shared or len(rows) == 1 else rows[-1:]
    tested = (array.shape[0], *array.shape[2 : 1 + len(rows) - len(last)], *last)
    if not array.size:
        raise InputError(f"`k_cross` is empty: shape {array.shape}.")
    kernel_block("k_cross", array, tested, rows)
    return tested


def _starts(
    f_train: Any | None,
    f_test: Any | None,
    shape: tuple[int, ...],
    tested: tuple[int, ...] | None,
    shared: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The mean outputs at time 0, of training and test inputs."""
    if (f_test is None) != (tested is None or f_train is None):
        raise InputError(
            "Give both of `k_cross` and `f_test` with `f_train`, or neither; without "
            "`f_train`, the mean of the outputs at time 0 is 0 everywhere."
        )
    start = np.zeros(shape) if f_train is None else double("f_train", f_train)
    if start.shape != shape:
        raise ShapeMismatchError(
            f"`y` and `f_train` should have one shape (N, ..), got {shape} and "
            f"{start.shape}."
        )
    test_shape = (*(tested or ()), *shared)
    test_start = np.zeros(test_shape) if f_test is None else double("f_test", f_test)
    if test_start.shape != test_shape:
        raise ShapeMismatchError(
            f"For the test inputs of `k_cross`, `f_test` should have shape "
            f"{test_shape}, got {test_start.shape}."
        )
    return start, test_start
