"""Masked arrays: inputs of different sizes in one batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class MaskedArray:
    """An array of which some entries do not count. A pytree.

    Attributes:
        masked_value: the array.
        mask: True where it does not count; of a shape that broadcasts to the array's,
            with as many axes.
    """

    masked_value: Any
    mask: Any


jax.tree_util.register_dataclass(
    MaskedArray, data_fields=["masked_value", "mask"], meta_fields=[]
)


def unmask_fn(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose results are arrays, with zeros where they are masked.

    For an `apply_fn` that is called with `mask_constant` and then returns
    `MaskedArray`s.
    """

    @functools.wraps(fn)
    def unmasked(*args: Any, **kwargs: Any) -> Any:
        return unmask(fn(*args, **kwargs))

    return unmasked


def unmask(x: Any) -> Any:
    """Arrays from masked arrays, with zeros in place of masked entries."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, MaskedArray):
            return zeroed(leaf.masked_value, leaf.mask)
        return leaf

    return jax.tree.map(one, x, is_leaf=is_masked)


def masked(x: Any, mask_constant: Any) -> Any:
    """Masked arrays from arrays that hold a constant where they do not count."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, MaskedArray) or mask_constant is None:
            return leaf
        mask = is_constant(leaf, mask_constant)
        return MaskedArray(zeroed(leaf, mask), mask)

    return jax.tree.map(one, x, is_leaf=is_masked)


def is_constant(x: Any, mask_constant: Any) -> Any:
    """Where an array is equal to the constant, which may be NaN."""
    # The constant may be traced.
    return jnp.where(jnp.isnan(mask_constant), jnp.isnan(x), x == mask_constant)


def zeroed(x: Any, mask: Any) -> Any:
    """The array with zeros where it is masked."""
    return x if mask is None else jnp.where(mask, jnp.zeros((), x.dtype), x)


def is_masked(x: Any) -> bool:
    """Whether this is a masked array, for `jax.tree.map`."""
    return isinstance(x, MaskedArray)


def parts(x: Any) -> tuple[Any, Any]:
    """The arrays, with zeros, and their masks (None where there is none)."""
    value = unmask(x)
    mask = jax.tree.map(
        lambda a: a.mask if isinstance(a, MaskedArray) else None, x, is_leaf=is_masked
    )
    return value, mask


def joined(value: Any, mask: Any) -> Any:
    """An array with its mask, if it has one."""
    return value if mask is None else MaskedArray(value, mask)


def every(mask: Any, axis: int) -> Any:
    """Whether all along an axis is masked; the axis is kept, with size 1."""
    # As a mean: in the limit the axis may be infinite.
    left = (~mask).astype(jnp.result_type(float)).mean(axis, keepdims=True)
    return left == 0


def all_masked(masks: Sequence[Any]) -> Any:
    """Where every one of several arrays is masked, or has no mask; None if none has."""
    given = [m for m in masks if m is not None]
    return functools.reduce(jnp.logical_and, given) if given else None


def concatenated(
    masks: Sequence[Any], shapes: Sequence[tuple[int, ...]], axis: int
) -> Any:
    """The mask of arrays put side by side; None if none has one."""
    if all(m is None for m in masks):
        return None
    whole = [
        jnp.zeros(s, bool) if m is None else jnp.broadcast_to(m, s)
        for m, s in zip(masks, shapes, strict=True)
    ]
    return jnp.concatenate(whole, axis)


def mean_and_variance(
    x: Any, axes: tuple[int, ...], mask: Any, keepdims: bool = False
) -> tuple[Any, Any]:
    """Mean and variance over the entries that count; 0 where none does."""
    if mask is None:
        return x.mean(axes, keepdims=keepdims), x.var(axes, keepdims=keepdims)
    count = _counted(x, axes, mask)
    mean = x.sum(axes, keepdims=True) / count
    centred = zeroed(x - mean, mask)
    variance = (centred**2).sum(axes, keepdims=True) / count
    if keepdims:
        return mean, variance
    return mean.squeeze(axes), variance.squeeze(axes)


def _counted(x: Any, axes: tuple[int, ...], mask: Any) -> Any:
    """How many entries count, at least 1, with axes of size 1."""
    here = tuple(a for a in axes if mask.shape[a] != 1)
    count = (~mask).sum(axes, keepdims=True)
    # Of an axis that the mask is broadcast along; in the limit one of them is wide.
    for a in axes:
        if a not in here:
            count = count * x.shape[a]
    return jnp.maximum(count, 1).astype(x.dtype)
