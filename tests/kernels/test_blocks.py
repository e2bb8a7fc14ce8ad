"""Every pair in its place, whatever the tiles and blocks are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.kernels import BlockKernel, _blocks

RNG = np.random.default_rng(0)


def pair(shared, a, b):
    """A kernel with one position axis, that is not symmetric in its positions."""
    return shared * jnp.outer(a, b * b) + jnp.outer(a * a, b) * shared


def kernels():
    """The kernel, and how often each of its parts was traced."""
    traced = {"pair": 0, "same": 0}

    def counted(shared, a, b):
        traced["pair"] += 1
        return pair(shared, a, b)

    def same(shared, a):
        traced["same"] += 1
        return (
            pair(shared, a, a) + 1000.0
        )  # so that the diagonal shows where it is from

    return BlockKernel(counted, same, jnp.transpose), traced


def expected(x, z, symmetric):
    k = np.einsum("ip,jq->ijpq", x, z * z) + np.einsum("ip,jq->ijpq", x * x, z)
    k[np.diag_indices(len(x)) if symmetric else ([], [])] += 1000.0
    return 3.0 * k - (2000.0 * np.eye(len(x))[..., None, None] if symmetric else 0.0)


@pytest.mark.parametrize("size", [1, 12, 31])
@pytest.mark.parametrize("other", [None, 20])
@pytest.mark.parametrize("block", [8, 200, 10**9])
def test_every_pair_is_in_its_place(monkeypatch, size, other, block):
    monkeypatch.setattr(_blocks, "_SIDE", 12)
    monkeypatch.setattr(_blocks, "_BLOCK", block)
    x = RNG.uniform(0.5, 2.0, (size, 2))
    z = None if other is None else RNG.uniform(0.5, 2.0, (other, 2))
    kernel, traced = kernels()
    found = kernel(
        jnp.asarray(3.0), jnp.asarray(x), None if z is None else jnp.asarray(z)
    )
    right = expected(x, x if z is None else z, z is None)
    np.testing.assert_allclose(found, right, rtol=1e-13)
    assert (
        traced["pair"] == 1
    )  # tiles have one shape, and a pair is measured by its trace


def test_progress_goes_to_the_end(monkeypatch):
    monkeypatch.setattr(_blocks, "_SIDE", 4)
    kernel, _ = kernels()
    seen = []
    x = jnp.asarray(RNG.normal(size=(9, 2)))
    kernel(jnp.asarray(1.0), x, None, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 6)  # three by three tiles, without those below the diagonal
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_a_tile_is_measured_by_what_belongs_to_pairs():
    kernel = BlockKernel(lambda s, a, b: jnp.dot(a, b), lambda s, a: a @ a, lambda k: k)
    x = jnp.ones((3, 1000))
    assert kernel._pair_bytes(jnp.asarray(1.0), x, x) == 8
    wide = BlockKernel(
        lambda s, a, b: jnp.outer(a, b).sum(), lambda s, a: a[0], lambda k: k
    )
    assert wide._pair_bytes(jnp.asarray(1.0), x, x) == 8 * 1000**2


n = wl.width("n")
conv = {"w": wl.normal((3, 1, n)), "u": wl.normal((3, n, n)), "v": wl.normal((n, 1))}


def network(p, x):
    dims = ("NWC", "WIO", "NWC")
    for name in "wu":
        scale = np.sqrt(3 * x.shape[-1])
        x = jax.lax.conv_general_dilated(
            x, p[name], (1,), "SAME", dimension_numbers=dims
        )
        x = jax.nn.relu(x / scale)
    return x.mean(1) @ p["v"] / np.sqrt(x.shape[-1])


@pytest.mark.slow
def test_inside_a_jit_and_a_gradient_the_kernel_is_the_same():
    net = wl.limit(network, conv)
    x = jnp.asarray(RNG.normal(size=(4, 6, 1)))
    alone = net.nngp(x)
    np.testing.assert_allclose(jax.jit(net.nngp)(x), alone, rtol=1e-13)
    # Concrete data inside somebody else's trace.
    scaled = jax.jit(lambda s: s * net.nngp(x))(2.0)
    np.testing.assert_allclose(scaled, 2 * alone, rtol=1e-13)
    slope = jax.grad(lambda s: net.nngp(s * x).sum())(1.0)
    np.testing.assert_allclose(slope, 2 * alone.sum(), rtol=1e-12)  # homogeneous
