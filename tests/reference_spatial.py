"""Reference networks with positions: convolution, pooling, local layers, masks."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn import relu
from reference_layers import (
    Params,
    apply_conv,
    apply_dense,
    average_pool,
    conv,
    dense,
    flatten,
    global_average,
    layer_norm,
    n,
    network,
    sum_pool,
)

import widelimit as wl


# ---------------------------------------------------------------- convolution
@network("img6", c1=conv((3, 3), 3, n), c2=conv((3, 3), n, n), out=dense(36 * n, 1))
def conv_same_flat(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME"))
    h = relu(apply_conv(p["c2"], h, "SAME"))
    return apply_dense(p["out"], flatten(h))


@network("img6", c1=conv((3, 3), 3, n), c2=conv((3, 3), n, n), out=dense(n, 1))
def conv_same_gap(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME"))
    h = relu(apply_conv(p["c2"], h, "SAME"))
    return apply_dense(p["out"], global_average(h))


@network("rect", c1=conv((2, 3), 2, n), c2=conv((2, 2), n, n), out=dense(n, 1))
def conv_same_stride_gap(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME", strides=(1, 2)))
    h = relu(apply_conv(p["c2"], h, "SAME", strides=(2, 1)))
    return apply_dense(p["out"], global_average(h))


@network("img6", c1=conv((3, 3), 3, n), c2=conv((3, 3), n, n), out=dense(n, 1))
def conv_valid_gap(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c2"], relu(apply_conv(p["c1"], x))))
    return apply_dense(p["out"], global_average(h))


def circular(p: Params, x: Array) -> Array:
    """A 3 by 3 convolution on a torus."""
    return apply_conv(p, jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap"))


@network("img6", c1=conv((3, 3), 3, n), c2=conv((3, 3), n, n), out=dense(n, 1))
def conv_circular_gap(p: Params, x: Array) -> Array:
    h = relu(circular(p["c2"], relu(circular(p["c1"], x))))
    return apply_dense(p["out"], global_average(h))


@network("vol", c1=conv((2, 2, 1), 2, n), out=dense(24 * n, 1))
def conv_3d_flat(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME"))
    return apply_dense(p["out"], flatten(h))


# -------------------------------------------------------------------- pooling
@network("img6", c1=conv((3, 3), 3, n), c2=conv((2, 2), n, n), out=dense(n, 1))
def avgpool_same_normedges(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME"))
    inside = sum_pool(jnp.ones((1, *h.shape[1:-1], 1)), (2, 3), (1, 1), "SAME")
    h = sum_pool(h, (2, 3), (1, 1), "SAME") / inside
    return apply_dense(p["out"], global_average(relu(apply_conv(p["c2"], h))))


@network("img6", c1=conv((3, 3), 3, n), out=dense(n, 1))
def pool_before_relu(p: Params, x: Array) -> Array:
    h = relu(average_pool(apply_conv(p["c1"], x, "SAME"), (2, 2), (1, 1)))
    return apply_dense(p["out"], global_average(h))


# ------------------------------------- concatenation, normalisation, dropout
@network(
    "img6",
    a=conv((3, 3), 3, n),
    b=conv((3, 3), 3, n, std=0.8),
    c2=conv((2, 2), n, n),
    out=dense(n, 1),
)
def faninconcat_spatial(p: Params, x: Array) -> Array:
    branches = [apply_conv(p[name], x, "SAME") for name in ("a", "b")]
    h = relu(jnp.concatenate(branches, axis=1))
    return apply_dense(p["out"], global_average(relu(apply_conv(p["c2"], h))))


@network("img6", c1=conv((3, 3), 3, n), out=dense(n, 1))
def layernorm_conv_c(p: Params, x: Array) -> Array:
    h = relu(layer_norm(apply_conv(p["c1"], x, "SAME")))
    return apply_dense(p["out"], global_average(h))


# ------------------------------------------- transposed and unshared convolution
def apply_conv_transpose(p: Params, x: Array, padding: str) -> Array:
    y = lax.conv_transpose(x, p["W"], (2, 1), padding)
    return y / math.sqrt(2 * 3 * x.shape[-1]) + p["b"]


@network("rect", c1=conv((2, 3), 2, n), out=dense(n, 1))
def convtranspose_same(p: Params, x: Array) -> Array:
    h = relu(apply_conv_transpose(p["c1"], x, "SAME"))
    return apply_dense(p["out"], global_average(h))


def local(
    out_shape: Sequence[int], filter_shape: Sequence[int], d_in: Any, d_out: Any
) -> Params:
    """A convolution with a filter and a bias of its own at each position."""
    shape = (*out_shape, *filter_shape, d_in, d_out)
    return {
        "W": wl.normal(shape, std=1.4),
        "b": wl.normal((*out_shape, d_out), std=0.2),
    }


def apply_local(p: Params, x: Array, strides: tuple[int, int] = (1, 1)) -> Array:
    """The windows of x, padded at the end only as far as the filters reach."""
    rows, columns, height, width, d_in, _ = p["W"].shape
    reach = [(rows - 1) * strides[0] + height, (columns - 1) * strides[1] + width]
    before = [(r - s) // 2 for r, s in zip(reach, x.shape[1:3], strict=True)]
    after = [r - s - b for r, s, b in zip(reach, x.shape[1:3], before, strict=True)]
    pads = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    at_row = np.arange(rows)[:, None] * strides[0] + np.arange(height)
    at_column = np.arange(columns)[:, None] * strides[1] + np.arange(width)
    windows = x[:, at_row[:, None, :, None], at_column[None, :, None, :]]
    y = jnp.einsum("nrshwc,rshwcd->nrsd", windows, p["W"])
    return y / jnp.sqrt(height * width * d_in) + p["b"]


@network(
    "img6",
    c1=local((6, 6), (3, 2), 3, n),
    c2=local((3, 6), (2, 2), n, n),
    out=dense(n, 1),
)
def convlocal_same_gap(p: Params, x: Array) -> Array:
    h = relu(apply_local(p["c1"], x))
    h = relu(apply_local(p["c2"], h, (2, 1)))
    return apply_dense(p["out"], global_average(h))


# ------------------------------------------------- resizing, graphs, indexing
@network("graph_with_edges", l1=dense(4, n), l2=dense(n, n), out=dense(n, 1))
def aggregate_dense(p: Params, x: Array) -> Array:
    h, edges = x[..., :4], x[..., 4:]
    for name in ("l1", "l2"):
        h = jnp.einsum("nvc,nvw->nwc", relu(apply_dense(p[name], h)), edges)
    return apply_dense(p["out"], global_average(h))


@network("img6", c1=conv((3, 3), 3, n), c2=conv((2, 2), n, n), out=dense(n, 1))
def index_crop(p: Params, x: Array) -> Array:
    h = relu(apply_conv(p["c1"], x, "SAME"))[:, 1:5:2, :4]
    return apply_dense(p["out"], global_average(relu(apply_conv(p["c2"], h))))


# ---------------------------------------------------------------------- masks
def masked(x: Array) -> tuple[Array, Array]:
    """Which tokens are real (100 marks padding), and x with zeros for the others."""
    real = jnp.all(x != 100.0, axis=-1, keepdims=True)
    return real, jnp.where(real, x, 0.0)


def conv_masked(p: Params, x: Array, real: Array) -> Array:
    return jnp.where(real, apply_conv(p, x, "SAME"), 0.0)


def mean_of_real(h: Array, real: Array) -> Array:
    return h.sum(axis=1) / real.sum(axis=1)


@network("mseq", c1=conv((3,), 3, n), out=dense(n, 1))
def mask_layernorm(p: Params, x: Array) -> Array:
    real, x = masked(x)
    h = conv_masked(p["c1"], x, real)
    size = real.sum(axis=(1, 2), keepdims=True) * h.shape[-1]
    mean = h.sum(axis=(1, 2), keepdims=True) / size
    centred = jnp.where(real, h - mean, 0.0)
    variance = (centred**2).sum(axis=(1, 2), keepdims=True) / size
    h = relu(centred / jnp.sqrt(variance + 1e-12))
    return apply_dense(p["out"], mean_of_real(h, real))
