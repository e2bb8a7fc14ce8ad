"""Statistics across seeds, one number per distinct entry."""

from typing import Any

import numpy as np
from scipy import special

LEVEL = 0.01


class Running:
    """Mean, variance and deviation from a goal, over seeds (Welford's update).

    Args:
        goal: the predicted entries.
        scale: their natural size, which rounding errors are relative to.
        epsilon: the rounding error of one operation.
    """

    def __init__(self, goal: np.ndarray, scale: np.ndarray, epsilon: float) -> None:
        self.goal = goal
        # Entries without any randomness have to agree up to rounding only.
        self.floor = 10 * epsilon * scale
        self.count = 0
        self.mean = np.zeros_like(goal)
        self._spread = np.zeros_like(goal)
        self._deviation = 0.0

    def add(self, value: Any) -> None:
        """Take the entries of one more network into account."""
        self.count += 1
        # A network that overflows makes infinities, and `largest_t` reports them.
        with np.errstate(over="ignore", invalid="ignore"):
            step = value - self.mean
            self.mean = self.mean + step / self.count
            self._spread = self._spread + step * (value - self.mean)
            self._deviation += float(np.mean((value - self.goal) ** 2))

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of the mean over seeds."""
        return np.sqrt(self._spread / (self.count - 1) / self.count)

    @property
    def deviation(self) -> float:
        """RMS deviation of single networks, over the RMS of the goal."""
        if not np.isfinite(self._deviation):
            return np.inf
        size = float(np.mean(self.goal**2))
        return float(np.sqrt(self._deviation / self.count / (size or 1.0)))

    @property
    def largest_t(self) -> float:
        """The largest |t| of all entries; infinite where a network is not finite."""
        error = np.hypot(self.stderr, self.floor)
        gap = np.abs(self.mean - self.goal)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.divide(gap, error, out=np.zeros_like(gap), where=gap != 0)
        return float(np.max(np.where(np.isfinite(t), t, np.inf)))


def critical_t(seeds: int, entries: int) -> float:
    """Two-sided bound on |t| at level 1 % for all entries together (Bonferroni)."""
    return float(-special.stdtrit(seeds - 1, LEVEL / 2 / entries))


def slope(widths: Any, deviations: Any) -> float | None:
    """Fitted power of the width in the RMS deviation; None if it cannot be fitted."""
    w, d = np.asarray(widths, float), np.asarray(deviations, float)
    if len(set(w)) < 2 or not (np.all(np.isfinite(d)) and np.all(d > 0)):
        return None
    return float(np.polyfit(np.log(w), np.log(d), 1)[0])
