"""Every pair in its place, whatever the tiles and blocks are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.kernels import BlockKernel, _plan

RNG = np.random.default_rng(0)


def pair(shared, a, b):
    """A kernel with one position axis, that is not symmetric in its positions."""
    return shared * jnp.outer(a, b * b) + jnp.outer(a * a, b) * shared


def kernels():
    """The kernel, and how often each of its parts was traced."""
    traced = {"tile": 0, "same": 0}

    def tile(shared, x, z, ids, others, true, inputs_last):
        traced["tile"] += 1
        each = jax.vmap(jax.vmap(pair, (None, None, 0)), (None, 0, None))
        return each(shared, x, z)

    def same(shared, x, true, inputs_last):
        traced["same"] += 1
        # So that the diagonal shows where it is from.
        return jax.vmap(pair, (None, 0, 0))(shared, x, x) + 1000.0

    return BlockKernel(tile, same), traced


def expected(x, z, symmetric):
    k = 3.0 * np.einsum("ip,jq->ijpq", x, z * z)
    k += 3.0 * np.einsum("ip,jq->ijpq", x * x, z)
    if symmetric:
        k[np.diag_indices(len(x))] += 1000.0
    return k


@pytest.fixture
def cut(monkeypatch):
    """Other sizes of blocks and tiles from now on."""

    def to(block, side=12, calls=10**9):
        monkeypatch.setattr(_plan, "_BLOCK", block)
        monkeypatch.setattr(_plan, "_SIDE", side)
        monkeypatch.setattr(_plan, "_CALLS", calls)

    return to


@pytest.mark.parametrize("size", [1, 12, 31])
@pytest.mark.parametrize("other", [None, 20])
@pytest.mark.parametrize(("block", "calls"), [(32, 9), (800, 9), (800, 1), (10**9, 1)])
def test_every_pair_is_in_its_place(cut, size, other, block, calls):
    cut(block, calls=calls)
    x = RNG.uniform(0.5, 2.0, (size, 2))
    z = None if other is None else RNG.uniform(0.5, 2.0, (other, 2))
    kernel, traced = kernels()

    def run(x, z):
        return kernel(jnp.asarray(3.0), x, z)

    args = jnp.asarray(x), None if z is None else jnp.asarray(z)
    right = expected(x, x if z is None else z, z is None)
    np.testing.assert_allclose(run(*args), right, rtol=1e-13)
    # Tiles have one shape. The guess of their size is right, or it is traced again.
    assert traced["tile"] <= 2
    np.testing.assert_allclose(jax.jit(run)(*args), right, rtol=1e-13)
    same = kernel.diagonal(jnp.asarray(3.0), args[0])
    each = expected(x, x, True)[np.diag_indices(size)]
    np.testing.assert_allclose(same, each, rtol=1e-13)


def test_a_symmetric_matrix_is_exactly_symmetric(cut):
    cut(64, side=4)
    x = jnp.asarray(RNG.normal(size=(21, 2)))
    kernel, _ = kernels()
    for run in (kernel, jax.jit(kernel.__call__)):
        found = np.asarray(run(jnp.asarray(1.0), x, None))
        np.testing.assert_array_equal(found, found.transpose(1, 0, 3, 2))


def test_other_numbers_of_inputs_find_their_tiles_compiled(cut):
    cut(10**9, side=16)
    kernel, traced = kernels()
    seen = []
    for size in (33, 34, 47, 48, 63):
        kernel(jnp.asarray(1.0), jnp.asarray(RNG.normal(size=(size, 2))), None)
        seen.append(traced["tile"])
    assert seen == seen[:1] * 5


def test_progress_goes_to_the_end(cut):
    cut(10**9, side=4)
    kernel, _ = kernels()
    seen = []
    x = jnp.asarray(RNG.normal(size=(9, 2)))
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    kernel(jnp.asarray(1.0), x, None, progress=progress)
    # Three by three tiles, without those below the diagonal.
    assert seen == [(k, 6) for k in range(1, 7)]


def test_a_tile_is_measured_by_what_belongs_to_pairs():
    def bytes_of(tile):
        def same(shared, x, true, inputs_last):
            return jnp.sum(x * x, 1)

        x = jnp.ones((3, 1000))
        plan, _ = BlockKernel(tile, same).plan(jnp.asarray(1.0), x, x)
        return plan.bytes

    assert bytes_of(lambda s, x, z, i, j, true, inputs_last: x @ z.T) == 8

    def outer(s, x, z, i, j, true, inputs_last):
        return jnp.einsum("ip,jq->ijpq", x, z).sum((2, 3))

    assert bytes_of(outer) == 8 * 1000**2


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
