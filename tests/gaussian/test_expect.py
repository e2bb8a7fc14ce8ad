import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _errors
from widelimit.gaussian import Accuracy, estimate, expect, is_exact, route
from widelimit.gaussian._piecewise import find_kinks, parity
from widelimit.scalar import (
    Arg,
    Const,
    call,
    differentiate,
    evaluate,
    from_callable,
    substitute,
)


def _soft(x):
    """Kinked, with pieces that no closed form covers."""
    return jnp.where(x > 0.5, jnp.log1p(jnp.abs(x)), jnp.tanh(x))


def _bent(x):
    """Continuous, with a jump of the slope at 1."""
    return jnp.maximum(jnp.tanh(x), jnp.tanh(1.0) * x / (1.0 + 0.0 * x))


ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in (
        "tanh sigmoid silu softplus gelu mish elu selu relu6 hard_tanh hard_swish "
        "log_sigmoid soft_sign squareplus hard_sigmoid leaky_relu sparse_plus relu"
    ).split()
} | {
    "gelu exact": lambda x: jax.nn.gelu(x, approximate=False),
    "jump": _soft,
    "bent": _bent,
}


def _legendre(edges, count=24):
    t, w = np.polynomial.legendre.leggauss(count)
    low, gap = edges[..., :-1, None], np.diff(edges, axis=-1)[..., None]
    x, v = low + gap * (t + 1) / 2, gap * w / 2
    return x.reshape(*x.shape[:-2], -1), v.reshape(*v.shape[:-2], -1)


def _breaks(f):
    found = find_kinks(from_callable(f, 1))
    assert found.complete
    return [k.value for k in found.places]


def _inner(g, mean, std):
    """E g(mean + std y), split at the kinks of g; mean is a vector."""
    base = np.linspace(-9.5, 9.5, 17)
    edges = np.broadcast_to(base, (*mean.shape, base.size))
    for t in _breaks(g):
        at = (t - mean) / std if std > 0 else np.full_like(mean, 9.5)
        edges = np.concatenate([edges, np.clip(at, -9.5, 9.5)[..., None]], axis=-1)
    x, w = _legendre(np.sort(edges, axis=-1))
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    value = np.asarray(g(mean[..., None] + std * x))
    return np.sum(value * w * density, axis=-1)


def _reference(f, g, means, cov):
    """E f(u) g(v), conditioning v on u: not the coordinates that widelimit uses."""
    (m1, m2), (a, b, c) = means, cov
    s1 = np.sqrt(a)
    gain, rest = (
        (c / a, np.sqrt(max(b - c * c / a, 0.0))) if a > 0 else (0.0, np.sqrt(b))
    )
    if rest < 1e-6 * np.sqrt(b):
        rest = 0.0
    edges = list(np.linspace(-9.5, 9.5, 17))
    if s1 > 0:
        edges += [(t - m1) / s1 for t in _breaks(f)]
        for t in _breaks(g) if gain else ():
            at = ((t - m2) / gain) / s1
            # The smoothed kink is a layer of this width around `at`.
            width = rest / abs(gain) / s1
            edges += [at + width * k for k in (-9, -6, -3, -1.5, 0, 1.5, 3, 6, 9)]
    edges = np.sort(np.clip(edges, -9.5, 9.5))
    x, w = _legendre(edges)
    u = m1 + s1 * x
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    return float(
        np.sum(np.asarray(f(u)) * _inner(g, m2 + gain * (u - m1), rest) * w * density)
    )


def _random_law(rng, case):
    """Means, variances up to 10; every fourth law is singular or nearly so."""
    a, b = 10.0 * rng.uniform(size=2)
    rho = rng.uniform(-1, 1)
    if case % 4 == 0:
        rho = rng.choice([1.0, -1.0, 1 - 1e-3, 1 - 1e-7, -1 + 1e-5])
    if case % 25 == 7:
        a = 0.0
    means = rng.normal(size=2) * (case % 2)
    return tuple(means), (a, b, rho * np.sqrt(a * b))


def _check_honest(name, other, laws):
    f, g = ACTIVATIONS[name], ACTIVATIONS[other]
    rng = np.random.default_rng(len(name) + 100 * len(other))
    pair = [from_callable(f, 1), substitute(from_callable(g, 1), [Arg(1)])]
    outside, worst = 0, 0.0
    for case in range(laws):
        means, (a, b, c) = _random_law(rng, case)
        found = estimate(pair, means, [[a, c], [c, b]])
        error = abs(found.value - _reference(f, g, means, (a, b, c)))
        scale = np.sqrt((1 + a + means[0] ** 2) * (1 + b + means[1] ** 2))
        # The reference is itself rounded, to about this.
        outside += error > found.error + 2e-14 * scale
        worst = max(worst, error)
    assert outside <= laws // 100
    return worst


