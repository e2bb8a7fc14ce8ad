"""A network in training, predicted from the tangent kernel that it starts with."""

import jax
import jax.numpy as jnp
from infinite_fcn import digits

import widelimit as nt
from widelimit import stax


def main() -> dict[str, float]:
    """The distance of network and prediction on test images, in the end."""
    x, y, x_test, _ = digits(64, 16)
    init_fn, f, _ = stax.serial(
        stax.Dense(2048, 1.0, 0.05), stax.Erf(), stax.Dense(10, 1.0, 0.05)
    )
    _, theta = init_fn(jax.random.key(0), (-1, x.shape[1]))
    start, start_test = f(theta, x), f(theta, x_test)

    ntk_fn = nt.empirical_ntk_fn(f)
    k_train = ntk_fn(x, None, theta)
    k_test = ntk_fn(x_test, x, theta)
    predict_fn = nt.predict.gradient_descent_mse(k_train, y)
    rate = 0.5 * nt.predict.max_learning_rate(k_train, y.size)

    @jax.jit
    def step(theta):
        def loss(theta):
            return 0.5 * jnp.mean((f(theta, x) - y) ** 2)

        return jax.tree.map(lambda p, d: p - rate * d, theta, jax.grad(loss)(theta))

    count = 100
    for _ in range(count):
        theta = step(theta)
    _, predicted = predict_fn(rate * count, start, start_test, k_test)
    moved = jnp.linalg.norm(predicted - start_test)
    found = {"apart": float(jnp.linalg.norm(f(theta, x_test) - predicted) / moved)}
    print(f"after {count} steps: {100 * found['apart']:.1f} % of the way apart")
    return found


if __name__ == "__main__":
    main()
