import jax
import jax.numpy as jnp
import pytest

from widelimit.gaussian import Signs, growth, is_positive, is_singular
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


def test_what_is_known_of_arguments_removes_poles():
    f = from_callable(lambda x, y: x / jnp.sqrt(y), 2)
    assert growth(f, 0) == "polynomial"
    assert growth(f, 1) == "beyond"
    assert is_singular(f, 1)
    assert not is_singular(f, 0)
    assert is_singular(f, 1, Signs(nonnegative=frozenset({1})))
    kept = Signs(positive=frozenset({1}))
    assert not is_singular(f, 1, kept)
    assert growth(f, 1, kept) == "bounded"


def test_a_negative_constant_does_not_keep_a_sum_from_zero():
    """1 / (x^2 - 1) has poles."""
    f = from_callable(lambda x: 1 / (-1.0 + x**2), 1)
    assert growth(f) == "beyond"
    assert is_singular(f)


def test_what_stays_above_a_positive_constant():
    both = frozenset({0, 1})
    f = from_callable(lambda x, y: jnp.sqrt(x + 0.1) + y**2, 2)
    assert not is_positive(f, both, Signs())
    assert is_positive(f, both, Signs(nonnegative=frozenset({0})))
    assert is_positive(from_callable(lambda x: x, 1), both, Signs(positive=both))
