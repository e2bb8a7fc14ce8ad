"""Convolutions: with shared weights, transposed, and with weights of every position."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import InputError
from ._choice import chosen
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import every
from ._padding import (
    Padding,
    folded,
    left_by,
    per_position,
    strided,
    wrapped,
)
from ._signal import Signal, Widths, known
from ._weights import Weight, parameterization_of

_LETTERS = "HWDABEFGJK"


@layer
def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A convolution.

    Args:
        out_chan: the number of channels afterwards.
        filter_shape: one size for every axis of positions.
        strides: one for every axis; 1 by default.
        padding: "VALID", "SAME" or "CIRCULAR".
        W_std: standard deviation of the weights, times the square root of the fan-in
            (filter positions times channels).
        b_std: that of the biases, one a channel; None for none.
        dimension_numbers: the axes of input, filter and output, as of
            `jax.lax.conv_general_dilated`; by default ("NHWC", "HWIO", "NHWC").
        parameterization: "ntk" or "standard", as of `Dense`.
        s: for "standard", as of `Dense`.

    Returns:
        A layer; its parameters are (W, b).
    """
    form = _Form(filter_shape, strides, padding, dimension_numbers)
    kind = parameterization_of(parameterization)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        after = form.after(signal, widths(out_chan, kind, s))
        return after, form.weights(signal, after, W_std, b_std, kind, s[0])

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        W, b = weights
        if form.padding == Padding.CIRCULAR:
            x = wrapped(x, form.axes_in, form.window, form.strides)
        y = lax.conv_general_dilated(
            x, W, form.strides, form.explicit, dimension_numbers=form.numbers
        )
        return y if b is None else y + b

    return layer_of(Leaf(run, declared, form.mask, form.axes))


