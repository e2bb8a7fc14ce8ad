"""Products that no line of a program holds: their algebra.

A sum of products of values, written as `einsum` would with a label for every axis. A
contraction is made as soon as both of its sides are there.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
from jax import lax

from .._jax import Equation, Literal, Var, trace
from ._sizes import Shape, Size
from ._tracer import Tracer
from ._values import Deferred, Factor, MatrixValue, Value, known


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
    for s in terms_of(x):
        for t in terms_of(y):
            first = renamed(s, dict(enumerate(labels_x)), free)
            taken = max([free, *(a + 1 for f in first for a in f.labels)])
            terms.append((*first, *renamed(t, dict(enumerate(labels_y)), taken)))
    return Deferred(shape, tuple(terms), reason)


def terms_of(x: Any) -> tuple[tuple[Factor, ...], ...]:
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


def renamed(
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


def finished(tr: Tracer, x: Deferred) -> Any:
    """The value, as far as lines can hold it."""
    values: list[Any] = []
    matrices: list[tuple[Factor, ...]] = []
    rest: list[tuple[Factor, ...]] = []
    for given in x.terms:
        term = _simplified(tr, list(given), len(x.shape))
        if any(vanishes(f.value) for f in term):
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
    return apply(tr, lax.add, total, left) if rest else total


def added(tr: Tracer, parts: Sequence[Any]) -> Any:
    """The sum of values and products."""
    return functools.reduce(lambda a, b: apply(tr, lax.add, a, b), parts)


def _simplified(tr: Tracer, term: list[Factor], ndim: int) -> tuple[Factor, ...]:
    """The term with all products made that meet along a wide axis, or are scalings."""
    while True:
        pair = _meeting(term, ndim) or _scaling(term, ndim)
        if pair is None:
            return tuple(_alone(tr, f, term, ndim) for f in term)
        x, y = pair
        others = [f for f in term if f is not x and f is not y]
        term = [*others, together(tr, x, y, _kept(others, ndim))]


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
    f = squeezed(tr, f, {a for a, s in sizes if a >= ndim and s == 1})
    keep = {a for a in f.labels if a < ndim or a in others}
    return f if keep == set(f.labels) else _summed(tr, f, keep)


def squeezed(tr: Tracer, f: Factor, gone: Collection[int]) -> Factor:
    """A factor without some labels, whose axes have size one."""
    axes = [i for i, a in enumerate(f.labels) if a in gone]
    if not axes:
        return f
    shape = tuple(s for i, s in enumerate(f.value.shape) if i not in axes)
    value = apply(tr, lambda a: lax.squeeze(a, axes), f.value, shape=shape)
    return Factor(value, tuple(a for a in f.labels if a not in gone))


def _summed(tr: Tracer, f: Factor, keep: set[int]) -> Factor:
    axes = [i for i, a in enumerate(f.labels) if a not in keep]
    kept = tuple(a for a in f.labels if a in keep)
    shape = tuple(f.value.shape[f.labels.index(a)] for a in kept)
    value = apply(tr, lambda a: lax.reduce(a, 0.0, lax.add, axes), f.value, shape=shape)
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


def together(tr: Tracer, x: Factor, y: Factor, keep: set[int]) -> Factor:
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
    value = apply(
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
    return read(tr, contracted(tr, term, set(whole)), shape)


def contracted(tr: Tracer, term: Sequence[Factor], keep: set[int]) -> Factor:
    """All factors as one, fixed tensors first."""
    order = {"fixed": 0, "output": 1, "vector": 2}
    factors = sorted(term, key=lambda f: (len(f.wide), order.get(f.value.kind, 3)))
    total = factors[0]
    for i, f in enumerate(factors[1:], 1):
        later = {a for g in factors[i + 1 :] for a in g.labels}
        total = together(tr, total, f, keep | later)
    return total if set(total.labels) <= keep else _summed(tr, total, keep)


def read(tr: Tracer, x: Factor, shape: Shape) -> Any:
    """A factor as an array of this shape: axes in order, missing ones repeated."""
    order = sorted(range(len(x.labels)), key=lambda i: x.labels[i])
    value = x.value
    if order != list(range(len(order))):
        moved = tuple(value.shape[i] for i in order)
        value = apply(tr, lambda a: lax.transpose(a, order), value, shape=moved)
    labels = tuple(x.labels[i] for i in order)
    if labels == tuple(range(len(shape))):
        return value
    params = {"shape": shape, "broadcast_dimensions": labels, "sharding": None}
    out = (Var(shape, value.dtype),)
    e = Equation("broadcast_in_dim", params, (), out, tr.where, lax.broadcast_in_dim_p)
    return tr.apply(e, [value])[0]


def apply(tr: Tracer, f: Any, *values: Any, shape: Shape | None = None) -> Any:
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


def vanishes(value: Any) -> bool:
    return isinstance(value, Value) and value.is_zero


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
