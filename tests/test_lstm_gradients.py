"""Gradients of a random LSTM over 20 steps, against arrays of an independent source.

`data/lstm_gradients.npz` holds |dL/dh_t|^2 / n and |dL/dc_t|^2 / n for t = 1..20, as
means with standard errors: of the recursion for infinite width by Monte Carlo
("theory"), and of 20 networks of width 1000 ("n1000"). Weights N(0, 1/n) are tied over
the steps, biases are N(0, 0.01), dL/dh_20 is N(0, 1). There are no inputs; h_0 and c_0
are zero ("A"), or N(0, 1) ("C"). After figure 1 of Yang (2019), arXiv:1902.04760.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import InputError

DATA = pathlib.Path(__file__).parent / "data" / "lstm_gradients.npz"
STEPS = 20
n = wl.width("n")


def network(case: str, steps: int) -> wl.Limit:
    params = {f"W{g}": wl.normal((n, n)) for g in "ifog"}
    params |= {f"b{g}": wl.normal((n,), std=0.1) for g in "ifog"}
    params |= {"v": wl.normal((n,))}
    if case == "C":
        params |= {"h0": wl.normal((n,)), "c0": wl.normal((n,))}

    def lstm(p: Any, x: Any) -> Any:
        h = c = jnp.zeros((len(x), n))
        if case == "C":
            h, c = (jnp.broadcast_to(p[k], (len(x), n)) for k in ("h0", "c0"))
        for t in range(1, steps + 1):
            a = {g: h @ p[f"W{g}"] / jnp.sqrt(n) + p[f"b{g}"] for g in "ifog"}
            i, f, o = (jax.nn.sigmoid(a[g]) for g in "ifo")
            c = wl.tap(f"c{t}", f * c + i * jnp.tanh(a["g"]))
            h = wl.tap(f"h{t}", o * jnp.tanh(c))
        return h @ p["v"] / jnp.sqrt(n)

    return wl.limit(lstm, params)


NO_INPUTS = np.zeros((1, 1))


@functools.cache
def found(case: str) -> dict[str, Any]:
    net = network(case, STEPS)
    return net.estimate(NO_INPUTS, get="statistics", route="samples", samples=2**13)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["theory", "n1000"])
def test_gradients_at_all_steps(reference: str) -> None:
    apart = []
    with np.load(DATA) as data:
        for case in "AC":
            for q in "hc":
                estimates = [found(case)[f"{q}{t + 1}"] for t in range(STEPS)]
                mean, se = (
                    data[f"{case}_{reference}_d{q}_{what}"] for what in ("mean", "se")
                )
                value = np.array([e.gradient.value[0, 0] for e in estimates])
                own = np.array([e.gradient.stderr[0, 0] for e in estimates])
                assert np.all(own < 0.02 * value)
                apart.append(np.abs(value - mean) / np.hypot(own, se))
    assert np.size(apart) == 4 * STEPS
    assert np.sum(np.array(apart) > 3) <= 2
    assert np.max(apart) < 4.5


@pytest.mark.slow
def test_formulas_and_samples_agree() -> None:
    net = network("A", 2)
    auto, sampled = (
        net.estimate(NO_INPUTS, get="statistics", route=route, samples=1024)
        for route in ("auto", "samples")
    )
    for name, one in auto.items():
        for a, b in (
            (one.forward, sampled[name].forward),
            (one.gradient, sampled[name].gradient),
        ):
            assert np.all(np.abs(a.value - b.value) <= a.error + b.error)
    assert np.all(auto["c1"].gradient.error < sampled["c1"].gradient.error)


def layers(p: Any, x: Any) -> Any:
    h = wl.tap("h", x @ p["U"])
    y = jnp.stack([jax.nn.relu(h), 2 * jax.nn.relu(h)], 1)
    return y @ p["V"] / jnp.sqrt(n)


LAYERS = {"U": wl.normal((3, n)), "V": wl.normal((n, 2))}
X = np.random.default_rng(1).normal(size=(2, 3))


@pytest.mark.parametrize("route", ["auto", "samples"])
def test_statistics_have_errors(route: str) -> None:
    net = wl.limit(layers, LAYERS)
    exact = net.statistics(X, output=1)["h"]
    estimates = net.estimate(X, get="statistics", output=1, route=route, samples=1024)
    assert list(estimates) == ["h"]
    one = estimates["h"]
    for a, b in ((one.forward, exact.forward), (one.gradient, exact.gradient)):
        assert a.value.shape == a.error.shape == a.stderr.shape == b.shape
        assert np.all(np.abs(a.value - b) <= a.error + 1e-5)


def test_wrong_questions_are_told() -> None:
    net = wl.limit(layers, LAYERS)
    with pytest.raises(InputError, match="stands alone: leave `x2` out"):
        net.estimate(X, X, get="statistics")
    with pytest.raises(InputError, match="leave the other names out"):
        net.estimate(X, get=("nngp", "statistics"))
    with pytest.raises(InputError, match="`output` should be a position"):
        net.estimate(X, get="statistics", output=(0, 0))
    untapped = wl.limit(lambda p, x: x @ p["U"], {"U": wl.normal((3, n))})
    with pytest.raises(InputError, match="has no tap"):
        untapped.estimate(X, get="statistics")
