"""Equations on fixed tensors: folded where the numbers are known, else Map lines."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import InputError
from .._jax import Equation, fold, pick
from ..program import Input, Map, Primitive
from ._sizes import Size
from ._values import Data, Known, Value

if TYPE_CHECKING:
    from ._tracer import Tracer


def narrowed(
    equation: Equation, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]
) -> Equation:
    """The same equation on leaves: sizes of wide axes in its parameters are replaced.

    Args:
        equation: with `Size`s in its parameters.
        shapes: the leaf shapes of its operands.
        out: the leaf shape of its result.
    """
    p: dict[str, Any] = dict(equation.params)
    match equation.name:
        case "broadcast_in_dim" | "iota":
            p["shape"] = out
        case "reshape":
            p["new_sizes"] = out
        case "slice":
            starts, limits = list(p["start_indices"]), list(p["limit_indices"])
            for i, limit in enumerate(limits):
                if isinstance(limit, Size) or isinstance(starts[i], Size):
                    starts[i], limits[i] = 0, shapes[0][i]
            p["start_indices"], p["limit_indices"] = tuple(starts), tuple(limits)
        case "gather" | "dynamic_slice":
            p["slice_sizes"] = tuple(
                shapes[0][i] if isinstance(s, Size) else s
                for i, s in enumerate(p["slice_sizes"])
            )
    return dataclasses.replace(equation, params=p)


def on_tensors(
    tr: "Tracer", e: Equation, ins: Sequence[Value], power: Fraction
) -> list[Value]:
    """Any primitive on fixed tensors."""
    if any(v.wide for v in ins) or any(
        isinstance(s, Size) for o in e.outputs for s in o.shape
    ):
        raise tr.refuse(f"`{e.name}` of a fixed array with a wide axis")
    known = [v.leaf.value for v in ins if isinstance(v.leaf, Known)]
    if len(known) == len(ins):
        values = fold(e, [a.astype(v.dtype) for a, v in zip(known, ins, strict=True)])
        return [
            Value(o.shape, "fixed", (Known(a),), power=power, dtype=np.dtype(o.dtype))
            for o, a in zip(e.outputs, values, strict=True)
        ]
    refs = []
    for v in ins:
        leaf = v.leaf
        if isinstance(leaf, Known):
            leaf = Known(leaf.value.astype(v.dtype))
        refs.append(tr.emit.data(leaf, v.leaf_shape(None), tr.where))
    outs = []
    for i, o in enumerate(e.outputs):
        shape = tuple(int(s) for s in o.shape)
        one = e if len(e.outputs) == 1 else pick(e, i)
        ref = tr.emit.primitive(one, tuple(refs), shape, tr.where, i)
        outs.append(
            Value(
                o.shape,
                "fixed",
                (Data(ref, shape),),
                power=power,
                dtype=np.dtype(o.dtype),
            )
        )
    return outs


_CHAINS = {
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "slice",
    "convert_element_type",
}


def refuse_labels(tr: "Tracer", x: Value) -> None:
    """Refuse integer or boolean data where the network uses them as numbers.

    Raises:
        InputError: the value is such data.
    """
    if tr.dry or x.wide or x.dtype.kind not in "iub" or not isinstance(x.leaf, Data):
        return
    line = tr.emit.lines[x.leaf.ref]
    while (
        isinstance(line, Map)
        and isinstance(line.op, Primitive)
        and line.op.name in _CHAINS
    ):
        line = tr.emit.lines[line.args[0]]
    if isinstance(line, Map) and isinstance(line.op, Input):
        raise InputError(
            f"The data `{line.op.key}` are of dtype {x.dtype}, and the network uses "
            f"them as numbers{tr.at()}. Make them floating-point first, for example "
            "x.astype(float)."
        )
