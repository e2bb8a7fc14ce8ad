"""Sums over the channels of every head, such as the logits of attention.

A sum of centred products, as q.k, is Gaussian by the central limit theorem, and one
vector over heads; any other sum is so many times its mean.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import scalar
from ..program import (
    AxisMap,
    Dim,
    LinComb,
    MatMul,
    Nonlin,
    Ref,
    VecIn,
    Vector,
    coordinatewise,
    matrix_of,
)
from ._contract import HALF, mean_over_width, total
from ._layout import Axis, is_whole
from ._sizes import Shape, Size
from ._tracer import Tracer
from ._values import Known, Linear, Value, is_zero, leaf_shape
from ._views import combined


def over_channels(tr: Tracer, x: Value, shape: Shape, size: Size, heads: Axis) -> Value:
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
    if not is_whole(heads):
        raise tr.refuse("The axis of heads is divided")
    out = leaf_shape(shape, axis, None)
    sums: list[Linear] = []
    means: list[Ref] = []
    for block, leaf in zip(x.blocks(), x.leaves or (), strict=True):
        assert block is not None
        if is_zero(leaf):
            continue
        full, dim = x.leaf_shape(block), tr.dim(block)
        line = tr.emit.ref(leaf, full, tr.where, dim)
        if size.dim in _dims(tr, line):
            raise tr.refuse(
                "A sum over the channels of every head, of what depends on a sum like "
                "it (attention weights, say), is not Gaussian, and is not covered. It"
            )
        inside = dim.over(size.dim)
        assert inside is not None
        ratio = inside.ratio(tr.ratios)
        if _linear_in(tr, line, dim) is not None:
            places = [len(out), *range(len(out))]
            places = [*places[1 : channels + 1], places[0], *places[channels + 1 :]]
            product = MatMul(
                name="", matrix=tr.emit.channel_sum(size.dim, dim), letters=(),
                x=line, maps=tuple(map(AxisMap.identity, places, full)), shape=out,
                sums=(full[channels],), source=tr.where,
            )  # fmt: skip
            sums.append(Linear.of(tr.emit.emit(product), out, ratio**0.5))
        else:
            mean = mean_over_width(tr, Linear.of(line, full), full)
            means.append(
                tr.emit.call(
                    lambda t, r=ratio: r * jnp.sum(t, axis=channels), [mean], tr.where
                )
            )
    if sums and means:
        raise tr.refuse("A sum over the channels of every head is random in part only")
    if sums:
        leaf = combined(sums, out)
        return Value(shape, "vector", (leaf,), axis, heads, x.power + HALF)
    leaf = total(tr, means, out) if means else Known(np.zeros(out))
    return Value(shape, "fixed", (leaf,), axis, heads, x.power + 1)


def _linear_in(tr: Tracer, ref: Ref, dim: Dim) -> set[Ref] | None:
    """Centred inputs in which a vector is linear, given all others; None without any.

    Only those of the full dimension count: given what a head shares, and what all heads
    share, the vector is then still centred.
    """
    line, kind = tr.emit.lines[ref], tr.emit.types[ref]
    assert isinstance(kind, Vector)
    match line:
        case MatMul() if kind.dim == dim:
            return {matrix_of(tr.emit.lines, line.matrix)[0]}
        case VecIn(mean=float(0.0)) if kind.dim == dim:
            return {ref}
        case LinComb():
            found: set[Ref] = set()
            for t in line.terms:
                part = None if t.x is None else _linear_in(tr, t.x, dim)
                if part is None:
                    return None
                found |= part
            return found
        case Nonlin():
            for i, x in enumerate(line.xs):
                if scalar.linear_factor(line.fn, i) is None:
                    continue
                part = _linear_in(tr, x, dim)
                others = (y for j, y in enumerate(line.xs) if j != i)
                if part and all(part.isdisjoint(_inputs(tr, y)) for y in others):
                    return part
    return None


def _inputs(tr: Tracer, ref: Ref) -> set[Ref]:
    """The matrices and input vectors that a vector is made of at every coordinate."""
    lines, found = tr.emit.lines, set[Ref]()
    for r in coordinatewise(lines, ref):
        line = lines[r]
        if isinstance(line, MatMul):
            found.add(matrix_of(lines, line.matrix)[0])
        elif isinstance(line, VecIn):
            found.add(r)
    return found


def _dims(tr: Tracer, ref: Ref) -> set[Any]:
    types = (tr.emit.types[r] for r in coordinatewise(tr.emit.lines, ref))
    return {t.dim for t in types if isinstance(t, Vector)}
