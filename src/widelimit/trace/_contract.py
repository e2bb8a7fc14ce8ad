"""Contractions: dot products and convolutions of data, vectors and matrices.

Positions of the result and summed positions are letters; which line a contraction
becomes is decided by what the wide axis does in it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..program import (
    AxisMap,
    LinComb,
    MatIn,
    MatMul,
    Moment,
    Readout,
    Ref,
    Tensor,
    TensorArg,
    Term,
    Transpose,
    VecIn,
    ancestors,
    compose,
    read_at,
)
from ._elementwise import pending, scaled
from ._fixed import refuse_labels
from ._layout import Block, blocks
from ._tracer import MatrixSource, Tracer
from ._values import (
    Data,
    Known,
    Leaf,
    Linear,
    MatrixTerm,
    MatrixValue,
    Pending,
    Value,
    is_zero,
    leaf_shape,
)
from ._views import combined, view

HALF = Fraction(1, 2)


@dataclasses.dataclass(frozen=True)
class Letters:
    """The letters of a contraction: those of the result first, then the summed ones.

    Attributes:
        lhs: for every axis of the left operand, where its index comes from.
        rhs: the same for the right operand.
        out: the sizes of the result, with the wide axis as a leaf has it.
        sums: the sizes of the summed letters.
    """

    lhs: tuple[AxisMap, ...]
    rhs: tuple[AxisMap, ...]
    out: tuple[int, ...]
    sums: tuple[int, ...]


def matrix_times(
    tr: Tracer,
    m: MatrixValue,
    x: Value,
    maps_m: dict[int, AxisMap],
    maps_x: Sequence[AxisMap | None],
    contracted: int,
    out_shape: tuple[Any, ...],
    out_axis: int,
    sums: tuple[int, ...],
    copies: AxisMap | None = None,
) -> Value:
    """Sum of A[..] @ x[..] over summed letters: MatMul lines.

    Args:
        tr: the tracer.
        m: the matrix.
        x: the vector (or a constant vector).
        maps_m: for every finite axis of the matrix value, its index over the letters.
        maps_x: for every axis of `x` but the wide one (None), its index.
        contracted: the wide axis of the matrix value that meets the vector.
        out_shape: the shape of the result, in widths.
        out_axis: where its wide axis stands.
        sums: the sizes of the summed letters.
        copies: the index of the copies of the vector's width, where they are groups
            that the matrix does not sum.
    """
    (other,) = [i for i in m.layouts if i != contracted]
    assert x.layout is not None
    if copies is None:
        tr.unify(m.layouts[contracted], x.layout)
    layout, kind = m.layouts[other], "vector"
    power = m.power + x.power + HALF * tr.order(x.layout)
    if tr.dry:
        return Value(out_shape, kind, None, out_axis, layout, power)
    assert x.leaves is not None
    given = [copies if a is None else a for a in maps_x]
    leaves: list[Leaf] = []
    for r, row in enumerate(blocks(layout)):
        out = leaf_shape(out_shape, out_axis, row)
        parts = []
        for c, col in enumerate(blocks(m.layouts[contracted])):
            leaf = x.leaves[c]
            if is_zero(leaf):
                continue
            shape = x.leaf_shape(x.blocks()[c])
            line = tr.emit.ref(leaf, shape, tr.where, tr.dim(col))
            for term in m.terms:
                parts.append(
                    _one_product(
                        tr, term, m, (contracted, other), (r, row), (c, col), line,
                        (maps_m, given), (out, out_axis), sums,
                    )
                )  # fmt: skip
        leaves.append(combined(parts, out) if parts else Known(np.zeros(out)))
    if all(isinstance(leaf, Known) for leaf in leaves):
        kind = "fixed"
    return Value(out_shape, kind, tuple(leaves), out_axis, layout, power)


def _one_product(
    tr: Tracer,
    term: MatrixTerm,
    m: MatrixValue,
    axes: tuple[int, int],
    row: tuple[int, Block],
    col: tuple[int, Block],
    x: Ref,
    maps: tuple[dict[int, AxisMap], Sequence[AxisMap | None]],
    result: tuple[tuple[int, ...], int],
    sums: tuple[int, ...],
) -> Linear:
    contracted, other = axes
    out, out_axis = result
    maps_m, maps_x = maps
    source = tr.matrices[term.name]
    wide = (term.axes[other][0], term.axes[contracted][0])
    matrix, dim, included = _matrix_line(tr, source, wide, row, col)
    letters: list[int] = []
    sizes = list(sums)
    if col[1].count > 1:
        sizes.append(col[1].count)
    copies = len(out) + len(sums)
    x_maps = [
        (
            AxisMap.identity(copies, col[1].count)
            if col[1].count > 1
            else AxisMap((), np.asarray(0))
        )
        if a is None
        else a
        for a in maps_x
    ]
    for p in included:
        if p == wide[0]:
            letters.append(out_axis)
            continue
        if p == wide[1]:
            letters.append(copies)
            continue
        index = _source_index(term, p, maps_m)
        size = source.shape[p]
        assert isinstance(size, int)
        if index.is_identity and index.table.size == size:
            letters.append(index.letters[0])
            continue
        # A chosen matrix of a family: sum over the family, zero elsewhere.
        letter = len(out) + len(sizes)
        sizes.append(size)
        letters.append(letter)
        x_maps[0] = _only_where(x_maps[0], index, letter, size)
    ref = tr.emit.emit(
        MatMul(
            name="", matrix=matrix, letters=tuple(letters), x=x, maps=tuple(x_maps),
            shape=out, sums=tuple(sizes), source=tr.where,
        )
    )  # fmt: skip
    # An entry of the parameter has variance std^2, one of the line std^2 / cols.
    scale = term.scale * dim.ratio(tr.ratios) ** 0.5
    return Linear(
        (dataclasses.replace(Linear.of(ref, out).terms[0], scale=scale),), out
    )


def _source_index(term: MatrixTerm, p: int, maps_m: dict[int, AxisMap]) -> AxisMap:
    for q, position in term.fixed:
        if q == p:
            return AxisMap((), np.asarray(position))
    for i, (q, positions) in enumerate(term.axes):
        if q == p:
            index = maps_m[i]
            if positions is None:
                return index
            return compose(AxisMap((0,), np.asarray(positions)), [index])
    raise AssertionError("every axis of a parameter is read")


def _only_where(x_map: AxisMap, index: AxisMap, letter: int, size: int) -> AxisMap:
    """`x_map`, outside unless `index` names the value of `letter`."""
    letters = tuple(sorted({*x_map.letters, *index.letters, letter}))
    here = AxisMap.identity(letter, size).spread(letters) == index.spread(letters)
    return AxisMap(letters, np.where(here, x_map.spread(letters), -1))


def _matrix_line(
    tr: Tracer,
    source: MatrixSource,
    wide: tuple[int, int],
    row: tuple[int, Block],
    col: tuple[int, Block],
) -> tuple[Ref, Any, list[int]]:
    """The matrix of a pair of blocks, its fan-in, and the parameter axes it has.

    The orientation is that of the first use; the other one is a Transpose line.
    """
    first = tr.orientation.setdefault(source.name, wide)
    numbers = {wide[0]: row[0], wide[1]: col[0]}
    block = {wide[0]: row[1], wide[1]: col[1]}
    name = source.name
    if any(len(blocks(tr.source_layout(source, a))) > 1 for a in wide):
        name = f"{name}_{numbers[source.axes[0]]}_{numbers[source.axes[1]]}"
    included = [
        p
        for p, s in enumerate(source.shape)
        if (isinstance(s, int) and p not in wide) or (p in wide and block[p].count > 1)
    ]
    shape = tuple(
        block[p].count if p in wide else s
        for p in included
        if isinstance(s := source.shape[p], int) or p in wide
    )
    ref = tr.emit.emit(
        MatIn(
            name=name,
            shape=tuple(int(s) for s in shape if isinstance(s, int)),
            rows=tr.dim(block[first[0]]),
            cols=tr.dim(block[first[1]]),
            std=source.std,
        )
    )
    tr.is_parameter(source.name, ref)
    if first != wide:
        ref = tr.emit.emit(Transpose(name="", matrix=ref))
    return ref, tr.dim(block[first[1]]), included


# Vectors ------------------------------------------------------------------------------


def spread_to(
    tr: Tracer,
    leaf: Leaf,
    shape: tuple[int, ...],
    maps: Sequence[AxisMap],
    out: tuple[int, ...],
) -> Leaf:
    """A leaf read at maps over the letters of `out`."""
    if isinstance(leaf, Known):
        value = np.broadcast_to(leaf.value, shape)
        return Known(read_at(value, maps, len(out)))
    if isinstance(leaf, Data):
        ref = tr.emit.data(leaf, shape, tr.where)
        read = tr.emit.call(lambda a: read_at(a, maps, len(out)), [ref], tr.where)
        kind = tr.emit.types[read]
        assert isinstance(kind, Tensor)
        return Data(read, kind.shape)
    return view(tr, tr.emit.linear(leaf, shape, tr.where), maps, out)


def data_times(
    tr: Tracer,
    data: Value,
    x: Value,
    letters: Letters,
    out_shape: tuple[Any, ...],
    out_axis: int | None,
) -> Value:
    """A fixed tensor contracted with a vector along index axes: a combination.

    `letters.lhs` is for the data; for the vector, the wide axis follows the letter of
    the result's wide axis.
    """
    refuse_labels(tr, data)
    power = data.power + x.power
    if tr.dry and x.wide:
        return Value(out_shape, x.kind, None, out_axis, x.layout, power)
    assert x.leaves is not None
    leaves: list[Leaf] = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        out = leaf_shape(out_shape, out_axis, block)
        shape = x.leaf_shape(block)
        maps = [
            AxisMap.identity(out_axis, out[out_axis])
            if i == x.axis and out_axis is not None
            else m
            for i, m in enumerate(letters.rhs)
        ]
        linear = tr.emit.linear(leaf, shape, tr.where)
        if len(linear.terms) != 1 or linear.terms[0].tensors or linear.terms[0].sums:
            dim = None if block is None else tr.dim(block)
            linear = Linear.of(tr.emit.ref(linear, shape, tr.where, dim), shape)
        read = view(tr, linear, maps, out, letters.sums)
        c = _coefficient(tr, data, letters.lhs, (*out, *letters.sums))
        if isinstance(c, TensorArg):
            terms = tuple(
                dataclasses.replace(t, tensors=(*t.tensors, c)) for t in read.terms
            )
        else:
            terms = tuple(dataclasses.replace(t, scale=t.scale * c) for t in read.terms)
        leaves.append(Linear(tuple(t for t in terms if t.scale != 0.0), out))
    return Value(out_shape, x.kind, tuple(leaves), out_axis, x.layout, power)


def _coefficient(
    tr: Tracer, data: Value, maps: Sequence[AxisMap], sizes: tuple[int, ...]
) -> float | TensorArg:
    """A fixed tensor as a coefficient, read at maps over letters of these sizes."""
    plain = all(
        (m.is_identity and m.table.size == sizes[m.letters[0]] == s) or s == 1
        for m, s in zip(maps, data.leaf_shape(None), strict=True)
    )
    if not plain or len({m.letters for m in maps if m.letters}) < sum(
        1 for m in maps if m.letters
    ):
        read = spread_to(tr, data.leaf, data.leaf_shape(None), maps, sizes)
        return tr.emit.coefficient(read, len(sizes), tr.where)
    c = tr.emit.coefficient(data.leaf, len(maps), tr.where)
    if not isinstance(c, TensorArg):
        return c
    letters = tuple(
        -1 if a < 0 or not maps[a].letters else maps[a].letters[0] for a in c.letters
    )
    return TensorArg(c.ref, letters)


def inner_product(
    tr: Tracer, x: Value, y: Value, letters: Letters, out_shape: tuple[Any, ...]
) -> Value:
    """Two vectors contracted over the width: a readout, or n times a moment.

    The maps of `letters` for the wide axes are ignored: both follow the copies.
    """
    assert x.layout is not None
    assert y.layout is not None
    tr.unify(x.layout, y.layout)
    if tr.dry:
        # Whether it is random is known only when lines are: the layout does not depend.
        return Value(
            out_shape, "fixed", (Known(np.ones(letters.out)),), power=Fraction(0)
        )
    assert x.leaves is not None
    assert y.leaves is not None
    readouts: list[Linear] = []
    moments: list[Ref] = []
    for block, a, b in zip(x.blocks(), x.leaves, y.leaves, strict=True):
        assert block is not None
        if is_zero(a) or is_zero(b):
            continue
        part = readout(tr, block, x, a, y, b, letters)
        if part is not None:
            readouts.append(part)
        else:
            moments.append(_moment(tr, block, x, a, y, b, letters))
    power, order = x.power + y.power, tr.order(x.layout)
    if readouts and moments:
        raise tr.refuse("A contraction over the width is a readout in part only")
    if readouts:
        leaf = combined(readouts, letters.out)
        return Value(out_shape, "output", (leaf,), power=power + HALF * order)
    leaf = Known(np.zeros(letters.out))
    if moments:
        leaf = total(tr, moments, letters.out)
    return Value(out_shape, "fixed", (leaf,), power=power + order)


def total(tr: Tracer, refs: Sequence[Ref], shape: tuple[int, ...]) -> Leaf:
    """The sum of tensors of this shape."""
    if len(refs) == 1:
        return Data(refs[0], shape)
    return Data(tr.emit.call(lambda *a: sum(a[1:], a[0]), refs, tr.where), shape)


def _with_copies(
    letters: Letters, block: Block, x: Value, maps: Sequence[AxisMap]
) -> tuple[AxisMap, ...]:
    copies = AxisMap((), np.asarray(0))
    if block.count > 1:
        copies = AxisMap.identity(len(letters.out) + len(letters.sums), block.count)
    return tuple(copies if i == x.axis else m for i, m in enumerate(maps))


def readout(
    tr: Tracer, block: Block, x: Value, a: Leaf, y: Value, b: Leaf, letters: Letters
) -> Linear | None:
    """The contraction as a readout, where one side is a fresh parameter."""
    candidates = (
        (y, b, letters.rhs, x, a, letters.lhs),
        (x, a, letters.lhs, y, b, letters.rhs),
    )
    for value, leaf, maps, other_value, other, other_maps in candidates:
        weights = _weights(tr, leaf)
        if not weights:
            continue
        h = tr.emit.ref(other, other_value.leaf_shape(block), tr.where, tr.dim(block))
        if weights[0].x in ancestors(tr.emit.lines, h):
            continue
        found = []
        for term in weights:
            assert term.x is not None
            full = _with_copies(letters, block, value, maps)
            sums = letters.sums + ((block.count,) if block.count > 1 else ())
            h_maps = list(_with_copies(letters, block, other_value, other_maps))
            index = [compose(m, full) for m in term.maps]
            shape = tr.emit.types[term.x].shape
            v_letters, sums = _plain_letters(index, shape, letters.out, sums, h_maps)
            ref = tr.emit.emit(
                Readout(
                    name="", v=term.x, letters=v_letters, x=h, maps=tuple(h_maps),
                    shape=letters.out, sums=sums, source=tr.where,
                )
            )  # fmt: skip
            scale = term.scale * tr.dim(block).ratio(tr.ratios) ** 0.5
            found.append(Linear.of(ref, letters.out, scale))
        return combined(found, letters.out)
    return None


def _weights(tr: Tracer, leaf: Leaf) -> list[Term]:
    """The terms of readout weights: a fresh parameter, then what perturbs it."""
    if not isinstance(leaf, Linear):
        return []
    fresh, perturbed = [], []
    for t in _flat(tr, leaf.terms, leaf.shape):
        line = None if t.x is None or t.tensors or t.sums else tr.emit.lines[t.x]
        if not isinstance(line, VecIn):
            return []
        if t.x in tr.perturbations:
            perturbed.append(t)
        elif line.mean == 0.0 and line.std != 0.0:
            fresh.append(t)
        else:
            return []
    return fresh + perturbed if len(fresh) == 1 else []


def _flat(tr: Tracer, terms: Sequence[Term], shape: tuple[int, ...]) -> Iterator[Term]:
    """The terms, with those of a combination that was written instead of its line."""
    for t in terms:
        line = None if t.x is None else tr.emit.lines[t.x]
        plain = not t.tensors and not t.sums and tr.emit.is_line(t, shape)
        if isinstance(line, LinComb) and plain:
            inner = [
                dataclasses.replace(u, scale=t.scale * u.scale) for u in line.terms
            ]
            yield from _flat(tr, inner, shape)
        else:
            yield t


def _plain_letters(
    maps: Sequence[AxisMap],
    shape: tuple[int, ...],
    out: tuple[int, ...],
    sums: tuple[int, ...],
    h_maps: list[AxisMap],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of a readout vector as plain letters; chosen positions by masked sums."""
    letters: list[int] = []
    sizes = list(sums)
    for m, size in zip(maps, shape, strict=True):
        if size == 1:
            letters.append(-1)
            continue
        every = (*out, *sizes)
        if m.is_identity and m.table.size == size == every[m.letters[0]]:
            letters.append(m.letters[0])
            continue
        letter = len(out) + len(sizes)
        sizes.append(size)
        letters.append(letter)
        h_maps[0] = _only_where(h_maps[0], m, letter, size)
    return tuple(letters), tuple(sizes)


