"""Where every point of a grid ends up, and what near it grows and what decays."""

import dataclasses

import jax
import numpy as np

from ._layer import LayerMap
from ._settle import (
    Batched,
    Settled,
    at_infinity,
    is_covariance,
    settle,
    spectral_radius,
)

# Scales, over that at the start, at which growth without end is looked at.
_SCALES = (4.0, 16.0, 64.0, 256.0)
# And where functions that are homogeneous show their exact rates.
_FAR = 1e16
# Rates so close to 1 are 1.
_CRITICAL = 1e-8
# Agreement of rates where something is said to be so.
_SAME = 1e-6
# Agreement of the gradients of a coarse rule with those of the rule that is used, whose
# error is about the square of it.
_ACCURACY = 1e-2
# Agreement of extrapolated rates.
_CLOSE = 5e-3


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Factors per layer at a state, (B,) each.

    Attributes:
        growth: of the variance.
        own: of a small change of the covariance of an input with itself.
        cross: of a small change of that of two inputs, at their correlation.
        chi: the same where the two inputs are one.
        gradient: of squared gradients, by backprop.
        twins: whether equal inputs stay equal.
    """

    growth: np.ndarray
    own: np.ndarray
    cross: np.ndarray
    chi: np.ndarray
    gradient: np.ndarray
    twins: np.ndarray


class Maps:
    """The maps of a layer and their derivatives, each compiled when first used."""

    def __init__(self, layer: LayerMap) -> None:
        # Jacobians have P^4 entries, each of which passes through P^2 covariances.
        chunk, small = (max(1, 128 // layer.positions**k) for k in (2, 4))
        self.positions = layer.positions
        self.own = Batched(layer.own, chunk)
        self.cross = Batched(layer.cross, chunk)
        self.gradient = Batched(layer.gradient, small)
        self.own_jacobian = Batched(jax.jacfwd(layer.own, 1), small)
        self.cross_jacobian = Batched(jax.jacfwd(layer.cross, 2), small)
        self._layer = layer
        self._coarse = Batched(lambda *at: layer.gradient(*at, level=0), small)

    def is_accurate(self, stds: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Whether numerical expectations hold at states; those of other points too.

        Call it after `gradient`, which tells whether there are any.
        """
        if self._layer.is_exact:
            return np.ones(len(stds), bool)
        fine, coarse = self.gradient(stds, state), self._coarse(stds, state)
        return _apart(fine, coarse) < _ACCURACY


