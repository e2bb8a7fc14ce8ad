"""Units that are worked on in parts, one after the other: the same kernels."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.finite import _inputs

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(7, 6, 6, 2)))
PARAMS = {
    "filters": jnp.asarray(RNG.normal(size=(3, 3, 2, 4))),
    "readout": jnp.asarray(RNG.normal(size=(4, 3))),
}


def network(params, x):
    h = jax.lax.conv_general_dilated(
        x, params["filters"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(h).mean((1, 2)) @ params["readout"]


def embedded(params, labels):
    return params["readout"][labels] * 2.0


@pytest.mark.parametrize("vmap_axes", [None, 0])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_change_no_kernel_and_no_derivative(count, vmap_axes):
    ntk = wl.empirical_ntk_fn(network, (), vmap_axes=vmap_axes)

    def total(params, x):
        k = ntk(x, X[:2], params)
        return jnp.sum(jnp.sin(k)), k

    both = jax.value_and_grad(total, (0, 1), has_aux=True)
    wanted = both(PARAMS, X[:count])
    with mock.patch.object(_inputs, "_AT_ONCE", 0):
        found = jax.jit(both)(PARAMS, X[:count])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_an_input_that_is_no_number_spoils_its_own_entries_only():
    """Parts wait for each other on a truth that is then not one."""
    params = {"readout": PARAMS["readout"]}
    ntk = wl.empirical_ntk_fn(lambda p, x: jnp.tanh(x) @ p["readout"], (), vmap_axes=0)
    rows = jnp.asarray(RNG.normal(size=(7, 4)))
    with mock.patch.object(_inputs, "_AT_ONCE", 0):
        found = jax.jit(ntk)(rows.at[0].set(jnp.nan), None, params)
    wanted = ntk(rows[1:], None, params)
    np.testing.assert_allclose(found[1:, 1:], wanted, rtol=1e-12, atol=1e-12)
    assert jnp.isnan(found[0, 0]).any()


def test_labels_are_worked_on_at_once():
    """Nothing is there that XLA does not know to be equal to itself."""
    ntk, labels = wl.empirical_ntk_fn(embedded, (), vmap_axes=0), jnp.arange(4)
    with mock.patch.object(_inputs, "_AT_ONCE", 0):
        found = jax.jit(ntk)(labels, None, PARAMS)
    np.testing.assert_allclose(found, ntk(labels, None, PARAMS))
