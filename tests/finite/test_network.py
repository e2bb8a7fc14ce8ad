"""Drawing a finite network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _errors, finite
from widelimit.trace import _declare as declare

n = declare.width("n")
m = declare.width("m")
TABLE = np.arange(6.0).reshape(2, 3)
PARAMS = {
    "table": TABLE,
    "U": declare.normal((3, n)),
    "W": [declare.normal((n, 2 * m), fan_in=0), declare.constant((2 * m,), 3.0)],
    "gain": 2.0,
}
KEY = jax.random.key(3)


def network(params, x):
    h = jnp.tanh(params["table"][x] @ params["U"])
    return params["gain"] * (h @ params["W"][0]) / jnp.sqrt(2 * m) + params["W"][1]


def test_a_network_at_its_widths():
    f, theta = finite.at(network, PARAMS, KEY, {"n": 8, "m": 5})
    x = jnp.array([0, 1, 1])
    expected = 2 * (np.tanh(TABLE[x] @ theta["U"]) @ theta["W"][0]) / np.sqrt(10) + 3
    np.testing.assert_allclose(f(theta, x), expected, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(f)(theta, x), expected, rtol=1e-13)
    assert f.__name__ == "network"
    assert theta["table"] is TABLE
    assert theta["gain"] == 2.0
    assert theta["U"].shape == (3, 8)
    assert theta["W"][0].shape == (8, 10)


def test_draws_differ_by_key_and_by_parameter():
    pair = {"a": declare.normal((n,)), "b": declare.normal((n,))}
    _, one = finite.at(network, pair, KEY, {"n": 6})
    _, same = finite.at(network, pair, KEY, {"n": 6})
    _, other = finite.at(network, pair, jax.random.key(4), {"n": 6})
    np.testing.assert_array_equal(one["a"], same["a"])
    assert not np.any(one["a"] == other["a"])
    assert not np.any(one["a"] == one["b"])


def test_two_widths_of_one_network_do_not_mix():
    @jax.jit
    def f(params, x):
        return x / n

    a, theta = finite.at(f, {"U": declare.normal((n,))}, KEY, {"n": 2})
    b, _ = finite.at(f, {"U": declare.normal((n,))}, KEY, {"n": 4})
    assert [float(g(theta, 8.0)) for g in (a, b, a)] == [4.0, 2.0, 4.0]
    assert theta["U"].shape == (2,)


def test_the_type_of_the_arrays():
    _, theta = finite.at(network, PARAMS, KEY, {"n": 2, "m": 2}, jnp.float32)
    assert theta["U"].dtype == jnp.float32
    _, theta = finite.at(network, PARAMS, KEY, {"n": 2, "m": 2})
    assert theta["U"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"n": 8}, "m is missing"),
        ({"n": 8, "m": 2, "k": 3}, "k is in no parameter"),
        ({"n": 8.5, "m": 2}, "positive whole number"),
        ({"n": 0, "m": 2}, "positive whole number"),
    ],
)
def test_bad_widths(widths, message):
    with pytest.raises(_errors.InputError, match=message):
        finite.at(network, PARAMS, KEY, widths)
