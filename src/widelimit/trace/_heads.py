"""Many heads: vectors over two widths, and sums over the channels of every head.

With heads and the channels of a head both infinitely many, a query is one vector whose
coordinates are pairs (head, channel). Most primitives treat every head alike: they are
applied with an axis of size one in the place of heads. Left are

- the logits q.k / sqrt(d) of a head, a sum over its channels alone: Gaussian by the
  central limit theorem, and one vector over heads (`channel_sum` of the program);
- a vector over heads, as attention weights are, that multiplies the values of its head:
  it is repeated over their channels;
- matrices with an axis of heads, which are matrices of (head, channel) pairs.

References:
    Hron et al. (2020), https://arxiv.org/abs/2006.10540, theorem 3.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .._jax import Equation
from ..program import AxisMap, Term, VecIn, identity_maps
from ._channels import over_channels
from ._contract import products, spread_to
from ._dot import dot_general, letters_of
from ._elementwise import folded
from ._layout import Axis, is_whole
from ._sizes import Extent, Shape, Size, finite
from ._tracer import PER_HEAD, RULES, Tracer, headed_rule, wide_axis
from ._values import (
    Deferred,
    Factor,
    Headed,
    Leaf,
    Linear,
    MatrixValue,
    Value,
)
from ._views import combined


@headed_rule(PER_HEAD)
def _per_head(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Any primitive that treats all heads alike."""
    if e.name not in RULES:
        raise tr.refuse(f"The primitive `{e.name}` has no rule")
    if not any(isinstance(v, Headed) for v in ins):
        return RULES[e.name].apply(tr, e, ins)  # of a matrix
    size, layout = _heads(tr, ins)
    if any(size not in o.shape for o in e.outputs):
        raise tr.refuse(f"`{e.name}` over the axis of heads")
    found = RULES[e.name].apply(
        tr, _stripped(e, size), [_one(tr, v, size) for v in ins]
    )
    return [
        Headed(o.shape, v, o.shape.index(size), layout)
        for v, o in zip(found, e.outputs, strict=True)
    ]


@headed_rule("broadcast_in_dim")
def _broadcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), whole = ins, e.outputs[0].shape
    if not isinstance(x, Value):
        return _per_head(tr, e, ins)
    # A vector over heads or over channels, broadcast along the other axis.
    assert x.axis is not None
    assert x.layout is not None
    axis, target = wide_axis(whole), e.params["broadcast_dimensions"]
    assert axis is not None
    size = _size(whole, axis)
    over_heads = target[x.axis] == axis
    heads = x.layout if over_heads else tr.fresh(size)
    one, shape = _one(tr, x, size), _extents(whole, size)
    value = _wide(tr, shape, x.kind, x.power)
    if not over_heads:
        _check_whole(tr, value)
    maps = [_position(target[i], s) for i, s in enumerate(one.shape)]
    return [Headed(whole, _at_all(tr, value, one, maps), axis, heads)]


def _wide(tr: Tracer, shape: Shape, kind: str, power: Fraction) -> Value:
    """A value without leaves."""
    axis = wide_axis(shape)
    assert axis is not None
    return Value(shape, kind, None, axis, tr.fresh(_size(shape, axis)), power)


def _at_all(tr: Tracer, value: Value, x: Value, maps: Sequence[AxisMap]) -> Value:
    """The value with leaves that are the one leaf of another, read at maps."""
    if tr.dry:
        return value
    sizes = [value.leaf_shape(b) for b in value.blocks()]
    leaves = (spread_to(tr, x.leaf, x.leaf_shape(None), maps, s) for s in sizes)
    return dataclasses.replace(value, leaves=tuple(leaves))


def _check_whole(tr: Tracer, value: Value) -> None:
    """Refuse channels that are divided in one operand only."""
    if not tr.dry and value.layout is not None and not is_whole(value.layout):
        raise tr.refuse("A divided wide axis meets vectors over many heads")


def _size(shape: Shape, axis: int) -> Size:
    size = shape[axis]
    assert isinstance(size, Size)
    return size


def _position(letter: int, size: Extent) -> AxisMap:
    if isinstance(size, Size) or size == 1:
        return AxisMap((), np.asarray(0))
    return AxisMap.identity(letter, size)


