"""The transposes of lines on tensors."""

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._errors import InvalidProgramError, UnsupportedError
from .._jax import bind
from ..program import (
    Constant,
    Elementwise,
    Input,
    Map,
    Primitive,
    Ratio,
    Ref,
    Regression,
    TensorArg,
    at,
    spread,
)
from ..scalar import Arg, Const
from ._adjoints import Adjoints

_DOUBLE = np.dtype("float64")


def tensor_map(adj: Adjoints, line: Map, dt: Ref) -> None:
    """The transpose of a function of tensors."""
    match line.op:
        case Elementwise():
            _elementwise(adj, line, line.op, dt)
        case Primitive():
            _primitive(adj, line, line.op, dt)
        case Input() | Constant() | Ratio():
            pass
        case Regression():
            raise UnsupportedError(
                f"Line `{line.name}` is the regression of a program whose transposes "
                "were removed: take the gradient first, and detranspose the result."
            )
        case _:
            assert_never(line.op)


def _elementwise(adj: Adjoints, line: Map, op: Elementwise, dt: Ref) -> None:
    shape = adj.lead + line.shape
    args = [
        (r, adj.behind(letters))
        for r, letters in zip(line.args, op.letters, strict=True)
    ]
    args.append((dt, tuple(range(len(shape)))))
    for i, ref in enumerate(line.args):
        d = scalar.differentiate(op.fn, i)
        if ref in adj.active and d != Const(0.0):
            part = adj.map(scalar.call("mul", d, Arg(len(line.args))), args, shape)
            add_read(adj, TensorArg(ref, op.letters[i]), part, line.shape)


def _primitive(adj: Adjoints, line: Map, op: Primitive, dt: Ref) -> None:
    if op.equation is None:
        raise InvalidProgramError(
            f"Line `{line.name}` applies the JAX primitive `{op.name}`, but this "
            "program was read from text, which does not hold the primitive itself. "
            f"Differentiate the program that was printed.{at(line.source)}"
        )
    dtypes = [np.dtype(x.dtype) for x in op.equation.inputs]

    def pulled(i: int) -> Callable[..., Any]:
        def one(y: Any, *xs: Any) -> Any:
            def f(x: Any) -> Any:
                return bind(op.equation, [*xs[:i], x, *xs[i + 1 :]])[0]

            return jax.vjp(f, xs[i])[1](y)[0]

        return mapped(one, len(adj.lead), len(line.args))

    for i, ref in enumerate(line.args):
        if ref in adj.active:
            kinds = [_DOUBLE, *dtypes]
            part = adj.writer.call(pulled(i), [dt, *line.args], line.source, kinds)
            adj.add_tensor(ref, part)


def add_read(adj: Adjoints, arg: TensorArg, part: Ref, sizes: Sequence[int]) -> None:
    """A summand of the adjoint of a tensor, given as that of the tensor as it is read.

    Args:
        adj: the adjoints.
        arg: the tensor and the letters at which it is read.
        part: a Tensor line of shape lead + sizes.
        sizes: of all letters.
    """
    if arg.letters != tuple(range(len(sizes))):
        shape = adj.types[arg.ref].shape

        def read(t: Any) -> Any:
            return jnp.broadcast_to(spread(t, arg.letters, len(sizes)), tuple(sizes))

        def summed(y: Any) -> Any:
            t = jax.ShapeDtypeStruct(shape, y.dtype)
            return jax.linear_transpose(read, t)(y)[0]

        source = adj.lines[arg.ref].source
        part = adj.writer.call(mapped(summed, len(adj.lead), 0), [part], source)
    adj.add_tensor(arg.ref, part)


def mapped(f: Callable[..., Any], times: int, fixed: int) -> Callable[..., Any]:
    """`f` over leading axes of its first argument, the `fixed` others shared."""
    for _ in range(times):
        f = jax.vmap(f, (0, *[None] * fixed))
    return f
