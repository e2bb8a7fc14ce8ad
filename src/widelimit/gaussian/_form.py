"""A piecewise function as a sum of gated atoms, and its derivatives.

An atom is P(y) exp(alpha y + beta y^2) Re[e^{i omega y}] times a gate, in the local
coordinate y = w (x - t), w = +-1. Gates: none, the step H(y), the sign S(y), erf(p y +
q); and, for derivatives, the point masses delta(y) and delta'(y). A break at t between
pieces becomes one step per exponential mode, pointing to where that mode is smaller, so
that no large parts cancel.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .._errors import UnsupportedError
from ._identify import Pieces
from ._terms import Mode

Gate = Literal["none", "step", "sign", "erf", "delta", "slope"]


@dataclasses.dataclass(frozen=True, slots=True)
class Atom:
    """Re[P(y) exp((alpha + i omega) y + beta y^2)] gate(y), y = w (x - t)."""

    poly: tuple[complex, ...]
    alpha: float = 0.0
    beta: float = 0.0
    omega: float = 0.0
    gate: Gate = "none"
    p: float = 0.0
    q: float = 0.0
    t: float = 0.0
    w: float = 1.0


Form = tuple[Atom, ...]


def form_of(f: Pieces) -> Form | None:
    """The atoms of a piecewise function; None where a kinked piece oscillates."""
    modes: dict[Mode, dict[int, np.ndarray]] = {}
    for i, piece in enumerate(f.pieces):
        for mode, value in (piece or {}).items():
            key = dataclasses.replace(mode, k=0)
            old = modes.setdefault(key, {}).get(i, np.zeros(0))
            modes[key][i] = _add(old, np.array([0.0] * mode.k + [value]))
    atoms: list[Atom] = []
    for key, parts in modes.items():
        column = [parts.get(i, np.zeros(0)) for i in range(len(f.pieces))]
        steps = any(_nonzero(_add(a, -b)) for a, b in itertools.pairwise(column))
        if (steps and (key.omega or key.p)) or (key.omega and key.p):
            return None
        atoms += _mode_atoms(key, column, f.breaks)
    return tuple(a for a in atoms if any(a.poly))


def _mode_atoms(
    mode: Mode, column: list[np.ndarray], breaks: tuple[float, ...]
) -> list[Atom]:
    """One polynomial per piece, times one exponential: a base piece and steps."""
    base = sum(b < 0 for b in breaks)
    if mode.alpha:
        base = len(breaks) if mode.alpha > 0 else 0
    gate: Gate = "erf" if mode.p else "none"
    shape = (mode.alpha, mode.beta, mode.omega)
    atoms = [Atom(_tuple(column[base]), *shape, gate, mode.p, mode.q)]
    for i, t in enumerate(breaks):
        right = i >= base
        jump = (
            _add(column[i + 1], -column[i])
            if right
            else _add(column[i], -column[i + 1])
        )
        if _nonzero(jump):
            atoms.append(_step(jump, mode, t, 1.0 if right else -1.0))
    return atoms


def _step(jump: np.ndarray, mode: Mode, t: float, w: float) -> Atom:
    """jump(x) exp(alpha x + beta x^2) H(w (x - t)) in the coordinate of the break."""
    factor = math.exp(mode.alpha * t + mode.beta * t * t)
    size = float(np.sum(np.abs(jump) * np.abs(t) ** np.arange(len(jump))))
    local = np.zeros(len(jump))
    for k in range(len(jump)):
        for j in range(k + 1):
            local[j] += jump[k].real * math.comb(k, j) * t ** (k - j) * w**j
    # A continuous function has no jump; rounding must not give it one.
    local[np.abs(local) <= 1e-14 * size] = 0.0
    if not t:
        local = np.real(jump) * w ** np.arange(len(jump))
    alpha = (mode.alpha + 2 * mode.beta * t) * w
    return Atom(_tuple(factor * local), alpha, mode.beta, gate="step", t=t, w=w)


@functools.lru_cache(maxsize=4096)
def centred(form: Form) -> Form:
    """For zero means: steps at 0 written as (1 + sign) / 2, which parity simplifies."""
    out: list[Atom] = []
    for a in form:
        if a.gate == "step" and a.t == 0 and a.alpha == 0:
            half = tuple(c / 2 for c in a.poly)
            flipped = tuple(c * a.w**k for k, c in enumerate(half))
            out.append(dataclasses.replace(a, poly=flipped, gate="none", w=1.0))
            signed = tuple(c * a.w for c in flipped)
            out.append(dataclasses.replace(a, poly=signed, gate="sign", w=1.0))
        else:
            out.append(a)
    return _collected(out)


@functools.lru_cache(maxsize=4096)
def derivative(form: Form) -> Form:
    """The derivative as a distribution: steps give point masses."""
    return _collected([b for a in form for b in _slope(a)])


def _slope(a: Atom) -> list[Atom]:
    if a.gate == "delta":
        return [dataclasses.replace(a, gate="slope", poly=(a.poly[0] * a.w,))]
    if a.gate == "slope":
        raise UnsupportedError("Second derivatives of a point mass are not covered.")
    c = np.array(a.poly)
    smooth = np.arange(1, len(c)) * c[1:]
    smooth = _add(smooth, (a.alpha + 1j * a.omega) * c)
    smooth = _add(smooth, 2 * a.beta * np.concatenate([[0.0], c]))
    out = [dataclasses.replace(a, poly=_tuple(a.w * smooth))]
    if a.gate in ("step", "sign") and c[0]:
        jump = (2.0 if a.gate == "sign" else 1.0) * a.w * c[0].real
        out.append(Atom((jump,), gate="delta", t=a.t, w=1.0))
    if a.gate == "erf":
        bell = a.w * 2 * a.p / math.sqrt(math.pi) * math.exp(-a.q * a.q) * c
        alpha, beta = a.alpha - 2 * a.p * a.q, a.beta - a.p * a.p
        out.append(Atom(_tuple(bell), alpha, beta, a.omega, t=a.t, w=a.w))
    return out


def masses(form: Form) -> tuple[Form, Form]:
    """The atoms that are functions, and those that are point masses."""
    points = tuple(a for a in form if a.gate in ("delta", "slope"))
    return tuple(a for a in form if a not in points), points


def kinked(form: Form) -> bool:
    """Whether the form has gates that jump."""
    return any(a.gate in ("step", "sign") for a in form)


def _collected(atoms: Sequence[Atom]) -> Form:
    """Atoms that differ only in their polynomial, added."""
    sums: dict[Atom, np.ndarray] = {}
    for a in atoms:
        key = dataclasses.replace(a, poly=())
        sums[key] = _add(sums.get(key, np.zeros(0)), np.array(a.poly))
    return tuple(
        dataclasses.replace(key, poly=_tuple(c))
        for key, c in sums.items()
        if _nonzero(c)
    )


def _add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    n = max(len(x), len(y))
    return np.pad(x, (0, n - len(x))) + np.pad(y, (0, n - len(y)))


def _nonzero(c: np.ndarray) -> bool:
    return bool(np.any(c))


def _tuple(c: np.ndarray) -> tuple[complex, ...]:
    """Real coefficients as floats, without trailing zeros."""
    n = int(np.max(np.nonzero(c)[0], initial=-1)) + 1
    return tuple(
        float(v.real) if not np.imag(v) else complex(v) for v in np.asarray(c)[:n]
    )
