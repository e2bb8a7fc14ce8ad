"""Reference networks with attention.

Queries and keys share their weights and the logits are divided by the width, so that
the attention weights are deterministic in the limit (Hron et al. 2020,
arXiv:2006.10540). The number of heads does not matter then; here it is 1 or 4.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import relu
from reference_layers import (
    Params,
    apply_conv,
    apply_dense,
    conv,
    dense,
    flatten,
    global_average,
    n,
    network,
)

import widelimit as wl

Weighting = Callable[[Array], Array]


def attention(d_key: Any = n, b: float = 0.2) -> Params:
    """Parameters; `d_key` is the width of what the keys are computed from."""
    return {
        "K": wl.normal((d_key, n)),
        "V": wl.normal((n, n), std=0.9),
        "O": wl.normal((n, n), std=1.2),
        "b": wl.normal((n,), std=b),
    }


def softmax(logits: Array) -> Array:
    return jax.nn.softmax(logits, axis=-1)


def scaled(x: Array, weight: Array) -> Array:
    return x @ weight / math.sqrt(x.shape[-1])


def attend(
    p: Params, h: Array, weighting: Weighting = softmax, keys_from: Array | None = None
) -> Array:
    """One head. `keys_from` replaces h in the keys and queries."""
    keys = scaled(h if keys_from is None else keys_from, p["K"])
    logits = 1.1 * 0.8 * keys @ keys.mT / keys.shape[-1]
    return scaled(weighting(logits) @ scaled(h, p["V"]), p["O"]) + p["b"]


def attend_heads(p: Params, h: Array, weighting: Weighting = softmax) -> Array:
    """Four heads, split by reshape."""
    keys, values = (
        scaled(h, p[name]).reshape(*h.shape[:2], 4, -1) for name in ("K", "V")
    )
    logits = jnp.einsum("nihd,njhd->nhij", keys, keys) / keys.shape[-1]
    mixed = jnp.einsum("nhij,njhd->nihd", weighting(0.88 * logits), values)
    return scaled(mixed.reshape(h.shape), p["O"]) + p["b"]


@network("seq7", l1=dense(3, n), attn=attention(), out=dense(n, 1))
def attn_lin_identity(p: Params, x: Array) -> Array:
    h = relu(apply_dense(p["l1"], x))
    h = relu(attend(p["attn"], h, lambda logits: logits))
    return apply_dense(p["out"], global_average(h))


@network("seq7", l1=dense(3, n), attn=attention(), out=dense(n, 1))
def attn_lin_relu(p: Params, x: Array) -> Array:
    h = relu(apply_dense(p["l1"], x))
    h = relu(attend_heads(p["attn"], h, relu))
    return apply_dense(p["out"], global_average(h))


@network("img6", c1=conv((3, 3), 3, n), attn=attention(), out=dense(4 * n, 1))
def attn_lin_img(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, strides=(2, 2)))
    h = attend_heads(p["attn"], h.reshape(h.shape[0], 4, -1))
    return apply_dense(p["out"], flatten(h))


_POSITIONS = wl.normal((7, n), std=0.7)


@network("seq7", l1=dense(3, n), pos=_POSITIONS, attn=attention(), out=dense(n, 1))
def attn_lin_pos_sum_val0(p: Params, x: Array) -> Array:
    h = relu(apply_dense(p["l1"], x))
    h = attend(p["attn"], h, keys_from=h + p["pos"])
    return apply_dense(p["out"], global_average(h))


@network(
    "seq7",
    l1=dense(3, 2 * n),
    pos=wl.normal((7, n), std=0.7),
    attn={**attention(3 * n), "V": wl.normal((2 * n, n), std=0.9)},
    out=dense(n, 1),
)
def attn_lin_pos_concat_val0(p: Params, x: Array) -> Array:
    h = relu(apply_dense(p["l1"], x))
    pos = jnp.broadcast_to(p["pos"], (*h.shape[:-1], p["pos"].shape[-1]))
    h = attend(p["attn"], h, keys_from=jnp.concatenate([h, pos], axis=-1))
    return apply_dense(p["out"], global_average(h))


_DISTANCE = np.abs(np.arange(7)[:, None] - np.arange(7))
_DECAY = np.linalg.cholesky(1.0 / (1.0 + _DISTANCE))


@network(
    "seq7", l1=dense(3, n), pos=wl.normal((7, n)), attn=attention(), out=dense(n, 1)
)
def attn_lin_pos_decay_l1(p: Params, x: Array) -> Array:
    h = relu(apply_dense(p["l1"], x)) + _DECAY @ p["pos"]
    return apply_dense(p["out"], global_average(attend_heads(p["attn"], h)))
