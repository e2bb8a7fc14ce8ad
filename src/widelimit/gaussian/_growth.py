"""How fast a function grows: whether the theorems and the integrals cover it.

The limit theorem asks for controlled functions, |psi(x)| <= exp(c + C |x|^alpha) with
alpha < 2 (Yang 2019, https://arxiv.org/abs/1902.04760). The analysis is structural
and conservative: it knows the asymptotics of the operations, not of their
cancellations.

Each expression gets, on the side x -> +inf and on x -> -inf, bounds of its value from
below and above, each of the form sign * magnitude, magnitude one of

    (0, p): at most |x|^p;   (1, p): at most exp(C |x|^p).
"""

import dataclasses
import math

from ..scalar import Arg, Call, Const, Expr
from ._factors import used

Magnitude = tuple[int, float]

_BOUNDED_OPS = frozenset(
    "sin cos tanh logistic erf erfc atan atan2 sign asin acos is_finite "
    "lt le gt ge eq ne and or xor not".split()
)
_ONE: Magnitude = (0, 0.0)
_BEYOND: Magnitude = (2, math.inf)


@dataclasses.dataclass(frozen=True, slots=True)
class _Range:
    """Bounds as |x| grows on one side: -low <= value <= high, up to constants.

    `low` and `high` are magnitudes of the negative and of the positive part, None
    where that part is bounded. `rate` is p when |value| is at least of the order
    |x|^p, 0 when nothing is known.
    """

    low: Magnitude | None
    high: Magnitude | None
    rate: float = 0.0

    @property
    def size(self) -> Magnitude:
        return max(self.low or _ONE, self.high or _ONE)


_BOUNDED = _Range(None, None)


@dataclasses.dataclass(frozen=True, slots=True)
class Signs:
    """What is known of the arguments of a function.

    Attributes:
        nonnegative: those that are at least 0.
        positive: those that stay above a positive constant.
    """

    nonnegative: frozenset[int] = frozenset()
    positive: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class _At:
    """The argument that grows, all that move, and what is known of them."""

    argument: int
    moving: frozenset[int]
    known: Signs


def growth(f: Expr, argument: int = 0, known: Signs | None = None) -> str:
    """The growth class of a function of one argument, the others held fixed.

    Args:
        f: the function.
        argument: the number of the argument.
        known: the signs of arguments, where something is known of them.

    Returns:
        "bounded"; "polynomial", |f| <= C (1 + |x|)^p; "controlled",
        |f| <= exp(c + C |x|^alpha) with alpha < 2; or "beyond", when none of these
        could be shown.
    """
    at = _At(argument, frozenset({argument}), known or Signs())
    worst = max(_range(f, at, side).size for side in (1, -1))
    kind, power = worst
    if kind == 0:
        return "bounded" if power <= 0 else "polynomial"
    return "controlled" if kind == 1 and power < 2 else "beyond"


def is_singular(f: Expr, argument: int = 0, known: Signs | None = None) -> bool:
    """Whether a function may be infinite or undefined at a finite argument."""
    at = _At(argument, frozenset({argument}), known or Signs())

    def pole(e: Expr) -> bool:
        if not isinstance(e, Call):
            return False
        return _has_pole(e.op, e.args, at) or any(pole(a) for a in e.args)

    return pole(f)


def is_positive(f: Expr, moving: frozenset[int], known: Signs) -> bool:
    """Whether a function of several arguments surely stays above a positive constant.

    Args:
        f: the function.
        moving: its arguments; others are fixed numbers, which are not 0.
        known: the signs of arguments, where something is known of them.
    """
    at = _At(-1, moving, known)
    return _positive(f, at) and _nonnegative(f, at)


def _range(e: Expr, at: _At, side: int) -> _Range:
    match e:
        case Arg(i) if i == at.argument:
            part: Magnitude = (0, 1.0)
            return _Range(None, part, 1.0) if side > 0 else _Range(part, None, 1.0)
        case Arg() | Const():
            return _BOUNDED
        case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
            return _range(value, at, side)
        case Call("select", (which, no, yes)) if (
            known := _truth(which, at, side)
        ) is not None:
            return _range(yes if known else no, at, side)
        case Call(op, args):
            inner = tuple(_range(a, at, side) for a in args)
            if _has_pole(op, args, at):
                return _Range(_BEYOND, _BEYOND)
            return _operation(op, args, inner)


