"""The mean of a network's limit, and terms of order n^-1/2 that make one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply
from scipy.special import expit

import widelimit as wl
from widelimit import InputError, NoLimitError, UnsupportedError

n, m = wl.width("n"), wl.width("m", 2.0)
X = np.random.default_rng(0).normal(size=(3, 4))
PARAMS = {
    "U": wl.normal((4, n), std=0.8),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 1), std=1.5),
}


def nudged(p, x):
    """A hidden vector that moves by n^-1/2 along its readout's weights."""
    h = apply(p["U"], x)
    return apply(p["v"], jnp.tanh(h + p["v"][:, 0] * jnp.cos(h) / jnp.sqrt(n)))


def nudged_back(p, x):
    """The same through a matrix and its transpose."""
    h = jnp.tanh(apply(p["U"], x))
    slope = (p["v"][:, 0] * jnp.cos(apply(p["W"], h))) @ p["W"].T / jnp.sqrt(n)
    return apply(p["v"], jnp.tanh(apply(p["W"], h + slope / jnp.sqrt(n))))


def nudged_before_normalisation(p, x):
    """The scalars that normalise a layer move, too."""
    h = apply(p["U"], x)
    h = h + (0.3 + p["v"][:, 0]) * jnp.tanh(h) / jnp.sqrt(n)
    h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 0.1)
    return apply(p["v"], jax.nn.relu(h))


def nudged_weights(p, x):
    """The readout's weights move by n^-1/2."""
    h = jax.nn.sigmoid(apply(p["U"], x))
    v = p["v"][:, 0] - (h[:1] + p["v"][:, 0] * h[:1] ** 2) / jnp.sqrt(n)
    return jnp.sum(h * v, axis=-1) / jnp.sqrt(n)


def nudged_factor(p, x):
    """A function of nothing but a term of order n^-1/2."""
    h = jax.nn.relu(apply(p["U"], x))
    return apply(p["v"], h * jnp.exp(2.0 * p["v"][:, 0] * h / jnp.sqrt(n)))


def second_moment(h):
    return jnp.mean(h**2, axis=-1, keepdims=True)


def nudged_before_unequal_widths(p, x):
    """Widths of other ratios, positions, and a constant in the output."""
    h = apply(p["A"], x.reshape(-1, 2, 2))
    g = jnp.tanh(apply(p["B"], h + p["b"] / jnp.sqrt(n)))
    back = (p["v"][:, 0] * (1.0 - g**2)) @ p["B"].T / jnp.sqrt(n)
    g = jnp.tanh(apply(p["B"], h + p["b"] / jnp.sqrt(n) + 0.5 * back / jnp.sqrt(n)))
    return apply(p["v"], g[:, 0] + g[:, 1]) + second_moment(g).mean(axis=1)


OTHERS = {
    "A": wl.normal((2, n)),
    "B": wl.normal((n, m)),
    "b": wl.normal((n,)),
    "v": wl.normal((m, 1)),
}

NETWORKS = {
    f.__name__: (f, params)
    for f, params in (
        (nudged, PARAMS),
        (nudged_back, PARAMS),
        (nudged_before_normalisation, PARAMS),
        (nudged_weights, PARAMS),
        (nudged_factor, PARAMS),
        (nudged_before_unequal_widths, OTHERS),
    )
}


@pytest.mark.parametrize("name", ["nudged"])
def test_means_agree_with_networks(name):
    check(name, (128, 512), seeds=24)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_means_agree_with_more_networks(name):
    check(name, (256, 1024), seeds=48)


def check(name, widths, seeds):
    f, params = NETWORKS[name]
    net = wl.limit(f, params)
    result = net.check(X, widths, seeds)
    assert "output:mean" in str(result)
    assert result.passed, str(result)
    # The comparison would see a mean that is forgotten.
    mean = np.asarray(net.mean(X)).ravel()
    deviation = np.sqrt(np.diag(np.asarray(net.nngp(X)).reshape(3, 3)))
    assert (np.abs(mean) > 0.2 * deviation).all()


