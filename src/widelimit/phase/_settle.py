"""Fixed points of maps of covariances, found for many points of a grid at once.

The map is followed from its start, as layers follow each other, so that of several
fixed points the one that deep networks reach is found; Aitken's extrapolation shortens
the way where it is slow (close to the edge of chaos), and where it would never end.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# An extrapolation changes the scale by at most this factor.
_LEAP = 16.0
# Scales, over that at the start, beyond which a map is followed no further.
TINY, HUGE = 1e-24, 1e6
_TOLERANCE = 1e-10
_EPS = 4e-16
# Changes that are not followed if they change no more, and what may be rounding.
_STILL, _NEAR = 1e-8, 1e-4
_ROUNDING = 2e-15
_ROUNDS = 300


class Batched:
    """A function of one grid point, jitted for a chunk of them.

    Args:
        f: takes arrays of one point.
        chunk: how many points are computed together.
    """

    def __init__(self, f: Callable[..., Any], chunk: int) -> None:
        self._f, self._chunk = jax.jit(jax.vmap(f)), chunk

    def __call__(self, *args: np.ndarray) -> Any:
        """The results at all points: NumPy arrays with a leading axis."""
        count, parts = len(args[0]), []
        for start in range(0, count, self._chunk):
            rows = np.minimum(np.arange(start, start + self._chunk), count - 1)
            parts.append(jax.tree.map(np.asarray, self._f(*(a[rows] for a in args))))
        return jax.tree.map(lambda *p: np.concatenate(p)[:count], *parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """Where the points of a grid have come to.

    Attributes:
        state: (B, P, P).
        done: which have come to rest.
        tiny: which have fallen below, or are falling towards, zero.
        huge: which have grown beyond all bounds.
    """

    state: np.ndarray
    done: np.ndarray
    tiny: np.ndarray
    huge: np.ndarray


def settle(
    step: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    possible: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Settled:
    """Follow a map until it rests.

    Args:
        step: (numbers of points, their states) -> their next states.
        start: the states at the start, (B, P, P).
        possible: (numbers of points, states) -> whether they are covariances.
    """
    state, count = np.array(start), len(start)
    done, tiny, huge = (np.zeros(count, bool) for _ in range(3))
    first, active = _size(start), np.arange(count)
    for _ in range(_ROUNDS):
        before = state[active]
        once = step(active, before)
        twice = step(active, once)
        state[active] = twice
        change, size = _size(twice - once), _size(twice)
        rate = _rate(once - before, twice - once)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(rate < 1, change * np.maximum(1, 1 / (1 - rate)), np.inf)
        slope = np.abs(1 - rate)
        # So small a change, that changes by rounding only, and has not far to go.
        still = (change <= _STILL * size) & (change <= _NEAR * slope * first[active])
        still &= change * slope <= _ROUNDING * size
        done[active] = (left <= _TOLERANCE * size) | still | (change <= _EPS * size)
        tiny[active] = size < TINY * first[active]
        huge[active] = size > HUGE * first[active]
        lost = ~np.isfinite(twice).all((1, 2))
        going = ~(done | tiny | huge)[active] & ~lost
        active, rate = active[going], rate[going]
        if not len(active):
            break
        leap = _leap(once[going], twice[going], rate)
        state[active] = np.where(
            possible(active, leap)[:, None, None], leap, twice[going]
        )
    return Settled(state, done & ~tiny & ~huge, tiny, huge)


def _size(state: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(state**2, axis=(1, 2)))


def _rate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The factor between two successive changes."""
    norm = np.sum(first**2, axis=(1, 2))
    inner = np.sum(first * second, axis=(1, 2))
    return np.divide(inner, norm, out=np.zeros_like(norm), where=norm > 0)


def _leap(once: np.ndarray, twice: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Where a geometric sequence of this rate ends, or a good part of the way."""
    change = twice - once
    size, step = _size(twice), _size(change)
    forward = np.einsum("bij,bij->b", change, twice) > 0
    most = np.where(forward, _LEAP - 1, 1 - 1 / _LEAP)
    # Above 1 the state leaves an unstable fixed point: twice as far from it. Below -1
    # it swings around one, which is not where it ends. Where changes are little more
    # than rounding, their ratio says little.
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.where(step > 0, _EPS * size / step, 1.0)
        factor = np.minimum(rate, 1.0) / np.maximum(np.abs(1 - rate), noise)
        factor = np.where(rate > -1, factor, 0.0)
        factor = np.minimum(factor, np.where(step > 0, most * size / step, 0.0))
    return twice + factor[:, None, None] * change


def is_covariance(matrices: np.ndarray) -> np.ndarray:
    """Whether symmetric matrices (B, M, M) are positive semidefinite, to rounding."""
    finite = np.asarray(np.isfinite(matrices).all((1, 2)))
    least = np.linalg.eigvalsh(np.where(finite[:, None, None], matrices, 0.0))
    return finite & (least[:, 0] >= -1e-13 * np.abs(least).max(1))


def spectral_radius(jacobian: np.ndarray) -> np.ndarray:
    """The largest modulus of an eigenvalue, for matrices (B, M, M)."""
    finite = np.asarray(np.isfinite(jacobian).all((1, 2)))
    values = np.linalg.eigvals(np.where(finite[:, None, None], jacobian, 0.0))
    return np.where(finite, np.abs(values).max(1), np.nan)


def at_infinity(values: np.ndarray) -> np.ndarray:
    """The limit of values (K, B) at scales s, 4 s, 16 s, .. as the scale grows.

    Richardson's extrapolation in powers of s**-1/2: the means of functions that are
    homogeneous but for a bounded window around 0 have such an expansion.
    """
    power = 2.0
    while len(values) > 1:
        values = (power * values[1:] - values[:-1]) / (power - 1)
        power *= 2
    return values[0]
