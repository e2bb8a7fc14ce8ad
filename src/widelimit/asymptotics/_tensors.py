"""The values of Tensor lines: data, constants, moments, and functions of these.

A side may hold many inputs at once. What depends on them has one more axis, in front.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import scalar
from .._jax import Equation, bind
from ..program import (
    Constant,
    Elementwise,
    Input,
    Map,
    Moment,
    Primitive,
    Ratio,
    Regression,
    TensorArg,
    appearance,
    compose,
    maps_of,
    regress,
)
from ..scalar import Const, Expr
from ._answers import Key, Value
from ._expectation import expectation
from ._index import Index, constant
from ._product import Factor, aligned, is_zero, materialise, total_of

if TYPE_CHECKING:
    from ._engine import Engine


class Tensors:
    """The values of the Tensor lines of the sides of an engine, each computed once."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def value(self, side: int, ref: int) -> Value:
        """The value of a line."""
        key = Key("tensor", ((side, ref),))
        return self._engine.remembered(key, lambda: self._now(side, ref))

    def rows(self, side: int, ref: int) -> Any:
        """The value of a line, an array of its shape for every input of the side."""
        engine, (array, batched) = self._engine, self.value(side, ref)
        shape = (engine.count(side), *engine.shape(side, ref))
        if array is None:
            return jnp.zeros(shape, engine.dtype)
        return jnp.broadcast_to(array if batched else array[None], shape)

    def factor(
        self, side: int, arg: TensorArg, indices: Sequence[Index]
    ) -> Factor | None:
        """A tensor coefficient read at the letters of a query; None for zero."""
        ref = arg.ref
        at = [constant(0) if a < 0 else indices[a] for a in arg.letters]
        while (maps := maps_of(line := self._engine.line_at(side, ref))) is not None:
            (ref,), at = line.args, [compose(m, at) for m in maps]
        array, batched = self.value(side, ref)
        if array is None:
            return None
        lead, shape = (len(array),) if batched else (), self._engine.shape(side, ref)
        array = jnp.broadcast_to(array, (*lead, *shape))
        alone = [i == constant(0) and n == 1 for i, n in zip(at, shape, strict=True)]
        array = jnp.squeeze(array, [len(lead) + k for k, a in enumerate(alone) if a])
        at = [i for i, a in zip(at, alone, strict=True) if not a]
        if batched:
            at.insert(0, self._engine.letters.identity(*self._engine.batches(side)))
        return Factor(array, tuple(at))

    def scalar(self, side: int, ref: int) -> Any:
        """The value of a line of one number, the same for all inputs."""
        array, batched = self.value(side, ref)
        assert not batched
        zero = jnp.zeros((), self._engine.dtype)
        return zero if array is None else jnp.reshape(array, ())

    def _now(self, side: int, ref: int) -> Value:
        line = self._engine.line_at(side, ref)
        if isinstance(line, Moment):
            return self._moment(side, ref, line)
        assert isinstance(line, Map)
        match line.op:
            case Input(key):
                found = self._engine.sides[side]
                if key in found.rows:
                    return Value(self._engine.cast(found.rows[key]), True)
                return Value(self._engine.cast(found.inputs[key]))
            case Constant(value):
                return Value(self._engine.cast(value.value))
            case Elementwise(fn, letters):
                return self._elementwise(side, line, fn, letters)
            case Ratio():
                raise TypeError("`at_ratios` makes ratios numbers before the limit")
            case Regression(part, blocks):
                known = [self.value(side, r) for r in line.args]
                if all(v.array is None for v in known[-blocks:]):
                    return Value(None)
                return self._mapped(
                    side, line, lambda *args: regress(part, blocks, args)
                )
            case Primitive():
                equation = line.op.equation
                return self._mapped(
                    side, line, lambda *args: self._primitive(equation, args)
                )

    def _moment(self, side: int, ref: int, line: Moment) -> Value:
        engine = self._engine
        view, letters = engine.view(ref, side)
        engine.note("moment", view)
        total = engine.averaged(expectation(engine, [(side, line, view.indices)]))
        batch = engine.batches(side)
        found = materialise(total, engine.letters, (*batch, *letters))
        if found is None:
            return Value(None)
        sizes = (
            found.shape[: len(batch)],
            tuple(engine.letters.sizes[a] for a in letters),
        )
        found = jnp.broadcast_to(found, (*sizes[0], *sizes[1]))
        if batch and len(found) == 1:
            return Value(found[0])
        return Value(found, bool(batch))

    def _mapped(self, side: int, line: Map, fn: Any) -> Value:
        """A function of the arguments of a line, for every input if they have one."""
        known = [self.value(side, r) for r in line.args]
        if not any(v.batched for v in known):
            return Value(fn(*(self._full(side, r) for r in line.args)))
        axes = [0 if v.batched else None for v in known]
        args = [self._full(side, r) for r in line.args]
        return Value(jax.vmap(fn, axes)(*args), True)

    def _full(self, side: int, ref: int) -> Any:
        """A value with all its axes."""
        shape, (array, batched) = self._engine.shape(side, ref), self.value(side, ref)
        if array is None:
            return jnp.zeros(shape, self._engine.dtype)
        return jnp.broadcast_to(array, (*array.shape[:batched], *shape))

    def _primitive(self, equation: Equation, args: Sequence[Any]) -> Any:
        # It was traced in double precision; whole numbers too may have half as many
        # bits here.
        params = {
            k: self._engine.dtype
            if _is_float(kind)
            else jax.dtypes.canonicalize_dtype(kind)
            for k in ("new_dtype", "dtype", "preferred_element_type", "index_dtype")
            if (kind := equation.params.get(k)) is not None
        }
        kinds = {jnp.result_type(a) for a in args if _is_float(jnp.result_type(a))}
        if len(kinds) > 1:
            args = [self._engine.cast(a) for a in args]
        if "accuracy" in equation.params:
            params["accuracy"] = equation.params["accuracy"]
        return bind(equation, args, **params)[0]

    def _elementwise(
        self, side: int, line: Map, fn: Expr, letters: tuple[tuple[int, ...], ...]
    ) -> Value:
        values: list[Any] = [0.0] * len(line.args)
        structural, lead = True, ()
        for i, ref in enumerate(line.args):
            # What a zero has made irrelevant is not computed.
            if i in appearance(fn):
                array, batched = self.value(side, ref)
                if array is None or is_zero(array):
                    structural = structural and array is None
                    args: list[Expr] = [scalar.Arg(j) for j in range(len(values))]
                    args[i] = Const(0.0)
                    fn = drop_zeros(scalar.substitute(fn, args))
                else:
                    at = letters[i]
                    if batched:
                        lead, at = array.shape[:1], (0, *(a + (a >= 0) for a in at))
                    ndim = len(line.shape) + batched
                    values[i] = _at_letters(array, at, ndim)
        if fn == Const(0.0) and structural:
            return Value(None)
        if isinstance(fn, Const):
            return Value(jnp.full(line.shape, fn.value, self._engine.dtype))
        value = total_of([scalar.evaluate(t, values) for t in summands(fn)])
        lead = lead if jnp.ndim(value) > len(line.shape) else ()
        return Value(jnp.broadcast_to(value, (*lead, *line.shape)), bool(lead))


def summands(expr: Expr) -> list[Expr]:
    """Terms whose sum is `expr`."""
    match expr:
        case scalar.Call("add", (x, y)):
            return summands(x) + summands(y)
        case scalar.Call("sub", (x, y)):
            return summands(x) + [scalar.call("neg", t) for t in summands(y)]
    return [expr]


def drop_zeros(expr: Expr) -> Expr:
    """`expr` with structural zeros carried through: 0 * x is 0, x + 0 is x."""
    if not isinstance(expr, scalar.Call):
        return expr
    args = tuple(drop_zeros(a) for a in expr.args)
    zero = Const(0.0)
    match expr.op, args:
        case ("mul", (a, b)) if zero in (a, b):
            return zero
        case ("div", (a, _)) if a == zero:
            return zero
        case ("sub", (a, b)) if a == zero:
            return scalar.call("neg", b)
    return scalar.call(expr.op, *args)


def _at_letters(value: Any, letters: tuple[int, ...], ndim: int) -> Any:
    """A tensor with its axes moved to the letters of a result of `ndim` letters."""
    value = jnp.squeeze(value, tuple(i for i, a in enumerate(letters) if a < 0))
    return aligned(value, [a for a in letters if a >= 0], range(ndim))


def _is_float(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
