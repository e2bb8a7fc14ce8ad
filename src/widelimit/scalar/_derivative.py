"""Derivatives of expressions, as expressions."""

import functools
import math
from collections.abc import Callable

from .._errors import UnsupportedError
from ._expr import Arg, Call, Const, Expr, call
from ._given import DERIVATIVES

ZERO, ONE, TWO = Const(0.0), Const(1.0), Const(2.0)

_STEPS = frozenset(
    "lt le gt ge eq ne and or xor not is_finite sign floor ceil round".split()
)


def _add(x: Expr, y: Expr) -> Expr:
    return y if x == ZERO else x if y == ZERO else call("add", x, y)


def _sub(x: Expr, y: Expr) -> Expr:
    return _neg(y) if x == ZERO else x if y == ZERO else call("sub", x, y)


def _neg(x: Expr) -> Expr:
    return x if x == ZERO else call("neg", x)


def _mul(x: Expr, y: Expr) -> Expr:
    if ZERO in (x, y):
        return ZERO
    if x == Const(-1.0):
        return _neg(y)
    return _neg(x) if y == Const(-1.0) else call("mul", x, y)


def _pow(x: Expr, n: float) -> Expr:
    return ONE if n == 0.0 else call("pow", x, Const(n))


def _gauss(x: Expr, sign: float, scale: float) -> Expr:
    return _mul(Const(scale), call("exp", _mul(Const(sign), _pow(x, 2.0))))


def _reciprocal(x: Expr) -> Expr:
    return call("div", ONE, x)


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "neg": lambda x: Const(-1.0),
    "exp": lambda x: call("exp", x),
    "exp2": lambda x: _mul(Const(math.log(2.0)), call("exp2", x)),
    "expm1": lambda x: call("exp", x),
    "log": _reciprocal,
    "log1p": lambda x: _reciprocal(_add(ONE, x)),
    "sqrt": lambda x: _mul(Const(0.5), call("rsqrt", x)),
    "rsqrt": lambda x: _mul(Const(-0.5), call("div", call("rsqrt", x), x)),
    "cbrt": lambda x: call("div", ONE, _mul(Const(3.0), _pow(call("cbrt", x), 2.0))),
    "abs": lambda x: call("sign", x),
    "sin": lambda x: call("cos", x),
    "cos": lambda x: _neg(call("sin", x)),
    "tan": lambda x: _add(ONE, _pow(call("tan", x), 2.0)),
    "asin": lambda x: call("rsqrt", _sub(ONE, _pow(x, 2.0))),
    "acos": lambda x: _neg(call("rsqrt", _sub(ONE, _pow(x, 2.0)))),
    "atan": lambda x: _reciprocal(_add(ONE, _pow(x, 2.0))),
    "sinh": lambda x: call("cosh", x),
    "cosh": lambda x: call("sinh", x),
    "tanh": lambda x: _sub(ONE, _pow(call("tanh", x), 2.0)),
    "asinh": lambda x: call("rsqrt", _add(_pow(x, 2.0), ONE)),
    "acosh": lambda x: call("rsqrt", _sub(_pow(x, 2.0), ONE)),
    "atanh": lambda x: _reciprocal(_sub(ONE, _pow(x, 2.0))),
    # 1 - logistic(x) would cancel for large x.
    "logistic": lambda x: _mul(call("logistic", x), call("logistic", call("neg", x))),
    "erf": lambda x: _gauss(x, -1.0, 2.0 / math.sqrt(math.pi)),
    "erfc": lambda x: _gauss(x, -1.0, -2.0 / math.sqrt(math.pi)),
    "erf_inv": lambda x: _gauss(call("erf_inv", x), 1.0, math.sqrt(math.pi) / 2.0),
    "lgamma": lambda x: call("digamma", x),
}


@functools.lru_cache(maxsize=4096)
def differentiate(expr: Expr, index: int) -> Expr:
    """The partial derivative of `expr` with respect to argument `index`.

    Where a kink or a jump makes it undefined, it is the derivative of the pieces on
    both sides: no delta functions. At a tie `max` and `min` take the average.

    Raises:
        UnsupportedError: an operation has no derivative among the known operations.
    """
    match expr:
        case Arg(i):
            return ONE if i == index else ZERO
        case Const():
            return ZERO
        case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
            # A guard that lets NaN through; elsewhere it is `value`.
            return differentiate(value, index)
        case Call(op, args):
            if op in _STEPS:
                return ZERO
            pair = log_add_exp_arguments(expr)
            if pair is not None:
                return _log_add_exp_derivative(*pair, index)
            inner = tuple(differentiate(a, index) for a in args)
            return ZERO if all(d == ZERO for d in inner) else _chain(op, args, inner)


def _chain(op: str, args: tuple[Expr, ...], inner: tuple[Expr, ...]) -> Expr:  # noqa: C901
    match op, args, inner:
        case _, (x,), (dx,) if op in _UNARY:
            return _mul(_UNARY[op](x), dx)
        case _, (x,), (dx,) if op in DERIVATIVES:
            return _mul(call(DERIVATIVES[op], x), dx)
        case "add", _, (dx, dy):
            return _add(dx, dy)
        case "sub", _, (dx, dy):
            return _sub(dx, dy)
        case "mul", (x, y), (dx, dy):
            return _add(_mul(dx, y), _mul(x, dy))
        case "div", (x, y), (dx, dy):
            if dy == ZERO:
                return call("div", dx, y)
            return _sub(
                ZERO if dx == ZERO else call("div", dx, y),
                _mul(call("div", x, _pow(y, 2.0)), dy),
            )
        case "pow", (x, Const(n)), (dx, _):
            return _mul(_mul(Const(n), _pow(x, n - 1.0)), dx)
        case "pow", (x, y), (dx, dy):
            log_rate = _add(
                _mul(dy, call("log", x)),
                call("div", _mul(y, dx), x) if dx != ZERO else ZERO,
            )
            return _mul(call("pow", x, y), log_rate)
        case (("max" | "min"), (x, y), (dx, dy)):
            side = call("sign", call("sub", x, y))
            side = side if op == "max" else call("neg", side)
            up = _mul(Const(0.5), _add(ONE, side))
            down = _mul(Const(0.5), _sub(ONE, side))
            return _add(_mul(up, dx), _mul(down, dy))
        case "select", (which, _, _), (_, no, yes):
            return call("select", which, no, yes)
        case "rem", (x, y), (dx, dy):
            quotient = call("div", call("sub", x, call("rem", x, y)), y)
            return _sub(dx, _mul(call("round", quotient), dy))
        case "atan2", (y, x), (dy, dx):
            square = _add(_pow(x, 2.0), _pow(y, 2.0))
            return call("div", _sub(_mul(x, dy), _mul(y, dx)), square)
    raise UnsupportedError(
        f"The derivative of `{op}` is not known to widelimit; write the function "
        "without it, or do not differentiate through it."
    )


def log_add_exp_arguments(expr: Expr) -> tuple[Expr, Expr] | None:
    """The x and y of log(e^x + e^y), spelled max(x, y) + log1p(exp(-|x - y|))."""
    match expr:
        case Call("add", (Call("max", (x, y)), Call("log1p", (Call("exp", (low,)),)))):
            gap = call("neg", call("abs", call("sub", x, y)))
            return (x, y) if low == gap else None
    return None


def _log_add_exp_derivative(x: Expr, y: Expr, index: int) -> Expr:
    gap = call("sub", x, y)
    dx, dy = differentiate(x, index), differentiate(y, index)
    return _add(
        _mul(call("logistic", gap), dx), _mul(call("logistic", call("neg", gap)), dy)
    )
