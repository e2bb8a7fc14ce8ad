"""The networks of the demonstration, against kernels computed by hand in numpy."""

import jax
import numpy as np
import pytest

import widelimit as wl
from widelimit.examples import digits

IMAGES = digits.load().images[:3]


def relu_dual(k, v1, v2):
    """E relu(u) relu(v) for covariance k and variances v1, v2 (Cho & Saul 2009)."""
    scale = np.sqrt(v1 * v2)
    c = np.clip(k / scale, -1, 1)
    return scale * (np.sqrt(1 - c * c) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)


def mlp_kernel(x):
    flat = x.reshape(len(x), -1)
    k = 2 * flat @ flat.T / flat.shape[1] + 0.1
    for layer in range(3):
        k = relu_dual(k, np.diag(k)[:, None], np.diag(k))
        k = 2 * k + 0.1 if layer < 2 else k
    return k


def rnn_kernel(x):
    data = np.einsum("iat,jbt->ijab", x, x) / 8 + 0.1
    own = np.einsum("iitt->it", data).copy()
    for t in range(1, 8):
        own[:, t] += own[:, t - 1] / 2  # E relu(u)^2 is half the variance
    state = np.zeros((len(x), len(x), 9, 9))
    for t in range(8):
        for s in range(8):
            g = state[..., t, s] + data[..., t, s]
            state[..., t + 1, s + 1] = relu_dual(g, own[:, t, None], own[:, s])
    return state[..., 1:, 1:].mean((-1, -2))


def patch_sum(k, size, stride):
    """Sum over the 3 x 3 offsets of both positions together, with zero padding."""
    out = -(-size // stride)
    total = max((out - 1) * stride + 3 - size, 0)
    low, high = total // 2, total - total // 2
    k = np.pad(k.reshape(k.shape[:2] + (size,) * 4), [(0, 0)] * 2 + [(low, high)] * 4)
    result = np.zeros(k.shape[:2] + (out,) * 4)
    for a in range(3):
        for b in range(3):
            i = slice(a, a + stride * (out - 1) + 1, stride)
            j = slice(b, b + stride * (out - 1) + 1, stride)
            result += k[:, :, i, j, i, j]
    return result.reshape(k.shape[:2] + (out * out,) * 2), out


def cnn_kernel(x):
    flat = x.reshape(len(x), -1)
    k, size = np.einsum("ip,jq->ijpq", flat, flat), x.shape[1]
    for stride in (2, 1, 1):
        k, size = patch_sum(k, size, stride)
        k = 2 * k / 9 + 0.1
        own = np.einsum("iipp->ip", k)
        k = relu_dual(k, own[:, None, :, None], own[None, :, None, :])
    return k.mean((-1, -2))


NETWORKS = {
    "mlp": (digits.mlp, digits.params_mlp, mlp_kernel),
    "cnn": (digits.cnn, digits.params_cnn, cnn_kernel),
    "rnn": (digits.rnn, digits.params_rnn, rnn_kernel),
}


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", pytest.param("rnn", marks=pytest.mark.slow)]
)
def test_kernels_are_those_computed_by_hand(name):
    f, params, kernel = NETWORKS[name]
    k = wl.limit(f, params).nngp(IMAGES)
    # arccos costs the hand-written kernel half of its digits near the diagonal.
    np.testing.assert_allclose(k, kernel(IMAGES), rtol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_at_finite_width(name):
    f, params, _ = NETWORKS[name]
    at_width, theta = wl.limit(f, params).at(n=16, key=jax.random.key(0))
    out = at_width(theta, IMAGES)
    assert out.shape == (3, 10)
    assert np.isfinite(out).all()


def test_the_data_are_the_digits():
    data = digits.load()
    assert data.images.shape == (1797, 8, 8)
    assert (data.images.min(), data.images.max()) == (0, 1)
    assert (data.targets.argmax(1) == data.labels).all()
    np.testing.assert_allclose(data.targets.sum(1), 0, atol=1e-12)