@pytest.mark.parametrize("name", ["tanh", "jump"])
def test_errors_are_honest_and_small(name):
    assert _check_honest(name, name, 12) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_in_a_hundred_laws(name):
    assert _check_honest(name, name, 100) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"),
    [("tanh", "relu"), ("soft_sign", "mish"), ("jump", "sigmoid"), ("elu", "softplus")],
)
def test_two_different_activations(name, other):
    assert _check_honest(name, other, 100) < 1e-10


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (-0.7, 10.0), (0.3, 0.0)])
def test_one_leaf(name, mean, variance):
    f = ACTIVATIONS[name]
    found = estimate(f, mean, variance)
    exact = float(_inner(f, np.array([mean]), np.sqrt(variance))[0])
    if variance == 0.0:
        exact = float(f(mean))
    assert abs(found.value - exact) <= found.error + 1e-14 * (1 + variance)
    assert found.error < 1e-11


LAWS = [
    (0.1, 0.2, 1.0, 2.0, 0.7),
    (0.0, 0.0, 1.0, 1.0, 1.0),
    (0.0, 0.0, 1.0, 4.0, -2.0),
    (0.0, 0.3, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(
    "name",
    [
        "tanh",
        "bent",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("softplus", "mish", "soft_sign", "jump")
        ),
    ],
)
@pytest.mark.parametrize("law", LAWS)
def test_derivatives_are_finite_everywhere(name, law):
    gradient = _gradient(name, "tanh")(jnp.asarray(law))
    assert np.all(np.isfinite(gradient))


@functools.cache
def _dual(name, other):
    f = from_callable(ACTIVATIONS[name], 1)
    g = substitute(from_callable(ACTIVATIONS[other], 1), [Arg(1)])

    @jax.jit
    def value(z):
        return expect([f, g], [z[0], z[1]], [[z[2], z[4]], [z[4], z[3]]])

    return value


@functools.cache
def _gradient(name, other):
    return jax.jit(jax.grad(_dual(name, other)))


@pytest.mark.parametrize("name", ["tanh", "softplus", "soft_sign", "bent", "jump"])
def test_derivatives_match_differences(name):
    value, law = _dual(name, "tanh"), jnp.asarray(LAWS[0])
    gradient = _gradient(name, "tanh")(law)
    for i in range(5):
        step = 1e-4 * jnp.eye(5)[i]
        # Two central differences, extrapolated: the error is of fourth order.
        wide = (value(law + 2 * step) - value(law - 2 * step)) / 4e-4
        slope = (4 * (value(law + step) - value(law - step)) / 2e-4 - wide) / 3
        assert abs(gradient[i] - slope) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "softplus", "mish", "silu"])
@pytest.mark.parametrize("law", LAWS[1:])
def test_derivatives_of_smooth_duals_at_singular_laws(name, law):
    """Price's theorem against an expectation of derivatives."""
    f = from_callable(ACTIVATIONS[name], 1)
    m1, m2, a, b, c = law
    slope = lambda x: evaluate(differentiate(f, 0), [x])  # noqa: E731
    exact = _reference(slope, slope, (m1, m2), (a, b, c))
    found = _gradient(name, name)(jnp.asarray(law))[4]
    assert abs(found - exact) < 1e-12


@pytest.mark.slow
def test_second_derivatives_and_batches():
    value, law = _dual("tanh", "tanh"), jnp.asarray(LAWS[1])
    hessian = jax.hessian(value)(law)
    assert np.all(np.isfinite(hessian))
    curve = lambda x: -2 * jnp.tanh(x) * (1 - jnp.tanh(x) ** 2)  # noqa: E731
    exact = _reference(curve, curve, (0.0, 0.0), (1.0, 1.0, 1.0))
    assert abs(hessian[4, 4] - exact) < 1e-12
    batch = jax.vmap(_gradient("tanh", "tanh"))(jnp.stack([law, law]))
    assert np.allclose(batch[1], _gradient("tanh", "tanh")(law), rtol=0, atol=1e-14)


def test_polynomials_are_exact():
    f = from_callable(lambda x, y, z: (x * y - 2.0 * z) ** 2 + 1.0, 3)
    cov = [[2.0, 0.5, 0.3], [0.5, 1.0, 0.0], [0.3, 0.0, 1.5]]
    means = [0.5, -1.0, 0.25]
    found = expect([f], means, cov)
    # E x^2 y^2 - 4 E xyz + 4 E z^2 + 1 by hand.
    mx, my, mz = means
    second = mx**2 * my**2 + mx**2 * 1.0 + my**2 * 2.0 + 2.0 * 1.0
    second += 4 * mx * my * 0.5 + 2 * 0.5**2
    third = mx * my * mz + my * 0.3 + mz * 0.5
    assert abs(found - (second - 4 * third + 4 * (mz**2 + 1.5) + 1)) < 1e-14
    assert is_exact([f], 3)
    assert route([f], 3) == "polynomial (Wick)"


