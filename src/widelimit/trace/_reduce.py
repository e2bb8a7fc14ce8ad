"""Reductions over index axes and over the width, and cumulative sums."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._jax import Equation
from ..program import AxisMap, LinComb, Nonlin, Ref, Term, canonical
from ..scalar import Const
from ._contract import HALF, Letters, mean_over_width, readout, total
from ._elementwise import folded
from ._fixed import on_tensors
from ._sizes import Shape, finite, finite_shape
from ._tracer import Tracer, rule
from ._values import (
    Data,
    Known,
    Leaf,
    Linear,
    MatrixValue,
    Pending,
    Value,
    leaf_shape,
)
from ._views import combined, view


@rule("sums and means over index axes and over the width", "reduce_sum")
def reduce_sum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A sum over axes; over the width it is n times a moment."""
    (x,) = ins
    axes = tuple(e.params["axes"])
    if isinstance(x, MatrixValue):
        raise tr.refuse("The entries of a matrix are summed")
    if not x.wide and x.kind == "fixed":
        return on_tensors(tr, e, ins, x.power)
    if x.axis in axes and not tr.dry:
        readout = _readout(tr, x, axes)
        if readout is not None:
            return [readout]
    index_axes = tuple(a for a in axes if a != x.axis)
    if index_axes:
        x = _over_index(tr, x, index_axes)
    if len(index_axes) < len(axes):
        assert x.axis is not None
        x = _over_width(tr, x)
    return [x]


def _over_index(tr: Tracer, x: Value, axes: tuple[int, ...]) -> Value:
    kept = [a for a in range(len(x.shape)) if a not in axes]
    shape = tuple(x.shape[a] for a in kept)
    axis = None if x.axis is None else kept.index(x.axis)
    if tr.dry and x.wide:
        return dataclasses.replace(x, shape=shape, leaves=None, axis=axis)
    assert x.leaves is not None
    leaves: list[Leaf] = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        before, out = x.leaf_shape(block), leaf_shape(shape, axis, block)
        sums = tuple(before[a] for a in axes)
        if isinstance(leaf, Known):
            leaves.append(Known(np.broadcast_to(leaf.value, before).sum(axis=axes)))
            continue
        if isinstance(leaf, Data):
            ref = tr.emit.data(leaf, before, tr.where)
            leaves.append(
                Data(
                    tr.emit.call(lambda t: jnp.sum(t, axis=axes), [ref], tr.where), out
                )
            )
            continue
        summed = iter(range(len(out), len(out) + len(axes)))
        maps = [
            AxisMap.identity(next(summed) if a in axes else kept.index(a), s)
            for a, s in enumerate(before)
        ]
        line = Linear.of(tr.emit.ref(leaf, before, tr.where), before)
        leaves.append(view(tr, line, maps, out, sums))
    return dataclasses.replace(x, shape=shape, leaves=tuple(leaves), axis=axis)


def _readout(tr: Tracer, x: Value, axes: tuple[int, ...]) -> Value | None:
    """A sum over the width of g(h..) v, v a fresh parameter: a readout."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    index = [a for a in axes if a != x.axis]
    shape = finite_shape([x.shape[a] for a in kept])
    sums = finite_shape([x.shape[a] for a in index])
    places = {a: i for i, a in enumerate((*kept, *index))}
    maps = tuple(
        AxisMap.identity(places[a], finite(s))
        if a in places
        else AxisMap((), np.asarray(0))
        for a, s in enumerate(x.shape)
    )
    letters, found = Letters(maps, maps, shape, sums), []
    for block, leaf in zip(x.blocks(), x.leaves or (), strict=True):
        assert block is not None
        leaf_size = x.leaf_shape(block)
        for term in _summands(leaf):
            for weights, h in _factors(tr, term, leaf_size):
                part = readout(tr, block, x, weights, x, h, letters)
                if part is not None:
                    found.append(part)
                    break
            else:
                return None
    assert x.layout is not None
    power = x.power + HALF * tr.order(x.layout)
    return Value(shape, "output", (combined(found, shape),), power=power)


def _summands(leaf: Leaf) -> list[Leaf]:
    if not isinstance(leaf, Linear):
        return [leaf]
    return [Linear((t,), leaf.shape) for t in leaf.terms]


def _factors(
    tr: Tracer, leaf: Leaf, shape: tuple[int, ...]
) -> Iterator[tuple[Linear, Leaf]]:
    """The ways to read a leaf as g(h..) v, with v an input line."""
    if isinstance(leaf, Linear):
        yield leaf, Known(np.ones(shape))
        (term,) = leaf.terms
        line = None if term.x is None else tr.emit.lines[term.x]
        plain = not term.tensors and not term.sums and tr.emit.is_line(term, shape)
        if not isinstance(line, Nonlin) or not plain:
            return
        fn = scalar.call("mul", Const(term.scale), line.fn)
        leaf = Pending(fn, line.xs, line.tensors, shape)
    if not isinstance(leaf, Pending):
        return
    for i, v in enumerate(leaf.xs):
        g = scalar.linear_factor(leaf.fn, i)
        if g is not None and len(leaf.xs) > 1:
            fn, xs, tensors = canonical(g, leaf.xs, leaf.tensors)
            others = Pending(fn, tuple(xs), tuple(tensors), shape)
            yield _input_of(tr, v, shape), others


def _input_of(tr: Tracer, v: Ref, shape: tuple[int, ...]) -> Linear:
    """A line, as the view of another that it may be."""
    line = tr.emit.lines[v]
    if isinstance(line, LinComb):
        return Linear(line.terms, shape)
    return Linear.of(v, shape)


def _over_width(tr: Tracer, x: Value) -> Value:
    axis = x.axis
    assert axis is not None
    shape = finite_shape([s for a, s in enumerate(x.shape) if a != axis])
    if tr.dry:
        return Value(shape, "fixed", (Known(np.ones(shape)),))
    assert x.leaves is not None
    refs: list[Ref] = []
    known = np.zeros(shape)
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        assert block is not None
        full = x.leaf_shape(block)
        ratio = tr.dim(block).ratio(tr.ratios)
        if isinstance(leaf, Known):
            known = known + ratio * np.broadcast_to(leaf.value, full).sum(axis=axis)
            continue
        ref = mean_over_width(tr, leaf, full)
        refs.append(
            tr.emit.call(lambda t, r=ratio: r * jnp.sum(t, axis=axis), [ref], tr.where)
        )
    assert x.layout is not None
    power = x.power + tr.order(x.layout)
    if not refs:
        return Value(shape, "fixed", (Known(known),), power=power)
    if known.any():
        refs.append(tr.emit.constant(known, tr.where))
    return Value(shape, "fixed", (total(tr, refs, shape),), power=power)


@rule(
    "extrema and products over index axes of a vector; any reduction of fixed tensors",
    "reduce_max", "reduce_min", "reduce_prod",
)  # fmt: skip
def reduce_other(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A reduction that treats the width as a batch: one function of all positions."""
    (x,) = ins
    axes = tuple(e.params["axes"])
    if isinstance(x, MatrixValue):
        raise tr.refuse("The entries of a matrix are reduced")
    if not x.wide and x.kind == "fixed":
        _refuse_power(tr, e, x)
        return on_tensors(tr, e, ins, x.power)
    if x.kind == "output" or x.axis in axes:
        raise tr.refuse(f"`{e.name}` over the width, or of a finite random output,")
    _refuse_power(tr, e, x)
    kept = [a for a in range(len(x.shape)) if a not in axes]
    shape = tuple(x.shape[a] for a in kept)
    axis = None if x.axis is None else kept.index(x.axis)
    if tr.dry:
        return [dataclasses.replace(x, shape=shape, leaves=None, axis=axis)]
    op, whole = {
        "reduce_max": ("max", jnp.max),
        "reduce_min": ("min", jnp.min),
        "reduce_prod": ("mul", jnp.prod),
    }[e.name]
    if x.kind == "fixed":
        return [_of_fixed(tr, x, lambda t: whole(t, axis=axes), shape, axis)]
    assert x.leaves is not None
    leaves = tuple(
        _folded(tr, op, leaf, x.leaf_shape(b), axes, leaf_shape(shape, axis, b))
        for b, leaf in zip(x.blocks(), x.leaves, strict=True)
    )
    return [dataclasses.replace(x, shape=shape, leaves=leaves, axis=axis)]


