"""Products that no line of a program holds, kept until they meet what they lack.

The gradient of a matrix is an outer product of wide vectors; the gradient of a squared
loss multiplies a wide vector with a finite random output. Neither is a line. But the
matrix times a vector is a vector again, and the inner product with the readout's
weights an output. So such an array is a sum of products of values, written as `einsum`
would with a label for every axis; whatever is linear moves labels, and a contraction
is made as soon as both of its sides are there.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import Equation, Literal, Var, bind, enable_x64, trace
from ..program import Part, VecIn, ancestors
from ._sizes import Shape, Size, finite, runs
from ._tracer import DEFERRED, RuleFn, Tracer
from ._values import (
    Deferred,
    Factor,
    Known,
    Linear,
    MatrixValue,
    Value,
    known,
)
from ._views import axis_maps

HALF = Fraction(1, 2)


def deferred_rule(*names: str) -> Callable[[RuleFn], RuleFn]:
    """Register a function as the rule of primitives for operands that no line holds."""

    def register(f: RuleFn) -> RuleFn:
        DEFERRED.update(dict.fromkeys(names, f))
        return f

    return register


def product(
    x: Any,
    labels_x: Sequence[int],
    y: Any,
    labels_y: Sequence[int],
    shape: Shape,
    reason: str,
) -> Deferred:
    """Two values multiplied; what their labels share and the result lacks is summed."""
    terms = []
    free = max([len(shape), *(a + 1 for a in (*labels_x, *labels_y))])
    for s in _terms(x):
        for t in _terms(y):
            first = _renamed(s, dict(enumerate(labels_x)), free)
            taken = max([free, *(a + 1 for f in first for a in f.labels)])
            terms.append((*first, *_renamed(t, dict(enumerate(labels_y)), taken)))
    return Deferred(shape, tuple(terms), reason)


def _terms(x: Any) -> tuple[tuple[Factor, ...], ...]:
    if isinstance(x, Deferred):
        return x.terms
    return ((Factor(x, tuple(range(len(x.shape)))),),)


def summands(x: Any) -> list[Any]:
    """What is added up: values, and products that are none."""
    if not isinstance(x, Deferred):
        return [x]
    whole = tuple(range(len(x.shape)))
    return [
        term[0].value
        if len(term) == 1 and term[0].labels == whole
        else dataclasses.replace(x, terms=(term,))
        for term in x.terms
    ]


def _renamed(
    term: Iterable[Factor], labels: Mapping[int, int], free: int
) -> tuple[Factor, ...]:
    """The factors with other labels; what has none is summed, from `free` on."""
    free = max([free, *(a + 1 for a in labels.values())])
    found = dict(labels)
    out = []
    for f in term:
        for a in f.labels:
            if a not in found:
                found[a] = free
                free += 1
        out.append(Factor(f.value, tuple(found[a] for a in f.labels)))
    return tuple(out)


# Contractions -------------------------------------------------------------------------


def finished(tr: Tracer, x: Deferred) -> Any:
    """The value, as far as lines can hold it."""
    values: list[Any] = []
    matrices: list[tuple[Factor, ...]] = []
    rest: list[tuple[Factor, ...]] = []
    for given in x.terms:
        term = _simplified(tr, list(given), len(x.shape))
        if any(_is_zero(f.value) for f in term):
            continue
        value = _collapsed(tr, term, x.shape)
        if value is None:
            rest.append(term)
        elif isinstance(value, MatrixValue):
            matrices.append(term)
        else:
            values.append(value)
    if matrices and not rest:
        values = [f.value for (f,) in matrices]
    left = dataclasses.replace(x, terms=(*matrices, *rest))
    if not values:
        return left
    total = added(tr, values)
    return _apply(tr, lax.add, total, left) if rest else total


def added(tr: Tracer, parts: Sequence[Any]) -> Any:
    """The sum of values and products."""
    return functools.reduce(lambda a, b: _apply(tr, lax.add, a, b), parts)


def _simplified(tr: Tracer, term: list[Factor], ndim: int) -> tuple[Factor, ...]:
    """The term with all products made that meet along a wide axis, or are scalings."""
    while True:
        pair = _meeting(term, ndim) or _scaling(term, ndim)
        if pair is None:
            return tuple(_alone(tr, f, term, ndim) for f in term)
        x, y = pair
        others = [f for f in term if f is not x and f is not y]
        term = [*others, _together(tr, x, y, _kept(others, ndim))]


def _kept(others: Iterable[Factor], ndim: int) -> set[int]:
    """The labels that are not summed in the product of all other factors."""
    return set(range(ndim)) | {a for f in others for a in f.labels}


def _scaling(term: Sequence[Factor], ndim: int) -> tuple[Factor, Factor] | None:
    """A vector and a fixed tensor that makes it no larger."""
    for x in term:
        if x.value.kind != "fixed" or x.wide:
            continue
        for y in term:
            if isinstance(y.value, Deferred | MatrixValue) or not y.wide:
                continue
            kept = _kept((f for f in term if f is not x and f is not y), ndim)
            gone = set(x.labels) & set(y.labels) - kept
            if len({*x.labels, *y.labels} - gone) <= len(y.labels):
                return y, x
    return None


def _alone(tr: Tracer, f: Factor, term: Sequence[Factor], ndim: int) -> Factor:
    """A factor summed over what nothing else has, without summed axes of size one."""
    if isinstance(f.value, Deferred | MatrixValue):
        return f
    others = {a for g in term if g is not f for a in g.labels}
    sizes = zip(f.labels, f.value.shape, strict=True)
    f = _squeezed(tr, f, {a for a, s in sizes if a >= ndim and s == 1})
    keep = {a for a in f.labels if a < ndim or a in others}
    return f if keep == set(f.labels) else _summed(tr, f, keep)


def _squeezed(tr: Tracer, f: Factor, gone: Collection[int]) -> Factor:
    """A factor without some labels, whose axes have size one."""
    axes = [i for i, a in enumerate(f.labels) if a in gone]
    if not axes:
        return f
    shape = tuple(s for i, s in enumerate(f.value.shape) if i not in axes)
    value = _apply(tr, lambda a: lax.squeeze(a, axes), f.value, shape=shape)
    return Factor(value, tuple(a for a in f.labels if a not in gone))


def _summed(tr: Tracer, f: Factor, keep: set[int]) -> Factor:
    axes = [i for i, a in enumerate(f.labels) if a not in keep]
    kept = tuple(a for a in f.labels if a in keep)
    shape = tuple(f.value.shape[f.labels.index(a)] for a in kept)
    value = _apply(
        tr, lambda a: lax.reduce(a, 0.0, lax.add, axes), f.value, shape=shape
    )
    return Factor(value, kept)


def _meeting(term: Sequence[Factor], ndim: int) -> tuple[Factor, Factor] | None:
    """Two factors along one wide axis, vectors before a matrix and a vector."""
    for matrices in (0, 1):
        for i, x in enumerate(term):
            for y in term[i + 1 :]:
                both = (x.value, y.value)
                if sum(isinstance(v, MatrixValue) for v in both) != matrices:
                    continue
                shared = set(x.wide) & set(y.wide)
                # The entries of a matrix are not multiplied, only summed.
                alone = not any(
                    shared & set(f.labels) for f in term if f is not x and f is not y
                )
                if shared and (
                    not matrices or (alone and all(a >= ndim for a in shared))
                ):
                    return x, y
    return None


def _together(tr: Tracer, x: Factor, y: Factor, keep: set[int]) -> Factor:
    """The product of two factors, summed over the labels they share but for `keep`."""
    shared = [a for a in x.labels if a in y.labels]
    summed = [a for a in shared if a not in keep]
    batch = [a for a in shared if a in keep]
    own = [[a for a in f.labels if a not in shared] for f in (x, y)]
    labels = (*batch, *own[0], *own[1])
    sizes = dict(zip(x.labels + y.labels, x.value.shape + y.value.shape, strict=True))
    places = [[f.labels.index(a) for a in summed] for f in (x, y)]
    batches = [[f.labels.index(a) for a in batch] for f in (x, y)]
    numbers = ((places[0], places[1]), (batches[0], batches[1]))
    value = _apply(
        tr, lambda a, b: lax.dot_general(a, b, numbers), x.value, y.value,
        shape=tuple(sizes[a] for a in labels),
    )  # fmt: skip
    return Factor(value, labels)


def _collapsed(tr: Tracer, term: Sequence[Factor], shape: Shape) -> Any:
    """The term as one value; None where it is not one."""
    wide = [a for f in term for a in f.wide]
    outputs = [f for f in term if getattr(f.value, "kind", "") == "output"]
    whole = tuple(range(len(shape)))
    if len(term) == 1 and term[0].labels == whole:
        return term[0].value
    matrices = any(isinstance(f.value, Deferred | MatrixValue) for f in term)
    if matrices or len(wide) + len(outputs) > 1 or not set(wide) <= set(whole):
        return None
    if sum(isinstance(s, Size) for s in shape) > len(wide):
        return None  # constant along a wide axis: what it meets tells its layout
    return _read(tr, _contracted(tr, term, set(whole)), shape)


def _contracted(tr: Tracer, term: Sequence[Factor], keep: set[int]) -> Factor:
    """All factors as one, fixed tensors first."""
    order = {"fixed": 0, "output": 1, "vector": 2}
    factors = sorted(term, key=lambda f: (len(f.wide), order.get(f.value.kind, 3)))
    total = factors[0]
    for i, f in enumerate(factors[1:], 1):
        later = {a for g in factors[i + 1 :] for a in g.labels}
        total = _together(tr, total, f, keep | later)
    return total if set(total.labels) <= keep else _summed(tr, total, keep)


def _read(tr: Tracer, x: Factor, shape: Shape) -> Any:
    """A factor as an array of this shape: axes in order, missing ones repeated."""
    order = sorted(range(len(x.labels)), key=lambda i: x.labels[i])
    value = x.value
    if order != list(range(len(order))):
        moved = tuple(value.shape[i] for i in order)
        value = _apply(tr, lambda a: lax.transpose(a, order), value, shape=moved)
    labels = tuple(x.labels[i] for i in order)
    if labels == tuple(range(len(shape))):
        return value
    params = {"shape": shape, "broadcast_dimensions": labels, "sharding": None}
    out = (Var(shape, value.dtype),)
    e = Equation("broadcast_in_dim", params, (), out, tr.where, lax.broadcast_in_dim_p)
    return tr.apply(e, [value])[0]


def _apply(tr: Tracer, f: Any, *values: Any, shape: Shape | None = None) -> Any:
    """A JAX function of one primitive, of values."""

    def struct(v: Any) -> jax.ShapeDtypeStruct:
        sizes = tuple(2 if isinstance(s, Size) else s for s in v.shape)
        return jax.ShapeDtypeStruct(sizes, v.dtype)

    graph, _ = trace(f, *map(struct, values))
    (e,) = graph.equations
    if len(e.inputs) > len(values):
        values += tuple(known(a.value) for a in e.inputs if isinstance(a, Literal))
    out = Var(values[0].shape if shape is None else shape, e.outputs[0].dtype)
    return tr.apply(dataclasses.replace(e, outputs=(out,), source=""), list(values))[0]


def _is_zero(value: Any) -> bool:
    return isinstance(value, Value) and value.is_zero


# Orders -------------------------------------------------------------------------------


def _power(term: Iterable[Factor]) -> Fraction:
    return sum((f.value.power for f in term), Fraction(0))


def _added(tr: Tracer, x: Value, by: Deferred) -> Any:
    """A value beside what no line holds: of lower order, it perturbs the value."""
    if tr.dry or not by.terms:
        return x
    top = x.power
    parts: list[tuple[Part, ...]] = [() for _ in x.blocks()]
    for term in by.terms:
        gap = top - _power(term)
        if gap < HALF:
            raise tr.refuse(by.reason)
        tr.note(
            f"A term of order n^{top - gap} was dropped beside one of order n^{top}"
        )
        if gap == HALF and x.wide:
            for i, part in enumerate(_parts(tr, term, x, by)):
                parts[i] += (part,)
    if not any(parts):
        return x
    moved = tr.perturbed(x, parts)
    return _apply(tr, lax.add, x, moved)


def _parts(
    tr: Tracer, term: Sequence[Factor], x: Value, by: Deferred
) -> Iterator[Part]:
    """A product of an output and a vector, for every block of the vector's width."""
    outputs = [f for f in term if f.value.kind == "output"]
    others = [f for f in term if f.value.kind != "output"]
    ndim = len(by.shape)
    if not any(f.wide for f in others) and x.axis is not None:
        others.append(Factor(_ones(x), (x.axis,)))
    if len(outputs) > 1 or sum(len(f.wide) for f in others) != 1:
        raise tr.refuse(by.reason)
    summed = sorted({a for f in outputs for a in f.labels if a >= ndim})
    keep = {*range(ndim), *summed}
    places = {a: i for i, a in enumerate((*range(ndim), *summed))}
    vector = _contracted(tr, others, keep)
    vector = Factor(vector.value, tuple(places[a] for a in vector.labels))
    sizes = {
        a: s for f in outputs for a, s in zip(f.labels, f.value.shape, strict=True)
    }
    shape = (*by.shape, *(sizes[a] for a in summed))
    value = _read(tr, vector, shape)
    coefficient, letters = None, ()
    for f in outputs:
        size = tuple(finite(s) for s in f.value.shape)
        coefficient = tr.emit.ref(f.value.leaf, size, tr.where)
        letters = tuple(places[a] for a in f.labels)
    assert value.leaves is not None
    for block, leaf in zip(value.blocks(), value.leaves, strict=True):
        inner = value.leaf_shape(block)
        ref = tr.emit.ref(leaf, inner, tr.where, tr.dim(block))
        yield Part(ref, coefficient, letters)


