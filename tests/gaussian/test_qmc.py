import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.gaussian import Accuracy, estimate, expect
from widelimit.gaussian._qmc import normal_points, psd_root
from widelimit.scalar import from_callable


def _rows(matrix):
    return [[jnp.asarray(c) for c in row] for row in matrix]


def _dense(root):
    return np.array([[0.0 if r is None else float(r) for r in row] for row in root])


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_root_of_a_singular_covariance(rank):
    rng = np.random.default_rng(rank)
    factor = rng.normal(size=(4, rank))
    cov = factor @ factor.T
    root = _dense(psd_root(_rows(cov)))
    assert np.allclose(root @ root.T, cov, rtol=0, atol=1e-13)
    assert np.all(np.triu(root, 1) == 0)


def test_root_keeps_structural_zeros():
    one, none = jnp.asarray(1.0), None
    root = psd_root([[one, none, one], [none, one, none], [one, none, one + 1]])
    assert root[1][0] is None
    assert root[2][1] is None
    assert float(root[2][2]) == 1.0


def test_root_of_equal_variables_has_a_finite_derivative():
    def total(cov):
        root = psd_root([[cov[i, j] for j in range(3)] for i in range(3)])
        return sum(r for row in root for r in row if r is not None)

    for cov in (jnp.ones((3, 3)), jnp.zeros((3, 3))):
        assert np.all(np.isfinite(jax.grad(total)(cov)))


def test_points_are_normal_and_scrambles_differ():
    points = normal_points(5, 12, 0)
    assert points.shape == (4096, 5)
    assert np.allclose(points.mean(axis=0), 0, atol=2e-3)
    assert np.allclose(np.cov(points.T), np.eye(5), atol=1e-2)
    assert not np.array_equal(points, normal_points(5, 12, 1))
    assert np.array_equal(points, normal_points(5, 12, 0))


def _gates(u, v, w, x):
    return jax.nn.sigmoid(u) * jnp.tanh(v) * jax.nn.sigmoid(w) * jnp.tanh(x)


@pytest.mark.slow
def test_equal_variables_reduce_to_one():
    found = estimate(_gates, np.full(4, 0.3), np.full((4, 4), 1.7))
    one = estimate(lambda z: jax.nn.sigmoid(z) ** 2 * jnp.tanh(z) ** 2, 0.3, 1.7)
    assert found.route == "QMC"
    assert found.stderr > 0
    assert one.error < 1e-12
    assert abs(found.value - one.value) <= found.error


def _separable_gates(cov):
    """E of the gates when (u, w) and (v, x) are independent: two exact duals."""
    left = estimate(
        lambda u, w: jax.nn.sigmoid(u) * jax.nn.sigmoid(w), [0.3, 0], cov[::2, ::2]
    )
    right = estimate(
        lambda v, x: jnp.tanh(v) * jnp.tanh(x), [-0.2, 0.5], cov[1::2, 1::2]
    )
    return left.value * right.value


@pytest.mark.slow
def test_error_bars_are_honest():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        cov = np.zeros((4, 4))
        for i in range(2):
            block = rng.normal(size=(2, 2))
            cov[i::2, i::2] = block @ block.T
        # Numbers, not structural zeros: the route cannot know about independence.
        found = estimate(_gates, [0.3, -0.2, 0, 0.5], cov)
        assert found.route == "QMC"
        inside += abs(found.value - _separable_gates(cov)) <= found.error
    assert inside >= 96


def test_derivative_at_a_singular_covariance():
    f = from_callable(_gates, 4)

    def value(scale):
        rows = [[scale * 1.3] * 4 for _ in range(4)]
        return expect([f], [None] * 4, rows, (), Accuracy(0))

    one = from_callable(lambda z: jax.nn.sigmoid(z) ** 2 * jnp.tanh(z) ** 2, 1)
    exact = jax.grad(lambda s: expect([one], [None], [[1.3 * s]]))(1.0)
    found = jax.grad(value)(1.0)
    assert abs(found - exact) < 2e-3
