"""Taylor polynomials in the parameters, against derivatives by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _errors

RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.standard_normal(shape))


@pytest.mark.parametrize("degree", range(5))
def test_polynomials_and_their_derivatives_by_hand(degree):
    p, q, x = 0.7, 1.9, array(5)
    expanded = wl.taylor_expand(lambda p, x: p**4 * x - 3 * p**2, jnp.array(p), degree)
    terms = [
        p**4 * x - 3 * p**2,
        4 * p**3 * x - 6 * p,
        12 * p**2 * x - 6,
        24 * p * x,
        24 * x,
    ]
    step = q - p
    expected = sum(
        t * step**k / math.factorial(k) for k, t in enumerate(terms[: degree + 1])
    )
    np.testing.assert_allclose(expanded(q, x), expected, rtol=1e-13)
    if degree == 4:
        np.testing.assert_allclose(expanded(q, x), q**4 * x - 3 * q**2, rtol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_series_of_the_exponential(degree):
    def f(p, x):
        return {"e": jnp.exp(p["a"] * x), "sum": [p["a"] + p["b"]]}

    old, new = {"a": 0.3, "b": (2.0)}, {"a": 0.8, "b": -1.0}
    x = array(4)
    found = jax.jit(wl.taylor_expand(f, old, degree))(new, x)
    series = sum((0.5 * x) ** k / math.factorial(k) for k in range(degree + 1))
    np.testing.assert_allclose(found["e"], np.exp(0.3 * x) * series, rtol=1e-13)
    np.testing.assert_allclose(found["sum"][0], -0.2, rtol=1e-13)


def test_mixed_derivatives_of_several_parameters():
    params, new = [array(3, 4), {"v": array(4)}], [array(3, 4), {"v": array(4)}]
    x = array(2, 3)

    def f(p, x, *, scale, negate=False):
        y = scale * (x @ p[0] * p[1]["v"]) @ p[1]["v"]
        return -y if negate else y

    cubic = wl.taylor_expand(f, params, 3)
    exact = f(new, x, scale=2.0, negate=True)
    np.testing.assert_allclose(cubic(new, x, scale=2.0, negate=True), exact, rtol=1e-11)
    quadratic = wl.taylor_expand(f, params, 2)(new, x, scale=2.0, negate=True)
    (w, v), (w2, v2) = [(p[0], p[1]["v"]) for p in (params, new)]
    third = -2.0 * (x @ (w2 - w) * (v2 - v)) @ (v2 - v)
    np.testing.assert_allclose(quadratic, exact - third, rtol=1e-11)
    linear = wl.linearize(f, params)(new, x, scale=2.0, negate=True)
    first = x @ (w2 - w) * v @ v + 2 * (x @ w * v) @ (v2 - v)
    expected = f(params, x, scale=2.0, negate=True) - 2.0 * first
    np.testing.assert_allclose(linear, expected, rtol=1e-11)


def test_the_tangent_kernel_is_that_of_the_linearised_network():
    params, x = {"U": array(3, 8), "v": array(8, 2)}, array(4, 3)

    def f(p, x):
        return jnp.tanh(x @ p["U"]) @ p["v"]

    linear = wl.linearize(f, params)
    elsewhere = jax.tree.map(lambda a: a + 1.0, params)
    found = wl.empirical_ntk_fn(linear)(x, None, elsewhere)
    np.testing.assert_allclose(
        found, wl.empirical_ntk_fn(f)(x, None, params), rtol=1e-12
    )


def test_leaves_that_are_no_variables_are_those_given_last():
    def f(p, x):
        for _ in range(p["depth"]):
            x = x * p["a"]
        return x

    expanded = wl.taylor_expand(f, {"a": 1.0, "depth": 7}, 2)
    found = expanded({"a": 3.0, "depth": 2}, jnp.ones(2))
    np.testing.assert_allclose(found, 9.0, rtol=1e-14)


def test_types_are_kept():
    expanded = wl.taylor_expand(lambda p: p * p, jnp.float32(2.0), 2)
    assert expanded(np.float64(3.0)).dtype == jnp.float32
    assert float(expanded(3.0)) == 9.0


def test_errors_say_what_to_do():
    def f(p, x):
        return p["a"] * x

    old = {"a": jnp.ones(3)}
    for degree in (-1, 1.5, True, "2"):
        with pytest.raises(_errors.InputError, match="whole number, 0 or more"):
            wl.taylor_expand(f, old, degree)
    linear = wl.linearize(f, old)
    with pytest.raises(_errors.ShapeMismatchError, match="structure"):
        linear({"b": jnp.ones(3)}, 1.0)
    with pytest.raises(_errors.ShapeMismatchError, match=r"\(2,\) in place of \(3,\)"):
        linear({"a": jnp.ones(2)}, 1.0)
    with pytest.raises(_errors.ShapeMismatchError, match="real numbers in the same"):
        linear({"a": jnp.ones(3, int)}, 1.0)
    with pytest.raises(_errors.InputError, match="complex"):
        linear({"a": 1j * jnp.ones(3)}, 1.0)
    with pytest.raises(_errors.InputError, match="type int"):
        wl.taylor_expand(lambda p, x: jnp.arange(3), old, 2)(old, 1.0)
