"""Means over draws of finite networks, against the limit in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _errors

# Networks are drawn and compiled.
pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3))
WIDTH = 32


def init_fn(key, shape):
    """One hidden layer in the NTK parameterisation."""
    one, two = jax.random.split(key)
    params = {
        "U": jax.random.normal(one, (shape[-1], WIDTH)),
        "v": jax.random.normal(two, (WIDTH, 2)),
    }
    return (*shape[:-1], 2), params


def apply_fn(params, x):
    h = jax.nn.relu(x @ params["U"] / jnp.sqrt(x.shape[-1]))
    return h @ params["v"] / jnp.sqrt(WIDTH)


def limits(x1, x2):
    """Cho & Saul (2009), eq. 1, of degrees 1 and 0: exact at every width."""
    k = x1 @ x2.T / 3
    a, b = (np.linalg.norm(x, axis=1) / np.sqrt(3) for x in (x1, x2))
    cosine = np.clip(k / np.outer(a, b), -1, 1)
    angle = np.arccos(cosine)
    nngp = np.outer(a, b) * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)
    return nngp, nngp + k * (np.pi - angle) / (2 * np.pi)


def test_means_tend_to_the_limit():
    count = 200
    kernel_fn = wl.monte_carlo_kernel_fn(
        init_fn, apply_fn, KEY, range(1, count + 1), vmap_axes=0
    )
    means = list(kernel_fn(X, Y))
    for name, exact in zip(("nngp", "ntk"), limits(X, Y), strict=True):
        totals = np.stack([n * getattr(k, name) for n, k in enumerate(means, 1)])
        draws = np.diff(totals, axis=0, prepend=0)
        error = np.std(draws, axis=0, ddof=1) / np.sqrt(count)
        z = (getattr(means[-1], name) - exact) / error
        assert np.abs(z).max() < 4.5  # 8 entries
        assert error.max() < 0.15 * np.abs(exact).max()


@functools.partial(jax.jit, static_argnums=0)
def by_hand(n, x1, x2):
    """Every draw with its own key: of parameters, and of the network."""
    key, total = KEY, 0.0
    for _ in range(n):
        key, own = jax.random.split(key)
        _, params = init_fn(jax.random.split(own)[0], x1.shape)
        j1, j2 = (jax.jacobian(apply_fn)(params, x) for x in (x1, x2))
        total += sum(jnp.einsum("ni...,mi...->nm", j1[k], j2[k]) for k in params) / 2
    return total / n


def test_one_number_and_several():
    numbers, options = [4, 1, 4], {"batch_size": 2, "implementation": 3}
    several = wl.monte_carlo_kernel_fn(
        init_fn, apply_fn, KEY, iter(numbers), vmap_axes=0, **options
    )
    for x2, get in ((Y, "ntk"), (None, ("ntk", "nngp")), (Y, None)):
        found = list(several(X, x2, get))
        assert len(found) == 2
        for n, kernel in zip((1, 4), found, strict=True):
            expected = by_hand(n, X, X if x2 is None else x2)
            if get == "ntk":
                np.testing.assert_allclose(kernel, expected, rtol=1e-12)
                continue
            assert type(kernel).__name__ == "MonteCarloKernel"
            assert kernel._fields == (get or ("nngp", "ntk"))
            np.testing.assert_allclose(kernel.ntk, expected, rtol=1e-12)
    one = wl.monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 4, vmap_axes=0)
    np.testing.assert_allclose(one(X, Y, "ntk"), by_hand(4, X, Y), rtol=1e-12)


def test_a_network_that_takes_a_key_gets_one_of_every_draw():
    def noisy(params, x, rng=None, shift=0.0):
        return apply_fn(params, x) + jax.random.normal(rng, (2,)) + shift

    kernel_fn = wl.monte_carlo_kernel_fn(init_fn, noisy, KEY, [1, 2], trace_axes=())
    first, both = kernel_fn(X, X.copy(), "nngp", shift=10.0)
    key, expected = KEY, []
    for _ in range(2):
        key, own = jax.random.split(key)
        init_key, rng = jax.random.split(own)
        out = noisy(init_fn(init_key, X.shape)[1], X, rng=rng, shift=10.0)
        expected.append(jnp.einsum("ni,mj->nmij", out, out))
    np.testing.assert_allclose(first, expected[0], rtol=1e-12)
    np.testing.assert_allclose(both, (expected[0] + expected[1]) / 2, rtol=1e-12)


def test_several_inputs_and_outputs():
    def two_inits(key, shapes):
        keys = jax.random.split(key)
        pairs = [init_fn(k, s) for k, s in zip(keys, shapes, strict=True)]
        return tuple(s for s, _ in pairs), [p for _, p in pairs]

    def two(params, xs):
        return tuple(apply_fn(p, x) for p, x in zip(params, xs, strict=True))

    kernel_fn = wl.monte_carlo_kernel_fn(two_inits, two, KEY, 2, vmap_axes=0)
    found = kernel_fn((X, X), (Y, Y))
    assert isinstance(found, tuple)
    assert [type(k).__name__ for k in found] == ["MonteCarloKernel"] * 2
    assert found[0].ntk.shape == (4, 2)
    assert np.abs(found[0].ntk - found[1].ntk).max() > 1e-3


@pytest.mark.parametrize("n_samples", [0, -1, 1.5, "many", [], [1, 0], [2.0], True])
def test_numbers_of_draws_are_positive_whole_numbers(n_samples):
    with pytest.raises(_errors.InputError, match="positive whole number"):
        wl.monte_carlo_kernel_fn(init_fn, apply_fn, KEY, n_samples)


def test_other_errors_say_what_to_do():
    with pytest.raises(_errors.InputError, match="`apply_fn` should be a function"):
        wl.monte_carlo_kernel_fn(init_fn, None, KEY, 2)
    with pytest.raises(_errors.InputError, match="`implementation`"):
        wl.monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 2, implementation=7)
    kernel_fn = wl.monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 2)
    with pytest.raises(_errors.InputError, match="`get`"):
        kernel_fn(X, None, "cov1")
