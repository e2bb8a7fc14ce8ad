"""The inverse sine, near 1 and far from it, by polynomials.

asin(x) = x S(x^2), where S is analytic for |x| < 1; and near 1

    asin(1 - e) = pi/2 - acos(1 - e),   acos(1 - e) = 2 asin(sqrt(e / 2)),

which keeps the digits of e. XLA's arctan2 takes ten times as long.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import jax.numpy as jnp
from jax import Array

Series = Callable[[int], Fraction]
"""The coefficient of every power."""


def asin(x: Array, e: Array) -> Array:
    """The inverse sine of x, to relative accuracy.

    At e = 0 its derivative is 0, as that of `safe_sqrt` is: no infinity is multiplied
    by the zero with which x moves there.

    Args:
        x: in [-1, 1].
        e: 1 - |x|, which may be known better than x.
    """
    far = jnp.abs(x) < 0.5
    square = jnp.where(far, x * x, 0.5 * e)
    near = (square > 0) & ~far
    root = jnp.where(near, jnp.sqrt(jnp.where(near, square, 1)), jnp.where(far, x, 0))
    value = root * polynomial(_quarter, 4 * square, (5, 12))
    close = math.pi / 2 - 2 * value
    return jnp.where(far, value, jnp.where(x < 0, -close, close))


def _quarter(k: int) -> Fraction:
    """S(y / 4)."""
    return Fraction(math.comb(2 * k, k), 16**k * (2 * k + 1))


def polynomial(series: Series, x: Array, degrees: tuple[int, int]) -> Array:
    """A power series that converges on [0, 1], as a polynomial.

    Args:
        series: its coefficients.
        x: between 0 and 1.
        degrees: that are enough for four and for eight bytes a number.
    """
    total = jnp.zeros((), x.dtype)
    for coefficient in _economised(series, degrees[x.dtype.itemsize > 4]):
        total = total * x + jnp.asarray(coefficient, x.dtype)
    return total


@functools.cache
def _economised(series: Series, degree: int) -> tuple[float, ...]:
    """The polynomial of a series on [0, 1] (Lanczos), the highest power first.

    From the last power on, each is replaced by lower ones through the shifted Chebyshev
    polynomial of its degree. In fractions, as the conversion would cost digits.
    """
    terms = 3 * degree
    rest = [series(k) for k in range(terms)]
    chebyshev = [[1], [-1, 2]]
    for _ in range(2, terms):
        last, before = chebyshev[-1], [*chebyshev[-2], 0, 0]
        doubled = zip([0, *last], [*last, 0], before, strict=True)
        chebyshev.append([4 * up - 2 * same - old for up, same, old in doubled])
    for k in range(terms - 1, degree, -1):
        top = rest.pop() / chebyshev[k][k]
        rest = [s - top * t for s, t in zip(rest, chebyshev[k][:k], strict=True)]
    return tuple(float(s) for s in reversed(rest))