def test_an_odd_number_of_centred_leaves_vanishes():
    factors = [Arg(0), Arg(1), Arg(2)]
    cov = [[jnp.ones((2, 1))] * 3] * 3
    assert np.all(expect(factors, [None] * 3, cov) == 0)


def test_independent_leaves_multiply():
    f = from_callable(lambda x, y: jnp.tanh(x) * jnp.exp(y) / jnp.cosh(x), 2)
    found = expect([f], [0.4, 0.1], [[1.0, None], [None, 2.0]])
    first = estimate(lambda x: jnp.tanh(x) / jnp.cosh(x), 0.4, 1.0)
    assert abs(found - first.value * np.exp(1.1)) < 1e-13


def test_linear_leaf_is_integrated_out():
    pair = [from_callable(ACTIVATIONS["mish"], 1), Arg(1)]
    means, cov = (0.3, -0.2), (2.0, 1.0, 0.8)
    found = estimate(pair, means, [[2.0, 0.8], [0.8, 1.0]])
    assert found.route == "quadrature"
    exact = _reference(ACTIVATIONS["mish"], lambda x: x, means, cov)
    assert abs(found.value - exact) < 1e-13


def test_two_functions_of_one_leaf_are_a_pair():
    f = [from_callable(jax.lax.erf, 1), from_callable(lambda x: 1 + jax.lax.erf(x), 1)]
    assert is_exact(f, 1)
    found = [
        jax.value_and_grad(lambda a: expect(f, [0.2], [[a]]))(a) for a in (0.0, 2.0)
    ]
    x, w = np.polynomial.hermite_e.hermegauss(200)
    for (value, slope), a in zip(found, (0.0, 2.0), strict=True):
        at = 0.2 + np.sqrt(a) * x
        first = np.asarray(jax.lax.erf(at))
        exact = np.sum(first * (1 + first) * w) / np.sqrt(2 * np.pi)
        assert abs(value - exact) < 1e-12
        # Price's theorem: half the mean of the second derivative.
        bell = 2 / np.sqrt(np.pi) * np.exp(-(at**2))
        second = 2 * bell**2 - 2 * at * bell * (1 + 2 * first)
        assert abs(slope - 0.5 * np.sum(second * w) / np.sqrt(2 * np.pi)) < 1e-10


def test_sums_are_multiplied_out():
    f = from_callable(lambda x, y: (jnp.tanh(x) - jnp.tanh(y)) * jnp.tanh(y), 2)
    assert route([f], 2) == "Hermite series * quadrature"
    found = estimate(f, [0.1, 0.2], [[1.0, 0.4], [0.4, 2.0]])
    first = _reference(jnp.tanh, jnp.tanh, (0.1, 0.2), (1.0, 2.0, 0.4))
    second = _inner(lambda y: jnp.tanh(y) ** 2, np.array([0.2]), np.sqrt(2.0))[0]
    assert abs(found.value - (first - second)) < 1e-13


def test_two_leaves_that_do_not_come_apart():
    f = lambda x, y: jnp.tanh(x + jax.nn.relu(y))  # noqa: E731
    cov = np.array([[1.5, 0.6], [0.6, 0.8]])
    found = estimate(f, [0.2, -0.3], cov)
    assert found.route == "quadrature split at kinks"
    # Given y the sum is Gaussian; integrate over y, split at its kink.
    y, w = _legendre(np.sort([*np.linspace(-9.5, 9.5, 17), 0.3 / np.sqrt(0.8)]))
    at = -0.3 + np.sqrt(0.8) * y
    mean = 0.2 + 0.6 / 0.8 * (at + 0.3) + np.maximum(at, 0)
    inner = _inner(jnp.tanh, mean, np.sqrt(1.5 - 0.36 / 0.8))
    exact = np.sum(inner * w * np.exp(-0.5 * y**2) / np.sqrt(2 * np.pi))
    assert abs(found.value - exact) <= found.error + 1e-14
    assert found.error < 1e-10


def test_three_leaves():
    f = lambda x, y, z: jnp.tanh(x + y) * jax.nn.sigmoid(z)  # noqa: E731
    cov = np.array([[1.0, 0.2, 0.3], [0.2, 0.5, 0.1], [0.3, 0.1, 1.0]])
    found = estimate(f, [0.1, 0.2, 0.3], cov)
    assert found.route == "tensor quadrature"
    law = (1.9, 1.0, 0.4)
    exact = _reference(jnp.tanh, ACTIVATIONS["sigmoid"], (0.3, 0.3), law)
    assert abs(found.value - exact) <= found.error < 1e-7


