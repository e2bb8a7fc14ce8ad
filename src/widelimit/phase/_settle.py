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
TINY, HUGE = 1e-24, 1e10
_TOLERANCE = 1e-11
# Changes that may be rounding.
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
        # A change so small, and whose own change is rounding, says no more.
        still = (change <= _TOLERANCE * size) & (
            change * np.abs(1 - rate) <= _ROUNDING * size
        )
        done[active] = (left <= _TOLERANCE * size) | still
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
    # A rate of 1 or more is left alone unless it is the creep of a power of the depth.
    slow = np.minimum(rate, 1 - 1e-6)
    factor = np.where(rate < 1 + 1e-6, slow / (1 - slow), 0.0)
    forward = np.einsum("bij,bij->b", change, twice) > 0
    most = np.where(forward, _LEAP - 1, 1 - 1 / _LEAP)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.minimum(factor, np.where(step > 0, most * size / step, 0.0))
    return twice + factor[:, None, None] * change


def is_covariance(matrices: np.ndarray) -> np.ndarray:
    """Whether symmetric matrices (B, M, M) are positive semidefinite, to rounding."""
    finite = np.isfinite(matrices).all((1, 2))
    least = np.linalg.eigvalsh(np.where(finite[:, None, None], matrices, 0.0))
    return finite & (least[:, 0] >= -1e-13 * np.abs(least).max(1))


def spectral_radius(jacobian: np.ndarray) -> np.ndarray:
    """The largest modulus of an eigenvalue, for matrices (B, M, M)."""
    finite = np.isfinite(jacobian).all((1, 2))
    values = np.linalg.eigvals(np.where(finite[:, None, None], jacobian, 0.0))
    return np.where(finite, np.abs(values).max(1), np.nan)


def end_of(sequence: np.ndarray) -> np.ndarray:
    """Aitken's limit of the last three of (K, B) values."""
    a, b, c = sequence[-3:]
    first, second = b - a, c - b
    rate = np.divide(second, first, out=np.zeros_like(first), where=first != 0)
    usable = (np.abs(rate) < 0.95) & (np.abs(second) > 1e-12 * np.abs(c))
    return np.where(usable, c + second * rate / np.where(usable, 1 - rate, 1), c)
