"""Normal form of a smooth function of one variable.

A function is a sum of terms

    Re[coefficient * x^k * exp((alpha + i omega) x + beta x^2)] * (1 or erf(p x + q)),

kept as a mapping from `Mode` (everything but the coefficient) to the coefficient.
The form is closed under sums and, but for the square of an erf, under products.
"""

import dataclasses
import math

import numpy as np
from scipy import special

Number = float | complex


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Mode:
    """What multiplies a coefficient; `p = 0` is no erf, `p > 0` and `omega >= 0`."""

    alpha: float = 0.0
    beta: float = 0.0
    omega: float = 0.0
    p: float = 0.0
    q: float = 0.0
    k: int = 0


Terms = dict[Mode, Number]

ONE = Mode()


def constant(value: float) -> Terms:
    """The constant function."""
    return {ONE: value} if value else {}


def is_polynomial(f: Terms) -> bool:
    """Whether every term is a power of x."""
    return all(dataclasses.replace(mode, k=0) == ONE for mode in f)


def polynomial(f: Terms) -> np.ndarray | None:
    """Coefficients of 1, x, x^2, ..., or None where `f` is something else."""
    if not is_polynomial(f):
        return None
    out = np.zeros(1 + max((mode.k for mode in f), default=0))
    for mode, value in f.items():
        out[mode.k] = value.real
    return out


def as_constant(f: Terms) -> float | None:
    """The value of a constant function, None for any other."""
    if set(f) <= {ONE}:
        return float(f.get(ONE, 0.0).real)
    return None


def add(f: Terms, g: Terms, scale: float = 1.0) -> Terms:
    """The sum f + scale * g; what cancels to rounding is dropped."""
    out = dict(f)
    for mode, value in g.items():
        before = out.get(mode, 0.0)
        total = before + scale * value
        small = 4e-16 * (abs(before) + abs(scale * value))
        if abs(total) <= small:
            out.pop(mode, None)
        else:
            out[mode] = total
    return out


def times(f: Terms, g: Terms) -> Terms | None:
    """The product, or None where it leaves the normal form."""
    out: Terms = {}
    for one, x in f.items():
        for two, y in g.items():
            if one.p and two.p:
                return None
            for mode, value in _product(one, x, two, y):
                out = add(out, {mode: value})
    return out


def _product(one: Mode, x: Number, two: Mode, y: Number) -> list[tuple[Mode, Number]]:
    """Re(A) Re(B) = (Re(A B) + Re(A conj(B))) / 2 where both oscillate."""
    base = Mode(
        one.alpha + two.alpha,
        one.beta + two.beta,
        0.0,
        one.p + two.p,
        one.q + two.q,
        one.k + two.k,
    )
    if not (one.omega and two.omega):
        omega = one.omega + two.omega
        return [(dataclasses.replace(base, omega=omega), x * y)]
    out = []
    for omega, value in (
        (one.omega + two.omega, x * y / 2),
        (one.omega - two.omega, x * complex(y).conjugate() / 2),
    ):
        if omega < 0:
            omega, value = -omega, complex(value).conjugate()
        value = value if omega else complex(value).real
        out.append((dataclasses.replace(base, omega=omega), value))
    return [(mode, value) for mode, value in out if value]


def power(f: Terms, n: int) -> Terms | None:
    """f^n for an integer n >= 0, and for n < 0 where f is one exponential."""
    if n < 0:
        inverse = reciprocal(f)
        return None if inverse is None else power(inverse, -n)
    out: Terms | None = constant(1.0)
    for _ in range(n):
        out = None if out is None else times(out, f)
    return out


def reciprocal(f: Terms) -> Terms | None:
    """1 / f where f is one exponential, also one divided by a constant."""
    if len(f) != 1:
        return None
    ((mode, value),) = f.items()
    if mode.k or mode.omega or mode.p:
        return None
    return {Mode(-mode.alpha, -mode.beta): 1.0 / value}


