import jax
import jax.numpy as jnp
import pytest

from widelimit.gaussian import growth
from widelimit.scalar import from_callable

CASES = {
    "bounded": [
        jnp.tanh,
        jax.nn.sigmoid,
        jax.nn.relu6,
        jax.nn.hard_tanh,
        jax.nn.soft_sign,
        lambda x: jnp.exp(-(x**2)),
        lambda x: jnp.sin(jnp.exp(x)),
        lambda x: x / (1.0 + x**2),
        lambda x: 1.0 / jnp.cosh(x),
    ],
    "polynomial": [
        jax.nn.relu,
        jax.nn.elu,
        jax.nn.selu,
        jax.nn.celu,
        jax.nn.silu,
        jax.nn.gelu,
        jax.nn.mish,
        jax.nn.softplus,
        jax.nn.log_sigmoid,
        jax.nn.squareplus,
        jax.nn.hard_swish,
        lambda x: x**3 - x,
        lambda x: x * jnp.exp(-x * x / 2),
    ],
    "controlled": [
        jnp.exp,
        jnp.sinh,
        lambda x: jnp.exp(-x),
        lambda x: x**2 * jnp.exp(jnp.abs(x) ** 1.5),
        lambda x: jnp.exp(jnp.maximum(x, 0.0)),
    ],
    "beyond": [
        lambda x: jnp.exp(x**2),
        lambda x: jnp.exp(jnp.exp(x)),
        lambda x: 1.0 / x,
        lambda x: jnp.log(x),
        lambda x: jnp.exp(0.1 * x * x) * jnp.tanh(x),
    ],
}


@pytest.mark.parametrize(
    ("kind", "f"), [(kind, f) for kind, functions in CASES.items() for f in functions]
)
def test_class_of_growth(kind, f):
    assert growth(from_callable(lambda x: f(x), 1)) == kind


def test_growth_in_one_of_several_arguments():
    f = from_callable(lambda x, y: jnp.tanh(x) * jnp.exp(y), 2)
    assert growth(f, 0) == "bounded"
    assert growth(f, 1) == "controlled"