def _moment(
    tr: Tracer, block: Block, x: Value, a: Leaf, y: Value, b: Leaf, letters: Letters
) -> Ref:
    extra = (block.count,) if block.count > 1 else ()
    full = (*letters.out, *letters.sums, *extra)
    first = spread_to(
        tr, a, x.leaf_shape(block), _with_copies(letters, block, x, letters.lhs), full
    )
    second = spread_to(
        tr, b, y.leaf_shape(block), _with_copies(letters, block, y, letters.rhs), full
    )
    product = pending(tr, "mul", {}, [first, second], full)
    ratio = tr.dim(block).ratio(tr.ratios)
    axes = tuple(range(len(letters.out), len(full)))
    ref = mean_over_width(tr, product, full)
    if not axes and ratio == 1.0:
        return ref
    return tr.emit.call(lambda t: ratio * jnp.sum(t, axis=axes), [ref], tr.where)


def mean_over_width(tr: Tracer, leaf: Leaf, shape: tuple[int, ...]) -> Ref:
    """E of a leaf: a Moment line."""
    match leaf:
        case Pending():
            return tr.emit.emit(
                Moment(
                    name="",
                    fn=leaf.fn,
                    xs=leaf.xs,
                    tensors=leaf.tensors,
                    source=tr.where,
                )
            )
        case Linear():
            line = pending(tr, "add", {}, [leaf, Known(np.zeros(()))], shape)
            assert isinstance(line, Pending) or not leaf.terms
            return mean_over_width(tr, line, shape)
        case _:
            return tr.emit.data(leaf, shape, tr.where)


