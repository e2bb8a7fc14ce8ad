"""Networks of layers, against the kernels of Neural Tangents 0.6.5.

`data/neural_tangents.json` holds the networks in a small language and
`data/neural_tangents.npz` their inputs and kernels, in float64. A node is a layer with
its arguments, or `serial`, `parallel` or `repeat` of nodes; inside arguments a list is
a tuple, and functions, slices and arrays have names.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_except
from reference_data import array

from widelimit import stax

NETWORKS = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "neural_tangents.json").read_text()
)
FUNCTIONS = {
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "erf": jax.scipy.special.erf,
    "erf_nngp": lambda c, v1, v2: (
        2 / jnp.pi * jnp.arcsin(2 * c / jnp.sqrt((1 + 2 * v1) * (1 + 2 * v2)))
    ),
    "exp_decay": lambda d: jnp.exp(-d),
    "inv_decay": lambda d: 1.0 / (1.0 + d),
}
FAST = ("std_erf_mixed_ntk", "faninconcat_widths")
FAMILY = ("Relu", "ABRelu", "LeakyRelu", "Abs", "Sign", "RectifiedMonomial")


def resolved(value: Any) -> Any:
    match value:
        case list():
            return tuple(map(resolved, value))
        case {"$fn": name}:
            return FUNCTIONS[name]
        case {"$array": key}:
            return jnp.asarray(array(key))
        case {"$slice": parts}:
            return tuple(slice(*p) if isinstance(p, list) else p for p in parts)
    return value


def build(node: Any) -> stax.Layer:
    match node:
        case {"serial": parts}:
            return stax.serial(*map(build, parts))
        case {"parallel": parts}:
            return stax.parallel(*map(build, parts))
        case {"repeat": part, "n": count}:
            return stax.repeat(build(part), count)
    return getattr(stax, node["layer"])(
        **{k: resolved(v) for k, v in node["args"].items()}
    )


def inputs(name: Any, side: str) -> Any:
    if isinstance(name, list):
        return tuple(jnp.asarray(array(f"in/{n}/{side}")) for n in name)
    return jnp.asarray(array(f"in/{name}/{side}"))


def kernels(name: str) -> Any:
    """Of both batches together: one compilation for what the peer gives apart."""
    entry = NETWORKS[name]
    _, _, kernel_fn = build(entry["net"])
    kwargs = {k: resolved(v) for k, v in entry["kernel_kwargs"].items()}
    if "pattern" in kwargs:
        kwargs["pattern"] = (jnp.concatenate(kwargs["pattern"]),) * 2
    x1, x2 = (inputs(entry["input"], side) for side in ("x1", "x2"))
    x = jax.tree.map(lambda *a: jnp.concatenate(a), x1, x2)
    return kernel_fn(x, None, ("nngp", "ntk", "cov1"), **kwargs), len(
        jax.tree.leaves(x1)[0]
    )


@pytest.mark.parametrize("name", slow_except(NETWORKS, FAST))
def test_kernels_are_those_of_the_peer(name: str) -> None:
    found, n = kernels(name)
    # On its own diagonal the peer has half of the digits where a function has a kink.
    kinked = any(f'"{layer}"' in json.dumps(NETWORKS[name]) for layer in FAMILY)
    loose = 1e-7 if kinked else 1e-11
    jumps = name in ("phi1_sign", "phi1_rectmono0")
    compare(found.nngp[:n, :n], f"k/{name}/nngp11", 1e-7 if jumps else 1e-11)
    compare(found.ntk[:n, :n], f"k/{name}/ntk11", loose)
    compare(found.cov1[:n], f"k/{name}/cov1", loose)
    compare(found.nngp[:n, n:], f"k/{name}/nngp12", 1e-11)
    compare(found.ntk[:n, n:], f"k/{name}/ntk12", 1e-11)


def compare(found: Any, key: str, tolerance: float) -> None:
    expected = array(key)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    known = np.isfinite(expected)
    error = np.abs(found - expected)[known].max() / np.abs(expected[known]).max()
    assert error < tolerance, f"{key}: {error:.1e} of the largest entry"
