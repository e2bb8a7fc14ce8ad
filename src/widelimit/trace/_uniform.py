"""Uniform random numbers as Phi of a Gaussian, so that theorem 4 covers dropout."""

import dataclasses
import math
from typing import TYPE_CHECKING

from scipy.special import ndtri

from .. import scalar
from ..scalar import Arg, Call, Const, Expr
from ._values import Pending, Value

if TYPE_CHECKING:
    from ._tracer import Tracer

_UNIFORM: Expr = Call(
    "mul", (Const(0.5), Call("erfc", (Call("mul", (Arg(0), Const(-math.sqrt(0.5)))),)))
)
"""Phi(z): uniform on [0, 1] for a standard Gaussian z."""


def uniform_of(tr: "Tracer", x: Value) -> Value:
    """One less than a mantissa: a uniform number on [0, 1)."""
    if tr.dry:
        return dataclasses.replace(x, kind="vector", leaves=None)
    assert x.leaves is not None
    leaves = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        shape = x.leaf_shape(block)
        ref = tr.emit.ref(leaf, shape, tr.where)
        leaves.append(Pending(_UNIFORM, (ref,), (), shape))
    return dataclasses.replace(x, kind="vector", leaves=tuple(leaves))


def without_uniform(fn: Expr) -> Expr:
    """Comparisons and inverse error functions of uniform numbers, by Gaussians."""
    if not isinstance(fn, Call):
        return fn
    args = tuple(without_uniform(a) for a in fn.args)
    match fn.op, args:
        case ("max", (x, Const(low))) | ("max", (Const(low), x)) if low <= 0.0:
            if gaussian_of(x) is not None:
                return x
        case ("lt" | "le" | "gt" | "ge" as op, (x, Const(p))) if (
            gaussian_of(x) is not None
        ):
            return _threshold(op, gaussian_of(x), p)
        case ("lt" | "le" | "gt" | "ge" as op, (Const(p), x)) if (
            gaussian_of(x) is not None
        ):
            turned = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}[op]
            return _threshold(turned, gaussian_of(x), p)
        case ("erf_inv", (x,)):
            z = _symmetric(x)
            if z is not None:
                return scalar.call("mul", z, Const(math.sqrt(0.5)))
        case _:
            pass
    return scalar.call(fn.op, *args)


def gaussian_of(fn: Expr) -> Expr | None:
    """The z of Phi(z), if the function is that."""
    match fn:
        case Call("mul", (Const(0.5), Call("erfc", (Call("mul", (z, Const(c))),)))):
            return z if c == -math.sqrt(0.5) else None
    return None


def _threshold(op: str, z: Expr | None, p: float) -> Expr:
    assert z is not None
    if p <= 0.0 or p >= 1.0:
        below = op in ("lt", "le")
        return Const(float(below == (p >= 1.0)))
    return scalar.call(op, z, Const(float(ndtri(p))))


def _symmetric(fn: Expr) -> Expr | None:
    """The z of 2 Phi(z) - 1, as `jax.random.normal` writes it."""
    match fn:
        case Call("max", (x, Const(low))) | Call("max", (Const(low), x)) if (
            abs(low + 1) < 1e-6
        ):
            return _symmetric(x)
        case Call("add", (Call("mul", (x, Const(c))), Const(low))):
            if abs(c - 2) < 1e-6 and abs(low + 1) < 1e-6:
                return gaussian_of(x)
    return None