@layer
def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A transposed convolution, as of `jax.lax.conv_transpose`: strides spread.

    Args:
        out_chan: the number of channels afterwards.
        filter_shape: one size for every axis of positions.
        strides: one for every axis; 1 by default.
        padding: "VALID", "SAME" or "CIRCULAR".
        W_std: as of `Conv`.
        b_std: as of `Conv`.
        dimension_numbers: as of `Conv`.
        parameterization: as of `Dense`.
        s: for "standard", as of `Dense`.
    """
    form = _Form(filter_shape, strides, padding, dimension_numbers)
    kind = parameterization_of(parameterization)

    def left(sizes: Sequence[Any]) -> tuple[int, ...]:
        sizes = [int(known(n, "The number of positions")) for n in sizes]
        per_axis = zip(sizes, form.window, form.strides, strict=True)
        if form.padding == Padding.VALID:
            return tuple(n * s + max(w - s, 0) for n, w, s in per_axis)
        return tuple(n * s for n, _, s in per_axis)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        after = form.after(signal, widths(out_chan, kind, s), left)
        return after, form.weights(signal, after, W_std, b_std, kind, s[0])

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        W, b = weights
        y = lax.conv_transpose(
            x, W, form.strides, form.explicit, dimension_numbers=form.numbers
        )
        if form.padding == Padding.CIRCULAR:
            y = around(y, left([x.shape[a] for a in form.axes_in]))
        return y if b is None else y + b

    def around(y: Any, sizes: tuple[int, ...]) -> Any:
        # The whole result, laid around a torus that begins where SAME would.
        start = [
            -((y.shape[a] - size) // 2) % size
            for a, size in zip(form.axes_out, sizes, strict=True)
        ]
        return folded(y, form.axes_out, sizes, start)

    def mask(mask: Any, shape: Any) -> Any:
        mask = every(mask, form.channel_in)
        ones = jnp.ones([1 if c in "IO" else form.filter[c] for c in form.rhs])
        # What a masked position reaches is masked.
        padding = "VALID" if form.padding == Padding.VALID else "SAME"
        masked = mask.astype(ones.dtype)
        reached = lax.conv_transpose(
            masked, ones, form.strides, padding, dimension_numbers=form.numbers
        )
        return reached != 0

    return layer_of(Leaf(run, declared, mask, form.axes))


@layer
def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """A convolution with weights and biases of its own at every position.

    Args:
        out_chan: the number of channels afterwards.
        filter_shape: one size for every axis of positions.
        strides: one for every axis; 1 by default.
        padding: "VALID", "SAME" or "CIRCULAR".
        W_std: as of `Conv`.
        b_std: as of `Conv`.
        dimension_numbers: as of `Conv`.
        parameterization: as of `Dense`.
        s: for "standard", as of `Dense`.
    """
    form = _Form(filter_shape, strides, padding, dimension_numbers)
    kind = parameterization_of(parameterization)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        out = widths(out_chan, kind, s)
        after = form.after(signal, out).after(is_gaussian=True, is_local=True)
        channels = known(signal.channels, "The number of channels")
        ndim = len(form.window)
        fan_in = tuple(range(ndim, 2 * ndim + 1))
        left = [after.shape[a] for a in form.axes_out]
        W = Weight((*left, *form.window, channels, out), W_std, fan_in, kind, s[0])
        if b_std is None:
            return after, (W, None)
        shape = list(after.shape)
        shape[after.batch_axis] = 1
        return after, (W, Weight(tuple(shape), b_std, (), kind))

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        W, b = weights
        ndim = len(form.window)
        x = jnp.moveaxis(x, (form.batch_in, *form.axes_in), range(ndim + 1))
        y = jnp.moveaxis(
            _local(W, x, form), range(ndim + 1), (form.batch, *form.axes_out)
        )
        return y if b is None else y + b

    return layer_of(Leaf(run, declared, form.mask, form.axes))


def _local(W: Any, x: Any, form: "_Form") -> Any:
    """Windows of an array (N, *positions, channels) with weights of their own."""
    ndim = len(form.window)
    axes = tuple(range(1, ndim + 1))
    if form.padding == Padding.CIRCULAR:
        x = wrapped(x, axes, form.window, form.strides)
    elif form.padding == Padding.SAME:
        pads = lax.padtype_to_pads(x.shape[1:-1], form.window, form.strides, "SAME")
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    left = W.shape[:ndim]
    letters = _LETTERS[:ndim]
    total = None
    for offset in np.ndindex(*form.window):
        index = tuple(
            slice(o, o + s * (n - 1) + 1, s)
            for o, s, n in zip(offset, form.strides, left, strict=True)
        )
        part = jnp.einsum(
            f"n{letters}i,{letters}io->n{letters}o",
            x[(slice(None), *index)],
            W[(*[slice(None)] * ndim, *offset)],
        )
        total = part if total is None else total + part
    return total


class _Form:
    """The arguments that convolutions share."""

    def __init__(
        self, filter_shape: Any, strides: Any, padding: Any, dimension_numbers: Any
    ) -> None:
        shape = tuple(filter_shape)
        self.window = per_position(shape, len(shape), "filter_shape")
        self.strides = per_position(strides, len(shape), "strides")
        self.padding = chosen(Padding, "padding", padding)
        # Convolutions of what was padded before, otherwise what XLA calls them.
        self.explicit = "SAME" if self.padding == Padding.SAME else "VALID"
        if dimension_numbers is None:
            letters = _LETTERS[: len(shape)]
            dimension_numbers = f"N{letters}C", f"{letters}IO", f"N{letters}C"
        self.numbers = tuple(dimension_numbers)
        self.lhs, self.rhs, self.out = self.numbers
        positions = [c for c in self.rhs if c not in "IO"]
        if len(positions) != len(shape) or any(
            sorted(spec) != sorted([*positions, *ends])
            for spec, ends in ((self.lhs, "NC"), (self.rhs, "IO"), (self.out, "NC"))
        ):
            raise InputError(
                "`dimension_numbers` should be of the form ('NHWC', 'HWIO', 'NHWC') "
                f"with {len(shape)} axes of positions, got {dimension_numbers!r}."
            )
        self.filter = dict(zip(positions, self.window, strict=True))
        self.axes_in = tuple(self.lhs.index(c) for c in positions)
        self.axes_out = tuple(self.out.index(c) for c in positions)
        self.batch_in, self.channel_in = self.lhs.index("N"), self.lhs.index("C")
        self.batch, self.channel = self.out.index("N"), self.out.index("C")
        self.axes = self.batch_in, self.channel_in

    def after(
        self,
        signal: Signal,
        out: Any,
        left: Callable[[Sequence[Any]], Sequence[int]] | None = None,
    ) -> Signal:
        """The signal with the axes, channels and positions of the output.

        Args:
            signal: before.
            out: the number of channels.
            left: the numbers of positions from those before, in the order of the
                filter; by default those of a convolution.

        Raises:
            InputError: the signal has more or fewer axes.
        """
        if len(signal.shape) != len(self.lhs):
            raise InputError(
                f"A convolution with {len(self.window)} axes of positions takes arrays "
                f"of {len(self.lhs)} axes, got shape {signal.shape}."
            )
        before = [signal.shape[a] for a in self.axes_in]
        if left is None:
            sizes = left_by(before, self.window, self.strides, self.padding)
        else:
            sizes = left(before)
        shape: list[Any] = [None] * len(self.out)
        shape[self.batch] = signal.shape[self.batch_in]
        shape[self.channel] = out
        for a, size in zip(self.axes_out, sizes, strict=True):
            shape[a] = size
        return signal.after(
            shape=tuple(shape),
            batch_axis=self.batch,
            channel_axis=self.channel,
            is_gaussian=True,
        )

    def weights(
        self, signal: Signal, after: Signal, W_std: Any, b_std: Any, kind: str, s: int
    ) -> tuple[Weight, Weight | None]:
        """Of a filter that all positions share."""
        channels = known(signal.channels, "The number of channels")
        shape = tuple(
            channels if c == "I" else after.channels if c == "O" else self.filter[c]
            for c in self.rhs
        )
        fan_in = tuple(a for a, c in enumerate(self.rhs) if c != "O")
        W = Weight(shape, W_std, fan_in, kind, s)
        if b_std is None:
            return W, None
        ones = [1] * len(self.out)
        ones[self.channel] = after.channels
        return W, Weight(tuple(ones), b_std, (), kind)

    def mask(self, mask: Any, shape: Any) -> Any:
        """Of the output: that at the centre of every window."""
        mask = every(mask, self.channel_in)
        mask = strided(mask, self.axes_in, self.window, self.strides, self.padding)
        moved = (self.batch_in, *self.axes_in, self.channel_in)
        return jnp.moveaxis(mask, moved, (self.batch, *self.axes_out, self.channel))
