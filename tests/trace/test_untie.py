"""Untied weights: what is a use, and what one would write by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import widelimit as wl
from widelimit import InputError, UnsupportedError

STEPS = 3
n = wl.width("n")
X = np.random.default_rng(0).normal(size=(2, STEPS, 3))
PARAMS = {
    "W": wl.normal((n, n), std=1.3, parameterization="ntk"),
    "U": wl.normal((3, n), fan_in=0),
    "b": wl.normal((n,), std=0.3),
    "v": wl.normal((n,)),
}


def start(x: Any) -> Any:
    return jnp.ones((len(x), n))


def rnn(p: Any, x: Any) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = wl.tap(f"h{t}", jnp.tanh(h @ p["W"] + x[:, t] @ p["U"] + p["b"]))
    return h @ p["v"] / jnp.sqrt(n)


def scanned(p: Any, x: Any) -> Any:
    w = p["W"].T.T * 1.0

    def step(h: Any, x: Any) -> Any:
        h = wl.tap("h", jnp.tanh(h @ w + x @ p["U"] + p["b"]))
        return h, h

    _, hs = lax.scan(step, start(x), jnp.moveaxis(x, 1, 0))
    return hs[-1] @ p["v"] / jnp.sqrt(n)


def pooled(p: Any, x: Any) -> Any:
    h, total = start(x), 0.0
    for t in range(x.shape[1]):
        h = jnp.tanh(h @ p["W"] + x[:, t] @ p["U"] + p["b"])
        total = total + h
    return total @ p["v"] / jnp.sqrt(n)


def residual(p: Any, x: Any) -> Any:
    h = x[:, 0] @ p["U"]
    for _ in range(2):
        h = h + h @ p["W"]
    return h @ p["v"] / jnp.sqrt(n)


def gated(p: Any, x: Any) -> Any:
    h = x[:, 0] @ p["U"]
    for _ in range(2):
        gate = jax.nn.sigmoid(h @ p["Z"])
        h = gate * h + (1 - gate) * jnp.tanh(h @ p["W"])
    return h @ p["v"] / jnp.sqrt(n)


def by_hand(p: Any, x: Any) -> Any:
    h = start(x)
    for t in range(STEPS):
        h = wl.tap(f"h{t}", jnp.tanh(h @ p["W"][t] + x[:, t] @ p["U"] + p["b"]))
    return h @ p["v"] / jnp.sqrt(n)


BY_HAND = PARAMS | {
    "W": wl.normal((STEPS, n, n), std=1.3, parameterization="ntk", fan_in=1)
}


def limits(f: Callable[..., Any], params: Any = PARAMS) -> tuple[wl.Limit, wl.Limit]:
    return wl.limit(f, params), wl.limit(wl.untie(f), params)


def copies(f: Callable[..., Any], x: Any = X, **options: Any) -> dict[str, Any]:
    net = wl.limit(wl.untie(f, **options), PARAMS)
    _, theta = net.at(x, key=jax.random.key(0), n=8)
    return {name: np.shape(value) for name, value in theta.items()}


@pytest.mark.slow
def test_untied_is_what_one_writes_with_a_matrix_a_step() -> None:
    untied, hand = wl.limit(wl.untie(rnn), PARAMS), wl.limit(by_hand, BY_HAND)
    np.testing.assert_array_equal(untied.nngp(X), hand.nngp(X))
    np.testing.assert_array_equal(untied.ntk(X), hand.ntk(X))
    assert str(untied.program(X)) == str(hand.program(X))
    f, theta = untied.at(X, key=jax.random.key(1), n=8)
    g, same = hand.at(key=jax.random.key(1), n=8)
    jax.tree.map(np.testing.assert_array_equal, theta, same)
    np.testing.assert_allclose(f(theta, X), g(theta, X), rtol=1e-6)


def test_the_fan_in_is_that_of_the_matrix() -> None:
    params = PARAMS | {"W": wl.normal((n, n), std=1.3, fan_in=0)}
    untied, other = wl.limit(wl.untie(rnn), params), wl.limit(wl.untie(rnn), PARAMS)
    np.testing.assert_array_equal(untied.nngp(X), other.nngp(X))
    _, theta = untied.at(X, key=jax.random.key(1), n=64)
    assert float(np.std(theta["W"])) == pytest.approx(1.3 / 8, abs=0.005)
    _, theta = other.at(X, key=jax.random.key(1), n=64)
    assert float(np.std(theta["W"])) == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("f", [rnn, scanned])
def test_a_simple_rnn_is_the_same_tied_and_untied(f: Callable[..., Any]) -> None:
    tied, untied = limits(f)
    np.testing.assert_allclose(untied.nngp(X), tied.nngp(X), rtol=1e-5)
    one, other = tied.statistics(X[:1]), untied.statistics(X[:1])
    for name, found in one.items():
        for a, b in (
            (found.forward, other[name].forward),
            (found.gradient, other[name].gradient),
        ):
            if f is scanned:  # only where both are at the same step
                a, b = np.diagonal(a, 0, 2, 3), np.diagonal(b, 0, 2, 3)
            np.testing.assert_allclose(b, a, rtol=1e-5)


@pytest.mark.slow
def test_a_sum_over_steps_is_not() -> None:
    tied, untied = limits(pooled)
    assert np.max(np.abs(tied.nngp(X) - untied.nngp(X))) > 0.1


def test_a_residual_network_is_not() -> None:
    tied, untied = limits(residual)
    gram, s = X[:, 0] @ X[:, 0].T / 3, 1.3**2
    # (1 + W)^2 = 1 + 2 W + W^2, and (1 + W') (1 + W).
    np.testing.assert_allclose(tied.nngp(X), gram * (1 + 4 * s + s**2), rtol=1e-5)
    np.testing.assert_allclose(untied.nngp(X), gram * (1 + s) ** 2, rtol=1e-5)
    report = untied.check(X, widths=(32, 128), seeds=16)
    assert report.passed, report


@pytest.mark.slow
def test_a_gated_network_is_not() -> None:
    params = PARAMS | {"Z": wl.normal((n, n), std=2.0, fan_in=0)}
    tied, untied = limits(gated, params)
    a, b = (
        net.estimate(X[:1], samples=1024, route="samples") for net in (tied, untied)
    )
    assert abs(a.value - b.value).item() > 5 * (a.error + b.error).item()
    for net in (tied, untied):
        report = net.check(X[:1], widths=(64, 256), seeds=16)
        assert report.passed, report


@pytest.mark.slow
@pytest.mark.parametrize("f", [rnn, scanned])
def test_finite_networks_agree(f: Callable[..., Any]) -> None:
    net = wl.limit(wl.untie(f), PARAMS)
    report = net.check(X, widths=(32, 128), seeds=8, gradients=True, ntk=True)
    assert report.passed, report


def last(p: Any, h: Any) -> Any:
    return jnp.tanh(h) @ p["v"] / jnp.sqrt(n)


def transposed(p: Any, x: Any) -> Any:
    return last(p, jnp.tanh(x[:, 0] @ p["U"] @ p["W"]) @ p["W"].T)


def symmetric(p: Any, x: Any) -> Any:
    s = (p["W"] + p["W"].T) / jnp.sqrt(2.0)
    return last(p, jnp.tanh(x[:, 0] @ p["U"] @ s) @ s)


def multiplied(p: Any, x: Any) -> Any:
    return last(p, x[:, 0] @ p["U"] @ (p["W"] @ p["W"]))


def called(p: Any, x: Any) -> Any:
    layer = jax.jit(lambda w, h: jnp.tanh(h @ w))
    return last(p, layer(p["W"], layer(p["W"], x[:, 0] @ p["U"])))


def twice_a_step(p: Any, x: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        return jnp.tanh(jnp.tanh(h @ p["W"]) @ p["W"].T + x @ p["U"]), None

    h, _ = lax.scan(step, start(x), jnp.moveaxis(x, 1, 0), reverse=True)
    return last(p, h @ p["W"])


@pytest.mark.parametrize(
    ("f", "uses"),
    [
        (rnn, STEPS), (scanned, STEPS), (transposed, 2), (symmetric, 2),
        (multiplied, 1), (called, 2), (twice_a_step, 2 * STEPS + 1),
    ],
)  # fmt: skip
def test_what_is_a_use(f: Callable[..., Any], uses: int) -> None:
    net = wl.limit(wl.untie(f), PARAMS)
    g, theta = net.at(X, key=jax.random.key(0), n=8)
    shapes = {name: np.shape(value) for name, value in theta.items()}
    assert shapes == {"W": (uses, 8, 8), "U": (3, 8), "b": (8,), "v": (8,)}
    # Every copy is used, and none of them twice.
    gradient = jax.grad(lambda theta: g(theta, X).sum())(theta)["W"]
    assert np.all(np.abs(gradient).max((1, 2)) > 0)


def test_lines_keep_where_they_stand() -> None:
    net, tied = wl.limit(wl.untie(rnn), PARAMS), wl.limit(rnn, PARAMS)
    sources = [
        {line.source for line in each.program(X).lines if line.source}
        for each in (net, tied)
    ]
    assert sources[0] == sources[1]
    assert all("test_untie.py" in s and "(rnn)" in s for s in sources[0])


def test_a_network_of_its_own_copies_is_traced() -> None:
    for f in (symmetric, twice_a_step):
        net = wl.limit(wl.untie(f), PARAMS)
        assert net.order(X) == {"output": 0}


def test_names_choose_what_is_untied() -> None:
    shapes = copies(rnn, names=["U", "b"])
    assert shapes == {"W": (8, 8), "U": (STEPS, 3, 8), "b": (STEPS, 8), "v": (8,)}
    net = wl.limit(wl.untie(rnn, names="U"), PARAMS)
    # Same-time covariances of one input do not see other steps.
    tied = wl.limit(rnn, PARAMS)
    np.testing.assert_allclose(net.nngp(X), tied.nngp(X), rtol=1e-5)


def test_longer_inputs_have_more_copies() -> None:
    longer = np.concatenate([X, X], 1)
    assert copies(rnn, longer)["W"] == (2 * STEPS, 8, 8)
    net = wl.limit(wl.untie(rnn), PARAMS)
    f, theta = net.at(longer, key=jax.random.key(0), n=8)
    assert f(theta, X).shape == (2,)  # the first copies
    f, theta = net.at(X, key=jax.random.key(0), n=8)
    with pytest.raises(InputError, match="`W` more than 3 times"):
        f(theta, longer)


def carried(p: Any, x: Any) -> Any:
    def step(both: Any, x: Any) -> Any:
        h, w = both
        return (jnp.tanh(h @ w), w.T), None

    (h, _), _ = lax.scan(step, (x[:, 0] @ p["U"], p["W"]), jnp.moveaxis(x, 1, 0))
    return last(p, h)


def branched(p: Any, x: Any) -> Any:
    h = x[:, 0] @ p["U"]
    return last(p, lax.cond(x[0, 0, 0] > 0, lambda: h @ p["W"], lambda: h))


def nested(p: Any, x: Any) -> Any:
    def inner(h: Any, _: Any) -> Any:
        return jnp.tanh(h @ p["W"]), None

    def outer(h: Any, _: Any) -> Any:
        return lax.scan(inner, h, None, length=2)[0], None

    return last(p, lax.scan(outer, x[:, 0] @ p["U"], None, length=2)[0])


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (carried, "carried through a scan .*carried"),
        (branched, "inside a `cond`"),
        (nested, "A scan inside a scan"),
    ],
)
def test_what_cannot_be_counted_is_refused(f: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        wl.limit(wl.untie(f), PARAMS).nngp(X)


def test_wrong_use_is_told() -> None:
    with pytest.raises(InputError, match=r"takes a function f\(params, x\), got 3"):
        wl.untie(3)  # type: ignore[arg-type]
    net = wl.limit(wl.untie(rnn), PARAMS)
    with pytest.raises(InputError, match=r"net.at\(x, key=key, n=1024\)"):
        net.at(key=jax.random.key(0), n=8)
    with pytest.raises(InputError, match="one copy for every use"):
        wl.untie(rnn)(PARAMS, X)
    with pytest.raises(InputError, match=r"\(U, W, b, v\), got A"):
        wl.limit(wl.untie(rnn, names=["A"]), PARAMS).nngp(X)
    with pytest.raises(InputError, match="got none"):
        wl.limit(wl.untie(rnn, names=[]), PARAMS).nngp(X)
    few = {name: p for name, p in PARAMS.items() if name != "W"}
    with pytest.raises(InputError, match=r"no parameter is one\. Name .* b, v"):
        wl.limit(wl.untie(lambda p, x: last(p, x[:, 0] @ p["U"])), few).nngp(X)