class Points:
    """A layer at many pairs of standard deviations.

    Args:
        maps: the layer.
        stds: (B, 2).
        variance: of the inputs, where the layers start.
        correlation: between two inputs, and between positions, at the start.
    """

    def __init__(
        self, maps: Maps, stds: np.ndarray, variance: float, correlation: float
    ) -> None:
        self.maps, self.stds, self.correlation = maps, stds, correlation
        mixed = np.full((maps.positions, maps.positions), correlation)
        np.fill_diagonal(mixed, 1.0)
        self.start = np.tile(variance * mixed, (len(stds), 1, 1))

    def settle_own(self) -> Settled:
        """The covariance of one input with itself, from the start on."""
        found = settle(
            lambda at, k: self.maps.own(self.stds[at], k),
            self.start,
            lambda _, k: is_covariance(k),
        )
        # What is left of a decay without end is no small fixed point.
        small = found.done & (_scale(found.state) < 1e-6 * _scale(self.start))
        below = found.state / 16
        falls = _scale(self.maps.own(self.stds, below)) <= _scale(below) * (1 + 1e-9)
        tiny = found.tiny | (small & falls)
        return dataclasses.replace(found, tiny=tiny, done=found.done & ~tiny)

    def settle_cross(self, own: np.ndarray) -> Settled:
        """The covariance of two inputs whose own covariances are at rest.

        Where these grow or decay, it is their ratio that is followed.
        """
        growth = _scale(self.maps.own(self.stds, own)) / _scale(own)
        start = _scale(own)[:, None, None] * self.correlation

        def step(at: np.ndarray, across: np.ndarray) -> np.ndarray:
            found = self.maps.cross(self.stds[at], own[at], across)
            return found / growth[at, None, None]

        def possible(at: np.ndarray, across: np.ndarray) -> np.ndarray:
            turned = across.transpose(0, 2, 1)
            return is_covariance(np.block([[own[at], across], [turned, own[at]]]))

        found = settle(step, np.broadcast_to(start, own.shape), possible)
        return dataclasses.replace(found, done=found.done | found.tiny)

    def rates(self, own: np.ndarray, across: np.ndarray) -> Rates:
        """The factors at a state."""
        stds, following = self.stds, self.maps.own(self.stds, own)
        twins = self.maps.cross(stds, own, own)
        apart = np.abs(twins - following).max((1, 2))
        return Rates(
            growth=_scale(following) / _scale(own),
            own=_radius(self.maps.own_jacobian(stds, own)),
            cross=_radius(self.maps.cross_jacobian(stds, own, across)),
            chi=_radius(self.maps.cross_jacobian(stds, own, own)),
            gradient=_radius(self.maps.gradient(stds, own)),
            twins=apart <= 1e-9 * _scale(following),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Ends:
    """What a phase diagram says of every point, (B,) each; see `PhaseDiagram`."""

    variance: np.ndarray
    correlation: np.ndarray
    chi: np.ndarray
    gradient: np.ndarray
    own: np.ndarray
    cross: np.ndarray


def ends(points: Points) -> Ends:
    """Where the points end up.

    Rates are NaN where a point does not come to rest.
    """
    found = points.settle_own()
    own = np.where(
        found.huge[:, None, None], _FAR * points.start, found.state
    )  # growing for ever, at one and the same scale
    across = points.settle_cross(own)
    rates = points.rates(own, across.state)
    variance = np.where(found.done, _scale(own), np.nan)
    variance[found.tiny], variance[found.huge] = 0.0, np.inf
    correlation = np.mean(
        np.diagonal(across.state, 0, 1, 2) / np.diagonal(own, 0, 1, 2), axis=1
    )
    relative = rates.cross / rates.growth
    # Equal inputs are where unequal ones end up, unless they drift apart again.
    meet = rates.twins & (correlation > 0.99) & (rates.chi / rates.growth < 1 + _SAME)
    correlation = np.where(meet, 1.0, np.where(across.tiny, 0.0, correlation))
    relative = np.where(meet, rates.chi / rates.growth, relative)
    result = Ends(variance, correlation, rates.chi, rates.gradient, rates.own, relative)
    _forget_what_is_kept(result)
    accurate = points.maps.is_accurate(points.stds, own)
    _forget_what_is_unknown(result, accurate, found, across)
    _look_at_growth(result, points, found, rates)
    for rate in (result.chi, result.gradient):
        rate[np.abs(rate - 1) < _CRITICAL] = 1.0
    return result


def _forget_what_is_kept(ends: Ends) -> None:
    """What neither grows nor decays is that of the inputs, not of the layer."""
    at_rest = np.isfinite(ends.variance) & (ends.variance > 0)
    ends.variance[at_rest & (np.abs(ends.own - 1) < _SAME)] = np.nan
    kept = (np.abs(ends.cross - 1) < _SAME) & (ends.correlation != 1)
    ends.correlation[kept] = np.nan


def _forget_what_is_unknown(
    ends: Ends, accurate: np.ndarray, found: Settled, across: Settled
) -> None:
    """Unstable fixed points, points on their way, those beyond numerical rules."""
    lost = ~(found.done | found.tiny | found.huge)
    lost |= found.done & ~((ends.own < 1 + _SAME) & accurate)
    for field in dataclasses.fields(ends):
        getattr(ends, field.name)[lost] = np.nan
    lost = ~across.done | ~(ends.cross < 1 + _SAME)
    ends.correlation[lost] = ends.cross[lost] = np.nan


def _look_at_growth(ends: Ends, points: Points, found: Settled, rates: Rates) -> None:
    """Variances without bound: by a factor a layer, or by a power of the depth.

    The rates at finite scales are extrapolated, since numerical expectations are not
    for any scale: where they agree with those at a very large one, these are exact.
    """
    if not found.huge.any():
        return
    scans = [points.rates(s * points.start, s * points.start) for s in _SCALES]
    same = close = unity = np.ones(len(points.stds), bool)
    limits = {}
    for name in ("growth", "chi", "gradient"):
        values = np.stack([getattr(r, name) for r in scans])
        last, before = at_infinity(values), at_infinity(values[1:])
        limits[name] = last
        same = same & (np.abs(last - getattr(rates, name)) < _SAME)
        close = close & (np.abs(last - before) < _CLOSE)
        unity = unity & (np.abs(last - 1) < _CLOSE)
    flat = np.max([np.abs(v - 1) for v in limits.values()], axis=0) < _SAME
    slow = found.huge & unity & (flat | ~same)
    fast = found.huge & ~same & ~slow
    for a in (ends.correlation, ends.cross):
        a[slow | fast] = np.nan
    ends.cross[slow] = 1.0
    for name in ("chi", "gradient"):
        values = getattr(ends, name)
        values[slow] = 1.0
        values[fast] = np.where(close, limits[name], np.nan)[fast]


def closes(two: Maps, points: Points) -> float:
    """How far two layers are from one applied twice, relative; 0 to rounding.

    The covariances of a layer's output say all about it only if it is Gaussian of
    mean zero, or if the next layer reads nothing else. Likewise its gradients.
    """
    one, stds = points.maps, points.stds
    state, across = points.start, points.start * points.correlation
    own, cross = one.own(stds, state), one.cross(stds, state, across)
    first, second = (one.gradient(stds, k) for k in (state, own))
    chained = np.einsum("bijkl,bklmn->bijmn", second, first)
    pairs = (
        (one.own(stds, own), two.own(stds, state)),
        (one.cross(stds, own, cross), two.cross(stds, state, across)),
        (chained, two.gradient(stds, state)),
    )
    return max(float(_apart(a, b).max()) for a, b in pairs)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance of two arrays over their size, for every point."""
    axes = tuple(range(1, a.ndim))
    size = np.abs(a).max(axes) + np.abs(b).max(axes)
    apart = np.abs(a - b).max(axes)
    return np.divide(apart, size, out=np.zeros_like(apart), where=size > 0)


def _scale(state: np.ndarray) -> np.ndarray:
    """The mean variance over positions."""
    return np.trace(state, axis1=1, axis2=2) / state.shape[1]


def _radius(jacobian: np.ndarray) -> np.ndarray:
    """The spectral radius of a map of symmetric matrices, as an array (B, P, P, P, P).

    Of the covariance between inputs all matrices are taken: its map is a positive one,
    and the largest eigenvalue of it is at a symmetric matrix.
    """
    count, p = len(jacobian), jacobian.shape[1]
    symmetric = 0.5 * (jacobian + jacobian.swapaxes(3, 4))
    return spectral_radius(symmetric.reshape(count, p * p, p * p))
