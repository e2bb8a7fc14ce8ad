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
from convergence import gru, lstm, n, parameters

import widelimit as wl

WIDTH, SEEDS, OUTPUTS = 1024, 16, 1024
X = np.random.default_rng(0).normal(size=(4, 3, 6)) / 3


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
        params = parameters(names) | {"v": wl.normal((n, OUTPUTS))}
        net = wl.limit(f, params)
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
