"""Linear layers that act on one position at a time, or only move things about."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import InputError, ShapeMismatchError, UnsupportedError
from ..trace import Width, WidthForm
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import every
from ._signal import Signal, Widths, known, product
from ._weights import Weight, parameterization_of


@layer
def Dense(
    out_dim: int,
    W_std: Any = 1.0,
    b_std: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    r"""A matrix on the channels, the same at every position.

    Args:
        out_dim: the number of channels afterwards.
        W_std: the standard deviation $\sigma_W$ of the weights, times the square root
            of the fan-in.
        b_std: that of the biases; None for no bias. (0 is a bias that starts at zero:
            under the standard parameterisation it is trained.)
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.
        parameterization: "ntk" (trained variables of variance 1) or "standard"; see
            `widelimit.normal`.
        s: for "standard", the widths of input and output in units of the base widths:
            the matrix is (s[0] * in_dim, s[1] * out_dim).

    Returns:
        A layer; its parameters are (W, b).

    References:
        Sohl-Dickstein et al. (2020), https://arxiv.org/abs/2001.07301.
    """
    kind = parameterization_of(parameterization)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        out = widths(out_dim, kind, s)
        channels = known(signal.channels, "The number of channels")
        after = signal.with_channels(out)
        W = Weight((channels, out), W_std, (0,), kind, s[0])
        if b_std is None:
            return after, (W, None)
        shape = [1] * len(signal.shape)
        shape[signal.channel_axis] = out
        return after, (W, Weight(tuple(shape), b_std, (), kind))

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        W, b = weights
        y = jnp.moveaxis(jnp.tensordot(W, x, (0, channel_axis)), 0, channel_axis)
        return y if b is None else y + b

    def mask(mask: Any, shape: Any) -> Any:
        return every(mask, channel_axis)

    return layer_of(Leaf(run, declared, mask, (batch_axis, channel_axis)))


@layer
def Identity() -> Layer:
    """The layer that does nothing."""

    def declared(signal: Any, widths: Widths) -> tuple[Any, tuple[()]]:
        return signal, ()

    return layer_of(Leaf(lambda weights, x, **kwargs: x, declared))


@layer
def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Layer:
    """All axes but that of the inputs made one, of channels.

    Args:
        batch_axis: the axis of inputs.
        batch_axis_out: that of the output, 0 or 1.

    Raises:
        InputError: `batch_axis_out` is neither.
    """
    if batch_axis_out not in (-2, -1, 0, 1):
        raise InputError(f"`batch_axis_out` should be 0 or 1, got {batch_axis_out!r}.")
    last = batch_axis_out % 2 == 1

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        batch = batch_axis % len(signal.shape)
        rest = [size for a, size in enumerate(signal.shape) if a != batch]
        sizes = signal.shape[batch], product(rest)
        after = signal.after(
            shape=sizes[::-1] if last else sizes,
            batch_axis=int(last),
            channel_axis=1 - int(last),
        )
        return after, ()

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        y = jnp.moveaxis(x, batch_axis, 0)
        y = y.reshape(y.shape[0], -1)
        return y.T if last else y

    def mask(mask: Any, shape: Any) -> Any:
        return run((), jnp.broadcast_to(mask, shape))

    return layer_of(Leaf(run, declared, mask, _batch_only(batch_axis)))


def _batch_only(batch_axis: int) -> tuple[int, int] | None:
    """The axes of a layer to which channels are as positions."""
    return None if batch_axis == 0 else (batch_axis, 0 if batch_axis == -1 else -1)


@layer
def DotGeneral(
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: Any = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """A product with a fixed array, as of `jax.lax.dot_general`.

    Args:
        lhs: the array, if the input is the right-hand side.
        rhs: the array, if the input is the left-hand side. With neither the layer does
            nothing.
        dimension_numbers: which axes are contracted, and which go together.
        precision: as of `jax.lax.dot_general`.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels; it is not contracted.

    Raises:
        InputError: both arrays are given.
        UnsupportedError: the axis of inputs or of channels would be contracted.
    """
    if lhs is not None and rhs is not None:
        raise InputError("Give `lhs` or `rhs`, not both: the other one is the input.")
    if lhs is None and rhs is None:
        return Identity()
    on_right = rhs is None
    other = jnp.asarray(lhs if on_right else rhs)
    other = other.astype(jnp.result_type(float, other))
    sides = [pair[::-1] if on_right else pair for pair in dimension_numbers]
    (contracted, _), (paired, paired_other) = sides
    # With an entry an input: where these are in the array.
    entries = [o for a, o in zip(paired, paired_other, strict=True) if a == batch_axis]

    def array(held: Any) -> Any:
        return jnp.moveaxis(held, 0, entries[0]) if entries else other

    def dot(x: Any, fixed: Any) -> Any:
        left, right = (fixed, x) if on_right else (x, fixed)
        return lax.dot_general(left, right, dimension_numbers, precision)

    def run(weights: Any, x: Any, held: Any = None, **kwargs: Any) -> Any:
        return dot(x, array(held).astype(x.dtype))

    added = other.ndim - len(contracted) - len(paired) if on_right else 0

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        channels, ndim = signal.channels, len(signal.shape)
        batch, channel = (
            _after_dot(a, ndim, contracted, paired, added) for a in signal.axes
        )
        sizes = list(signal.shape)
        sizes[signal.axes[0]] = other.shape[entries[0]] if entries else 1
        sizes[signal.axes[1]] = 1
        shape = list(
            jax.eval_shape(
                lambda x: dot(x, other), jax.ShapeDtypeStruct(tuple(sizes), other.dtype)
            ).shape
        )
        shape[batch], shape[channel] = signal.shape[signal.axes[0]], channels
        after = signal.after(shape=tuple(shape), batch_axis=batch, channel_axis=channel)
        return after, ()

    def mask(mask: Any, shape: Any, held: Any = None) -> Any:
        whole = list(shape)
        whole[channel_axis] = mask.shape[channel_axis]
        here = (~jnp.broadcast_to(mask, whole)).astype(other.dtype)
        return dot(here, (array(held) != 0).astype(other.dtype)) == 0

    held = jnp.moveaxis(other, entries[0], 0) if entries else None
    axes = batch_axis, channel_axis
    return layer_of(Leaf(run, declared, mask, axes, held))


def _after_dot(
    axis: int, ndim: int, contracted: Sequence[int], paired: Sequence[int], added: int
) -> int:
    """Where an axis of the input is in a product with `added` axes before those left.

    Raises:
        UnsupportedError: it is summed over.
    """
    if axis in contracted:
        raise UnsupportedError(
            f"`DotGeneral` contracts axis {axis} of its input, which is that of "
            "inputs or of channels."
        )
    if axis in paired:
        return tuple(paired).index(axis)
    before = sum(a not in (*contracted, *paired) for a in range(axis % ndim))
    return len(paired) + added + before


@layer
def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Some of the positions, or of the inputs, as `x[idx]`.

    One input, taken by a number, has no axis of inputs: nothing can follow.

    Args:
        idx: what would stand in the brackets: `stax.Slice[1:10, :, ::-1]`.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels; it is taken whole.
    """
    index = idx if isinstance(idx, tuple) else (idx,)

    def run(weights: Any, x: Any, is_infinite: bool = False, **kwargs: Any) -> Any:
        if not is_infinite:
            return x[idx]
        # Inputs are taken from the kernel afterwards.
        full = list(_full(index, x.ndim))
        full[batch_axis] = slice(None)
        return x[tuple(full)]

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        full = _full(index, len(signal.shape))
        _check_index(signal, full)
        shape, kept = [], []
        for a, (size, i) in enumerate(zip(signal.shape, full, strict=True)):
            if isinstance(i, slice):
                shape.append(
                    size
                    if i == slice(None)
                    else len(range(*i.indices(known(size, _A))))
                )
                kept.append(a)
        batch, channel = signal.axes
        rows = () if full[batch] == slice(None) else (full[batch],)
        after = signal.after(
            shape=tuple(shape),
            # Where it is, or was.
            batch_axis=sum(a < batch for a in kept),
            channel_axis=kept.index(channel),
            rows=signal.rows + rows,
        )
        return after, ()

    def mask(mask: Any, shape: Any) -> Any:
        whole = list(shape)
        whole[channel_axis] = mask.shape[channel_axis]
        return jnp.broadcast_to(mask, whole)[idx]

    return layer_of(Leaf(run, declared, mask, (batch_axis, channel_axis)))


