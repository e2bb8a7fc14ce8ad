"""Two-dimensional Gauss-Legendre quadrature, split at kinks: an independent witness."""

from collections.abc import Callable, Sequence

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

_X, _W = np.polynomial.legendre.leggauss(32)


def gaussian_rule(cuts: Sequence[float], reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the standard Gaussian, with panel edges at `cuts`."""
    inner = sorted({c for c in cuts if -reach < c < reach})
    edges: list[float] = [-reach]
    for end in [*inner, reach]:
        panels = max(1, int(np.ceil((end - edges[-1]) / 2.0)))
        edges += list(np.linspace(edges[-1], end, panels + 1)[1:])
    low, high = np.array(edges[:-1]), np.array(edges[1:])
    half = 0.5 * (high - low)
    x = (low + half)[:, None] + half[:, None] * _X
    w = half[:, None] * _W * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    return x.ravel(), w.ravel()


def mean(f: Function, kinks: Sequence[float], m: float, a: float) -> float:
    """E f(z), z ~ N(m, a)."""
    s = np.sqrt(a)
    x, w = gaussian_rule([(t - m) / s for t in kinks], 12.0)
    return float(np.sum(w * f(m + s * x)))


def dual(
    f: Function,
    f_kinks: Sequence[float],
    g: Function,
    g_kinks: Sequence[float],
    leaves: Sequence[float],
) -> float:
    """E f(u) g(v) for the means, variances and covariance (m1, a, m2, b, c)."""
    m1, a, m2, b, c = (float(x) for x in leaves)
    s1, s2 = np.sqrt(a), np.sqrt(max(b - c * c / a, 0.0))
    slope = c / s1
    cuts = [(t - m1) / s1 for t in f_kinks]
    for t in g_kinks if slope else ():
        # Near |rho| = 1 the inner integral has boundary layers at the kinks of g.
        width = s2 / abs(slope) if s2 < 0.3 * abs(slope) else 0.0
        cuts += [(t - m2) / slope + k * width for k in (-8, -3, 0, 3, 8)]
    x, w = gaussian_rule(cuts, 12.0)
    if s2 == 0:
        return float(np.sum(w * f(m1 + s1 * x) * g(m2 + slope * x)))
    rules = [
        gaussian_rule([(t - m) / s2 for t in g_kinks], 9.0) for m in m2 + slope * x
    ]
    points = [m + s2 * y for m, (y, _) in zip(m2 + slope * x, rules, strict=True)]
    values = g(np.concatenate(points)) * np.concatenate([v for _, v in rules])
    ends = np.cumsum([len(y) for y in points])[:-1]
    inner = np.array([part.sum() for part in np.split(values, ends)])
    return float(np.sum(w * f(m1 + s1 * x) * inner))
