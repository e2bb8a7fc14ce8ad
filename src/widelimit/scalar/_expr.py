"""Expression trees for scalar functions, and the closed table of their operations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True, slots=True)
class Arg:
    """The argument number `index` of the function."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Const:
    """A number. Booleans are kept as 0.0 and 1.0."""

    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """An operation of `OPS` applied to expressions."""

    op: str
    args: tuple["Expr", ...]


Expr = Arg | Const | Call


def _truth(x: Any) -> Any:
    return x if jnp.result_type(x) == jnp.bool_ else x != 0


def _select(which: Any, on_false: Any, on_true: Any) -> Any:
    return jnp.where(_truth(which), on_true, on_false)


def _comparison(f: Callable[..., Any]) -> Callable[..., Any]:
    """A comparison as a number, 0.0 or 1.0, in the precision of its arguments."""

    def compare(x: Any, y: Any) -> Any:
        return f(x, y).astype(jnp.result_type(float, x, y))

    return compare


def _logical(f: Callable[..., Any]) -> Callable[..., Any]:
    def logical(*args: Any) -> Any:
        dtype = jnp.result_type(float, *args)
        return f(*(_truth(a) for a in args)).astype(dtype)

    return logical


def _integer_power(x: Any, y: Any) -> Any:
    if isinstance(y, int | float) and float(y).is_integer():
        return lax.integer_pow(jnp.asarray(x), int(y))
    return jnp.power(x, y)


def _in_floats(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: f(*args).astype(float)


_COMPARISONS: dict[str, Callable[..., Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}

OPS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, jnp.add),
    "sub": (2, jnp.subtract),
    "mul": (2, jnp.multiply),
    "div": (2, jnp.divide),
    "neg": (1, jnp.negative),
    "pow": (2, _integer_power),
    "rem": (2, lambda x, y: lax.rem(*jnp.broadcast_arrays(x, y))),
    "max": (2, jnp.maximum),
    "min": (2, jnp.minimum),
    "select": (3, _select),
    "lt": (2, _comparison(jnp.less)),
    "le": (2, _comparison(jnp.less_equal)),
    "gt": (2, _comparison(jnp.greater)),
    "ge": (2, _comparison(jnp.greater_equal)),
    "eq": (2, _comparison(jnp.equal)),
    "ne": (2, _comparison(jnp.not_equal)),
    "and": (2, _logical(jnp.logical_and)),
    "or": (2, _logical(jnp.logical_or)),
    "xor": (2, _logical(jnp.logical_xor)),
    "not": (1, _logical(jnp.logical_not)),
    "is_finite": (1, lambda x: jnp.isfinite(x).astype(jnp.result_type(float, x))),
    "exp": (1, jnp.exp),
    "exp2": (1, jnp.exp2),
    "expm1": (1, jnp.expm1),
    "log": (1, jnp.log),
    "log1p": (1, jnp.log1p),
    "sqrt": (1, jnp.sqrt),
    "rsqrt": (1, lax.rsqrt),
    "cbrt": (1, jnp.cbrt),
    "abs": (1, jnp.abs),
    "sign": (1, jnp.sign),
    "floor": (1, jnp.floor),
    "ceil": (1, jnp.ceil),
    "round": (1, jnp.round),
    "sin": (1, jnp.sin),
    "cos": (1, jnp.cos),
    "tan": (1, jnp.tan),
    "asin": (1, jnp.arcsin),
    "acos": (1, jnp.arccos),
    "atan": (1, jnp.arctan),
    "atan2": (2, jnp.arctan2),
    "sinh": (1, jnp.sinh),
    "cosh": (1, jnp.cosh),
    "tanh": (1, jnp.tanh),
    "asinh": (1, jnp.arcsinh),
    "acosh": (1, jnp.arccosh),
    "atanh": (1, jnp.arctanh),
    "logistic": (1, jax.nn.sigmoid),
    "erf": (1, lax.erf),
    "erfc": (1, lax.erfc),
    "erf_inv": (1, lax.erf_inv),
    "lgamma": (1, lax.lgamma),
    "digamma": (1, lax.digamma),
}
"""Operation name -> (number of arguments, function on arrays)."""


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "select": lambda c, no, yes: np.where(c != 0, yes, no),
    **{op: _in_floats(f) for op, f in _COMPARISONS.items()},
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
"""The same on numbers, of what NumPy has: a program for each would be compiled."""


def call(op: str, *args: Expr) -> Expr:
    """Apply `op`, folding constants and the identities that keep floats equal."""
    if all(isinstance(a, Const) for a in args):
        return Const(_fold(op, tuple(a.value for a in args if isinstance(a, Const))))
    match op, args:
        case ("add", (x, Const(0.0))) | ("add", (Const(0.0), x)):
            return x
        case ("sub", (x, Const(0.0))):
            return x
        case (
            ("mul", (x, Const(1.0)))
            | ("mul", (Const(1.0), x))
            | ("div", (x, Const(1.0)))
        ):
            return x
        case ("pow", (x, Const(1.0))):
            return x
        case ("select", (Const(c), no, yes)):
            return yes if c else no
        case ("neg", (Call("neg", (x,)),)):
            return x
    return Call(op, args)


@functools.lru_cache(maxsize=4096)
def _fold(op: str, values: tuple[float, ...]) -> float:
    return float(_now(op, [np.float64(v) for v in values]))


def _now(op: str, args: Sequence[Any]) -> Any:
    if op in _NUMPY:
        with np.errstate(all="ignore"):
            return _NUMPY[op](*args)
    from .._jax import enable_x64

    with jax.ensure_compile_time_eval(), enable_x64():
        return np.asarray(OPS[op][1](*map(jnp.asarray, args)))


def evaluate(expr: Expr, args: Sequence[Any]) -> Any:
    """The value of `expr`, elementwise with broadcasting.

    Equal subexpressions are computed once.
    """
    result = _value(expr, args, lambda op, args: OPS[op][1](*args))
    if isinstance(expr, Const) and args:
        return jnp.full(
            jnp.broadcast_shapes(*(jnp.shape(a) for a in args)),
            result,
            jnp.result_type(float, *args),
        )
    return result


def evaluate_now(expr: Expr, args: Sequence[Any]) -> np.ndarray:
    """The value at numbers, in double precision, even under a trace."""
    numbers = [np.asarray(a, np.float64) for a in args]
    shape = np.broadcast_shapes(*(a.shape for a in numbers))
    return np.broadcast_to(_value(expr, numbers, _now), shape).astype(np.float64)


def _value(
    expr: Expr, args: Sequence[Any], apply: Callable[[str, list[Any]], Any]
) -> Any:
    done: dict[Expr, Any] = {}

    def value(e: Expr) -> Any:
        if e not in done:
            match e:
                case Arg(i):
                    done[e] = args[i]
                case Const(c):
                    done[e] = c
                case Call(op, inner):
                    done[e] = apply(op, [value(a) for a in inner])
        return done[e]

    return value(expr)


def substitute(expr: Expr, args: Sequence[Expr]) -> Expr:
    """`expr` with `args[i]` in the place of argument `i`."""
    match expr:
        case Arg(i):
            return args[i]
        case Const():
            return expr
        case Call(op, inner):
            return call(op, *(substitute(a, args) for a in inner))


def arity(expr: Expr) -> int:
    """One more than the largest argument number used; 0 for a constant."""
    match expr:
        case Arg(i):
            return i + 1
        case Const():
            return 0
        case Call(_, inner):
            return max((arity(a) for a in inner), default=0)
