"""The rule of dot_general: what the wide axes do decides which line it is."""

import dataclasses
from typing import Any

import numpy as np

from .._jax import Equation
from ..program import AxisMap
from ._contract import (
    Letters,
    data_times,
    inner_product,
    matrix_times,
    products,
)
from ._deferred import contraction, outer, random_multiple
from ._fixed import on_tensors
from ._sizes import Size
from ._tracer import Tracer, rule, wide_axis
from ._values import MatrixValue, Value


@rule(
    "matrix products, readouts, inner products over the width, products with data",
    "dot_general",
)
def dot_general(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A contraction of two arrays."""
    lhs, rhs = ins
    (contract_l, contract_r), (batch_l, batch_r) = e.params["dimension_numbers"]
    shape = e.outputs[0].shape
    axis = wide_axis(shape)
    letters, sums_of = letters_of(lhs, rhs, e.params["dimension_numbers"], shape)
    if isinstance(lhs, MatrixValue) and isinstance(rhs, MatrixValue):
        return [outer(tr, e, lhs, rhs)]
    if isinstance(lhs, MatrixValue) or isinstance(rhs, MatrixValue):
        return [_matrix(tr, e, lhs, rhs, sums_of, axis)]
    if lhs.kind == "output" and rhs.kind == "output":
        raise tr.refuse("A product of two finite random outputs")
    if not lhs.wide and not rhs.wide:
        if lhs.kind == rhs.kind == "fixed":
            return on_tensors(tr, e, [lhs, rhs], lhs.power + rhs.power)
        return [_with_data(tr, lhs, rhs, letters, shape, None)]
    if "output" in (lhs.kind, rhs.kind):
        x = lhs if lhs.kind == "output" else rhs
        return [contraction(tr, e, lhs, rhs, random_multiple(tr, x))]
    if lhs.wide and rhs.wide:
        pair = (lhs.axis, rhs.axis)
        if pair in zip(contract_l, contract_r, strict=True):
            return [inner_product(tr, lhs, rhs, letters, shape)]
        if pair in zip(batch_l, batch_r, strict=True):
            assert axis is not None
            return [products(tr, lhs, rhs, letters, shape, axis)]
        return [outer(tr, e, lhs, rhs)]
    return [_with_data(tr, lhs, rhs, letters, shape, axis)]


def _with_data(
    tr: Tracer, lhs: Value, rhs: Value, letters: Letters, shape: Any, axis: int | None
) -> Value:
    vector = lhs if lhs.wide or (lhs.kind == "output" and not rhs.wide) else rhs
    if vector is lhs:
        lhs, rhs = rhs, lhs
        letters = dataclasses.replace(letters, lhs=letters.rhs, rhs=letters.lhs)
    return data_times(tr, lhs, rhs, letters, shape, axis)


def letters_of(
    lhs: Any, rhs: Any, numbers: Any, shape: Any
) -> tuple[Letters, dict[str, Any]]:
    """The letters of a contraction, and the maps of both operands by axis."""
    (contract_l, contract_r), (batch_l, batch_r) = numbers
    out = tuple(1 if isinstance(s, Size) else s for s in shape)
    maps_l: dict[int, AxisMap] = {}
    maps_r: dict[int, AxisMap] = {}
    position = 0
    for a, b in zip(batch_l, batch_r, strict=True):
        maps_l[a] = maps_r[b] = _identity(position, lhs.shape[a])
        position += 1
    for value, maps, used in (
        (lhs, maps_l, (*contract_l, *batch_l)),
        (rhs, maps_r, (*contract_r, *batch_r)),
    ):
        for a, s in enumerate(value.shape):
            if a not in used:
                maps[a] = _identity(position, s)
                position += 1
    sums: list[int] = []
    for a, b in zip(contract_l, contract_r, strict=True):
        s = lhs.shape[a]
        if isinstance(s, Size) or isinstance(rhs.shape[b], Size):
            maps_l[a] = maps_r[b] = AxisMap((), np.asarray(0))
            continue
        maps_l[a] = maps_r[b] = AxisMap.identity(len(out) + len(sums), s)
        sums.append(s)
    letters = Letters(
        tuple(maps_l[i] for i in range(len(lhs.shape))),
        tuple(maps_r[i] for i in range(len(rhs.shape))),
        out,
        tuple(sums),
    )
    return letters, {"lhs": maps_l, "rhs": maps_r, "sums": tuple(sums)}


def _identity(letter: int, size: Any) -> AxisMap:
    return AxisMap.identity(letter, 1 if isinstance(size, Size) else size)


def _matrix(
    tr: Tracer,
    e: Equation,
    lhs: Any,
    rhs: Any,
    letters: dict[str, Any],
    axis: int | None,
) -> Value:
    (contract_l, contract_r), _ = e.params["dimension_numbers"]
    pairs = list(zip(contract_l, contract_r, strict=True))
    if isinstance(lhs, MatrixValue):
        m, x, maps_m, maps_x = lhs, rhs, letters["lhs"], letters["rhs"]
    else:
        m, x, maps_m, maps_x = rhs, lhs, letters["rhs"], letters["lhs"]
        pairs = [(b, a) for a, b in pairs]
    met = [(a, b) for a, b in pairs if a in m.layouts]
    if len(met) != 1 or not x.wide or met[0][1] != x.axis or axis is None:
        raise tr.refuse(
            "A matrix with two wide axes meets something that is not a wide vector "
            "over one of them. The `dot_general`"
        )
    maps = [None if i == x.axis else maps_x[i] for i in range(len(x.shape))]
    finite = {i: a for i, a in maps_m.items() if i not in m.layouts}
    shape = e.outputs[0].shape
    return matrix_times(tr, m, x, finite, maps, met[0][0], shape, axis, letters["sums"])
