"""Running a network and keeping what it taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _errors
from widelimit.finite import _taps
from widelimit.trace import _declare as declare

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
SEED = jnp.uint32(5)


def run(f, *args):
    return _taps.run_with_taps(f, {}, *(args or (X,)), SEED)


@jax.custom_vjp
def clipped(x):
    return jnp.clip(declare.tap("inner", x), -0.5, 0.5)


clipped.defvjp(lambda x: (clipped(x), x), lambda x, ct: (ct,))


def body(_, x):
    return declare.tap("inner", x) * 1.0


@pytest.mark.parametrize(
    "wrap",
    [
        body,
        lambda p, x: jax.jit(lambda y: body(p, y))(x),
        lambda p, x: jax.checkpoint(lambda y: body(p, y))(x),
        lambda p, x: jax.vmap(lambda y: body(p, y))(x),
        lambda p, x: clipped(x),
        lambda p, x: jax.vmap(jax.vmap(jax.grad(lambda y: body(p, y) ** 2)))(x),
        lambda p, x: jax.vmap(jax.vmap(jax.value_and_grad(lambda y: body(p, y))))(x)[1],
    ],
    ids=["plain", "jit", "remat", "vmap", "custom_vjp", "grad", "value_and_grad"],
)
def test_a_tapped_value_is_the_value(wrap):
    output, taps = run(wrap)
    np.testing.assert_allclose(output, wrap({}, X), rtol=1e-15)
    assert list(taps) == ["inner"]
    np.testing.assert_array_equal(taps["inner"].value, X)
    assert taps["inner"].loops == 0


@pytest.mark.parametrize("reverse", [False, True])
def test_taps_in_nested_scans(reverse):
    def f(_, x):
        def inner(c, y):
            c = declare.tap("c", c + y)
            return c, c * 2

        def outer(c, y):
            c, z = jax.lax.scan(inner, c, y, reverse=reverse)
            return declare.tap("last", c), z

        return jax.lax.scan(outer, 0.0, x)[1]

    output, taps = run(f)
    np.testing.assert_array_equal(output, f({}, X))
    np.testing.assert_array_equal(taps["c"].value, output / 2)
    np.testing.assert_array_equal(
        taps["last"].value, output[:, 0 if reverse else -1] / 2
    )
    assert (taps["c"].loops, taps["last"].loops) == (2, 1)


def test_other_control_flow_and_scatter_are_evaluated():
    def f(_, x):
        x = declare.tap("x", x)
        x = jax.lax.cond(x[0, 0] < 0, jnp.sin, jnp.cos, x)
        x = jax.lax.while_loop(lambda y: jnp.sum(y) < 5, lambda y: y + 1.0, x)
        x = jax.lax.fori_loop(0, 3, lambda i, y: y * (i + 1), x)
        x = x.at[0, jnp.array([0, 0, 2])].add(1.0)
        x = x.at[1, jnp.array([1])].set(7.0).at[0, jnp.array([1])].max(3.0)
        return jnp.sort(jnp.cumsum(x, -1)) + jnp.argmax(x)

    output, taps = jax.jit(lambda x: run(f, x))(X)
    np.testing.assert_allclose(output, f({}, X), rtol=1e-14)
    np.testing.assert_array_equal(taps["x"].value, X)


def test_a_tap_in_a_branch_is_refused():
    def branch(_, x):
        return jax.lax.cond(x[0, 0] < 0, lambda y: declare.tap("h", y), jnp.cos, x)

    def loop(_, x):
        return jax.lax.while_loop(
            lambda y: jnp.sum(y) < 5, lambda y: declare.tap("h", y) + 1, x
        )

    for f in (branch, loop):
        with pytest.raises(_errors.UnsupportedError, match=r"The tap 'h'.*test_taps"):
            run(f)


def test_two_taps_of_one_name_are_refused():
    def f(_, x):
        return declare.tap("h", x) + declare.tap("h", 2 * x)

    with pytest.raises(_errors.InputError, match=r"called 'h'.*test_taps.*unique"):
        run(f)


def test_an_output_that_is_no_array_is_refused():
    with pytest.raises(_errors.InputError, match="should return one array"):
        run(lambda _, x: (x, x))


def test_random_bits_follow_the_seed_and_the_key():
    def f(_, x):
        keys = jax.random.split(jax.random.PRNGKey(1))
        a = jax.random.normal(keys[0], (1000,))
        b = jax.random.normal(keys[0], (1000,))
        c = jax.vmap(lambda k: jax.random.normal(k, (1000,)))(keys)
        return jnp.stack([a, b, c[0], c[1]])

    one = run(f)[0]
    other = _taps.run_with_taps(f, {}, X, jnp.uint32(6))[0]
    np.testing.assert_array_equal(one[0], one[1])
    np.testing.assert_array_equal(one[0], one[2])
    assert not np.any(one[0] == one[3])
    assert not np.any(one == other)
    # Standard error of a correlation of 1000 independent pairs.
    assert abs(np.corrcoef(one[0], other[0])[0, 1]) < 5 / np.sqrt(1000)
