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
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._jax import Equation
from ..program import (
    AxisMap,
    Dim,
    LinComb,
    MatMul,
    Nonlin,
    Ref,
    VecIn,
    Vector,
    channel_sum,
    matrix_of,
)
from ._contract import HALF, mean_over_width, products, spread_to, total
from ._dot import dot_general, letters_of
from ._layout import Axis, blocks
from ._sizes import Extent, Shape, Size
from ._tracer import PER_HEAD, RULES, Tracer, headed_rule
from ._values import (
    Data,
    Deferred,
    Headed,
    Known,
    Leaf,
    Linear,
    MatrixValue,
    Value,
    is_zero,
    leaf_shape,
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
    found = RULES[e.name].apply(tr, _stripped(e, size), [_one(tr, v, size) for v in ins])
    return [
        Headed(o.shape, v, o.shape.index(size), layout)
        for v, o in zip(found, e.outputs, strict=True)
    ]


@headed_rule("broadcast_in_dim")
def _broadcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), shape = ins, e.outputs[0].shape
    if not isinstance(x, Value):
        return _per_head(tr, e, ins)
    # A vector over heads or over channels, broadcast along the other axis.
    axis, _ = (i for i, s in enumerate(shape) if isinstance(s, Size))
    size, target = shape[axis], e.params["broadcast_dimensions"]
    layout = x.layout if target[x.axis] == axis else tr.fresh(size)
    x, shape = _one(tr, x, size), _extents(shape, size)
    (inner,) = (i for i, s in enumerate(shape) if isinstance(s, Size))
    maps = [_position(target[i], s) for i, s in enumerate(x.shape)]
    value = Value(shape, x.kind, None, inner, tr.fresh(shape[inner]), x.power, x.dtype)
    if not tr.dry:
        sizes = [leaf_shape(shape, inner, b) for b in value.blocks()]
        leaves = (spread_to(tr, x.leaf, x.leaf_shape(None), maps, s) for s in sizes)
        value = dataclasses.replace(value, leaves=tuple(leaves))
    return [Headed(e.outputs[0].shape, value, axis, layout)]


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
    return [_over_channels(tr, value, e.outputs[0].shape, x.shape[x.axis], x.layout)]


