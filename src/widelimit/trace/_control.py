"""Loops, branches and random bits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from .._jax import Equation, Var
from ..program import VecIn
from ._fixed import on_tensors
from ._layout import blocks
from ._move import stack
from ._sizes import Size
from ._tracer import Tracer, rule, wide_axis
from ._values import Deferred, Key, Known, Linear, MatrixValue, Value


@rule("scan, and fori_loop of a static length: unrolled", "scan")
def scan(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A loop, unrolled within the budget of lines."""
    p = e.params
    consts, carried = p["num_consts"], p["num_carry"]
    body, length = p["jaxpr"], p["length"]
    if not isinstance(length, int):
        raise tr.refuse("A loop whose length is a width")
    fixed, carry, xs = (
        ins[:consts],
        list(ins[consts : consts + carried]),
        ins[consts + carried :],
    )
    steps = range(length - 1, -1, -1) if p["reverse"] else range(length)
    before = len(tr.taps)
    stacked: list[list[Any]] = []
    for t in steps:
        now = [_at(tr, x, t) for x in xs]
        outs = tr.run(body, [*fixed, *carry, *now])
        carry = outs[:carried]
        stacked.append(outs[carried:])
    if p["reverse"]:
        stacked.reverse()
    _stack_taps(tr, before, length, p["reverse"])
    ys = [
        _stack(tr, [s[i] for s in stacked], out)
        for i, out in enumerate(e.outputs[carried:])
    ]
    return [*carry, *ys]


def _at(tr: Tracer, x: Any, t: int) -> Any:
    """Row t of the leading axis."""
    if isinstance(x, Key):
        return Key(x.shape[1:])
    rank = len(x.shape)
    params = {
        "start_indices": (t, *(0,) * (rank - 1)),
        "limit_indices": (t + 1, *x.shape[1:]),
        "strides": None,
    }
    dtype = getattr(x, "dtype", np.dtype("float64"))
    row = _equation("slice", lax.slice_p, params, (1, *x.shape[1:]), dtype)
    (part,) = tr.apply(row, [x])
    squeezed = {"dimensions": (0,)}
    rest = _equation("squeeze", lax.squeeze_p, squeezed, tuple(x.shape[1:]), dtype)
    return tr.apply(rest, [part])[0]


def _equation(
    name: str, primitive: Any, params: Any, shape: Any, dtype: Any
) -> Equation:
    return Equation(name, params, (), (Var(shape, dtype),), "", primitive)


def _stack(tr: Tracer, rows: Sequence[Any], out: Any) -> Any:
    if not rows:
        raise tr.refuse("A loop of no steps")
    if isinstance(rows[0], Key):
        return Key(out.shape)
    if isinstance(rows[0], Deferred | MatrixValue):
        raise tr.refuse("Matrices are stacked by a loop")
    return stack(tr, rows, 0, out.shape)


def _stack_taps(tr: Tracer, before: int, length: int, reverse: bool) -> None:
    """Taps inside a loop, as one tap with the steps as an axis after the batch axis."""
    new = tr.taps[before:]
    if not new:
        return
    del tr.taps[before:]
    names = list(dict.fromkeys(name for name, _ in new))
    for name in names:
        rows = [v for n, v in new if n == name]
        if len(rows) != length:
            raise tr.refuse(
                f"The tap `{name}` is reached {len(rows)} times in {length} steps"
            )
        if reverse:
            rows.reverse()
        shape = (length, *rows[0].shape)
        value = _stack(tr, rows, Var(shape, rows[0].dtype))
        order = (1, 0, *range(2, len(shape))) if len(shape) > 1 else (0,)
        turned = tuple(shape[i] for i in order)
        e = _equation(
            "transpose", lax.transpose_p, {"permutation": order}, turned, value.dtype
        )
        (value,) = tr.apply(e, [value])
        tr.taps.append((name, tr.written(value)))


@rule("branches on a condition known while tracing", "cond")
def cond(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A branch whose index is a constant."""
    which, *args = ins
    if not isinstance(which.leaf, Known):
        raise tr.refuse("A branch that depends on data")
    branches = e.params["branches"]
    number = int(np.clip(which.leaf.value, 0, len(branches) - 1))
    return tr.run(branches[number], args)


@rule(
    "random keys",
    "random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in",
    "random_clone",
)  # fmt: skip
def keys(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Keys: their numbers never matter, every draw is fresh."""
    del tr, ins
    return [Key(o.shape) for o in e.outputs]


@rule("random bits along the width, as a fresh Gaussian input", "random_bits")
def random_bits(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A draw of random bits: the uniform number is Phi of a standard Gaussian."""
    shape = e.outputs[0].shape
    number, tr.draws = tr.draws, tr.draws + 1
    axis = wide_axis(shape)
    if axis is None:
        raise tr.refuse(
            "Finitely many random numbers are drawn inside the network: the limit "
            "would be random. Pass them as an input. The draw"
        )
    size = shape[axis]
    assert isinstance(size, Size)
    layout = tr.layout(("random", number), size)
    dtype = np.dtype(e.outputs[0].dtype)
    if tr.dry:
        return [Value(shape, "bits", None, axis, layout, dtype=dtype)]
    fresh = number < len(tr.per_example) and tr.per_example[number]
    bare = Value(shape, "bits", None, axis, layout, dtype=dtype)
    leaves = []
    for i, block in enumerate(blocks(layout)):
        leaf = bare.leaf_shape(block)
        name = f"random{number}" if len(blocks(layout)) == 1 else f"random{number}_{i}"
        ref = tr.emit.emit(
            VecIn(
                name=name,
                shape=leaf,
                dim=tr.dim(block),
                per_example=fresh,
                source=tr.where,
            )
        )
        leaves.append(Linear.of(ref, leaf))
    return [dataclasses.replace(bare, leaves=tuple(leaves))]


@rule("random bits read as numbers in [1, 2)", "bitcast_convert_type")
def bitcast(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Bits with the exponent of 1.0: one plus a uniform number."""
    (x,) = ins
    if x.kind != "bits":
        return [_plain_bitcast(tr, e, x)]
    dtype = np.dtype(e.outputs[0].dtype)
    return [dataclasses.replace(x, kind="mantissa", dtype=dtype)]


def _plain_bitcast(tr: Tracer, e: Equation, x: Any) -> Any:
    if isinstance(x, Value) and x.kind == "fixed" and not x.wide:
        return on_tensors(tr, e, [x], x.power)[0]
    raise tr.refuse("The bits of a random vector")
