"""Arc-cosine kernels and the inverse sine over the whole range of correlations.

The witness knows the angle theta between the two Gaussians, c = sqrt(a b) cos(theta):

    E|u||v| = (2 / pi) sqrt(a b) (sin(theta) + (pi/2 - theta) cos(theta))
            = |c| + (2 / pi) sqrt(a b) int_0^t s sin(s) ds,   t = min(theta, pi - theta)

The second form, by Price's theorem, keeps the digits of a small angle; its integral is
taken by quadrature, in extended precision.
"""

import gaussian_quadrature as quadrature
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from widelimit.gaussian import _arc_cosine
from widelimit.gaussian._arc_cosine import Law
from widelimit.gaussian._closed import closed_half_distance, knows_distance
from widelimit.gaussian._inverse_sine import asin
from widelimit.scalar import from_callable

LONG = np.longdouble
PI = 4 * np.arctan(LONG(1))
# 1 - rho, from equal to opposite.
NEAR = np.concatenate([10.0 ** -np.arange(1.0, 31), np.linspace(0.05, 1.95, 39), [2.0]])
NEAR = np.concatenate([NEAR, 2 - 10.0 ** -np.arange(1.0, 15)])
EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
# A witness needs more digits than what it is for.
DTYPES = [np.float32, *([np.float64] if np.finfo(LONG).nmant > 52 else [])]
# Slopes left and right of zero: relu, leaky relu, absolute value, a turned one.
SLOPES = [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (2.0, -0.5)]


def function(sides):
    return lambda x: np.where(x > 0, sides[1] * x, sides[0] * x)


def beyond(near):
    """E|u||v| - |c| for unit variances, to relative accuracy in 1 - |rho|."""
    t = angle_of(np.minimum(near, 2 - near))
    x, w = np.polynomial.legendre.leggauss(40)
    phi = t[..., None] * (LONG(0.5) + LONG(0.5) * x)
    return (2 / PI) * (t / 2) * (w * phi * np.sin(phi)).sum(-1)


def angle_of(near):
    return 2 * np.arcsin(np.sqrt(near / 2))


def law_of(a, b, near, known=True):
    """A law as rounded numbers say it, and the exact (a, b, 1 - rho) of these."""
    root = np.sqrt(np.asarray(a) * np.asarray(b))
    between = np.sqrt(a) - np.sqrt(b)
    dtype = a.dtype
    if known:
        d = (between**2 / 2 + root * near).astype(dtype)
        c = (0.5 * (a + b) - d).astype(dtype)
    else:
        d, c = None, (root * (1 - near)).astype(dtype)
    a, b, c = (x.astype(LONG) for x in (a, b, c))
    if known:
        exact = (d.astype(LONG) - (np.sqrt(a) - np.sqrt(b)) ** 2 / 2) / np.sqrt(a * b)
    else:
        exact = 1 - c / np.sqrt(a * b)
    law = Law(*(x.astype(dtype) for x in (a, b, c)), d)
    return law, np.clip(exact, 0, 2)


def run(f, law):
    """The value as it is compiled."""
    return np.asarray(
        jax.jit(f)(Law(*(None if x is None else jnp.asarray(x) for x in law)))
    )


def variances(dtype, count):
    """Of one variable or of two, whose variances may be equal."""
    logs = np.random.default_rng(1).uniform(-4, 4, (count, 40, 1))
    logs[:, ::2] = logs[0, ::2]
    logs[-1, 1::4] = logs[0, 1::4] + 1e-3
    return np.exp(logs).astype(dtype)


def parts(sides):
    """The squares of the slopes of the even and of the odd part."""
    return ((sides[1] - sides[0]) / 2) ** 2, ((sides[1] + sides[0]) / 2) ** 2


