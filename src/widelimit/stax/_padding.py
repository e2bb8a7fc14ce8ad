"""Padding of windows, and what a window leaves of an axis."""

import enum
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import InputError, ShapeMismatchError
from ._signal import known


class Padding(enum.Enum):
    """What lies outside of the positions.

    Attributes:
        CIRCULAR: the other end: positions are on a torus.
        SAME: zeros, so that with stride 1 as many positions are left.
        VALID: nothing; windows stay inside.
    """

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


def per_position(values: Any, count: int, name: str) -> tuple[int, ...]:
    """One whole number for every axis of positions; 1s where None is given.

    Raises:
        InputError: they are not so many positive whole numbers.
    """
    if values is None:
        return (1,) * count
    found = tuple(values) if isinstance(values, tuple | list) else (values,)
    if len(found) != count or not all(
        not isinstance(v, bool) and int(v) == v and v > 0 for v in found
    ):
        raise InputError(
            f"`{name}` should be {count} positive whole numbers, one for each axis of "
            f"positions, got {values!r}."
        )
    return tuple(int(v) for v in found)


def left_by(
    sizes: Sequence[Any],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
) -> tuple[int, ...]:
    """How many positions a window leaves along every axis.

    Raises:
        ShapeMismatchError: the window is larger than what there is, or sizes are not
            known.
    """
    found = []
    for size, w, s in zip(sizes, window, strides, strict=True):
        size = int(known(size, "The number of positions"))
        left = -(-size // s) if padding != Padding.VALID else (size - w) // s + 1
        if left < 1:
            raise ShapeMismatchError(
                f"A window of {w} does not fit into {size} positions without padding."
            )
        found.append(left)
    return tuple(found)


def wrapped(
    x: Any, axes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Any:
    """The array padded with its other end, as much as SAME pads with zeros."""
    sizes = [x.shape[a] for a in axes]
    pads = [(0, 0)] * x.ndim
    for a, pair in zip(
        axes, lax.padtype_to_pads(sizes, window, strides, "SAME"), strict=True
    ):
        pads[a] = pair
    return jnp.pad(x, pads, mode="wrap")


def folded(x: Any, axes: Sequence[int], sizes: Sequence[int], start: Any) -> Any:
    """Positions on a torus of these sizes, added up: the transpose of `wrapped`.

    Args:
        x: an array whose positions reach beyond the torus.
        axes: of positions.
        sizes: of the torus along them.
        start: where the first position of `x` is on it.
    """
    for a, size, first in zip(axes, sizes, start, strict=True):
        turns = math.ceil((x.shape[a] + first) / size)
        pads = [(0, 0)] * x.ndim
        pads[a] = (first, turns * size - first - x.shape[a])
        x = jnp.pad(x, pads)
        x = x.reshape(*x.shape[:a], turns, size, *x.shape[a + 1 :]).sum(a)
    return x


def strided(
    mask: Any, axes: Sequence[int], window: Any, strides: Any, padding: Padding
) -> Any:
    """The mask at the centre of every window: content matters more than masks do."""
    kind = "SAME" if padding == Padding.CIRCULAR else padding.name
    index: list[Any] = [slice(None)] * mask.ndim
    sizes = [mask.shape[a] for a in axes]
    pads = lax.padtype_to_pads(sizes, window, strides, kind)
    left = left_by(sizes, window, strides, padding)
    for a, w, s, (before, _), count in zip(
        axes, window, strides, pads, left, strict=True
    ):
        start = (w - 1) // 2 - before
        index[a] = np.clip(start + s * np.arange(count), 0, mask.shape[a] - 1)
        mask = mask[tuple(index)]
        index[a] = slice(None)
    return mask
