"""Positions of products that no line holds: what moves, merges or adds them up."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import Equation, Var, bind, enable_x64
from ._product import (
    added,
    apply,
    counted,
    finished,
    product,
    read,
    renamed,
    squeezed,
    terms_of,
    together,
    vanishes,
)
from ._sizes import Shape, Size, runs
from ._tracer import Tracer, deferred_rule
from ._values import Deferred, Factor, Known, MatrixValue, Value, known
from ._views import axis_maps


@deferred_rule("transpose")
def _transpose(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), permutation = ins, tuple(e.params["permutation"])
    return [_relabelled(x, {a: i for i, a in enumerate(permutation)}, e)]


def _relabelled(x: Deferred, labels: Mapping[int, int], e: Equation) -> Deferred:
    """Axis i goes to `labels[i]`, or (where there is none) is summed."""
    shape = e.outputs[0].shape
    terms = tuple(renamed(t, labels, len(shape)) for t in x.terms)
    return Deferred(shape, terms, x.reason)


@deferred_rule("broadcast_in_dim")
def _broadcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), shape = ins, e.outputs[0].shape
    target = e.params["broadcast_dimensions"]
    # An axis of size one that is repeated is summed: its one entry stands everywhere.
    pairs = enumerate(zip(target, x.shape, strict=True))
    return [_relabelled(x, {i: t for i, (t, s) in pairs if shape[t] == s}, e)]


def repeated(tr: Tracer, e: Equation, x: Value, reason: str) -> Any:
    """A value broadcast along an axis, where no line holds the result."""
    whole = Factor(x, tuple(range(len(x.shape))))
    return _broadcast(tr, e, [Deferred(x.shape, ((whole,),), reason)])[0]


@deferred_rule("reduce_sum")
def _sum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axes = ins, e.params["axes"]
    kept = [a for a in range(len(x.shape)) if a not in axes]
    total = counted(tr, x, {a: x.shape[a] for a in axes})
    places = {a: i for i, a in enumerate(kept)}
    return [finished(tr, _relabelled(total, places, e))]


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
    f = functools.reduce(lambda g, h: together(tr, g, h, every), holders)
    known_as = dict(zip(f.labels, f.value.shape, strict=True))
    own = [a for a in f.labels if a not in old]
    order = {a: i for i, a in enumerate((*own, *old))}
    before = tuple(known_as[a] if a in known_as else x.shape[a] for a in order)
    value = read(tr, Factor(f.value, tuple(order[a] for a in f.labels)), before)
    value = reshaped(tr, value, (*(known_as[a] for a in own), *sizes))
    return [*(g for g in term if g not in holders), Factor(value, (*own, *new))]


def reshaped(tr: Tracer, x: Any, shape: Shape) -> Any:
    """The same entries in another shape."""
    params = {"new_sizes": shape, "dimensions": None, "sharding": None}
    out = (Var(shape, x.dtype),)
    e = Equation("reshape", params, (), out, tr.where, lax.reshape_p)
    return tr.apply(e, [x])[0]


@deferred_rule("pad")
def _pad(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, value = ins
    if isinstance(value, Deferred) or not vanishes(value):
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
    return apply(tr, lambda a: lax.pad(a, 0.0, config), x, shape=shape)


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


@deferred_rule("split")
def _split(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,), axis, start, parts = ins, e.params["axis"], 0, []
    for size in e.params["sizes"]:
        move = functools.partial(cut, tr, start=start, stop=start + size)
        parts.append(_along(tr, x, axis, size, move))
        start = start + size
    return parts


@deferred_rule("rev")
def _rev(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,) = ins
    for axis in e.params["dimensions"]:
        if isinstance(x.shape[axis], Size):
            raise tr.refuse(f"{x.reason} by `rev` along a wide axis")
        x = _along(tr, x, axis, x.shape[axis], functools.partial(_reversed, tr))
    return [x]


def _reversed(tr: Tracer, x: Value, at: int, shape: Shape) -> Any:
    return apply(tr, lambda a: lax.rev(a, (at,)), x, shape=shape)


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
    terms = tuple((*renamed(t, places, free + 1), other) for t in x.terms)
    shape = (*x.shape[:axis], table.shape[1], *x.shape[axis + 1 :])
    total = dataclasses.replace(x, shape=shape, terms=terms)
    return finished(tr, counted(tr, total, {free: x.shape[axis]}))


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
    made = Factor(f(read(tr, held, before), after), tuple(range(len(shape))))
    others = renamed([g for g in term if g is not held], places, len(shape))
    return Deferred(shape, ((*others, squeezed(tr, made, lacking)),), x.reason)


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
        (*renamed(t, places, free + len(part)), *factors) for t in terms_of(update)
    )
    reason = getattr(update, "reason", "A sum into positions")
    total = Deferred(x.shape, terms, reason)
    total = counted(tr, total, {b: update.shape[a] for a, b in summed.items()})
    moved = finished(tr, total)
    return moved if vanishes(x) else added(tr, [x, moved])


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
