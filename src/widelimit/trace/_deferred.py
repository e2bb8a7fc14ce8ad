"""Products that no line of a program holds, kept until they meet what they lack.

The gradient of a matrix is an outer product of wide vectors; the gradient of a squared
loss multiplies a wide vector with a finite random output. Neither is a line. But the
matrix times a vector is a vector again, and the inner product with the readout's
weights an output. So such an array is a sum of products of values, written as `einsum`
would with a label for every axis; whatever is linear moves labels, and a contraction
is made as soon as both of its sides are there.
"""

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import Equation
from ..program import Part, VecIn, ancestors
from ._product import (
    added,
    apply,
    contracted,
    counted,
    finished,
    product,
    read,
    terms_of,
    vanishes,
)
from ._sizes import finite
from ._tracer import DEFERRED, Tracer, deferred_rule
from ._values import Deferred, Factor, Known, Linear, MatrixValue, Value, known

HALF = Fraction(1, 2)


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
    return apply(tr, lax.add, x, moved)


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
    vector = contracted(tr, others, keep)
    vector = Factor(vector.value, tuple(places[a] for a in vector.labels))
    sizes = {
        a: s for f in outputs for a, s in zip(f.labels, f.value.shape, strict=True)
    }
    shape = (*by.shape, *(sizes[a] for a in summed))
    value = read(tr, vector, shape)
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
    return [times(tr, ins[0], known(-1.0))]


@deferred_rule("mul")
def _multiply(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    return [times(tr, *ins)]


def times(tr: Tracer, x: Any, y: Any) -> Any:
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
    return [times(tr, x, apply(tr, lax.div_p.bind, one, y, shape=y.shape))]


@deferred_rule("integer_pow", "square")
def _power_of(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    (x,) = ins
    exponent = e.params.get("y", 2)
    if exponent < 1:
        raise tr.refuse(x.reason)
    return [functools.reduce(lambda a, b: times(tr, a, b), [x] * exponent)]


@deferred_rule("add", "add_any", "sub")
def _add(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    x, y = ins
    if e.name == "sub":
        y = apply(tr, lax.neg, y)
    lines = [v for v in (x, y) if isinstance(v, Value) and not v.is_zero]
    deferred = [v for v in (x, y) if not isinstance(v, Value)]
    if not deferred:
        return [apply(tr, lax.add, x, y)]
    reason = next((v.reason for v in deferred if isinstance(v, Deferred)), "")
    terms = _gathered(tr, [t for v in deferred for t in terms_of(v)])
    total = Deferred(e.outputs[0].shape, terms, reason)
    _unify(tr, (*terms, *(t for v in lines for t in terms_of(v))), len(total.shape))
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
    value = apply(tr, lax.add, x.value, read(tr, moved, x.value.shape))
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
    second = apply(tr, convert, which)
    first = apply(tr, lax.sub_p.bind, known(1.0), second, shape=second.shape)
    parts = [
        times(tr, case, weight)
        if isinstance(case, Deferred)
        else apply(tr, lax.mul, case, weight)
        for case, weight in zip(cases, (first, second), strict=True)
        if not vanishes(case)
    ]
    return [added(tr, parts)]


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


def random_with_vectors(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """An elementwise primitive of finite random arrays and wide vectors."""
    reason = random_multiple(tr, next(v for v in ins if v.kind == "output"))
    if e.name not in ("mul", "div") or (e.name == "div" and ins[1].kind == "output"):
        raise tr.refuse(f"{reason} by `{e.name}`")
    given = [
        Deferred(v.shape, terms_of(v), reason) if v.kind == "output" else v for v in ins
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
