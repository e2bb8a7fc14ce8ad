"""E f(u) and E f(u) g(v) of forms, differentiable everywhere.

Derivatives are expectations too (Price's theorem): dE/dc = E f'(u) g'(v), dE/da =
E f''(u) g(v) / 2, dE/dm = E f'(u) g(v). They are used instead of differentiating the
formulas, which are singular at |rho| = 1 and at zero variance. Where the derivative is
truly infinite (E step(u) step(v) at |rho| = 1, a kink at the mean with zero variance)
it is taken as 0.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from ..scalar import Expr, evaluate, evaluate_now
from . import _form
from ._form import Atom, Form
from ._joint import Value, add, determinant, is_zero, mul, ratio, safe_sqrt
from ._pairs import Leaves, pair
from ._stack import Stack, alike

_ONE: Form = (Atom((1.0,)),)


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A form, and the expression it came from, which settles the values at breaks."""

    form: Form
    expr: Expr | None = None

    def is_at_zero(self, value: float) -> bool:
        """Whether it has this value at zero, if an expression settles it."""
        return self.expr is None or float(evaluate_now(self.expr, [0.0])) == value


def mean(f: Function, m: Value, a: Value) -> Value:
    """E f(z) for z ~ N(m, a); a Python 0.0 is a structural zero."""
    powers = _by_powers(f) if is_zero(m) and not is_zero(a) else None
    if powers is not None:
        total = jnp.zeros_like(a)
        for k, c in enumerate(powers):
            power = mul(*[a] * (k // 2), *[safe_sqrt(a)] * (k % 2))
            total = total + c * power if c else total
        return total
    return dual(f, Function(_ONE), m, a, 0.0, 0.0, 0.0)


# What a gate is right and left of zero, and at zero.
_SIDES = {"none": (1, 1, 1.0), "step": (1, 0, 0.5), "sign": (1, -1, 0.0)}


@functools.lru_cache(maxsize=4096)
def _by_powers(f: Function) -> tuple[float, ...] | None:
    """The c of E f(z) = sum_k c_k a^(k/2), z ~ N(0, a); None where it is no such sum.

    It is one for polynomials on either side of zero.
    """
    found, middle = [0.0] * max((len(x.poly) for x in f.form), default=0), 0.0
    for x in f.form:
        plain = not (x.alpha or x.beta or x.omega or x.t)
        if not plain or x.gate not in _SIDES or any(complex(c).imag for c in x.poly):
            return None
        right, left, at_zero = _SIDES[x.gate]
        middle += complex(x.poly[0]).real * at_zero
        for k, c in enumerate(x.poly):
            found[k] += complex(c).real * _half_moment(k) * (right + left * (-1) ** k)
    # Without variance a jump counts in the middle.
    return tuple(found) if f.is_at_zero(middle) else None


def _half_moment(k: int) -> float:
    """E z^k step(z) for z ~ N(0, 1)."""
    if k % 2:
        return math.prod(range(2, k, 2)) / math.sqrt(2 * math.pi)
    return math.prod(range(1, k, 2)) / 2


def known(f: Form, g: Form) -> bool:
    """Whether `dual` covers the pair: oscillations have no closed form beside gates."""
    waves = [any(a.omega for a in form) for form in (f, g)]
    gates = [any(a.gate != "none" for a in form) for form in (f, g)]
    return not (waves[0] and gates[1]) and not (waves[1] and gates[0])


def dual(
    f: Function, g: Function, m1: Value, a: Value, m2: Value, b: Value, c: Value
) -> Value:
    """E f(u) g(v), Var u = a, Var v = b, Cov(u, v) = c; may hold point masses."""
    total: Value = 0.0
    f_smooth, f_points = _form.masses(f.form)
    g_smooth, g_points = _form.masses(g.form)
    leaves = (m1, a, m2, b, c)
    if f_smooth and g_smooth:
        functions = (
            dataclasses.replace(f, form=f_smooth),
            dataclasses.replace(g, form=g_smooth),
        )
        total = _differentiable(*functions, tuple(is_zero(x) for x in leaves))(leaves)
    rest = dataclasses.replace(g, form=g_smooth)
    for point in f_points:
        total = add(total, _mass(point, rest, leaves))
        for other in g_points:
            total = add(total, _mass(point, Function((other,)), leaves))
    swapped = (m2, b, m1, a, c)
    for point in g_points:
        total = add(total, _mass(point, dataclasses.replace(f, form=f_smooth), swapped))
    return total


@functools.lru_cache(maxsize=4096)
def _differentiable(
    f: Function, g: Function, zeros: tuple[bool, ...]
) -> Callable[[Leaves], Value]:
    """The dual of two forms without point masses, with Price's derivatives."""

    def plain(*arrays: Array) -> Array:
        return jnp.asarray(_value(f, g, _restore(arrays, zeros)))

    value = jax.custom_jvp(plain)

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Any]:
        leaves = _restore(primals, zeros)
        out = value(*primals)
        moved = iter(tangents)
        by_leaf: list[Any] = [0.0 if zero else next(moved) for zero in zeros]
        change: Any = 0.0
        for tangent, slope in zip(by_leaf, _slopes(f, g), strict=True):
            if isinstance(tangent, SymbolicZero | float):
                continue
            # What the value does not have the axes of it does not depend on.
            if np.broadcast_shapes(tangent.shape, out.shape) == out.shape:
                change = add(change, mul(slope(leaves), tangent))
        if is_zero(change):
            return out, jnp.zeros_like(out)
        return out, jnp.broadcast_to(change, out.shape).astype(out.dtype)

    value.defjvp(rule, symbolic_zeros=True)

    def call(leaves: Leaves) -> Value:
        return value(*(jnp.asarray(x) for x in leaves if not is_zero(x)))

    return call


def _restore(arrays: Any, zeros: tuple[bool, ...]) -> Any:
    values = iter(arrays)
    return tuple(0.0 if zero else next(values) for zero in zeros)


def _slopes(f: Function, g: Function) -> list[Callable[[Leaves], Value]]:
    """The derivatives with respect to m1, a, m2, b, c."""

    def price(i: int, j: int, scale: float) -> Callable[[Leaves], Value]:
        def slope(leaves: Leaves) -> Value:
            return mul(scale, dual(_derived(f, i), _derived(g, j), *leaves))

        return slope

    orders = [(1, 0, 1.0), (2, 0, 0.5), (0, 1, 1.0), (0, 2, 0.5), (1, 1, 1.0)]
    return [price(*order) for order in orders]


def _derived(f: Function, order: int) -> Function:
    if order == 0:
        return f
    form = f.form
    for _ in range(order):
        form = _form.derivative(form)
    return Function(form)


def _value(f: Function, g: Function, leaves: Leaves) -> Value:
    """The dual, where a variance of 0 evaluates a kinked function at its mean."""
    m1, a, m2, b, c = leaves
    first, second = _form.kinked(f.form), _form.kinked(g.form)
    if first and not is_zero(a):
        some = a > 0
        inside = (m1, jnp.where(some, a, 1), m2, b, mul(c, jnp.where(some, 1, 0)))
        at_mean = _at(f, m1, a) * mean(g, m2, b)
        return jnp.where(some, _second(f, g, inside, second), at_mean)
    if first:
        return _at(f, m1, b) * mean(g, m2, b)
    return _second(f, g, leaves, second)


def _second(f: Function, g: Function, leaves: Leaves, second: bool) -> Value:
    m1, a, m2, b, c = leaves
    if second and is_zero(b):
        return mean(f, m1, a) * _at(g, m2, a)
    if not second:
        return _sum(f.form, g.form, leaves)
    some = b > 0
    inside = (m1, a, m2, jnp.where(some, b, 1), mul(c, jnp.where(some, 1, 0)))
    at_mean = mean(f, m1, a) * _at(g, m2, b)
    return jnp.where(some, _sum(f.form, g.form, inside), at_mean)


def _sum(f: Form, g: Form, leaves: Leaves) -> Value:
    if is_zero(leaves[0]):
        f = _form.centred(f)
    if is_zero(leaves[2]):
        g = _form.centred(g)
    total: Value = 0.0
    for x, y in alike(f, g):
        total = add(total, _together(x, y, leaves))
    return total


def _together(f: Stack, g: Stack, leaves: Leaves) -> Value:
    """The sum over pairs of atoms of one structure: traced and compiled as one."""
    if f.count == 1:
        return pair(f.atom(f.numbers[0]), g.atom(g.numbers[0]), leaves)
    dtype = jnp.result_type(*(x for x in leaves if not is_zero(x)))

    def one(p: Array, q: Array) -> Array:
        return jnp.asarray(pair(f.atom(p), g.atom(q), leaves), dtype)

    numbers = jnp.asarray(f.numbers, dtype), jnp.asarray(g.numbers, dtype)
    return jnp.sum(jax.vmap(one)(*numbers), axis=0)


def _at(f: Function, m: Value, like: Value) -> Value:
    """f(m)."""
    x = jnp.zeros((), jnp.result_type(float, like)) if is_zero(m) else m
    if f.expr is not None:
        return evaluate(f.expr, [x])
    total: Value = 0.0
    for atom in f.form:
        total = add(total, _atom_at(atom, x))
    return total


def _atom_at(f: Atom, x: Array) -> Array:
    y = f.w * (x - f.t)
    total: Any = jnp.zeros_like(y)
    for k, coefficient in enumerate(f.poly):
        total = total + coefficient * y**k
    phase = jnp.exp(1j * f.omega * y) if f.omega else 1.0
    out = jnp.real(total * phase) * jnp.exp(f.alpha * y + f.beta * y * y)
    match f.gate:
        case "step":
            return out * 0.5 * (1 + jnp.sign(y))
        case "sign":
            return out * jnp.sign(y)
        case "erf":
            return out * jax.lax.erf(f.p * y + f.q)
        case _:
            return out


def _mass(point: Atom, g: Function, leaves: Leaves) -> Value:
    """E[delta(u - t) g(v)] or E[delta'(u - t) g(v)]: condition v on u = t."""
    m1, a, m2, b, c = leaves
    if is_zero(a):
        return 0.0
    offset = add(point.t, mul(-1.0, m1))
    slope = ratio(c, a)
    at = add(m2, mul(slope, offset))
    spread = ratio(determinant(a, b, c), a) if not is_zero(b) else 0.0
    some = a > 0
    var = jnp.where(some, a, 1)
    density = (
        jnp.exp(mul(-0.5, offset, offset, 1 / var)) if not is_zero(offset) else 1.0
    )
    density = point.poly[0].real * density / jnp.sqrt(2 * math.pi * var)
    inner = mean(g, at, spread)
    if point.gate == "slope":
        inner = add(
            mul(offset, 1 / var, inner),
            mul(-1.0, slope, mean(_derived(g, 1), at, spread)),
        )
    return mul(jnp.where(some, density, 0), inner)
