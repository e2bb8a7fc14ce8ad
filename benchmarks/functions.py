"""The networks of `workloads.py` as ordinary functions, as users of `wl.limit` write.

Each has the name and the settings of its twin in layers, takes the shape of an input,
and gives `f(params, x)` and the parameters.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

import widelimit as wl

n = wl.width("n")
ACTIVATIONS = {"Relu": jax.nn.relu, "Erf": jax.scipy.special.erf}
Function = tuple[Callable[[Any, Any], Any], Any]


def weight(*shape: Any, std: Any = 1.4) -> Any:
    """Weights std / sqrt(fan-in) times N(0, 1), as those of a layer."""
    return wl.normal(shape, std, parameterization="ntk")


def bias() -> Any:
    """One number a channel."""
    return weight(n, std=0.1)


def readout(size: Any, std: Any = 1.4) -> dict[str, Any]:
    """One output of so many features."""
    return {"v": weight(size, 1, std=std), "c": weight(1, std=0.1)}


def conv(x: Any, w: Any, strides: tuple[int, int] = (1, 1)) -> Any:
    """A convolution of images."""
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=axes)


def fully_connected(
    shape: tuple[int, ...], depth: int, act: str = "Relu", std: Any = 1.4
) -> Function:
    """`depth` layers with a nonlinearity, and a readout."""
    sizes = [*shape, *[n] * (depth - 1)]
    layers = [{"W": weight(size, n, std=std), "b": bias()} for size in sizes]

    def f(p: Any, x: Any) -> Any:
        for q in p["layers"]:
            x = ACTIVATIONS[act](x @ q["W"] + q["b"])
        return x @ p["v"] + p["c"]

    return f, {"layers": layers, **readout(n, std)}


def convolutional(
    shape: tuple[int, ...],
    depth: int,
    end: str = "GlobalAvgPool",
    act: str = "Relu",
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    std: Any = 1.4,
) -> Function:
    """`depth` convolutions; the second one strided."""
    *positions, channels = shape
    sizes = [channels, *[n] * (depth - 1)]
    layers = [{"W": weight(*window, size, n, std=std), "b": bias()} for size in sizes]
    pooled = end == "GlobalAvgPool"
    features = n if pooled else math.prod(positions) * n

    def f(p: Any, x: Any) -> Any:
        for i, q in enumerate(p["layers"]):
            step = strides if i == 1 else (1, 1)
            x = ACTIVATIONS[act](conv(x, q["W"], step) + q["b"])
        h = x.mean((1, 2)) if pooled else x.reshape(len(x), -1)
        return h @ p["v"] + p["c"]

    return f, {"layers": layers, **readout(features, std)}


def residual(shape: tuple[int, ...]) -> Function:
    """A small wide residual network: two blocks, the second one strided."""
    first, *others = [weight(3, 3, size, n) for size in (shape[-1], *[n] * 5)]

    def f(p: Any, x: Any) -> Any:
        relu = jax.nn.relu
        a, b, c, d, beside = p["W"]
        h = conv(x, p["U"])
        h = conv(relu(conv(relu(h), a)), b) + h
        h = conv(relu(conv(relu(h), c, (2, 2))), d) + conv(h, beside, (2, 2))
        return relu(h).mean((1, 2)) @ p["v"] + p["c"]

    return f, {"U": first, "W": others, **readout(n)}


def myrtle(shape: tuple[int, ...]) -> Function:
    """Myrtle-5 of Shankar et al. (2020)."""
    weights = [weight(3, 3, size, n) for size in (shape[-1], n, n, n)]

    def pool(h: Any) -> Any:
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(h, 0.0, jax.lax.add, window, window, "VALID") / 4

    def f(p: Any, x: Any) -> Any:
        a, b, c, d = p["W"]
        h = jax.nn.relu(conv(jax.nn.relu(conv(x, a)), b))
        h = pool(jax.nn.relu(conv(pool(h), c)))
        h = pool(pool(pool(jax.nn.relu(conv(h, d)))))
        return h.reshape(len(h), -1) @ p["v"] + p["c"]

    positions = math.prod(shape[:-1]) // 4**5
    return f, {"W": weights, **readout(positions * n)}
