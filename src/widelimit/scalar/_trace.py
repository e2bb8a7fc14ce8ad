"""From a Python function, or one JAX primitive, to an expression."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .._errors import UnsupportedError
from .._jax import Equation, Graph, Literal, trace
from ._expr import OPS, Arg, Call, Const, Expr, call

Rule = Callable[[dict[str, Any], tuple[Expr, ...]], Expr]

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_lin": "call_jaxpr",
}
"""Primitives that call a nested graph -> the parameter that holds it."""


def _cast(params: dict[str, Any], args: tuple[Expr, ...]) -> Expr:
    (x,) = args
    kind = np.dtype(params["new_dtype"]).kind
    if kind in "iu":
        # Truncation toward zero, as a cast of a float to an integer does.
        return call(
            "select", call("lt", x, Const(0.0)), call("floor", x), call("ceil", x)
        )
    return call("ne", x, Const(0.0)) if kind == "b" else x


def _clamp(params: dict[str, Any], args: tuple[Expr, ...]) -> Expr:
    low, x, high = args
    return call("min", call("max", x, low), high)


_SPECIAL: dict[str, Rule] = {
    "integer_pow": lambda p, a: call("pow", a[0], Const(float(p["y"]))),
    "square": lambda p, a: call("pow", a[0], Const(2.0)),
    "one_minus_square": lambda p, a: call(
        "sub", Const(1.0), call("pow", a[0], Const(2.0))
    ),
    "log2": lambda p, a: call("div", call("log", a[0]), Const(float(np.log(2.0)))),
    "clamp": _clamp,
    "select_n": lambda p, a: call("select", *a),
    "add_any": lambda p, a: call("add", *a),
    "convert_element_type": _cast,
    "reduce_precision": lambda p, a: a[0],
    "stop_gradient": lambda p, a: a[0],
    "copy": lambda p, a: a[0],
    "copy_p": lambda p, a: a[0],
    "name": lambda p, a: a[0],
}

PRIMITIVES: frozenset[str] = frozenset(OPS) | frozenset(_SPECIAL)
"""The JAX primitives that are elementwise and have a rule."""


def apply_primitive(name: str, params: dict[str, Any], args: Sequence[Expr]) -> Expr:
    """The expression of one elementwise primitive on expressions.

    Raises:
        UnsupportedError: the primitive is not elementwise, or not covered.
    """
    args = tuple(args)
    if name in _SPECIAL and not (name == "select_n" and len(args) != 3):
        return _SPECIAL[name](params, args)
    if name in OPS and OPS[name][0] == len(args):
        return call(name, *args)
    raise UnsupportedError(
        f"`{name}` is not an elementwise primitive that widelimit covers; "
        f"covered: {', '.join(sorted(PRIMITIVES))}."
    )


def from_callable(f: Callable[..., Any] | Expr, arguments: int | None = None) -> Expr:
    """Trace a scalar function, written with `jax.numpy`, into an expression.

    Args:
        f: a function of scalars that returns a scalar; an expression is returned as is.
        arguments: how many arguments it takes; read from its signature when missing.

    Raises:
        UnsupportedError: it uses a primitive that is not elementwise.
    """
    if isinstance(f, Arg | Const | Call):
        return f
    if arguments is None:
        arguments = _required(f)
    scalar = jax.ShapeDtypeStruct((), np.float64)
    graph, shape = trace(f, *[scalar] * arguments)
    leaves = jax.tree.leaves(shape)
    if len(leaves) != 1 or leaves[0].shape != ():
        raise UnsupportedError(
            f"A nonlinearity takes scalars and returns one scalar, got {shape}."
        )
    return inline(graph, [Arg(i) for i in range(arguments)])[0]


def _required(f: Callable[..., Any]) -> int:
    """How many arguments a function must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        p.kind in kinds and p.default is inspect.Parameter.empty
        for p in inspect.signature(f).parameters.values()
    )


def inline(graph: Graph, args: Sequence[Expr]) -> list[Expr]:
    """The outputs of a graph of scalars, as expressions of `args`."""
    env: dict[Any, Expr] = dict(zip(graph.inputs, args, strict=True))
    for var, value in graph.constants:
        env[var] = _constant(value)

    def read(atom: Any) -> Expr:
        return _constant(atom.value) if isinstance(atom, Literal) else env[atom]

    for equation in graph.equations:
        ins = [read(a) for a in equation.inputs]
        outs = _equation(equation, ins)
        env.update(zip(equation.outputs, outs, strict=True))
    return [read(a) for a in graph.outputs]


def _equation(equation: Equation, ins: list[Expr]) -> list[Expr]:
    if equation.name in CALLS:
        return inline(equation.params[CALLS[equation.name]], ins)
    if equation.name in ("broadcast_in_dim", "reshape", "squeeze") and len(ins) == 1:
        return [ins[0]]
    try:
        return [apply_primitive(equation.name, equation.params, ins)]
    except UnsupportedError as error:
        where = f" at {equation.source}" if equation.source else ""
        raise UnsupportedError(f"{error}{where}") from None


def _constant(value: Any) -> Const:
    array = np.asarray(value)
    if array.size != 1:
        raise UnsupportedError(
            "A nonlinearity acts on each coordinate alone; it holds a constant of "
            f"shape {array.shape}."
        )
    return Const(float(array.reshape(())))