def quotient(f: Terms, g: Terms) -> Terms | None:
    """The quotient f / g where g is one term a x^k exp(..) and x^k divides f."""
    if len(g) != 1:
        return None
    ((mode, value),) = g.items()
    inverse = reciprocal({dataclasses.replace(mode, k=0): value})
    if inverse is None or any(m.k < mode.k for m in f):
        return None
    lower = {dataclasses.replace(m, k=m.k - mode.k): v for m, v in f.items()}
    return times(lower, inverse)


def exponential(f: Terms) -> Terms | None:
    """exp(f) for a polynomial f of degree at most 2."""
    c = polynomial(f)
    if c is None or len(c) > 3:
        return None
    c = np.pad(c, (0, 3 - len(c)))
    try:
        scale = math.exp(c[0])
    except OverflowError:
        return None
    return {Mode(float(c[1]), float(c[2])): scale} if scale else None


def cosine(f: Terms, phase: complex = 1.0) -> Terms | None:
    """Re(phase * exp(i f)) for an affine f: phase 1 is cos f, and -1j is sin f."""
    c = polynomial(f)
    if c is None or len(c) > 2:
        return None
    c = np.pad(c, (0, 2 - len(c)))
    value = phase * complex(math.cos(c[0]), math.sin(c[0]))
    if c[1] < 0:
        value = value.conjugate()
    if c[1] == 0:
        return constant(value.real)
    return {Mode(omega=abs(float(c[1]))): value}


def error_function(f: Terms) -> Terms | None:
    """erf(f) for an affine f."""
    c = polynomial(f)
    if c is None or len(c) > 2:
        return None
    c = np.pad(c, (0, 2 - len(c)))
    if c[1] == 0:
        return constant(math.erf(c[0]))
    sign = 1.0 if c[1] > 0 else -1.0
    return {Mode(p=sign * float(c[1]), q=sign * float(c[0])): sign}


def value(f: Terms, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The function and the sum of the moduli of its terms, at points."""
    total, size = np.zeros_like(x), np.zeros_like(x)
    for mode, c in f.items():
        term = x**mode.k * np.exp(mode.alpha * x + mode.beta * x * x)
        if mode.omega:
            term = term * (complex(c) * np.exp(1j * mode.omega * x)).real
        else:
            term = term * c.real
        # erf is confirmed to absolute accuracy: its tails are one minus little.
        size += np.abs(term) + abs(c) * np.exp(mode.alpha * x + mode.beta * x * x)
        if mode.p:
            term = term * special.erf(mode.p * x + mode.q)
        total += term
    return total, size


def real_roots(f: Terms, low: float, high: float) -> list[float] | None:
    """Where f changes sign strictly between `low` and `high`; None if unknown."""
    c = polynomial(f)
    if c is None:
        return _exponential_roots(f, low, high)
    c = np.trim_zeros(c, "b")
    if len(c) < 2:
        return []
    if len(c) == 2:
        roots = np.array([-c[0] / c[1]])
    else:
        found = np.roots(c[::-1])
        close = np.abs(found.imag) <= 1e-7 * (1 + np.abs(found))
        roots = found[close].real
        slope = np.polynomial.polynomial.polyder(c)
        for _ in range(3):
            gradient = np.polynomial.polynomial.polyval(roots, slope)
            step = np.polynomial.polynomial.polyval(roots, c)
            roots = roots - np.where(
                gradient != 0, step / np.where(gradient != 0, gradient, 1), 0
            )
    return sorted({float(r) for r in roots + 0.0 if low < r < high})


def _exponential_roots(f: Terms, low: float, high: float) -> list[float] | None:
    """Roots of c exp(alpha x) + d, and of a single term that has none but 0."""
    modes = sorted(f, key=lambda m: m != ONE)
    if any(m.omega or m.p for m in modes):
        return None
    if len(modes) == 1:
        return [0.0] if modes[0].k and low < 0.0 < high else []
    if len(modes) != 2 or modes[0] != ONE or modes[1].k or modes[1].beta:
        return None
    ratio = -f[ONE].real / f[modes[1]].real
    if ratio <= 0:
        return []
    root = math.log(ratio) / modes[1].alpha
    return [root] if low < root < high else []
