"""Error against time: kernels of a GRU, an LSTM and batch normalisation.

Beside each estimate stands what real networks of one large width would give in the same
time, by the standard error of their kernels over seeds: the plain Monte Carlo that one
would do without a limit.

    python benchmarks/error_against_time.py

prints, for the limit with several numbers of samples and for the networks, the time of
a call after compilation, the first call, and the root mean square error over the
entries of the kernel; and the ratio of times at equal error, the error of networks
falling like 1 / sqrt(time).
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl

WIDTH, SEEDS, OUTPUTS = 1024, 16, 1024
n = wl.width("n")
X = np.random.default_rng(0).normal(size=(4, 3, 8)) / 3


def gates(names: str) -> dict[str, Any]:
    """Weights of gates, and a readout."""
    params = {"v": wl.normal((n, OUTPUTS))}
    for name in names:
        params[f"U{name}"] = wl.normal((8, n))
        params[f"W{name}"] = wl.normal((n, n))
        params[f"b{name}"] = wl.normal((n,), std=0.3)
    return params


def sums(p: Any, name: str, x: Any, h: Any) -> Any:
    """W h + U x + b."""
    return x @ p[f"U{name}"] + h @ p[f"W{name}"] / jnp.sqrt(h.shape[-1]) + p[f"b{name}"]


def gru(p: Any, x: Any) -> Any:
    """Three steps of gated recurrent units."""
    h = jnp.zeros((len(x), p["Wz"].shape[0]))
    for t in range(x.shape[1]):
        z, r = (jax.nn.sigmoid(sums(p, name, x[:, t], h)) for name in "zr")
        h = (1 - z) * h + z * jnp.tanh(sums(p, "c", x[:, t], r * h))
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


def lstm(p: Any, x: Any) -> Any:
    """Three steps of long short-term memory."""
    h = c = jnp.zeros((len(x), p["Wi"].shape[0]))
    for t in range(x.shape[1]):
        i, f, o = (jax.nn.sigmoid(sums(p, name, x[:, t], h)) for name in "ifo")
        c = f * c + i * jnp.tanh(sums(p, "g", x[:, t], h))
        h = o * jnp.tanh(c)
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


def batch_norm(p: Any, x: Any) -> Any:
    """Two layers, the first of them normalised over the batch."""
    h = x[:, 0] @ p["Ua"]
    h = jax.nn.relu((h - h.mean(0)) / jnp.sqrt(h.var(0)))
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


NETWORKS: dict[str, tuple[Callable[..., Any], str, Any]] = {
    "gru": (gru, "zrc", X),
    "lstm": (lstm, "ifog", X),
    "batch norm": (
        batch_norm,
        "a",
        np.tile(X, (4, 1, 1)) + np.arange(16)[:, None, None] % 5,
    ),
}


def timed(f: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, and the seconds of the first and of the second call."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = jax.block_until_ready(f())
        seconds.append(time.perf_counter() - start)
    return result, *seconds


def networks(net: Any, x: Any) -> tuple[float, float, float]:
    """The error of the mean over real networks, and the seconds it takes."""

    @jax.jit
    def kernel(x: Any) -> Any:
        def one(key: Any) -> Any:
            f, theta = net.at(key=key, n=WIDTH)
            y = f(theta, x)
            return y @ y.T / y.shape[-1]

        return jax.lax.map(one, jax.random.split(jax.random.key(0), SEEDS))

    found, first, second = timed(lambda: kernel(x))
    error = np.std(found, axis=0, ddof=1) / SEEDS**0.5
    return float(np.sqrt(np.mean(error**2))), first, second


def main() -> None:
    """Print the table."""
    for name, (f, names, x) in NETWORKS.items():
        net = wl.limit(f, gates(names))
        plain, first, plain_time = networks(net, x)
        print(f"{name}: networks of width {WIDTH}, {SEEDS} of them: ", end="")
        print(f"error {plain:.1e}, {plain_time:.3f} s (first call {first:.1f} s)")
        for samples in (2**8, 2**11, 2**14):
            ask = functools.partial(net.estimate, x, samples=samples)
            found, first, second = timed(ask)
            error = float(np.sqrt(np.mean(np.square(found.error / 3))))
            ratio = plain_time * (plain / error) ** 2 / second
            print(f"  {samples:6d} samples: error {error:.1e}, {second:.3f} s ", end="")
            print(f"(first call {first:.1f} s), {ratio:.0f} times less time")


if __name__ == "__main__":
    main()
