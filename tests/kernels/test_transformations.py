"""What users do to kernels: jit, vmap and gradients, in single and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

n = wl.width("n")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
WEIGHTS = RNG.normal(size=(4, 4))


def network(activation, std, bias=0.4):
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    params |= {"W": wl.normal((n, n), std=std), "b": wl.normal((n,), std=bias)}

    def f(p, x):
        h = activation(x @ p["U"])
        h = activation(h @ p["W"] / jnp.sqrt(h.shape[-1]) + p["b"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


def kernel(kind, activation, std, x, y=None):
    return getattr(network(activation, std), kind)(x, y)


def transformed(kind, activation, dtype):
    """Values under jit and vmap, and gradients, of one precision."""
    x, weights = jnp.asarray(X, dtype), jnp.asarray(WEIGHTS, dtype)
    std = jnp.asarray(1.3, dtype)

    def total(x, std):
        return jnp.sum(weights * kernel(kind, activation, std, x))

    def cross(x, y):
        return jnp.sum(weights * kernel(kind, activation, 1.3, x, y))

    batch = jnp.stack([x, 0.5 * x])
    return {
        "jit": jax.jit(lambda x: kernel(kind, activation, 1.3, x))(x),
        "vmap": jax.vmap(lambda x: kernel(kind, activation, 1.3, x))(batch),
        "by x": jax.jit(jax.grad(total))(x, std),
        "by std": jax.jit(jax.grad(total, argnums=1))(x, std),
        "by y": jax.jit(jax.grad(cross, argnums=1))(x, 0.7 * x + 0.1),
    }


ACTIVATIONS = {"relu": jax.nn.relu, "erf": jax.lax.erf}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_single_precision_is_double_precision_rounded(kind, name):
    single, double = (
        transformed(kind, ACTIVATIONS[name], dtype)
        for dtype in (np.float32, np.float64)
    )
    for what, wanted in double.items():
        assert single[what].dtype == np.float32
        assert wanted.dtype == np.float64
        error = np.abs(np.asarray(single[what]) - wanted).max()
        assert error <= 1e-5 * np.abs(wanted).max(), what
    # And double precision is right: plain calls, and differences.
    alone = np.asarray(kernel(kind, ACTIVATIONS[name], 1.3, X))
    np.testing.assert_allclose(double["jit"], alone, rtol=1e-12)
    np.testing.assert_allclose(double["vmap"][0], alone, rtol=1e-12)
    step = 1e-5
    up, down = (
        np.sum(WEIGHTS * kernel(kind, ACTIVATIONS[name], 1.3 + s, X))
        for s in (step, -step)
    )
    np.testing.assert_allclose(double["by std"], (up - down) / (2 * step), rtol=1e-7)
