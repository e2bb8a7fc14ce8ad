"""Which functions jump, and which are never negative."""

import jax
import jax.numpy as jnp
import pytest

from widelimit import scalar
from widelimit.gaussian import may_jump
from widelimit.scalar import Arg, Call, Const, is_nonnegative

CONTINUOUS = {
    "relu": jax.nn.relu,
    "select": lambda x: jnp.where(x > 0.0, x, 0.1 * x),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "hard tanh": jax.nn.hard_tanh,
    "hard swish": jax.nn.hard_swish,
    "sign": lambda x: x * jnp.sign(x),
    "triangle": lambda x: jnp.abs(x % 2.0 - 1.0),
    "repaired": lambda x: jnp.where(x > 0.7, 0.0, x) + x * (x > 0.7),
}
JUMPING = {
    "step": lambda x: 1.0 * (x > 0.0),
    "far": lambda x: jnp.where(x > 300.0, 1.0, 0.0),
    "sign": jnp.sign,
    "floor": jnp.floor,
    "rest": lambda x: x - jnp.floor(x),
    "hard threshold": lambda x: jnp.where(jnp.abs(x) > 1.0, x, 0.0),
    "log": lambda x: jnp.where(x > 0.0, jnp.log(x), 0.0),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_functions(name: str) -> None:
    assert not may_jump(scalar.from_callable(CONTINUOUS[name], 1), 0)


@pytest.mark.parametrize("name", JUMPING)
def test_functions_that_jump(name: str) -> None:
    assert may_jump(scalar.from_callable(JUMPING[name], 1), 0)


def test_a_function_may_jump_along_one_argument_only() -> None:
    f = scalar.from_callable(lambda d, u: d * (u > 0.0), 2)
    assert not may_jump(f, 0)
    assert may_jump(f, 1)


def test_a_comparison_of_two_arguments() -> None:
    larger = scalar.from_callable(lambda x, y: jnp.where(x > y, x, y), 2)
    gate = scalar.from_callable(lambda x, y: jnp.where(x > y, x, 0.0), 2)
    for i in (0, 1):
        assert not may_jump(larger, i)
        assert may_jump(gate, i)


def test_a_soft_threshold_jumps_at_negative_levels_only() -> None:
    soft = scalar.from_callable(
        lambda s, t: jnp.sign(s) * jnp.maximum(jnp.abs(s) - t, 0.0), 2
    )
    assert may_jump(soft, 0)
    assert not may_jump(soft, 0, frozenset([1]))


def test_expressions_that_are_never_negative() -> None:
    def known(f, *arguments: bool) -> bool:
        return is_nonnegative(scalar.from_callable(f, len(arguments)), arguments)

    assert known(lambda t: 1.4 * jnp.sqrt(t), False)
    assert known(lambda t: t * t + jnp.exp(t), False)
    assert known(lambda t: t**2, False)
    assert known(lambda s, t: jnp.maximum(s, 0.1) / (1.0 + t), False, True)
    assert not known(lambda s, t: s + t, True, False)
    assert not known(lambda t: 1.0 - t, True)
    assert not known(lambda t: t**3, False)
    assert not known(jnp.sin, True)
    assert is_nonnegative(Call("select", (Arg(0), Const(0.0), Const(1.0))), [False])
