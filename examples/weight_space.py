"""A network and its linearisation in the weights, trained side by side."""

import jax
import jax.numpy as jnp
from infinite_fcn import digits

import widelimit as nt
from widelimit import stax


def main() -> dict[str, float]:
    """Losses of both after every ten steps of gradient descent."""
    x, y, _, _ = digits(128, 0)
    init_fn, f, _ = stax.serial(
        stax.Dense(2048, 1.0, 0.05), stax.Erf(), stax.Dense(10, 1.0, 0.05)
    )
    _, params = init_fn(jax.random.key(0), (-1, x.shape[1]))
    linear = nt.linearize(f, params)

    def loss(g, theta):
        return 0.5 * jnp.mean((g(theta, x) - y) ** 2)

    rate = 20.0
    steps = {
        name: jax.jit(
            lambda theta, g=g: jax.tree.map(
                lambda p, d: p - rate * d, theta, jax.grad(lambda t: loss(g, t))(theta)
            )
        )
        for name, g in (("network", f), ("linear", linear))
    }
    theta = dict.fromkeys(steps, params)
    for step in range(51):
        losses = {
            name: float(loss(g, theta[name]))
            for name, g in (("network", f), ("linear", linear))
        }
        if step % 10 == 0:
            print(
                f"step {step:2d}: "
                + ", ".join(f"{k} {v:.5f}" for k, v in losses.items())
            )
        theta = {name: steps[name](value) for name, value in theta.items()}
    return losses


if __name__ == "__main__":
    main()
