"""Training of finite networks, and the linear model beside it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import widelimit as wl
from widelimit import _errors
from widelimit.finite import _train

n = wl.width("n", base=8)
RNG = np.random.default_rng(0)
X, TEST = RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3))
Y = RNG.standard_normal((6, 2))
RATES = {"U": 1.0, "b": 2.0, "v": 0.5}


def mlp(p, x):
    return jnp.tanh(x @ p["U"] + p["b"]) @ p["v"] + p["shift"]


def network(parameterization, width=10, key=0, axes=()):
    params = {
        "U": wl.normal((3, n)),
        "b": wl.normal((n,), std=0.3, lr=2.0),
        "v": wl.normal((n, 2), lr=0.5),
        "shift": 0.1,
    }
    net = wl.limit(mlp, params, parameterization=parameterization, trace_axes=axes)
    return net.at(n=width, key=jax.random.key(key))


def half_mean_square(f, y):
    return jnp.mean((f - y) ** 2) / 2


@pytest.mark.parametrize("parameterization", [None, "ntk", "standard"])
def test_steps_move_trained_variables_by_their_own_rates(parameterization):
    f, theta = network(parameterization)
    run = f.train(theta, X, Y, (0, 2, 5), 0.3, x_test=TEST)

    def loss(some, x, y):
        return half_mean_square(f({**theta, **some}, x), y)

    some = {name: theta[name] for name in RATES}
    expected = {0: some}
    for step in range(1, 6):
        g = jax.grad(loss)(some, X, Y)
        some = {name: some[name] - 0.3 * RATES[name] * g[name] for name in some}
        expected[step] = some
    assert run.theta["shift"] == 0.1
    np.testing.assert_array_equal(run.steps, [0, 2, 5])
    for name in RATES:
        np.testing.assert_allclose(run.theta[name], some[name], rtol=1e-12)
    for i, step in enumerate([0, 2, 5]):
        now = {**theta, **expected[step]}
        assert run.losses[i] == pytest.approx(float(loss(now, X, Y)), rel=1e-12)
        np.testing.assert_allclose(run.outputs[i], f(now, X), rtol=1e-11)
        np.testing.assert_allclose(run.test_outputs[i], f(now, TEST), rtol=1e-11)


def test_another_optimizer_and_loss():
    f, theta = network("ntk")
    labels = jnp.array([0, 1, 1, 0, 1, 0])

    def entropy(outputs, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return jnp.mean(losses)

    optimizer = optax.adam(0.01)
    run = f.train(theta, X, labels, (1, 30), optimizer=optimizer, loss=entropy)
    some = {name: theta[name] for name in RATES}
    state = optimizer.init(some)
    for _ in range(30):
        g = jax.grad(lambda s: entropy(f({**theta, **s}, X), labels))(some)
        updates, state = optimizer.update(g, state, some)
        some = {name: some[name] + RATES[name] * updates[name] for name in some}
    for name in RATES:
        np.testing.assert_allclose(run.theta[name], some[name], rtol=1e-9)
    assert run.losses[1] < run.losses[0]
    assert run.test_outputs is None
    with pytest.raises(_errors.InputError, match="plain gradient descent"):
        run.linearised(np.eye(6))


def test_the_first_step_of_the_linear_model_is_that_of_the_network():
    f, theta = network("standard")
    rate = 1e-6
    run = f.train(theta, X, Y, (1,), rate, x_test=TEST)
    model = run.linearised(f.ntk(theta, X), f.ntk(theta, TEST, X))
    for after, linear, x in (
        (run.outputs[0], model.outputs[0], X),
        (run.test_outputs[0], model.test_outputs[0], TEST),
    ):
        before = np.asarray(f(theta, x))
        np.testing.assert_allclose(
            (after - before) / rate, (linear - before) / rate, rtol=1e-4, atol=1e-5
        )
    flow = run.linearised(f.ntk(theta, X), continuous=True)
    np.testing.assert_allclose(flow.outputs, model.outputs, rtol=1e-9)
    assert flow.test_outputs is None
    with pytest.raises(_errors.InputError, match="goes with test inputs"):
        f.train(theta, X, Y, (1,), rate).linearised(np.eye(12), np.eye(12))


def relu(p, x):
    return jax.nn.relu(x @ p["U"]) @ p["v"]


def limit_kernel(x1, x2):
    """Of `relu` in the NTK parameterisation: the first two arc-cosine kernels."""
    c = x1 @ x2.T / 3
    a, b = np.sum(x1**2, 1)[:, None] / 3, np.sum(x2**2, 1)[None] / 3
    rho = np.clip(c / np.sqrt(a * b), -1, 1)
    angle = np.pi - np.arccos(rho)
    dual = np.sqrt(a * b) * (np.sqrt(1 - rho**2) + rho * angle) / (2 * np.pi)
    return dual + c * angle / (2 * np.pi)


@pytest.mark.slow
def test_wide_networks_follow_the_linear_model():
    """Up to n^-1/2: that of the limit's kernel, and closer that of their own.

    Lee et al. (2019), theorem 2.1; their own kernel moves by the units that switch.
    """
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 2))}
    net = wl.limit(relu, params, parameterization="ntk", trace_axes=())
    widths, seeds = (64, 256, 1024), 12
    limit = limit_kernel(X, X), limit_kernel(TEST, X)
    rate, steps = 2.0, (5, 20, 60)
    gaps = np.zeros((2, len(widths), seeds))
    for w, width in enumerate(widths):
        f, _ = net.at(n=width, key=jax.random.key(0))
        for seed in range(seeds):
            theta = f.draw(jax.random.key(seed))
            run = f.train(theta, X, Y, steps, rate, x_test=TEST)
            own = f.ntk(theta, X), f.ntk(theta, TEST, X)
            for i, kernels in enumerate((limit, own)):
                model = run.linearised(*kernels)
                gap = np.mean((run.test_outputs - model.test_outputs) ** 2)
                gap += np.mean((run.outputs - model.outputs) ** 2)
                gaps[i, w, seed] = np.sqrt(gap)
    logs = np.log(gaps)
    mean, error = logs.mean(-1), logs.std(-1, ddof=1) / np.sqrt(seeds)
    at = np.log(widths) - np.log(widths).mean()
    slopes = mean @ at / (at @ at)
    errors = np.sqrt(error**2 @ at**2) / (at @ at)
    assert np.all(np.abs(slopes + 0.5) < 3 * errors + 0.05)
    assert gaps[0, -1].mean() < 0.15 * np.std(Y)
    assert np.mean(gaps[1] < gaps[0]) > 0.9


def test_draws_of_one_network_compile_once():
    traces = []

    def counted(p, x):
        traces.append(1)
        return relu(p, x)

    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 2))}
    net = wl.limit(counted, params, parameterization="ntk")
    f, theta = net.at(n=16, key=jax.random.key(0))
    f.train(theta, X, Y, (1, 2), 0.1)
    before = len(traces)
    g, other = net.at(n=16, key=jax.random.key(1))
    assert g == f
    assert hash(g) == hash(f)
    g.train(other, X, Y, (1, 2), 0.1)
    assert len(traces) - before <= 1  # the shapes of the targets are looked at
    assert net.at(n=8, key=jax.random.key(0))[0] != f


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps": (3, 2)}, _errors.InputError, "increasing whole numbers"),
        ({"steps": (-1,)}, _errors.InputError, "increasing whole numbers"),
        ({"steps": (0.5,)}, _errors.InputError, "increasing whole numbers"),
        ({"learning_rate": None}, _errors.InputError, "either `learning_rate`"),
        ({"optimizer": optax.sgd(1.0)}, _errors.InputError, "either `learning_rate`"),
        ({"learning_rate": -1.0}, _errors.InputError, "positive number"),
        ({"y": Y[:, 0]}, _errors.ShapeMismatchError, "shape of the output"),
    ],
)
def test_errors(changed, error, message):
    f, theta = network("ntk")
    given = {"x": X, "y": Y, "steps": (1,), "learning_rate": 0.1} | changed
    with pytest.raises(error, match=message):
        f.train(theta, **given)


def test_without_optax_the_extra_is_named(monkeypatch):
    f, theta = network("ntk")
    _train._sgd.cache_clear()
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ModuleNotFoundError, match=r"widelimit\[train\]"):
        f.train(theta, X, Y, (1,), 0.1)
