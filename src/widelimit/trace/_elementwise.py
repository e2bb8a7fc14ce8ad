"""Elementwise primitives: linear ones join combinations, others become functions."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import scalar
from .._jax import Equation, enable_x64, fold
from ..program import TensorArg
from ..scalar import Arg, Call, Const, Expr
from ._deferred import random_with_vectors
from ._fixed import refuse_labels
from ._tracer import Tracer, rule
from ._uniform import uniform_of, without_uniform
from ._values import (
    Data,
    Known,
    Leaf,
    Linear,
    MatrixValue,
    Pending,
    Value,
    is_zero,
    uniform,
)
from ._views import combined, stretched

_PASS = {"stop_gradient", "copy", "copy_p", "reduce_precision", "name"}
_LINEAR = {"add", "add_any", "sub", "mul", "div", "neg"}
# phi(c x) = c^k phi(x) for c > 0: an order in n passes through.
_HOMOGENEOUS = {
    "max": 1, "min": 1, "abs": 1, "sign": 0, "clamp": 1, "rem": 1,
    "lt": 0, "le": 0, "gt": 0, "ge": 0, "eq": 0, "ne": 0, "is_finite": 0,
}  # fmt: skip
_MULTIPLICATIVE = {
    "neg", "abs", "sign", "square", "integer_pow", "sqrt", "rsqrt", "cbrt",
    "convert_element_type", "is_finite",
}  # fmt: skip
_ROOTS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "cbrt": Fraction(1, 3)}


_BITS = ("shift_right_logical",)
_EXTRA = ("add_any", "name")
_PRIMITIVES = sorted(
    scalar.PRIMITIVES & {getattr(lax, a).name for a in dir(lax) if a[-2:] == "_p"}
)


@rule("elementwise functions", *_PRIMITIVES, *_BITS, *_EXTRA)
def elementwise(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Any elementwise primitive, on fixed, wide and output values."""
    if any(isinstance(v, MatrixValue) for v in ins):
        return [_matrix(tr, e, ins)]
    if any(v.kind in ("bits", "mantissa") for v in ins):
        return [bits(tr, e, ins)]
    if e.name in _PASS:
        return [ins[0]]
    if e.name == "convert_element_type":
        converted = _convert(tr, e, ins[0])
        if converted is not None:
            return [converted]
    if len(ins) == 1 and ins[0].power < 0 and e.name not in _MULTIPLICATIVE:
        return [_vanishing(tr, e, ins[0])]
    if all(v.kind == "fixed" and not v.wide for v in ins):
        return [_finite(tr, e, ins)]
    if any(v.kind == "output" for v in ins) and any(v.wide for v in ins):
        return random_with_vectors(tr, e, ins)
    return [_wide(tr, e, ins)]


def _convert(tr: Tracer, e: Equation, x: Value) -> Value | None:
    kind = np.dtype(e.params["new_dtype"]).kind
    dtype = np.dtype(e.params["new_dtype"])
    if kind == "f" and x.dtype.kind == "f":
        return dataclasses.replace(x, dtype=dtype)
    if kind == "f" and x.kind == "fixed" and not x.wide:
        refuse_labels(tr, x)
    if x.kind == "fixed" and not x.wide and x.power != 0 and kind in "iu":
        return dataclasses.replace(x, dtype=dtype)
    return None


def _finite(tr: Tracer, e: Equation, ins: Sequence[Value]) -> Value:
    """Fixed finite tensors: fold, or write Map lines."""
    ins, power = _orders(tr, e, ins)
    out = e.outputs[0]
    shape = tuple(int(s) for s in out.shape)
    leaves = [v.leaf for v in ins]
    floats = all(v.dtype.kind == "f" for v in ins) and np.dtype(out.dtype).kind == "f"
    arguments = [Arg(i) for i in range(len(ins))]
    if all(isinstance(x, Known) for x in leaves):
        arrays = [x.value for x in leaves if isinstance(x, Known)]
        if floats and out.dtype == np.float64 and e.name in scalar.PRIMITIVES:
            fn = scalar.apply_primitive(e.name, e.params, arguments)
            value = np.broadcast_to(scalar.evaluate_now(fn, arrays), shape)
        else:
            typed = [_typed(a, v.dtype) for a, v in zip(arrays, ins, strict=True)]
            (value,) = fold(e, typed)
        return Value(
            out.shape, "fixed", (Known(value),), power=power, dtype=np.dtype(out.dtype)
        )
    if floats:
        fn = scalar.apply_primitive(e.name, e.params, arguments)
        leaf = tr.emit.elementwise(fn, leaves, shape, tr.where)
    else:
        refs = tuple(
            tr.emit.constant(_typed(x.value, v.dtype), tr.where)
            if isinstance(x, Known) and x.value.ndim == 0
            else tr.emit.data(_typed_leaf(x, v.dtype), shape, tr.where)
            for x, v in zip(leaves, ins, strict=True)
        )
        leaf = Data(tr.emit.primitive(e, refs, shape, tr.where), shape)
    return Value(out.shape, "fixed", (leaf,), power=power, dtype=np.dtype(out.dtype))