def _truth(which: Expr, at: _At, side: int) -> bool | None:
    """Whether a comparison holds for all large |x| on one side, if known."""
    match which:
        case Call("gt" | "ge" | "lt" | "le" as op, (x, y)):
            gap = _range(Call("sub", (x, y)), at, side)
            sign = _sign(gap)
            return None if sign == 0 else (sign > 0) == (op in ("gt", "ge"))
    return None


def _sign(x: _Range) -> int:
    """The sign of something that surely tends to plus or minus infinity, or 0."""
    if x.rate <= 0.0 or (x.low is None) == (x.high is None):
        return 0
    return 1 if x.low is None else -1


def _operation(op: str, args: tuple[Expr, ...], inner: tuple[_Range, ...]) -> _Range:  # noqa: C901
    if all(r.size == _ONE for r in inner):
        return _BOUNDED
    if op in _BOUNDED_OPS:
        return _BOUNDED
    match op, inner:
        case "neg", (x,):
            return _Range(x.high, x.low, x.rate)
        case "abs", (x,):
            return _Range(None, _top(x.low, x.high), x.rate)
        case "add", (x, y):
            return _sum(x, y)
        case "sub", (x, y):
            return _sum(x, _Range(y.high, y.low, y.rate))
        case "mul", (x, y):
            return _square(x) if args[0] == args[1] else _product(x, y)
        case "max", (x, y):
            return _Range(_bottom(x.low, y.low), _top(x.high, y.high))
        case "min", (x, y):
            return _Range(_top(x.low, y.low), _bottom(x.high, y.high))
        case "select", (_, x, y):
            return _Range(_top(x.low, y.low), _top(x.high, y.high))
        case (("exp" | "exp2" | "expm1"), (x,)):
            return _exponential(x)
        case (("floor" | "ceil" | "round"), (x,)):
            return _Range(x.low, x.high, x.rate)
        case (("log" | "log1p"), (x,)):
            return _logarithm(x)
        case (("sqrt" | "cbrt" | "asinh"), (x,)):
            power = {"sqrt": 0.5, "cbrt": 1.0 / 3.0}.get(op, 0.5)
            return _Range(_root(x.low, power), _root(x.high, power), x.rate * power)
        case "pow", (x, _) if isinstance(args[1], Const):
            return _power(x, args[1].value)
        case "div", (x, y):
            return _quotient(x, y, args[1])
        case (("sinh" | "cosh"), (x,)):
            big = _exponential(_Range(None, _top(x.low, x.high))).high
            return _Range(None if op == "cosh" else big, big)
        case "rem", (x, y) if y.size == _ONE:
            return _BOUNDED
        case "rsqrt", (x,):
            return _BOUNDED
        case (("lgamma" | "digamma"), (x,)):
            part = _root(x.size, 2.0)
            return _Range(part, part)
    return _Range(_BEYOND, _BEYOND)


def _has_pole(op: str, args: tuple[Expr, ...], at: _At) -> bool:
    """Whether the operation may be infinite or undefined at a finite argument."""
    if not any(used(a) & at.moving for a in args):
        return False  # a fixed number, which the caller keeps finite
    match op, args:
        case "div", (_, below):
            return not _away_from_zero(below, at)
        case "pow", (x, Const(n)) if float(n).is_integer():
            return n < 0 and not _away_from_zero(x, at)
        case "pow", (x, Const(n)):
            return not (_away_from_zero if n < 0 else _nonnegative)(x, at)
        case ("pow", (x, _)) | (("log" | "rsqrt" | "lgamma" | "digamma"), (x,)):
            return not _away_from_zero(x, at)
        case (("log1p" | "sqrt"), (x,)):
            return not _nonnegative(x, at)
        case (("atanh" | "erf_inv" | "tan" | "acosh"), (x,)):
            return at.argument in used(x)
    return False


