"""Kernels of networks in plain JAX, against those of Neural Tangents 0.6.5.

`data/neural_tangents.npz` holds, in float64, the inputs `in/NAME/x1`, `x2` and the
peer's kernels `k/NETWORK/nngp11`, `ntk11` (of x1) and `nngp12`, `ntk12` (of x1 and x2),
computed with jax 0.4.30. The input "two" is the peer's two inputs side by side; "graph"
is its node features followed by its adjacency matrix.

The peer's known defects here: NaN where x1 and x2 are parallel in `phi1_rectmono0`
(those entries are skipped), and half of the digits of `phi1_sign`, and of the tangent
kernel of all of the ReLU family, on its own diagonal.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_data import DATA, array
from reference_networks import NETWORKS, Network

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


def in_the_order_of_the_peer(net: Network, kernel: np.ndarray) -> np.ndarray:
    if net.spatial == "interleaved":
        return np.einsum("abhwij->abhiwj", kernel)
    if net.spatial == "diagonal":
        return np.einsum("abhwhw->abhw", kernel)
    return kernel


def compare(net: Network, kernel: np.ndarray, key: str, tolerance: float) -> None:
    expected = array(key)
    kernel = in_the_order_of_the_peer(net, np.asarray(kernel))
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


def with_fast_ones() -> list[Any]:
    return [
        n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS
    ]


def test_the_fast_ones_exist() -> None:
    assert set(FAST) <= set(NETWORKS)


@pytest.mark.parametrize("name", with_fast_ones())
def test_kernel_of_two_blocks(name: str) -> None:
    net = NETWORKS[name]
    x1, x2 = (jnp.asarray(array(f"in/{net.data}/{block}")) for block in ("x1", "x2"))
    kernels = limit(name).kernels(x1, x2)
    compare(net, kernels.nngp, f"k/{name}/nngp12", 1e-12)
    compare(net, kernels.ntk, f"k/{name}/ntk12", 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, "phi1_sign", "phi1_abs", "mask_gap"])
def test_kernel_of_one_block(name: str) -> None:
    net = NETWORKS[name]
    x1 = jnp.asarray(array(f"in/{net.data}/x1"))
    kernels = limit(name).kernels(x1)
    # The peer's angle of an input with itself is the square root of a rounding error.
    tolerance = 1e-7 if name in ("phi1_sign", "phi1_rectmono0") else 1e-12
    compare(net, kernels.nngp, f"k/{name}/nngp11", tolerance)
    compare(net, kernels.ntk, f"k/{name}/ntk11", 1e-7 if has_kinks(name) else 1e-12)


def has_kinks(name: str) -> bool:
    """Whether a function of the network is of the ReLU family."""
    text = str(limit(name).program(jnp.asarray(array(f"in/{NETWORKS[name].data}/x1"))))
    return re.search(r"\b(max|min|abs|sign|select|where|[gl][te])\(", text) is not None


def test_data_and_networks_name_the_same_kernels() -> None:
    with np.load(DATA) as data:
        named = {key.split("/")[1] for key in data if key.startswith("k/")}
    assert named >= set(NETWORKS)


def test_only_the_step_has_entries_that_the_peer_does_not_know() -> None:
    unknown = [n for n in NETWORKS if not np.isfinite(array(f"k/{n}/nngp11")).all()]
    assert unknown == ["phi1_rectmono0"]