@headed_rule("dot_general")
def _dot_general(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    contract, batch = e.params["dimension_numbers"]
    matrices = [i for i, v in enumerate(ins) if isinstance(v, MatrixValue)]
    if matrices:
        (i, *more) = matrices
        if more:
            raise tr.refuse("A product of two matrices with an axis of heads")
        return [_with_matrix(tr, e, ins, i)]
    size, layout = _heads(tr, ins)
    shape, pairs = e.outputs[0].shape, list(zip(*contract, strict=True))
    over_channels = [p for p in pairs if _is_channel(ins, p, size)]
    over_heads = [p for p in pairs if p not in over_channels and _is_wide(ins, p)]
    values = [_one(tr, v, size) for v in ins]
    numbers = (contract, batch)
    if over_heads:
        if not over_channels or not all(isinstance(v, Headed) for v in ins):
            raise tr.refuse("A contraction over the axis of heads alone")
        return dot_general(tr, e, values)
    if shape.count(size) != 1:
        raise tr.refuse("A product of vectors of different heads")
    if over_channels:
        # Multiplied along the channels first, and then summed.
        (pair,) = over_channels
        rest = [p for p in pairs if p != pair]
        numbers = (
            tuple(tuple(p[i] for p in rest) for i in (0, 1)),
            tuple((*batch[i], pair[i]) for i in (0, 1)),
        )
    product = _products(tr, e, values, numbers)
    if over_channels:
        return [_over_channels(tr, product, shape, size, layout)]
    return [Headed(shape, product, shape.index(size), layout)]


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
    return dot_general(tr, dataclasses.replace(e, params=params, outputs=(out,)), ins)[0]


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
    shape = tuple(
        s if i == other else _extent(s, size) for i, s in enumerate(m.shape)
    )
    layouts: list[dict[int, Axis]] = []
    for term in m.terms:
        source, own = tr.matrices[term.name], {i: a for i, (a, _) in enumerate(term.axes)}
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


# Sums over channels -------------------------------------------------------------------


def _over_channels(
    tr: Tracer, x: Value, shape: Shape, size: Size, heads: Axis
) -> Value:
    """A sum over the channels of every head: a vector over heads.

    Args:
        tr: the tracer.
        x: the vector, with an axis of size one in the place of heads.
        shape: the shape of the result, in widths.
        size: the number of heads.
        heads: the layout of their axis.
    """
    axis, channels = shape.index(size), x.axis
    assert channels is not None
    if tr.dry:
        return Value(shape, "vector", None, axis, heads)
    if len(blocks(heads)) > 1 or blocks(heads)[0].count > 1:
        raise tr.refuse("The axis of heads is divided")
    out = tuple(1 if i == axis else int(s) for i, s in enumerate(shape))  # type: ignore
    sums: list[Linear] = []
    means: list[Ref] = []
    for block, leaf in zip(x.blocks(), x.leaves or (), strict=True):
        assert block is not None
        if is_zero(leaf):
            continue
        full, dim = x.leaf_shape(block), tr.dim(block)
        line = tr.emit.ref(leaf, full, tr.where, dim)
        if any(d == size.dim for d in _dims(tr, line)):
            raise tr.refuse(
                "A sum over the channels of every head, of what depends on a sum like "
                "it (attention weights, say), is not Gaussian, and is not covered. It"
            )
        inside = dim.over(size.dim)
        assert inside is not None
        ratio = inside.ratio(tr.ratios)
        if _centred(tr, line, dim):
            places = [len(out), *range(len(out))]
            places = [*places[1 : channels + 1], places[0], *places[channels + 1 :]]
            product = MatMul(
                name="", matrix=tr.emit.emit(channel_sum(size.dim, dim)), letters=(),
                x=line, maps=tuple(map(AxisMap.identity, places, full)), shape=out,
                sums=(full[channels],), source=tr.where,
            )  # fmt: skip
            sums.append(Linear.of(tr.emit.emit(product), out, ratio**0.5))
        else:
            mean = mean_over_width(tr, Linear.of(line, full), full)
            call = lambda t, r=ratio: r * jnp.sum(t, axis=channels)  # noqa: E731
            means.append(tr.emit.call(call, [mean], tr.where))
    if sums and means:
        raise tr.refuse("A sum over the channels of every head is random in part only")
    if sums:
        leaf = combined(sums, out)
        return Value(shape, "vector", (leaf,), axis, heads, x.power + HALF)
    leaf = total(tr, means, out) if means else Known(np.zeros(out))
    return Value(shape, "fixed", (leaf,), axis, heads, x.power + 1)


def _centred(tr: Tracer, ref: Ref, dim: Dim) -> bool:
    """Whether a vector has mean zero given what its head shares."""
    return _linear_in(tr, ref, dim) is not None


def _linear_in(tr: Tracer, ref: Ref, dim: Dim) -> set[Ref] | None:
    """Centred inputs such that a vector is linear in them, given all others, or None."""
    line, kind = tr.emit.lines[ref], tr.emit.types[ref]
    assert isinstance(kind, Vector)
    match line:
        case MatMul():
            return {matrix_of(tr.emit.lines, line.matrix)[0]} if kind.dim == dim else None
        case VecIn():
            centred = kind.dim == dim and not np.any(getattr(line.mean, "value", line.mean))
            return {ref} if centred else None
        case LinComb():
            parts = [None if t.x is None else _linear_in(tr, t.x, dim) for t in line.terms]
            return None if None in parts else set().union(*(p for p in parts if p))
        case Nonlin():
            for i, x in enumerate(line.xs):
                if scalar.linear_factor(line.fn, i) is None:
                    continue
                found = _linear_in(tr, x, dim)
                others = set().union(*(_read(tr, y) for j, y in enumerate(line.xs) if j != i))
                if found is not None and not found & others:
                    return found
    return None


def _coordinatewise(tr: Tracer, ref: Ref) -> Iterator[Ref]:
    """The vectors that a vector is a function of, coordinate by coordinate."""
    todo, seen = [ref], set[Ref]()
    while todo:
        r = todo.pop()
        if r in seen:
            continue
        seen.add(r)
        yield r
        line = tr.emit.lines[r]
        if isinstance(line, LinComb):
            todo += [t.x for t in line.terms if t.x is not None]
        elif isinstance(line, Nonlin):
            todo += line.xs


def _read(tr: Tracer, ref: Ref) -> set[Ref]:
    """The matrices and input lines that a vector depends on coordinate by coordinate."""
    found = set()
    for r in _coordinatewise(tr, ref):
        line = tr.emit.lines[r]
        if isinstance(line, MatMul):
            found.add(matrix_of(tr.emit.lines, line.matrix)[0])
        elif isinstance(line, VecIn):
            found.add(r)
    return found


def _dims(tr: Tracer, ref: Ref) -> Iterable[Dim]:
    types = (tr.emit.types[r] for r in _coordinatewise(tr, ref))
    return (t.dim for t in types if isinstance(t, Vector))


# One head -----------------------------------------------------------------------------


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
        if isinstance(v, Value) and v.wide and v.shape[v.axis] == size:
            assert v.layout is not None
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
            if not tr.dry and (len(v.blocks()) > 1 or v.leaf_shape(v.blocks()[0])[v.axis] > 1):
                raise tr.refuse("A divided wide axis meets vectors over many heads")
            shape = tuple(1 if i == v.axis else s for i, s in enumerate(v.shape))
            return dataclasses.replace(v, shape=shape, axis=None, layout=None)
        case Deferred(terms=((factor,),)) if factor.value.kind == "fixed" and not factor.wide:
            return _constant(tr, factor, _extents(v.shape, size))
    raise tr.refuse(f"A {v.kind} meets vectors over many heads")


def _constant(tr: Tracer, factor: Any, shape: Shape) -> Value:
    """Fixed numbers along heads and channels."""
    value = factor.value
    (axis,) = (i for i, s in enumerate(shape) if isinstance(s, Size))
    layout = tr.fresh(shape[axis])
    if tr.dry:
        return Value(shape, "fixed", None, axis, layout)
    maps = [_position(a, s) for a, s in zip(factor.labels, value.shape, strict=True)]
    leaves: list[Leaf] = [
        spread_to(tr, value.leaf, value.leaf_shape(None), maps, leaf_shape(shape, axis, b))
        for b in blocks(layout)
    ]
    return Value(shape, "fixed", tuple(leaves), axis, layout, value.power)


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


def _is_channel(ins: list[Any], pair: tuple[int, int], size: Size) -> bool:
    """Whether an axis of both operands is that of channels."""
    return _is_wide(ins, pair) and ins[0].shape[pair[0]] != size


def _is_wide(ins: list[Any], pair: tuple[int, int]) -> bool:
    return isinstance(ins[0].shape[pair[0]], Size)
