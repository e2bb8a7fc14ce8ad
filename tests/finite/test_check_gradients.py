"""Gradients at taps: `net.check(x, gradients=True)` against those of `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import finite

n = wl.width("n")
m = wl.width("m", ratio=1.5)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4))
SEQUENCES = RNG.standard_normal((2, 3, 4))
SMALL = {"widths": (64, 256), "seeds": 12}


def dense(w, x):
    return x @ w / jnp.sqrt(w.shape[0])


def mlp(p, x):
    """Two widths; h is also read beside the last layer."""
    h = wl.tap("h", jax.nn.relu(dense(p["U"], x)))
    z = wl.tap("z", jnp.tanh(dense(p["W"], h)))
    return dense(p["v"], z) + dense(p["w"], h)


MLP = {
    "U": wl.normal((4, n), std=1.4),
    "W": wl.normal((n, m), std=1.2),
    "v": wl.normal((m, 2), std=1.1),
    "w": wl.normal((n, 2), std=0.5),
}


def rnn(p, x):
    """One matrix for all steps, which are an index axis of the tap."""

    def step(h, row):
        h = wl.tap("h", jnp.tanh(dense(p["W"], h) + dense(p["U"], row)))
        return h, None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), n)), jnp.swapaxes(x, 0, 1))
    return dense(p["v"], h)


RNN = {
    "W": wl.normal((n, n), std=1.2),
    "U": wl.normal((4, n)),
    "v": wl.normal((n, 2)),
}


def cnn(p, x):
    """Positions are an index axis; (batch, position, channel)."""

    def conv(w, h):
        y = jax.lax.conv_general_dilated(
            h, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y / jnp.sqrt(3 * h.shape[-1])

    g = wl.tap("g", conv(p["F"], x))
    h = wl.tap("h", jax.nn.relu(conv(p["G"], jax.nn.relu(g))))
    return dense(p["v"], h.mean(1))


CNN = {
    "F": wl.normal((3, 4, n), std=1.3),
    "G": wl.normal((3, n, n), std=1.3),
    "v": wl.normal((n, 2)),
}


def tied(p, x):
    """A matrix and its transpose: the backward pass is not independent of it."""
    h = wl.tap("h", jnp.tanh(dense(p["U"], x)))
    z = wl.tap("z", dense(p["W"], h))
    return dense(p["v"], jnp.tanh(dense(p.get("V", p["W"].T), jnp.sin(z)) + z))


TIED = {
    "U": wl.normal((4, n), std=1.2),
    "W": wl.normal((n, n), std=1.3),
    "v": wl.normal((n, 2)),
}


def centred(p, x):
    """Inputs of a batch interact: an output is differentiated at its own input."""
    h = wl.tap("h", dense(p["U"], x))
    return dense(p["v"], jax.nn.relu(h - 0.5 * h.mean(0)))


CENTRED = {"U": wl.normal((4, n)), "v": wl.normal((n, 2))}


def quantities(result):
    return {q for q in result.quantities if q.startswith("gradient:")}


@pytest.mark.parametrize(
    ("f", "params", "x"),
    [
        (mlp, MLP, X),
        pytest.param(rnn, RNN, SEQUENCES, marks=pytest.mark.slow),
        pytest.param(cnn, CNN, SEQUENCES, marks=pytest.mark.slow),
        pytest.param(centred, CENTRED, X, marks=pytest.mark.slow),
        pytest.param(tied, TIED, X, marks=pytest.mark.slow),
    ],
)
def test_the_gradients_of_finite_networks_converge_to_the_limit(f, params, x):
    net = wl.limit(f, params)
    result = net.check(x, gradients=True, **SMALL)
    assert quantities(result) == {f"gradient:{k}" for k in net.statistics(x)}
    assert result.passed, result.table()
    assert all(-0.95 < result.slopes[q] < -0.2 for q in quantities(result))


@pytest.mark.slow
@pytest.mark.parametrize(("f", "params", "x"), [(mlp, MLP, X), (rnn, RNN, SEQUENCES)])
def test_a_wrong_gradient_is_caught(f, params, x):
    wrong = {
        f"gradient:{k}": 1.2 * s.gradient
        for k, s in wl.limit(f, params).statistics(x).items()
    }
    result = finite.check(f, params, x, wrong, widths=(256,), seeds=24)
    assert not any(result.verdicts.values())


@pytest.mark.slow
def test_gradient_independence_is_caught_where_it_fails():
    """Theorem 5 has the gradients that a network with a fresh W^T has."""
    fresh = {**TIED, "V": wl.normal((n, n), std=1.3)}
    wrong = wl.limit(tied, fresh).statistics(X)["h"].gradient
    right = wl.limit(tied, TIED).statistics(X)["h"].gradient
    for gradient, passes in ((right, True), (wrong, False)):
        goal = {"gradient:h": gradient}
        result = finite.check(tied, TIED, X, goal, widths=(512,), seeds=24)
        assert result.passed is passes, result.table()


@pytest.mark.slow
def test_a_mean_has_gradients_but_no_covariance():
    params = {"U": wl.normal((4, n)), "W": wl.normal((n, n))}

    def f(p, x):
        h = wl.tap("h", dense(p["U"], x) + 1.0)
        return jnp.sqrt(n) * jnp.mean(dense(p["W"], h) ** 2, -1)

    result = wl.limit(f, params).check(X, gradients=True, ntk=True, **SMALL)
    assert result.passed, result.table()
    assert set(result.quantities) == {"h", "gradient:h", "ntk"}
    assert any("output" in note for note in result.notes)


@pytest.mark.slow
def test_one_position_of_the_output_is_differentiated():
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = wl.tap("h", dense(p["U"], x))
        return dense(p["v"], jnp.cumsum(jnp.sin(h), 1))

    net = wl.limit(f, params)
    with pytest.raises(wl.InputError, match=r"axes \(3,\)"):
        net.check(SEQUENCES, gradients=True, **SMALL)
    assert net.check(SEQUENCES, gradients=True, output=1, **SMALL).passed
    wrong = {"gradient:h": net.statistics(SEQUENCES, output=2)["h"].gradient}
    result = finite.check(
        f, params, SEQUENCES, wrong, widths=(256,), seeds=12, output=(1,)
    )
    assert not result.passed
    with pytest.raises(wl.InputError, match="one position of the output"):
        finite.check(f, params, SEQUENCES, wrong, widths=(256,))


def test_a_wide_output_is_differentiated_in_random_directions():
    """The mean over n outputs of the sum of squares: std^2 E[cos^2], one width."""
    params = {"U": wl.normal((4, n)), "W": wl.normal((n, n), std=1.5)}

    def f(p, x):
        return dense(p["W"], jnp.sin(wl.tap("h", dense(p["U"], x))))

    net = wl.limit(f, params)
    gradient = np.diag(net.statistics(X)["h"].gradient)
    variance = np.sum(X**2, 1) / 4
    np.testing.assert_allclose(
        gradient, 2.25 * (1 + np.exp(-2 * variance)) / 2, rtol=1e-10
    )
    assert net.check(X, gradients=True, **SMALL).passed


def test_a_tapped_value_is_differentiated_by_all_its_uses():
    """Also where the result of the tap is thrown away."""
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = dense(p["U"], x)
        wl.tap("h", h)
        return dense(p["v"], jnp.sin(h) + jax.jit(lambda h: wl.tap("g", h) * h)(h))

    result = wl.limit(f, params).check(X, gradients=True, **SMALL)
    assert result.passed, result.table()


@pytest.mark.parametrize(
    ("tapped", "error", "message"),
    [
        (lambda h: h / jnp.sqrt(n), wl.NoLimitError, r"diverges like n\^1/2"),
        (lambda h: h.mean(-1, keepdims=True), wl.UnsupportedError, "no wide vector"),
    ],
)
def test_a_gradient_without_a_limit_is_refused(tapped, error, message):
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jnp.exp(dense(p["U"], x))
        small = wl.tap("small", tapped(h))
        return dense(p["v"], h + small)

    with pytest.raises(error, match=message):
        wl.limit(f, params).check(X, gradients=True, **SMALL)


@pytest.mark.slow
def test_heads_and_blocks_of_a_width():
    """A tap of heads, one of two widths side by side, one of stacked gates."""
    params = {
        "U": wl.normal((4, 2 * n), std=1.3),
        "W": wl.normal((n, m), std=1.2),
        "v": wl.normal((n + m, 2)),
    }

    def f(p, x):
        gates = wl.tap("gates", dense(p["U"], x))
        a, b = jnp.split(gates, 2, axis=-1)
        h = wl.tap("heads", (jnp.tanh(a) * b).reshape(len(x), 2, -1))
        h = (h * jnp.array([1.0, 2.0])[:, None]).reshape(len(x), -1)
        both = wl.tap("both", jnp.concatenate([h, dense(p["W"], a)], -1))
        return dense(p["v"], jnp.sin(both))

    result = wl.limit(f, params).check(X, gradients=True, **SMALL)
    assert quantities(result) == {"gradient:gates", "gradient:heads", "gradient:both"}
    assert result.passed, result.table()
