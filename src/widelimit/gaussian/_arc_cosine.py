"""Centred functions that are linear or constant on both sides of zero.

With slope alpha for x < 0 and beta for x > 0 it is the first arc-cosine kernel,

    E f(u) f(v) = ((alpha + beta) / 2)^2 c + ((beta - alpha) / 2)^2 E|u||v|,
    E|u||v| = (2 / pi) (s + c asin(c / g)),   s = sqrt(g^2 - c^2), g = sqrt(a b)
            = |c| + g e^(3/2) R(e),           e = 1 - |c| / g,

and with the values alpha and beta the one of order zero,

    E f(u) f(v) = ((alpha + beta) / 2)^2 + ((beta - alpha) / 2)^2 (2 / pi) asin(c / g),
    acos(|c| / g) = sqrt(e) P(e).

The general formulas of `_dual` contain these; here they cost a dozen operations instead
of three hundred, and networks spend their time in them. P and R are analytic on [0, 1],
and polynomials for them are ten times faster than inverse trigonometric functions.

Near e = 0 the derivative is the square root of e, and c = g (1 - e) has lost the digits
of e. So e is taken from the half distance d = E(u - v)^2 / 2, where that is known:
g e = d - (sqrt(a) - sqrt(b))^2 / 2, and the one of f(u) and f(v) follows from it
without cancellation.

References:
    Cho and Saul (2009), https://papers.nips.cc/paper/3628.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._form import Form
from ._inverse_sine import polynomial
from ._joint import safe_sqrt

_DEGREES = (6, 16)

Sides = tuple[float, float]
"""The slopes, or the values, left and right of zero."""


class Law(NamedTuple):
    """Two centred Gaussians u and v.

    Attributes:
        a: the variance of u.
        b: the variance of v.
        c: their covariance.
        d: half the mean of (u - v)^2, where it is known better than by a, b and c.
    """

    a: Any
    b: Any
    c: Any
    d: Any = None


def slopes(form: Form) -> Sides | None:
    """The slopes left and right of zero of a piecewise linear form, or None."""
    return _sides(form, 1)


def values(form: Form) -> Sides | None:
    """The values left and right of zero of a piecewise constant form, or None."""
    return _sides(form, 0)


def _sides(form: Form, degree: int) -> Sides | None:
    left = right = 0.0
    for atom in form:
        plain = not (atom.alpha or atom.beta or atom.omega or atom.t)
        alone = len(atom.poly) <= degree + 1 and not any(atom.poly[:degree])
        real = not any(complex(c).imag for c in atom.poly)
        if not (plain and alone and real) or atom.gate not in ("none", "step", "sign"):
            return None
        if len(atom.poly) <= degree:
            continue
        size = complex(atom.poly[degree]).real
        turned = size * atom.w**degree
        match atom.gate:
            case "none":
                left, right = left + turned, right + turned
            case "sign":
                size = size if degree else size * atom.w
                left, right = left - size, right + size
            case _ if atom.w > 0:
                right += turned
            case _:
                left += turned
    return left, right


def dual(f: Sides, g: Sides, law: Law) -> Array:
    """E f(u) g(v) for functions of these slopes."""
    even, odd = _even(f) * _even(g), _odd(f) * _odd(g)
    if even == 0.0:
        return odd * law.c
    total = even * absolute(*_cast(law))
    return total if odd == 0.0 else total + odd * law.c


def jumps(f: Sides, g: Sides, law: Law) -> Array:
    """E f(u) g(v) for functions of these values."""
    mean, jump = _odd(f) * _odd(g), _even(f) * _even(g)
    total = (2 / math.pi) * jump * angle(*_cast(law))
    return total if mean == 0.0 else mean + total


def half_distance(f: Sides, law: Law) -> Array:
    """E(f(u) - f(v))^2 / 2 for a function of these slopes; the law has a distance."""
    even, odd = _even(f) ** 2, _odd(f) ** 2
    if even == 0.0:
        return odd * law.d
    a, b, _, d = law = _cast(law)
    far = even * a + even * b
    if odd != even:
        far = far + (odd - even) * d
    parts = jnp.where(_nearness(law) < 1, (odd + even) * d, far)
    return parts - even * _rest(*law)


def _even(f: Sides) -> float:
    return (f[1] - f[0]) / 2


def _odd(f: Sides) -> float:
    return (f[0] + f[1]) / 2


def _cast(law: Law) -> Law:
    return Law(*(None if x is None else jnp.asarray(x) for x in law))


def _nearness(law: Law) -> Array:
    """1 - c / sqrt(a b), between 0 and 2 up to rounding; 0 without variance."""
    a, b, c, d = law
    first, second = safe_sqrt(a), safe_sqrt(b)
    if d is None:
        # Equal inputs are told from others by the last digit.
        g = first * second
        gap = g - jnp.abs(c)
        gap = jnp.where(gap > 2 * jnp.finfo(gap.dtype).eps * g, gap, 0)
        gap = jnp.where(c >= 0, gap, 2 * g - gap)
    else:
        between = first - second
        gap = d - 0.5 * between * between
    # Of every input alone, rather than a division for every pair.
    return gap * (_over(1, first) * _over(1, second))


def _side(near: Array) -> Array:
    """1 - |c| / sqrt(a b)."""
    return jnp.maximum(jnp.minimum(near, 2 - near), 0)


@jax.custom_jvp
def absolute(a: Array, b: Array, c: Array, d: Array | None) -> Array:
    """E|u||v|."""
    return jnp.abs(c) + _rest(a, b, c, d)


@jax.custom_jvp
def _rest(a: Array, b: Array, c: Array, d: Array | None) -> Array:
    """E|u||v| - |c|."""
    e = _side(_nearness(Law(a, b, c, d)))
    g = (4 * math.sqrt(2) / math.pi * safe_sqrt(a)) * safe_sqrt(b)
    return g * (e * jnp.sqrt(e) * polynomial(_first, e, _DEGREES))


@jax.custom_jvp
def angle(a: Array, b: Array, c: Array, d: Array | None) -> Array:
    """Asin(c / sqrt(a b)), 0 without variance."""
    near = _nearness(Law(a, b, c, d))
    e = _side(near)
    rest = jnp.sqrt(e) * polynomial(_acos, e, _DEGREES)
    both = jnp.sign(a) * jnp.sign(b)
    return both * jnp.where(near < 1, math.pi / 2 - rest, rest - math.pi / 2)


@absolute.defjvp
def _absolute_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    slope = (2 / math.pi) * angle(*primals)
    return absolute(*primals), _along(primals, tangents, slope)


@_rest.defjvp
def _rest_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # At c = 0, the side on which `half_distance` is.
    sign = jnp.where(_nearness(Law(*primals)) < 1, 1, -1)
    slope = (2 / math.pi) * angle(*primals) - sign
    return _rest(*primals), _along(primals, tangents, slope)


def _along(primals: Any, tangents: Any, slope: Array) -> Array:
    """The derivative of E|u||v|, or of a part with another slope in c."""
    (a, b, *_), (da, db, dc, _) = primals, tangents
    s = (1 / math.pi) * _root(primals)
    return slope * dc + s * (_over(da, a) + _over(db, b))


@angle.defjvp
def _angle_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (a, b, c, _), (da, db, dc, _) = primals, tangents
    moved = dc - 0.5 * c * (_over(da, a) + _over(db, b))
    return angle(*primals), _over(moved, _root(primals))


def _root(primals: Any) -> Array:
    """Sqrt(a b - c^2)."""
    near = _nearness(Law(*primals))
    return safe_sqrt(primals[0]) * safe_sqrt(primals[1]) * safe_sqrt(near * (2 - near))


def _over(x: Any, y: Array) -> Array:
    """X / y, and 0 where y is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def _acos(k: int) -> Fraction:
    """P."""
    return Fraction(math.comb(2 * k, k), 8**k * (2 * k + 1)) * Fraction(math.sqrt(2))


def _first(k: int) -> Fraction:
    """R without its factor 4 sqrt(2) / pi."""
    return Fraction(math.comb(2 * k, k), 8**k * (2 * k + 1) * (2 * k + 3))