def _typed(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array.astype(dtype) if array.dtype != dtype else array


def _typed_leaf(leaf: Leaf, dtype: Any) -> Leaf:
    return Known(_typed(leaf.value, dtype)) if isinstance(leaf, Known) else leaf


def _wide(tr: Tracer, e: Equation, ins: Sequence[Value]) -> Value:
    out = e.outputs[0]
    vectors = [v for v in ins if v.wide]
    base = vectors[0] if vectors else next(v for v in ins if v.kind == "output")
    base = dataclasses.replace(base, shape=out.shape)
    for v in vectors[1:]:
        assert base.layout is not None
        assert v.layout is not None
        if v.axis != base.axis:
            raise tr.refuse("Two different wide axes meet in an elementwise operation")
        tr.unify(base.layout, v.layout)
    kind = max((v.kind for v in ins), key=["fixed", "output", "vector"].index)
    dtype = np.dtype(out.dtype)
    if tr.dry and vectors:
        ins, power = _orders(tr, e, ins)
        return Value(out.shape, kind, None, base.axis, base.layout, power, dtype)
    ins, power = _orders(tr, e, ins)
    # What is of lower order does not make the result random.
    kind = max((v.kind for v in ins), key=["fixed", "output", "vector"].index)
    leaves = []
    for i, block in enumerate(base.blocks()):
        shape = base.leaf_shape(block)
        parts = [_stretched(tr, _part(v, i), shape) for v in ins]
        leaves.append(_leaf(tr, e, parts, shape, kind))
    return Value(out.shape, kind, tuple(leaves), base.axis, base.layout, power, dtype)


def _part(v: Value, i: int) -> Leaf:
    assert v.leaves is not None
    return v.leaves[i] if v.wide else v.leaves[0]


def _stretched(tr: Tracer, leaf: Leaf, shape: tuple[int, ...]) -> Leaf:
    """A random leaf at the shape of the result; fixed ones broadcast by themselves."""
    if not isinstance(leaf, Linear | Pending) or leaf.shape == shape:
        return leaf
    return stretched(tr, tr.emit.linear(leaf, leaf.shape, tr.where), shape)


def _leaf(
    tr: Tracer, e: Equation, parts: list[Leaf], shape: tuple[int, ...], kind: str
) -> Leaf:
    random = [p for p in parts if isinstance(p, Linear | Pending)]
    if not random:
        return _fixed_leaf(tr, e, parts, shape)
    if e.name in _LINEAR:
        linear = _linear(tr, e, parts, shape)
        if linear is not None:
            return linear
    if e.name == "select_n" and isinstance(parts[0], Known | Data):
        return _mask(tr, parts, shape)
    if kind == "output":
        raise tr.refuse(
            f"The output is finite and random; `{e.name}` would use it nonlinearly. A "
            "network may only combine its outputs linearly after the readout. The call"
        )
    return pending(tr, e.name, e.params, parts, shape)


def _fixed_leaf(
    tr: Tracer, e: Equation, parts: list[Leaf], shape: tuple[int, ...]
) -> Leaf:
    if all(isinstance(p, Known) for p in parts):
        arrays = [
            np.broadcast_to(p.value, shape) for p in parts if isinstance(p, Known)
        ]
        return Known(fold(e, arrays)[0])
    fn = scalar.apply_primitive(e.name, e.params, [Arg(i) for i in range(len(parts))])
    return tr.emit.elementwise(fn, parts, shape, tr.where)


def pending(
    tr: Tracer,
    name: str,
    params: dict[str, Any],
    parts: Sequence[Leaf],
    shape: tuple[int, ...],
) -> Leaf:
    """An elementwise primitive as a function of lines, not written yet."""
    xs: list[int] = []
    tensors: list[TensorArg] = []
    args = [_as_expr(tr, p, shape, xs, tensors) for p in parts]
    fn = without_uniform(scalar.apply_primitive(name, params, args))
    return _numbered(fn, xs, tensors, shape)


def folded(tr: Tracer, name: str, leaves: Sequence[Leaf], shape: Any) -> Leaf:
    """Leaves joined one after another by a primitive of two operands, such as `max`."""
    if not leaves:
        return Known(np.zeros(shape))
    result = leaves[0]
    for leaf in leaves[1:]:
        result = pending(tr, name, {}, [result, leaf], shape)
    return result


def _numbered(
    fn: Expr, xs: Sequence[int], tensors: Sequence[TensorArg], shape: tuple[int, ...]
) -> Leaf:
    """Vectors were numbered 0, 2, 4.. and tensors 1, 3, 5..: put vectors first."""
    if isinstance(fn, Const):
        return Known(np.full(shape, fn.value))
    places: list[Expr] = [Const(0.0)] * (2 * max(len(xs), len(tensors), 1))
    for i in range(len(xs)):
        places[2 * i] = Arg(i)
    for i in range(len(tensors)):
        places[2 * i + 1] = Arg(len(xs) + i)
    return Pending(scalar.substitute(fn, places), tuple(xs), tuple(tensors), shape)


def _as_expr(
    tr: Tracer,
    leaf: Leaf,
    shape: tuple[int, ...],
    xs: list[int],
    tensors: list[TensorArg],
) -> Expr:
    def vector(ref: int) -> Expr:
        if ref not in xs:
            xs.append(ref)
        return Arg(2 * xs.index(ref))

    def tensor(arg: TensorArg) -> Expr:
        if arg not in tensors:
            tensors.append(arg)
        return Arg(2 * tensors.index(arg) + 1)

    match leaf:
        case Known() | Data():
            c = tr.emit.coefficient(leaf, len(shape), tr.where)
            return tensor(c) if isinstance(c, TensorArg) else Const(c)
        case Pending():
            args = [vector(x) for x in leaf.xs] + [tensor(t) for t in leaf.tensors]
            return scalar.substitute(leaf.fn, args)
        case Linear():
            simple = _simple(tr, leaf)
            if simple is None:
                return vector(tr.emit.ref(leaf, shape, tr.where))
            ref, scale, shift = simple
            inner: Expr = Const(0.0) if ref is None else vector(ref)
            if scale != 1.0:
                inner = scalar.call("mul", Const(scale), inner)
            return scalar.call("add", inner, Const(shift)) if shift else inner


def _simple(tr: Tracer, leaf: Linear) -> tuple[int | None, float, float] | None:
    """(line, scale, shift) of a combination that is a number times a line, shifted."""
    constants = [t for t in leaf.terms if t.x is None]
    if any(t.tensors or t.sums for t in constants):
        return None
    shift = sum(t.scale for t in constants)
    rest = tuple(t for t in leaf.terms if t.x is not None)
    if not rest:
        return None, 1.0, shift
    found = tr.emit.multiple(Linear(rest, leaf.shape))
    return None if found is None else (*found, shift)


def _linear(
    tr: Tracer, e: Equation, parts: list[Leaf], shape: tuple[int, ...]
) -> Leaf | None:
    """Addition, and multiplication by fixed values; None where it is a product."""
    if e.name == "neg":
        if isinstance(parts[0], Pending):
            return None
        return scaled(tr, parts[0], -1.0, shape)
    a, b = parts
    if e.name in ("mul", "div"):
        if isinstance(a, Known | Data) and e.name == "mul":
            a, b = b, a
        if not isinstance(b, Known | Data) or isinstance(a, Known | Data):
            return None
        c = uniform(b)
        if isinstance(a, Pending):
            if c is not None:
                return None
            a = tr.emit.linear(a, shape, tr.where)
        if e.name == "div":
            inverse = Call("div", (Const(1.0), Arg(0)))
            b = (
                Known(1.0 / np.asarray(b.value, float))
                if isinstance(b, Known)
                else tr.emit.elementwise(inverse, [b], b.shape, tr.where)
            )
        return scaled(tr, a, b, shape)
    if _one_function(tr, a, b):
        return None
    first = tr.emit.linear(a, shape, tr.where)
    second = tr.emit.linear(b, shape, tr.where)
    return combined(
        [first, scaled(tr, second, -1.0 if e.name == "sub" else 1.0, shape)], shape
    )


def _one_function(tr: Tracer, a: Leaf, b: Leaf) -> bool:
    """Whether a sum is better kept as one function of one line."""
    if not isinstance(a, Pending) and not isinstance(b, Pending):
        return False
    lines: set[int] = set()
    for leaf in (a, b):
        match leaf:
            case Pending():
                lines |= set(leaf.xs)
            case Linear():
                simple = _simple(tr, leaf)
                if simple is None:
                    return False
                lines |= set() if simple[0] is None else {simple[0]}
            case Known():
                if uniform(leaf) is None:
                    return False
            case Data():
                return False
    return len(lines) <= 1


def scaled(tr: Tracer, leaf: Leaf, by: Leaf | float, shape: tuple[int, ...]) -> Linear:
    """A combination times a fixed value."""
    linear = tr.emit.linear(leaf, shape, tr.where)
    c = (
        by
        if isinstance(by, int | float)
        else tr.emit.coefficient(by, len(shape), tr.where)
    )
    if isinstance(c, TensorArg):
        terms = tuple(
            dataclasses.replace(t, tensors=(*t.tensors, c)) for t in linear.terms
        )
    elif c == 0.0:
        terms = ()
    else:
        terms = tuple(dataclasses.replace(t, scale=t.scale * c) for t in linear.terms)
    return Linear(terms, shape)


def _mask(tr: Tracer, parts: list[Leaf], shape: tuple[int, ...]) -> Leaf:
    """select_n with a fixed mask: linear in the branches."""
    which, *cases = parts
    total = []
    for i, case in enumerate(cases):
        if is_zero(case):
            continue
        if isinstance(which, Known):
            weight: Leaf = Known((which.value == i).astype(float))
            if is_zero(weight):
                continue
        else:
            assert isinstance(which, Data)
            ref = tr.emit.call(
                lambda w, i=i: (w == i).astype(float), [which.ref], tr.where
            )
            weight = Data(ref, which.shape)
        total.append(scaled(tr, _finite_case(tr, case), weight, shape))
    return combined(total, shape)


def _finite_case(tr: Tracer, case: Leaf) -> Leaf:
    if isinstance(case, Known) and not np.isfinite(case.value).all():
        raise tr.refuse("A wide vector is filled with values that are not finite")
    return case


def _orders(
    tr: Tracer, e: Equation, ins: Sequence[Value]
) -> tuple[list[Value], Fraction]:
    """The operands at one order, and the order of the result."""
    ins = list(ins)
    if tr.dry:
        return ins, Fraction(0)
    power = _order_of_product(e, ins)
    if power is not None:
        return ins, power
    present = [v for v in ins if not v.is_zero]
    start = 1 if e.name == "select_n" else 0
    powers = {v.power for v in present if v is not ins[0] or start == 0}
    if powers <= {Fraction(0)}:
        return ins, Fraction(0)
    if e.name in ("add", "add_any", "sub"):
        top = max(powers)
        return [_dropped(tr, v, top) for v in ins], top
    top = max(powers)
    if len(powers) == 1 and (e.name == "select_n" or e.name in _HOMOGENEOUS):
        return ins, top * _HOMOGENEOUS.get(e.name, 1)
    if top > 0:
        if e.name in _HOMOGENEOUS:
            return [_dropped(tr, v, top) for v in ins], top * _HOMOGENEOUS[e.name]
        raise tr.diverges(f"The argument of `{e.name}`", top)
    return [_dropped(tr, v, Fraction(0)) for v in ins], Fraction(0)


def _order_of_product(e: Equation, ins: Sequence[Value]) -> Fraction | None:
    """The order of a product, a quotient, a power or a root; None for other things."""
    power = ins[0].power
    match e.name:
        case "neg" | "convert_element_type":
            return power
        case "mul":
            return power + ins[1].power
        case "div":
            return power - ins[1].power
        case "square":
            return power * 2
        case "integer_pow":
            return power * e.params["y"]
        case "pow" if power != 0 and ins[1].power == 0:
            exponent = None if ins[1].leaves is None else uniform(ins[1].leaf)
            if exponent is not None:
                return power * Fraction(exponent).limit_denominator(1000)
        case root if root in _ROOTS:
            return power * _ROOTS[root]
    return None


def _dropped(tr: Tracer, v: Value, top: Fraction) -> Value:
    if v.power == top or v.is_zero:
        return v
    tr.note(f"A term of order n^{v.power} was dropped beside one of order n^{top}")
    if v.leaves is None:
        return v
    if v.kind == "vector" and top - v.power == Fraction(1, 2):
        return tr.perturbation(v, top)
    zeros = tuple(Known(np.zeros(v.leaf_shape(b))) for b in v.blocks())
    return dataclasses.replace(v, kind="fixed", leaves=zeros, power=top)


def _vanishing(tr: Tracer, e: Equation, x: Value) -> Value:
    """Phi of an argument of negative order: phi(0), or else its linear part."""
    fn = scalar.apply_primitive(e.name, e.params, [Arg(0)])
    with jax.ensure_compile_time_eval(), enable_x64():
        at_zero = float(scalar.evaluate(fn, [jnp.asarray(0.0)]))
        slope = float(jax.grad(lambda z: scalar.evaluate(fn, [z]))(0.0))
    if at_zero != 0.0 and np.isfinite(at_zero):
        tr.note(
            f"The argument of `{e.name}` is of order n^{x.power}: its value at 0 is "
            "used"
        )
        if x.kind == "vector" and slope != 0.0 and x.power == Fraction(-1, 2):
            return _wide(tr, e, [tr.perturbation(x, Fraction(0))])
        leaves = (
            None
            if x.leaves is None
            else tuple(Known(np.full(x.leaf_shape(b), at_zero)) for b in x.blocks())
        )
        return dataclasses.replace(x, kind="fixed", leaves=leaves, power=Fraction(0))
    if at_zero != 0.0 or slope == 0.0 or not np.isfinite(slope):
        raise tr.refuse(
            f"`{e.name}` of a quantity of order n^{x.power} needs an expansion beyond "
            "its linear part. The call"
        )
    tr.note(
        f"`{e.name}` of a quantity of order n^{x.power} was replaced by its linear part"
    )
    if x.leaves is None:
        return x
    if x.kind == "fixed":
        product = Call("mul", (Const(slope), Arg(0)))
        return dataclasses.replace(
            x,
            leaves=(
                tr.emit.elementwise(product, x.leaves, x.leaf_shape(None), tr.where),
            ),
        )
    leaves = tuple(
        scaled(tr, leaf, slope, x.leaf_shape(b))
        for leaf, b in zip(x.leaves, x.blocks(), strict=True)
    )
    return dataclasses.replace(x, leaves=leaves)


def _matrix(tr: Tracer, e: Equation, ins: list[Any]) -> MatrixValue:
    """A matrix parameter times scalars, and sums of matrices."""
    if e.name in _PASS or (e.name == "convert_element_type"):
        return ins[0]
    if e.name == "neg":
        return _scale_matrix(ins[0], -1.0, Fraction(0))
    if e.name in ("mul", "div"):
        a, b = ins
        if isinstance(b, MatrixValue) and e.name == "mul":
            a, b = b, a
        c = None
        if isinstance(a, MatrixValue) and isinstance(b, Value) and b.kind == "fixed":
            c = None if b.leaves is None or b.wide else uniform(b.leaf)
        if c is not None:
            return (
                _scale_matrix(a, c, b.power)
                if e.name == "mul"
                else _scale_matrix(a, 1.0 / c, -b.power)
            )
    if e.name in ("add", "sub", "add_any") and all(
        isinstance(v, MatrixValue) for v in ins
    ):
        a, b = ins
        for axis, layout in a.layouts.items():
            tr.unify(layout, b.layouts[axis])
        if a.power != b.power:
            raise tr.refuse("Matrices of different orders in the width are added")
        b = _scale_matrix(b, -1.0 if e.name == "sub" else 1.0, Fraction(0))
        return dataclasses.replace(a, terms=a.terms + b.terms)
    raise tr.refuse(
        f"`{e.name}` is applied to the entries of a matrix with two wide axes; only "
        "sums of matrices and products with numbers are tensor programs. The call"
    )


def _scale_matrix(m: MatrixValue, c: float, power: Fraction) -> MatrixValue:
    terms = tuple(dataclasses.replace(t, scale=t.scale * c) for t in m.terms)
    return dataclasses.replace(m, terms=terms, power=m.power + power)


def bits(tr: Tracer, e: Equation, ins: list[Any]) -> Value:
    """The arithmetic that turns random bits into uniform numbers."""
    x = next(v for v in ins if v.kind in ("bits", "mantissa"))
    if (
        x.kind == "mantissa"
        and e.name == "sub"
        and ins[0] is x
        and uniform(ins[1].leaf) == 1.0
    ):
        return uniform_of(tr, x)
    if e.name in ("or", "and", "shift_right_logical", "convert_element_type"):
        return dataclasses.replace(x, dtype=np.dtype(e.outputs[0].dtype))
    raise tr.refuse(
        f"Random bits are used by `{e.name}`, which no distribution here does"
    )