def _of_fixed(
    tr: Tracer, x: Value, f: Callable[[Any], Any], shape: Shape, axis: int | None
) -> Value:
    """A function over index axes of numbers that are the same along the width."""
    leaves = []
    for block, leaf in zip(x.blocks(), x.leaves or (), strict=True):
        ref = tr.emit.data(leaf, x.leaf_shape(block), tr.where)
        out = leaf_shape(shape, axis, block)
        leaves.append(Data(tr.emit.call(f, [ref], tr.where), out))
    return dataclasses.replace(x, shape=shape, leaves=tuple(leaves), axis=axis)


def _folded(
    tr: Tracer,
    op: str,
    leaf: Leaf,
    before: tuple[int, ...],
    axes: Sequence[int],
    out: tuple[int, ...],
) -> Leaf:
    kept = [a for a in range(len(before)) if a not in axes]
    line = Linear.of(tr.emit.ref(leaf, before, tr.where), before)
    rows: list[Leaf] = []
    for position in np.ndindex(*(before[a] for a in axes)):
        at = dict(zip(axes, position, strict=True))
        maps = [
            AxisMap((), np.asarray(at[a]))
            if a in at
            else AxisMap.identity(kept.index(a), s)
            for a, s in enumerate(before)
        ]
        rows.append(view(tr, line, maps, out))
    return folded(tr, op, rows, out)


def _refuse_power(tr: Tracer, e: Equation, x: Value) -> None:
    """A product of quantities of another order than one has an order of its own."""
    if x.power != 0 and e.name == "reduce_prod":
        raise tr.diverges("The argument of `reduce_prod`", x.power)


@rule("cumulative sums over index axes", "cumsum")
def cumsum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A cumulative sum: positions up to each one."""
    (x,) = ins
    axis, reverse = e.params["axis"], e.params["reverse"]
    if isinstance(x, MatrixValue) or axis == x.axis:
        raise tr.refuse(
            "A cumulative sum along a wide axis: coordinates have no order. The call"
        )
    if x.kind == "fixed" and not x.wide:
        return on_tensors(tr, e, ins, x.power)
    if tr.dry and x.wide:
        return [x]
    size = x.shape[axis]
    assert isinstance(size, int)
    assert x.leaves is not None
    at, k = np.arange(size)[:, None], np.arange(size)[None, :]
    table = np.where(k >= at if reverse else k <= at, k, -1)
    leaves = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        shape = x.leaf_shape(block)
        dim = None if block is None else tr.dim(block)
        ref = tr.emit.ref(leaf, shape, tr.where, dim)
        maps = tuple(
            AxisMap((a, len(shape)), table) if a == axis else AxisMap.identity(a, s)
            for a, s in enumerate(shape)
        )
        leaves.append(Linear((Term(ref, 1.0, (), maps, (size,)),), shape))
    return [dataclasses.replace(x, leaves=tuple(leaves))]
