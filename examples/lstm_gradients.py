"""Gradients of an LSTM over time, in the limit and with 1000 neurons; untied weights.

After figure 1 and section 2.2 of Yang (2019), https://arxiv.org/abs/1902.04760.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import widelimit as wl

STEPS, WIDTH, SEEDS = 10, 1000, 8
FIGURE = "lstm_gradients.png"
n = wl.width("n")


def lstm(p, x, shifts=None):
    """A readout of the last state, from zero states and without inputs.

    What `shifts` holds is added to the states: its derivative is the gradient there.
    """
    width, steps = p["v"].shape[0], x.shape[1]
    h = c = jnp.zeros((len(x), width))
    for t in range(steps):
        a = {g: h @ p[f"W{g}"] / jnp.sqrt(width) + p[f"b{g}"] for g in "ifog"}
        i, f, o = (jax.nn.sigmoid(a[g]) for g in "ifo")
        c = wl.tap(f"c{t}", f * c + i * jnp.tanh(a["g"]))
        c = c if shifts is None else c + shifts["c"][t]
        h = wl.tap(f"h{t}", o * jnp.tanh(c))
        h = h if shifts is None else h + shifts["h"][t]
    return h @ p["v"] / jnp.sqrt(width)


def rnn(p, x):
    """The same with one tanh a step, and with inputs."""
    h = jnp.zeros((len(x), n))
    for t in range(x.shape[1]):
        h = jnp.tanh(h @ p["W"] / jnp.sqrt(n) + x[:, t] @ p["U"])
    return h @ p["v"] / jnp.sqrt(n)


def residual(p, x):
    """A residual network with one matrix for all layers."""
    h = x[:, 0] @ p["U"]
    for _ in range(x.shape[1]):
        h = h + jnp.tanh(h) @ p["W"] / jnp.sqrt(n)
    return h @ p["v"] / jnp.sqrt(n)


def gates(w_std, b_std):
    """The parameters of an LSTM."""
    weights = {f"W{g}": wl.normal((n, n), std=w_std) for g in "ifog"}
    biases = {f"b{g}": wl.normal((n,), std=b_std) for g in "ifog"}
    return weights | biases | {"v": wl.normal((n,))}


def in_the_limit(x):
    """The second moments of the gradients at h and c, one row a step: value, error."""
    net = wl.limit(lstm, gates(1.0, 0.1))
    # Many steps: with samples of everything there are fewer integrals to plan.
    found = net.estimate(x, get="statistics", route="samples", samples=2048)
    return {
        q: np.array(
            [
                [float(k.value[0, 0]), float(k.error[0, 0])]
                for k in (found[f"{q}{t}"].gradient for t in range(STEPS))
            ]
        )
        for q in "hc"
    }


def at_width(x):
    """The same of real networks: the mean, and three standard errors."""
    net = wl.limit(lstm, gates(1.0, 0.1))
    zeros = {q: jnp.zeros((STEPS, 1, WIDTH)) for q in "hc"}

    @jax.jit
    def squares(theta):
        slopes = jax.grad(lambda shifts: lstm(theta, x, shifts).sum())(zeros)
        return jax.tree.map(lambda g: jnp.sum(g**2, (1, 2)), slopes)

    runs = []
    for seed in range(SEEDS):
        _, theta = net.at(key=jax.random.key(seed), n=WIDTH)
        runs.append(squares(theta))
    found = {q: np.stack([run[q] for run in runs]) for q in "hc"}
    return {
        q: np.stack([k.mean(0), 3 * k.std(0, ddof=1) / SEEDS**0.5], 1)
        for q, k in found.items()
    }


def tied_and_untied():
    """The variance of the output with tied and with untied weights, by network."""
    x = np.random.default_rng(0).normal(size=(1, 4, 3)) / 3**0.5
    params = {"U": wl.normal((3, n)), "v": wl.normal((n,))}
    cases = {
        "simple RNN": (rnn, params | {"W": wl.normal((n, n), std=1.5)}),
        "residual": (residual, params | {"W": wl.normal((n, n))}),
        "LSTM": (lstm, gates(2.0, 0.5)),
    }
    return {
        name: [
            wl.limit(g, p).estimate(x, route="samples", samples=4096)
            for g in (f, wl.untie(f))
        ]
        for name, (f, p) in cases.items()
    }


def plot(theory, networks):
    """Both, by steps from the last."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, q in zip(figure.subplots(1, 2, sharey=True), "hc", strict=True):
        steps = np.arange(1, STEPS + 1)
        axes.plot(steps, theory[q][:, 0], label="infinitely wide")
        axes.errorbar(
            steps, *networks[q].T, fmt="o", label=f"{SEEDS} networks of {WIDTH} neurons"
        )
        axes.set(yscale="log", xlabel="step t", title=f"|dL/d{q}_t|²")
        axes.legend()
    figure.savefig(FIGURE)
    print(f"written to {FIGURE}")


def main() -> dict[str, float]:
    """How far networks are from the limit, and untied from tied weights."""
    x = np.zeros((1, STEPS))  # its length is what the network reads
    theory, networks = in_the_limit(x), at_width(x)
    print("step     dh, limit   1000 neurons     dc, limit   1000 neurons")
    for t in range(STEPS):
        cells = [k[q][t, 0] for q in "hc" for k in (theory, networks)]
        print(f"{t + 1:4d}  " + "  ".join(f"{v:12.3e}" for v in cells))
    plot(theory, networks)
    apart = [
        abs(theory[q] - networks[q])[:, 0] / np.hypot(theory[q], networks[q])[:, 1]
        for q in "hc"
    ]
    found = {"neurons": float(np.max(apart))}
    print("\nvariance of the output   tied     untied   difference   error")
    for name, (tied, untied) in tied_and_untied().items():
        gap = float(untied.value[0, 0] - tied.value[0, 0])
        error = float(np.hypot(tied.error, untied.error)[0, 0])
        values = [float(k.value[0, 0]) for k in (tied, untied)]
        print(f"{name:22s} {values[0]:8.5f} {values[1]:8.5f} {gap:9.5f}  {error:9.5f}")
        found[name] = abs(gap) / error
    return found


if __name__ == "__main__":
    main()
