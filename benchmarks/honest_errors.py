"""Whether the errors of `net.estimate` are honest, on random gated networks.

Every network has one to three steps with gates, maxima, softmax over positions or
products of random depth and random variances, weights shared by the steps. Its kernel
is estimated twice: with few samples, and with 128 times as many and other random keys.

    python benchmarks/honest_errors.py [NETWORKS]

prints the part of the entries whose first estimate is within its reported `.error` of
the second one (to be at least 98 %), and the largest ratio of the difference to it.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl

FEW, MANY = 2**6, 2**13
n = wl.width("n")
FUNCTIONS: list[Callable[[Any], Any]] = [jnp.tanh, jax.nn.relu, jax.nn.silu, jnp.sin]
GATES: list[Callable[[Any], Any]] = [
    jax.nn.sigmoid,
    lambda x: jax.nn.softplus(x) / 2,
    lambda x: 0.5 * (1 + jax.lax.erf(x)),
    lambda x: jnp.clip(0.5 + x / 4, 0, 1),
]


def network(rng: np.random.Generator) -> tuple[Any, dict[str, Any], np.ndarray]:
    """A random network, its parameters and two sequences of inputs."""
    steps, kinds = int(rng.integers(1, 4)), rng.integers(5, size=3)
    gate, fn, last = (
        rng.choice(np.array(some, dtype=object))
        for some in (GATES, FUNCTIONS, FUNCTIONS)
    )
    params = {"v": wl.normal((n, 1))}
    for name in "zgr":
        params[f"U{name}"] = wl.normal((3, n), std=float(rng.uniform(0.3, 1.5)))
        params[f"W{name}"] = wl.normal((n, n), std=float(rng.uniform(0.3, 1.5)))
        params[f"b{name}"] = wl.normal((n,), std=float(rng.uniform(0, 0.5)))

    def f(p: Any, x: Any) -> Any:
        def sums(name: str, t: int, h: Any) -> Any:
            return (
                x[:, t] @ p[f"U{name}"]
                + h @ p[f"W{name}"] / jnp.sqrt(n)
                + p[f"b{name}"]
            )

        h = jnp.tanh(x[:, 0] @ p["Uz"] + p["bz"])
        for t in range(steps):
            z, r, g = gate(sums("z", t, h)), gate(sums("r", t, h)), sums("g", t, h)
            kind = kinds[t]
            if kind == 0:
                h = (1 - z) * h + z * fn(g)
            elif kind == 1:
                h = z * h + r * fn(g)
            elif kind == 2:
                h = r * last(z * h + fn(g))
            elif kind == 3:
                h = jnp.maximum(h, z * g)
            else:
                weights = jax.nn.softmax(jnp.stack([z, r, g]), 0)
                h = weights[0] * h + weights[1] * fn(g)
        return last(h) @ p["v"] / jnp.sqrt(n)

    return f, params, rng.normal(size=(2, 3, 3)) / 2


def main() -> None:
    """Count the entries within their errors."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    inside, largest, sampled = [], 0.0, 0
    for seed in range(count):
        f, params, x = network(np.random.default_rng(seed))
        net = wl.limit(f, params)
        first = net.estimate(x, samples=FEW, key=jax.random.key(2 * seed))
        second = net.estimate(x, samples=MANY, key=jax.random.key(2 * seed + 1))
        upper = np.triu_indices(2)
        off = np.abs(first.value - second.value)[upper]
        inside += list(off <= first.error[upper])
        largest = max(largest, float(np.max(off / first.error[upper])))
        sampled += "samples" in first.route
        if seed % 10 == 9:
            print(f"{seed + 1}: {100 * np.mean(inside):.1f} %", flush=True)
        jax.clear_caches()
    print(f"{count} networks, {sampled} of them sampled, {len(inside)} entries:")
    print(f"within the reported error: {100 * np.mean(inside):.2f} %")
    print(f"largest difference: {largest:.2f} reported errors")


if __name__ == "__main__":
    main()
