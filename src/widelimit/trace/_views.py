"""Combinations read at maps: where every position of a view comes from."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..program import AxisMap, TensorArg, Term, compose, unravel
from ._values import Linear

if TYPE_CHECKING:
    from ._tracer import Tracer


def combined(parts: Sequence[Linear], shape: tuple[int, ...]) -> Linear:
    """The sum of combinations, with equal and complementary terms merged."""
    merged: dict[Any, Term] = {}
    for part in parts:
        for t in part.terms:
            key = dataclasses.replace(t, scale=1.0)
            scale = t.scale + (merged[key].scale if key in merged else 0.0)
            merged[key] = dataclasses.replace(t, scale=scale)
    terms: list[Term] = []
    for t in merged.values():
        if t.scale != 0.0:
            _append(terms, t)
    return Linear(tuple(terms), shape)


def _append(terms: list[Term], term: Term) -> None:
    """Add a term, as one view with another of which it is the other part."""
    for i, other in enumerate(terms):
        joined = _joined(other, term)
        if joined is not None:
            del terms[i]
            _append(terms, joined)
            return
    terms.append(term)


def _joined(x: Term, y: Term) -> Term | None:
    """Two views of a line, inside at different positions of one axis, as one view."""
    same = (
        (x.x, x.scale, x.sums) == (y.x, y.scale, y.sums)
        and not x.tensors
        and not y.tensors
    )
    if not same or x.x is None:
        return None
    different = [
        i for i, (p, q) in enumerate(zip(x.maps, y.maps, strict=True)) if p != q
    ]
    if len(different) != 1:
        return None
    (i,) = different
    p, q = x.maps[i], y.maps[i]
    if p.letters != q.letters or ((p.table >= 0) & (q.table >= 0)).any():
        return None
    whole = AxisMap(p.letters, np.maximum(p.table, q.table))
    return dataclasses.replace(x, maps=(*x.maps[:i], whole, *x.maps[i + 1 :]))


def view(
    tr: "Tracer",
    linear: Linear,
    maps: Sequence[AxisMap],
    out: tuple[int, ...],
    sums: tuple[int, ...] = (),
) -> Linear:
    """A combination read at maps over the letters of `out`, then of `sums`."""
    try:
        terms = tuple(
            _view_term(tr, t, maps, linear.shape, out, sums) for t in linear.terms
        )
    except _NeedsMapError:
        # A tensor coefficient would be read at a map: write the combination first.
        line = Linear.of(tr.emit.ref(linear, linear.shape, tr.where), linear.shape)
        terms = tuple(
            _view_term(tr, t, maps, linear.shape, out, sums) for t in line.terms
        )
    return Linear(terms, out)


def _view_term(
    tr: "Tracer",
    t: Term,
    maps: Sequence[AxisMap],
    before: tuple[int, ...],
    out: tuple[int, ...],
    sums: tuple[int, ...],
) -> Term:
    # The term's own summed letters follow, in order.
    new = len(out) + len(sums)
    own = range(new, new + len(t.sums))
    full = [*maps, *(AxisMap.identity(a, s) for a, s in zip(own, t.sums, strict=True))]
    sizes, old = (*out, *sums, *t.sums), (*before, *t.sums)
    tensors = []
    for arg in t.tensors:
        letters = [
            -1 if a < 0 else _letter(full[a], old[a], sizes) for a in arg.letters
        ]
        tensors.append(TensorArg(arg.ref, tuple(letters)))
    moved = [compose(m, full) for m in t.maps]
    read = {a for m in t.maps for a in m.letters}
    for a, m in enumerate(maps):
        if a in read or m.is_inside:
            continue
        # The term does not follow this index, but outside it there is nothing.
        if moved:
            i = a if a < len(moved) else 0
            moved[i] = only_inside(moved[i], m)
        else:
            mask = tr.emit.constant(np.asarray(m.table >= 0, float), tr.where)
            tensors.append(TensorArg(mask, m.letters))
    return Term(t.x, t.scale, tuple(tensors), tuple(moved), sums + t.sums)


def only_inside(m: AxisMap, other: AxisMap) -> AxisMap:
    """A map, outside wherever another one is."""
    letters = tuple(sorted({*m.letters, *other.letters}))
    inside = other.spread(letters) >= 0
    return AxisMap(letters, np.where(inside, m.spread(letters), -1))


def _letter(m: AxisMap, size: int, sizes: Sequence[int]) -> int:
    """The letter that a map is, of the whole axis of this size."""
    if m.is_identity and m.table.size == sizes[m.letters[0]] == size:
        return m.letters[0]
    raise _NeedsMapError


class _NeedsMapError(Exception):
    """A letter of a tensor coefficient is no plain letter any more."""


def axis_maps(positions: np.ndarray, shape: tuple[int, ...]) -> tuple[AxisMap, ...]:
    """Flat positions (or -1) over an output, as one map for each axis of the input."""
    valid = positions >= 0
    coordinates = unravel(np.maximum(positions, 0), shape)
    maps: list[AxisMap] = []
    for c in coordinates:
        maps.append(_axis_map(np.broadcast_to(c, positions.shape), valid))
    if not valid.all() and maps:
        covered = _valid(maps, positions.shape)
        if not np.array_equal(covered, valid):
            maps = _masked(maps, valid)
    return tuple(maps)


def _axis_map(c: np.ndarray, valid: np.ndarray) -> AxisMap:
    low = np.where(valid, c, np.iinfo(np.int64).max)
    high = np.where(valid, c, -1)
    letters = []
    for axis in range(c.ndim):
        others_low = low.min(axis=axis, keepdims=True)
        others_high = high.max(axis=axis, keepdims=True)
        if (others_low < others_high).any():
            letters.append(axis)
        else:
            # With holes, letters may be needed together though each is not alone.
            low, high = others_low, others_high
    rest = tuple(a for a in range(c.ndim) if a not in letters)
    return AxisMap(tuple(letters), high.max(axis=rest))


def _valid(maps: Sequence[AxisMap], shape: tuple[int, ...]) -> np.ndarray:
    covered = np.ones(shape, bool)
    for m in maps:
        covered = covered & (m.spread(range(len(shape))) >= 0)
    return covered


def _masked(maps: list[AxisMap], valid: np.ndarray) -> list[AxisMap]:
    """The maps, with what is outside written into the one where it is cheapest."""
    letters = {
        axis
        for axis in range(valid.ndim)
        if valid.shape[axis] > 1 and (valid != np.take(valid, [0], axis=axis)).any()
    }
    # Of equals, the axis that stands at the letter: neighbouring pieces then join.
    costs = [
        (len(letters | set(m.letters)), i not in letters) for i, m in enumerate(maps)
    ]
    best = costs.index(min(costs))
    chosen = maps[best]
    joint = tuple(sorted(letters | set(chosen.letters)))
    rest = tuple(a for a in range(valid.ndim) if a not in joint)
    mask = valid.any(axis=rest)
    maps = list(maps)
    maps[best] = AxisMap(joint, np.where(mask, chosen.spread(joint), -1))
    return maps


def stretched(tr: "Tracer", linear: Linear, out: tuple[int, ...]) -> Linear:
    """A combination whose axes of size one are repeated to the shape `out`."""
    maps = [
        AxisMap((), np.asarray(0)) if s == 1 else AxisMap.identity(i, s)
        for i, s in enumerate(linear.shape)
    ]
    return view(tr, linear, maps, out)
