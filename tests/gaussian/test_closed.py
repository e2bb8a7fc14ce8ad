"""Closed forms against quadrature, their derivatives against Price's theorem."""

import functools

import gaussian_quadrature as quadrature
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from widelimit.gaussian._closed import closed_dual, closed_mean, closed_name
from widelimit.scalar import from_callable

SQ = np.sqrt(0.5)
PHI = special.ndtr


def _bell(x):
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


# name: (jax function, numpy function, its derivative or None where it jumps, kinks)
CASES = {
    "relu": (jax.nn.relu, lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0), [0]),
    "leaky": (
        lambda x: jax.nn.leaky_relu(x, 0.1),
        lambda x: np.where(x > 0, x, 0.1 * x),
        lambda x: np.where(x > 0, 1.0, 0.1),
        [0],
    ),
    "abs": (jnp.abs, np.abs, np.sign, [0]),
    "step": (lambda x: jnp.heaviside(x, 0.5), lambda x: 1.0 * (x > 0), None, [0]),
    "sign": (lambda x: jnp.sign(x - 0.3), lambda x: np.sign(x - 0.3), None, [0.3]),
    "relu^3": (
        lambda x: jax.nn.relu(x) ** 3,
        lambda x: np.maximum(x, 0) ** 3,
        lambda x: 3 * np.maximum(x, 0) ** 2,
        [0],
    ),
    "relu6": (
        lambda x: jax.nn.relu6(3 * x) / 3,
        lambda x: np.clip(x, 0, 2),
        lambda x: 1.0 * ((x > 0) & (x < 2)),
        [0, 2],
    ),
    "hard_swish": (
        jax.nn.hard_swish,
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(np.abs(x) < 3, (2 * x + 3) / 6, 1.0 * (x > 0)),
        [-3, 3],
    ),
    "elu": (
        jax.nn.elu,
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        lambda x: np.exp(np.minimum(x, 0)),
        [0],
    ),
    "erf": (
        lambda x: 1.3 * jax.lax.erf(0.7 * x + 0.4) - 0.2,
        lambda x: 1.3 * special.erf(0.7 * x + 0.4) - 0.2,
        lambda x: 1.3 * 0.7 * 2 / np.sqrt(np.pi) * np.exp(-((0.7 * x + 0.4) ** 2)),
        [],
    ),
    "gelu": (
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: x * PHI(x),
        lambda x: PHI(x) + x * _bell(x),
        [],
    ),
    "sin": (jnp.sin, np.sin, np.cos, []),
    "x cos": (
        lambda x: x * jnp.cos(1.5 * x + 0.2),
        lambda x: x * np.cos(1.5 * x + 0.2),
        lambda x: np.cos(1.5 * x + 0.2) - 1.5 * x * np.sin(1.5 * x + 0.2),
        [],
    ),
    "exp": (
        lambda x: jnp.exp(x / 2),
        lambda x: np.exp(x / 2),
        lambda x: np.exp(x / 2) / 2,
        [],
    ),
    "gaussian": (
        lambda x: (x + 1) * jnp.exp(-((x - 0.5) ** 2)),
        lambda x: (x + 1) * np.exp(-((x - 0.5) ** 2)),
        lambda x: (1 - 2 * (x + 1) * (x - 0.5)) * np.exp(-((x - 0.5) ** 2)),
        [],
    ),
    "cubic": (
        lambda x: x**3 - 2 * x + 0.5,
        lambda x: x**3 - 2 * x + 0.5,
        lambda x: 3 * x**2 - 2,
        [],
    ),
}
CROSS = [
    ("relu", "elu"),
    ("gelu", "step"),
    ("hard_swish", "erf"),
    ("cubic", "x cos"),
    ("sin", "gaussian"),
    ("sign", "relu6"),
    ("exp", "gelu"),
]
WAVES, GATES = ["sin", "x cos"], ["relu", "sign", "elu", "gelu", "erf"]


def _expr(name):
    return from_callable(CASES[name][0], 1)


