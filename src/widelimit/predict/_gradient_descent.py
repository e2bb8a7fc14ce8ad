"""Gradient descent of one function on any loss, with momentum: an ODE."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError
from .._jax import is_concrete
from ._factorised import factorised
from ._flow import checked_times
from ._gradient_descent_mse import check_wanted
from ._interleaved import Outputs, as_matrix, outputs_of
from ._namespace import namespace, positive, real
from ._ode_state import ODEState, whole_state
from ._solver import Solver

MAX_STEPS = 100_000
"""Steps of the solver after which it gives up, unless the user says otherwise."""


class GradientDescent:
    """The course of training; made by `gradient_descent`, which says all."""

    def __init__(
        self,
        loss: Callable[[Any, Any], Any],
        k_train_train: Any,
        y_train: Any,
        learning_rate: Any,
        momentum: Any,
        trace_axes: Any,
        options: dict[str, Any],
    ) -> None:
        self._outputs = outputs_of(jnp.shape(y_train), trace_axes)
        real(namespace(y_train), "y_train", y_train)
        self.kernel = factorised(k_train_train, 0.0, False)
        self._outputs.check_train("k_train_train", self.kernel)
        if not callable(loss):
            raise InputError(
                f"loss should be a function of outputs and targets, got {loss!r}."
            )
        if momentum is not None and is_concrete(momentum):
            momentum = positive("momentum", momentum, zero=True)
            if momentum > 1:
                raise InputError(f"momentum should be from 0 to 1, got {momentum}.")
        self._y = y_train
        self._learning_rate = positive("learning_rate", learning_rate)
        self._momentum, self._options = momentum, options
        # Held, so that the solver is compiled once.
        self._slope = functools.partial(_slope, loss, self._outputs)

    def __call__(
        self,
        t: Any = None,
        fx_train_or_state_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
    ) -> Any:
        """The outputs at time[s] `t`.

        Args:
            t: number of steps, or an array of them of any shape, in any order;
                fractions are numbers. None, and infinity, for where training ends.
            fx_train_or_state_0: outputs for the training inputs at time 0, of the shape
                of the targets, or one number for all; None for 0 and no prediction
                there. Or an `ODEState`, from which training goes on; the result is then
                one, too.
            fx_test_0: outputs for test inputs; None for no prediction there, and with
                an `ODEState`, which has them.
            k_test_train: kernel of test inputs with training inputs, shape
                (M, N, a', a, ..).

        Returns:
            Outputs for the training inputs, for the test inputs, or both in a tuple:
            those for which there are outputs at time 0; or an `ODEState`. The axes of
            `t` come first.

        Raises:
            ShapeMismatchError: the arrays disagree.
            InputError: no prediction is asked for; `k_test_train` is missing; an array
                is not finite; the solver needs more steps than it may take.
        """
        given = fx_train_or_state_0
        resumed = isinstance(given, ODEState)
        if resumed and fx_test_0 is not None:
            raise InputError(
                "`fx_test_0` is in the ODEState already; got it a second time."
            )
        start = given if resumed else ODEState(given, fx_test_0)
        check_wanted(start.fx_train, start.fx_test, k_test_train)
        tested, k_cross = (), None
        if k_test_train is not None:
            k = real(jnp, "k_test_train", k_test_train)
            rows = self._outputs.check_test("k_test_train", k)
            tested, k_cross = self._outputs.of(rows), as_matrix(k)
        momentum = self._momentum is not None
        start = whole_state(start, self._outputs.shape, tested, momentum)
        found = self._states(t, start, k_cross)
        found = jax.tree_util.tree_map(
            lambda a: jnp.asarray(a, self.kernel.dtype), found
        )
        if resumed:
            return found
        if fx_test_0 is None:
            return found.fx_train
        return found.fx_test if given is None else (found.fx_train, found.fx_test)

    def _states(self, t: Any, start: ODEState, k_cross: Any) -> ODEState:
        """The states at the times t, whose axes are the first."""
        outputs = self._outputs
        k = jnp.asarray(self.kernel.matrix, jnp.result_type(float))
        k = k + self.kernel.reg * jnp.eye(len(k), dtype=k.dtype)
        scale = self._learning_rate
        damping = None
        if self._momentum is not None:
            scale = jnp.sqrt(jnp.asarray(scale, k.dtype))
            damping = (1.0 - self._momentum) / scale
        unit = jnp.trace(k) / len(k)
        unit = jnp.where(unit > 0, unit, 1.0)
        args = (k, jnp.asarray(self._y), damping, unit)
        f = outputs.columns(jnp, start.fx_train)
        y0 = (f, jnp.zeros_like(f))
        if damping is not None:
            y0 = (*y0, outputs.columns(jnp, start.qx_train), jnp.zeros_like(f))
        solver = Solver(self._slope, args, self._options)
        steps = checked_times(namespace(t), jnp.inf if t is None else t)
        infinite = 0
        if isinstance(steps, np.ndarray):
            infinite = int(np.isinf(steps).sum())
        steps_in_order, back = _ascending(steps.reshape(-1))
        states = solver.at(jnp.asarray(steps_in_order, k.dtype) * scale, infinite, y0)
        states = jax.tree_util.tree_map(lambda a: a[back], states)
        when = jnp.asarray(steps.reshape(-1), k.dtype) * scale

        def shaped(flat: Any, rows: tuple[int, ...]) -> Any:
            whole = outputs.arrays(jnp, flat, rows)
            return whole.reshape((*steps.shape, *whole.shape[1:]))

        train = [shaped(s, outputs.rows) for s in (states[0], *states[2:3])]
        test: list[Any] = []
        if start.fx_test is not None:
            rows = tuple(
                s for a, s in enumerate(start.fx_test.shape) if a not in outputs.traced
            )
            moved = [jnp.matmul(k_cross, s) / unit for s in (states[1], *states[3:])]
            flat = [-m for m in moved]
            flat[0] += outputs.columns(jnp, start.fx_test, rows)[None]
            if damping is not None:
                q = outputs.columns(jnp, start.qx_test, rows)[None]
                left, way = _free(damping, when)
                flat[0] += way[:, None, None] * q
                flat[1] += left[:, None, None] * q
            test = [shaped(s, rows) for s in flat]
        test += [None] * (len(train) - len(test))
        return ODEState(*(x for pair in zip(train, test, strict=True) for x in pair))


def _slope(loss: Any, outputs: Outputs, _: Any, state: Any, args: Any) -> Any:
    r"""The derivative in time of the outputs and of what they integrate.

    The state is $(f, a)$ with $f' = -\Theta \nabla L$ and $a' = \nabla L$, or with
    momentum $(f, a, q, b)$ with $f' = q$, $q' = -c q - \Theta \nabla L$, and a and b
    the same with $\nabla L$ for $-\Theta \nabla L$. Test outputs follow from a and b,
    however many they are. Both are multiplied by the size of the kernel, so that the
    solver weighs them like outputs.
    """
    k, y, damping, unit = args
    f = outputs.arrays(jnp, state[0][None], outputs.rows)[0]
    gradient = outputs.columns(jnp, jax.grad(loss)(f, y)).astype(k.dtype)
    force, weight = -jnp.matmul(k, gradient), unit * gradient
    if damping is None:
        return force, weight
    q, b = state[2:]
    return q, b, force - damping * q, weight - damping * b


def _ascending(steps: Any) -> tuple[Any, Any]:
    """Times in order, and the places of the times as given among them."""
    order = namespace(steps).argsort(steps)
    return steps[order], namespace(steps).argsort(order)


def _free(damping: Any, when: Any) -> tuple[Any, Any]:
    """What is left of a velocity of one after a time, and the way it has made."""
    some = damping > 0
    c = jnp.where(some, damping, 1.0)
    left = jnp.where(some, jnp.exp(-c * when), 1.0)
    return left, jnp.where(some, -jnp.expm1(-c * when) / c, when)


def gradient_descent(
    loss: Callable[[Any, Any], Any],
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    momentum: Any = None,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = MAX_STEPS,
    solver: Any = None,
) -> GradientDescent:
    r"""Predict gradient descent of one function on any loss, in continuous time.

    With the tangent kernel $\Theta$ and $g = \nabla_f L(f(X), y)$, at the time
    $s = \eta t$

    $$ \frac{d f(x)}{d s} = -\Theta(x, X)\, g, $$

    and with momentum $\mu$, the heavy ball $v \leftarrow \mu v + \nabla$,
    $\theta \leftarrow \theta - \eta v$, at the time $s = \sqrt{\eta} t$

    $$ \frac{d^2 f(x)}{d s^2} = -\frac{1 - \mu}{\sqrt\eta} \frac{d f(x)}{d s}
       - \Theta(x, X)\, g, $$

    which follows descent while little happens in a step and $1 - \mu$ is small; it does
    not tend to the first equation as $\mu \to 0$. Only the training outputs are
    integrated; those at test inputs follow from the integral of g.

    Results are differentiable and can be compiled. Infinite time, `t=None`, is looked
    for by doubling the time until the training outputs stay, and refused if they never
    do, as on a cross-entropy loss with separable classes.

    Args:
        loss: a number from outputs and targets, `loss(f(x_train), y_train)`, both of
            the shape of `y_train`.
        k_train_train: kernel of the training inputs, shape (N, N, a, a, b, b, ..), or
            a `FactorisedKernel`, which may be regularised.
        y_train: targets, shape (N, a, b, .., O) for `trace_axes=(-1,)`.
        learning_rate: $\eta$. A step is one unit of time.
        momentum: $\mu$, from 0 to 1, or None.
        trace_axes: axes of the targets of which the kernel has no pair, and is the
            same for all entries.
        rtol: relative tolerance of a step; without it 1e-9, or ten times the spacing of
            the numbers if that is more.
        atol: absolute tolerance of a step; the same without it.
        max_steps: after which the solver gives up.
        solver: of diffrax; without it, `diffrax.Dopri8()`.

    Returns:
        A function of `(t, fx_train_or_state_0, fx_test_0, k_test_train)`.

    Raises:
        ShapeMismatchError: the shapes of kernel and targets disagree.
        InputError: an array is not finite; a number is out of range.

    References:
        Lee et al. (2019), https://arxiv.org/abs/1902.06720, equations 4 and 5; Qian
        (1999), On the momentum term in gradient descent learning algorithms. Names and
        conventions are those of `neural_tangents.predict.gradient_descent`.
    """
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "solver": solver}
    return GradientDescent(
        loss, k_train_train, y_train, learning_rate, momentum, trace_axes, options
    )
