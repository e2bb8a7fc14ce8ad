"""Networks that use a matrix and its transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply, m, n

import widelimit as wl

X = np.random.default_rng(3).normal(size=(3, 4))
PARAMS = {
    "U": wl.normal((4, n)),
    "W": wl.normal((n, m), std=1.2),
    "v": wl.normal((n, 1)),
}


def autoencoder(p, x):
    """Tied: the decoder is the transpose of the encoder."""
    h = jnp.tanh(apply(p["U"], x))
    code = wl.tap("code", jax.nn.relu(apply(p["W"], h)))
    back = wl.tap("back", jnp.tanh(code @ p["W"].T / jnp.sqrt(code.shape[-1])))
    return apply(p["v"], back)


def symmetric(p, x):
    """A recurrence with a symmetric matrix."""
    h = jnp.tanh(apply(p["U"], x))
    for _ in range(2):
        h = jnp.tanh(h @ (p["A"] + p["A"].T) / jnp.sqrt(h.shape[-1]))
    return apply(p["v"], h)


def untied(p, x):
    h = jnp.tanh(apply(p["U"], x))
    code = wl.tap("code", jax.nn.relu(apply(p["W"], h)))
    back = wl.tap("back", jnp.tanh(code @ p["Q"].T / jnp.sqrt(code.shape[-1])))
    return apply(p["v"], back)


SYMMETRIC = {"U": PARAMS["U"], "A": wl.normal((n, n), std=0.7), "v": PARAMS["v"]}


@pytest.mark.parametrize(
    ("f", "params"),
    [
        (autoencoder, PARAMS),
        pytest.param(symmetric, SYMMETRIC, marks=pytest.mark.slow),
    ],
)
def test_limit_agrees_with_finite_networks(f, params):
    result = wl.limit(f, params).check(X, widths=(64, 512), seeds=16)
    assert result.passed, str(result)


@pytest.mark.slow
def test_a_tied_decoder_is_not_an_independent_one():
    tied = wl.limit(autoencoder, PARAMS).forward(X)["back"]
    free = {**PARAMS, "Q": wl.normal((n, m), std=1.2)}
    other = wl.limit(untied, free).forward(X)["back"]
    assert np.abs(tied - other).max() > 0.05
    result = wl.finite.check(untied, free, X, {"back": tied}, (64, 512), 16)
    assert not result.passed


@pytest.mark.slow
def test_explain_names_the_theorem_and_the_program_keeps_its_transpose():
    net = wl.limit(autoencoder, PARAMS)
    assert "Theorem 6" in str(net.explain(X))
    assert "W" in net.explain(X).theorem
    assert "^T" in str(net.program(X)) or ".T" in str(net.program(X))
