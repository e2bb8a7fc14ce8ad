"""Recurrent layers: one set of weights for all steps of a sequence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import InputError, UnsupportedError
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import every
from ._signal import Signal, Widths, known, positions
from ._weights import Weight, parameterization_of

Gate = Callable[[int, Any], Any]
"""`gate(k, h)` is the k-th sum W h + U x + b of the step."""
Cell = Callable[[Gate, tuple[Any, ...]], tuple[Any, ...]]
"""From the gates and the state to the next state; the output is its first part."""


@layer
def RNN(
    out_dim: int,
    fn: Callable[[Any], Any] = jnp.tanh,
    W_std: Any = 1.0,
    U_std: Any = 1.0,
    b_std: Any = None,
    reverse: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
) -> Layer:
    """The simple recurrent network h <- fn(W h + U x + b), from h = 0.

    Where inputs are masked the state stays as it is: sequences may have lengths of
    their own.

    Args:
        out_dim: the number of channels of the state.
        fn: the nonlinearity, of one entry at a time.
        W_std: the standard deviation of the recurrent weights, times the square root of
            the fan-in.
        U_std: that of the input weights.
        b_std: that of the biases; None for none.
        reverse: from the last step to the first. Two layers in parallel, one of them
            reversed, are a bidirectional network.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels; the axis that is left is time.
        parameterization: "ntk" or "standard"; see `widelimit.normal`.

    Returns:
        A layer; its output is the state at every step, its parameters one (W, U, b).

    Raises:
        UnsupportedError: inputs with no axis of time, or with further axes.
    """

    def cell(gate: Gate, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (fn(gate(0, state[0])),)

    stds, axes = (W_std, U_std, b_std), (batch_axis, channel_axis)
    return _recurrent(out_dim, cell, 1, 1, stds, reverse, axes, parameterization)


@layer
def LSTM(
    out_dim: int,
    W_std: Any = 1.0,
    U_std: Any = 1.0,
    b_std: Any = None,
    reverse: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
) -> Layer:
    """Long short-term memory; arguments as of `RNN`.

    With i, f, o the logistic function of gates and g the tanh of one,
    c <- f c + i g and h <- o tanh(c). Its kernels have no formula: they are means over
    samples.

    Returns:
        A layer; its output is h at every step, its parameters a (W, U, b) for each of
        i, f, o, g.

    References:
        Hochreiter and Schmidhuber (1997); Yang (2019),
        https://arxiv.org/abs/1902.04760, section 2.
    """

    def cell(gate: Gate, state: tuple[Any, ...]) -> tuple[Any, ...]:
        h, c = state
        i, f, o = (jax.nn.sigmoid(gate(k, h)) for k in range(3))
        c = f * c + i * jnp.tanh(gate(3, h))
        return o * jnp.tanh(c), c

    stds, axes = (W_std, U_std, b_std), (batch_axis, channel_axis)
    return _recurrent(out_dim, cell, 4, 2, stds, reverse, axes, parameterization)


@layer
def GRU(
    out_dim: int,
    W_std: Any = 1.0,
    U_std: Any = 1.0,
    b_std: Any = None,
    reverse: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
) -> Layer:
    """Gated recurrent units; arguments as of `RNN`.

    With z and r the logistic function of gates, h <- (1 - z) h + z tanh(W (r h) + U x +
    b). Its kernels have no formula: they are means over samples.

    Returns:
        A layer; its output is h at every step, its parameters a (W, U, b) for each of
        z, r and the new state.

    References:
        Cho et al. (2014), https://arxiv.org/abs/1406.1078; Yang (2019),
        https://arxiv.org/abs/1910.12478.
    """

    def cell(gate: Gate, state: tuple[Any, ...]) -> tuple[Any, ...]:
        (h,) = state
        z, r = (jax.nn.sigmoid(gate(k, h)) for k in range(2))
        return ((1.0 - z) * h + z * jnp.tanh(gate(2, r * h)),)

    stds, axes = (W_std, U_std, b_std), (batch_axis, channel_axis)
    return _recurrent(out_dim, cell, 3, 1, stds, reverse, axes, parameterization)


def _recurrent(
    out_dim: int,
    cell: Cell,
    gates: int,
    states: int,
    stds: tuple[Any, Any, Any],
    reverse: bool,
    axes: tuple[int, int],
    parameterization: str,
) -> Layer:
    kind = parameterization_of(parameterization)
    W_std, U_std, b_std = stds

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        if len(signal.spatial_axes) != 1:
            raise UnsupportedError(
                "A recurrent layer takes inputs with one axis of time besides those of "
                f"inputs and of channels, got an array of shape {signal.shape}."
            )
        out = widths(out_dim, kind, (1, 1))
        channels = known(signal.channels, "The number of channels")
        weights = [
            (
                Weight((out, out), W_std, (0,), kind),
                Weight((channels, out), U_std, (0,), kind),
                None if b_std is None else Weight((out,), b_std, (), kind),
            )
            for _ in range(gates)
        ]
        after = signal.with_channels(out)
        return after.after(is_gaussian=False), weights

    def run(weights: Any, x: Any, mask: Any = None, **kwargs: Any) -> Any:
        (time,) = positions(x.ndim, axes)
        batch = axes[0] % x.ndim
        order = (time, batch, axes[1] % x.ndim)
        steps = jnp.transpose(x, order)
        kept = None if mask is None else jnp.transpose(every(mask, axes[1]), order)

        def step(state: Any, given: Any) -> tuple[Any, Any]:
            now, masked = given

            def gate(k: int, h: Any) -> Any:
                W, U, b = weights[k]
                total = h @ W + now @ U
                return total if b is None else total + b

            new = cell(gate, state)
            if masked is not None:
                pairs = zip(state, new, strict=True)
                new = tuple(jnp.where(masked, old, value) for old, value in pairs)
            return new, new[0]

        width = weights[0][0].shape[0]
        start = jnp.zeros((x.shape[batch], width), x.dtype)
        _, out = lax.scan(step, (start,) * states, (steps, kept), reverse=reverse)
        return jnp.transpose(out, tuple(order.index(a) for a in range(3)))

    def mask(mask: Any, shape: Any) -> Any:
        return every(mask, axes[1])

    return layer_of(Leaf(run, declared, mask, axes))


@layer
def Softmax(axis: int = 1, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """The softmax over an axis of positions, for every channel.

    Its kernels have no formula: they are means over samples. (Over the channels, of
    which there are infinitely many, every entry would vanish.)

    Args:
        axis: the axis of positions.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.

    Raises:
        InputError: the axis is that of inputs or of channels.
    """

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        ndim = len(signal.shape)
        if not -ndim <= axis < ndim or axis % ndim not in signal.spatial_axes:
            raise InputError(
                f"`Softmax(axis={axis})` of an array of shape {signal.shape}: give one "
                f"of its axes of positions, {signal.spatial_axes}."
            )
        return signal.after(is_gaussian=False), ()

    def run(weights: Any, x: Any, mask: Any = None, **kwargs: Any) -> Any:
        where = None if mask is None else ~jnp.broadcast_to(mask, x.shape)
        return jax.nn.softmax(x, axis, where=where)

    return layer_of(Leaf(run, declared, axes=(batch_axis, channel_axis)))
