"""One finite network: a draw of its parameters, and the function at its widths."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError
from ..trace import path_name, received, sample, widths_are, widths_in
from ..trace._declare import Constant, Normal
from ._ntk import ntk, ntk_vp
from ._train import Loss, Training, mse, train


def at(
    f: Callable[..., Any],
    params: Any,
    key: Any,
    widths: Mapping[str, int],
    dtype: Any = None,
    *,
    trace_axes: Sequence[int] = (-1,),
    one_batch: Callable[[Any], bool] | None = None,
) -> tuple["FiniteNetwork", Any]:
    """Draw a finite network.

    Args:
        f: the network, `f(params, x)`.
        params: a pytree of declarations and arrays; arrays are kept as they are.
        key: a JAX random key.
        widths: the value of every width.
        dtype: floating type of the drawn arrays; JAX's default if None.
        trace_axes: axes of the output that its tangent kernel is averaged over.
        one_batch: whether the inputs it is called with interact, or draw random numbers
            together, so that only the whole batch may be differentiated; always if
            None, which is right and slow.

    Returns:
        `f` at these widths (it may be jitted, differentiated, mapped), and the pytree
        of trained variables to call it with.

    Raises:
        InputError: a width is missing, unknown or not a positive whole number, or
            makes a size that is not whole; or the standard parameterisation is asked
            of a width without a base.
    """
    network = FiniteNetwork(
        f, params, _complete(widths, params), trace_axes=trace_axes, one_batch=one_batch
    )
    return network, network.draw(key, dtype)


class FiniteNetwork:
    """A network at its widths, to call as `f(theta, x)`. Made by `net.at`.

    `theta` holds the trained variables: where a parameter has a parameterisation they
    are not what `f` receives, see `wl.normal`. Gradients by `theta` are those of
    training.

    Attributes:
        f: the network, `f(params, x)`.
        params: its declarations.
        widths: the value of every width.
        trace_axes: axes of the output that the tangent kernel is averaged over.
        rates: the learning rate of every parameter that is trained, by name.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        params: Any,
        widths: Mapping[str, int],
        *,
        trace_axes: Sequence[int] = (-1,),
        one_batch: Callable[[Any], bool] | None = None,
    ) -> None:
        with widths_are(widths):  # refuses bad values now, not at the first call
            pass
        functools.update_wrapper(self, f, updated=())
        self.f, self.params, self.widths = f, params, dict(widths)
        self.trace_axes = tuple(trace_axes)
        self._one_batch = one_batch or (lambda x: True)
        paths, self._tree = jax.tree_util.tree_flatten_with_path(params)
        self._leaves = tuple(leaf for _, leaf in paths)
        self._names = tuple(path_name(path) for path, _ in paths)
        self.rates = {
            name: leaf.lr
            for name, leaf in zip(self._names, self._leaves, strict=True)
            if isinstance(leaf, Normal | Constant) and leaf.is_trained
        }

    # Two draws of one network are the same function: JAX compiles it once.

    def _identity(self) -> Any:
        return id(self.f), id(self.params), tuple(sorted(self.widths.items()))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FiniteNetwork) and self._identity() == other._identity()
        )

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        name = getattr(self.f, "__name__", repr(self.f))
        return f"<{name} at {', '.join(f'{k}={v}' for k, v in self.widths.items())}>"

    def __call__(self, theta: Any, x: Any) -> Any:
        """The output of the network.

        Args:
            theta: the trained variables, a pytree as `net.at` returns.
            x: a batch of inputs.
        """
        with widths_are(self.widths):
            return self.f(self.received(theta), x)

    def draw(self, key: Any, dtype: Any = None) -> Any:
        """Draw the trained variables, as `net.at` does."""
        keys = jax.random.split(key, max(len(self._leaves), 1))
        return self._tree.unflatten(
            sample(leaf, self.widths, k, dtype)
            if isinstance(leaf, Normal | Constant)
            else leaf
            for leaf, k in zip(self._leaves, keys, strict=False)
        )

    def received(self, theta: Any) -> Any:
        """What `f` receives: the effective weights, a pytree as `theta`."""
        return self._tree.unflatten(
            received(leaf, value, self.widths)
            if isinstance(leaf, Normal | Constant)
            else value
            for leaf, value in zip(self._leaves, self._flat(theta), strict=True)
        )

    def ntk(
        self,
        theta: Any,
        x1: Any,
        x2: Any | None = None,
        *,
        by_param: bool = False,
        memory: int = 2**29,
    ) -> Any:
        """The empirical tangent kernel of this one network, exactly.

        The sum over trained parameters of lr <df/dtheta(x1), df/dtheta(x2)>. Blocks of
        rows of the Jacobian are contracted with each other, or pushed through the
        network as tangents where that costs less; half the blocks when `x2` is None.

        Args:
            theta: the trained variables.
            x1: N1 inputs.
            x2: N2 inputs, perhaps of other lengths; `x1` when None. A network whose
                inputs interact takes each of `x1` and `x2` as one batch.
            by_param: give the part of every trained parameter, by name.
            memory: bytes that the rows of the Jacobians held at one time may take,
                with what is needed to compute them. One row of each of two Jacobians
                is held at least: twice the bytes of `theta`.

        Returns:
            Shape (N1, N2, *I, *I'), averaged over the output axis: see `trace_axes` of
            `wl.limit`; or a dict of such arrays.

        Raises:
            InputError: nothing is trained; `theta` has another structure than drawn.
            ShapeMismatchError: the outputs for `x1` and `x2` have other averaged axes.
        """
        one = _inputs("x1", x1)
        two = None if x2 is None else _inputs("x2", x2)
        whole = self._one_batch(one) or (two is not None and self._one_batch(two))
        variables, rest, apply = self._trained(theta)
        parts = ntk(
            apply, variables, rest, self.rates, one, two,
            trace_axes=self.trace_axes, whole=whole, by_param=by_param, memory=memory,
        )  # fmt: skip
        return parts if by_param else parts[""]

    def ntk_vp(self, theta: Any, x1: Any, x2: Any, vector: Any) -> jax.Array:
        """The empirical tangent kernel times a vector, by one vjp and one jvp.

        The kernel is the full one, not averaged over an output axis, and is never
        formed: memory is that of one gradient.

        Args:
            theta: the trained variables.
            x1: N1 inputs.
            x2: N2 inputs.
            vector: an array of the shape of `f(theta, x2)`.

        Returns:
            Shape of `f(theta, x1)`: the sum over inputs of `x2` and entries of their
            outputs of kernel times vector.

        Raises:
            InputError: nothing is trained; `theta` has another structure than drawn.
            ShapeMismatchError: `vector` has not the shape of the output.
        """
        variables, rest, apply = self._trained(theta)
        one, two = _inputs("x1", x1), _inputs("x2", x2)
        return ntk_vp(apply, variables, rest, self.rates, one, two, jnp.asarray(vector))

    def train(
        self,
        theta: Any,
        x: Any,
        y: Any,
        steps: Sequence[int],
        learning_rate: float | None = None,
        *,
        optimizer: Any = None,
        loss: Loss = mse,
        x_test: Any | None = None,
    ) -> Training:
        """Train the network by gradient descent on the whole batch.

        The update of every parameter is multiplied by its own `lr`, after the
        optimizer: gradient descent then moves along the kernel `ntk` to first order.

        Args:
            theta: the trained variables to start from.
            x: N inputs.
            y: targets, as `loss` takes them; by default of the shape of the output.
            steps: the numbers of steps after which to keep losses and outputs,
                increasing; 0 is before the first.
            learning_rate: of plain gradient descent (`optax.sgd`).
            optimizer: any other `optax` optimizer, instead of `learning_rate`.
            loss: a function of outputs and targets; half the mean of the squared errors
                over all entries unless given.
            x_test: inputs whose outputs are kept as well.

        Returns:
            Losses and outputs at the steps, the trained variables, and
            `.linearised(kernel)`, what a linear model of that kernel does.

        Raises:
            InputError: neither or both of `learning_rate` and `optimizer` are given;
                steps are not increasing whole numbers; nothing is trained; optax is
                not installed.
            ShapeMismatchError: `y` has not the shape of the output.
        """
        variables, rest, apply = self._trained(theta)
        inputs = _inputs("x", x)
        test = None if x_test is None else _inputs("x_test", x_test)
        run = train(
            apply, variables, rest, self.rates, inputs, jnp.asarray(y), steps,
            learning_rate, optimizer=optimizer, loss=loss, x_test=test,
        )  # fmt: skip
        leaves = [
            run.theta.get(name, value)
            for name, value in zip(self._names, self._flat(theta), strict=True)
        ]
        return dataclasses.replace(run, theta=self._tree.unflatten(leaves))

    def _flat(self, theta: Any) -> list[Any]:
        try:
            return self._tree.flatten_up_to(theta)
        except (ValueError, TypeError) as error:
            raise InputError(
                "theta should have the structure of the parameters, as the second "
                f"result of `net.at` has: {error}"
            ) from None

    def _trained(self, theta: Any) -> tuple[dict[str, Any], dict[int, Any], "_Apply"]:
        """Trained variables by name, other arrays by place, the function of both."""
        if not self.rates:
            raise InputError(
                "No parameter is trained: declare one with `wl.normal` or "
                "`wl.constant`, and an lr that is not 0."
            )
        repeated = {name for name in self.rates if self._names.count(name) > 1}
        if repeated:
            raise InputError(
                f"Two parameters are called {', '.join(sorted(repeated))} once their "
                "paths are written as names: rename one."
            )
        variables, rest, fixed = {}, {}, []
        for i, value in enumerate(self._flat(theta)):
            if self._names[i] in self.rates and isinstance(
                self._leaves[i], Normal | Constant
            ):
                variables[self._names[i]] = jnp.asarray(value)
            elif hasattr(value, "dtype"):
                rest[i] = value
            else:
                fixed.append((i, value))
        return variables, rest, _Apply(self, tuple(fixed))


