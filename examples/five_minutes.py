"""An infinitely wide network in five minutes: its kernels, and what it predicts."""

import jax
import jax.numpy as jnp

import widelimit as nt
from widelimit import stax


def main() -> dict[str, float]:
    """Fit a sine by Bayes' rule and by gradient descent, both in the limit."""
    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(1, W_std=1.5, b_std=0.05),
    )
    x_train = jnp.linspace(-jnp.pi, jnp.pi, 10)[:, None]
    y_train = jnp.sin(x_train)
    x_test = jnp.linspace(-jnp.pi, jnp.pi, 50)[:, None]

    # Both kernels in one pass; the finite network beside them.
    kernels = kernel_fn(x_test, x_train, ("nngp", "ntk"))
    _, params = init_fn(jax.random.key(0), x_train.shape)
    print(f"kernels {kernels.nngp.shape}, a network {apply_fn(params, x_test).shape}")

    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x_train, y_train, diag_reg=1e-4
    )
    errors = {}
    for kind in ("nngp", "ntk"):
        found = predict_fn(x_test=x_test, get=kind, compute_cov=True)
        deviation = jnp.sqrt(jnp.diag(found.covariance))
        errors[kind] = float(jnp.abs(found.mean - jnp.sin(x_test)).max())
        print(
            f"{kind}: largest error {errors[kind]:.3f}, largest standard deviation "
            f"{deviation.max():.3f}"
        )
    return errors


if __name__ == "__main__":
    main()
