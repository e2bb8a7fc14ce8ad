"""The tangent kernel in the limit against finite networks, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply as dense

import widelimit as wl
from widelimit.trace import widths_in

n = wl.width("n", base=8)
m = wl.width("m", ratio=1.5, base=12)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4))
SEQUENCES = RNG.standard_normal((2, 3, 4))
SLOW = pytest.mark.slow


# ------------------------------------------------------------------- finite networks
def mlp(p, x):
    """Trained constants, a bias of the output, two widths."""
    h = jax.nn.relu(dense(p["U"], x) + p["b"])
    h = jnp.tanh(p["scale"] * dense(p["W"], h))
    return dense(p["v"], h) + p["out"]


MLP = {
    "U": wl.normal((4, n), std=1.3),
    "b": wl.normal((n,), std=0.2, lr=0.3),
    "W": wl.normal((n, m), std=1.2),
    "scale": wl.constant((m,), 0.9),
    "v": wl.normal((m, 2), std=1.1),
    "out": wl.constant((2,), 0.1, lr=0.5),
}


def recurrent(p, x):
    def step(h, row):
        return jnp.tanh(dense(p["W"], h) + dense(p["U"], row)), None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), n)), jnp.swapaxes(x, 0, 1))
    return dense(p["v"], h)


RECURRENT = {
    "W": wl.normal((n, n), std=1.2),
    "U": wl.normal((4, n)),
    "v": wl.normal((n, 1)),
}


def normalised(p, x):
    """LayerNorm with a trained scale and shift."""
    h = dense(p["U"], x)
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1)
    h = jax.nn.relu(h * p["gamma"] + p["beta"])
    return dense(p["v"], dense(p["W"], h))


NORMALISED = {
    "U": wl.normal((4, n)),
    "gamma": wl.constant((n,), 1.2),
    "beta": wl.constant((n,), 0.3),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 2)),
}


def attention(p, x):
    """Logits over n, two heads, a value for every position."""
    h = dense(p["E"], x)
    q, k, v = (dense(p[name], h) for name in ("Q", "K", "V"))
    q, k, v = (a.reshape(*a.shape[:2], 2, -1) for a in (q, k, v))
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1]
    mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v)
    return dense(p["v"], jnp.tanh(mixed.reshape(h.shape)).mean(1))


ATTENTION = {
    "E": wl.normal((4, n)),
    "Q": wl.normal((n, n)),
    "K": wl.normal((n, n)),
    "V": wl.normal((n, n)),
    "v": wl.normal((n, 2)),
}


def tied(p, x):
    """A matrix and its transpose: theorem 6 in the network itself."""
    h = jnp.tanh(dense(p["U"], x))
    h = jnp.tanh(dense(p["W"], h))
    return dense(p["v"], jnp.tanh(dense(p["W"].T, h)))


TIED = {
    "U": wl.normal((4, n)),
    "W": wl.normal((n, n), std=1.3),
    "v": wl.normal((n, 2)),
}


def convolution(p, x):
    layout = ("NWC", "WIO", "NWC")
    for name in ("c1", "c2"):
        fan_in = p[name].shape[0] * p[name].shape[1]
        x = jax.lax.conv_general_dilated(
            x, p[name], (1,), "SAME", dimension_numbers=layout
        )
        x = jax.nn.relu(x / jnp.sqrt(fan_in))
    return dense(p["v"], x)


CONVOLUTION = {
    "c1": wl.normal((2, 4, n), std=1.2),
    "c2": wl.normal((3, n, n), std=1.1),
    "v": wl.normal((n, 2)),
}


def centred(p, x):
    """Inputs of a batch interact."""
    h = dense(p["U"], x)
    h = jax.nn.relu(h - h.mean(0))
    return dense(p["v"], jnp.tanh(dense(p["W"], h)))


CENTRED = {
    "U": wl.normal((4, n)),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 2)),
}


def agrees_with_networks(net, x, width=512, seeds=12):
    """Every part of the kernel, against the mean of the empirical ones."""
    parts = net.ntk(x, by_param=True)
    total = sum(parts.values())
    np.testing.assert_allclose(net.ntk(x), total, rtol=1e-12, atol=1e-12)
    found = {name: [] for name in parts}
    widths = {k: round(w.ratio * width) for k, w in widths_in(net.params).items()}
    for seed in range(seeds):
        f, theta = net.at(key=jax.random.key(seed), **widths)
        for name, part in f.ntk(theta, x, by_param=True).items():
            found[name].append(np.asarray(part))
    size = np.abs(total).max()
    for name, part in parts.items():
        mean = np.mean(found[name], axis=0)
        error = np.std(found[name], axis=0, ddof=1) / seeds**0.5
        # The bias is of order 1/width.
        assert (np.abs(mean - part) < 4.5 * error + 3 * size / width).all(), name
        assert error.max() < 0.05 * size, name


@pytest.mark.parametrize(
    ("f", "params", "x"),
    [
        pytest.param(mlp, MLP, X, marks=SLOW),
        pytest.param(recurrent, RECURRENT, SEQUENCES, marks=SLOW),
        pytest.param(normalised, NORMALISED, X, marks=SLOW),
        pytest.param(attention, ATTENTION, SEQUENCES, marks=SLOW),
        pytest.param(tied, TIED, X, marks=SLOW),
        pytest.param(convolution, CONVOLUTION, SEQUENCES, marks=SLOW),
        pytest.param(centred, CENTRED, X, marks=SLOW),
    ],
)
def test_parts_are_those_of_finite_networks(f, params, x):
    agrees_with_networks(wl.limit(f, params), x)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_parts_are_those_of_training_variables(parameterization):
    def f(p, x):
        h = jax.nn.relu(x @ p["U"] + p["b"])
        return jnp.tanh(h @ p["W"]) @ p["v"]

    params = {
        "U": wl.normal((4, n), std=1.3),
        "b": wl.normal((n,), std=0.2),
        "W": wl.normal((n, m), std=1.2, lr=2.0),
        "v": wl.normal((m, 2), std=1.1),
    }
    agrees_with_networks(wl.limit(f, params, parameterization=parameterization), X)


# -------------------------------------------------------------------- what must hold
def test_both_kernels_in_one_pass():
    net = wl.limit(centred, CENTRED)
    kernels = net.kernels(X, X[:2] + 0.1)
    assert kernels.ntk.shape == kernels.nngp.shape == (3, 2)
    np.testing.assert_allclose(kernels.nngp, net.nngp(X, X[:2] + 0.1), rtol=1e-13)
    np.testing.assert_allclose(kernels.ntk, net.ntk(X, X[:2] + 0.1), rtol=1e-13)


def test_learning_rates_multiply_parts():
    def net(u, v):
        params = {"U": wl.normal((4, n), lr=u), "v": wl.normal((n, 1), lr=v)}
        return wl.limit(
            lambda p, x: dense(p["v"], jax.nn.relu(dense(p["U"], x))), params
        )

    one = net(1.0, 1.0).ntk(X, by_param=True)
    other = net(3.0, jnp.asarray(0.5)).ntk(X, by_param=True)
    np.testing.assert_allclose(other["U"], 3.0 * one["U"], rtol=1e-13)
    np.testing.assert_allclose(other["v"], 0.5 * one["v"], rtol=1e-13)
    assert set(net(0.0, 1.0).ntk(X, by_param=True)) == {"v"}


def test_a_linear_network_by_hand():
    """K = x x'/4; the parts of U and of v are that times the variance of the other."""
    params = {"U": wl.normal((4, n), std=1.5), "v": wl.normal((n, 1), std=0.5)}
    net = wl.limit(lambda p, x: dense(p["v"], dense(p["U"], x)), params)
    parts = net.ntk(X, by_param=True)
    gram = X @ X.T / 4
    np.testing.assert_allclose(parts["U"], 0.25 * gram, rtol=1e-13)
    np.testing.assert_allclose(parts["v"], 2.25 * gram, rtol=1e-13)