def gaussian_mean(f, variance):
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return weights @ f(np.sqrt(variance) * nodes) / np.sqrt(2.0 * np.pi)


def test_the_mean_is_the_integral():
    variances = 0.64 * (X**2).mean(axis=1)
    wanted = [
        1.5**2 * gaussian_mean(lambda h: (1.0 - np.tanh(h) ** 2) * np.cos(h), v)
        for v in variances
    ]
    found = np.asarray(wl.limit(nudged, PARAMS).mean(X))
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-10)


def test_moved_weights_have_the_integral_of_both():
    variances = 0.64 * (X**2).mean(axis=1)
    covariances = 0.64 * (X @ X[0]) / 4

    def product(f, i):
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        weights = np.outer(weights, weights) / (2.0 * np.pi)
        a = np.sqrt(variances[0]) * nodes[:, None]
        rest = max(variances[i] - covariances[i] ** 2 / variances[0], 0.0)
        slope = covariances[i] / variances[0]
        return (weights * f(slope * a + np.sqrt(rest) * nodes, a)).sum()

    wanted = [-product(lambda h, h0: expit(h) * expit(h0), i) for i in (1, 2)]
    found = np.asarray(wl.limit(nudged_weights, PARAMS).mean(X))
    np.testing.assert_allclose(found[1:], wanted, rtol=1e-9)


def test_the_covariance_is_that_without_the_term():
    def plain(p, x):
        return apply(p["v"], jnp.tanh(apply(p["U"], x)))

    one, two = wl.limit(nudged, PARAMS), wl.limit(plain, PARAMS)
    np.testing.assert_allclose(one.nngp(X), two.nngp(X), rtol=1e-13)
    assert not np.asarray(two.mean(X)).any()


def test_independent_weights_see_no_term():
    def f(p, x):
        h = apply(p["U"], x)
        return apply(p["v"], jnp.tanh(h + p["b"] * h / jnp.sqrt(n)))

    net = wl.limit(f, PARAMS | {"b": wl.normal((n,))})
    assert not np.asarray(net.mean(X)).any()
    assert "perturbation" not in str(net.program(X))
    (dropped,) = net.explain(X).dropped
    assert "n^-1/2" in dropped


def test_a_constant_output_is_its_mean():
    net = wl.limit(lambda p, x: jnp.mean(jnp.abs(x @ p["U"]), axis=-1), PARAMS)
    wanted = 0.8 * np.sqrt(2.0 / np.pi) * np.linalg.norm(X, axis=1)
    np.testing.assert_allclose(net.mean(X), wanted, rtol=1e-13)


def test_inputs_that_interact_have_one_mean():
    def f(p, x):
        h = jnp.tanh(apply(p["U"], x))
        return apply(p["v"], h) + jnp.mean(h @ h.T, axis=1, keepdims=True) / n

    net = wl.limit(f, PARAMS)
    k = np.asarray(wl.limit(lambda p, x: apply(p["v"], jnp.tanh(apply(p["U"], x))),
                            PARAMS | {"v": wl.normal((n, 1))}).nngp(X))  # fmt: skip
    np.testing.assert_allclose(net.mean(X)[:, 0], k.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    "jump", [jnp.sign, lambda h: jnp.where(h > 0.1, h, 0.0), jnp.round]
)
def test_a_function_that_jumps_is_refused(jump):
    def f(p, x):
        h = apply(p["U"], x)
        return apply(p["v"], jump(h + p["v"][:, 0] / jnp.sqrt(n)))

    with pytest.raises(UnsupportedError, match="jumps") as error:
        wl.limit(f, PARAMS).mean(X)
    assert "test_mean.py" in str(error.value)


def test_errors():
    net = wl.limit(lambda p, x: x @ p["U"] @ p["v"], PARAMS)
    with pytest.raises(NoLimitError, match="sqrt"):
        net.mean(X)
    with pytest.raises(InputError):
        wl.limit(nudged, PARAMS).mean(np.full((2, 4), np.nan))
