"""Parameters p inside a nonlinearity: a sum of scale(p) phi(slope(p) x + shift(p)).

LayerNorm and its like put limits of moments into a nonlinearity as parameters. They
change the mean, variance and outer factor of a closed form, not the closed form.
"""

import dataclasses
import functools
from collections.abc import Iterator

from ..scalar import Arg, Call, Const, Expr, arity, call


@dataclasses.dataclass(frozen=True, slots=True)
class Addend:
    """scale(p) function(slope(p) x + shift(p)); None is 1 or 0."""

    function: Expr
    scale: Expr | None = None
    slope: Expr | None = None
    shift: Expr | None = None


@functools.lru_cache(maxsize=4096)
def addends(f: Expr) -> tuple[Addend, ...] | None:
    """`f` split so; None where a parameter enters in another way."""
    if arity(f) <= 1:
        return (Addend(f),)
    out: list[Addend] = []
    for scale, function in _terms(f):
        inner = _absorb(function)
        if inner is None:
            return None
        out.append(dataclasses.replace(inner, scale=scale))
    return tuple(out)


def _terms(f: Expr, scale: Expr | None = None) -> Iterator[tuple[Expr | None, Expr]]:
    """Sums and factors free of x taken apart."""
    if not _has(f, 0):
        yield _times(scale, f), Const(1.0)
        return
    match f:
        case Call("add", (x, y)):
            yield from _terms(x, scale)
            yield from _terms(y, scale)
        case Call("sub", (x, y)):
            yield from _terms(x, scale)
            yield from _terms(y, _times(scale, Const(-1.0)))
        case Call("neg", (x,)):
            yield from _terms(x, _times(scale, Const(-1.0)))
        case Call("mul", (x, y)) if not _has(x, 0):
            yield from _terms(y, _times(scale, x))
        case Call("mul", (x, y)) if not _has(y, 0):
            yield from _terms(x, _times(scale, y))
        case Call("div", (x, y)) if not _has(y, 0):
            yield from _terms(x, _times(scale, call("div", Const(1.0), y)))
        case _:
            yield scale, f


def _times(x: Expr | None, y: Expr) -> Expr:
    return y if x is None else call("mul", x, y)


def _absorb(f: Expr) -> Addend | None:
    """`f` as a function of one affine argument, the largest that will do."""
    if arity(f) <= 1:
        return Addend(f)
    for inner in _subexpressions(f):
        affine = _affine(inner) if _has(inner, 0) else None
        if affine is not None:
            outer = _replace(f, inner, Arg(-1))
            if not any(_has(outer, i) for i in range(arity(f))):
                return Addend(_replace(outer, Arg(-1), Arg(0)), None, *affine)
    return None


def _affine(f: Expr) -> tuple[Expr, Expr] | None:
    """Slope and shift of a function affine in x, as expressions of the parameters."""
    if not _has(f, 0):
        return Const(0.0), f
    match f:
        case Arg():
            return Const(1.0), Const(0.0)
        case Call("neg", (x,)):
            return _scaled(_affine(x), lambda e: call("neg", e))
        case Call("add" | "sub" as op, (x, y)):
            one, two = _affine(x), _affine(y)
            if one is None or two is None:
                return None
            return call(op, one[0], two[0]), call(op, one[1], two[1])
        case Call("mul", (x, y)) if not _has(x, 0):
            return _scaled(_affine(y), lambda e: call("mul", x, e))
        case Call("mul" | "div" as op, (x, y)) if not _has(y, 0):
            return _scaled(_affine(x), lambda e: call(op, e, y))
    return None


def _scaled(affine, f):
    if affine is None:
        return None
    slope, shift = affine
    return f(slope), shift if shift == Const(0.0) else f(shift)


def _has(f: Expr, index: int) -> bool:
    match f:
        case Arg(i):
            return i == index
        case Const():
            return False
        case Call(_, args):
            return any(_has(a, index) for a in args)


def _subexpressions(f: Expr) -> Iterator[Expr]:
    """All distinct subexpressions, outer ones first."""
    seen: dict[Expr, None] = {}
    level = [f]
    while level:
        seen.update(dict.fromkeys(level))
        level = [
            a for e in level if isinstance(e, Call) for a in e.args if a not in seen
        ]
    return iter(seen)


def _replace(f: Expr, old: Expr, new: Expr) -> Expr:
    if f == old:
        return new
    match f:
        case Call(op, args):
            return Call(op, tuple(_replace(a, old, new) for a in args))
    return f