@pytest.mark.slow
def test_derivative_in_a_standard_deviation():
    def value(std):
        params = {**MLP, "W": wl.normal((n, m), std=std, parameterization="ntk")}
        del params["scale"], params["out"]

        def f(p, x):
            h = jax.nn.relu(dense(p["U"], x) + p["b"])
            return dense(p["v"], jnp.tanh(h @ p["W"]))

        return wl.limit(f, params).ntk(X[:1], X[1:2])[0, 0]

    exact, step = jax.grad(value)(1.2), 1e-5
    differences = (value(1.2 + step) - value(1.2 - step)) / (2 * step)
    np.testing.assert_allclose(exact, differences, rtol=1e-8)


@pytest.mark.slow
def test_the_diagonal_is_exact_in_single_precision():
    params = {"in": wl.normal((5, n), std=2**0.5), "out": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((n, n), std=2**0.5) for i in range(30)}

    def f(p, x):
        h = jax.nn.relu(dense(p["in"], x))
        for i in range(30):
            h = jax.nn.relu(dense(p[f"W{i}"], h))
        return dense(p["out"], h)

    x = RNG.standard_normal((4, 5))
    found = wl.limit(f, params).kernels(x.astype(np.float32))
    # Every layer keeps the length of its input; the first doubles, the last halves it.
    # The network is homogeneous in each of its matrices: the part of one times its
    # variance is the NNGP, and 31 of the 32 have variance 2.
    size = (x**2).mean(1)
    for k, exact in ((found.nngp, size), (found.ntk, (1 + 31 / 2) * size)):
        assert k.dtype == np.float32
        np.testing.assert_allclose(np.diag(k), exact, rtol=1e-6)


# --------------------------------------- gradients that are not independent of weights
def square_mean(phi):
    """Yang (2020), arXiv:2006.14548, section 6: the mean of squares is no readout."""
    params = {"W1": wl.normal((10, n)), "W2": wl.normal((n, n))}

    def f(p, x):
        h = wl.tap("x1", phi(wl.tap("h1", dense(p["W1"], x))))
        return jnp.sqrt(n) * jnp.mean(dense(p["W2"], h) ** 2, -1)

    return wl.limit(f, params)


