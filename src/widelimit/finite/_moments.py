"""Second moments of one finite network, at its taps and its output."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import ShapeMismatchError
from ._taps import Tapped


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Which axis of a value is what.

    Attributes:
        batch: the axis of the inputs.
        index: the axes of the index shape, those of loops first.
        averaged: the axes that the moment averages over.
        positions: the number of inputs, and the index shape.
        columns: the number of averaged entries (at the width that was looked at).
        concentrates: whether an averaged axis is wide, so that the moment of a single
            network tends to its limit.
    """

    batch: int
    index: tuple[int, ...]
    averaged: tuple[int, ...]
    positions: tuple[int, ...]
    columns: int
    concentrates: bool


def gram(value: Any, layout: Layout) -> jax.Array:
    """The matrix of second moments between all pairs of (input, index)."""
    rows = flat(value, layout)
    return rows @ rows.T / rows.shape[1]


def flat(value: Any, layout: Layout) -> jax.Array:
    """One row for every (input, index), one column for every averaged entry."""
    order = (layout.batch, *layout.index, *layout.averaged)
    columns = math.prod(value.shape[a] for a in layout.averaged)
    return jnp.transpose(value, order).reshape(-1, columns)


def layouts(
    shapes: Callable[[int, int], tuple[Any, Mapping[str, Tapped]]],
    trace_axes: Sequence[int],
) -> tuple[dict[str, Layout], dict[str, str]]:
    """Find out which axes are wide and which is the batch, by changing both.

    Args:
        shapes: output and taps (abstract) when every width is multiplied by the first
            argument, and the second is added to the number of inputs.
        trace_axes: axes of the output to average over.

    Returns:
        The layouts by name, "output" last, and for every tap that is left out the
        reason.
    """
    output, taps = shapes(1, 0)
    wider, wider_taps = shapes(2, 0)
    batches = _batch_axes(shapes, taps)
    found: dict[str, Layout] = {}
    left_out: dict[str, str] = {}
    for name, tapped in sorted(taps.items(), key=lambda item: item[1].order):
        shape = tapped.value.shape
        wide = _changed(shape, wider_taps[name].value.shape)
        if len(wide) == 1 and len(batches[name]) == 1:
            found[name] = _tap_layout(shape, tapped.loops, wide, batches[name][0])
        else:
            left_out[name] = f"its shape {shape} is not (inputs, .., one width)"
    wide = _changed(output.shape, wider.shape)
    found["output"] = output_layout(output.shape, wide, trace_axes)
    return found, left_out


def _batch_axes(
    shapes: Callable[[int, int], tuple[Any, Mapping[str, Tapped]]],
    taps: Mapping[str, Tapped],
) -> dict[str, tuple[int, ...]]:
    try:
        _, longer = shapes(1, 1)
    except Exception:  # the user's function is written for this number of inputs
        return {name: (tapped.loops,) for name, tapped in taps.items()}
    return {
        name: _changed(tapped.value.shape, longer[name].value.shape)
        for name, tapped in taps.items()
    }


def _tap_layout(
    shape: Sequence[int], loops: int, wide: tuple[int, ...], batch: int
) -> Layout:
    """The layout of a tapped family of vectors.

    The index axes of the prediction have this order: the steps of the loops around
    the tap, the outermost first, and then the other axes as they stand.
    """
    index = [a for a in range(len(shape)) if a not in (*wide, batch)]
    order = tuple(sorted(index, key=lambda a: (a >= loops, a)))
    return _layout(shape, batch, order, wide, True)


def output_layout(
    shape: Sequence[int], wide: Sequence[int], trace_axes: Sequence[int]
) -> Layout:
    """The layout of the output, averaged over `trace_axes` where it has them."""
    ndim = len(shape)
    good = all(-ndim <= a < ndim for a in trace_axes)
    averaged = tuple(sorted({a % ndim for a in trace_axes})) if ndim > 1 else ()
    if ndim == 0 or (ndim > 1 and not good) or 0 in averaged:
        raise ShapeMismatchError(
            "An output should have the inputs along axis 0, and trace_axes should be "
            f"other axes of it; got shape {tuple(shape)}, trace_axes="
            f"{tuple(trace_axes)}."
        )
    index = tuple(a for a in range(1, ndim) if a not in averaged)
    return _layout(shape, 0, index, averaged, any(a in wide for a in averaged))


def _layout(
    shape: Sequence[int],
    batch: int,
    index: tuple[int, ...],
    averaged: tuple[int, ...],
    concentrates: bool,
) -> Layout:
    positions = (shape[batch], *(shape[a] for a in index))
    columns = math.prod(shape[a] for a in averaged)
    return Layout(batch, index, averaged, positions, columns, concentrates)


def _changed(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i, (s, t) in enumerate(zip(a, b, strict=True)) if s != t)
