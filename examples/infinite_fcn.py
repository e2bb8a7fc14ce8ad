"""Images of digits, classified by infinitely wide networks of any training time."""

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import widelimit as nt
from widelimit import stax


def digits(train: int, test: int) -> tuple[np.ndarray, ...]:
    """Images as rows of mean 0, and labels as rows of mean 0."""
    x, labels = load_digits(return_X_y=True)
    x = (x - x.mean()) / x.std()
    y = np.eye(10)[labels] - 0.1
    order = np.random.default_rng(0).permutation(len(x))
    first, second = order[:train], order[train : train + test]
    return x[first], y[first], x[second], y[second]


def main() -> dict[str, float]:
    """Accuracy of the Bayesian network and of the one trained for ever."""
    x_train, y_train, x_test, y_test = digits(500, 300)
    _, _, kernel_fn = stax.serial(
        stax.Dense(1024, 1.4, 0.1), stax.Relu(), stax.Dense(10, 1.4, 0.1)
    )
    kernel_fn = nt.batch(kernel_fn, batch_size=250)
    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x_train, y_train, diag_reg=1e-3
    )
    accuracies = {}
    for kind in ("nngp", "ntk"):
        mean = predict_fn(x_test=x_test, get=kind)
        right = jnp.argmax(mean, -1) == jnp.argmax(y_test, -1)
        accuracies[kind] = float(right.mean())
        print(f"{kind}: {100 * accuracies[kind]:.1f} % of {len(x_test)} images right")
    return accuracies


if __name__ == "__main__":
    main()
