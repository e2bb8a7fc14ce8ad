"""Moments of a few Gaussians restricted by gates, by Stein's lemma.

E[x_i F] = m_i E[F] + sum_j C_ij E[dF/dx_j] lowers a power; where it meets a gate it
leaves a point mass, which conditions the other variables. What remains are orthant
probabilities of one or two Gaussians. A Python 0.0 is a structural zero and drops out,
so that the classical formulas for zero means (asin, arc-cosine) appear by themselves.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr

from .._errors import UnsupportedError
from ._bivariate import log_ndtr, orthant
from ._inverse_sine import asin

Value = Any
"""An array, or the Python float 0.0 for a structural zero."""

Gates = tuple[tuple[int, str], ...]


def is_zero(x: Value) -> bool:
    """Whether `x` is a structural zero."""
    return isinstance(x, int | float | complex) and x == 0


def add(x: Value, y: Value) -> Value:
    """The sum, where structural zeros vanish."""
    return y if is_zero(x) else x if is_zero(y) else x + y


def mul(*factors: Value) -> Value:
    """The product, where structural zeros stay zero."""
    out: Value = 1.0
    for x in factors:
        if is_zero(x):
            return 0.0
        out = x if isinstance(out, float) and out == 1 else out * x
    return out


def determinant(a: Value, b: Value, c: Value) -> Value:
    """A b - c^2 >= 0, exactly 0 for a = b = c and for equal inputs.

    The difference of squares keeps the digits that a b - c c loses near |rho| = 1.
    """
    if is_zero(a) or is_zero(b):
        return 0.0
    if is_zero(c):
        return a * b
    mean = geometric(a, b)
    return distance(mean, c) * (mean + jnp.abs(c))


def distance(mean: Value, c: Value) -> Value:
    """Mean - |c|, and 0 where only rounding separates them.

    Formulas near |rho| = 1 are differences of parts of the size of its square root.
    """
    gap = mean - jnp.abs(c)
    return jnp.where(gap > 8 * jnp.finfo(gap.dtype).eps * mean, gap, 0)


def geometric(a: Value, b: Value) -> Value:
    """sqrt(a b), exactly a where a = b."""
    return jnp.where(a == b, a, safe_sqrt(a) * safe_sqrt(b))


def safe_sqrt(x: Value) -> Value:
    """The square root, with derivative 0 at 0."""
    if is_zero(x):
        return 0.0
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def ratio(x: Value, y: Value) -> Value:
    """X / y, and 0 where y is 0."""
    if is_zero(x):
        return 0.0
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def standard(mean: Value, var: Value, big: float = 1e4) -> Value:
    """The ratio mean / sqrt(var), between -big and big."""
    if is_zero(mean):
        return 0.0
    if is_zero(var):
        return big * jnp.sign(mean)
    positive = var > 0
    out = mean / jnp.sqrt(jnp.where(positive, var, 1))
    return jnp.clip(jnp.where(positive, out, big * jnp.sign(mean)), -big, big)


@dataclasses.dataclass(eq=False)
class Joint:
    """A Gaussian vector of at most four variables, with a weight exp(logz).

    Attributes:
        mean: the means.
        cov: the covariances, symmetric; variables may coincide.
        logz: logarithm of a factor of every moment.
    """

    mean: list[Value]
    cov: list[list[Value]]
    logz: Value = 0.0

    def __post_init__(self) -> None:
        """Remember what was computed: recursions meet the same moments often."""
        self._moments: dict[tuple[tuple[int, ...], Gates], Value] = {}
        self._given: dict[int, tuple[Value, Joint]] = {}

    def moment(self, powers: tuple[int, ...], gates: Gates) -> Value:
        """E[prod x_i^powers_i prod gates], one gate for each variable at most."""
        key = (powers, gates)
        if key not in self._moments:
            self._moments[key] = self._stein(powers, gates)
        return self._moments[key]

    def _stein(self, powers: tuple[int, ...], gates: Gates) -> Value:
        i = next((i for i, k in enumerate(powers) if k), None)
        if i is None:
            return self._orthant(gates)
        rest = _lower(powers, i)
        total: Value = 0.0
        if not is_zero(self.mean[i]):
            total = mul(self.mean[i], self.moment(rest, gates))
        for j, k in enumerate(rest):
            if k and not is_zero(self.cov[i][j]):
                inner = self.moment(_lower(rest, j), gates)
                total = add(total, mul(self.cov[i][j], inner) * float(k))
        for gate in gates:
            j, kind = gate
            # A power of the gated variable vanishes where the gate jumps.
            if is_zero(self.cov[i][j]) or rest[j]:
                continue
            density, given = self.given(j)
            others = tuple(g for g in gates if g != gate)
            inner = mul(self.cov[i][j], density, given.moment(rest, others))
            total = add(total, inner * 2.0 if kind == "sign" else inner)
        return total

    def given(self, i: int) -> tuple[Value, "Joint"]:
        """The density of x_i at 0 without the exponential, and the rest given it."""
        if i not in self._given:
            self._given[i] = self._condition(i)
        return self._given[i]

    def _condition(self, i: int) -> tuple[Value, "Joint"]:
        n, var = len(self.mean), self.cov[i][i]
        slope = [ratio(self.cov[j][i], var) for j in range(n)]
        mean = [0.0 if j == i else self._mean_given(i, j) for j in range(n)]
        cov: list[list[Value]] = [[0.0] * n for _ in range(n)]
        for j in range(n):
            for k in range(j + 1):
                if i not in (j, k):
                    cov[j][k] = cov[k][j] = self._residual(i, j, k, slope)
        h = self._standard(i)
        logz = add(self.logz, mul(-0.5, h, h))
        density = jnp.where(var > 0, 1 / jnp.sqrt(jnp.where(var > 0, var, 1)), 0)
        return density * (1 / math.sqrt(2 * math.pi)), Joint(mean, cov, logz)

    def _mean_given(self, i: int, j: int) -> Value:
        """m_j - (C_ij / C_ii) m_i, in the very numbers that `_both` uses.

        Near |rho| = 1 the difference is far below the means. Only if every part of a
        moment sees the same rounding of it do the errors of the parts cancel.
        """
        if is_zero(self.cov[i][j]) or is_zero(self.mean[i]):
            return self.mean[j]
        a, b = self.cov[i][i], self.cov[j][j]
        rho, gap = correlation(a, b, self.cov[i][j])
        h, k = self._standard(i), self._standard(j)
        sign = jnp.where(rho >= 0, 1.0, -1.0)
        return safe_sqrt(b) * ((k - sign * h) + sign * gap / (1 + jnp.abs(rho)) * h)

    def _residual(self, i: int, j: int, k: int, slope: list[Value]) -> Value:
        if j == k:
            var = self.cov[i][i]
            return ratio(determinant(var, self.cov[j][j], self.cov[i][j]), var)
        return add(self.cov[j][k], mul(-1.0, slope[j], self.cov[i][k]))

    def _orthant(self, gates: Gates) -> Value:
        if not gates:
            return 1.0 if is_zero(self.logz) else jnp.exp(self.logz)
        if len(gates) == 1:
            return self._half(*gates[0])
        (i, one), (j, two) = gates
        a, b, c = self.cov[i][i], self.cov[j][j], self.cov[i][j]
        if is_zero(a) or is_zero(b):
            raise UnsupportedError(
                "Two jumps, one of them in a variable without variance, are not "
                "covered."
            )
        kinds = {one, two}
        if is_zero(self.mean[i]) and is_zero(self.mean[j]):
            signs = self._weighted(mul(2 / math.pi, angle(a, b, c)))
            if kinds == {"sign"}:
                return signs
            half = mul(0.5, signs)
            return (
                half if "sign" in kinds else add(mul(0.5, half), self._weighted(0.25))
            )
        both = self._both(i, j)
        if kinds == {"step"}:
            return both
        first, second = self._half(i, "step"), self._half(j, "step")
        if kinds == {"sign"}:
            return 4.0 * both - 2.0 * (first + second) + self._weighted(1.0)
        return 2.0 * both - (first if one == "step" else second)

    def _both(self, i: int, j: int) -> Array:
        a, b, c = self.cov[i][i], self.cov[j][j], self.cov[i][j]
        h, k = self._standard(i), self._standard(j)
        if is_zero(c):
            log = add(add(log_ndtr(h), log_ndtr(k)), self.logz)
            return jnp.exp(log)
        rho, gap = correlation(a, b, c)
        h, k, rho, gap = jnp.broadcast_arrays(h, k, rho, gap)
        return orthant(h, k, rho, gap, self.logz)

    def _standard(self, i: int) -> Value:
        # A tilted Gaussian lies far out without being negligible.
        big = 1e4 if is_zero(self.logz) else 1e9
        return standard(self.mean[i], self.cov[i][i], big)

    def _half(self, i: int, kind: str) -> Value:
        h = self._standard(i)
        if is_zero(h):
            return 0.0 if kind == "sign" else self._weighted(0.5)
        if kind == "sign":
            if is_zero(self.logz):
                return lax.erf(h * math.sqrt(0.5))
            up, down = log_ndtr(h), log_ndtr(-h)
            return jnp.exp(self.logz + up) - jnp.exp(self.logz + down)
        if is_zero(self.logz):
            return ndtr(h)
        return jnp.exp(self.logz + log_ndtr(h))

    def _weighted(self, x: Value) -> Value:
        return x if is_zero(self.logz) else mul(x, jnp.exp(self.logz))


def correlation(a: Value, b: Value, c: Value) -> tuple[Array, Array]:
    """The correlation in [-1, 1] and 1 - rho^2; 0 and 0 where a variance is 0."""
    mean = geometric(a, b)
    rho = jnp.clip(ratio(c, mean), -1, 1)
    return rho, (1 + jnp.abs(rho)) * jnp.clip(ratio(distance(mean, c), mean), 0, 1)


def angle(a: Value, b: Value, c: Value) -> Value:
    """asin(rho) of a covariance, 0 where a variance is 0."""
    if is_zero(c):
        return 0.0
    mean = geometric(a, b)
    near = jnp.clip(jnp.where(mean > 0, ratio(distance(mean, c), mean), 1), 0, 1)
    return asin(jnp.clip(ratio(c, mean), -1, 1), near)


def _lower(powers: tuple[int, ...], i: int) -> tuple[int, ...]:
    return tuple(k - (j == i) for j, k in enumerate(powers))
