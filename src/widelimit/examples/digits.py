"""Three networks that read handwritten digits: the main job of `widelimit demo`.

Each is an ordinary JAX function of its parameters and a batch of images, of shape
(N, 8, 8) with pixels in [0, 1], and gives ten outputs for each image. The module is
also a model file as the command line takes it: `params_<function>` declares the
parameters of a network, and `x` gives a small input for all of them.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl

n = wl.width("n")

# Weights of variance 2 keep the scale of relu layers; a small bias helps prediction.
WEIGHT, BIAS = math.sqrt(2.0), math.sqrt(0.1)

params_mlp = {
    "w1": wl.normal((64, n), std=WEIGHT),
    "b1": wl.normal((n,), std=BIAS),
    "w2": wl.normal((n, n), std=WEIGHT),
    "b2": wl.normal((n,), std=BIAS),
    "w3": wl.normal((n, n), std=WEIGHT),
    "b3": wl.normal((n,), std=BIAS),
    "out": wl.normal((n, 10)),
}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Three hidden layers on the 64 pixels."""
    h = x.reshape(x.shape[0], 64)
    for layer in "123":
        g = h @ params["w" + layer] / math.sqrt(h.shape[-1]) + params["b" + layer]
        h = wl.tap("h" + layer, jax.nn.relu(g))
    return h @ params["out"] / math.sqrt(h.shape[-1])


params_cnn = {
    "w1": wl.normal((3, 3, 1, n), std=WEIGHT),
    "b1": wl.normal((n,), std=BIAS),
    "w2": wl.normal((3, 3, n, n), std=WEIGHT),
    "b2": wl.normal((n,), std=BIAS),
    "w3": wl.normal((3, 3, n, n), std=WEIGHT),
    "b3": wl.normal((n,), std=BIAS),
    "out": wl.normal((n, 10)),
}


def cnn(params: Any, x: jax.Array) -> jax.Array:
    """Three 3 x 3 convolutions, the first of stride 2, then global average pooling."""
    h = x[..., None]
    for layer, stride in (("1", 2), ("2", 1), ("3", 1)):
        g = jax.lax.conv_general_dilated(
            h,
            params["w" + layer],
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        g = g / math.sqrt(9 * h.shape[-1]) + params["b" + layer]
        h = wl.tap("h" + layer, jax.nn.relu(g))
    pooled = h.mean((1, 2))
    return pooled @ params["out"] / math.sqrt(h.shape[-1])


params_rnn = {
    "w": wl.normal((n, n)),
    "u": wl.normal((8, n)),
    "b": wl.normal((n,), std=BIAS),
    "out": wl.normal((n, 10)),
}


def rnn(params: Any, x: jax.Array) -> jax.Array:
    """A recurrent network reads the eight rows with one matrix; averaged over rows."""

    def step(h: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = h @ params["w"] / math.sqrt(h.shape[-1]) + row @ params["u"] / math.sqrt(8)
        h = jax.nn.relu(g + params["b"])
        return h, h

    start = jnp.zeros((x.shape[0], params["w"].shape[0]), x.dtype)
    _, states = jax.lax.scan(step, start, jnp.moveaxis(x, 1, 0))
    states = wl.tap("h", jnp.moveaxis(states, 0, 1))
    return states.mean(1) @ params["out"] / math.sqrt(states.shape[-1])


def x() -> np.ndarray:
    """Four digits: the small input that `show`, `formula` and `check` use."""
    return load().images[:4]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Images of handwritten digits.

    Attributes:
        images: shape (1797, 8, 8), in [0, 1].
        labels: the digit on each image, shape (1797,).
        targets: shape (1797, 10); 0.9 in the column of the digit, -0.1 in the others.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray


def load() -> Digits:
    """The digits that come with scikit-learn; nothing is downloaded.

    References:
        Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits,
        https://doi.org/10.24432/C50P49.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    labels = np.asarray(data.target)
    return Digits(np.asarray(data.images) / 16, labels, np.eye(10)[labels] - 0.1)