@headed_rule("reduce_sum")
def _sum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axes = ins, tuple(e.params["axes"])
    if isinstance(x, MatrixValue):
        raise tr.refuse("The entries of a matrix are summed")
    value, channels = x.value, x.value.axis
    if channels not in axes:
        return _per_head(tr, e, ins)
    if x.axis in axes:
        return RULES[e.name].apply(tr, e, [value])
    others = tuple(a for a in axes if a != channels)
    if others:
        shape = tuple(s for a, s in enumerate(value.shape) if a not in others)
        out = dataclasses.replace(e.outputs[0], shape=shape)
        part = dataclasses.replace(e, params={**e.params, "axes": others})
        (value,) = RULES[e.name].apply(
            tr, dataclasses.replace(part, outputs=(out,)), [value]
        )
    return [
        over_channels(tr, value, e.outputs[0].shape, _size(x.shape, x.axis), x.layout)
    ]


@headed_rule("dot_general")
def _dot_general(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    matrices = [i for i, v in enumerate(ins) if isinstance(v, MatrixValue)]
    if len(matrices) > 1:
        raise tr.refuse("A product of two matrices with an axis of heads")
    return [_with_matrix(tr, e, ins, *matrices) if matrices else _vectors(tr, e, ins)]


def _vectors(tr: Tracer, e: Equation, ins: list[Any]) -> Any:
    """A contraction of vectors, of which one is over heads and channels."""
    size, heads = _heads(tr, ins)
    values = [_one(tr, v, size) for v in ins]
    if any(isinstance(v, Value) and _over_channels(v, size) for v in ins):
        for v in values:
            _check_whole(tr, v)
    contract, batch = e.params["dimension_numbers"]
    wide = [p for p in zip(*contract, strict=True) if _is_wide(ins, p)]
    summed = [p for p in wide if ins[0].shape[p[0]] != size]
    if len(wide) == 2 and all(isinstance(v, Headed) for v in ins):
        return dot_general(tr, e, values)[0]
    shape = e.outputs[0].shape
    if len(wide) > len(summed) or shape.count(size) != 1:
        raise tr.refuse("A product of vectors of different heads")
    if not summed:
        product = _products(tr, e, values, (contract, batch))
        return Headed(shape, product, shape.index(size), heads)
    # Multiplied along the channels first, and then summed.
    (pair,) = summed
    rest = [p for p in zip(*contract, strict=True) if p != pair]
    numbers = (
        tuple(tuple(p[i] for p in rest) for i in (0, 1)),
        tuple((*batch[i], pair[i]) for i in (0, 1)),
    )
    product = _products(tr, e, values, numbers)
    return over_channels(tr, product, shape, size, heads)


def _products(tr: Tracer, e: Equation, ins: list[Value], numbers: Any) -> Value:
    """A contraction of values that keeps the channels of all heads."""
    x, y = ins
    (contract, batch) = numbers
    shape = [
        next((s for s in (x.shape[a], y.shape[b]) if isinstance(s, Size)), x.shape[a])
        for a, b in zip(*batch, strict=True)
    ]
    for i, v in enumerate(ins):
        used = (*contract[i], *batch[i])
        shape += [s for a, s in enumerate(v.shape) if a not in used]
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    if len(wide) != 1:
        raise tr.refuse("A product of vectors over heads and channels")
    if "vector" in (x.kind, y.kind) and "fixed" not in (x.kind, y.kind):
        letters, _ = letters_of(x, y, numbers, shape)
        return products(tr, x, y, letters, tuple(shape), wide[0])
    out = dataclasses.replace(e.outputs[0], shape=tuple(shape))
    params = {**e.params, "dimension_numbers": numbers}
    e = dataclasses.replace(e, params=params, outputs=(out,))
    return dot_general(tr, e, ins)[0]


# Matrices -----------------------------------------------------------------------------


def _with_matrix(tr: Tracer, e: Equation, ins: list[Any], at: int) -> Any:
    """A matrix with an axis of heads times a vector."""
    m, x = ins[at], ins[1 - at]
    contract, batch = e.params["dimension_numbers"]
    met = dict(zip(contract[at], contract[1 - at], strict=True))
    wide = [a for a in m.layouts if a in met]
    rest = [a for a in sorted(m.layouts) if a not in met]
    shape: Shape = e.outputs[0].shape
    if isinstance(x, Headed):
        whole = {met[a] for a in wide} == {x.axis, x.value.axis}
        if len(m.layouts) < 3 or not whole:
            raise tr.refuse("A matrix meets vectors over heads, but not over both axes")
        head, channel = sorted(wide, key=lambda a: met[a] != x.axis)
        matrix, layout = _matrix(tr, m, head, channel)
        tr.unify(layout, x.layout)
        ins = [matrix, x.value] if at == 0 else [x.value, matrix]
        return dot_general(tr, e, ins)[0]
    if isinstance(x, Deferred):
        ins = list(ins)
        ins[1 - at] = _multiplied(tr, x, [met[a] for a in wide])
        return _with_matrix(tr, e, ins, at)
    if len(wide) != 1 or set(m.layouts) & set(batch[at]) or not x.wide:
        raise tr.refuse("A matrix with an axis of heads meets no wide vector")
    # The axis of heads stands before that of their channels.
    head, channel = rest
    matrix, layout = _matrix(tr, m, head, channel)
    size = m.shape[head]
    ins = [matrix, x] if at == 0 else [x, matrix]
    value = dot_general(tr, _stripped(e, size), ins)[0]
    return Headed(shape, value, shape.index(size), layout)


def _matrix(
    tr: Tracer, m: MatrixValue, head: int, channel: int
) -> tuple[MatrixValue, Axis]:
    """A matrix of (head, channel) pairs, and the layout of its heads."""
    size = m.shape[head]
    assert isinstance(size, Size)
    if any(m.shape[i] == size for i in m.layouts if i != head):
        raise tr.refuse(
            f"The axes of heads and of channels have one size, {size}; declare the "
            "number of heads as a width of its own, `heads = wl.width('heads')`. The "
            "product"
        )
    (other,) = (i for i in m.layouts if i not in (head, channel))
    shape = tuple(s if i == other else _extent(s, size) for i, s in enumerate(m.shape))
    layouts: list[dict[int, Axis]] = []
    for term in m.terms:
        source = tr.matrices[term.name]
        own = {i: a for i, (a, _) in enumerate(term.axes)}
        axes = tuple(
            _extent(s, size) if a in (own[head], own[channel]) else s
            for a, s in enumerate(source.shape)
        )
        if size in source.shape:
            pair = tuple(sorted((own[other], own[channel])))
            tr.matrices[term.name] = dataclasses.replace(source, shape=axes, axes=pair)
        elif source.shape[own[head]] != 1:
            raise tr.refuse(f"`{term.name}` is used with another axis for heads")
        source = tr.matrices[term.name]
        layouts.append({i: tr.source_layout(source, own[i]) for i in (other, channel)})
    for found in layouts[1:]:
        for i in (other, channel):
            tr.unify(layouts[0][i], found[i])
    tr.unify(layouts[0][other], m.layouts[other])
    matrix = dataclasses.replace(m, shape=shape, layouts=layouts[0])
    return matrix, m.layouts[head]


# One head -----------------------------------------------------------------------------


def _multiplied(tr: Tracer, x: Deferred, over: list[int]) -> Headed:
    """Products of a vector over heads and one over channels, as values for all heads.

    Args:
        tr: the tracer.
        x: the products, which no line holds.
        over: its axes of heads and of channels.
    """
    head, _ = sorted(over)
    size = _size(x.shape, head)
    heads = tr.fresh(size)
    for f in (f for term in x.terms for f in term):
        if f.value.kind not in ("vector", "fixed") or len(f.wide) > 1:
            raise tr.refuse(x.reason)
        if f.wide == [head]:
            tr.unify(heads, f.value.layout)
    powers = {sum((f.value.power for f in t), Fraction(0)) for t in x.terms}
    if len(powers) > 1:
        raise tr.refuse("Products of different orders in the width are added")
    value = _wide(tr, _extents(x.shape, size), "vector", powers.pop())
    _check_whole(tr, value)
    if not tr.dry:
        parts = [_sum_of_products(tr, t, value, size) for t in x.terms]
        leaf = combined(parts, value.leaf_shape(None))
        value = dataclasses.replace(value, leaves=(leaf,))
    return Headed(x.shape, value, head, heads)


def _sum_of_products(
    tr: Tracer, term: Sequence[Factor], value: Value, size: Size
) -> Linear:
    out = value.leaf_shape(None)
    sizes = {a: s for f in term for a, s in zip(f.labels, f.value.shape, strict=True)}
    summed = sorted(a for a in sizes if a >= len(out))
    places = {a: i for i, a in enumerate((*range(len(out)), *summed))}
    full = (*out, *(finite(sizes[a]) for a in summed))
    # None of them tells all coordinates apart: the vector of ones does.
    (block,) = value.blocks()
    assert block is not None
    line = VecIn(name="ones", shape=(), dim=tr.dim(block), mean=1.0, std=0.0)
    parts: list[Leaf] = [Linear((Term(tr.emit.emit(line)),), full)]
    for f in term:
        one, labels = _one(tr, f.value, size), f.labels
        maps = [_position(places[a], s) for a, s in zip(labels, one.shape, strict=True)]
        parts.append(spread_to(tr, one.leaf, one.leaf_shape(None), maps, full))
    product = tr.emit.ref(folded(tr, "mul", parts, full), full, tr.where)
    return Linear(
        (Term(product, maps=identity_maps(full), sums=full[len(out) :]),), out
    )


def _heads(tr: Tracer, ins: list[Any]) -> tuple[Size, Axis]:
    """The number of heads, and the layout of their axis, that all operands share."""
    headed = [v for v in ins if isinstance(v, Headed)]
    first = headed[0]
    size = first.shape[first.axis]
    assert isinstance(size, Size)
    for v in headed[1:]:
        if v.shape[v.axis] != size:
            raise tr.refuse(f"Vectors of {size} and of {v.shape[v.axis]} heads meet")
        tr.unify(first.layout, v.layout)
    for v in ins:
        if (
            isinstance(v, Value)
            and v.layout is not None
            and not _over_channels(v, size)
        ):
            tr.unify(first.layout, v.layout)
    return size, first.layout


def _one(tr: Tracer, v: Any, size: Size) -> Value:
    """A value with an axis of size one in the place of heads."""
    match v:
        case Headed():
            return v.value
        case Value() if not v.wide:
            return v
        case Value():
            # The same at all coordinates that it does not tell apart.
            _check_whole(tr, v)
            shape = tuple(1 if i == v.axis else s for i, s in enumerate(v.shape))
            return dataclasses.replace(v, shape=shape, axis=None, layout=None)
        case Deferred(terms=((f,),)) if f.value.kind == "fixed" and not f.wide:
            sizes = zip(f.labels, f.value.shape, strict=True)
            value = _wide(tr, _extents(v.shape, size), "fixed", f.value.power)
            return _at_all(tr, value, f.value, [_position(a, s) for a, s in sizes])
    raise tr.refuse(f"A {v.kind} meets vectors over many heads")


def _stripped(e: Equation, size: Size) -> Equation:
    """A primitive at one head."""
    params = {k: _extents(p, size) for k, p in e.params.items()}
    outputs = tuple(
        dataclasses.replace(o, shape=_extents(o.shape, size)) for o in e.outputs
    )
    return dataclasses.replace(e, params=params, outputs=outputs)


def _extents(x: Any, size: Size) -> Any:
    if isinstance(x, tuple):
        return tuple(_extents(s, size) for s in x)
    return _extent(x, size)


def _extent(s: Any, size: Size) -> Any:
    if not isinstance(s, Size):
        return s
    return 1 if s == size else s.times(size)


def _over_channels(v: Value, size: Size) -> bool:
    """Whether a vector is one over channels, which all heads share."""
    return v.axis is not None and v.shape[v.axis] != size


def _is_wide(ins: list[Any], pair: tuple[int, int]) -> bool:
    return isinstance(ins[0].shape[pair[0]], Size)
