"""How fast real networks approach their limits, in powers of the width.

    python benchmarks/convergence.py [WIDTH [SEEDS [NAME ..]]]

checks networks with gates, batch normalisation, attention, maxima and shared weights
at widths 64, 256, 1024, .. up to WIDTH (4096) with SEEDS (64) networks each, and prints
for each the verdict of `net.check` at the largest width and the exponent of the
deviation of a single network from the limit, -1/2 by the theorems.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl

n = wl.width("n")
heads, d = wl.width("heads", ratio=1 / 64), wl.width("d", ratio=1 / 8)
X = np.random.default_rng(0).normal(size=(3, 3, 6)) / 2


def linear(p: Any, name: str, x: Any, h: Any = None) -> Any:
    """U x + b, and W h where there is a state."""
    out = x @ p[f"U{name}"] + p[f"b{name}"]
    return out if h is None else out + h @ p[f"W{name}"] / jnp.sqrt(h.shape[-1])


def readout(p: Any, h: Any) -> Any:
    """The tapped features, read out."""
    h = wl.tap("h", h)
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


def lstm(p: Any, x: Any) -> Any:
    """Three steps of long short-term memory."""
    h = c = jnp.zeros((len(x), p["Wi"].shape[0]))
    for t in range(x.shape[1]):
        i, f, o = (jax.nn.sigmoid(linear(p, k, x[:, t], h)) for k in "ifo")
        c = f * c + i * jnp.tanh(linear(p, "g", x[:, t], h))
        h = o * jnp.tanh(c)
    return readout(p, h)


def gru(p: Any, x: Any) -> Any:
    """Three steps of gated recurrent units."""
    h = jnp.zeros((len(x), p["Wz"].shape[0]))
    for t in range(x.shape[1]):
        z, r = (jax.nn.sigmoid(linear(p, k, x[:, t], h)) for k in "zr")
        h = (1 - z) * h + z * jnp.tanh(linear(p, "c", x[:, t], r * h))
    return readout(p, h)


def minimal_gated_unit(p: Any, x: Any) -> Any:
    """Three steps with one gate."""
    h = jnp.zeros((len(x), p["Wf"].shape[0]))
    for t in range(x.shape[1]):
        f = jax.nn.sigmoid(linear(p, "f", x[:, t], h))
        h = (1 - f) * h + f * jnp.tanh(linear(p, "c", x[:, t], f * h))
    return readout(p, h)


def batch_norm(p: Any, x: Any) -> Any:
    """A layer that is normalised over words and inputs."""
    h = linear(p, "a", x)
    h = jax.nn.relu((h - h.mean((0, 1))) / jnp.sqrt(h.var((0, 1))))
    return readout(p, h.mean(1))


def attention(p: Any, x: Any) -> Any:
    """Softmax of logits q.k/n."""
    q, k, v = (linear(p, name, x) for name in "qkv")
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / q.shape[-1])
    return readout(p, jnp.tanh(weights @ v)[:, 0])


def many_heads(p: Any, x: Any) -> Any:
    """Softmax of logits q.k/sqrt(d), in many heads."""
    h = jnp.tanh(linear(p, "a", x))
    q, k, v = (
        jnp.einsum("npc,chd->nhpd", h, p[name]) / jnp.sqrt(h.shape[-1])
        for name in "QKV"
    )
    weights = jax.nn.softmax(q @ k.mT / jnp.sqrt(q.shape[-1]))
    y = jnp.einsum("nhpd,hdc->npc", weights @ v, p["O"])
    return readout(p, jnp.tanh(y[:, 0] / jnp.sqrt(q.shape[1] * q.shape[3])))


def max_pool(p: Any, x: Any) -> Any:
    """The largest of three words."""
    return readout(p, jax.nn.relu(linear(p, "a", x)).max(1))


def position_softmax(p: Any, x: Any) -> Any:
    """Words weighed by a softmax, coordinate by coordinate."""
    weights = jax.nn.softmax(linear(p, "a", x), axis=1)
    return readout(p, (weights * linear(p, "b", x)).sum(1))


def swiglu(p: Any, x: Any) -> Any:
    """silu(a) b."""
    return readout(p, jax.nn.silu(linear(p, "a", x[:, 0])) * linear(p, "b", x[:, 0]))


def mixture(p: Any, x: Any) -> Any:
    """Two experts and their gate."""
    gate = jax.nn.softmax(jnp.stack([linear(p, k, x[:, 0]) for k in "ab"]), 0)
    h = jnp.stack([jnp.tanh(linear(p, k, x[:, 1])) for k in "cd"])
    return readout(p, (gate * h).sum(0))


def tied_residual(p: Any, x: Any) -> Any:
    """A layer h + W tanh(h), twice with one W, after the activation."""
    h = linear(p, "a", x[:, 0])
    for _ in range(2):
        h = h + jnp.tanh(h) @ p["Wa"] / jnp.sqrt(h.shape[-1])
    return readout(p, h)


def parameters(names: str) -> dict[str, Any]:
    """Weights of every name, those of heads in capitals, and a readout."""
    params = {"v": wl.normal((n, 1))}
    for name in names:
        if name.isupper():
            shape = (heads, d, n) if name == "O" else (n, heads, d)
            params[name] = wl.normal(shape, std=1.5)
            continue
        params[f"U{name}"] = wl.normal((6, n))
        params[f"W{name}"] = wl.normal((n, n))
        params[f"b{name}"] = wl.normal((n,), std=0.3)
    return params


NETWORKS: dict[str, tuple[Callable[..., Any], str]] = {
    "LSTM": (lstm, "ifog"),
    "GRU": (gru, "zrc"),
    "minimal gated unit": (minimal_gated_unit, "fc"),
    "batch normalisation": (batch_norm, "a"),
    "attention, logits q.k/n": (attention, "qkv"),
    "attention, logits q.k/sqrt(d), many heads": (many_heads, "aQKVO"),
    "max-pooling": (max_pool, "a"),
    "softmax over positions": (position_softmax, "ab"),
    "SwiGLU": (swiglu, "ab"),
    "mixture of experts": (mixture, "abcd"),
    "tied residual": (tied_residual, "a"),
}


def main() -> None:
    """Check every network."""
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    widths = [w for w in (64, 256, 1024, 4096) if w <= largest]
    print(f"| network | agrees at width {widths[-1]} | exponent |\n|---|---|---|")
    for name in sys.argv[3:] or NETWORKS:
        f, names = NETWORKS[name]
        net = wl.limit(f, parameters(names))
        check = net.check(X, widths=widths, seeds=seeds, key=jax.random.key(1))
        found = ", ".join(f"{check.slopes[k]:.2f}" for k in check.slopes)
        print(f"| {name} | {check.passed} | {found} |", flush=True)


if __name__ == "__main__":
    main()