_A = "The size of an axis that is indexed"


def _full(index: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """An index with one entry an axis."""
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = ndim - len(index) + 1
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    full = (*index, *[slice(None)] * (ndim - len(index)))
    if len(full) > ndim:
        raise ShapeMismatchError(f"{len(full)} indices for an array of {ndim} axes.")
    for i in full:
        if not isinstance(i, slice | int):
            raise UnsupportedError(
                "`Index` takes slices and whole numbers, as stax.Slice[1:10, :, ::-1];"
                f" got {i!r}."
            )
    return full


def _check_index(signal: Signal, full: tuple[Any, ...]) -> None:
    channel = signal.axes[1]
    wide = isinstance(signal.channels, Width | WidthForm)
    if full[channel] != slice(None) and (wide or not isinstance(full[channel], slice)):
        raise UnsupportedError(
            "`Index` takes the axis of channels whole: in the limit they are alike."
        )


class _Slice:
    """`stax.Slice[1:10, ::-1]` is what stands in its brackets."""

    def __getitem__(self, idx: Any) -> Any:
        return idx


Slice = _Slice()


@layer
def Embedding(vocab_size: int, out_dim: int, std: Any = 1.0) -> Layer:
    """A vector of Gaussian channels for every label.

    The labels (N, *positions, 1) are whole numbers in an array with one channel.

    Args:
        vocab_size: how many labels there are.
        out_dim: the number of channels.
        std: the standard deviation of the vectors.
    """

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        if signal.channels != 1:
            raise ShapeMismatchError(
                f"Labels should have one channel, shape (N, .., 1), got {signal.shape}."
            )
        out = widths(out_dim)
        return signal.with_channels(out), Weight((vocab_size, out), std)

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        return weights[x[..., 0].astype(int)]

    def mask(mask: Any, shape: Any) -> Any:
        return mask

    return layer_of(Leaf(run, declared, mask, (0, -1)))
