"""Scalar functions as data: text, tracing, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit import scalar
from widelimit._errors import ParseError, UnsupportedError
from widelimit.scalar import OPS, Arg, Call, Const

NAMES = ("u", "v", "w")
NUMBERS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
LEAVES = st.builds(Arg, st.integers(0, 2)) | st.builds(Const, NUMBERS)


def calls(inner):
    return st.sampled_from(sorted(OPS)).flatmap(
        lambda op: st.tuples(*[inner] * OPS[op][0]).map(lambda a: Call(op, a))
    )


def built(inner):
    return st.sampled_from(sorted(OPS)).flatmap(
        lambda op: st.tuples(*[inner] * OPS[op][0]).map(lambda a: scalar.call(op, *a))
    )


EXPRESSIONS = st.recursive(LEAVES, calls, max_leaves=12)
FOLDED = st.recursive(st.builds(Arg, st.integers(0, 2)), built, max_leaves=8)


def is_printable(e):
    """Not the negative of a number, which is written like a negative number."""
    match e:
        case Call("neg", (Const(),)):
            return False
        case Call(_, args):
            return all(is_printable(a) for a in args)
    return True


# -------------------------------------------------------------------------------- text
@settings(deadline=None, derandomize=True, max_examples=300)
@given(EXPRESSIONS.filter(is_printable))
def test_text_reads_back_equal(expr):
    text = scalar.to_text(expr, NAMES)
    again = scalar.parse(text, {name: i for i, name in enumerate(NAMES)})
    assert again == expr
    assert scalar.to_text(again, NAMES) == text


@settings(deadline=None, derandomize=True, max_examples=30)
@given(FOLDED)
def test_text_of_a_built_expression_reads_back_equal(expr):
    names = {name: i for i, name in enumerate(NAMES)}
    assert scalar.parse(scalar.to_text(expr, NAMES), names) == expr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("u - (v - w)", 2.0 - (3.0 - 5.0)),
        ("u - v - w", 2.0 - 3.0 - 5.0),
        ("u / (v * w)", 2.0 / 15.0),
        ("u / v * w", 2.0 / 3.0 * 5.0),
        ("-u**2", -4.0),
        ("(-u)**2", 4.0),
        ("u**-1", 0.5),
        ("u * -v", -6.0),
        ("-(u + v)", -5.0),
        ("max(u, v) - min(u, v)", 1.0),
        ("select(lt(u, v), 7.0, 8.0)", 8.0),
    ],
)
def test_text_means_what_it_means_in_python(text, value):
    names = {name: i for i, name in enumerate(NAMES)}
    expr = scalar.parse(text, names)
    assert float(scalar.evaluate(expr, [2.0, 3.0, 5.0])) == pytest.approx(value)
    again = scalar.parse(scalar.to_text(expr, NAMES), names)
    assert again == expr


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("u +", "not an expression"),
        ("q + 1", "`q` is not defined"),
        ("sine(u)", "not an operation"),
        ("tanh(u, v)", "takes 1 arguments, got 2"),
        ("u if v else w", "not part of the language"),
        ("__import__('os')", "not an operation"),
        ("u.real", "not part of the language"),
        ("tanh(x=u)", "not part of the language"),
    ],
)
def test_text_that_is_not_an_expression(text, match):
    with pytest.raises(ParseError, match=match):
        scalar.parse(text, {name: i for i, name in enumerate(NAMES)})


# ----------------------------------------------------------------------------- tracing
ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in (
        "relu relu6 sigmoid softplus soft_sign silu swish log_sigmoid leaky_relu "
        "hard_sigmoid hard_silu hard_swish hard_tanh elu celu selu gelu mish "
        "squareplus sparse_plus sparse_sigmoid tanh identity"
    ).split()
    if hasattr(jax.nn, name)
}
ACTIVATIONS["gelu exact"] = lambda u: jax.nn.gelu(u, approximate=False)
FUNCTIONS = {
    **ACTIVATIONS,
    "where": lambda u: jnp.where(u > 0, u, jnp.expm1(u)),
    "times a step": lambda u: u * (u > 0),
    "nested where": lambda u: jnp.where((u < 1) & ~(u < -1), u**3, jnp.sign(u)),
    "clip": lambda u: jnp.clip(u, -0.5, 0.7),
    "logaddexp": lambda u: jnp.logaddexp(u, 0.3),
    "power": lambda u: jnp.abs(u) ** 1.5 + u**4 - u**-2,
    "round": lambda u: jnp.floor(u) + jnp.ceil(2 * u) - jnp.round(u),
    "cast": lambda u: (u > 0.3).astype(float) + u.astype(int),
    "remainder": lambda u: jnp.mod(u, 0.7) + jnp.fmod(u, 0.9),
    "trigonometric": lambda u: jnp.arctan(u) + jnp.sinc(u + 9.1) - jnp.tan(u / 4),
    "hyperbolic": lambda u: jnp.arcsinh(u) * jnp.cosh(u) - jnp.sinh(u),
    "checkpoint": jax.checkpoint(lambda u: jnp.sin(u) * u),
    "stopped": lambda u: jax.lax.stop_gradient(u) * u,
    "log2": lambda u: jnp.log2(u * u + 1.0) + jnp.cbrt(u) + jnp.square(u),
    "heaviside": lambda u: jnp.heaviside(u, 0.5),
}
POINTS = np.concatenate(
    [np.linspace(-7.3, 7.1, 301), [0.1, -0.1, 1e-9, -1e-9, 40, -40]]
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_traced_function_has_the_values_of_the_function(name):
    f = FUNCTIONS[name]
    expr = scalar.from_callable(f, 1)
    found = np.asarray(scalar.evaluate(expr, [jnp.asarray(POINTS)]))
    np.testing.assert_allclose(found, f(jnp.asarray(POINTS)), rtol=1e-14, atol=1e-15)
    text = scalar.to_text(expr, ["u"])
    assert scalar.parse(text, {"u": 0}) == expr


def test_single_precision_stays_single():
    for f in (jax.nn.relu, jax.nn.gelu, jax.nn.elu, lambda u: u * (u > 0)):
        value = scalar.evaluate(scalar.from_callable(f, 1), [jnp.ones(3, jnp.float32)])
        assert value.dtype == jnp.float32


def test_two_arguments_keep_their_order():
    expr = scalar.from_callable(lambda u, v: u - 2.0 * v)
    assert float(scalar.evaluate(expr, [1.0, 3.0])) == -5.0
    assert scalar.arity(expr) == 2
    swapped = scalar.substitute(expr, [Arg(1), Arg(0)])
    assert float(scalar.evaluate(swapped, [3.0, 1.0])) == -5.0


def test_what_is_not_elementwise_is_refused():
    with pytest.raises(UnsupportedError, match="igamma"):
        scalar.from_callable(lambda u: jax.lax.igamma(u, 2.0))
    with pytest.raises(UnsupportedError, match="one scalar"):
        scalar.from_callable(lambda u: (u, u))
    with pytest.raises(UnsupportedError, match=r"scalar|shape"):
        scalar.from_callable(lambda u: u * jnp.arange(3.0))


# ------------------------------------------------------------------------- derivatives
NOT_DIFFERENTIATED = {"stopped", "cast", "round", "remainder", "heaviside"}


@pytest.mark.parametrize("name", [k for k in FUNCTIONS if k not in NOT_DIFFERENTIATED])
def test_a_derivative_is_that_of_jax(name):
    f = FUNCTIONS[name]
    points = jnp.asarray(np.linspace(-4.37, 4.21, 173))
    derivative = scalar.differentiate(scalar.from_callable(f, 1), 0)
    found = np.broadcast_to(scalar.evaluate(derivative, [points]), points.shape)
    wanted = jax.vmap(jax.grad(lambda u: jnp.asarray(f(u), float)))(points)
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)


def test_a_partial_derivative():
    expr = scalar.from_callable(lambda u, v: jnp.arctan2(u, v) + u**v / v)
    at = (1.3, 0.7)
    for i in (0, 1):
        found = scalar.evaluate(scalar.differentiate(expr, i), at)
        wanted = jax.grad(lambda u, v: jnp.arctan2(u, v) + u**v / v, i)(*at)
        assert float(found) == pytest.approx(float(wanted), rel=1e-13)


@pytest.mark.parametrize("op", sorted(OPS))
def test_numbers_have_the_values_of_arrays(op):
    """Also those of NumPy alone, and where there is none."""
    grid = np.array([-np.inf, -2.5, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, np.inf, np.nan])
    count = OPS[op][0]
    args = np.meshgrid(*[grid] * count, indexing="ij")
    e = Call(op, tuple(map(Arg, range(count))))
    found = scalar.evaluate_now(e, args)
    assert found.dtype == np.float64
    wanted = scalar.evaluate(e, [jnp.asarray(a) for a in args])
    np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-15)
    jitted = jax.jit(lambda x: x + scalar.evaluate_now(e, args)[(3,) * count])(0.0)
    np.testing.assert_allclose(jitted, wanted[(3,) * count], rtol=1e-14, atol=1e-15)