# ---------------------------------------------------------------------- inverse sine
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_sine_to_relative_accuracy(dtype):
    x = np.concatenate([np.linspace(-1, 1, 4001), 10.0 ** -np.arange(1.0, 30)])
    x = x.astype(dtype)
    e = (1 - np.abs(x.astype(LONG))).astype(dtype)
    found = np.asarray(jax.jit(asin)(x, e))
    assert found.dtype == dtype
    exact = np.arcsin(x.astype(LONG))
    assert (np.abs(found - exact) <= 5 * EPS[dtype] * np.abs(exact)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_sine_keeps_the_digits_of_what_is_missing_to_one(dtype):
    """Rounded to 1, x has lost them."""
    e = np.append(NEAR[NEAR <= 0.5], 0.0).astype(dtype)
    x = (1 - e).astype(dtype)
    exact = PI / 2 - angle_of(e.astype(LONG))
    found = np.asarray(jax.jit(asin)(x, e))
    assert (np.abs(found - exact) <= 4 * EPS[dtype] * exact).all()


def test_the_derivative_of_the_inverse_sine():
    """Also where branches meet; 0 at the ends, as they are reached with no speed."""
    x = jnp.asarray([-1, -0.9, -0.5, -0.1, 0, 0.1, 0.5, 0.9, 1.0])
    found = jax.vmap(jax.grad(lambda x: asin(x, 1 - jnp.abs(x))))(x)
    wanted = np.append(0, np.append(1 / np.sqrt(1 - x[1:-1] ** 2), 0))
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


# ------------------------------------------------------------------------ arc cosine
def test_duals_are_the_integrals():
    rng = np.random.default_rng(2)
    pairs = [(f, g) for f in SLOPES for g in SLOPES]
    for (f, g), rho in zip(pairs, np.linspace(-1, 1, len(pairs)), strict=True):
        a, b = np.exp(rng.normal(size=2))
        c = rho * np.sqrt(a * b)
        wanted = quadrature.dual(function(f), [0], function(g), [0], (0, a, 0, b, c))
        size = np.sqrt(a * b)
        found = _arc_cosine.dual(f, g, Law(a, b, c))
        assert float(found) == pytest.approx(wanted, abs=3e-15 * 4 * size)
        # Of functions that jump: the slopes as values.
        steps = [lambda x, s=s: np.where(x > 0, s[1], s[0]) for s in (f, g)]
        wanted = quadrature.dual(steps[0], [0], steps[1], [0], (0, a, 0, b, c))
        found = _arc_cosine.jumps(f, g, Law(a, b, c))
        tolerance = 1e-13 if abs(rho) < 1 else 1e-7  # rounding of rho
        assert float(found) == pytest.approx(wanted, abs=tolerance * 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("known", [False, True])
def test_absolute_values_over_the_whole_range(dtype, known):
    a, b = variances(dtype, 2)
    law, near = law_of(a, b, NEAR, known)
    g = np.sqrt(law.a.astype(LONG) * law.b)
    wanted = g * (np.abs(1 - near) + beyond(near))
    found = run(lambda law: _arc_cosine.absolute(*law), law)
    assert found.dtype == dtype
    # The rounding of the covariance is that of the larger variance.
    assert (np.abs(found - wanted) <= 10 * EPS[dtype] * np.maximum(law.a, law.b)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_angle_over_the_whole_range(dtype):
    (a,) = variances(dtype, 1)
    law, near = law_of(a, a, NEAR)
    found = run(lambda law: _arc_cosine.angle(*law), law)
    # Near opposite inputs it is the square root of what rounding leaves of 1 + rho.
    root = np.sqrt(np.maximum(2 - near, EPS[dtype]))
    error = np.abs(found - (PI / 2 - angle_of(near)))
    assert (error <= 16 * EPS[dtype] * np.maximum(1, 1 / root)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", SLOPES)
def test_half_distances_to_relative_accuracy(dtype, sides):
    """Also where 1 - rho is far below the last digit of a number."""
    law, near = law_of(*variances(dtype, 2), NEAR)
    even, odd = parts(sides)
    a, b, d = (x.astype(LONG) for x in (law.a, law.b, law.d))
    of_sizes = np.where(near < 1, d, a + b - d) - np.sqrt(a * b) * beyond(near)
    wanted = odd * d + even * of_sizes
    found = run(lambda law: _arc_cosine.half_distance(sides, law), law)
    assert found.dtype == dtype
    error = np.abs(found - wanted)
    assert (error <= 16 * EPS[dtype] * (even + odd) * d).all()
    assert (error <= 6 * EPS[dtype] * wanted)[near < 0.1].all()


def test_half_distances_are_the_integrals():
    """With slopes and scales that differ from one variable to the other."""

    def f(x, p, q):
        return p * jax.nn.leaky_relu(q * x, 0.3)

    def plain(p, q):
        return lambda x: p * np.where(q * x > 0, q * x, 0.3 * q * x)

    e = from_callable(f, 3)
    other = from_callable(lambda x, _, __, p, q: f(x, p, q), 5)
    assert knows_distance(e, other)
    a, b, c = 1.3, 0.8, 0.6
    params = (0.7, 1.2, 1.1, 0.9)
    one, two = plain(*params[:2]), plain(*params[2:])
    squares = [
        quadrature.mean(lambda x, g=g: g(x) ** 2, [0], 0.0, v)
        for g, v in ((one, a), (two, b))
    ]
    product = quadrature.dual(one, [0], two, [0], (0, a, 0, b, c))
    arrays = [jnp.asarray(x) for x in (a, b, (a + b) / 2 - c, *params)]
    found = closed_half_distance(e, other, *arrays[:3], arrays[3:])
    assert float(found) == pytest.approx(sum(squares) / 2 - product, rel=1e-13)


# ----------------------------------------------------------------------- derivatives
def by_law(f):
    """A function of (a, b, c), with the distance as what these say it is."""
    return lambda a, b, c: f(Law(a, b, c, 0.5 * (a + b) - c))


DIFFERENTIABLE = {
    "absolute": lambda law: _arc_cosine.absolute(*law),
    "angle": lambda law: _arc_cosine.angle(*law),
    **{
        f"distance {s}": lambda law, s=s: _arc_cosine.half_distance(s, law)
        for s in SLOPES
    },
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_are_those_of_differences(name):
    f = by_law(DIFFERENTIABLE[name])
    a, b = np.array([1.3, 1.3, 0.4]), np.array([1.3, 0.7, 0.9])
    for rho in (-0.9, -0.3, 0.0, 0.2, 0.8):
        args = tuple(map(jnp.asarray, (a, b, rho * np.sqrt(a * b))))
        check_grads(f, args, order=1, atol=1e-8, rtol=1e-8, eps=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_at_near_inputs(dtype):
    """Price: d/dc E|u||v| = (2 / pi) asin(rho), d/da = sin(theta) / pi for a = b."""
    (v,) = variances(dtype, 1)
    law, near = law_of(v, v, NEAR[NEAR < 1.5])
    args = [jnp.broadcast_to(x, near.shape) for x in law]
    found = jax.jit(
        jax.grad(lambda *z: _arc_cosine.absolute(*z).sum(), argnums=(0, 1, 2))
    )(*args)
    by_a, by_b, by_c = map(np.asarray, found)
    theta = angle_of(near)
    assert (np.abs(by_c - (1 - 2 / PI * theta)) <= 16 * EPS[dtype]).all()
    for found in (by_a, by_b):
        wanted = np.sin(theta) / PI
        assert (np.abs(found - wanted) <= 8 * EPS[dtype] * wanted).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_nan_without_variance_or_distance(name, dtype):
    laws = [(0, 0, 0, 0), (0, 1, 0, 0.5), (1, 0, 0, 0.5), (1, 1, 1, 0), (1, 1, -1, 2)]
    laws += [(1e-30, 1e-30, 1e-30, 0), (4, 1, 2, 0.5)]
    args = [jnp.asarray(x, dtype) for x in np.array(laws, float).T]
    f = DIFFERENTIABLE[name]
    value, slopes = jax.jit(
        jax.vmap(jax.value_and_grad(lambda *z: f(Law(*z)), argnums=(0, 1, 2, 3)))
    )(*args)
    assert np.isfinite(value).all()
    assert np.isfinite(slopes).all()
