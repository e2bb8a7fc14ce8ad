"""Approximate message passing for compressed sensing against its state evolution.

A signal of which a tenth is not zero, and then N(0, 1), is measured by a matrix of half
as many rows, with noise of variance 0.01. State evolution (Donoho, Maleki, Montanari
2009; Bayati, Montanari 2011) says how the error of every iterate falls; it holds with
the Onsager term, and does not without.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import widelimit as wl

DELTA, NOISE, SPARSITY, THRESHOLD = 0.5, 0.01, 0.1, 1.4
RATIOS = {"m": DELTA}


def message_passing(steps: int, onsager: bool = True) -> wl.Program:
    p = wl.Program()
    u, v = p.vector("u", "n"), p.vector("v", "n")
    cut = float(norm.ppf(SPARSITY))
    signal = p.nonlin(lambda a, b: jnp.where(a < cut, b, 0.0), u, v, name="signal")
    a = p.matrix("A", ("m", "n"), std=DELTA**-0.5)
    y = a @ signal + p.vector("noise", "m", var=NOISE)
    x, z = None, y
    for t in range(1, steps + 1):
        square = p.moment(lambda r: r * r, z)
        level = p.map(lambda s: THRESHOLD * jnp.sqrt(s), square)
        effective = a.T @ z if x is None else a.T @ z + x
        x = p.nonlin(soft_threshold, effective, level, name=f"x{t}")
        residual = y - a @ x
        if onsager:
            slope = p.moment(lambda s, c: 1.0 * (jnp.abs(s) > c), effective, level)
            residual = residual + (slope / DELTA) * z
        z = residual.named(f"z{t}")
    return p


def soft_threshold(s, level):
    return jnp.sign(s) * jnp.maximum(jnp.abs(s) - level, 0.0)


def state_evolution(steps: int) -> list[float]:
    """The mean square error of every iterate, in closed form."""
    errors, variance = [], NOISE + SPARSITY / DELTA
    for _ in range(steps):
        level = THRESHOLD * variance**0.5

        def second_moment(total: float, level: float = level) -> float:
            """E of the square of the threshold of N(0, total)."""
            a = level / total**0.5
            return 2 * total * ((1 + a * a) * norm.sf(a) - a * norm.pdf(a))

        total = 1.0 + variance
        cross = 2.0 * norm.sf(level / total**0.5)
        hit = second_moment(total) - 2.0 * cross + 1.0
        miss = second_moment(variance)
        errors.append((1 - SPARSITY) * miss + SPARSITY * hit)
        variance = NOISE + errors[-1] / DELTA
    return errors


def square_error(lim: Any, t: int) -> Any:
    return lim.expect(lambda a, b: (a - b) ** 2, f"x{t}", "signal")


def simulated(p: wl.Program, steps: int) -> list[tuple[float, float]]:
    """The square error of every iterate and its standard error over 25 networks."""
    # The bias is of order 1 / n: two widths remove it.
    half, full = (
        p.simulate({"n": n, "m": n // 2}, jax.random.key(5), 25) for n in (400, 800)
    )
    found = []
    for x in (f"x{t}" for t in range(1, steps + 1)):
        one, two = (((s[x] - s["signal"]) ** 2).mean(-1) for s in (half, full))
        draws = np.asarray(2.0 * two - one)
        found.append((draws.mean(), draws.std(ddof=1) / 5.0))
    return found


@pytest.mark.slow
def test_ten_iterates_follow_state_evolution() -> None:
    lim = message_passing(10).limit(RATIOS)
    for t, wanted in enumerate(state_evolution(10), start=1):
        found = square_error(lim, t)
        assert abs(float(found) - wanted) <= min(1e-3, found.error), t


def test_onsager_terms_cancel_what_the_matrix_remembers() -> None:
    """The argument of a threshold is the signal and one Gaussian vector."""
    p = message_passing(2)
    lim = p.limit(RATIOS)
    first, second = lim.value("t1"), lim.value("t5")
    wanted = [NOISE + SPARSITY / DELTA, NOISE + state_evolution(1)[0] / DELTA]
    assert float(first) == pytest.approx(wanted[0], rel=1e-3)
    assert float(second) == pytest.approx(wanted[1], abs=2.0 * second.error)


@pytest.mark.slow
@pytest.mark.parametrize("onsager", [True, False])
def test_four_iterates_are_those_of_networks(onsager: bool) -> None:
    """And without the Onsager term they are not those of state evolution."""
    p, evolution = message_passing(4, onsager), state_evolution(4)
    lim, networks = p.limit(RATIOS), simulated(p, 4)
    for t in range(1, 5):
        found = square_error(lim, t)
        mean, stderr = networks[t - 1]
        assert abs(mean - float(found)) <= 5.0 * stderr + found.error
        if not onsager and t > 1:
            assert float(found) > evolution[t - 1] + 10.0 * found.error