@dataclasses.dataclass(frozen=True)  # JAX wants weak references: no slots
class _Apply:
    """The network as a function of its trained variables, and of other arrays.

    Attributes:
        network: the network.
        fixed: parameters that are no arrays (a number of layers, say), by place.
    """

    network: FiniteNetwork
    fixed: tuple[tuple[int, Any], ...]

    def __call__(self, variables: Any, rest: Any, x: Any) -> Any:
        net, others = self.network, {**rest, **dict(self.fixed)}
        leaves = [
            others[i] if i in others else variables[name]
            for i, name in enumerate(net._names)
        ]
        out = net(net._tree.unflatten(leaves), x)
        if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
            raise InputError(
                "The network should return one array of real numbers, got "
                f"{getattr(out, 'dtype', jax.tree_util.tree_structure(out))}."
            )
        return out


def _inputs(name: str, x: Any) -> Any:
    x = jax.tree_util.tree_map(jnp.asarray, x)
    rows = {a.shape[0] if a.ndim else None for a in jax.tree_util.tree_leaves(x)}
    if len(rows) != 1 or not all(rows):
        raise ShapeMismatchError(
            f"`{name}` should hold at least one input, along the first axis of all its "
            f"arrays; got {sorted(rows, key=str) or 'no array'}."
        )
    return x


def _complete(widths: Mapping[str, int], params: Any) -> dict[str, int]:
    declared = widths_in(params)
    missing = sorted(set(declared) - set(widths))
    unknown = sorted(set(widths) - set(declared))
    if missing or unknown:
        wrong = [f"{name} is missing" for name in missing]
        wrong += [f"{name} is in no parameter" for name in unknown]
        raise InputError(
            f"The network has the widths {', '.join(sorted(declared)) or '(none)'}: "
            f"give each of them once, as in net.at(n=1024); {', '.join(wrong)}."
        )
    return dict(widths)
