"""Coverage networks: moving positions about, and splitting and joining widths."""

import jax
import jax.numpy as jnp
import numpy as np
from coverage_table import SEQUENCE, TOKENS, Params, apply, covers, m, n, readout
from jax import Array, lax
from jax.nn import relu

import widelimit as wl

_U3 = wl.normal((3, n))
_U4 = wl.normal((4, n))
_V = wl.normal((n, 1))


# --------------------------------------------------------------------- positions
@covers("slice", "squeeze", "gather", x=SEQUENCE, U=_U3, v=_V)
def indexing(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    picked = h[:, np.array([4, 0, 0])] - h[:, 1:4] + h[:, -1:]
    return readout(p, picked[:, ::2] + h[:, 2, None])


@covers("gather", x=TOKENS, E=wl.normal((4, n)), W=wl.normal((n, n)), v=_V)
def embedding(p: Params, x: Array) -> Array:
    h = p["E"][x] + jnp.take(p["E"], (x + 1) % 4, axis=0)
    return readout(p, relu(apply(p["W"], h)))


@covers("pad", "dynamic_slice", "rev", "concatenate", x=SEQUENCE, U=_U3, v=_V)
def shifting(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    padded = lax.pad(h, 0.0, [(0, 0, 0), (1, 2, 1), (0, 0, 0)])
    later = lax.dynamic_slice_in_dim(padded, 2, 5, axis=1)
    return readout(p, relu(h + later + jnp.roll(h, 1, axis=1) - h[:, ::-1]))


@covers("dynamic_update_slice", "scatter", x=SEQUENCE, U=_U3, v=_V)
def overwriting(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    h = h.at[:, 1].set(relu(h[:, 3]))
    h = lax.dynamic_update_slice_in_dim(h, jnp.sin(h[:, :2]), 3, axis=1)
    return readout(p, h)


@covers("scatter-add", x=SEQUENCE, U=_U3, W=_U3, v=_V)
def adding_at_positions(p: Params, x: Array) -> Array:
    h, more = apply(p["U"], x), relu(apply(p["W"], x))
    h = h.at[:, jnp.array([2, 0, 2])].add(more[:, :3])
    return readout(p, jnp.sin(h.at[:, 1].add(more[:, 4])))


@covers("pad", x=SEQUENCE, U=_U3, v=_V)
def padding_before_a_nonlinearity(p: Params, x: Array) -> Array:
    h = jnp.pad(apply(p["U"], x), ((0, 0), (1, 0), (0, 0)))
    return readout(p, jnp.cos(h))


@covers("stack", "tile", "transpose", "reshape", x=SEQUENCE, U=_U3, W=_U3, v=_V)
def stacking(p: Params, x: Array) -> Array:
    h, k = relu(apply(p["U"], x)), jnp.tanh(apply(p["W"], x))
    both = jnp.stack([h, k, h * k], axis=2)
    both = jnp.tile(both, (1, 1, 2, 1)).swapaxes(1, 2)
    return readout(p, both.reshape(x.shape[0], 30, -1)[:, ::7])


@covers("broadcast_in_dim", "mul", U=_U4, W=wl.normal((n, n)), v=_V)
def broadcasting(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    h = jnp.broadcast_to(h[:, None], (x.shape[0], 3, n)) * jnp.arange(1.0, 4.0)[:, None]
    h = relu(apply(p["W"], jnp.sin(h)) + jnp.expand_dims(h[:, 0], 1))
    return readout(p, jnp.repeat(h, 2, axis=1))


@covers("select_n", "iota", "ge", x=SEQUENCE, U=_U3, v=_V)
def fixed_masks(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    h = jnp.where((jnp.arange(5) % 2 == 0)[:, None], relu(h), h)
    lower = jnp.tril(jnp.ones((5, 5)))
    return readout(p, jnp.where(x[..., :1] > 0, lower @ h, 0.0))


@covers("iota", "eq", "dot_general", x=SEQUENCE, U=_U3, P=wl.normal((5, n)), v=_V)
def positional_encodings(p: Params, x: Array) -> Array:
    one_hot = jax.nn.one_hot(jnp.arange(x.shape[1]), 5)
    slow = jnp.sin(jnp.arange(x.shape[1]) / 3.0)
    h = apply(p["U"], x) + one_hot @ p["P"] + slow[:, None]
    return readout(p, relu(h))


# ------------------------------------------------------------------ widths, merged
@covers("reshape", x=SEQUENCE, U=_U3, v=wl.normal((5 * n, 1)), fast=True)
def flattening(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    return readout(p, h.reshape(x.shape[0], -1))


@covers("reshape", "transpose", x=SEQUENCE, U=_U3, W=wl.normal((5 * n, n)), v=_V)
def flattening_with_channels_first(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x))
    h = jnp.swapaxes(h, 1, 2).reshape(x.shape[0], -1)
    return readout(p, relu(apply(p["W"], h)))


@covers("concatenate", U=_U4, W=wl.normal((4, m)), Q=wl.normal((n + m, n)), v=_V)
def joining_unequal_widths(p: Params, x: Array) -> Array:
    h = jnp.concatenate([relu(apply(p["U"], x)), jnp.sin(apply(p["W"], x))], axis=-1)
    return readout(p, jnp.tanh(apply(p["Q"], h)))


@covers("concatenate", U=_U4, v=wl.normal((2 * n, 1)))
def joining_a_signal_with_its_image(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    return readout(p, jnp.concatenate([jnp.abs(h), h], axis=-1))


@covers("split", "slice", U=wl.normal((4, 4 * n)), v=_V)
def splitting_a_width(p: Params, x: Array) -> Array:
    h = apply(p["U"], x)
    a, b, rest = jnp.split(h, [n, 2 * n], axis=-1)
    c, d = rest[:, : rest.shape[-1] // 2], rest[:, n:]
    return readout(p, jnp.tanh(a) * b + relu(c + a) * jax.nn.sigmoid(d))


@covers("split", "concatenate", U=wl.normal((4, n + m)), v=wl.normal((n + m, 1)))
def splitting_unequal_widths(p: Params, x: Array) -> Array:
    a, b = jnp.split(apply(p["U"], x), [n], axis=-1)
    return readout(p, jnp.concatenate([jnp.tanh(b), relu(a)], axis=-1))


@covers("reshape", "reduce_sum", U=wl.normal((4, n)), W=wl.normal((2, n // 2, n)), v=_V)
def heads_by_reshape(p: Params, x: Array) -> Array:
    h = relu(apply(p["U"], x)).reshape(x.shape[0], 2, -1)
    mixed = jnp.einsum("nhi,hij->nhj", h, p["W"]) / jnp.sqrt(h.shape[-1])
    return readout(p, jnp.tanh(mixed.sum(axis=1)))
