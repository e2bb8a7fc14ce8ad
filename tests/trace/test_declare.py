"""Widths, parameter declarations and taps."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _errors, _jax
from widelimit.program import _lines
from widelimit.trace import _declare as declare
from widelimit.trace import received, sample

n = declare.width("n")
m = declare.width("m", ratio=2.0)


def dims(*shape):
    return tuple(str(d) for d in declare.dims_of(shape))


def test_linear_forms_outside_a_call():
    assert dims(n, 4 * n, n * 4, n // 4, n / 4) == ("n", "4*n", "4*n", "n/4", "n/4")
    assert dims(n + m, 2 * (n + m) - m, Fraction(3, 2) * n) == (
        "m + n",
        "m + 2*n",
        "3*n/2",
    )
    assert dims(np.int64(4) * n, n * np.int64(4), sum([n, m])) == (
        "4*n",
        "4*n",
        "m + n",
    )
    assert declare.dims_of((3, n)) == (3, _lines.Dim.of("n"))


def test_widths_compare_and_hash_as_forms():
    assert n == 4 * n // 4
    assert hash(n) == hash(4 * n // 4)
    assert n != m
    assert n != 4 * n
    assert len({n, n + m, m + n, 2 * n // 2}) == 2


IN_A_CALL = {
    "jnp.sqrt": (lambda: jnp.sqrt(n), math.sqrt(5040)),
    "np.sqrt": (lambda: np.sqrt(n), math.sqrt(5040)),
    "math.sqrt": (lambda: math.sqrt(n), math.sqrt(5040)),
    "jnp.log of a form": (lambda: jnp.log(4 * n), math.log(20160)),
    "form from outside": (lambda: OUTSIDE * 1, 1260),
    "a ratio of widths": (lambda: n / m, 5040 / 11),
    "power": (lambda: n**0.5, math.sqrt(5040)),
    "negative power": (lambda: n**-0.5, 5040**-0.5),
    "one over": (lambda: 1 / n, 1 / 5040),
    "jnp scalar over": (lambda: jnp.float64(3.0) / n, 3 / 5040),
    "numpy scalar times": (lambda: np.float64(3.0) * n, 3 * 5040),
    "numpy array over": (lambda: (np.array([3.0]) / n)[0], 3 / 5040),
    "product": (lambda: n * m, 5040 * 11),
    "plus a number": (lambda: n + 3, 5043),
    "minus": (lambda: -n + 1 - m, -5050),
    "divmod": (lambda: divmod(n, 11)[1], 2),
    "modulo": (lambda: n % 11, 2),
    "floor": (lambda: n // 11, 458),
    "int": (lambda: int(n), 5040),
    "float": (lambda: float(n), 5040.0),
    "round": (lambda: round(n) + math.floor(m) + math.ceil(m) + math.trunc(m), 5073),
    "range": (lambda: len(range(m)), 11),
    "less": (lambda: (n > 11) + (n >= 5040) + (m < n) + (m <= 11), 4),
    "equal": (lambda: (n == 5040) + (n != m) + (n == m), 2),
    "zeros": (lambda: jnp.zeros((3, n)).shape[1], 5040),
    "full": (lambda: jnp.full((2, 4 * n), 1.0).shape[1], 20160),
    "filled with": (lambda: jnp.full((2,), n)[0], 5040),
    "reshape": (lambda: jnp.zeros(2 * 11).reshape(m, -1).shape[0], 11),
    "argument of a jitted function": (lambda: jax.jit(lambda k: k / 2)(n), 2520.0),
    "argument of jnp.where": (lambda: jnp.where(jnp.array(True), n, 0), 5040),
}
OUTSIDE = n // 4


@pytest.mark.parametrize("name", IN_A_CALL)
def test_a_width_is_a_number_inside_a_call(name):
    compute, expected = IN_A_CALL[name]
    with declare.widths_are({"n": 5040, "m": 11}):
        assert float(compute()) == pytest.approx(expected, rel=1e-15)


def test_plain_arithmetic_keeps_python_types():
    with declare.widths_are({"n": 5040}):
        assert type(n * 4) is int
        assert type(n // 4) is int
        assert type(n / 4) is float


def test_a_width_does_not_change_the_type_of_an_array():
    x = jnp.ones((2, 3), jnp.float32)
    with declare.widths_are({"n": 16}):
        for y in (x / n, n * x, x * (4 * n), x / n**0.5, jnp.maximum(x, n)):
            assert y.dtype == jnp.float32
        assert (x / jnp.sqrt(n)).dtype == (x / jnp.sqrt(16)).dtype


OUT_OF_A_CALL = {
    "jnp.sqrt": lambda: jnp.sqrt(n),
    "np.sqrt": lambda: np.sqrt(n),
    "math.sqrt": lambda: math.sqrt(n),
    "power": lambda: n**0.5,
    "one over": lambda: 1.0 / n,
    "int": lambda: int(n),
    "float": lambda: float(n),
    "zeros": lambda: jnp.zeros((3, n)),
    "array": lambda: jnp.ones(3) / n,
    "numpy array": lambda: np.ones(3) * n,
    "compare": lambda: n < 3,
    "negative": lambda: -n,
    "float factor": lambda: 0.5 * n,
    "jitted": lambda: jax.jit(lambda x: x / n)(1.0),
}


@pytest.mark.parametrize("name", OUT_OF_A_CALL)
def test_a_number_outside_a_call_is_refused(name):
    with pytest.raises(
        _errors.InputError, match=r"outside a widelimit call.*shape\[-1\]"
    ):
        OUT_OF_A_CALL[name]()


@pytest.mark.parametrize(
    "make",
    [
        lambda: n + 3,
        lambda: n - m,
        lambda: n - n,
        lambda: n * m,
        lambda: n / 0,
        lambda: 4 / n,
        lambda: 0 * n,
        lambda: -2 * n,
    ],
)
def test_forms_that_are_no_dimension_are_refused(make):
    with pytest.raises(_errors.InputError, match="do not combine to a wide dimension"):
        make()


def test_calls_nest_and_end():
    with declare.widths_are({"n": 8}):
        with declare.widths_are({"n": 16}):
            assert int(n) == 16
        assert int(n) == 8
    with pytest.raises(ValueError, match="stop"), declare.widths_are({"n": 8}):
        raise ValueError("stop")
    with pytest.raises(_errors.InputError):
        int(n)


def test_a_width_without_value_in_a_call_is_named():
    with (
        declare.widths_are({"n": 8}),
        pytest.raises(_errors.InputError, match="width m, which has no value"),
    ):
        n + m


def test_a_size_that_is_not_whole_is_refused():
    with declare.widths_are({"n": 6}):
        assert float(n // 4) == 1.0
        assert float(OUTSIDE) == 1.5
        with pytest.raises(_errors.InputError, match="not a whole number"):
            jnp.zeros((3, OUTSIDE))


@pytest.mark.parametrize("widths", [{"n": 0}, {"n": 2.0}, {"n": True}, {"n": "8"}])
def test_bad_values_of_widths(widths):
    with (
        pytest.raises(_errors.InputError, match="positive whole number"),
        declare.widths_are(widths),
    ):
        pass


def test_jitted_functions_are_traced_anew_when_the_width_changes():
    @jax.jit
    def inner(x):
        return x / n

    def loop(x):
        return jax.lax.scan(lambda c, _: (c / n, None), x, None, length=1)[0]

    @jax.jit
    def grow(x):
        return jnp.broadcast_to(x, (2, n))

    for f in (inner, loop):
        values = []
        for size in (2, 4, 2):
            with declare.widths_are({"n": size}):
                values.append(float(f(8.0)))
        assert values == [4.0, 2.0, 4.0]
    shapes = []
    for size in (2, 4, 2):
        with declare.widths_are({"n": size}):
            shapes.append(grow(jnp.ones((2, 1))).shape)
    assert shapes == [(2, 2), (2, 4), (2, 2)]


@pytest.mark.parametrize(
    "arguments",
    [("",), ("2n",), ("n m",), (3,), (None,)]
    + [("n", r) for r in (0.0, -1.0, math.nan, math.inf, "2", None, True)]
    + [("n", 1.0, b) for b in (0, -3, 2.5, "4", True)],
)
def test_bad_widths(arguments):
    with pytest.raises(_errors.InputError, match="should be"):
        declare.width(*arguments)


def test_widths_in_a_pytree_of_declarations():
    big = declare.width("big", ratio=3.0, base=64)
    params = {
        "W": declare.normal((n, 4 * big)),
        "rest": [declare.constant((m + n,), 1.0), np.ones(3)],
    }
    assert declare.widths_in(params) == {"n": n, "big": big, "m": m}
    assert declare.widths_in(params)["big"].base == 64


def test_two_widths_of_one_name():
    other = declare.width("n", ratio=2.0)
    with pytest.raises(_errors.InputError, match="Two different widths are called n"):
        declare.widths_in([declare.normal((n,)), declare.normal((other,))])
    with pytest.raises(_errors.InputError, match="Two different widths are called n"):
        n + other


def test_trial_shape():
    assert declare.trial_shape((3, 4 * n, n + m), {"n": 8, "m": 5}) == (3, 32, 13)
    with pytest.raises(_errors.InputError, match="widths that divide"):
        declare.trial_shape((n // 3,), {"n": 8})
    with pytest.raises(_errors.InputError, match="No width is given for m"):
        declare.trial_shape((n, m), {"n": 8})


def test_declarations_are_leaves_of_a_pytree():
    params = {"a": declare.normal((3, n)), "b": declare.constant((n,), 1.0)}
    assert jax.tree_util.tree_leaves(params) == [params["a"], params["b"]]


BAD_PARAMETERS = {
    "negative std": lambda: declare.normal((n,), std=-1.0),
    "NaN std": lambda: declare.normal((n,), std=math.nan),
    "infinite std": lambda: declare.normal((n,), std=math.inf),
    "std of many": lambda: declare.normal((n,), std=np.ones(3)),
    "std of text": lambda: declare.normal((n,), std="1"),
    "complex std": lambda: declare.normal((n,), std=1j),
    "boolean std": lambda: declare.normal((n,), std=True),
    "std by width": lambda: declare.normal((n,), std=n),
    "negative lr": lambda: declare.normal((n,), lr=-1.0),
    "NaN lr": lambda: declare.constant((n,), 1.0, lr=math.nan),
    "float size": lambda: declare.normal((3.0, n)),
    "zero size": lambda: declare.normal((0, n)),
    "negative size": lambda: declare.normal((-1, n)),
    "boolean size": lambda: declare.normal((True, n)),
    "no size": lambda: declare.normal((None, n)),
    "text": lambda: declare.normal("n"),
    "no shape": lambda: declare.normal(None),
    "axis out of range": lambda: declare.normal((3, n), fan_in=2),
    "negative axis out of range": lambda: declare.normal((3, n), fan_in=(0, -3)),
    "axis twice": lambda: declare.normal((3, n), fan_in=(0, -2)),
    "axis no number": lambda: declare.normal((3, n), fan_in="0"),
    "parameterization": lambda: declare.normal((n,), parameterization="mup"),
    "NaN value": lambda: declare.constant((n,), math.nan),
    "text value": lambda: declare.constant((n,), "one"),
    "ragged value": lambda: declare.constant((n,), [[1.0], [1.0, 2.0]]),
    "wide value": lambda: declare.constant((n,), np.ones(8)),
    "too many axes": lambda: declare.constant((n,), np.ones((1, 1))),
    "value of another size": lambda: declare.constant((3, n), np.ones((2, 1))),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters(name):
    with pytest.raises(
        _errors.InputError, match=r"should|does not broadcast|names an axis"
    ):
        BAD_PARAMETERS[name]()


def test_shapes_may_be_lists_or_one_entry():
    assert declare.normal([3, n]).shape == (3, n)
    assert declare.normal(n).shape == (n,)
    assert declare.normal(()).shape == ()


def test_fan_in_axes():
    def axes(shape, **options):
        return declare.normal(shape, **options).fan_in_axes

    assert axes((3, n)) == ()
    assert axes((3, n), fan_in=-2) == (0,)
    assert axes((3, 3, n, m), fan_in=(0, 1, -2)) == (0, 1, 2)
    assert axes((3, 3, n, m), parameterization="ntk") == (0, 1, 2)
    assert axes((n,), parameterization="standard") == ()
    assert axes((n, m), parameterization="ntk", fan_in=1) == (1,)


@pytest.mark.parametrize(
    ("options", "variance"),
    [
        ({}, 4.0),
        ({"fan_in": 0}, 4.0 / 30),
        ({"fan_in": (0, -1)}, 4.0 / 30 / 4000),
        ({"parameterization": "ntk"}, 4.0 / 30),
        ({"parameterization": "standard"}, 4.0 / 30),
        ({"parameterization": "standard-naive", "fan_in": ()}, 4.0),
    ],
)
def test_what_is_received_has_the_declared_variance(options, variance):
    base = [declare.width(name, base=6) for name in ("n", "m")]
    w = declare.normal((3 * base[0], base[1]), std=2.0, **options)
    widths = {"n": 10, "m": 4000}
    draw = received(w, sample(w, widths, jax.random.key(1)), widths)
    assert draw.shape == (30, 4000)
    z = np.asarray(draw).ravel() / math.sqrt(variance)
    # z**2 has variance 2.
    assert abs(np.mean(z**2) - 1) < 5 * math.sqrt(2 / z.size)
    assert abs(np.mean(z)) < 5 / math.sqrt(z.size)


def test_sample_of_a_constant():
    scale = declare.constant((3, n), np.array([[1.0], [2.0], [3.0]]))
    draw = sample(scale, {"n": 4}, jax.random.key(0), jnp.float32)
    assert draw.dtype == jnp.float32
    np.testing.assert_array_equal(draw, np.outer([1.0, 2.0, 3.0], np.ones(4)))


def test_sample_is_differentiable_in_std_and_maps_over_keys():
    keys = jax.random.split(jax.random.key(0), 5)

    def norm(std):
        w = declare.normal((3, n), std=std, fan_in=0)
        draws = jax.vmap(lambda k: sample(w, {"n": 7}, k, jnp.float32))(keys)
        assert draws.shape == (5, 3, 7)
        assert draws.dtype == jnp.float32
        return jnp.sum(draws**2)

    value, slope = jax.jit(jax.value_and_grad(norm))(2.0)
    assert float(slope) == pytest.approx(float(value), rel=1e-6)
    one = sample(declare.normal((3, n)), {"n": 7}, keys[0])
    assert not np.array_equal(one, sample(declare.normal((3, n)), {"n": 7}, keys[1]))


def tapped(x):
    return jnp.sin(declare.tap("h", jnp.exp(x)))


def marks(graph):
    """All tap equations of a graph and of the graphs inside it."""
    found = []
    for e in graph.equations:
        if e.params.get("name", "").startswith(declare.TAP_PREFIX):
            found.append(e)
            continue
        inner = [p for p in e.params.values() if isinstance(p, _jax.Graph)]
        found += [mark for g in inner for mark in marks(g)]
    return found


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.vmap,
        jax.checkpoint,
        lambda f: jax.vmap(jax.grad(f)),
        lambda f: lambda x: jax.lax.scan(lambda c, y: (c, f(y)), 0.0, x)[1],
    ],
    ids=["plain", "jit", "vmap", "remat", "grad", "scan"],
)
def test_a_tap_is_one_marked_call_with_the_value_as_input(wrap):
    f = wrap(tapped)
    graph, _ = _jax.trace(f, jax.ShapeDtypeStruct((4,), jnp.float64))
    (mark,) = marks(graph)
    assert mark.params["name"] == declare.TAP_PREFIX + "h"
    assert len(mark.inputs) == 1


def test_a_tap_is_the_identity():
    x = jnp.linspace(-1.0, 1.0, 5)
    np.testing.assert_array_equal(declare.tap("h", x), x)
    np.testing.assert_allclose(jax.jit(tapped)(x), np.sin(np.exp(x)), rtol=1e-14)
    slope = jax.vmap(jax.grad(tapped))(x)
    np.testing.assert_allclose(slope, np.cos(np.exp(x)) * np.exp(x), rtol=1e-14)


@pytest.mark.parametrize("name", ["", "1h", "a b", "a:b", None, 3, "output", ".a"])
def test_bad_names_of_taps(name):
    with pytest.raises(_errors.InputError, match="The name of a tap"):
        declare.tap(name, jnp.ones(2))


@pytest.mark.parametrize("x", [{"a": 1.0}, None, "text", [[1.0], [1.0, 2.0]]])
def test_a_tap_takes_one_array(x):
    with pytest.raises(_errors.InputError, match="takes one array"):
        declare.tap("h", x)
