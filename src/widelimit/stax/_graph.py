"""Sums over the edges of a graph, and images of another size."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import InputError, ShapeMismatchError
from ._choice import chosen
from ._layer import Layer, Leaf, layer, layer_of
from ._signal import Signal, Widths, positions


class AggregateImplementation(enum.Enum):
    """How the edges of a graph are given to `Aggregate`.

    Attributes:
        DENSE: a (weighted) adjacency matrix for every input.
        SPARSE: a list of edges for every input.
    """

    DENSE = "DENSE"
    SPARSE = "SPARSE"


@layer
def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Any], Any] | None = lambda p: p,
    implementation: str = AggregateImplementation.DENSE.value,
) -> Layer:
    """Every position becomes the sum of those with an edge to it.

    The edges of each input are a `pattern`, given to `apply_fn` and (one for each
    batch) to `kernel_fn`; without one the layer does nothing. For K aggregated axes
    it is, if dense, of shape (N, i1, .., iK, j1, .., jK), the weight of an edge from i
    to j; if sparse, whole numbers (N, edges, K, 2), or (N, edges, 2) for K = 1, from
    and to, where an edge with a negative number is none.

    Args:
        aggregate_axis: the axes of positions that are vertices; all by default.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.
        to_dense: makes a dense pattern of what is given as one.
        implementation: "DENSE" or "SPARSE".

    References:
        Du et al. (2019), https://arxiv.org/abs/1905.13192.
    """
    kind = chosen(AggregateImplementation, "implementation", implementation)

    def vertices(ndim: int) -> tuple[int, ...]:
        ends = {batch_axis % ndim, channel_axis % ndim}
        if aggregate_axis is None:
            return positions(ndim, (batch_axis, channel_axis))
        given = (
            (aggregate_axis,)
            if isinstance(aggregate_axis, int)
            else tuple(aggregate_axis)
        )
        found = tuple(a % ndim for a in given)
        if ends & set(found):
            raise InputError(
                f"aggregate_axis={aggregate_axis} should be axes of positions, not "
                "those of inputs or channels."
            )
        return found

    def run(weights: Any, x: Any, pattern: Any = None, **kwargs: Any) -> Any:
        if pattern is None:
            return x
        axes = vertices(x.ndim)
        front = (batch_axis % x.ndim, *axes)
        y = jnp.moveaxis(x, front, range(len(front)))
        sizes = y.shape[1 : len(front)]
        if kind == AggregateImplementation.DENSE:
            dense = jnp.asarray(pattern if to_dense is None else to_dense(pattern))
        else:
            dense = _adjacency(pattern, sizes)
        expected = (y.shape[0], *sizes, *sizes)
        if dense.shape != expected:
            raise ShapeMismatchError(
                f"`pattern` should have shape {expected} (inputs, from, to), got "
                f"{dense.shape}."
            )
        count = len(sizes)
        summed = tuple(range(1, count + 1))
        numbers = (summed, summed), ((0,), (0,))
        y = lax.dot_general(dense.astype(x.dtype), y, numbers)
        return jnp.moveaxis(y, range(len(front)), front)

    return layer_of(Leaf(run, axes=(batch_axis, channel_axis)))


def _adjacency(pattern: Any, sizes: tuple[int, ...]) -> Any:
    """How many edges go from one vertex to another, (N, *sizes, *sizes)."""
    count = len(sizes)
    if count == 1 and pattern.ndim == 3:
        pattern = pattern[:, :, None]
    if pattern.ndim != 4 or pattern.shape[2:] != (count, 2):
        raise ShapeMismatchError(
            f"A sparse `pattern` should have shape (inputs, edges, {count}, 2), got "
            f"{pattern.shape}."
        )
    ends = [
        [
            jax.nn.one_hot(pattern[:, :, a, side], size, dtype=float)
            for a, size in enumerate(sizes)
        ]
        for side in (0, 1)
    ]
    letters = "abcdefgh"[:count], "ijklmnop"[:count]
    terms = ",".join(f"ze{c}" for side in letters for c in side)
    return jnp.einsum(
        f"{terms}->z{letters[0]}{letters[1]}", *ends[0], *ends[1], precision="highest"
    )


@layer
def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Another number of positions, by interpolation, as of `jax.image.resize`.

    Args:
        shape: the sizes afterwards; -1 for those of axes that stay as they are.
        method: "nearest", "linear", "cubic", "lanczos3", "lanczos5", ...
        antialias: whether to smooth when there are fewer positions afterwards.
        precision: as of `jax.image.resize`.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.

    Raises:
        InputError: `shape` would change the number of channels.
    """
    ends = batch_axis % len(shape), channel_axis % len(shape)
    if shape[ends[1]] != -1:
        raise InputError(
            f"`shape` should be -1 on the axis of channels, got {tuple(shape)}."
        )

    def resized(x: Any) -> Any:
        target = [x.shape[a] if s == -1 else s for a, s in enumerate(shape)]
        return jax.image.resize(x, target, method, antialias, precision)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        if len(signal.shape) != len(shape):
            raise ShapeMismatchError(
                f"`shape` has {len(shape)} axes, the input has shape {signal.shape}."
            )
        sizes = (
            old if new == -1 else new
            for old, new in zip(signal.shape, shape, strict=True)
        )
        return signal.after(shape=tuple(sizes)), ()

    def mask(mask: Any, shape: Any) -> Any:
        # Masked only where nothing that counts contributes.
        whole = list(shape)
        whole[ends[1]] = mask.shape[ends[1]]
        return resized((~jnp.broadcast_to(mask, whole)).astype(float)) == 0

    return layer_of(Leaf(lambda weights, x, **kwargs: resized(x), declared, mask, ends))
