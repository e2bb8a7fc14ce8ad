"""Small helpers to write the reference networks as ordinary JAX.

A declaration (`dense`, `conv`, ...) gives the parameters of one layer; the function of
the same layer (`apply_dense`, `apply_conv`, ...) is what a user would write inline. The
weights have entries N(0, std^2) and the 1/sqrt(fan-in) is in the network.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import widelimit as wl

Params = Mapping[str, Any]

n = wl.width("n")
m = wl.width("m", ratio=2.0)


def with_base(base: int) -> tuple[Any, Any]:
    """The two widths, with the widths of the peer's network as their bases."""
    return wl.width("n", base=base), wl.width("m", ratio=2.0, base=2 * base)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the peer, written in JAX.

    Attributes:
        name: its name in the data.
        data: the name of its input.
        f: the network, `f(params, x)`.
        params: its parameters.
    """

    name: str
    data: str
    f: Callable[[Params, Array], Array]
    params: Params


NETWORKS: dict[str, Network] = {}


def network(data: str, **params: Any) -> Callable[..., Any]:
    """Add the decorated network to `NETWORKS`."""

    def add(f: Callable[[Params, Array], Array]) -> Callable[[Params, Array], Array]:
        add_network(f.__name__, data, f, params)
        return f

    return add


def add_network(
    name: str,
    data: str,
    f: Callable[[Params, Array], Array],
    params: Params,
) -> None:
    """Add a network under a name that is not a Python identifier."""
    if name in NETWORKS:
        raise ValueError(f"two networks are called {name}")
    NETWORKS[name] = Network(name, data, f, params)


def dense(d_in: Any, d_out: Any, std: float = 1.5, b: float | None = 0.3) -> Params:
    """Parameters of a fully connected layer."""
    weight = {"W": wl.normal((d_in, d_out), std=std)}
    return weight if b is None else {**weight, "b": wl.normal((d_out,), std=b)}


def apply_dense(p: Params, x: Array) -> Array:
    h = x @ p["W"] / math.sqrt(x.shape[-1])
    return h + p["b"] if "b" in p else h


def conv(
    filter_shape: Sequence[int],
    d_in: Any,
    d_out: Any,
    std: float = 1.4,
    b: float | None = 0.2,
) -> Params:
    """Parameters of a convolution, channels last."""
    weight = {"W": wl.normal((*filter_shape, d_in, d_out), std=std)}
    return weight if b is None else {**weight, "b": wl.normal((d_out,), std=b)}


def apply_conv(
    p: Params, x: Array, padding: str = "VALID", strides: Sequence[int] | None = None
) -> Array:
    *filter_shape, d_in, _ = p["W"].shape
    letters = "DHW"[-len(filter_shape) :]
    y = lax.conv_general_dilated(
        x,
        p["W"],
        strides or (1,) * len(filter_shape),
        padding,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    return y / jnp.sqrt(math.prod(filter_shape) * d_in) + p["b"]


def global_average(h: Array) -> Array:
    return h.mean(axis=tuple(range(1, h.ndim - 1)))


def flatten(h: Array) -> Array:
    return h.reshape(h.shape[0], -1)


def sum_pool(
    h: Array, window: Sequence[int], strides: Sequence[int], padding: str = "VALID"
) -> Array:
    return lax.reduce_window(
        h, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), padding
    )


def average_pool(
    h: Array, window: Sequence[int], strides: Sequence[int], padding: str = "VALID"
) -> Array:
    return sum_pool(h, window, strides, padding) / math.prod(window)


def layer_norm(h: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    centred = h - h.mean(axis, keepdims=True)
    return centred / jnp.sqrt(h.var(axis, keepdims=True) + eps)


def dropout(key: Array, keep: float, h: Array) -> Array:
    kept = jax.random.bernoulli(key, keep, h.shape)
    return jnp.where(kept, h / keep, 0.0)
