"""Where a function of one variable is not analytic: kinks, jumps, switches.

The candidates are the zeros of the arguments of abs, sign, max, min, comparisons and
roots. A candidate where the pieces continue each other, as in
softplus(x) = max(x, 0) + log(1 + exp(-|x|)), is found to be smooth numerically.

What is assumed: a switch whose argument is not affine is found by its change of sign
on a grid of spacing 1/64 in [-64, 64] and of ratio 1.01 outside, up to 10^4. Switches
closer together than that, or further out, are missed. A switch on a parameter is
found when its argument is affine in the variable. `floor`, `ceil`, `round` and `rem`
are split within [-32, 32].
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np

from .._errors import UnsupportedError
from .._jax import enable_x64
from ..scalar import (
    Arg,
    Call,
    Const,
    Expr,
    arity,
    call,
    differentiate,
    evaluate,
    log_add_exp_arguments,
    substitute,
)
from ._factors import used

_COMPARISONS = frozenset(("lt", "le", "gt", "ge"))
_SINGULAR = frozenset(("sqrt", "rsqrt", "cbrt", "log"))


@dataclasses.dataclass(frozen=True, slots=True)
class Kinks:
    """The structure of a function of one variable.

    Attributes:
        places: where it is not analytic: expressions in the parameters only, whose
            arguments are numbered as in the function (1, 2, ...).
        continuous: whether it is known to have no jump.
        slopes: the jump of the first derivative at each kink; empty when a kink
            depends on a parameter.
        complete: whether every switch was located.
    """

    places: tuple[Expr, ...] = ()
    continuous: bool = True
    slopes: tuple[float, ...] = ()
    complete: bool = True

    @property
    def smooth(self) -> bool:
        """Whether the function is analytic on the line, as far as is known."""
        return not self.places and self.complete


def on_host(expr: Expr, x: np.ndarray) -> np.ndarray:
    """The values of a function of one variable, in float64, also while tracing."""
    with jax.ensure_compile_time_eval(), enable_x64():
        value = evaluate(expr, [np.asarray(x, np.float64)])
        return np.broadcast_to(np.asarray(value, np.float64), np.shape(x))


_REACH = 64.0
"""Kinks farther out than this are 20 standard deviations away at variance 10."""

MANY = 100
"""More kinks than this are not judged one by one."""


@functools.lru_cache(maxsize=1024)
def find_kinks(f: Expr) -> Kinks:
    """Find the kinks of f(x, *params), x being argument 0."""
    complete, places, moving = True, [], []
    for switch in dict.fromkeys(switches(f)):
        if arity(switch) <= 1:
            places.extend(_roots(switch))
        elif (place := _affine_root(switch)) is not None:
            moving.append(place)
        elif differentiate_or_none(switch) != Const(0.0):
            complete = False
    if len(near := [t for t in _merge(places) if abs(t) <= _REACH]) > MANY:
        # No rule splits at so many: which of them matter is not worth finding out.
        kinks = (*(Const(t) for t in near), *moving)
        return Kinks(kinks, not _may_jump(f), (), complete)
    if arity(f) > 1 and places and not moving:
        return _with_parameters(f, places, complete)
    if moving:
        kinks = (*(Const(t) for t in _merge(places)), *moving)
        return Kinks(kinks, not _may_jump(f), (), complete)
    return _located(f, places, complete)


def _located(f: Expr, places: list[float], complete: bool) -> Kinks:
    with np.errstate(all="ignore"):
        near = [t for t in _merge(places) if abs(t) <= _REACH]
        kept = [t for t in near if not _analytic_at(f, t)]
        jumps = [_jump(f, t) for t in kept]
        slope = differentiate_or_none(f)
        slopes = None if slope is None else [_jump(slope, t) for t in kept]
    continuous = not any(large for _, large in jumps)
    if slopes is None or not np.all(np.isfinite([v for v, _ in slopes])):
        return Kinks(tuple(Const(t) for t in kept), False, (), complete)
    values = tuple(v if large else 0.0 for v, large in slopes)
    return Kinks(tuple(Const(t) for t in kept), continuous, values, complete)


def _with_parameters(f: Expr, places: list[float], complete: bool) -> Kinks:
    """Static kinks of a function with parameters: judged at a few parameter values."""
    # A kink that appears at any of these values is kept; that they all cancel at
    # three unrelated values and not elsewhere would need a conspiracy.
    count, found, continuous = arity(f) - 1, [], True
    for base in (0.37, 1.31, 2.83):
        values = [Const(base + 0.11 * i) for i in range(count)]
        one = _located(substitute(f, [Arg(0), *values]), places, True)
        found.extend(k.value for k in one.places if isinstance(k, Const))
        continuous = continuous and one.continuous
    return Kinks(tuple(Const(t) for t in _merge(found)), continuous, (), complete)


@functools.lru_cache(maxsize=1024)
def parity(f: Expr) -> int:
    """1 for an even function, -1 for an odd one, else 0; parameters make it 0."""
    if arity(f) > 1:
        return 0
    x = np.linspace(0.013, 12.0, 97) ** 1.3
    with np.errstate(all="ignore"):
        right, left = on_host(f, x), on_host(f, -x)
    close = 1e-14 * (np.abs(right) + np.abs(left))
    for sign in (1, -1):
        # A comparison with NaN is false, as it should be here.
        if np.all(np.abs(right - sign * left) <= close):
            return sign
    return 0


@functools.lru_cache(maxsize=1024)
def leaf_kinks(f: Expr, leaf: int, d: int) -> Kinks:
    """The kinks of a function of `d` leaves along one of them.

    Places are functions of the parameters, numbered from 1. A switch that compares
    several leaves is not located, and a function of several leaves counts as one that
    may jump at its kinks.
    """
    others = sorted(i for i in used(f) if i < d and i != leaf)
    names: list[Expr] = [*[Arg(0)] * d, *(Arg(1 + i) for i in range(arity(f)))]
    if not others:
        return find_kinks(substitute(f, names))
    complete, places = True, []
    for switch in dict.fromkeys(switches(f)):
        mine = [i for i in used(switch) if i < d]
        if mine == [leaf]:
            found = find_kinks(call("abs", substitute(switch, names)))
            places.extend(found.places)
            complete = complete and found.complete
        elif len(mine) > 1:
            complete = False
    return Kinks(tuple(dict.fromkeys(places)), not places, (), complete)


def differentiate_or_none(f: Expr) -> Expr | None:
    """The derivative in argument 0, or None where an operation has none."""
    try:
        return differentiate(f, 0)
    except UnsupportedError:
        return None


def switches(e: Expr) -> Iterator[Expr]:  # noqa: C901
    """Expressions whose zeros may be kinks of `e`."""
    if not isinstance(e, Call):
        return
    match e:
        case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
            yield from switches(value)
            return
        case Call("add", _) if (pair := log_add_exp_arguments(e)) is not None:
            for x in pair:
                yield from switches(x)
            return
        case Call("abs" | "sign", (x,)):
            yield x
        case Call(op, (x,)) if op in _SINGULAR:
            yield x
        case Call("asin" | "acos" | "erf_inv" | "atanh", (x,)):
            yield call("sub", x, Const(1.0))
            yield call("add", x, Const(1.0))
        case Call(op, (x, y)) if op in _COMPARISONS or op in ("max", "min"):
            yield call("sub", x, y)
        case Call("select", (which, _, _)) if _is_number(which):
            yield which
        case Call("pow", (x, Const(n))) if not float(n).is_integer():
            yield x
        case Call("pow", (x, y)) if not isinstance(y, Const):
            yield x
        case Call("floor" | "ceil", (x,)):
            yield from (call("sub", x, Const(float(k))) for k in range(-32, 33))
        case Call("round", (x,)):
            yield from (call("sub", x, Const(k + 0.5)) for k in range(-32, 32))
        case Call("rem", (x, Const(y))):
            yield from (call("sub", x, Const(y * k)) for k in range(-32, 33))
    for a in e.args:
        yield from switches(a)


def _is_number(which: Expr) -> bool:
    """Whether a condition is a number compared with zero, not a comparison."""
    logical = ("and", "or", "xor", "not", "eq", "ne", "is_finite", *_COMPARISONS)
    return not (isinstance(which, Call) and which.op in logical)


def _may_jump(f: Expr) -> bool:
    jumps = {"sign", "floor", "ceil", "round", "rem", "select", *_COMPARISONS}
    match f:
        case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
            return _may_jump(value)
        case Call("add", _) if (pair := log_add_exp_arguments(f)) is not None:
            return any(_may_jump(x) for x in pair)
        case Call(op, args):
            return op in jumps or any(_may_jump(a) for a in args)
    return False


def _affine_root(switch: Expr) -> Expr | None:
    """-b / a when `switch` is a x + b with a and b free of x."""
    slope = differentiate_or_none(switch)
    if slope is None or slope == Const(0.0) or 0 in used(slope) or _may_jump(switch):
        return None
    others = [Arg(i) for i in range(1, arity(switch))]
    return call("div", call("neg", substitute(switch, [Const(0.0), *others])), slope)


def _grid() -> np.ndarray:
    far = 64.0 * 1.01 ** np.arange(1, 510)
    # The offset keeps the usual kinks (0, 1, 6, ..) off the grid's own points.
    near = np.arange(-4096, 4097) / 64.0 + 1.7e-3
    return np.concatenate([-far[::-1], near, far])


def _roots(switch: Expr) -> list[float]:
    if (root := _affine_root(switch)) is not None and arity(root) == 0:
        return [_number(root)]
    x = _grid()
    with np.errstate(all="ignore"):
        sign = np.sign(on_host(switch, x))
        at = np.flatnonzero(sign[:-1] * sign[1:] < 0)
        low, high, left = x[at], x[at + 1], sign[at]
        for _ in range(64 if at.size else 0):
            middle = 0.5 * (low + high)
            same = np.sign(on_host(switch, middle)) == left
            low, high = np.where(same, middle, low), np.where(same, high, middle)
    return [float(v) for v in high]


def _number(e: Expr) -> float:
    return float(on_host(e, np.zeros(1))[0])


def _merge(places: list[float]) -> list[float]:
    kept: list[float] = []
    for t in sorted(places):
        if not np.isfinite(t):
            continue
        if not kept or t - kept[-1] > 1e-12 * max(1.0, abs(t)):
            kept.append(t)
    return kept


_DEGREE = 24
_ANGLES = (2 * np.arange(_DEGREE) + 1) * np.pi / (2 * _DEGREE)


def _analytic_at(f: Expr, t: float) -> bool:
    """Whether one polynomial fits both sides of t to rounding."""
    inside = np.cos(_ANGLES)
    between = np.cos((np.arange(4 * _DEGREE) + 0.37) * np.pi / (4 * _DEGREE))
    for half in (0.25, 1 / 16):
        values = on_host(f, t + half * inside)
        wanted = on_host(f, t + half * between)
        if not (np.all(np.isfinite(values)) and np.all(np.isfinite(wanted))):
            return False
        fit = np.polynomial.chebyshev.chebfit(inside, values, _DEGREE - 1)
        error = np.polynomial.chebyshev.chebval(between, fit) - wanted
        if np.max(np.abs(error)) <= 2e-13 * (np.max(np.abs(wanted)) + 1e-300):
            return True
    return False


def _jump(f: Expr, t: float) -> tuple[float, bool]:
    """The right limit minus the left one, and whether it is more than rounding."""
    right, left = _limit(f, t, 1.0), _limit(f, t, -1.0)
    size = abs(right) + abs(left) + 1.0
    return right - left, bool(not abs(right - left) <= 1e-9 * size)


def _limit(f: Expr, t: float, side: float) -> float:
    """The one-sided limit at t, extrapolated by a polynomial."""
    half = 1 / 32
    nodes = np.cos(_ANGLES[::2])
    values = on_host(f, t + side * half * (1.0 + nodes) / 2.0)
    fit = np.polynomial.chebyshev.chebfit(nodes, values, nodes.size - 1)
    return float(np.polynomial.chebyshev.chebval(-1.0, fit))
