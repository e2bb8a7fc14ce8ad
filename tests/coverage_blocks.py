"""Coverage networks: the parts that larger networks are made of."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from coverage_table import FLAT, SEQUENCE, Params, apply, covers, n, readout
from jax import Array, lax
from jax.nn import relu, sigmoid

import widelimit as wl

_U3 = wl.normal((3, n))
_U4 = wl.normal((4, n))
_W = wl.normal((n, n))
_V = wl.normal((n, 1))


# ------------------------------------------------------------------ normalisation
def layer_norm(h: Array, eps: float = 1e-5) -> Array:
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred * lax.rsqrt(h.var(axis=-1, keepdims=True) + eps)


@covers(
    "reduce_sum",
    "rsqrt",
    U=_U4,
    W=_W,
    gain=wl.constant((n,), 1.5),
    shift=wl.constant((n,), 0.5),
    v=_V,
    fast=True,
)
def layer_normalisation(p: Params, x: Array) -> Array:
    h = layer_norm(relu(apply(p["U"], x))) * p["gain"] + p["shift"]
    return readout(p, relu(apply(p["W"], h)))


@covers("reduce_sum", "sqrt", U=_U4, W=_W, v=_V)
def root_mean_square_normalisation(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)
    return readout(p, jnp.tanh(apply(p["W"], h)))


@covers("reshape", "reduce_sum", x=SEQUENCE, U=_U3, v=_V)
def group_normalisation(p: Params, x: Array) -> Array:
    h = jnp.cos(apply(p["U"], x)) + 0.5 * jnp.sin(apply(p["U"], x))
    groups = h.reshape(*h.shape[:2], 4, -1)
    centred = groups - groups.mean(axis=(1, 3), keepdims=True)
    deviation = jnp.sqrt(groups.var(axis=(1, 3), keepdims=True) + 1e-5)
    return readout(p, relu(centred / deviation).reshape(h.shape))


@covers("reduce_sum", "div", x=FLAT[:2], U=_U4, v=_V)
def batch_normalisation(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    centred = h - h.mean(axis=0)
    return readout(p, relu(centred / jnp.sqrt(h.var(axis=0) + 0.1)))


@covers("reduce_sum", U=_U4, W=_W, v=_V)
def a_moment_as_an_argument(p: Params, x: Array) -> Array:
    h = apply(p["W"], relu(apply(p["U"], x)))
    energy = (h * jnp.tanh(h)).mean(axis=-1, keepdims=True)
    return readout(p, jnp.sin(h * energy + energy**2))


# ----------------------------------------------------------------------- attention
@covers(
    *("reduce_max", "exp", "stop_gradient", "select_n", "dot_general", "reshape"),
    x=SEQUENCE,
    U=_U3,
    K=_W,
    Q=_W,
    O=_W,
    v=_V,
)
def causal_attention_with_heads(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    k = apply(p["K"], h).reshape(*h.shape[:2], 2, -1)
    q = (apply(p["Q"], h) + apply(p["K"], h)).reshape(k.shape)
    logits = jnp.einsum("nihd,njhd->nhij", q, k) / k.shape[-1]
    logits = jnp.where(np.tri(5, dtype=bool), logits, -jnp.inf)
    mixed = jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(logits, axis=-1), k)
    h = h + apply(p["O"], mixed.reshape(h.shape))
    return readout(p, jnp.tanh(h))


# ------------------------------------------------------------------------- dropout
@covers(
    *("random_bits", "random_seed", "shift_right_logical", "bitcast_convert_type"),
    U=_U4,
    W=_W,
    v=_V,
)
def dropout(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    kept = jax.random.bernoulli(jax.random.key(3), 0.6, h.shape)
    return readout(p, relu(apply(p["W"], jnp.where(kept, h / 0.6, 0.0))))


@covers("random_wrap", "random_unwrap", "erf_inv", U=_U4, v=_V)
def normal_noise(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    noise = jax.random.normal(jax.random.PRNGKey(4), h.shape)
    return readout(p, relu(h + 0.5 * noise))


@covers("random_bits", "random_split", U=_U4, W=_W, v=_V)
def uniform_noise(p: Params, x: Array) -> Array:
    first, second = jax.random.split(jax.random.key(6))
    h = relu(apply(p["U"], x))
    h = relu(apply(p["W"], h * jax.random.uniform(first, h.shape)))
    return readout(p, h * jax.random.uniform(second, h.shape, minval=0.5))


@covers("random_fold_in", "random_clone", U=_U4, W=_W, v=_V)
def dropout_with_a_key_for_each_layer(p: Params, x: Array) -> Array:
    key = jax.random.clone(jax.random.key(7))
    h = apply(p["U"], x)
    for layer in range(2):
        kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 0.8, h.shape)
        h = apply(p["W"], jnp.tanh(h) * kept)
    return readout(p, h)


@covers("random_bits", x=SEQUENCE, U=_U3, v=_V)
def dropout_shared_by_positions(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    kept = jax.random.bernoulli(jax.random.key(5), 0.5, (h.shape[0], 1, h.shape[-1]))
    return readout(p, (h * kept * 2.0).mean(axis=1))


# ----------------------------------------------------------------------- recurrence
def _steps(p: Params, state: Array, word: Array) -> tuple[Array, Array]:
    state = jnp.tanh(apply(p["W"], state) + apply(p["U"], word))
    return state, state


@covers("scan", x=SEQUENCE, U=_U3, W=_W, v=_V)
def recurrent_network(p: Params, x: Array) -> Array:
    start = jnp.zeros((x.shape[0], p["W"].shape[0]))
    step = functools.partial(_steps, p)
    last, _ = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return readout(p, last)


@covers("scan", x=SEQUENCE, U=_U3, W=_W, v=_V)
def recurrent_network_from_the_end(p: Params, x: Array) -> Array:
    start = jnp.zeros((x.shape[0], n))
    step = functools.partial(_steps, p)
    _, states = lax.scan(step, start, jnp.swapaxes(x, 0, 1), reverse=True)
    return readout(p, states.mean(axis=0))


@covers("scan", x=SEQUENCE, U=_U3, W=_W, K=_W, v=_V)
def recurrent_network_with_all_states(p: Params, x: Array) -> Array:
    def step(state: Array, word: Array) -> tuple[Array, Array]:
        state = relu(apply(p["W"], state) + apply(p["U"], word))
        return state, state

    start = jnp.zeros((x.shape[0], n))
    _, states = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    states = jnp.swapaxes(states, 0, 1)
    logits = jnp.einsum("nti,nsi->nts", states, states) / states.shape[-1]
    mixed = jax.nn.softmax(logits, axis=-1) @ states
    return readout(p, jnp.tanh(apply(p["K"], mixed)))


@covers("scan", U=_U4, W=wl.normal((3, n, n)), b=wl.normal((3, n), std=0.2), v=_V)
def scan_over_layers(p: Params, x: Array) -> Array:
    def layer(h: Array, theta: tuple[Array, Array]) -> tuple[Array, None]:
        weight, bias = theta
        return relu(apply(weight, h) + bias), None

    h, _ = lax.scan(layer, apply(p["U"], x), (p["W"], p["b"]))
    return readout(p, h)


@covers("scan", U=_U4, W=_W, v=_V)
def static_loop(p: Params, x: Array) -> Array:
    def body(i: Any, h: Array) -> Array:
        return jnp.tanh(apply(p["W"], h)) * (1.0 + i) + 0.1 * h

    return readout(p, lax.fori_loop(0, 3, body, apply(p["U"], x)))


@covers("scan", "cond", U=_U4, W=_W, v=_V)
def branches_in_a_loop(p: Params, x: Array) -> Array:
    def body(i: Any, h: Array) -> Array:
        return lax.cond(i % 2 == 0, jnp.tanh, relu, apply(p["W"], h))

    return readout(p, lax.fori_loop(0, 3, body, apply(p["U"], x)))


@covers("scan", x=SEQUENCE, U=_U3, v=_V)
def map_over_positions(p: Params, x: Array) -> Array:
    h = lax.map(lambda word: relu(apply(p["U"], word)), jnp.swapaxes(x, 0, 1))
    return readout(p, jnp.swapaxes(h, 0, 1))


@covers(
    *("scan", "split", "logistic"),
    x=SEQUENCE[:, :2],
    U=wl.normal((3, 4 * n)),
    W=wl.normal((n, 4 * n)),
    b=wl.normal((4 * n,), std=0.1),
    v=_V,
)
def long_short_term_memory(p: Params, x: Array) -> Array:
    def step(carry: tuple[Array, Array], word: Array) -> tuple[Any, None]:
        h, c = carry
        gates = apply(p["W"], h) + apply(p["U"], word) + p["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return (sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((x.shape[0], p["W"].shape[0]))
    (h, _), _ = lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))
    return readout(p, h)


@covers(
    *("reshape", "logistic"),
    x=SEQUENCE[:, :2],
    U=wl.normal((3, 3 * n)),
    W=wl.normal((n, 2 * n)),
    C=_W,
    v=_V,
)
def gated_recurrent_unit(p: Params, x: Array) -> Array:
    h = jnp.zeros((x.shape[0], n))
    for t in range(x.shape[1]):
        u = apply(p["U"], x[:, t]).reshape(x.shape[0], 3, -1)
        z, r = jnp.split(apply(p["W"], h), 2, axis=-1)
        z, r = sigmoid(u[:, 0] + z), sigmoid(u[:, 1] + r)
        h = (1 - z) * h + z * jnp.tanh(u[:, 2] + apply(p["C"], r * h))
    return readout(p, h)


# ------------------------------------------------------------- transformed functions
@jax.custom_vjp
def straight_through(h: Array) -> Array:
    return jnp.sign(h)


straight_through.defvjp(lambda h: (jnp.sign(h), None), lambda _, g: (g,))


@jax.custom_jvp
def clipped(h: Array) -> Array:
    return jnp.clip(h, -1.0, 1.0)


clipped.defjvps(lambda dh, _, h: dh * (jnp.abs(h) < 1))


@covers(*("jit", "custom_jvp_call", "custom_vjp_call", "remat2"), U=_U4, W=_W, v=_V)
def wrapped_functions(p: Params, x: Array) -> Array:
    layer = jax.checkpoint(lambda weight, h: straight_through(apply(weight, h)))
    h = clipped(jax.jit(apply)(p["U"], x))
    return readout(p, relu(layer(p["W"], h)) + h)


@covers("dot_general", "reduce_sum", x=SEQUENCE, U=_U3, W=_W, v=_V)
def vmap_over_inputs(p: Params, x: Array) -> Array:
    def one(tokens: Array) -> Array:
        h = relu(tokens @ p["U"] / math.sqrt(3))
        h = jnp.einsum("ij,tj->ti", p["W"], h) / jnp.sqrt(h.shape[-1])
        return jnp.tanh(h).sum(axis=0)

    return readout(p, jax.vmap(one)(x))


@covers("dot_general", U=_U4, W=_W, v=_V)
def gradient_inside(p: Params, x: Array) -> Array:
    def energy(h: Array) -> Array:
        return jnp.sum(jnp.log(jnp.cosh(h)))

    h = apply(p["U"], x)
    return readout(p, relu(apply(p["W"], jax.grad(energy)(h))))