def test_parameters_are_arrays_and_differentiable():
    f = from_callable(lambda x, t: jnp.maximum(x - t, 0.0) * jnp.tanh(x), 2)
    at = jnp.asarray([0.0, 0.4, 1.1])
    found = expect([f], [0.2], [[1.3]], [at])
    for t, value in zip(at, found, strict=True):
        edges = np.sort([*np.linspace(-9.5, 9.5, 17), (t - 0.2) / np.sqrt(1.3)])
        x, w = _legendre(edges)
        z = 0.2 + np.sqrt(1.3) * x
        terms = np.maximum(z - t, 0) * np.tanh(z) * np.exp(-0.5 * x**2)
        assert abs(value - np.sum(terms * w) / np.sqrt(2 * np.pi)) < 1e-13
    slope = jax.grad(lambda t: expect([f], [0.2], [[1.3]], [t]))(0.4)
    step = lambda h: expect([f], [0.2], [[1.3]], [0.4 + h])  # noqa: E731
    assert abs(slope - (step(1e-5) - step(-1e-5)) / 2e-5) < 1e-9


def test_single_precision_in_and_out():
    f = from_callable(jnp.tanh, 1)
    value = expect([f], [jnp.float32(0.3)], [[jnp.float32(2.0)]])
    assert value.dtype == jnp.float32
    assert abs(value - estimate(jnp.tanh, 0.3, 2.0).value) < 1e-6


def test_levels_differ_in_work_only():
    f = from_callable(jnp.tanh, 1)
    values = [expect([f], [0.3], [[2.0]], (), Accuracy(level)) for level in (0, 1, 2)]
    assert np.ptp(values) < 1e-12


@pytest.mark.parametrize(
    ("f", "places", "continuous"),
    [
        (jax.nn.softplus, [], True),
        (jax.nn.log_sigmoid, [], True),
        (lambda x: jnp.logaddexp(x, 2.0 * x), [], True),
        (lambda x: jnp.maximum(x, 0) + jnp.minimum(x, 0), [], True),
        (lambda x: jnp.maximum(x**2, 0.0), [], True),
        (jax.nn.relu6, [0.0, 6.0], True),
        (lambda x: jnp.abs(x**2 - 2.0), [-np.sqrt(2.0), np.sqrt(2.0)], True),
        (lambda x: jnp.sign(jnp.tanh(x) - 0.5), [np.arctanh(0.5)], False),
        (lambda x: jnp.where((x > -1) & (x < 2), 1.0, 0.0), [-1.0, 2.0], False),
    ],
)
def test_kinks_are_found(f, places, continuous):
    found = find_kinks(from_callable(f, 1))
    assert found.continuous == continuous
    assert np.allclose([k.value for k in found.places], places, rtol=0, atol=1e-13)


def test_parity():
    assert parity(from_callable(jnp.tanh, 1)) == -1
    assert parity(from_callable(jnp.cos, 1)) == 1
    assert parity(from_callable(jax.nn.sigmoid, 1)) == 0


def test_estimate_shows_value_error_and_route():
    found = estimate(jnp.tanh, 0.3, 1.0)
    assert "quadrature" in repr(found)
    assert "+-" in repr(found)
    assert float(found) == found.value
    assert found.stderr == 0.0


@pytest.mark.parametrize(
    ("f", "mean", "cov", "message"),
    [
        (Arg(2), [0.0, 0.0], np.eye(2), "arguments"),
        (jnp.tanh, [0.0, 0.0], np.eye(2), "takes"),
        (lambda x, y: x * y, [0.0, 0.0], np.eye(3), "shape"),
        (jnp.tanh, np.nan, 1.0, "finite"),
        (lambda x, y: x * y, [0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "eigenvalue"),
        (lambda x, y: x * y, [0.0, 0.0], [[1.0, 0.2], [0.1, 1.0]], "symmetric"),
        (jnp.log, 0.0, 1.0, "domain"),
        (lambda x: jnp.exp(x**2), 0.0, 1.0, "growth"),
    ],
)
def test_bad_input_is_named(f, mean, cov, message):
    with pytest.raises(_errors.InputError, match=message):
        estimate(f, mean, cov)


def test_derivative_without_a_rule_is_refused():
    with pytest.raises(_errors.UnsupportedError, match="digamma"):
        differentiate(call("digamma", Arg(0)), 0)
    assert differentiate(Const(3.0), 0) == Const(0.0)


def test_a_function_of_a_thousand_kinks_is_sampled():
    """Panels between all of them would compile for minutes."""

    def f(x):
        return jnp.maximum(jnp.sin(0.5 * x**2), 0.0)

    found = estimate(f, 0.0, 1.0)
    assert "QMC" in found.route
    x = np.linspace(-9.0, 9.0, 2_000_001)
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    exact = np.trapezoid(np.asarray(f(x)) * density, x)
    assert abs(float(found) - exact) < found.error + 1e-9
    assert found.error < 1e-3
