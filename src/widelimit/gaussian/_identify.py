"""What a scalar function *is*, however it was spelled.

The expression is evaluated symbolically into pieces: breakpoints on the line, and on
each interval a sum of the terms of `_terms`. Comparisons, `max`, `select`, `abs` and
the like split intervals at the roots of what they compare. The result is confirmed
against the expression itself on a grid; a form that does not agree is no form.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from ..scalar import Arg, Call, Const, Expr, arity, evaluate_now
from . import _terms
from ._terms import Terms


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """`pieces[i]` holds between `breaks[i-1]` and `breaks[i]`; None is unknown."""

    breaks: tuple[float, ...]
    pieces: tuple[Terms | None, ...]


@functools.lru_cache(maxsize=4096)
def identify(f: Expr) -> Pieces | None:
    """The pieces of a function of `Arg(0)`, or None where it has no known form.

    Points where two pieces meet are not covered: they carry no probability unless the
    variance is zero, where the expression itself is evaluated.
    """
    if arity(f) > 1:
        return None
    with np.errstate(all="ignore"):
        try:
            found = _merged(_walk(f, {}))
        except (OverflowError, ZeroDivisionError):
            return None
    if any(p is None for p in found.pieces) or not _confirmed(f, found):
        return None
    return found


def _walk(f: Expr, known: dict[Expr, Pieces]) -> Pieces:
    if f not in known:
        match f:
            case Arg():
                known[f] = Pieces((), ({_terms.Mode(k=1): 1.0},))
            case Const(value):
                piece = _terms.constant(value) if math.isfinite(value) else None
                known[f] = Pieces((), (piece,))
            case Call(op, args):
                known[f] = _merged(_apply(op, [_walk(a, known) for a in args]))
    return known[f]


def _apply(op: str, args: list[Pieces]) -> Pieces:
    if op in _POINTWISE:
        return _map(_POINTWISE[op], *args)
    if op in _COMPARE:
        return _map(functools.partial(_compare, op), *_split(args[0], args[1]))
    match op:
        case "max" | "min":
            first, second = _split(args[0], args[1])
            return _map(functools.partial(_extreme, op), first, second)
        case "abs" | "sign":
            first, zero = _split(args[0], Pieces((), ({},)))
            return _map(functools.partial(_by_sign, op), first, zero)
        case "select":
            return _map(_select, *args)
    return Pieces((), (None,))


Interval = tuple[float, float]


def _map(f: Callable[..., Terms | None], *args: Pieces) -> Pieces:
    """Apply `f(interval, *terms)` on the common refinement."""
    breaks = sorted({b for a in args for b in a.breaks})
    edges = [-math.inf, *breaks, math.inf]
    out = []
    for interval in itertools.pairwise(edges):
        x = _inside(interval)
        terms = [a.pieces[bisect.bisect(a.breaks, x)] for a in args]
        out.append(f(interval, *terms))
    return Pieces(tuple(breaks), tuple(out))


def _inside(interval: Interval) -> float:
    low, high = interval
    if math.isinf(low):
        return 0.0 if math.isinf(high) else high - 1.0
    return low + 1.0 if math.isinf(high) else 0.5 * (low + high)


def _split(x: Pieces, y: Pieces) -> tuple[Pieces, Pieces]:
    """Both, refined so that x - y has one sign on every interval, or unknown."""
    breaks: set[float] = set(x.breaks) | set(y.breaks)

    def find(interval: Interval, f: Terms | None, g: Terms | None) -> Terms | None:
        if f is not None and g is not None:
            roots = _terms.real_roots(_terms.add(f, g, -1.0), *interval)
            breaks.update(roots or ())
        return None

    _map(find, x, y)
    cut = Pieces(tuple(sorted(breaks)), ({},) * (len(breaks) + 1))
    return _map(lambda i, f, _: f, x, cut), _map(lambda i, f, _: f, y, cut)


def _sign(interval: Interval, f: Terms | None, g: Terms | None) -> int | None:
    """The sign of f - g on an interval without roots inside; None if unknown."""
    if f is None or g is None:
        return None
    difference = _terms.add(f, g, -1.0)
    if not difference:
        return 0
    if _terms.real_roots(difference, *interval) is None:
        return None
    value = _terms.value(difference, np.array([_inside(interval)]))[0][0]
    return int(np.sign(value))


_COMPARE: dict[str, Callable[[int], bool]] = {
    "lt": lambda s: s < 0,
    "le": lambda s: s <= 0,
    "gt": lambda s: s > 0,
    "ge": lambda s: s >= 0,
    "eq": lambda s: s == 0,
    "ne": lambda s: s != 0,
}


def _compare(
    op: str, interval: Interval, f: Terms | None, g: Terms | None
) -> Terms | None:
    sign = _sign(interval, f, g)
    return None if sign is None else _terms.constant(float(_COMPARE[op](sign)))


def _extreme(
    op: str, interval: Interval, f: Terms | None, g: Terms | None
) -> Terms | None:
    sign = _sign(interval, f, g)
    if sign is None:
        return None
    return f if (sign >= 0) == (op == "max") else g


def _by_sign(
    op: str, interval: Interval, f: Terms | None, g: Terms | None
) -> Terms | None:
    sign = _sign(interval, f, g)
    if sign is None or f is None:
        return None
    return _terms.constant(float(sign)) if op == "sign" else _terms.add({}, f, sign)


def _select(
    interval: Interval, which: Terms | None, no: Terms | None, yes: Terms | None
) -> Terms | None:
    value = None if which is None else _terms.as_constant(which)
    return None if value is None else (yes if value else no)


def _strict(f: Callable[..., Terms | None]) -> Callable[..., Terms | None]:
    """`f` of known terms; unknown where any of them is."""

    def apply(interval: Interval, *terms: Terms | None) -> Terms | None:
        return None if any(t is None for t in terms) else f(*terms)

    return apply


def _power(f: Terms, g: Terms) -> Terms | None:
    n = _terms.as_constant(g)
    if n is None or not n.is_integer() or abs(n) > 24:
        return None
    return _terms.power(f, int(n))


def _hyperbolic(sign: float) -> Callable[[Terms], Terms | None]:
    def apply(f: Terms) -> Terms | None:
        up, down = _terms.exponential(f), _terms.exponential(_terms.add({}, f, -1.0))
        if up is None or down is None:
            return None
        return _terms.add(_terms.add({}, up, 0.5), down, 0.5 * sign)

    return apply


def _shifted(
    f: Callable[[Terms], Terms | None], scale: float, shift: float
) -> Callable[[Terms], Terms | None]:
    def apply(x: Terms) -> Terms | None:
        y = f(x)
        return None if y is None else _terms.add(_terms.constant(shift), y, scale)

    return apply


def _logic(f: Callable[..., bool]) -> Callable[..., Terms | None]:
    def apply(*args: Terms) -> Terms | None:
        values = [_terms.as_constant(a) for a in args]
        if any(v is None for v in values):
            return None
        return _terms.constant(float(f(*(bool(v) for v in values))))

    return apply


def _rounding(f: Callable[[float], float]) -> Callable[[Terms], Terms | None]:
    def apply(x: Terms) -> Terms | None:
        value = _terms.as_constant(x)
        return None if value is None else _terms.constant(float(f(value)))

    return apply


_POINTWISE: dict[str, Callable[..., Terms | None]] = {
    name: _strict(f)
    for name, f in {
        "add": _terms.add,
        "sub": lambda f, g: _terms.add(f, g, -1.0),
        "neg": lambda f: _terms.add({}, f, -1.0),
        "mul": _terms.times,
        "div": _terms.quotient,
        "pow": _power,
        "exp": _terms.exponential,
        "exp2": lambda f: _terms.exponential(_terms.add({}, f, math.log(2.0))),
        "expm1": _shifted(_terms.exponential, 1.0, -1.0),
        "sinh": _hyperbolic(-1.0),
        "cosh": _hyperbolic(1.0),
        "sin": functools.partial(_terms.cosine, phase=-1j),
        "cos": _terms.cosine,
        "erf": _terms.error_function,
        "erfc": _shifted(_terms.error_function, -1.0, 1.0),
        "and": _logic(lambda x, y: x and y),
        "or": _logic(lambda x, y: x or y),
        "xor": _logic(lambda x, y: x != y),
        "not": _logic(lambda x: not x),
        "is_finite": lambda f: _terms.constant(1.0),
        "floor": _rounding(math.floor),
        "ceil": _rounding(math.ceil),
        "round": _rounding(np.round),
        "sqrt": _rounding(lambda v: math.sqrt(v) if v >= 0 else math.nan),
    }.items()
}


def _merged(f: Pieces) -> Pieces:
    """Without the breakpoints at which nothing changes."""
    breaks: list[float] = []
    pieces: list[Terms | None] = [f.pieces[0]]
    for point, piece in zip(f.breaks, f.pieces[1:], strict=True):
        last = pieces[-1]
        same = (piece is None) == (last is None)
        if same and piece is not None and last is not None:
            same = not _terms.add(piece, last, -1.0)
        if not same:
            breaks.append(point)
            pieces.append(piece)
    return Pieces(tuple(breaks), tuple(pieces))


def _confirmed(f: Expr, found: Pieces) -> bool:
    """Whether the pieces agree with the expression on a grid, to rounding."""
    # An irrational step keeps the grid off the breakpoints.
    x = (np.arange(-90, 91) + 0.2360679774997897) * 0.1360827634879543
    near = [b + s * d for b in found.breaks for d in (1e-6, 0.01, 0.4) for s in (-1, 1)]
    x = np.concatenate([x, np.array(near)])
    expected = evaluate_now(f, [x])
    which = np.searchsorted(np.array(found.breaks), x)
    got, size = np.zeros_like(x), np.zeros_like(x)
    for i, piece in enumerate(found.pieces):
        if piece is not None:
            here = which == i
            got[here], size[here] = _terms.value(piece, x[here])
    with np.errstate(all="ignore"):
        error = np.abs(got - expected)
    return bool(np.all(error <= 2e-13 * (1e-3 + size + np.abs(expected))))