def _leaves(seed, count=8):
    """Random means and covariances: ordinary, near-singular, equal and parallel."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        a, b = np.exp(random.uniform(np.log(0.01), np.log(10), 2))
        rho = random.uniform(-0.95, 0.95)
        if i % 4 == 1:
            rho = np.sign(rho) * (1 - 10.0 ** -random.uniform(2, 12))
        if i % 4 == 2:
            b, rho = a, 1 - 10.0 ** -random.uniform(3, 14)
        m1, m2 = random.normal(size=2)
        rows.append((m1, a, m1 if i % 4 == 2 else m2, b, rho * np.sqrt(a * b)))
    rows.append((0.4, 2.0, 0.4, 2.0, 2.0))
    rows.append((-0.4, 2.0, 0.4, 2.0, -2.0))
    return np.array(rows)


def _compare(f, g, zero, tolerance):
    rows = _leaves(len(f) + 7 * len(g))
    one, two = _expr(f), _expr(g)
    if zero:
        rows[:, [0, 2]] = 0.0
        value = jax.jit(lambda a, b, c: closed_dual(one, two, 0.0, a, 0.0, b, c))(
            *rows.T[[1, 3, 4]]
        )
    else:
        value = jax.jit(lambda *z: closed_dual(one, two, *z))(*rows.T)
    (_, p, _, u), (_, q, _, v) = CASES[f], CASES[g]
    expected = [quadrature.dual(p, u, q, v, row) for row in rows]
    np.testing.assert_allclose(value, expected, tolerance, tolerance)


LONG = {"elu", "relu6", "hard_swish", "leaky", "relu^3"}
"""Functions whose formulas with means compile for seconds."""


def _marked(names, long=LONG):
    slow = pytest.mark.slow
    return [pytest.param(n, marks=slow) if n in long else n for n in names]


@pytest.mark.parametrize("name", _marked(CASES))
def test_dual_with_zero_means_is_the_integral(name):
    _compare(name, name, True, 1e-9 if CASES[name][2] is None else 2e-14)


@pytest.mark.parametrize("name", _marked(CASES))
def test_dual_is_the_integral(name):
    # The step's own condition near rho = 1: rounding of rho costs its square root.
    _compare(name, name, False, 1e-9 if CASES[name][2] is None else 2e-14)


@pytest.mark.parametrize(
    ("f", "g"),
    [pytest.param(*c, marks=pytest.mark.slow) if LONG & {*c} else c for c in CROSS],
)
def test_dual_of_two_functions_is_the_integral(f, g):
    _compare(f, g, False, 2e-14)


@pytest.mark.parametrize("name", CASES)
def test_mean_is_the_integral(name):
    _, p, _, kinks = CASES[name]
    m, a = np.array([0.0, -1.3, 2.0, 0.3]), np.array([1.0, 0.2, 5.0, 3.0])
    expected = [quadrature.mean(p, kinks, *z) for z in zip(m, a, strict=True)]
    np.testing.assert_allclose(closed_mean(_expr(name), m, a), expected, 1e-14, 1e-14)
    zero = [quadrature.mean(p, kinks, 0.0, z) for z in a]
    np.testing.assert_allclose(
        closed_mean(_expr(name), 0.0, jnp.asarray(a)), zero, 1e-14, 1e-14
    )


SMOOTH = [n for n, case in CASES.items() if case[2] is not None]


@pytest.mark.parametrize("name", _marked(SMOOTH, {*LONG, "abs", "gelu"}))
def test_derivatives_are_those_of_price(name):
    _, p, slope, kinks = CASES[name]
    f = _expr(name)
    rows = np.array([[0.2, 0.8, -0.5, 2.0, 0.7], [-1.0, 1.5, 1.0, 0.4, -0.6]])
    gradient = jax.grad(lambda *z: closed_dual(f, f, *z), (0, 1, 4))
    got = np.array(jax.jit(jax.vmap(gradient))(*rows.T))
    for i, row in enumerate(rows):
        m1, a, c = row[[0, 1, 4]]
        by_c = quadrature.dual(slope, kinks, slope, kinks, row)
        by_m = quadrature.dual(slope, kinks, p, kinks, row)
        # Stein: E (u - m) f' g = a E f'' g + c E f' g', and dE/da = E f'' g / 2.
        stein = quadrature.dual(
            lambda x, m=m1: (x - m) * slope(x), kinks, p, kinks, row
        )
        expected = [by_m, (stein - c * by_c) / (2 * a), by_c]
        np.testing.assert_allclose(got[:, i], expected, 1e-12, 1e-12)


def test_derivative_of_a_step_is_the_gaussian_density():
    f = _expr("sign")
    m, a, b, c = 0.1, 0.7, 1.9, 0.6
    got = jax.grad(lambda c: closed_dual(f, f, m, a, m, b, c))(c)
    z, cov = np.array([0.3 - m] * 2), np.array([[a, c], [c, b]])
    density = np.exp(-0.5 * z @ np.linalg.solve(cov, z)) / (
        2 * np.pi * np.sqrt(np.linalg.det(cov))
    )
    assert float(got) == pytest.approx(4 * density, rel=1e-13)
    # d/da by the mean's second derivative: E f(u) for u ~ N(m, a) is known.
    by_a = jax.grad(lambda a: closed_mean(f, m, a))(a)
    h = (0.3 - m) / np.sqrt(a)
    assert float(by_a) == pytest.approx(2 * _bell(h) * h / (2 * a), rel=1e-13)


def test_second_derivatives():
    f = _expr("gelu")
    value = lambda c: closed_dual(f, f, 0.0, 0.8, 0.0, 1.5, c)  # noqa: E731
    second = jax.grad(jax.grad(value))(0.3)
    # E f'' f'', f'' = (2 - x^2) phi.
    curve = lambda x: (2 - x * x) * _bell(x)  # noqa: E731
    expected = quadrature.dual(curve, [], curve, [], (0, 0.8, 0, 1.5, 0.3))
    assert float(second) == pytest.approx(expected, rel=1e-12)


DEGENERATE = np.array(
    [
        (0, 0, 0, 0, 0),
        (0, 0, 0, 1, 0),
        (0, 1, 0, 0, 0),
        (0, 1, 0, 1, 1),
        (0, 1, 0, 1, -1),
        (0, 2, 0, 8, 4),
        (1, 1, 1, 1, 1),
        (1, 0, -3, 0, 0),
        (0, 1e-30, 0, 1e-30, 1e-30),
        (0, 1e-30, 0, 2, 1e-15),
        (3, 1, 3, 1, 0.3),
        (-1, 0, 1, 0, 0),
        (0, 30.0, 0, 30.0, 30.0),
    ],
    dtype=float,
)


@pytest.mark.parametrize(
    "dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64]
)
@pytest.mark.parametrize("name", ["relu", "step", "sin", "gaussian", "cubic"])
def test_no_nan_at_singular_covariances(name, dtype):
    f = _expr(name)
    both = jax.value_and_grad(lambda *z: closed_dual(f, f, *z), (0, 1, 2, 3, 4))
    value, gradient = jax.jit(jax.vmap(both))(*DEGENERATE.T.astype(dtype))
    assert value.dtype == dtype
    assert np.all(np.isfinite(value)), value
    assert np.all(np.isfinite(gradient)), gradient
    zero = jax.value_and_grad(
        lambda *z: closed_dual(f, f, 0.0, z[0], 0.0, *z[1:]), (0, 1, 2)
    )
    value, gradient = jax.jit(jax.vmap(zero))(*DEGENERATE.T[[1, 3, 4]].astype(dtype))
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu", "erf", "gelu", "relu6", "hard_swish"])
def test_no_nan_at_singular_covariances_slow(name):
    test_no_nan_at_singular_covariances(name, np.float32)


def test_zero_variance_evaluates_the_function():
    for name, (_, p, _, _) in CASES.items():
        m1, m2 = np.array([0.0, 1.2, -0.7]), np.array([0.6, -2.5, -0.1])
        p0 = p(m1) if name != "step" else np.heaviside(m1, 0.5)
        value = closed_mean(_expr(name), m1, np.zeros(3))
        np.testing.assert_allclose(value, p0, 1e-14, 1e-15)
        zero = np.zeros(3)
        if name in ("relu", "step", "gelu"):
            both = closed_dual(_expr(name), _expr(name), m1, zero, m2, zero, zero)
            np.testing.assert_allclose(both, p0 * p(m2), 1e-14, 1e-15)


def test_derivative_at_equal_inputs_is_exact():
    relu = _expr("relu")
    gradient = jax.grad(
        lambda a, b, c: closed_dual(relu, relu, 0.0, a, 0.0, b, c), (0, 1, 2)
    )
    for dtype in (np.float32, np.float64):
        three = jnp.asarray(3.3, dtype)
        got = gradient(three, three, three)
        assert [float(x) for x in got] == pytest.approx([0, 0, 0.5], abs=1e-7)


def test_classical_formulas():
    a, b, c = 1.3, 0.6, -0.4
    rho = c / np.sqrt(a * b)
    arc = (
        np.sqrt(a * b)
        / (2 * np.pi)
        * (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho)))
    )
    values = {
        "relu": (jax.nn.relu, arc),
        "step": (
            lambda x: jnp.heaviside(x, 0.5),
            (np.pi - np.arccos(rho)) / (2 * np.pi),
        ),
        "erf": (
            jax.lax.erf,
            2 / np.pi * np.arcsin(2 * c / np.sqrt((1 + 2 * a) * (1 + 2 * b))),
        ),
        "sin": (jnp.sin, np.exp(-(a + b) / 2) * np.sinh(c)),
        "cos": (jnp.cos, np.exp(-(a + b) / 2) * np.cosh(c)),
        "exp": (jnp.exp, np.exp((a + b) / 2 + c)),
        "cube": (lambda x: x**3, 6 * c**3 + 9 * a * b * c),
    }
    for f, expected in values.values():
        e = from_callable(f, 1)
        got = closed_dual(
            e, e, 0.0, jnp.asarray(a), 0.0, jnp.asarray(b), jnp.asarray(c)
        )
        assert float(got) == pytest.approx(expected, rel=3e-15)


@pytest.mark.parametrize("name", ["relu", "leaky", "abs", "gelu", "relu^3"])
def test_float32_keeps_its_digits_near_parallel(name):
    f = _expr(name)
    a = np.float32(1.7)
    c = (a * (1 - np.float32(2.0) ** -np.arange(1.0, 24, dtype=np.float32))).astype(
        np.float32
    )
    c = np.append(c, a)
    dual = jax.jit(lambda a, c: closed_dual(f, f, 0.0, a, 0.0, a, c))
    single = dual(a, c)
    double = dual(np.float64(a), c.astype(np.float64))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, 4e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elu", "gelu"])
def test_large_variances_do_not_overflow(name):
    # exp(u) [u < 0] is bounded, but its tilted Gaussian has a weight of exp(a / 2).
    _, p, _, _ = CASES[name]
    near = [s * t for t in (0, 1, 2, 4, 7, 11, 16, 22, 30, 40) for s in (1, -1)]
    f, a = _expr(name), np.array([3.0, 30.0, 300.0, 3000.0])
    dual = jax.jit(lambda a, c: closed_dual(f, f, 0.0, a, 0.0, a, c))
    for rho in (1.0, 0.99, 0.93, 0.8, 0.1, -0.5, -0.9, -0.99):
        expected = [quadrature.dual(p, near, p, near, (0, x, 0, x, rho * x)) for x in a]
        # At some correlation the value passes through 0.
        np.testing.assert_allclose(dual(a, rho * a), expected, 1e-12, 1e-13)
        single = dual(a.astype(np.float32), (rho * a).astype(np.float32))
        # The parts of the value are of the size of the variance.
        assert np.all(np.abs(single - np.array(expected)) <= 1e-6 * a)


def test_parameters_scale_shift_and_mix():
    normed = from_callable(
        lambda x, m, v: 1.5 * jax.nn.relu((x - m) / jnp.sqrt(v + 1e-5)), 3
    )
    mixed = from_callable(lambda x, p, q: p * jnp.sin(x) + q * x, 3)
    params = [jnp.asarray([0.2, -0.4]), jnp.asarray(1.7)]
    leaves = [jnp.asarray(x) for x in (0.3, 0.8, -0.5, 2.0, 0.7)]
    for f in (normed, mixed):
        got = closed_dual(f, f, *leaves, params)
        mean = closed_mean(f, *leaves[:2], params)
        for i, p in enumerate(params[0]):
            q = float(params[1])

            def plain(x, p=float(p), q=q, f=f):
                if f is mixed:
                    return p * np.sin(x) + q * x
                return 1.5 * np.maximum((x - p) / np.sqrt(q + 1e-5), 0)

            kinks = [] if f is mixed else [float(p)]
            expected = quadrature.dual(plain, kinks, plain, kinks, leaves)
            assert float(got[i]) == pytest.approx(expected, rel=1e-13)
            expected = quadrature.mean(plain, kinks, 0.3, 0.8)
            assert float(mean[i]) == pytest.approx(expected, rel=1e-13)


def test_no_closed_form_is_none():
    tanh, relu, sine = (from_callable(f, 1) for f in (jnp.tanh, jax.nn.relu, jnp.sin))
    leaves = [jnp.asarray(x) for x in (0.0, 1.0, 0.0, 1.0, 0.5)]
    assert closed_dual(tanh, relu, *leaves) is None
    assert closed_dual(sine, relu, *leaves) is None
    assert closed_mean(tanh, *leaves[:2]) is None
    power = from_callable(lambda x, p: jnp.abs(x) ** p, 2)
    assert closed_mean(power, *leaves[:2], [jnp.asarray(1.5)]) is None
    assert closed_name(tanh) is None


@pytest.mark.parametrize("f", WAVES)
@pytest.mark.parametrize("g", GATES)
def test_a_name_promises_a_value(f, g):
    one, two = _expr(f), _expr(g)
    leaves = [jnp.asarray(x) for x in (0.0, 1.0, 0.0, 1.0, 0.5)]
    assert (closed_name(one, two) is None) == (closed_dual(one, two, *leaves) is None)


def test_work_of_one_input_is_done_once():
    gelu = _expr("gelu")
    a, b, c = jnp.ones((50, 1)), jnp.ones((1, 60)), jnp.full((50, 60), 0.5)
    text = str(
        jax.make_jaxpr(lambda *z: closed_dual(gelu, gelu, 0.0, z[0], 0.0, *z[1:]))(
            a, b, c
        )
    )
    assert text.count("f64[50,1] = sqrt") >= 1
    assert closed_dual(gelu, gelu, 0.0, a, 0.0, b, c).shape == (50, 60)


@pytest.mark.parametrize("rounding", [0.0, 2e-16, -2e-16])
def test_parallel_variables_whose_covariance_is_rounded(rounding):
    """v = s u: a correlation that is one but for rounding, with means."""
    f = from_callable(jax.nn.relu, 1)
    rng = np.random.default_rng(0)
    a, m, s = 10 * rng.uniform(size=2000), rng.normal(size=2000), rng.uniform(0.3, 3)
    exact = s * closed_mean(from_callable(lambda u: jax.nn.relu(u) ** 2, 1), m, a)
    c, b = s * a * (1 + rounding), s * s * a * (1 - rounding)
    found = closed_dual(f, f, m, a, s * m, b, c)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13)


def test_derivatives_of_what_parity_makes_zero():
    """An odd function times an even one: a zero that has no axes, nor has its slope."""

    def odd(x):
        return jax.lax.erf(x) * jnp.exp(-(x**2))

    f = from_callable(odd)
    even = from_callable(lambda x: jnp.exp(-(x**2)))
    a, c = jnp.asarray([0.7, 1.3]), jnp.asarray([0.3, 0.4])
    values = (
        lambda a, c: closed_mean(f, 0.0, a),
        lambda a, c: closed_dual(f, even, 0.0, a, 0.0, a + 0.1, c),
    )
    for value in values:
        total = functools.partial(lambda g, a, c: jnp.sum(g(a, c) + 0 * a), value)
        slopes = jax.grad(total, (0, 1))(a, c)
        np.testing.assert_array_equal(jnp.stack(slopes), 0)
