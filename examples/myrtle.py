"""The Myrtle convolutional kernel on images of digits."""

import jax.numpy as jnp
from infinite_fcn import digits

import widelimit as nt
from widelimit import stax


def myrtle(depth: int, width: int = 1, W_std: float = 2**0.5, b_std: float = 0.0):
    """Convolutions and poolings in three stages, at 8 x 8 positions or more.

    References:
        Shankar et al. (2020), "Neural Kernels Without Tangents",
        https://arxiv.org/abs/2003.02237.
    """
    repeats = {5: (1, 1, 1), 7: (1, 2, 2), 10: (2, 3, 3)}[depth]
    layers = []
    for stage, count in enumerate((repeats[0] + 1, *repeats[1:])):
        layers += [stax.Conv(width, (3, 3), padding="SAME", W_std=W_std, b_std=b_std),
                   stax.Relu()] * count  # fmt: skip
        layers += [stax.AvgPool((2, 2), strides=(2, 2))] * (2 if stage == 2 else 1)
    del layers[-1]
    layers += [stax.Flatten(), stax.Dense(10, W_std, b_std)]
    return stax.serial(*layers)


def main() -> dict[str, float]:
    """Accuracy of the tangent kernel on a few images."""
    x_train, y_train, x_test, y_test = digits(80, 60)
    x_train, x_test = (x.reshape(-1, 8, 8, 1) for x in (x_train, x_test))
    _, _, kernel_fn = myrtle(5)
    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        nt.batch(kernel_fn, batch_size=40), x_train, y_train, diag_reg=1e-3
    )
    mean = predict_fn(x_test=x_test, get="ntk")
    accuracy = float((jnp.argmax(mean, -1) == jnp.argmax(y_test, -1)).mean())
    print(f"{100 * accuracy:.1f} % of {len(x_test)} images right")
    return {"accuracy": accuracy}


if __name__ == "__main__":
    main()
