"""Closed forms of E f(u) and E f(u) g(v), chosen by what f and g are.

Covered: every function that is, between static breakpoints, a sum of terms x^k
exp(alpha x + beta x^2), and without breakpoints also of such terms times sin, cos or
erf of an affine function; for any means, variances (0 included) and correlations (+-1
included). Parameters may scale and shift the argument, and enter linearly outside.

References:
    Cho and Saul (2009), https://papers.nips.cc/paper/3628: arc-cosine kernels.
    Williams (1997), "Computing with infinite networks": erf and Gaussian functions.
    Price (1958), IRE Trans. Inf. Theory 4: derivatives with respect to covariances.
"""

import functools
from collections.abc import Sequence

from jax import Array

from ..scalar import Const, Expr, arity, evaluate
from . import _arc_cosine, _dual
from ._affine import Addend, addends
from ._dual import Function
from ._form import Form, form_of, kinked
from ._identify import identify
from ._joint import Value, add, is_zero, mul
from ._naming import name_of


def closed_mean(
    f: Expr, m: Value, a: Value, params: Sequence[Array] = ()
) -> Value | None:
    """E f(z, *params) for z ~ N(m, a), or None where no closed form is known.

    Args:
        f: a function of `Arg(0)`; parameters are `Arg(1)`, `Arg(2)`, ...
        m: the mean; the Python float 0.0 is a structural zero, and cheaper.
        a: the variance, at least 0.
        params: arrays that broadcast with `m` and `a`.
    """
    parts = _parts(f)
    if parts is None:
        return None
    total: Value = 0.0
    for part, function in parts:
        scale, mean, var, _ = _leaf(part, m, a, params)
        total = add(total, mul(scale, _dual.mean(function, mean, var)))
    return total


def closed_dual(
    f: Expr,
    g: Expr,
    m1: Value,
    a: Value,
    m2: Value,
    b: Value,
    c: Value,
    params: Sequence[Array] = (),
    d: Value | None = None,
) -> Value | None:
    """E f(u, *params) g(v, *params), or None where no closed form is known.

    Args:
        f: a function of u, written as `Arg(0)`; parameters are `Arg(1)`, ...
        g: a function of v, written as `Arg(0)` too.
        m1: the mean of u; the Python float 0.0 is a structural zero.
        a: the variance of u.
        m2: the mean of v.
        b: the variance of v.
        c: the covariance, |c| <= sqrt(a b) up to rounding.
        params: arrays that broadcast with the rest.
        d: half the mean of (u - v)^2, where it is known better than by the others.
    """
    left, right = _parts(f), _parts(g)
    if left is None or right is None:
        return None
    if not all(_dual.known(x.form, y.form) for _, x in left for _, y in right):
        return None
    if is_zero(c):
        return mul(closed_mean(f, m1, a, params), closed_mean(g, m2, b, params))
    total: Value = 0.0
    for one, first in left:
        scale1, mean1, var1, slope1 = _leaf(one, m1, a, params)
        for two, second in right:
            scale2, mean2, var2, slope2 = _leaf(two, m2, b, params)
            cov = mul(slope1, slope2, c)
            near = None if d is None else scaled_distance(slope1, slope2, a, b, d)
            law = _arc_cosine.Law(var1, var2, cov, near)
            centred = is_zero(mean1) and is_zero(mean2)
            inner = _beside_zero(first, second, law) if centred else None
            if inner is None:
                inner = _dual.dual(first, second, mean1, var1, mean2, var2, cov)
            total = add(total, mul(scale1, scale2, inner))
    return total


def closed_half_distance(
    f: Expr, g: Expr, a: Value, b: Value, d: Value, params: Sequence[Array] = ()
) -> Value:
    """E(f(u, *params) - g(v, *params))^2 / 2, for functions that `knows_distance`.

    Args:
        f: a function of u, as for `closed_dual`.
        g: a function of v.
        a: the variance of u, centred.
        b: the variance of v, centred.
        d: half the mean of (u - v)^2.
        params: as for `closed_dual`.
    """
    (one, first), (two, _) = _only_part(f), _only_part(g)
    scale1, _, var1, slope1 = _leaf(one, 0.0, a, params)
    scale2, _, var2, slope2 = _leaf(two, 0.0, b, params)
    sides = _arc_cosine.slopes(first.form) or (0.0, 0.0)
    near = scaled_distance(slope1, slope2, a, b, d)
    law = _arc_cosine.Law(var1, var2, 0.5 * (var1 + var2) - near, near)
    size = 0.5 * (sides[0] ** 2 + sides[1] ** 2)
    inner = _arc_cosine.half_distance(sides, law)
    return scaled_distance(scale1, scale2, size * var1, size * var2, inner)