UNIT = np.zeros((2, 10))
UNIT[:, :2] = 10**0.5 * np.array([[1.0, 0.0], [0.5, 0.75**0.5]])
"""Two inputs with |x|^2 = d, at an angle whose cosine is 1/2."""


@pytest.mark.parametrize(
    ("phi", "ntk", "gradient"),
    [
        # With u, v ~ N(0, 1) of covariance r: E[4 v^2 ..] by Wick's theorem.
        pytest.param(
            jnp.square,
            (324.0, 57.0),
            {"x1": (24.0, 12.0), "h1": (288.0, 96.0)},
            marks=SLOW,
        ),
        (lambda h: h + 1.0, (32.0, 15.0), {"x1": (16.0, 12.0), "h1": (16.0, 12.0)}),
    ],
    ids=["square", "shift"],
)
def test_a_mean_is_no_readout(phi, ntk, gradient):
    net = square_mean(phi)
    np.testing.assert_allclose(net.ntk(UNIT)[0], ntk, rtol=1e-12)
    for name, statistics in net.statistics(UNIT).items():
        np.testing.assert_allclose(statistics.gradient[0], gradient[name], rtol=1e-12)
    with pytest.raises(wl.NoLimitError, match=r"n\^1/2"):
        net.nngp(UNIT)


@pytest.mark.slow
def test_a_mean_over_another_width_agrees_with_networks():
    params = {
        "U": wl.normal((4, n)),
        "W": wl.normal((n, m)),
        "b": wl.normal((m,), std=0.3),
    }

    def f(p, x):
        h = dense(p["W"], jnp.tanh(dense(p["U"], x))) + p["b"]
        return jnp.sqrt(m) * jnp.mean(jax.nn.relu(h), -1)

    agrees_with_networks(wl.limit(f, params), X)


# ------------------------------------------------------------------------ what cannot
def test_nothing_is_trained():
    params = {"U": wl.normal((4, n), lr=0.0), "v": wl.normal((n, 1), lr=0)}
    net = wl.limit(lambda p, x: dense(p["v"], dense(p["U"], x)), params)
    with pytest.raises(wl.InputError, match="lr > 0"):
        net.ntk(X)


def test_the_naive_standard_parameterisation_diverges():
    params = {
        "U": wl.normal((4, n)),
        "W": wl.normal((n, n)),
        "v": wl.normal((n, 1)),
    }
    net = wl.limit(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["U"]) @ p["W"]) @ p["v"],
        params,
        parameterization="standard-naive",
    )
    assert np.isfinite(net.nngp(X)).all()
    with pytest.raises(wl.NoLimitError, match=r"n\^1 .*`W`"):
        net.ntk(X)


def test_a_finite_constant_inside_the_network():
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}

    def plain(p, x):
        return dense(p["v"], jax.nn.relu(dense(p["U"], x)))

    gain = {**params, "gain": wl.constant((), 0.5)}
    net = wl.limit(lambda p, x: plain(p, p["gain"] * x), gain)
    with pytest.raises(wl.UnsupportedError, match=r"`gain`.*lr=0"):
        net.ntk(X)
    fixed = wl.limit(net.f, {**params, "gain": wl.constant((), 0.5, lr=0)})
    np.testing.assert_allclose(
        fixed.ntk(X), wl.limit(plain, params).ntk(0.5 * X), rtol=1e-12
    )


# --------------------------------------------------- derivatives that are not of values
def two_layers(between):
    params = {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        return dense(p["v"], between(dense(p["W"], jnp.tanh(dense(p["U"], x)))))

    return wl.limit(f, params)


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvps(lambda dx, ans, x: dx)


@jax.custom_vjp
def relu_by_hand(x):
    return jnp.maximum(x, 0.0)


relu_by_hand.defvjp(
    lambda x: (jnp.maximum(x, 0.0), x), lambda x, g: (jnp.where(x > 0, g, 0.0),)
)


@pytest.mark.parametrize(
    "between",
    [
        straight_through,
        lambda h: h + jax.lax.stop_gradient(jnp.tanh(h)),
        pytest.param(
            lambda h: jax.lax.scan(
                lambda c, _: (jnp.tanh(c) + jax.lax.stop_gradient(c), None), h, None, 2
            )[0],
            marks=SLOW,
        ),
    ],
    ids=["custom", "stopped", "in a loop"],
)
def test_another_derivative_is_refused(between):
    net = two_layers(between)
    assert np.isfinite(net.nngp(X)).all()
    with pytest.raises(wl.UnsupportedError, match=r"derivative.*test_tangent_kernel"):
        net.ntk(X)


def test_a_derivative_that_is_that_of_the_value_is_not():
    np.testing.assert_allclose(
        two_layers(relu_by_hand).ntk(X), two_layers(jax.nn.relu).ntk(X), rtol=1e-13
    )