def _away_from_zero(e: Expr, at: _At) -> bool:
    """Whether `e` is known to stay above a positive constant, in a few spellings."""
    match e:
        case Const(value):
            return value != 0.0
        case Arg(i):
            # A parameter is a fixed number, which the caller keeps from 0.
            return i in at.known.positive or i not in at.moving
        case Call("add", (x, y)):
            return (_positive(x, at) and _nonnegative(y, at)) or (
                _nonnegative(x, at) and _positive(y, at)
            )
        case Call("max", (x, y)):
            return any(isinstance(z, Const) and z.value > 0 for z in (x, y))
        case Call("sqrt" | "abs", (x,)):
            return _away_from_zero(x, at)
        case Call("pow", (x, Const(n))):
            return n > 0 and _away_from_zero(x, at)
        case Call("mul", (x, y)):
            return _away_from_zero(x, at) and _away_from_zero(y, at)
        case Call("cosh", _):
            return True
    return False


def _positive(e: Expr, at: _At) -> bool:
    fixed = not isinstance(e, Const) and not used(e) & at.moving
    return _away_from_zero(e, at) and (fixed or _nonnegative(e, at))


def _nonnegative(e: Expr, at: _At) -> bool:
    match e:
        case Arg(i):
            return i in at.known.nonnegative or i in at.known.positive
        case Const(value):
            return value >= 0.0
        case Call("abs" | "exp" | "exp2" | "sqrt" | "cosh" | "logistic", _):
            return True
        case Call("pow", (_, Const(n))):
            return n % 2 == 0
        case Call("mul", (x, y)):
            return x == y or (_nonnegative(x, at) and _nonnegative(y, at))
        case Call("add" | "div", (x, y)):
            return _nonnegative(x, at) and _nonnegative(y, at)
        case Call("max", (x, y)):
            return _nonnegative(x, at) or _nonnegative(y, at)
    return False


def _top(x: Magnitude | None, y: Magnitude | None) -> Magnitude | None:
    return max((m for m in (x, y) if m is not None), default=None)


def _bottom(x: Magnitude | None, y: Magnitude | None) -> Magnitude | None:
    return None if x is None or y is None else min(x, y)


def _sum(x: _Range, y: _Range) -> _Range:
    low, high = _top(x.low, y.low), _top(x.high, y.high)
    # Without an opposite sign nothing cancels.
    rate = max(x.rate, y.rate) if low is None or high is None else 0.0
    if rate == 0.0 and x.size != y.size:
        larger = x if x.size > y.size else y
        rate = larger.rate if larger.rate > min(x.size, y.size)[1] else 0.0
    return _Range(low, high, rate)


def _times(x: Magnitude, y: Magnitude) -> Magnitude:
    if x[0] == y[0] == 0:
        return (0, x[1] + y[1])
    return max(x, y)


def _square(x: _Range) -> _Range:
    return _Range(None, _times(x.size, x.size), 2 * x.rate)


def _product(x: _Range, y: _Range) -> _Range:
    # exp(-x^2) * x^p: a decaying factor is only known to be bounded here.
    size = _times(x.size, y.size)
    part = None if size <= _ONE else size
    rate = x.rate + y.rate if x.rate and y.rate else 0.0
    if sign := _sign(x) * _sign(y):
        return _Range(None, part, rate) if sign > 0 else _Range(part, None, rate)
    return _Range(part, part, rate)


def _exponential(x: _Range) -> _Range:
    if x.high is None:
        return _BOUNDED
    kind, power = x.high
    return _Range(None, (1, power) if kind == 0 else _BEYOND)


def _logarithm(x: _Range) -> _Range:
    high = x.size
    part = (0, high[1]) if high[0] == 1 else (0, 0.5) if high[0] == 0 else _BEYOND
    low = None if x.low is None else part
    return _Range(low, part)


def _root(x: Magnitude | None, power: float) -> Magnitude | None:
    if x is None or x[0] == 2:
        return x
    return (0, x[1] * power) if x[0] == 0 else x


def _power(x: _Range, n: float) -> _Range:
    if n < 0:
        return _BOUNDED
    part = _root(x.size, n)
    if float(n).is_integer() and n % 2 == 1:
        return _Range(_root(x.low, n), _root(x.high, n), x.rate * n)
    return _Range(None, part, x.rate * n)


def _quotient(x: _Range, y: _Range, below: Expr) -> _Range:
    kind, power = x.size
    if kind == 0:
        power = max(power - y.rate, 0.0)
    part = None if (kind, power) <= _ONE else (kind, power)
    if isinstance(below, Const) and (sign := _sign(x)):
        up = sign * below.value > 0
        return _Range(None, part, x.rate) if up else _Range(part, None, x.rate)
    return _Range(part, part)
