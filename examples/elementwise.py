"""Any nonlinearity: exactly, by quadrature, and with a kernel given by hand."""

import jax
import jax.numpy as jnp

from widelimit import stax


def main() -> dict[str, float]:
    """The kernel of one hidden layer of erf, by four routes."""
    x1 = jax.random.normal(jax.random.key(0), (6, 4))
    x2 = jax.random.normal(jax.random.key(1), (5, 4))

    def erf_by_hand(cov12, var1, var2):
        return (2 / jnp.pi) * jnp.arcsin(
            2 * cov12 / jnp.sqrt((1 + 2 * var1) * (1 + 2 * var2))
        )

    layers = {
        "closed form": stax.Erf(),
        "any function": stax.Elementwise(jax.scipy.special.erf),
        "kernel by hand": stax.Elementwise(nngp_fn=erf_by_hand),
        "quadrature": stax.ElementwiseNumerical(jax.scipy.special.erf, deg=25),
    }
    kernels = {}
    for name, layer in layers.items():
        _, _, kernel_fn = stax.serial(stax.Dense(1), layer, stax.Dense(1))
        kernels[name] = kernel_fn(x1, x2, "ntk")
    exact = kernels.pop("closed form")
    errors = {name: float(jnp.abs(k - exact).max()) for name, k in kernels.items()}
    for name, error in errors.items():
        print(f"{name}: differs by {error:.1e} from the closed form")
    return errors


if __name__ == "__main__":
    main()
