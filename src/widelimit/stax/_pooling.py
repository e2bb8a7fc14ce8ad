"""Sums, means and maxima over positions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import UnsupportedError
from ._choice import chosen
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import mean_and_variance
from ._padding import Padding, left_by, per_position, strided, wrapped
from ._signal import Signal, Widths, positions


@layer
def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """The mean over windows of positions.

    Args:
        window_shape: one size for every axis of positions.
        strides: one for every axis; 1 by default.
        padding: "VALID", "SAME" or "CIRCULAR".
        normalize_edges: with "SAME", whether a window is divided by the number of
            positions inside, not by its size.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.
    """

    def scaled(total: Any, counted: Callable[[], Any]) -> Any:
        return total / (counted() if normalize_edges else math.prod(window_shape))

    return _pool(window_shape, strides, padding, (batch_axis, channel_axis), scaled)


@layer
def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """The sum over windows of positions; arguments as of `AvgPool`."""
    return _pool(
        window_shape, strides, padding, (batch_axis, channel_axis), lambda y, _: y
    )


@layer
def MaxPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = Padding.VALID.name,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """The maximum over windows of positions; arguments as of `AvgPool`.

    Its limit needs expectations over as many Gaussians as a window has positions.
    """
    return _pool(window_shape, strides, padding, (batch_axis, channel_axis), None)


@layer
def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """The mean over all positions (that are not masked)."""

    def mean(x: Any, axes: tuple[int, ...], mask: Any) -> Any:
        return mean_and_variance(x, axes, mask)[0]

    return _global(mean, (batch_axis, channel_axis))


@layer
def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """The sum over all positions."""
    return _global(lambda x, axes, _: x.sum(axes), (batch_axis, channel_axis))


def _pool(
    window_shape: Any,
    strides: Any,
    padding: Any,
    axes: tuple[int, int],
    scaled: Callable[[Any, Callable[[], Any]], Any] | None,
) -> Layer:
    """Sums over windows and their scale; maxima where there is none."""
    window = per_position(window_shape, len(window_shape), "window_shape")
    steps = per_position(strides, len(window), "strides")
    kind = chosen(Padding, "padding", padding)
    explicit = "SAME" if kind == Padding.SAME else "VALID"
    op, start = (lax.max, -math.inf) if scaled is None else (lax.add, 0.0)

    def reduced(x: Any, places: tuple[int, ...]) -> Any:
        full, by = [1] * x.ndim, [1] * x.ndim
        for a, w, s in zip(places, window, steps, strict=True):
            full[a], by[a] = w, s
        return lax.reduce_window(x, np.asarray(start, x.dtype), op, full, by, explicit)

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        places = positions(x.ndim, axes)
        if kind == Padding.CIRCULAR:
            x = wrapped(x, places, window, steps)
        y = reduced(x, places)
        if scaled is None:
            return y
        ones = [x.shape[a] if a in places else 1 for a in range(x.ndim)]
        return scaled(y, lambda: reduced(jnp.ones(ones, x.dtype), places))

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        shape = list(signal.shape)
        left = left_by(signal.spatial_shape, window, steps, kind)
        for a, size in zip(signal.spatial_axes, left, strict=True):
            shape[a] = size
        gaussian = signal.is_gaussian and scaled is not None
        return signal.after(shape=tuple(shape), is_gaussian=gaussian), ()

    def mask(mask: Any, shape: Any) -> Any:
        _check_mask(mask, axes[1])
        return strided(mask, positions(mask.ndim, axes), window, steps, kind)

    return layer_of(Leaf(run, declared, mask, axes))


def _global(pool: Callable[..., Any], axes: tuple[int, int]) -> Layer:
    def run(weights: Any, x: Any, mask: Any = None, **kwargs: Any) -> Any:
        return pool(x, positions(x.ndim, axes), mask)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        batch, channel = signal.axes
        order = (0, 1) if batch < channel else (1, 0)
        sizes = signal.shape[batch], signal.channels
        after = signal.after(
            shape=sizes if order == (0, 1) else sizes[::-1],
            batch_axis=order[0],
            channel_axis=order[1],
        )
        return after, ()

    def mask(mask: Any, shape: Any) -> Any:
        _check_mask(mask, axes[1])
        return jnp.all(mask, positions(mask.ndim, axes))

    return layer_of(Leaf(run, declared, mask, axes))


def _check_mask(mask: Any, channel_axis: int) -> None:
    if mask.shape[channel_axis] != 1:
        raise UnsupportedError(
            "Pooling takes masks that are the same for all channels: put a `Dense` or "
            "a convolution before it, or give the mask's axis of channels the size 1."
        )
