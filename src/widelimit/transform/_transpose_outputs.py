"""Where a backward pass begins: outputs as sums of readouts and finite inputs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import UnsupportedError
from ..program import (
    AxisMap,
    LinComb,
    Readout,
    Ref,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    at,
    compose,
    identity_maps,
    spread,
)
from ._adjoints import Adjoints, wide
from ._invert import invert


def readouts(program: TensorProgram, ref: Ref) -> Iterator[Ref]:
    """The Readout lines that a finite output is a combination of, the last first."""
    todo, seen = [ref], set[Ref]()
    while todo:
        last = max(todo)
        todo.remove(last)
        line = program.lines[last]
        if last not in seen and isinstance(line, Readout):
            yield last
        if last not in seen and isinstance(line, LinComb):
            todo += [t.x for t in line.terms if t.x is not None]
        seen.add(last)


def output(adj: Adjoints, ref: Ref) -> None:
    """The adjoints of what a finite output f[o] reads, with f[o] differentiated."""
    shape = adj.types[ref].shape
    todo = [Term(ref, maps=identity_maps(shape))]
    while todo:
        term = todo.pop()
        assert term.x is not None
        match adj.lines[term.x]:
            case LinComb() as line:
                todo += [_through(adj, term, t, line) for t in _terms(adj, line)]
            case Readout() as line:
                _readout(adj, term, line)
            case VecIn():
                adj.add_tensor(term.x, _finite(adj, term))


def _terms(adj: Adjoints, line: LinComb) -> Iterator[Term]:
    for term in line.terms:
        for arg in term.tensors:
            if arg.ref in adj.active:
                raise UnsupportedError(
                    f"The output `{line.name}` has a coefficient, "
                    f"`{adj.lines[arg.ref].name}`, that depends on wide vectors: its "
                    "gradient is random and of lower order. Multiply or add before "
                    f"the readout.{at(line.source)}"
                )
        if term.x is not None and term.scale != 0.0:
            yield term


def _through(adj: Adjoints, outer: Term, inner: Term, line: LinComb) -> Term:
    """f[o] = sum_k T x[maps(o, k)], x a combination: one of its terms put in."""
    sizes = adj.lead + outer.sums + inner.sums
    places = [*outer.maps, *_sums(len(adj.lead + outer.sums), inner.sums)]
    read = {a for m in inner.maps for a in m.letters}
    tensors = outer.tensors + tuple(_moved(adj, t, places) for t in inner.tensors)
    tensors += _outside(adj, places[: len(line.shape)], read)
    return Term(
        inner.x,
        outer.scale * inner.scale,
        tensors,
        tuple(compose(m, places) for m in inner.maps),
        sizes[len(adj.lead) :],
    )


def _sums(first: int, sizes: Sequence[int]) -> list[AxisMap]:
    return [AxisMap.identity(first + i, s) for i, s in enumerate(sizes)]


def _outside(
    adj: Adjoints, places: Sequence[AxisMap], read: set[int]
) -> tuple[TensorArg, ...]:
    """Zero outside, at positions that nothing reads."""
    masks = [m for i, m in enumerate(places) if i not in read and not m.is_inside]
    return tuple(arg for m in masks for arg in adj.confined(m, ())[1])


def _moved(adj: Adjoints, arg: TensorArg, places: Sequence[AxisMap]) -> TensorArg:
    """A tensor read at maps instead of letters."""
    maps = [AxisMap((), 0) if a < 0 else places[a] for a in arg.letters]
    shape = adj.types[arg.ref].shape
    if all(
        a < 0 or (m.is_identity and m.table.size == s)
        for a, m, s in zip(arg.letters, maps, shape, strict=True)
    ):
        letters = (m.letters[0] if m.letters else -1 for m in maps)
        return TensorArg(arg.ref, tuple(letters))
    letters = tuple(sorted({a for m in maps for a in m.letters}))
    tables = np.broadcast_arrays(*(m.spread(letters) for m in maps))
    outside = np.any([t < 0 for t in tables], axis=0)

    def gathered(t: Any) -> Any:
        values = t[tuple(np.maximum(i, 0) for i in tables)]
        return jnp.where(outside, 0.0, values)

    ref = adj.writer.call(gathered, [arg.ref], adj.lines[arg.ref].source)
    return TensorArg(ref, letters)


def _readout(adj: Adjoints, term: Term, line: Readout) -> None:
    """f[o] = sum T <v, x> / sqrt(n): dx is v times T, and dv is x times T."""
    before = len(adj.lead + term.sums)
    places = [*term.maps, *_sums(before, line.sums)]
    at_v = tuple(AxisMap((), 0) if a < 0 else places[a] for a in line.letters)
    at_x = tuple(compose(m, places) for m in line.maps)
    read = set(line.letters).union(*(m.letters for m in line.maps))
    tensors = term.tensors + _outside(adj, places[: len(line.shape)], read)
    dim = wide(adj.program, line.v).dim
    ratio = adj.ratio(adj.width, dim, root=True)
    if isinstance(ratio, TensorArg):
        tensors, ratio = (*tensors, ratio), 1.0
    whole = dataclasses.replace(
        term, scale=term.scale * ratio, tensors=tensors, sums=term.sums + line.sums
    )
    for x, maps, other, other_maps in (
        (line.x, at_x, line.v, at_v),
        (line.v, at_v, line.x, at_x),
    ):
        adj.add(x, _placed(adj, whole, adj.types[x].shape, maps, other, other_maps))


def _placed(
    adj: Adjoints,
    term: Term,
    shape: tuple[int, ...],
    maps: tuple[AxisMap, ...],
    other: Ref,
    other_maps: tuple[AxisMap, ...],
) -> Term | None:
    """The other factor of a product at the positions of the first one."""
    lead = len(adj.lead)
    inverse = invert(
        maps,
        adj.lead + term.sums,
        shape,
        lead,
        kept={a for m in other_maps for a in m.letters},
        pinned={a for t in term.tensors for a in t.letters if a >= 0},
        known={i: i for i in range(lead)},
    )
    if inverse is None:
        return None
    read, indicator = adj.confined(inverse.mask, inverse.read(other_maps))
    tensors = tuple(
        TensorArg(t.ref, tuple(a if a < 0 else inverse.letter(a) for a in t.letters))
        for t in term.tensors
    )
    scale = term.scale * inverse.times
    return Term(other, scale, tensors + indicator, read, inverse.sums)


def _finite(adj: Adjoints, term: Term) -> Ref:
    """The derivative of f[o] = sum_k T b[maps(o, k)] with respect to b."""
    assert term.x is not None
    shape, lead = adj.types[term.x].shape, len(adj.lead)
    sizes = adj.lead + term.sums
    letters = tuple(range(len(sizes) + len(shape)))
    hit = np.ones(sizes + shape)
    for i, m in enumerate(term.maps):
        position = AxisMap.identity(len(sizes) + i, shape[i])
        hit = hit * (m.spread(letters) == position.spread(letters))

    def derivative(*ts: Any) -> Any:
        total = term.scale * hit
        for t, arg in zip(ts, term.tensors, strict=True):
            total = total * spread(t, arg.letters, len(letters))
        return jnp.sum(total, axis=tuple(range(lead, len(sizes))))

    refs = [t.ref for t in term.tensors]
    source = adj.lines[term.x].source
    if not refs:
        axes = tuple(range(lead, len(sizes)))
        return adj.writer.constant(np.sum(term.scale * hit, axis=axes), source)
    return adj.writer.call(derivative, refs, source)
