"""Training of one finite network, with what a linear model would do beside it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError
from ..predict import Linearised, linearised, positive_rate

Loss = Callable[[Any, Any], Any]
"""loss(outputs, y), a scalar."""


def mse(outputs: Any, y: Any) -> Any:
    """Half the mean of the squared errors over all entries."""
    return 0.5 * jnp.mean((outputs - y) ** 2)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What a network did while it was trained. Made by `FiniteNetwork.train`.

    Attributes:
        steps: numbers of steps, shape (S,).
        losses: the training loss after them, shape (S,).
        outputs: for the training inputs, shape (S, N, *I, O).
        test_outputs: for the test inputs, or None.
        theta: the trained variables after the last step.
        start: outputs before the first step, for training and test inputs.
        y: the targets.
        learning_rate: of plain gradient descent, or None.
        loss: the loss that was descended.
    """

    steps: np.ndarray
    losses: np.ndarray
    outputs: np.ndarray
    test_outputs: np.ndarray | None
    theta: Any
    start: tuple[np.ndarray, np.ndarray | None]
    y: np.ndarray
    learning_rate: float | None
    loss: Loss

    def linearised(
        self, k_train: Any, k_cross: Any | None = None, *, continuous: bool = False
    ) -> Linearised:
        """The same training of a linear model with a given tangent kernel.

        It starts from the outputs of this network. With the empirical kernel at the
        start it is the linearisation of this network, with the limit's kernel what
        infinitely wide networks tend to.

        Args:
            k_train: tangent kernel of the training inputs, see `predict.linearised`.
            k_cross: that of test inputs with training inputs, for test outputs.
            continuous: gradient flow for time `steps` instead of that many steps.

        Raises:
            InputError: the network was not trained by plain gradient descent on half
                the mean squared error; `k_cross` is given without test inputs.
        """
        if self.learning_rate is None or self.loss is not mse:
            raise InputError(
                "The linearised prediction is that of plain gradient descent on the "
                "mean squared error: train with `learning_rate` and without "
                "`optimizer` and `loss`."
            )
        if k_cross is not None and self.start[1] is None:
            raise InputError("`k_cross` goes with test inputs: train with `x_test`.")
        return linearised(
            k_train, self.y, self.start[0], self.steps, self.learning_rate,
            k_cross=k_cross, f_test=None if k_cross is None else self.start[1],
            continuous=continuous,
        )  # fmt: skip


def train(
    apply: Callable[[Any, Any, Any], Any],
    variables: Mapping[str, Any],
    rest: Any,
    rates: Mapping[str, Any],
    x: Any,
    y: Any,
    steps: Sequence[int],
    learning_rate: float | None,
    *,
    optimizer: Any,
    loss: Loss,
    x_test: Any | None,
) -> Training:
    """Gradient descent on the whole batch, see `FiniteNetwork.train`.

    Args:
        apply: the network f(variables, rest, x), hashable.
        variables: its trained variables, by name.
        rest: its other arrays.
        rates: what the updates of every variable are multiplied by.
        x: inputs.
        y: targets.
        steps: when to keep losses and outputs.
        learning_rate: of plain gradient descent, or None.
        optimizer: an optax optimizer, or None.
        loss: the loss.
        x_test: test inputs, or None.
    """
    when = _steps(steps)
    if (learning_rate is None) == (optimizer is None):
        raise InputError(
            "Give either `learning_rate`, for plain gradient descent, or `optimizer`, "
            "such as optax.adam(1e-3)."
        )
    if learning_rate is not None:
        optimizer = _sgd(positive_rate(learning_rate))
    if loss is mse:
        _check_targets(jax.eval_shape(apply, dict(variables), rest, x).shape, y.shape)
    run = jax.jit(apply)
    current, state = dict(variables), optimizer.init(dict(variables))

    def outputs() -> tuple[np.ndarray, np.ndarray | None]:
        test = None if x_test is None else np.asarray(run(current, rest, x_test))
        return np.asarray(run(current, rest, x)), test

    start = outputs()
    kept, done = [], 0
    for step in when:
        current, state = _advance(
            apply, optimizer, loss, step - done, current, state, rest, dict(rates), x, y
        )
        done = step
        kept.append(outputs() if step else start)
    losses = [float(loss(jnp.asarray(trained), y)) for trained, _ in kept]
    tests = [test for _, test in kept if test is not None]
    return Training(
        steps=np.asarray(when),
        losses=np.asarray(losses),
        outputs=np.stack([trained for trained, _ in kept]),
        test_outputs=np.stack(tests) if tests else None,
        theta=current,
        start=start,
        y=np.asarray(y),
        learning_rate=None if learning_rate is None else float(learning_rate),
        loss=loss,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    apply: Any,
    optimizer: Any,
    loss: Loss,
    count: Any,
    variables: dict[str, Any],
    state: Any,
    rest: Any,
    rates: dict[str, Any],
    x: Any,
    y: Any,
) -> tuple[dict[str, Any], Any]:
    """Some steps of the optimizer."""

    def step(_: Any, now: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], Any]:
        theta, state = now
        gradient = jax.grad(lambda v: loss(apply(v, rest, x), y))(theta)
        updates, state = optimizer.update(gradient, state, theta)
        moved = {
            name: (value + rates[name] * updates[name]).astype(value.dtype)
            for name, value in theta.items()
        }
        return moved, state

    return jax.lax.fori_loop(0, count, step, (variables, state))


@functools.lru_cache(maxsize=64)
def _sgd(learning_rate: float) -> Any:
    """One object for one rate, so that JAX compiles its training once."""
    try:
        import optax
    except ImportError:
        raise ModuleNotFoundError(
            "Training takes its optimizers from optax, which is not installed: "
            "pip install 'widelimit[train]'."
        ) from None
    return optax.sgd(learning_rate)


def _steps(steps: Sequence[int]) -> list[int]:
    given = list(np.atleast_1d(np.asarray(steps, object)))
    whole = all(
        isinstance(s, int | np.integer) and not isinstance(s, bool) and s >= 0
        for s in given
    )
    if not given or not whole or any(b <= a for a, b in itertools.pairwise(given)):
        raise InputError(
            "steps should be increasing whole numbers, 0 or more, such as "
            f"(0, 10, 100), got {steps!r}."
        )
    return [int(s) for s in given]


def _check_targets(outputs: tuple[int, ...], y: tuple[int, ...]) -> None:
    if outputs != y:
        raise ShapeMismatchError(
            f"`y` should have the shape of the output, {outputs}, got {y}."
        )