def _ones(x: Value) -> Value:
    """The vector of ones along the wide axis of a value."""
    assert x.axis is not None
    shapes = [(1 if block is None else block.count,) for block in x.blocks()]
    leaves = tuple(Known(np.ones(shape)) for shape in shapes)
    return Value((x.shape[x.axis],), "fixed", leaves, 0, x.layout)


# Rules --------------------------------------------------------------------------------


@deferred_rule(
    "copy", "copy_p", "convert_element_type", "stop_gradient", "reduce_precision"
)
def _same(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    del tr, e
    return [ins[0]]


@deferred_rule("neg")
def _negative(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    return [_times(tr, ins[0], known(-1.0))]


@deferred_rule("mul")
def _multiply(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    return [_times(tr, *ins)]


def _times(tr: Tracer, x: Any, y: Any) -> Any:
    shape = x.shape or y.shape
    if x.shape and y.shape:
        pairs = zip(x.shape, y.shape, strict=True)
        shape = tuple(b if a == 1 else a for a, b in pairs)
    free, labels = len(shape), []
    for v in (x, y):
        # An axis of size one stands for a longer one: its one entry is "summed".
        labels.append([i if s == shape[i] else free + i for i, s in enumerate(v.shape)])
        free += len(shape)
    reason = next(v.reason for v in (x, y) if isinstance(v, Deferred))
    return finished(tr, product(x, labels[0], y, labels[1], shape, reason))


@deferred_rule("div")
def _divide(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, y = ins
    if isinstance(y, Deferred):
        raise tr.refuse(y.reason)
    one = known(np.ones((), y.dtype))
    return [_times(tr, x, _apply(tr, lax.div_p.bind, one, y, shape=y.shape))]


@deferred_rule("integer_pow", "square")
def _power_of(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,) = ins
    exponent = e.params.get("y", 2)
    if exponent < 1:
        raise tr.refuse(x.reason)
    return [functools.reduce(lambda a, b: _times(tr, a, b), [x] * exponent)]


@deferred_rule("add", "add_any", "sub")
def _add(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, y = ins
    if e.name == "sub":
        y = _apply(tr, lax.neg, y)
    lines = [v for v in (x, y) if isinstance(v, Value) and not v.is_zero]
    deferred = [v for v in (x, y) if not isinstance(v, Value)]
    if not deferred:
        return [_apply(tr, lax.add, x, y)]
    reason = next((v.reason for v in deferred if isinstance(v, Deferred)), "")
    terms = _gathered(tr, [t for v in deferred for t in _terms(v)])
    total = Deferred(e.outputs[0].shape, terms, reason)
    _unify(tr, (*terms, *(t for v in lines for t in _terms(v))), len(total.shape))
    return [_added(tr, lines[0], total) if lines else finished(tr, total)]


def _gathered(
    tr: Tracer, terms: Sequence[tuple[Factor, ...]]
) -> tuple[tuple[Factor, ...], ...]:
    """The terms, those that differ in one vector only added up."""
    found: list[tuple[Factor, ...]] = []
    for term in terms:
        for i, before in enumerate(found):
            both = _added_vectors(tr, before, term)
            if both is not None:
                found[i] = both
                break
        else:
            found.append(term)
    return tuple(found)


def _added_vectors(
    tr: Tracer, s: Sequence[Factor], t: Sequence[Factor]
) -> tuple[Factor, ...] | None:
    """The sum of two terms as one; None if they differ in more than a vector."""
    counts = [collections.Counter((id(f.value), f.labels) for f in u) for u in (s, t)]
    rests = [(counts[0] - counts[1]), (counts[1] - counts[0])]
    first, second = (
        [f for f in u if (id(f.value), f.labels) in rest]
        for u, rest in zip((s, t), rests, strict=True)
    )
    if [r.total() for r in rests] != [1, 1] or len(first) != 1 or len(second) != 1:
        return None
    (x,), (y,) = first, second
    plain = all(isinstance(f.value, Value) and f.wide for f in (x, y))
    if not plain or set(x.labels) != set(y.labels) or x.value.power != y.value.power:
        return None
    order = {a: i for i, a in enumerate(x.labels)}
    moved = Factor(y.value, tuple(order[a] for a in y.labels))
    value = _apply(tr, lax.add, x.value, _read(tr, moved, x.value.shape))
    total = Factor(value, x.labels)
    return (*(f for f in s if f is not x), total)


def _unify(tr: Tracer, terms: Sequence[tuple[Factor, ...]], ndim: int) -> None:
    """State that the wide axes of summands are laid out alike."""
    known_as: dict[int, Any] = {}
    for f in (f for term in terms for f in term):
        layouts = (
            f.value.layouts
            if isinstance(f.value, MatrixValue)
            else {f.value.axis: f.value.layout}
        )
        for axis, a in enumerate(f.labels):
            if a < ndim and layouts.get(axis) is not None:
                tr.unify(known_as.setdefault(a, layouts[axis]), layouts[axis])


@deferred_rule("transpose")
def _transpose(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), permutation = ins, tuple(e.params["permutation"])
    return [_relabelled(x, {a: i for i, a in enumerate(permutation)}, e)]


def _relabelled(x: Deferred, labels: Mapping[int, int], e: Equation) -> Deferred:
    """Axis i goes to `labels[i]`, or (where there is none) is summed."""
    shape = e.outputs[0].shape
    terms = tuple(_renamed(t, labels, len(shape)) for t in x.terms)
    return Deferred(shape, terms, x.reason)


@deferred_rule("broadcast_in_dim")
def _broadcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), shape = ins, e.outputs[0].shape
    target = e.params["broadcast_dimensions"]
    # An axis of size one that is repeated is summed: its one entry stands everywhere.
    pairs = enumerate(zip(target, x.shape, strict=True))
    return [_relabelled(x, {i: t for i, (t, s) in pairs if shape[t] == s}, e)]


@deferred_rule("reshape", "squeeze", "expand_dims")
def _reshape(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, shape = permuted(tr, e, ins[0]), e.outputs[0].shape
    places, merged = {}, []
    for run in runs(x.shape, shape) or [((0, len(x.shape)), (0, len(shape)))]:
        old, new = (
            [a for a in range(*axes) if sizes[a] != 1]
            for axes, sizes in zip(run, (x.shape, shape), strict=True)
        )
        if len(old) == len(new) <= 1:
            places.update(zip(old, new, strict=True))
        else:
            merged.append((old, new))
    terms = x.terms
    for old, new in merged:
        sizes = [shape[a] for a in new]
        # Until all are there, new axes have labels below zero.
        at = [-1 - a for a in new]
        terms = [_regrouped(tr, x, t, old, at, sizes) for t in terms]
        places.update(zip(at, new, strict=True))
    return [_relabelled(dataclasses.replace(x, terms=tuple(terms)), places, e)]


def permuted(tr: Tracer, e: Equation, x: Any) -> Any:
    """What is reshaped, with its axes in the order in which a reshape reads them."""
    order = e.params.get("dimensions") if e.name == "reshape" else None
    if order is None:
        return x
    out = (Var(tuple(x.shape[a] for a in order), x.dtype),)
    params = {"permutation": tuple(order)}
    before = Equation("transpose", params, (), out, tr.where, lax.transpose_p)
    return tr.apply(before, [x])[0]


def _regrouped(
    tr: Tracer,
    x: Deferred,
    term: Sequence[Factor],
    old: Sequence[int],
    new: Sequence[int],
    sizes: Sequence[Any],
) -> Sequence[Factor]:
    """The term with axes merged or split, which one factor of it has."""
    holders = [f for f in term if not set(old).isdisjoint(f.labels)]
    if not holders:
        return term
    random = [f for f in holders if f.value.kind != "fixed"]
    if len(random) > 1 or any(isinstance(f.value, MatrixValue) for f in holders):
        raise tr.refuse(f"{x.reason} Its axes are merged or split. The reshape")
    every = {a for g in term for a in g.labels}
    f = functools.reduce(lambda g, h: _together(tr, g, h, every), holders)
    known_as = dict(zip(f.labels, f.value.shape, strict=True))
    own = [a for a in f.labels if a not in old]
    order = {a: i for i, a in enumerate((*own, *old))}
    before = tuple(known_as[a] if a in known_as else x.shape[a] for a in order)
    value = _read(tr, Factor(f.value, tuple(order[a] for a in f.labels)), before)
    value = reshaped(tr, value, (*(known_as[a] for a in own), *sizes))
    return [*(g for g in term if g not in holders), Factor(value, (*own, *new))]


def reshaped(tr: Tracer, x: Any, shape: Shape) -> Any:
    """The same entries in another shape."""
    params = {"new_sizes": shape, "dimensions": None, "sharding": None}
    out = (Var(shape, x.dtype),)
    e = Equation("reshape", params, (), out, tr.where, lax.reshape_p)
    return tr.apply(e, [x])[0]


@deferred_rule("reduce_sum")
def _sum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axes = ins, e.params["axes"]
    kept = [a for a in range(len(x.shape)) if a not in axes]
    total = counted(tr, x, {a: x.shape[a] for a in axes})
    places = {a: i for i, a in enumerate(kept)}
    return [finished(tr, _relabelled(total, places, e))]


@deferred_rule("pad")
def _pad(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, value = ins
    if isinstance(value, Deferred) or not _is_zero(value):
        raise tr.refuse(f"{x.reason} by `pad` with numbers other than zero")
    for axis, edges in enumerate(e.params["padding_config"]):
        if tuple(edges) != (0, 0, 0):
            if isinstance(x.shape[axis], Size):
                raise tr.refuse(f"{x.reason} by `pad` along a wide axis")
            move = functools.partial(_padded, tr, edges=edges)
            x = _along(tr, x, axis, e.outputs[0].shape[axis], move)
    return [x]


def _padded(tr: Tracer, x: Value, at: int, shape: Shape, edges: Any) -> Any:
    config = [edges if i == at else (0, 0, 0) for i in range(len(shape))]
    return _apply(tr, lambda a: lax.pad(a, 0.0, config), x, shape=shape)


@deferred_rule("slice")
def _slice(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), p = ins, e.params
    steps = p["strides"] or (1,) * len(x.shape)
    cuts = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    for axis, (start, stop, step) in enumerate(cuts):
        if (start, stop, step) != (0, x.shape[axis], 1):
            move = functools.partial(cut, tr, start=start, stop=stop, step=step)
            x = _along(tr, x, axis, e.outputs[0].shape[axis], move)
    return [x]


def cut(
    tr: Tracer, x: Any, at: int, shape: Shape, start: Any, stop: Any, step: int = 1
) -> Any:
    """Some positions of one axis; `shape` is that of the result."""

    def only(there: Any, elsewhere: Sequence[Any]) -> tuple[Any, ...]:
        return (*elsewhere[:at], there, *elsewhere[at + 1 :])

    params = {
        "start_indices": only(start, (0,) * len(shape)),
        "limit_indices": only(stop, x.shape),
        "strides": only(step, (1,) * len(shape)),
    }
    out = (Var(shape, x.dtype),)
    return tr.apply(Equation("slice", params, (), out, "", lax.slice_p), [x])[0]


@deferred_rule("rev")
def _rev(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,) = ins
    for axis in e.params["dimensions"]:
        if isinstance(x.shape[axis], Size):
            raise tr.refuse(f"{x.reason} by `rev` along a wide axis")
        x = _along(tr, x, axis, x.shape[axis], functools.partial(_reversed, tr))
    return [x]


def _reversed(tr: Tracer, x: Value, at: int, shape: Shape) -> Any:
    return _apply(tr, lambda a: lax.rev(a, (at,)), x, shape=shape)


@deferred_rule("split")
def _split(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axis, start, parts = ins, e.params["axis"], 0, []
    for size in e.params["sizes"]:
        move = functools.partial(cut, tr, start=start, stop=start + size)
        parts.append(_along(tr, x, axis, size, move))
        start = start + size
    return parts


@deferred_rule("cumsum")
def _cumsum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axis = ins, e.params["axis"]
    if isinstance(x.shape[axis], Size):
        raise tr.refuse(f"{x.reason} by `cumsum` along a wide axis")
    ones = np.ones((x.shape[axis],) * 2)
    table = np.tril(ones) if e.params["reverse"] else np.triu(ones)
    return [with_table(tr, x, axis, table)]


def with_weights(tr: Tracer, x: Any, axis: int, weights: np.ndarray) -> Any:
    """The positions of one axis multiplied by numbers."""
    axes, reason = range(len(x.shape)), getattr(x, "reason", "")
    return finished(tr, product(x, axes, known(weights), [axis], x.shape, reason))


def with_table(tr: Tracer, x: Deferred, axis: int, table: np.ndarray) -> Any:
    """The sum over i of x[.., i, ..] table[i, j], with j in the place of i."""
    free = 1 + max((a for t in x.terms for f in t for a in f.labels), default=0)
    free = max(free, len(x.shape))
    places = {a: a for a in range(len(x.shape))} | {axis: free}
    other = Factor(known(table), (free, axis))
    terms = tuple((*_renamed(t, places, free + 1), other) for t in x.terms)
    shape = (*x.shape[:axis], table.shape[1], *x.shape[axis + 1 :])
    total = dataclasses.replace(x, shape=shape, terms=terms)
    return finished(tr, counted(tr, total, {free: x.shape[axis]}))


@deferred_rule("scatter-add")
def _scatter_add(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    return [scatter_add(tr, e, *ins)]


def scatter_add(tr: Tracer, e: Equation, x: Any, indices: Any, update: Any) -> Any:
    """Sums into positions: the update, and a table for every axis of the result."""
    at = None if isinstance(indices, Deferred) or indices.wide else indices.leaves
    if at is None or not isinstance(at[0], Known):
        raise tr.refuse("An array is added to at positions that depend on data")
    whole, part = (tuple(2 if isinstance(s, Size) else s for s in v.shape)
                   for v in (x, update))  # fmt: skip
    maps = axis_maps(_targets(e, at[0].value, whole, part), whole)
    uses = collections.Counter(a for m in maps for a in m.letters)
    places, tables, free = {}, [], max(len(whole), len(part))
    for a, m in enumerate(maps):
        if m.is_identity and uses[m.letters[0]] == 1 and m.table.size == whole[a]:
            places[m.letters[0]] = a
        elif isinstance(x.shape[a], Size):
            raise tr.refuse("Finitely many coordinates of a wide vector are added to")
        else:
            reads = np.arange(whole[a]).reshape(-1, *[1] * m.table.ndim) == m.table
            tables.append((known(reads.astype(float)), a, m.letters))
    summed = {a: free + a for a in range(len(part)) if a not in places}
    places |= summed
    factors = [Factor(t, (a, *(places[b] for b in bs))) for t, a, bs in tables]
    terms = tuple(
        (*_renamed(t, places, free + len(part)), *factors) for t in _terms(update)
    )
    reason = getattr(update, "reason", "A sum into positions")
    total = Deferred(x.shape, terms, reason)
    total = counted(tr, total, {b: update.shape[a] for a, b in summed.items()})
    moved = finished(tr, total)
    return moved if _is_zero(x) else added(tr, [x, moved])


def _targets(
    e: Equation, indices: np.ndarray, whole: Sequence[int], part: Sequence[int]
) -> np.ndarray:
    """The flat position that every entry of an update goes to; -1 for none."""

    def place(update: Any) -> Any:
        return bind(e, [jnp.zeros(whole), indices, update])[0]

    count = math.prod(part)
    with jax.ensure_compile_time_eval(), enable_x64():
        each = jax.vmap(place)(jnp.eye(count).reshape(count, *part))
        hits = np.asarray(each).reshape(count, -1)
    return np.where(hits.any(1), hits.argmax(1), -1).reshape(part)


def _along(
    tr: Tracer,
    x: Deferred,
    axis: int,
    size: Any,
    move: Callable[[Any, int, Shape], Any],
) -> Deferred:
    """What moves positions along one axis, done to every factor that has it."""
    before, terms = x.shape[axis], []
    for term in x.terms:
        if not any(axis in f.labels for f in term) and isinstance(before, int):
            # A product that is constant along the axis is zero outside.
            term = (*term, Factor(known(np.ones(before)), (axis,)))
        moved = []
        for f in term:
            if axis in f.labels:
                at = f.labels.index(axis)
                shape = (*f.value.shape[:at], size, *f.value.shape[at + 1 :])
                f = Factor(move(f.value, at, shape), f.labels)
            moved.append(f)
        terms.append(tuple(moved))
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return dataclasses.replace(x, shape=shape, terms=tuple(terms))


@deferred_rule("dot_general")
def _dot_general(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    reason = next(v.reason for v in ins if isinstance(v, Deferred))
    x, y = ins
    return [contraction(tr, e, x, y, reason)]


def contraction(tr: Tracer, e: Equation, x: Any, y: Any, reason: str) -> Any:
    """A `dot_general`, as far as lines can hold it."""
    labels = _dot_labels(e, x, y)
    total = product(x, labels[0], y, labels[1], e.outputs[0].shape, reason)
    sizes = dict(zip(labels[0], x.shape, strict=True))
    summed = {a: s for a, s in sizes.items() if a >= len(total.shape)}
    return finished(tr, counted(tr, total, summed))


def counted(tr: Tracer, x: Deferred, summed: Mapping[int, Any]) -> Deferred:
    """Along a summed axis that no factor has, the same number is added up."""
    terms = []
    for term in x.terms:
        present = {a for f in term for a in f.labels}
        counts = [_count(tr, s) for a, s in summed.items() if a not in present]
        terms.append((*term, *(Factor(v, ()) for v in counts)))
    return dataclasses.replace(x, terms=tuple(terms))


def _count(tr: Tracer, size: Any) -> Value:
    if isinstance(size, Size):
        return known(tr.width_ratio(size), Fraction(0 if tr.dry else 1))
    return known(float(size))


def _dot_labels(e: Equation, x: Any, y: Any) -> tuple[list[int], list[int]]:
    """The labels of both operands: the axes of the result, then what is summed."""
    contract, batch = e.params["dimension_numbers"]
    found: list[dict[int, int]] = [{}, {}]
    at = 0
    for pair in zip(*batch, strict=True):
        for side, axis in enumerate(pair):
            found[side][axis] = at
        at += 1
    for side, v in enumerate((x, y)):
        for axis in range(len(v.shape)):
            if axis not in (*contract[side], *batch[side]):
                found[side][axis] = at
                at += 1
    for pair in zip(*contract, strict=True):
        for side, axis in enumerate(pair):
            found[side][axis] = at
        at += 1
    first, second = ([places[i] for i in sorted(places)] for places in found)
    return first, second


@deferred_rule("select_n")
def _select(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    which, *cases = ins
    if isinstance(which, Deferred) or len(cases) != 2:
        raise tr.refuse(next(v.reason for v in ins if isinstance(v, Deferred)))
    convert = functools.partial(lax.convert_element_type, new_dtype=jnp.float64)
    second = _apply(tr, convert, which)
    first = _apply(tr, lax.sub_p.bind, known(1.0), second, shape=second.shape)
    parts = [
        _times(tr, case, weight)
        if isinstance(case, Deferred)
        else _apply(tr, lax.mul, case, weight)
        for case, weight in zip(cases, (first, second), strict=True)
        if not _is_zero(case)
    ]
    return [added(tr, parts)]


def on_one_factor(
    tr: Tracer,
    x: Deferred,
    axes: Sequence[int],
    shape: Shape,
    places: Mapping[int, int],
    f: Callable[[Value, Shape], Any],
) -> Deferred | None:
    """A linear function of a product that mixes axes which one factor has alone.

    Args:
        tr: the tracer.
        x: the product, of one term.
        axes: the axes that are mixed, those of the result in another number and order.
        shape: the shape of the result.
        places: where the other axes go.
        f: the function, given a value, and the shape of the result; other axes have
            size one where the factor does not have them.

    Returns:
        None where several factors have these axes, or one lacks some of them.
    """
    (term,) = x.terms
    holders = [g for g in term if not set(axes).isdisjoint(g.labels)]
    if len(holders) != 1:
        return None
    (held,) = holders
    inside = set(axes) <= set(held.labels) <= set(range(len(x.shape)))
    if isinstance(held.value, MatrixValue) or not inside:
        return None
    before = tuple(s if a in held.labels else 1 for a, s in enumerate(x.shape))
    lacking = [b for a, b in places.items() if a not in held.labels]
    after = tuple(1 if a in lacking else s for a, s in enumerate(shape))
    made = Factor(f(_read(tr, held, before), after), tuple(range(len(shape))))
    others = _renamed([g for g in term if g is not held], places, len(shape))
    return Deferred(shape, ((*others, _squeezed(tr, made, lacking)),), x.reason)


# Beginnings ---------------------------------------------------------------------------


def outer(tr: Tracer, e: Equation, x: Any, y: Any) -> Any:
    """A contraction of two arrays that is no line: an outer product of wide vectors.

    Or of two matrices, which may meet a vector later.
    """
    return contraction(tr, e, x, y, outer_reason(tr))


def outer_reason(tr: Tracer) -> str:
    """What is wrong with an outer product where a line is needed."""
    return (
        "An outer product of two wide vectors, or a product of two matrices, is no "
        "line. It may be multiplied with a wide vector, or contracted over both of "
        f"its wide axes, but not used otherwise. It is made{tr.at()[1:]}, and used"
    )


def repeated(tr: Tracer, e: Equation, x: Value, reason: str) -> Any:
    """A value broadcast along an axis, where no line holds the result."""
    whole = Factor(x, tuple(range(len(x.shape))))
    return _broadcast(tr, e, [Deferred(x.shape, ((whole,),), reason)])[0]


def random_with_vectors(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """An elementwise primitive of finite random arrays and wide vectors."""
    reason = random_multiple(tr, next(v for v in ins if v.kind == "output"))
    if e.name not in ("mul", "div") or (e.name == "div" and ins[1].kind == "output"):
        raise tr.refuse(f"{reason} by `{e.name}`")
    given = [
        Deferred(v.shape, _terms(v), reason) if v.kind == "output" else v for v in ins
    ]
    return DEFERRED[e.name](tr, e, given)


def random_multiple(tr: Tracer, x: Value) -> str:
    """What is wrong with a finite random array times a wide vector."""
    return (
        f"A finite random array ({', '.join(_sources(tr, x))}) meets a wide "
        f"vector{tr.at()}: given that array the limit exists, but it is random itself. "
        "Parameters of finite shape may only enter the output linearly; give them a "
        "width. The product is used"
    )


def _sources(tr: Tracer, x: Value) -> list[str]:
    """The names of the random lines that a finite random array comes from."""
    found: set[str] = set()
    for leaf in x.leaves or ():
        for term in leaf.terms if isinstance(leaf, Linear) else ():
            for r in ancestors(tr.emit.lines, term.x) if term.x is not None else ():
                line = tr.emit.lines[r]
                if isinstance(line, VecIn):
                    found.add(f"`{line.name}`")
    return sorted(found)
