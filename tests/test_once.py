"""Arrays that XLA computes once: what they are, and that nothing is copied for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit._jax import jit_for_cpu
from widelimit._once import once, together, unless

X = jnp.asarray(np.random.default_rng(0).normal(size=(100, 100)))


@jax.jit
def barred(true, x):
    return once(true, jnp.sin(x))


@pytest.mark.parametrize("size", [3, 100])
def test_the_array_is_the_array_and_its_derivatives(size):
    x = X[:size, :size]
    true = jnp.asarray(True)
    np.testing.assert_array_equal(barred(true, x), jax.jit(jnp.sin)(x))
    value, dot = jax.jvp(lambda x: barred(true, x), (x,), (x,))
    np.testing.assert_array_equal(value, barred(true, x))
    np.testing.assert_allclose(dot, jnp.cos(x) * x, rtol=1e-14)
    slope = jax.grad(lambda x: (x * barred(true, x)).sum())(x)
    np.testing.assert_allclose(slope, jnp.sin(x) + x * jnp.cos(x), rtol=1e-12)
    many = jnp.stack([x, 2 * x])
    np.testing.assert_array_equal(
        jax.vmap(barred, (None, 0))(true, many), jnp.sin(many)
    )
    np.testing.assert_array_equal(
        jax.vmap(barred)(jnp.asarray([True, True]), many), jnp.sin(many)
    )


def test_it_is_the_array_whatever_the_truth():
    np.testing.assert_array_equal(barred(jnp.asarray(False), X), jnp.sin(X))


@jax.jit
def waiting(true, x, y):
    return together(true, {"x": jnp.sin(x), "y": y})


def test_arrays_together_and_their_derivatives():
    true, y = jnp.asarray(True), X[0]
    found = waiting(true, X, y)
    np.testing.assert_array_equal(found["x"], jnp.sin(X))
    np.testing.assert_array_equal(found["y"], y)
    _, dot = jax.jvp(lambda x: waiting(true, x, y), (X,), (X,))
    np.testing.assert_allclose(dot["x"], jnp.cos(X) * X, rtol=1e-14)
    np.testing.assert_array_equal(dot["y"], 0)
    slope = jax.grad(lambda x: (x * waiting(true, x, y)["x"]).sum())(X)
    np.testing.assert_allclose(slope, jnp.sin(X) + X * jnp.cos(X), rtol=1e-12)
    many = jax.vmap(waiting, (None, 0, None))(true, jnp.stack([X, 2 * X]), y)
    np.testing.assert_array_equal(many["x"], jnp.sin(jnp.stack([X, 2 * X])))
    np.testing.assert_array_equal(many["y"], jnp.stack([y, y]))


@pytest.mark.parametrize("wrong", [True, False])
def test_unless(wrong):
    found = jax.jit(lambda wrong: unless(wrong, X, lambda x: x + 1))(wrong)
    np.testing.assert_array_equal(found, X + wrong)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on CPUs")
def test_a_layer_before_a_window_is_computed_once_and_not_copied():
    def layer(true, x):
        y = once(true, jnp.pad(jnp.exp(x), 1))
        return sum(y[i : i + 100, j : j + 100] for i in range(3) for j in range(3))

    compiled = jit_for_cpu(layer).lower(jnp.asarray(True), X).compile().as_text()
    assert compiled.count(" exponential(") == 1
    large = [line for line in compiled.splitlines() if "[102,102]" in line]
    assert not any(" copy(" in line for line in large)
