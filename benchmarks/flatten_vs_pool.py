"""What a readout costs: flattened O(positions), pooled O(positions^2).

A convolutional network whose readout has one weight for each position needs only the
covariances of equal positions; one that averages over positions first needs those of
all pairs of positions. Nobody tells the compiler: it finds out what the readout needs.

    python benchmarks/flatten_vs_pool.py

prints, for square images of 8, 16 and 32 pixels, the time of the NNGP kernel of one
pair of images (float32, median of several runs after compilation), and the exponent of
the number of positions that fits the two largest sizes.
"""

import math
import statistics
import time
from typing import Any

import jax
import numpy as np

import widelimit as wl

SIZES = (8, 16, 32)
LAYERS = 4
n = wl.width("n")


def parameters(size: int) -> dict[str, Any]:
    """Weights of a network on images of `size` x `size`, for either readout."""
    layers = {"w0": wl.normal((3, 3, 3, n), std=math.sqrt(2))}
    for layer in range(1, LAYERS):
        layers[f"w{layer}"] = wl.normal((3, 3, n, n), std=math.sqrt(2))
    flat = wl.normal((size, size, n, 1))
    return {**layers, "flat": flat, "pool": wl.normal((n, 1))}


def features(params: Any, x: jax.Array) -> jax.Array:
    """`LAYERS` convolutions of 3 x 3 with relu."""
    h = x
    for layer in range(LAYERS):
        channels = h.shape[-1]
        h = jax.lax.conv_general_dilated(
            h,
            params[f"w{layer}"],
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h / math.sqrt(9 * channels))
    return h


def flattened(params: Any, x: jax.Array) -> jax.Array:
    """One readout weight for each position and channel."""
    h = features(params, x)
    scale = math.sqrt(math.prod(h.shape[1:]))
    return jax.numpy.einsum("bijc,ijco->bo", h, params["flat"]) / scale


def pooled(params: Any, x: jax.Array) -> jax.Array:
    """The average over positions, then one readout weight for each channel."""
    h = features(params, x).mean((1, 2))
    return h @ params["pool"] / math.sqrt(h.shape[-1])


def seconds_per_pair(f: Any, size: int, images: int) -> float:
    """The median time of the kernel of two blocks, over the number of its pairs."""
    net = wl.limit(f, parameters(size))
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(2, images, size, size, 3)).astype(np.float32)
    jax.block_until_ready(net.nngp(x1, x2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(net.nngp(x1, x2))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / images**2


def main() -> None:
    """Print the table."""
    print("readout     positions   time of a pair")
    for f, images in ((flattened, (64, 64, 64)), (pooled, (16, 8, 2))):
        times = []
        for size, count in zip(SIZES, images, strict=True):
            times.append(seconds_per_pair(f, size, count))
            print(f"{f.__name__:<10} {size * size:>10} {times[-1] * 1e6:>13.1f} us")
        steps = math.log(SIZES[-1] ** 2 / SIZES[-2] ** 2)
        exponent = math.log(times[-1] / times[-2]) / steps
        print(f"{f.__name__:<10} costs positions^{exponent:.2f}\n")


if __name__ == "__main__":
    main()