@functools.lru_cache(maxsize=4096)
def knows_distance(f: Expr, g: Expr) -> bool:
    """Whether `closed_half_distance` covers two functions."""
    left, right = _parts(f), _parts(g)
    if left is None or right is None or len(left) != 1 or len(right) != 1:
        return False
    ((one, first),), ((two, second),) = left, right
    sides = _arc_cosine.slopes(first.form)
    centred = all(p.shift in (None, Const(0.0)) for p in (one, two))
    return centred and sides is not None and sides == _arc_cosine.slopes(second.form)


def scaled_distance(s: Value, t: Value, a: Value, b: Value, d: Value) -> Value:
    """E(s u - t v)^2 / 2 from E u^2, E v^2 and d = E(u - v)^2 / 2."""
    if _is_one(s) and _is_one(t):
        return d
    return s * t * d + 0.5 * (s - t) * (s * a - t * b)


def _is_one(x: Value) -> bool:
    return isinstance(x, float) and x == 1.0


@functools.lru_cache(maxsize=4096)
def has_kink(f: Expr) -> bool:
    """Whether the closed form of a function is one where distances matter."""
    parts = _parts(f) or ()
    return any(kinked(function.form) for _, function in parts)


def _beside_zero(f: Function, g: Function, law: _arc_cosine.Law) -> Value | None:
    """E f(u) g(v) of functions that are linear or constant on both sides of zero."""
    one, two = _arc_cosine.slopes(f.form), _arc_cosine.slopes(g.form)
    if one is not None and two is not None:
        return _arc_cosine.dual(one, two, law)
    one, two = _levels(f), _levels(g)
    if one is not None and two is not None:
        return _arc_cosine.jumps(one, two, law)
    return None


@functools.lru_cache(maxsize=4096)
def _levels(f: Function) -> tuple[float, float] | None:
    """The values of a function that jumps at zero, and is in the middle there."""
    sides = _arc_cosine.values(f.form)
    if sides is None:
        return None
    return sides if f.is_at_zero(sum(sides) / 2) else None


def closed_name(f: Expr, g: Expr | None = None) -> str | None:
    """What the closed form is called, or None where there is none."""
    left, right = _parts(f), _parts(f if g is None else g)
    if left is None or right is None:
        return None
    if not all(_dual.known(x.form, y.form) for _, x in left for _, y in right):
        return None
    functions = (f,) if g is None or g == f else (f, g)
    names: list[str] = []
    for one in functions:
        for _, function in _parts(one) or ():
            name = name_of(function.form)
            if name not in names:
                names.append(name)
    return " and ".join(names)


Part = tuple[Addend, Function]


@functools.lru_cache(maxsize=4096)
def _parts(f: Expr) -> tuple[Part, ...] | None:
    """`f` as a sum of parameters times functions of an affine argument."""
    found = addends(f)
    if found is None:
        return None
    out: list[Part] = []
    for addend in found:
        form = _form(addend.function)
        if form is None:
            return None
        out.append((addend, Function(form, addend.function)))
    return tuple(out)


def _only_part(f: Expr) -> Part:
    parts = _parts(f)
    assert parts is not None
    return parts[0]


@functools.lru_cache(maxsize=4096)
def _form(f: Expr) -> Form | None:
    pieces = identify(f) if arity(f) <= 1 else None
    form = None if pieces is None else form_of(pieces)
    # A growing Gaussian factor has no expectation at large variances.
    if form is None or any(atom.beta > 0 for atom in form):
        return None
    return form


def _leaf(
    part: Addend, m: Value, a: Value, params: Sequence[Array]
) -> tuple[Value, ...]:
    """Outer scale, mean and variance of the affine argument, and its slope."""

    def number(e: Expr | None, default: float) -> Value:
        return default if e is None else evaluate(e, [0.0, *params])

    slope, shift = number(part.slope, 1.0), number(part.shift, 0.0)
    return (
        number(part.scale, 1.0),
        add(mul(slope, m), shift),
        mul(slope, slope, a),
        slope,
    )
