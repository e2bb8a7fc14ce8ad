"""Primitives that move positions: slices, transposes, gathers, pads, concatenations.

One rule covers them all: the primitive is run on an array of position numbers, at the
shape that leaves have, and its result says where every position of the output came
from.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import Equation, Var, fold
from ..program import AxisMap, TensorArg, Term
from ._deferred import random_multiple
from ._deferred_moves import permuted, repeated, scatter_add
from ._fixed import narrowed
from ._layout import Axis, Major, Minor, Row, blocks, resolve, size_of
from ._sizes import (
    MERGED,
    Extent,
    Shape,
    Size,
    finite,
    finite_shape,
    runs,
    shape_text,
)
from ._tracer import HEADED, Check, Tracer, rule
from ._values import Data, Known, Leaf, Linear, MatrixValue, Value, leaf_shape
from ._views import axis_maps, combined, view


def move(
    tr: Tracer, e: Equation, ins: Sequence[Value], axis: int | None, layout: Axis | None
) -> list[Value]:
    """Apply a primitive that only moves positions.

    Args:
        tr: the tracer.
        e: the primitive; its non-array operands were folded into it.
        ins: the operands that carry values.
        axis: the wide axis of the results, or None.
        layout: its layout.
    """
    kind = max((v.kind for v in ins), key=["fixed", "output", "vector"].index)
    power = (
        max(v.power for v in ins if not v.is_zero)
        if not all(v.is_zero for v in ins)
        else ins[0].power
    )
    if any(v.power != power and not v.is_zero for v in ins):
        raise tr.refuse("Quantities of different orders in the width are joined")
    results = []
    for n, out in enumerate(e.outputs):
        leaves = None
        if not (tr.dry and axis is not None):
            parts = []
            for i, block in enumerate([None] if layout is None else blocks(layout)):
                shape = leaf_shape(out.shape, axis, block)
                leaves_in = [
                    v.leaves[i] if v.wide else v.leaves[0] for v in ins if v.leaves
                ]
                shapes = [v.leaf_shape(v.blocks()[i] if v.wide else None) for v in ins]
                parts.append(_move_leaf(tr, e, leaves_in, shapes, shape, n))
            leaves = tuple(parts)
        dtype = np.dtype(out.dtype)
        results.append(Value(out.shape, kind, leaves, axis, layout, power, dtype))
    return results


def _move_leaf(
    tr: Tracer,
    e: Equation,
    leaves: Sequence[Leaf],
    shapes: Sequence[tuple[int, ...]],
    out: tuple[int, ...],
    number: int,
) -> Leaf:
    small = narrowed(e, shapes, out)
    if all(isinstance(x, Known) for x in leaves):
        arrays = [
            np.broadcast_to(x.value, s)
            for x, s in zip(leaves, shapes, strict=True)
            if isinstance(x, Known)
        ]
        return Known(fold(small, arrays)[number])
    if all(isinstance(x, Known | Data) for x in leaves):
        refs = tuple(
            tr.emit.data(x, s, tr.where) for x, s in zip(leaves, shapes, strict=True)
        )
        return Data(tr.emit.primitive(small, refs, out, tr.where), out)
    return _positions(tr, small, leaves, shapes, out, number)


def _positions(
    tr: Tracer,
    e: Equation,
    leaves: Sequence[Leaf],
    shapes: Sequence[tuple[int, ...]],
    out: tuple[int, ...],
    number: int,
) -> Linear:
    numbers, start = [], 1
    for shape in shapes:
        count = int(np.prod(shape))
        numbers.append(np.arange(start, start + count).reshape(shape))
        start += count
    # Position 0 is "outside": padding and fill values of zero read it.
    if e.name == "pad":
        numbers.append(np.asarray(0))
    moved = fold(e, numbers)[number].reshape(out)
    parts, start = [], 1
    for leaf, shape in zip(leaves, shapes, strict=True):
        count = int(np.prod(shape))
        local = np.where((moved >= start) & (moved < start + count), moved - start, -1)
        if (local >= 0).any():
            maps = axis_maps(local, shape)
            parts.append(view(tr, tr.emit.linear(leaf, shape, tr.where), maps, out))
        start += count
    return combined(parts, out)


# Rules --------------------------------------------------------------------------------


@rule("reversal of index axes", "rev")
def _rev(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, axes = ins[0], e.params["dimensions"]
    if any(isinstance(x.shape[a], Size) for a in axes):
        raise tr.refuse("`rev` along a wide axis")
    if isinstance(x, MatrixValue):
        every = [slice(None, None, -1 if i in axes else 1) for i in range(len(x.shape))]
        return [_positions_of_matrix(x, x.shape, every)]
    return move(tr, e, ins, x.axis, x.layout)


@rule("transpose", "transpose")
def _transpose(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, permutation = ins[0], tuple(e.params["permutation"])
    if isinstance(x, MatrixValue):
        terms = tuple(
            dataclasses.replace(t, axes=tuple(t.axes[p] for p in permutation))
            for t in x.terms
        )
        layouts = {i: x.layouts[p] for i, p in enumerate(permutation) if p in x.layouts}
        return [
            dataclasses.replace(
                x, shape=e.outputs[0].shape, terms=terms, layouts=layouts
            )
        ]
    if x.kind == "bits":
        return [dataclasses.replace(x, shape=e.outputs[0].shape)]
    axis = None if x.axis is None else permutation.index(x.axis)
    return move(tr, e, ins, axis, x.layout)


@rule("broadcast", "broadcast_in_dim")
def _broadcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x = ins[0]
    shape: Shape = e.outputs[0].shape
    target = tuple(e.params["broadcast_dimensions"])
    if isinstance(x, MatrixValue):
        return [_broadcast_matrix(tr, x, shape, target)]
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    if x.wide and len(wide) > 1:
        return HEADED[e.name](tr, e, ins)
    if x.wide:
        return move(tr, e, [x], target[x.axis], x.layout)
    if not wide:
        return move(tr, e, [x], None, None)
    if len(wide) > 1:
        return [repeated(tr, e, x, "A constant is broadcast along two wide axes")]
    (axis,) = wide
    size = shape[axis]
    assert isinstance(size, Size)
    if x.kind != "fixed":
        return [repeated(tr, e, x, random_multiple(tr, x))]
    layout = tr.fresh(size)
    leaves = (
        None
        if tr.dry
        else tuple(
            _spread(tr, x.leaf, leaf_shape(shape, axis, b), target)
            for b in blocks(layout)
        )
    )
    return [Value(shape, "fixed", leaves, axis, layout, x.power, x.dtype)]


def _spread(
    tr: Tracer, leaf: Leaf, shape: tuple[int, ...], target: tuple[int, ...]
) -> Leaf:
    """A fixed leaf along more axes, left at size one there."""
    if isinstance(leaf, Known):
        small = [1] * len(shape)
        for axis, s in zip(target, leaf.value.shape, strict=True):
            small[axis] = s
        return Known(np.broadcast_to(leaf.value.reshape(small), shape))
    assert isinstance(leaf, Data)
    stored = [1] * len(shape)
    for axis, s in zip(target, leaf.shape, strict=True):
        stored[axis] = s
    ref = tr.emit.call(lambda a: jnp.reshape(a, stored), [leaf.ref], tr.where)
    return Data(ref, tuple(stored))


def _broadcast_matrix(
    tr: Tracer, x: MatrixValue, shape: Shape, target: tuple[int, ...]
) -> MatrixValue:
    if any(shape[t] != x.shape[i] for i, t in enumerate(target)) or any(
        shape[i] != 1 for i in range(len(shape)) if i not in target
    ):
        raise tr.refuse("A matrix is repeated along an axis")
    terms = tuple(
        dataclasses.replace(
            t,
            axes=tuple(
                t.axes[target.index(i)] if i in target else (-1, None)
                for i in range(len(shape))
            ),
        )
        for t in x.terms
    )
    layouts = {target[i]: a for i, a in x.layouts.items()}
    return dataclasses.replace(x, shape=shape, terms=terms, layouts=layouts)


@rule(
    "reshape: merging positions into a wide axis, splitting heads and groups",
    "reshape",
    "squeeze",
)
def _reshape(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, shape = permuted(tr, e, ins[0]), e.outputs[0].shape
    if isinstance(x, MatrixValue):
        return [_reshape_matrix(tr, x, shape)]
    if x.kind == "bits":
        return [dataclasses.replace(x, shape=shape)]
    if not x.wide:
        params = {**e.params, "dimensions": None} if e.name == "reshape" else e.params
        return move(tr, dataclasses.replace(e, params=params), [x], None, None)
    axis, layout = _reshape_layout(tr, x, shape)
    if tr.dry:
        return [
            dataclasses.replace(x, shape=shape, leaves=None, axis=axis, layout=layout)
        ]
    assert x.leaves is not None
    leaves = []
    for old, new, leaf in zip(x.blocks(), blocks(layout), x.leaves, strict=True):
        before, after = x.leaf_shape(old), leaf_shape(shape, axis, new)
        leaves.append(reshape_leaf(tr, leaf, before, after))
    return [
        dataclasses.replace(
            x, shape=shape, leaves=tuple(leaves), axis=axis, layout=layout
        )
    ]


def reshape_leaf(
    tr: Tracer, leaf: Leaf, before: tuple[int, ...], after: tuple[int, ...]
) -> Leaf:
    """A leaf in another shape, positions in the same order."""
    if isinstance(leaf, Known):
        return Known(np.broadcast_to(leaf.value, before).reshape(after))
    if isinstance(leaf, Data):
        ref = tr.emit.data(leaf, before, tr.where)
        return Data(
            tr.emit.call(lambda a: jnp.reshape(a, after), [ref], tr.where), after
        )
    positions = np.arange(int(np.prod(before))).reshape(after)
    return view(
        tr, tr.emit.linear(leaf, before, tr.where), axis_maps(positions, before), after
    )


def _reshape_layout(tr: Tracer, x: Value, shape: Shape) -> tuple[int, Axis]:
    """The wide axis after a reshape, and its layout."""
    assert x.axis is not None
    assert x.layout is not None
    pairs = runs(x.shape, shape)
    if pairs is None:
        raise tr.refuse(f"A reshape from {shape_text(x.shape)} to {shape_text(shape)}")
    a, b = next((a, b) for a, b in pairs if a[0] <= x.axis < a[1])
    flat: Axis = x.layout
    for s in reversed(x.shape[a[0] : x.axis]):
        flat = Major(finite(s, MERGED), flat)
    for s in x.shape[x.axis + 1 : a[1]]:
        flat = Minor(flat, finite(s, MERGED))
    new = [i for i in range(*b) if isinstance(shape[i], Size)]
    if len(new) != 1:
        raise tr.refuse(f"A reshape from {shape_text(x.shape)} to {shape_text(shape)}")
    (axis,) = new
    before = finite_shape(shape[b[0] : axis], MERGED)
    after = finite_shape(shape[axis + 1 : b[1]], MERGED)
    if not before and not after:
        return axis, flat
    size = shape[axis]
    assert isinstance(size, Size)
    inner = tr.fresh(size)
    template: Axis = inner
    for s in reversed(before):
        template = Major(s, template)
    for s in after:
        template = Minor(template, s)
    tr.unify(template, flat)
    return axis, inner


def _reshape_matrix(tr: Tracer, x: MatrixValue, shape: Shape) -> MatrixValue:
    """Axes of size one may come and go; nothing else."""
    kept = [i for i, s in enumerate(x.shape) if s != 1]
    new = [i for i, s in enumerate(shape) if s != 1]
    if [x.shape[i] for i in kept] != [shape[i] for i in new]:
        raise tr.refuse(
            f"A matrix parameter is reshaped from {shape_text(x.shape)} to "
            f"{shape_text(shape)}; declare it in the shape that is used. The reshape"
        )
    terms = []
    for t in x.terms:
        fixed = list(t.fixed)
        for i, (p, positions) in enumerate(t.axes):
            if i not in kept and p >= 0:
                fixed.append((p, 0 if positions is None else positions[0]))
        axes = tuple(
            t.axes[kept[new.index(i)]] if i in new else (-1, None)
            for i in range(len(shape))
        )
        terms.append(dataclasses.replace(t, axes=axes, fixed=tuple(fixed)))
    layouts = {new[kept.index(i)]: a for i, a in x.layouts.items()}
    return dataclasses.replace(x, shape=shape, terms=tuple(terms), layouts=layouts)


@rule("slice of index axes; split of a wide axis into blocks", "slice")
def _slice(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x = ins[0]
    starts, limits = e.params["start_indices"], e.params["limit_indices"]
    strides = e.params["strides"] or (1,) * len(starts)
    if isinstance(x, MatrixValue):
        return [_slice_matrix(tr, x, e.outputs[0].shape, starts, limits, strides)]
    if not x.wide:
        return move(tr, e, [x], None, None)
    a = x.axis
    assert a is not None
    assert x.layout is not None
    if starts[a] == 0 and limits[a] == x.shape[a]:
        return move(tr, e, [x], a, x.layout)
    if strides[a] != 1:
        raise tr.refuse("A strided slice along a wide axis")
    part = cut(tr, x, starts[a], limits[a])
    params = dict(e.params)
    params["start_indices"] = (*starts[:a], 0, *starts[a + 1 :])
    params["limit_indices"] = (*limits[:a], part.shape[a], *limits[a + 1 :])
    whole = dataclasses.replace(e, params=params)
    return move(tr, whole, [part], a, part.layout)


def cut(tr: Tracer, x: Value, start: Extent, stop: Extent) -> Value:
    """The block of a wide axis between two positions."""
    assert x.axis is not None
    assert x.layout is not None
    size = size_of(x.layout)
    lengths = [start, _difference(stop, start), _difference(size, stop)]
    parts: list[Axis | None] = []
    for n in lengths:
        if n == 0:
            parts.append(None)
        elif isinstance(n, Size) and not n.constant and all(c > 0 for _, c in n.terms):
            parts.append(tr.fresh(n))
        else:
            raise tr.refuse(f"A slice [{start}:{stop}] of a wide axis of size {size}")
    middle = parts[1]
    assert middle is not None
    tr.unify(Row(tuple(p for p in parts if p is not None)), x.layout)
    shape = tuple(lengths[1] if i == x.axis else s for i, s in enumerate(x.shape))
    if tr.dry:
        return dataclasses.replace(x, shape=shape, leaves=None, layout=middle)
    assert x.leaves is not None
    skipped = 0 if parts[0] is None else len(_places(resolve(parts[0])))
    return _cut_leaves(tr, x, shape, middle, skipped)


def _cut_leaves(tr: Tracer, x: Value, shape: Shape, middle: Axis, first: int) -> Value:
    """Take the leaves, and the copies, that belong to the middle of a wide axis."""
    assert x.layout is not None
    assert x.leaves is not None
    assert x.axis is not None
    places = _places(resolve(x.layout))
    wanted = _places(resolve(middle))
    leaves: list[Leaf] = []
    for number, block in enumerate(blocks(middle)):
        own = [i for i, (leaf, _) in enumerate(wanted) if leaf == number]
        source = [places[first + i] for i in own]
        leaf_number = source[0][0]
        copies = [copy for _, copy in source]
        old = x.leaf_shape(x.blocks()[leaf_number])
        new = leaf_shape(shape, x.axis, block)
        leaves.append(_copies(tr, x.leaves[leaf_number], old, new, x.axis, copies))
    return dataclasses.replace(x, shape=shape, leaves=tuple(leaves), layout=middle)


def _places(axis: Axis) -> list[tuple[int, int]]:
    """(leaf number, copy number) of every run along an axis, in order.

    Interleaved copies are one run.
    """
    counter: dict[int, int] = {}

    def walk(x: Axis, first: int) -> list[int]:
        x = resolve(x)
        match x:
            case Row():
                out: list[int] = []
                for part in x.parts:
                    out += walk(part, first)
                    first += len(blocks(part))
                return out
            case Major():
                return walk(x.axis, first) * x.count
            case _:
                return [first]

    places = []
    for leaf in walk(axis, 0):
        places.append((leaf, counter.get(leaf, 0)))
        counter[leaf] = counter.get(leaf, 0) + 1
    return places


def _copies(
    tr: Tracer,
    leaf: Leaf,
    old: tuple[int, ...],
    new: tuple[int, ...],
    axis: int,
    copies: Sequence[int],
) -> Leaf:
    if old == new and list(copies) == list(range(len(copies))):
        return leaf
    if new[axis] != len(copies):
        # An interleaved block is one run: all its copies come along.
        return leaf
    if isinstance(leaf, Known):
        return Known(np.take(np.broadcast_to(leaf.value, old), copies, axis=axis))
    if isinstance(leaf, Data):
        ref = tr.emit.data(leaf, old, tr.where)
        index = np.asarray(copies)
        return Data(
            tr.emit.call(lambda a: jnp.take(a, index, axis=axis), [ref], tr.where), new
        )
    maps = [AxisMap.identity(i, s) for i, s in enumerate(new)]
    maps[axis] = AxisMap((axis,), np.asarray(copies))
    return view(tr, tr.emit.linear(leaf, old, tr.where), maps, new)


def _difference(x: Extent, y: Extent) -> Extent:
    if isinstance(x, Size):
        return x - y
    return x - y if isinstance(y, int) else -1 * y + x


def _slice_matrix(
    tr: Tracer, x: MatrixValue, shape: Shape, starts: Any, limits: Any, strides: Any
) -> MatrixValue:
    for i in x.layouts:
        if starts[i] != 0 or limits[i] != x.shape[i]:
            raise tr.refuse(
                "A matrix parameter is cut along a wide axis; cut the vector that it "
                "makes or takes instead. The slice"
            )
    every = [slice(*at) for at in zip(starts, limits, strides, strict=True)]
    return _positions_of_matrix(x, shape, every)


def _positions_of_matrix(
    x: MatrixValue, shape: Shape, every: Sequence[slice]
) -> MatrixValue:
    """A matrix value read along its finite axes."""
    terms = []
    for t in x.terms:
        axes = []
        for i, (p, positions) in enumerate(t.axes):
            if i not in x.layouts and p >= 0:
                old = range(finite(x.shape[i])) if positions is None else positions
                positions = tuple(old[every[i]])
            axes.append((p, positions))
        terms.append(dataclasses.replace(t, axes=tuple(axes)))
    return dataclasses.replace(x, shape=shape, terms=tuple(terms))


@rule("split", "split")
def _split(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, axis, sizes = ins[0], e.params["axis"], e.params["sizes"]
    outs, start = [], 0
    for out, size in zip(e.outputs, sizes, strict=True):
        stop = start + size
        rank = len(x.shape)
        p = {
            "start_indices": tuple(start if i == axis else 0 for i in range(rank)),
            "limit_indices": tuple(
                stop if i == axis else s for i, s in enumerate(x.shape)
            ),
            "strides": None,
        }
        outs += _slice(tr, Equation("slice", p, (), (out,), e.source, lax.slice_p), [x])
        start = stop
    return outs


@rule("stacking along a new axis", "stack")
def _stack(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    shape, axis = e.outputs[0].shape, e.params["axis"]
    return [stack(tr, ins, axis, shape)]


def stack(tr: Tracer, values: Sequence[Any], axis: int, shape: Shape) -> Any:
    """Values along a new axis."""
    if any(isinstance(v, MatrixValue) for v in values):
        raise tr.refuse("Matrix parameters are stacked; declare them as one")
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    target = tuple(i for i in range(len(shape)) if i != axis)
    expanded = []
    for v in values:
        p = {"shape": one, "broadcast_dimensions": target, "sharding": None}
        out = Var(one, v.dtype)
        grow = Equation(
            "broadcast_in_dim", p, (), (out,), tr.where, lax.broadcast_in_dim_p
        )
        expanded += _broadcast(tr, grow, [v])
    out = Var(shape, values[0].dtype)
    join = Equation(
        "concatenate", {"dimension": axis}, (), (out,), tr.where, lax.concatenate_p
    )
    return _concatenate(tr, join, expanded)[0]


@rule("repetition along index axes", "tile")
def _tile(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,) = ins
    if isinstance(x, MatrixValue) or (x.wide and e.params["reps"][x.axis] != 1):
        raise tr.refuse("A repetition along a wide axis")
    return move(tr, e, ins, x.axis, x.layout)


@rule("concatenation of positions or of widths", "concatenate")
def _concatenate(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    axis = e.params["dimension"]
    if any(isinstance(v, MatrixValue) for v in ins):
        raise tr.refuse(
            "Matrix parameters are concatenated; declare them as one, or use each"
        )
    shape = e.outputs[0].shape
    wide = [v for v in ins if v.wide]
    if not wide:
        return move(tr, e, ins, None, None)
    base = wide[0]
    assert base.layout is not None
    assert base.axis is not None
    if axis != base.axis:
        for v in wide[1:]:
            assert v.layout is not None
            tr.unify(base.layout, v.layout)
        if any(not v.wide for v in ins):
            raise tr.refuse("A wide and a finite array are concatenated")
        return move(tr, e, ins, base.axis, base.layout)
    if any(not v.wide for v in ins):
        raise tr.refuse("A wide vector is concatenated with finitely many coordinates")
    power = max(v.power for v in ins)
    if any(v.power != power for v in ins):
        raise tr.refuse("Vectors of different orders in the width are concatenated")
    layout = Row(tuple(v.layout for v in ins if v.layout is not None))
    kind = "vector" if any(v.kind == "vector" for v in ins) else "fixed"
    leaves = None
    if not tr.dry:
        leaves = tuple(leaf for v in ins for leaf in (v.leaves or ()))
    return [Value(shape, kind, leaves, axis, layout, power, base.dtype)]


@rule("pad of index axes with zeros", "pad")
def _pad(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, value = ins
    config = e.params["padding_config"]
    if isinstance(x, MatrixValue):
        raise tr.refuse("A matrix parameter is padded")
    if x.wide and tuple(config[x.axis]) != (0, 0, 0):
        raise tr.refuse("A wide axis is padded")
    if x.kind == "fixed" and not x.wide:
        return move(tr, e, [x, value], None, None)
    if not value.is_zero:
        raise tr.refuse("A wide vector is padded with a value other than zero")
    return move(tr, e, [x], x.axis, x.layout)


@rule("gather: indexing, cropping, embedding look-up", "gather")
def _gather(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, indices = ins
    known = (
        not indices.wide
        and indices.leaves is not None
        and isinstance(indices.leaf, Known)
    )
    if isinstance(x, MatrixValue):
        if known:
            return [_gather_matrix(tr, e, x, indices.leaf.value)]
        raise tr.refuse("A matrix parameter is indexed by data")
    axis = None
    if x.wide:
        numbers = e.params["dimension_numbers"]
        axis = _gather_axis(tr, e, x, numbers)
    if known:
        static = _with_indices(e, indices.leaf.value)
        return move(tr, static, [x], axis, x.layout)
    if x.kind == "fixed" and not x.wide:
        small = narrowed(e, [x.leaf_shape(None)], tuple(e.outputs[0].shape))
        refs = (
            tr.emit.data(x.leaf, x.leaf_shape(None), tr.where),
            tr.emit.data(indices.leaf, indices.leaf_shape(None), tr.where),
        )
        out = tuple(e.outputs[0].shape)
        leaf = Data(tr.emit.primitive(small, refs, out, tr.where), out)
        return [
            Value(
                out, "fixed", (leaf,), power=x.power, dtype=np.dtype(e.outputs[0].dtype)
            )
        ]
    return [_look_up(tr, e, x, indices, axis)]


def _gather_axis(tr: Tracer, e: Equation, x: Value, numbers: Any) -> int:
    """Where the wide axis of the operand stands in the result."""
    a = x.axis
    assert a is not None
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    removed = {*numbers.collapsed_slice_dims, *batching}
    if a in removed or e.params["slice_sizes"][a] != x.shape[a]:
        raise tr.refuse("A gather along a wide axis")
    offset = [d for d in range(len(x.shape)) if d not in removed]
    return numbers.offset_dims[offset.index(a)]


def _with_indices(e: Equation, indices: np.ndarray) -> Equation:
    """The gather with its indices inside, as an operand that `fold` adds."""
    return dataclasses.replace(e, primitive=_Static(e, indices))


class _Static:
    """A gather whose indices are known; it binds like a primitive."""

    multiple_results = False

    def __init__(self, e: Equation, indices: np.ndarray) -> None:
        self._inner, self._indices = e.primitive, indices

    def bind(self, x: Any, **params: Any) -> Any:
        return self._inner.bind(x, jnp.asarray(self._indices), **params)


def _look_up(
    tr: Tracer, e: Equation, x: Value, indices: Value, axis: int | None
) -> Value:
    """Rows of a table chosen by data: a product with one-hot rows."""
    numbers = e.params["dimension_numbers"]
    (indexed,) = (
        numbers.start_index_map if len(numbers.start_index_map) == 1 else (None,)
    )
    if indexed is None or tuple(numbers.collapsed_slice_dims) != (indexed,):
        raise tr.refuse("A gather by data that is not a look-up of rows of a table")
    if indexed == x.axis or axis is None:
        raise tr.refuse("A gather by data along a wide axis")
    shape = e.outputs[0].shape
    rows = x.shape[indexed]
    assert isinstance(rows, int)
    if tr.dry:
        return Value(shape, x.kind, None, axis, x.layout, x.power, x.dtype)
    ref = tr.emit.data(indices.leaf, indices.leaf_shape(None), tr.where)
    tr.checks.append(
        Check(ref, 0, rows - 1, f"An index into a table of {rows} rows{tr.at()}")
    )
    hot = tr.emit.call(
        lambda i: (i == jnp.arange(rows)).astype(jnp.float64), [ref], tr.where
    )
    assert x.leaves is not None
    leaves = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        out = leaf_shape(shape, axis, block)
        offsets = iter(numbers.offset_dims)
        maps: list[AxisMap] = []
        for d, s in enumerate(x.leaf_shape(block)):
            maps.append(
                AxisMap.identity(len(out), rows)
                if d == indexed
                else AxisMap.identity(next(offsets), s)
            )
        batch = tuple(i for i in range(len(out)) if i not in numbers.offset_dims)
        linear = tr.emit.linear(leaf, x.leaf_shape(block), tr.where)
        line = tr.emit.ref(
            linear,
            x.leaf_shape(block),
            tr.where,
            None if block is None else tr.dim(block),
        )
        letters = tuple(
            -1 if s == 1 else a
            for a, s in zip(
                (*batch, len(out)), (*(out[i] for i in batch), rows), strict=True
            )
        )
        term = Term(line, 1.0, (TensorArg(hot, letters),), tuple(maps), (rows,))
        leaves.append(Linear((term,), out))
    return Value(shape, x.kind, tuple(leaves), axis, x.layout, x.power, x.dtype)


def _gather_matrix(
    tr: Tracer, e: Equation, x: MatrixValue, indices: np.ndarray
) -> MatrixValue:
    """Integer indexing of a finite axis of a matrix parameter, such as W[3]."""
    numbers = e.params["dimension_numbers"]
    dims = tuple(numbers.start_index_map)
    if indices.ndim > 1 or set(dims) & set(x.layouts):
        raise tr.refuse("A matrix parameter is indexed by an array")
    starts = [0] * len(x.shape)
    for d, i in zip(dims, np.atleast_1d(indices), strict=True):
        starts[d] = int(i)
    sizes = e.params["slice_sizes"]
    limits = [
        s + n if isinstance(n, int) else n for s, n in zip(starts, sizes, strict=True)
    ]
    shape = tuple(sizes)
    cut_out = _slice_matrix(tr, x, shape, starts, limits, (1,) * len(starts))
    return _reshape_matrix(tr, cut_out, e.outputs[0].shape)


@rule("dynamic slices at positions known while tracing", "dynamic_slice")
def _dynamic_slice(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, *starts = ins
    sizes = e.params["slice_sizes"]
    at = _static_starts(tr, e, x, starts, sizes)
    if at is None:
        if x.kind != "fixed" or x.wide:
            raise tr.refuse(
                "A wide vector is sliced at a position that depends on data"
            )
        refs = tuple(tr.emit.data(v.leaf, v.leaf_shape(None), tr.where) for v in ins)
        out = tuple(e.outputs[0].shape)
        leaf = Data(tr.emit.primitive(e, refs, out, tr.where), out)
        return [Value(out, "fixed", (leaf,), power=x.power, dtype=x.dtype)]
    params = {
        "start_indices": tuple(at),
        "limit_indices": tuple(
            a + s if isinstance(s, int) else s for a, s in zip(at, sizes, strict=True)
        ),
        "strides": None,
    }
    sliced = dataclasses.replace(e, name="slice", params=params, primitive=lax.slice_p)
    return _slice(tr, sliced, [x])


def _static_starts(
    tr: Tracer, e: Equation, x: Any, starts: Sequence[Any], sizes: Sequence[Extent]
) -> list[int] | None:
    out = []
    for i, (v, size) in enumerate(zip(starts, sizes, strict=True)):
        if size == x.shape[i]:
            out.append(0)
            continue
        if v.leaves is None or not isinstance(v.leaf, Known):
            return None
        if not isinstance(size, int) or not isinstance(x.shape[i], int):
            raise tr.refuse("A wide axis is sliced at a position given by an array")
        out.append(int(np.clip(v.leaf.value, 0, x.shape[i] - size)))
    return out


@rule("dynamic updates at positions known while tracing", "dynamic_update_slice")
def _dynamic_update_slice(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, update, *starts = ins
    at = _static_starts(tr, e, x, starts, update.shape)
    if at is None:
        raise tr.refuse("An array is updated at a position that depends on data")
    return _write(tr, e, x, update, _StaticUpdate(e, at))


class _StaticUpdate:
    multiple_results = False

    def __init__(self, e: Equation, at: Sequence[int]) -> None:
        self._inner, self._at = e.primitive, at

    def bind(self, x: Any, update: Any, **params: Any) -> Any:
        return self._inner.bind(
            x, update, *(jnp.asarray(a) for a in self._at), **params
        )


@rule("writes at positions known while tracing", "scatter")
def _scatter(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, indices, update = ins
    if indices.leaves is None or not isinstance(indices.leaf, Known):
        raise tr.refuse("An array is written at positions that depend on data")
    return _write(tr, e, x, update, _StaticScatter(e, indices.leaf.value))


@rule("sums into positions known while tracing", "scatter-add")
def _scatter_add(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    if any(isinstance(v, MatrixValue) for v in ins):
        raise tr.refuse("A matrix parameter is added to at some positions")
    return [scatter_add(tr, e, *ins)]


class _StaticScatter:
    multiple_results = False

    def __init__(self, e: Equation, indices: np.ndarray) -> None:
        self._inner, self._indices = e.primitive, indices

    def bind(self, x: Any, update: Any, **params: Any) -> Any:
        return self._inner.bind(x, jnp.asarray(self._indices), update, **params)


def _write(tr: Tracer, e: Equation, x: Any, update: Any, primitive: Any) -> list[Any]:
    if isinstance(x, MatrixValue) or isinstance(update, MatrixValue):
        raise tr.refuse("A matrix parameter is written into")
    written = dataclasses.replace(e, primitive=primitive, name="write")
    if x.wide and update.wide:
        assert x.layout is not None
        assert update.layout is not None
        tr.unify(x.layout, update.layout)
    elif x.wide or update.wide:
        raise tr.refuse("Finitely many coordinates of a wide vector are written")
    return move(tr, written, [x, update], x.axis, x.layout)


@rule("positions as numbers", "iota")
def _iota(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    shape, dimension = e.outputs[0].shape, e.params["dimension"]
    if isinstance(shape[dimension], Size):
        raise tr.refuse(
            "Numbers that count along a wide axis: coordinates have no order in the "
            "limit. The `iota`"
        )
    out = tuple(1 if isinstance(s, Size) else s for s in shape)
    value = fold(narrowed(e, [], out), [])[0]
    if any(isinstance(s, Size) for s in shape):
        return [tr.constant_vector(value, shape, e.outputs[0].dtype)]
    return [Value(shape, "fixed", (Known(value),), dtype=np.dtype(e.outputs[0].dtype))]
