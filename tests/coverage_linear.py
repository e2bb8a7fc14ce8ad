"""Coverage networks: products with matrices, convolutions, sums."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from coverage_table import (
    FLAT,
    IMAGE,
    SEQUENCE,
    VOLUME,
    Params,
    apply,
    covers,
    m,
    n,
    readout,
)
from jax import Array, lax
from jax.nn import relu

import widelimit as wl

_MIX = np.random.default_rng(21).normal(size=(5, 5))
_U3 = wl.normal((3, n))
_V = wl.normal((n, 1))


# ---------------------------------------------------------------- dense products
@covers(
    "dot_general",
    "transpose",
    U=wl.normal((n, 4)),
    W=wl.normal((m, n)),
    Q=wl.normal((n, m)),
    v=_V,
    fast=True,
)
def weights_on_the_left(p: Params, x: Array) -> Array:
    h = jnp.tanh(p["U"] @ x.T / 2.0)
    h = jnp.einsum("in,oi->no", h, p["W"]) / jnp.sqrt(h.shape[0])
    h = relu(p["Q"] @ h.T / np.sqrt(p["Q"].shape[1]))
    return readout(p, h.T)


@covers("dot_general", x=SEQUENCE, U=_U3, W=wl.normal((5, n, m)), v=wl.normal((m, 1)))
def a_matrix_per_position(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = jnp.einsum("nti,tij->jnt", h, p["W"]) * h.shape[-1] ** -0.5
    return readout(p, jnp.moveaxis(jnp.tanh(h), 0, -1))


@covers("dot_general", x=SEQUENCE, U=_U3, v=_V)
def data_on_the_left_and_on_the_right(p: Params, x: Array) -> Array:
    h = jnp.einsum("st,nti->nsi", _MIX, apply(p["U"], x))
    h = jnp.einsum("nsi,st->nti", jnp.tanh(h), _MIX)
    return readout(p, h)


@covers("dot_general", x=SEQUENCE, U=_U3, W=wl.normal((n, n)), v=_V)
def data_of_the_batch_mixes_positions(p: Params, x: Array) -> Array:
    distances = jnp.einsum("nti,nsi->nts", x, x)
    h = jnp.tanh(apply(p["U"], x))
    return readout(p, jnp.matmul(jnp.cos(distances), apply(p["W"], h)))


@covers("dot_general", x=SEQUENCE, U=_U3, K=wl.normal((n, n)), v=_V)
def products_of_jit_for_cpu(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    k = apply(p["K"], h)
    gram = jnp.einsum("nti,nsi->nts", h, k + 0.5 * h) / h.shape[-1]
    return readout(p, jnp.tanh(gram) @ k)


@covers("dot_general", U=wl.normal((4, n)), W=wl.normal((2, n, n)), v=_V)
def two_matrices_in_a_stack(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = jnp.einsum("ni,kij->nkj", h, p["W"]) / math.sqrt(h.shape[-1])
    return readout(p, h[:, 0] * jnp.tanh(h[:, 1]))


@covers("dot_general", "sub", U=_U3, v=wl.normal((n, 2)), c=wl.normal((3,), std=0.5))
def finite_maps_at_both_ends(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x @ _MIX[:4, :3]))
    return readout(p, h) @ _MIX[:2, :3] - p["c"]


@covers("dot_general", U=wl.normal((4, n)), W=wl.normal((n, n), std=1.2), v=_V)
def tied_weights(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    for _ in range(3):
        h = apply(p["W"], jnp.tanh(h)) + 0.5 * h
    return readout(p, h)


@covers("dot_general", U=wl.normal((4, n)), a=wl.normal((n,)), v=_V)
def one_output_without_an_axis(p: Params, x: Array) -> Array:
    h = wl.tap("last", relu(apply(p["U"], x)))
    return h @ p["a"] / np.sqrt(n)


# ------------------------------------------------------------------- convolution
@covers(
    "conv_general_dilated",
    x=SEQUENCE,
    W=wl.normal((3, 3, n)),
    Q=wl.normal((2, n, n)),
    v=_V,
    fast=True,
)
def convolution_in_one_dimension(p: Params, x: Array) -> Array:
    layout = ("NWC", "WIO", "NWC")
    h = lax.conv_general_dilated(
        x, p["W"], (1,), [(2, 2)], rhs_dilation=(2,), dimension_numbers=layout
    )
    h = relu(h / 3.0)
    h = lax.conv_general_dilated(h, p["Q"], (2,), [(1, 0)], dimension_numbers=layout)
    return readout(p, jnp.tanh(h / jnp.sqrt(2 * p["Q"].shape[1])))


@covers(
    "conv_general_dilated",
    x=SEQUENCE,
    U=wl.normal((3, n)),
    v=wl.normal((3, n, 2)),
)
def convolution_to_a_few_channels(p: Params, x: Array) -> Array:
    h = jnp.tanh(apply(p["U"], x))
    layout = ("NWC", "WIO", "NWC")
    h = lax.conv_general_dilated(h, p["v"], (2,), "SAME", dimension_numbers=layout)
    return h / jnp.sqrt(3 * p["v"].shape[1])


@covers(
    "conv_general_dilated",
    x=IMAGE,
    W=wl.normal((n, 2, 3, 3)),
    Q=wl.normal((n, n, 2, 2)),
    v=_V,
)
def convolution_in_two_dimensions(p: Params, x: Array) -> Array:
    x = jnp.transpose(x, (0, 3, 1, 2))
    h = relu(lax.conv_general_dilated(x, p["W"], (1, 1), "SAME") / math.sqrt(18))
    h = lax.conv_general_dilated(h, p["Q"], (2, 1), "VALID") / jnp.sqrt(4 * h.shape[1])
    return readout(p, jnp.transpose(relu(h), (0, 2, 3, 1)).mean(axis=(1, 2)))


@covers(
    "conv_general_dilated",
    x=VOLUME,
    W=wl.normal((2, 2, 1, 2, n)),
    Q=wl.normal((1, 2, 2, n, n)),
    v=_V,
)
def convolution_in_three_dimensions(p: Params, x: Array) -> Array:
    layout = ("NDHWC", "DHWIO", "NDHWC")
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=layout)
    h = relu(conv(x, p["W"], (1, 1, 1), "SAME") / math.sqrt(8))
    h = relu(conv(h, p["Q"], (1, 1, 1), "VALID") / jnp.sqrt(4 * h.shape[-1]))
    return readout(p, h.sum(axis=(1, 2, 3)))


@covers("conv_general_dilated", "rev", x=SEQUENCE, U=_U3, W=wl.normal((3, n, n)), v=_V)
def transposed_convolution(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = lax.conv_transpose(h, p["W"], (2,), "SAME") / jnp.sqrt(3 * h.shape[-1])
    return readout(p, jnp.tanh(jnp.flip(h, axis=1)))


@covers(
    "conv_general_dilated",
    x=SEQUENCE,
    U=_U3,
    W=wl.normal((3, n // 2, 2 * n)),
    v=wl.normal((2 * n, 1)),
)
def grouped_convolution(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = lax.conv_general_dilated(
        h,
        p["W"],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )
    return readout(p, relu(h / jnp.sqrt(3 * p["W"].shape[1])))


@covers(
    "conv_general_dilated",
    x=SEQUENCE,
    U=_U3,
    D=wl.normal((3, 1, n)),
    W=wl.normal((n, n)),
    v=_V,
)
def depthwise_convolution(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = lax.conv_general_dilated(
        h,
        p["D"] / math.sqrt(3),
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=h.shape[-1],
    )
    return readout(p, relu(apply(p["W"], h)))


@covers(
    "conv_general_dilated",
    "concatenate",
    x=IMAGE,
    W=wl.normal((3, 3, 2, n)),
    v=wl.normal((16 * n, 1)),
)
def circular_convolution(p: Params, x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    layout = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["W"], (1, 1), "VALID", dimension_numbers=layout)
    return readout(p, relu(h / math.sqrt(18)).reshape(h.shape[0], -1))


# -------------------------------------------------------------- sums over positions
@covers("reduce_sum", "div", x=SEQUENCE, U=_U3, W=wl.normal((n, n)), v=_V)
def sums_over_positions(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = h - h.mean(axis=1, keepdims=True)
    return readout(p, jnp.tanh(apply(p["W"], h)).sum(axis=1))


@covers("cumsum", x=SEQUENCE, U=_U3, v=_V)
def running_sums(p: Params, x: Array) -> Array:
    h = relu(jnp.cumsum(apply(p["U"], x), axis=1))
    return readout(p, lax.cumsum(h, axis=1, reverse=True) / 5.0)


@covers("reduce_window_sum", x=IMAGE, W=wl.normal((2, n)), v=_V)
def pooling(p: Params, x: Array) -> Array:
    window = (1, 2, 3, 1)
    h = apply(p["W"], x)
    h = lax.reduce_window(h, 0.0, lax.add, window, (1, 2, 1, 1), "SAME")
    h = relu(h / 6.0)
    h = lax.reduce_window(h, 0.0, lax.add, window, (1, 1, 1, 1), "VALID")
    return readout(p, h)


@covers("reduce_window_max", "reduce_window_min", x=SEQUENCE, U=_U3, v=_V)
def extreme_pooling(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    window, strides = (1, 2, 1), (1, 1, 1)
    highest = lax.reduce_window(h, -jnp.inf, lax.max, window, strides, "VALID")
    lowest = lax.reduce_window(h, jnp.inf, lax.min, window, strides, "VALID")
    return readout(p, highest + 0.5 * lowest)


@covers("dot_general", "iota", x=SEQUENCE, U=_U3, v=_V)
def resizing(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    h = jax.image.resize(h, (h.shape[0], 3, h.shape[-1]), "linear")
    return readout(p, relu(h))


@covers("sub", "reduce_sum", U=wl.normal((4, n)), v=_V)
def inputs_of_a_batch_interact(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x - x.mean(axis=0)))
    return readout(p, jnp.tanh(h - h.mean(axis=0)))


# ------------------------------------------------------- fixed tensors, functions of n
@covers(
    *("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("argmax", "argmin", "sort", "iota", "eq"),
    x=FLAT,
    U=wl.normal((4, n)),
    v=_V,
)
def functions_of_the_data(p: Params, x: Array) -> Array:
    scale = x.max(axis=1) - x.min(axis=1) + jnp.abs(x.prod(axis=1))
    flags = jnp.all(x > -1, axis=1) * 0.5 + jnp.any(x > 1.5, axis=1)
    which = jnp.argmax(x, axis=1) - jnp.argmin(x, axis=1)
    x = jnp.sort(x, axis=1) * (jnp.arange(4) == which[:, None]) + x
    h = relu(apply(p["U"], x)) * scale[:, None] + flags[:, None]
    return readout(p, h / jnp.linalg.norm(x, axis=1, keepdims=True))


@covers("broadcast_in_dim", "concatenate", "add", U=wl.normal((4, n)), v=_V, fast=True)
def functions_of_the_width(p: Params, x: Array) -> Array:
    h = x @ p["U"] * 4**-0.5
    width = h.shape[-1]
    h = jnp.zeros((x.shape[0], n)) + h * math.sqrt(width) / np.sqrt(width)
    h = jnp.tanh(h) + jnp.ones((width,)) * (width / (2.0 * width))
    h = jnp.concatenate([h, jnp.zeros((x.shape[0], n))], axis=-1)[:, :width]
    return wl.tap("last", h) @ p["v"] * width**-0.5
