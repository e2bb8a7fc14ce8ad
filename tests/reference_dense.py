"""Reference networks on flat inputs: activations, branches, normalisation, dropout."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import relu
from jax.scipy.special import erf
from reference_layers import (
    Params,
    add_network,
    apply_dense,
    dense,
    dropout,
    layer_norm,
    n,
    network,
    with_base,
)

import widelimit as wl

Activation = Callable[[Array], Array]


def sigmoid_like(x: Array) -> Array:
    return 0.5 * erf(x / 2.4020563531719796) + 0.5


# ---------------------------------------------------------------- activations
ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "sin_abc": lambda x: 1.3 * jnp.sin(0.7 * x + 0.5),
}


def mlp(phi: Activation, params: Params, x: Array) -> Array:
    """Layers in the order of their names, `phi` after each but the last."""
    *hidden, last = sorted(params)
    for name in hidden:
        x = phi(apply_dense(params[name], x))
    return apply_dense(params[last], x)


for _name, _phi in ACTIVATIONS.items():
    _layers = {"l1": dense(5, n), "l2": dense(n, 1)}
    add_network(f"phi1_{_name}", "flat5", functools.partial(mlp, _phi), _layers)


# ---------------------------------------------------------------------- depth
@network("flat5", l1=dense(5, 1))
def linear_1(p: Params, x: Array) -> Array:
    return apply_dense(p["l1"], x)


def _hidden(depth: int) -> dict[str, Params]:
    return {f"l{i}": dense(5 if i == 1 else n, n) for i in range(1, depth + 1)}


for _name, _depth, _phi in (
    ("relu_mlp_d3", 3, relu),
    ("erf_mlp_d3", 3, erf),
):
    _layers = {**_hidden(_depth), "out": dense(n, 1)}
    add_network(_name, "flat5", functools.partial(mlp, _phi), _layers)


@network(
    "flat5",
    first=wl.normal((5, n), std=math.sqrt(2)),
    hidden=[wl.normal((n, n), std=math.sqrt(2)) for _ in range(4)],
    last=wl.normal((n, 1)),
)
def relu_mlp_d5_nobias_he(p: Params, x: Array) -> Array:
    h = relu(x @ p["first"] * 5**-0.5)
    for weight in p["hidden"]:
        h = relu(h @ weight * h.shape[-1] ** -0.5)
    return h @ p["last"] * h.shape[-1] ** -0.5


@network("flat5", first=dense(5, n), hidden=[dense(n, n)] * 6, last=dense(n, 1))
def repeat_relu_d6(p: Params, x: Array) -> Array:
    h = apply_dense(p["first"], x)
    for layer in p["hidden"]:
        h = relu(apply_dense(layer, h))
    return apply_dense(p["last"], h)


# ---------------------------------------- the standard parameterisation: x @ w + b
def _standard(
    d_in: Any, d_out: Any, std: float, b: float, parameterization: str = "standard"
) -> Params:
    return {
        "w": wl.normal((d_in, d_out), std=std, parameterization=parameterization),
        "b": wl.normal((d_out,), std=b, parameterization=parameterization),
    }


def standard_mlp(phi: Activation, p: Params, x: Array) -> Array:
    for name in ("l1", "l2"):
        x = phi(x @ p[name]["w"] + p[name]["b"])
    return x @ p["l3"]["w"] + p["l3"]["b"]


for _name, _base, _stds in (
    ("std_relu_w64_s1_W1.50_b0.3", 64, (1.5, 0.3)),
    ("std_relu_w64_s4_W1.50_b0.3", 64, (1.5, 0.3)),
    ("std_relu_w32_s2_W1.00_b0.0", 32, (1.0, 0.0)),
):
    _n, _m = with_base(_base)
    _layers = {
        "l1": _standard(5, _n, *_stds),
        "l2": _standard(_n, _m, *_stds),
        "l3": _standard(_m, 1, *_stds),
    }
    add_network(_name, "flat5", functools.partial(standard_mlp, relu), _layers)

_n, _m = with_base(32)
add_network(
    "std_erf_mixed_ntk",
    "flat5",
    functools.partial(standard_mlp, erf),
    {
        "l1": _standard(5, _n, 1.5, 0.3),
        "l2": _standard(_n, _m, 1.5, 0.3, "ntk"),
        "l3": _standard(_m, 1, 1.5, 0.3),
    },
)


# ------------------------------------------------------------------- branches
@network("flat5", l1=dense(5, n), a=dense(n, n), b=dense(n, n), out=dense(n, 1))
def resnet_fc(p: Params, x: Array) -> Array:
    h = apply_dense(p["l1"], x)
    h = h + apply_dense(p["b"], relu(apply_dense(p["a"], relu(h))))
    return apply_dense(p["out"], relu(h))


@network(
    "flat5",
    a=dense(5, n),
    b1=dense(5, n),
    b2=dense(n, n),
    c1=dense(5, n),
    c2=dense(n, n),
    out=dense(n, 1),
)
def fansum_3(p: Params, x: Array) -> Array:
    h = apply_dense(p["a"], x)
    h += apply_dense(p["b2"], relu(apply_dense(p["b1"], x)))
    h += apply_dense(p["c2"], erf(apply_dense(p["c1"], x)))
    return apply_dense(p["out"], relu(h))


@network("flat5", a=dense(5, n), b=dense(5, 3 * n, std=0.7), out=dense(4 * n, 1))
def faninconcat_widths(p: Params, x: Array) -> Array:
    branches = relu(apply_dense(p["a"], x)), erf(apply_dense(p["b"], x))
    return apply_dense(p["out"], jnp.concatenate(branches, axis=-1))


@network(
    "flat5",
    a1=dense(5, n),
    a2=dense(n, n),
    b1=dense(5, n),
    b2=dense(n, n),
    out=dense(n, 1),
)
def faninprod(p: Params, x: Array) -> Array:
    a = apply_dense(p["a2"], relu(apply_dense(p["a1"], x)))
    b = apply_dense(p["b2"], erf(apply_dense(p["b1"], x)))
    return apply_dense(p["out"], a * b)


@network("flat5", a=dense(5, n), b=dense(5, n), c=dense(5, n), out=dense(n, 1))
def faninprod_gated3(p: Params, x: Array) -> Array:
    gate = sigmoid_like(apply_dense(p["b"], x))
    h = relu(apply_dense(p["a"], x)) * gate * apply_dense(p["c"], x)
    return apply_dense(p["out"], h)


@network("two", a=dense(3, n), b=dense(2, 3 * n), out=dense(4 * n, 1))
def two_inputs_concat(p: Params, x: Array) -> Array:
    xa, xb = jnp.split(x, [3], axis=1)
    h = jnp.hstack([relu(apply_dense(p["a"], xa)), erf(apply_dense(p["b"], xb))])
    return apply_dense(p["out"], h)


# -------------------------------------------------------------- normalisation
@network("flat5", l1=dense(5, n), l2=dense(n, n), out=dense(n, 1))
def layernorm_fc(p: Params, x: Array) -> Array:
    h = relu(layer_norm(apply_dense(p["l1"], x)))
    h = erf(layer_norm(apply_dense(p["l2"], h)))
    return apply_dense(p["out"], h)


@network("flat5", l1=dense(5, n), out=dense(n, 1))
def layernorm_fc_eps(p: Params, x: Array) -> Array:
    h = relu(layer_norm(apply_dense(p["l1"], x), eps=0.1))
    return apply_dense(p["out"], h)


@network("flat5", l1=dense(5, n), a=dense(n, n), b=dense(n, n), out=dense(n, 1))
def layernorm_then_affine_res(p: Params, x: Array) -> Array:
    h = apply_dense(p["l1"], x)
    branch = relu(apply_dense(p["a"], layer_norm(h)))
    h = h + apply_dense(p["b"], branch)
    return apply_dense(p["out"], layer_norm(h))


# -------------------------------------------------------------------- dropout
@network("flat5", l1=dense(5, n), l2=dense(n, n), out=dense(n, 1))
def dropout_train(p: Params, x: Array) -> Array:
    first, second = jax.random.split(jax.random.key(0))
    h = dropout(first, 0.8, relu(apply_dense(p["l1"], x)))
    h = dropout(second, 0.5, relu(apply_dense(p["l2"], h)))
    return apply_dense(p["out"], h)
