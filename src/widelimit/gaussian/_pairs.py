"""E of a product of two atoms: exponential tilting, then moments with gates.

exp(alpha . z + z' B z) times a Gaussian density is a Gaussian density with covariance
(C^-1 - 2 B)^-1 and a shifted mean (Girsanov), so only polynomials and gates are left.
An erf is a step smoothed by independent noise: erf(p x + q) = E sign(p x + q - N), with
N of variance 1/2. A complex exponent gives sines and cosines.
"""

import dataclasses
import math

import jax.numpy as jnp

from ._form import Atom
from ._joint import Joint, Value, add, determinant, is_zero, mul

Leaves = tuple[Value, Value, Value, Value, Value]
"""Means and variances m1, a, m2, b of two Gaussians, and their covariance c."""


def pair(f: Atom, g: Atom, leaves: Leaves) -> Value:
    """E[f(u) g(v)] of two atoms that are not point masses."""
    if oscillates(f) and oscillates(g):
        return _waves(f, g, leaves)
    total = _real(_product(f, g, leaves))
    if f.omega and g.omega:
        total = 0.5 * (total + _real(_product(f, _conjugate(g), leaves)))
    return total


def oscillates(f: Atom) -> bool:
    """Whether the atom is a pure sine."""
    if not f.omega:
        return False  # its other numbers may be traced: atoms of a stack
    return f.gate == "none" and len(f.poly) == 1 and not (f.alpha or f.beta)


def _waves(f: Atom, g: Atom, leaves: Leaves) -> Value:
    """Sines and cosines: exp(-(a + b) / 2) sinh c or cosh c, for unit frequency."""
    m1, a, m2, b, c = leaves
    size = 0.5 * (f.omega**2 * a + g.omega**2 * b)
    x = f.omega * g.omega * c
    one = _turned(f.poly[0], mul(f.omega, m1))
    two = _turned(g.poly[0], mul(g.omega, m2))
    # Re(one) Re(two) split into the parts even and odd in the covariance.
    even, odd = mul(one[0], two[0]), mul(one[1], two[1])
    up, down = jnp.exp(jnp.abs(x) - size), jnp.exp(-2 * jnp.abs(x))
    cosh = mul(0.5, even, up * (1 + down)) if not is_zero(even) else 0.0
    sinh = -0.5 * jnp.sign(x) * up * jnp.expm1(-2 * jnp.abs(x))
    return add(cosh, 0.0 if is_zero(odd) else mul(odd, sinh))


def _turned(value: complex, phase: Value) -> tuple[Value, Value]:
    """Real and imaginary part of value * exp(i phase)."""
    real, imag = complex(value).real, complex(value).imag
    if is_zero(phase):
        return real, imag
    cos, sin = jnp.cos(phase), jnp.sin(phase)
    return real * cos - imag * sin, real * sin + imag * cos


def _conjugate(f: Atom) -> Atom:
    poly = tuple(complex(c).conjugate() for c in f.poly)
    return dataclasses.replace(f, poly=poly, omega=-f.omega)


def _real(x: Value) -> Value:
    return (
        x.real if isinstance(x, complex) else x if isinstance(x, float) else jnp.real(x)
    )


def _product(f: Atom, g: Atom, leaves: Leaves) -> Value:
    """E of the product of the two atoms, complex where one oscillates."""
    m1, a, m2, b, c = leaves
    means = [mul(f.w, add(m1, -f.t)), mul(g.w, add(m2, -g.t))]
    cov = [[a, mul(f.w * g.w, c)], [mul(f.w * g.w, c), b]]
    alpha = [_exponent(f), _exponent(g)]
    joint = _tilted(means, cov, alpha, [f.beta, g.beta])
    gates = tuple(_gate(joint, i, atom) for i, atom in ((0, f), (1, g)) if _gated(atom))
    total: Value = 0.0
    padding = (0,) * (len(joint.mean) - 2)
    for i, x in enumerate(f.poly):
        for j, y in enumerate(g.poly):
            if not (is_zero(x) or is_zero(y)):
                total = add(total, mul(x * y, joint.moment((i, j, *padding), gates)))
    return total


def _exponent(f: Atom) -> Value:
    return complex(f.alpha, f.omega) if f.omega else f.alpha


def _gated(f: Atom) -> bool:
    return f.gate != "none"


def _gate(joint: Joint, i: int, f: Atom) -> tuple[int, str]:
    """The number and kind of the variable that the gate looks at; erf adds one."""
    if f.gate != "erf":
        return i, f.gate
    root = math.sqrt(2.0)
    slope = root * f.p
    row = [mul(slope, joint.cov[i][j]) for j in range(len(joint.mean))]
    joint.mean.append(add(mul(slope, joint.mean[i]), root * f.q))
    for j, x in enumerate(row):
        joint.cov[j].append(x)
    joint.cov.append([*row, add(1.0, mul(slope, row[i]))])
    return len(joint.mean) - 1, "sign"


def _tilted(
    m: list[Value], cov: list[list[Value]], alpha: list[Value], beta: list[float]
) -> Joint:
    """The Gaussian after multiplication by exp(alpha . z + sum beta_i z_i^2)."""
    if all(is_zero(x) for x in (*alpha, *beta)):
        return Joint(m, cov)
    logz: Value = 0.0
    for x, k, r in zip(m, alpha, beta, strict=True):
        logz = add(logz, add(mul(k, x), mul(r, x, x)))
    shift = [add(k, mul(2 * r, x)) for x, k, r in zip(m, alpha, beta, strict=True)]
    if not all(is_zero(x) for x in beta):
        (a, c), (_, b) = cov
        gap = determinant(a, b, c)
        scale = add(
            add(1.0, mul(-2 * beta[0], a)),
            add(mul(-2 * beta[1], b), mul(4 * beta[0] * beta[1], gap)),
        )
        logz = add(logz, mul(-0.5, jnp.log(scale)))
        inverse = 1 / scale
        cc = mul(c, inverse)
        cov = [
            [mul(add(a, mul(-2 * beta[1], gap)), inverse), cc],
            [cc, mul(add(b, mul(-2 * beta[0], gap)), inverse)],
        ]
    moved = [add(mul(cov[i][0], shift[0]), mul(cov[i][1], shift[1])) for i in range(2)]
    for i in range(2):
        logz = add(logz, mul(0.5, shift[i], moved[i]))
    return Joint([add(x, y) for x, y in zip(m, moved, strict=True)], cov, logz)
