"""Kernels of networks in plain JAX, against those of Neural Tangents 0.6.5.

`data/neural_tangents.npz` holds, in float64, the inputs `in/NAME/x1`, `x2` and the
peer's kernels `k/NETWORK/nngp11`, `ntk11` (of x1) and `nngp12`, `ntk12` (of x1 and x2),
computed with jax 0.4.30. The input "two" is the peer's two inputs side by side;
"graph_with_edges" is its node features followed by its adjacency matrix.

All networks of the peer, written with its layers, are in `stax/test_goldens.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_except
from reference_data import DATA, array
from reference_networks import NETWORKS

import widelimit as wl
from widelimit.trace import Normal


@functools.cache
def limit(name: str) -> wl.Limit:
    def as_the_peer(p: Any) -> Any:
        """Trained by a variable of variance one; `f` itself multiplies with `std`."""
        return dataclasses.replace(p, lr=p.lr * p.std**2) if _is_received(p) else p

    params = jax.tree.map(as_the_peer, NETWORKS[name].params, is_leaf=_is_received)
    return wl.limit(NETWORKS[name].f, params)


def _is_received(p: Any) -> bool:
    return isinstance(p, Normal) and p.parameterization is None


def compare(kernel: Any, key: str, tolerance: float) -> None:
    expected = array(key)
    kernel = np.asarray(kernel)
    assert kernel.shape == expected.shape
    assert np.isfinite(kernel).all()
    known = np.isfinite(expected)
    error = np.abs(kernel - expected)[known].max() / np.abs(expected[known]).max()
    assert error < tolerance, f"largest error {error:.1e} of the largest entry"


# One of each kind; all of them are among the slow tests.
FAST = (
    "relu_mlp_d3",
    "erf_mlp_d3",
    "phi1_gelu",
    "phi1_sin_abc",
    "conv_same_gap",
    "layernorm_fc_eps",
    "attn_lin_identity",
)


def test_the_fast_ones_exist() -> None:
    assert set(FAST) <= set(NETWORKS)


@pytest.mark.parametrize("name", slow_except(NETWORKS, FAST))
def test_kernel_of_two_blocks(name: str) -> None:
    net = NETWORKS[name]
    x1, x2 = (jnp.asarray(array(f"in/{net.data}/{block}")) for block in ("x1", "x2"))
    kernels = limit(name).kernels(x1, x2)
    compare(kernels.nngp, f"k/{name}/nngp12", 1e-12)
    compare(kernels.ntk, f"k/{name}/ntk12", 1e-12)


def test_data_and_networks_name_the_same_kernels() -> None:
    with np.load(DATA) as data:
        named = {key.split("/")[1] for key in data if key.startswith("k/")}
    assert named >= set(NETWORKS)
