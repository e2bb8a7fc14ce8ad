"""Derivatives of kernels by few numbers are those of JAX, in every way to ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.kernels import _forwards

X = np.random.default_rng(0).normal(size=(5, 3))
N = wl.width("n")


def kernels(stds, x=X):
    """Both kernels of a network whose layers share the numbers `stds`."""
    weight, bias = stds
    params = {
        "u": wl.normal((3, N), std=weight),
        "b": wl.normal((N,), std=bias),
        "w": wl.normal((N, N), std=weight),
        "v": wl.normal((N, 1)),
    }

    def network(p, x):
        h = jax.nn.relu(x @ p["u"] / np.sqrt(3) + p["b"])
        h = jax.lax.erf(h @ p["w"] / jnp.sqrt(h.shape[-1]))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    found = wl.limit(network, params).kernels(x)
    return jnp.stack([found.nngp, found.ntk])


AT = jnp.asarray([1.3, 0.4])


@pytest.fixture
def calls(monkeypatch):
    """How often derivatives go forwards."""
    seen = []
    plain = _forwards._by_columns

    def spy(*args):
        seen.append(1)
        return plain(*args)

    monkeypatch.setattr(_forwards, "_by_columns", spy)
    return seen


def test_gradients_go_forwards_and_are_those_of_differences(calls):
    weigh = np.random.default_rng(1).normal(size=(2, 5, 5))

    def total(stds):
        return (kernels(stds) * weigh).sum()

    found = jax.grad(total)(AT)
    assert calls
    step = 1e-5
    for k in range(2):
        e = step * np.eye(2)[k]
        slope = (total(AT + e) - total(AT - e)) / (2 * step)
        np.testing.assert_allclose(found[k], slope, rtol=1e-8)


@pytest.mark.slow
def test_every_transformation_gives_the_same(monkeypatch, calls):
    def total(stds):
        return kernels(stds).sum()

    def found():
        tangent = jnp.asarray([0.7, -0.2])
        return (
            jax.grad(total)(AT),
            jax.jit(jax.grad(total))(AT),
            jax.jvp(total, (AT,), (tangent,))[1],
            jax.vmap(jax.grad(total))(jnp.stack([AT, 1.1 * AT]))[0],
            jax.jacrev(kernels)(AT),
            jax.jacfwd(kernels)(AT),
        )

    forwards = found()
    assert calls
    monkeypatch.setattr(_forwards, "_FEW", 0)
    calls.clear()
    backwards = found()
    assert not calls
    for one, two in zip(forwards, backwards, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_second_derivatives_are_those_of_differences():
    def total(std):
        return kernels((std, 0.4)).sum()

    step = 1e-4
    slope = jax.grad(total)
    right = (slope(1.3 + step) - slope(1.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.hessian(total)(1.3), right, rtol=1e-6)


def test_inputs_that_move_too_go_backwards(calls):
    def total(std, x):
        return kernels((std, 0.4), x).sum()

    slope, moved = jax.grad(total, (0, 1))(1.3, jnp.asarray(X))
    assert not calls
    alone = jax.grad(total)(1.3, jnp.asarray(X))
    np.testing.assert_allclose(slope, alone, rtol=1e-10)
    e = 1e-5 * np.random.default_rng(2).normal(size=X.shape)
    right = (total(1.3, X + e) - total(1.3, X - e)) / 2
    np.testing.assert_allclose((moved * e).sum(), right, rtol=1e-7)
