"""What gradient descent makes of the error along every eigenvector of a kernel."""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.linalg

from .._errors import InputError
from ._check import double, rounding, symmetric


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Dynamics:
    r"""Gradient descent in the eigenbasis of a tangent kernel.

    Along an eigenvector of eigenvalue $\lambda$, with m targets, the weight a of the
    training inputs in the function, $f(x) = f_0(x) + \Theta(x, X) a$, goes from 0 to
    $e / (\lambda + r)$, where e is the first error and r the ridge. With
    $z = \eta (\lambda + r) / m$ and $a_t = q_t \eta e / m$,

        descent     $q_{t+1} - q_t = d_{t+1}$,
                    $d_{t+1} = \mu d_t - z q_t + 1$,
        flow        $q' = 1 - z q$, or with momentum
                    $q' = d$, $d' = -(1 - \mu) d - z q + 1$,

    all linear in (q, d, 1), so that any time is one power or exponential of a small
    matrix. It is finite at z = 0 like any other z.

    Attributes:
        values: eigenvalues of the kernel, not negative, ascending.
        vectors: eigenvectors, as columns.
        unlearned: as computed, the eigenvalues that with the ridge are not above
            `tolerance`; the first ones.
        tolerance: the size below which an eigenvalue is rounding error.
        rate: the learning rate over the number of targets.
        ridge: added to every eigenvalue.
        momentum: of the heavy ball, 0 or more and below 1.
        continuous: flow rather than descent.
    """

    values: np.ndarray
    vectors: np.ndarray
    unlearned: np.ndarray
    tolerance: float
    rate: float
    ridge: float
    momentum: float
    continuous: bool

    def at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Where an error of one has led after time t, for every eigenvector.

        Returns:
            The weight a, and what is left of the error, 1 - eigenvalue * a.
        """
        z = self.rate * (self.values + self.ridge)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if math.isinf(t):
                left, q = np.zeros_like(z), 1 / z
            else:
                change = (
                    _exponential_less_one(self._flow(z), t)
                    if self.continuous
                    else _power_less_one(self._step(z), int(t))
                )
                left, q = 1 + change[:, 0, 0], change[:, 0, -1]
        if self.matters(t):
            left[: len(self.unlearned)], q[: len(self.unlearned)] = 1.0, 0.0
        weight = self.rate * q
        # Without the ridge, 1 - z q is left; the difference would lose its digits.
        return weight, left + self.ridge * weight

    def matters(self, t: float) -> bool:
        """Whether an eigenvalue as large as `tolerance` would be learned by then.

        If it would, what is learned along `unlearned` is made of rounding errors, and
        is left out. If not, those directions follow their eigenvalues like the others:
        to the training outputs it makes no difference yet, but the test outputs may
        depend on the root of such an eigenvalue.
        """
        if math.isinf(t):
            return len(self.unlearned) > 0
        reached = self.rate * self.tolerance * t >= 1 - self.momentum
        return len(self.unlearned) > 0 and reached

    @property
    def converges(self) -> bool:
        """Whether infinitely many steps lead anywhere."""
        top = self.rate * (float(self.values[-1]) + self.ridge)
        return self.continuous or top < 2 * (1 + self.momentum)

    def _step(self, z: np.ndarray) -> np.ndarray:
        """The change of (q, d, 1), or of (q, 1) without momentum, in one step."""
        if not self.momentum:
            return _matrices([[-z, 1], [0, 0]])
        mu = self.momentum
        return _matrices([[-z, mu, 1], [-z, mu - 1, 1], [0, 0, 0]])

    def _flow(self, z: np.ndarray) -> np.ndarray:
        """Its derivative in time."""
        if not self.momentum:
            return _matrices([[-z, 1], [0, 0]])
        return _matrices([[0, 1, 0], [-z, self.momentum - 1, 1], [0, 0, 0]])


def dynamics(
    matrix: np.ndarray,
    size: int,
    accuracy: float,
    learning_rate: Any,
    *,
    continuous: bool,
    momentum: Any = 0.0,
    ridge: Any = 0.0,
) -> Dynamics:
    """Decompose a tangent kernel, given as a matrix.

    Args:
        matrix: the kernel of the training inputs.
        size: number of targets that the loss is the mean over.
        accuracy: relative error of the entries of the matrix.
        learning_rate: a positive number.
        continuous: flow rather than descent.
        momentum: of the heavy ball.
        ridge: added to the eigenvalues.

    Raises:
        InputError: the matrix is not symmetric or has a negative eigenvalue beyond
            rounding; a number is out of range.
    """
    rate, ridge = positive_rate(learning_rate), _ridge(ridge)
    momentum = _momentum(momentum)
    symmetric("k_train", matrix, accuracy)
    values, vectors = scipy.linalg.eigh(matrix)
    tolerance = rounding(matrix, accuracy)
    not_below_zero("k_train", float(values[0]), tolerance)
    return Dynamics(
        values=np.maximum(values, 0.0),
        vectors=vectors,
        unlearned=values[np.maximum(values, 0.0) + ridge <= tolerance],
        tolerance=tolerance,
        rate=rate / size,
        ridge=ridge,
        momentum=momentum,
        continuous=continuous,
    )


def not_below_zero(name: str, smallest: float, tolerance: float) -> None:
    """Refuse a kernel whose smallest eigenvalue is not that of a kernel."""
    if smallest < -1e3 * tolerance:
        raise InputError(
            f"`{name}` has the eigenvalue {smallest:.3g}, below zero by more than "
            "rounding, so it is not the kernel of any model; check how it was computed."
        )


def check_times(name: str, times: Any, continuous: bool) -> np.ndarray:
    """The times as an array (T,): whole unless continuous, perhaps infinite."""
    values = np.atleast_1d(double(name, times, infinite=True))
    whole = continuous or (values == np.round(values)).all()
    if values.ndim != 1 or not values.size or (values < 0).any() or not whole:
        raise InputError(
            f"{name} should be whole numbers, 0 or more, or infinity (any such numbers "
            f"if continuous=True), got {times!r}."
        )
    return values


def positive_rate(learning_rate: Any) -> float:
    """The learning rate as a number, refused where it is not positive and finite."""
    rate = _number(learning_rate)
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(
            f"learning_rate should be a positive number, got {learning_rate!r}."
        )
    return rate


def _momentum(momentum: Any) -> float:
    value = _number(momentum)
    if not 0 <= value < 1:
        raise InputError(f"momentum should be from 0 to below 1, got {momentum!r}.")
    return value


def _ridge(ridge: Any) -> float:
    value = _number(ridge)
    if not (math.isfinite(value) and value >= 0):
        raise InputError(
            f"ridge should be a finite number, zero or more, got {ridge!r}."
        )
    return value


def _number(value: Any) -> float:
    """A number, or NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _matrices(rows: list[list[Any]]) -> np.ndarray:
    """A stack of small matrices, some of whose entries are arrays (n,)."""
    entries = np.broadcast_arrays(*(entry for row in rows for entry in row))
    stacked = np.stack(entries, axis=-1).astype(np.float64)
    return stacked.reshape(-1, len(rows), len(rows))


def _power_less_one(a: np.ndarray, t: int) -> np.ndarray:
    """(I + a)^t - I for a stack of matrices, by repeated squaring.

    Less I because a small eigenvalue hardly changes anything in one step: 1 - z loses
    the digits of z, and every squaring would double the error.
    """
    total = np.zeros_like(a)
    while t:
        if t & 1:
            total = total + a + total @ a
        t >>= 1
        if t:
            a = 2 * a + a @ a
    return total


def _exponential_less_one(a: np.ndarray, t: float) -> np.ndarray:
    """exp(t a) - I for a stack of matrices, by Taylor's series and squaring."""
    norm = t * float(np.abs(a).sum(axis=-1).max())
    halvings = max(0, math.ceil(math.log2(norm)) + 1) if norm > 0 else 0
    a = a * math.ldexp(t, -halvings)
    total = np.zeros_like(a)
    for order in range(16, 0, -1):  # of norm 1/2: the next term is below 1e-19
        total = (a + a @ total) / order
    return _power_less_one(total, 1 << halvings)