def products(
    tr: Tracer,
    x: Value,
    y: Value,
    letters: Letters,
    out_shape: tuple[Any, ...],
    out_axis: int,
) -> Value:
    """Two vectors multiplied along the width, then summed over letters.

    One of them may have no wide axis here: it is then the same along the whole width.
    """
    base = x if x.wide else y
    if x.layout is not None and y.layout is not None:
        tr.unify(x.layout, y.layout)
    power = x.power + y.power
    kind = "vector" if "vector" in (x.kind, y.kind) else "fixed"
    if tr.dry:
        return Value(out_shape, kind, None, out_axis, base.layout, power)
    leaves: list[Leaf] = []
    for i, block in enumerate(base.blocks()):
        out = leaf_shape(out_shape, out_axis, block)
        full = (*out, *letters.sums)
        wide = AxisMap.identity(out_axis, out[out_axis])
        parts = []
        for v, maps in ((x, letters.lhs), (y, letters.rhs)):
            assert v.leaves is not None
            leaf, own = v.leaves[i if v.wide else 0], block if v.wide else None
            at = [wide if a == v.axis else m for a, m in enumerate(maps)]
            parts.append(spread_to(tr, leaf, v.leaf_shape(own), at, full))
        leaves.append(_product_sum(tr, parts[0], parts[1], out, letters.sums))
    return Value(out_shape, kind, tuple(leaves), out_axis, base.layout, power)


def _product_sum(
    tr: Tracer, a: Leaf, b: Leaf, out: tuple[int, ...], sums: tuple[int, ...]
) -> Leaf:
    full = (*out, *sums)
    if isinstance(a, Known | Data):
        a, b = b, a
    if isinstance(b, Known | Data):
        product: Leaf = scaled(tr, a, b, full)
    else:
        product = pending(tr, "mul", {}, [a, b], full)
    if not sums:
        return product
    line = tr.emit.ref(product, full, tr.where)
    maps = tuple(AxisMap.identity(i, s) for i, s in enumerate(full))
    return Linear((Term(line, 1.0, (), maps, sums),), out)
