"""Centred piecewise linear functions with a kink at zero: the first arc-cosine kernel.

With slope alpha for x < 0 and beta for x > 0,

    E f(u) f(v) = ((alpha + beta) / 2)^2 c + ((beta - alpha) / 2)^2 E|u||v|,
    E|u||v| = (2 / pi) (s + c asin(c / g)),   s = sqrt(g^2 - c^2), g = sqrt(a b)
            = |c| + 2 g e^(3/2) R(e),         e = 1 - |c| / g.

The general formulas of `_dual` contain this one; here it costs a dozen operations
instead of three hundred, and networks spend their time in it. R is analytic on
0 <= e <= 1, and a polynomial for it is ten times faster than an inverse trigonometric
function.

References:
    Cho and Saul (2009), https://papers.nips.cc/paper/3628.
"""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array

from ._form import Form


def slopes(form: Form) -> tuple[float, float] | None:
    """The slopes left and right of zero of a piecewise linear form, or None."""
    left = right = 0.0
    for atom in form:
        plain = not (atom.alpha or atom.beta or atom.omega or atom.t)
        linear = (
            len(atom.poly) <= 2
            and not any(atom.poly[:1])
            and not any(complex(c).imag for c in atom.poly)
        )
        if not plain or not linear or atom.gate not in ("none", "step", "sign"):
            return None
        slope = complex(atom.poly[1]).real if len(atom.poly) == 2 else 0.0
        match atom.gate:
            case "none":
                left, right = left + slope * atom.w, right + slope * atom.w
            case "sign":
                left, right = left - slope, right + slope
            case _ if atom.w > 0:
                right += slope
            case _:
                left -= slope
    return left, right


def dual(
    f: tuple[float, float], g: tuple[float, float], a: Array, b: Array, c: Array
) -> Array:
    """E f(u) g(v) for centred u, v of variances a, b and covariance c."""
    even = (f[1] - f[0]) * (g[1] - g[0]) / 4
    odd = (f[0] + f[1]) * (g[0] + g[1]) / 4
    if even == 0.0:
        return odd * c
    total = even * absolute(*(jnp.asarray(x) for x in (a, b, c)))
    return total if odd == 0.0 else total + odd * c


@jax.custom_jvp
def absolute(a: Array, b: Array, c: Array) -> Array:
    """E|u||v|."""
    size = jnp.abs(c)
    g = jnp.sqrt(a) * jnp.sqrt(b)
    dtype = jnp.result_type(a, b, c)
    gap = jnp.maximum(g - size, 0)
    e = gap / jnp.maximum(g, jnp.finfo(dtype).tiny)
    rest = jnp.zeros((), dtype)
    for coefficient in _coefficients(dtype.itemsize):
        rest = rest * e + jnp.asarray(coefficient, dtype)
    return size + gap * jnp.sqrt(e) * rest


@functools.cache
def _coefficients(itemsize: int) -> tuple[float, ...]:
    """2 R(e) to the accuracy of a float, as a polynomial with the highest power first.

    Its Taylor series, economised on [0, 1] (Lanczos): from the last power on, each is
    replaced by lower ones through the shifted Chebyshev polynomial of its degree. In
    fractions, as the conversion would cost digits.
    """
    degree, terms = (16, 50) if itemsize > 4 else (6, 30)
    series = [
        Fraction(math.comb(2 * k, k), 8**k * (2 * k + 1) * (2 * k + 3))
        for k in range(terms)
    ]
    chebyshev = [[1], [-1, 2]]
    for _ in range(2, terms):
        last, before = chebyshev[-1], [*chebyshev[-2], 0, 0]
        doubled = zip([0, *last], [*last, 0], before, strict=True)
        chebyshev.append([4 * up - 2 * same - old for up, same, old in doubled])
    for k in range(terms - 1, degree, -1):
        top = series.pop() / chebyshev[k][k]
        series = [s - top * t for s, t in zip(series, chebyshev[k][:k], strict=True)]
    scale = 4 * math.sqrt(2) / math.pi
    return tuple(scale * float(s) for s in reversed(series))


@absolute.defjvp
def _absolute_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    a, b, c = primals
    da, db, dc = tangents
    s = jnp.sqrt(jnp.maximum(a * b - c * c, 0))
    angle = jnp.arctan2(c, s)

    def over(x: Array) -> Array:
        return jnp.where(x > 0, s / jnp.where(x > 0, x, 1), 0)

    value = (2 / math.pi) * (s + c * angle)
    slope = (2 / math.pi) * angle * dc + (1 / math.pi) * (over(a) * da + over(b) * db)
    return value, slope
