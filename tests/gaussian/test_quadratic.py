"""Negative powers of quadratic forms beside rectifiers, signs and polynomials."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from widelimit.gaussian import Accuracy, estimate, expect, is_exact, route
from widelimit.scalar import from_callable

relu = jax.nn.relu


def mean(f, cov, means=None, *, level=1, params=(), dtype=jnp.float64):
    """E f(z, *params) for z of a covariance matrix."""
    cov = cov if isinstance(cov, jax.Array) else np.asarray(cov, dtype)
    d = len(cov)
    rows = [[cov[i, j] for j in range(d)] for i in range(d)]
    at = [None] * d if means is None else [jnp.asarray(m, dtype) for m in means]
    e = from_callable(f, d + len(params))
    assert route([e], d) == "quadratic forms"
    return expect([e], at, rows, params, Accuracy(level))


def square(*z):
    return sum(x * x for x in z)


def centring(*sizes):
    """The matrix that subtracts the mean of every batch."""
    blocks = [np.eye(b) - 1 / b for b in sizes]
    return scipy.linalg.block_diag(*blocks)


def wishart(seed, d):
    a = np.random.default_rng(seed).standard_normal((d, d + 2))
    return a @ a.T / (d + 2)


def normalised(z, i, eps=0.0):
    """Entry i of a centred batch after normalisation and rectification."""
    return relu(z[i] / jnp.sqrt(square(*z) / len(z) + eps))


def assert_is_mean_of(value, samples):
    stderr = samples.std() / len(samples) ** 0.5
    assert stderr < 0.02 * abs(value)
    assert abs(samples.mean() - value) < 4 * stderr


# --------------------------------------------------------------------- one integral
# A function of degree 0 is independent of |z| for z ~ N(0, I): its expectation is that
# of the numerator over that of the denominator.
SPELLINGS = {
    "div": lambda a, b, q: relu(a / jnp.sqrt(q)) * relu(b / jnp.sqrt(q)),
    "rsqrt": lambda a, b, q: relu(a * jax.lax.rsqrt(q)) * jnp.maximum(b, 0) * q**-0.5,
    "power": lambda a, b, q: jnp.maximum(0, a) * jnp.where(b > 0, b, 0) / q,
    "cancelling": lambda a, b, q: relu(a) * relu(b) * jnp.sqrt(q) / q**1.5,
    "min": lambda a, b, q: jnp.minimum(-a, 0) * jnp.minimum(-b / q, 0),
    "mixed": lambda a, b, q: relu(b / (3.0 * q) ** 0.5) * 3**0.5 * relu(a / q**0.5),
}


# E |z|^p = 2^(p/2) Gamma((3 + p) / 2) / Gamma(3 / 2), p = 1/3.
_RADIUS = 2 ** (1 / 6) * math.gamma(5 / 3) / math.gamma(1.5)


@pytest.mark.parametrize("f", SPELLINGS.values(), ids=SPELLINGS)
def test_the_spelling_does_not_matter(f):
    value = mean(lambda *z: f(z[0], z[1], square(*z)), np.eye(3))
    assert value == pytest.approx(1 / (6 * math.pi), rel=1e-11)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda a, b, c: a**4 / square(a, b, c) ** 2, 3 / 15),
        (
            lambda a, b, c: b * b / (square(a, b, c) * square(a, b, c) ** 0.5),
            (2 / math.pi) ** 0.5 / 3,
        ),
        (lambda a, b, c: jnp.abs(a * b) / square(a, b, c), 2 / math.pi / 3),
        (lambda a, b, c: jnp.sign(a) * a / square(a, b, c) ** 0.5, 0.5),
        (lambda a, b, c: jax.nn.leaky_relu(a, 0.1) ** 2 / square(a, b, c), 1.01 / 6),
        (lambda a, b, c: a * relu(b) * relu(c) / square(a, b, c) ** 1.5, 0.0),
        (lambda a, b, c: (a > 0) * (b < 0) / square(a, b, c), 0.25),
        (lambda a, b, c: 1 / square(a, b, c) ** 0.5, (2 / math.pi) ** 0.5),
        (lambda a, b, c: a * a / square(a, b, c) ** (5 / 6), _RADIUS / 3),
    ],
)
def test_functions_of_the_radius_and_of_the_direction(f, expected):
    assert mean(f, np.eye(3)) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1.0, 100.0])
def test_a_constant_in_the_quadratic_form(eps):
    half = eps / 2
    expected = 1 - half * math.exp(half) * scipy.special.exp1(half)

    def f(a, b, c):
        return relu(a / jnp.sqrt(square(a, b) + c)) ** 2

    fixed = mean(lambda a, b: f(a, b, eps), np.eye(2))
    assert fixed == pytest.approx(expected / 4, rel=1e-10)
    assert mean(f, np.eye(2), params=(jnp.asarray(eps),)) == pytest.approx(float(fixed))


def test_the_levels_converge():
    cov = centring(4, 3) @ wishart(0, 7) @ centring(4, 3)

    def f(*z):
        return normalised(z[:4], 1) * normalised(z[4:], 2)

    coarse, middle, fine = (float(mean(f, cov, level=k)) for k in range(3))
    assert abs(coarse - fine) < 1e-7
    assert abs(middle - fine) < 1e-11


def test_the_batch_may_be_centred_in_the_function():
    raw = wishart(1, 5)
    cov = centring(5) @ raw @ centring(5)
    expected = float(mean(lambda *z: normalised(z, 0) * normalised(z, 1), cov))

    def inside(*z):
        m = sum(z) / 5
        c = [x - m for x in z]
        return normalised(c, 0) * normalised(c, 1)

    def of_squares(*z):
        m = sum(z) / 5
        rate = 1 / jnp.sqrt(square(*z) / 5 - m**2)
        return relu((z[0] - m) * rate) * relu((z[1] - m) * rate)

    assert mean(inside, raw) == pytest.approx(expected, rel=1e-11)
    assert mean(of_squares, raw) == pytest.approx(expected, rel=1e-11)
    z = np.random.default_rng(2).multivariate_normal(np.zeros(5), raw, 400_000)
    y = np.maximum(z - z.mean(1, keepdims=True), 0) / z.std(1, keepdims=True)
    assert_is_mean_of(expected, y[:, 0] * y[:, 1])


def test_a_normalised_batch_has_mean_square_one():
    cov = centring(4) @ wishart(10, 4) @ centring(4)

    def squares(*z):
        return sum((x / jnp.sqrt(square(*z))) ** 2 for x in z)

    assert mean(squares, cov) == pytest.approx(1.0, rel=1e-11)


@pytest.mark.slow
def test_a_large_batch():
    def entry(*z):
        return relu(z[0] / jnp.sqrt(square(*z) / 70)) ** 2

    # All entries are alike, and half of the mean square is positive.
    assert mean(entry, centring(70)) == pytest.approx(0.5, rel=1e-10)


# ---------------------------------------------------------------------- two batches
def test_two_batches_against_samples():
    raw = wishart(3, 7)
    cov = centring(4, 3) @ raw @ centring(4, 3)

    def backward(*z):
        """What the derivative of a normalised batch is made of."""
        q, r = square(*z[:4]), square(*z[4:])
        return (z[0] > 0) * z[1] * z[0] / q**1.5 * relu(z[4]) * z[5] / r

    value = mean(backward, cov)
    z = np.random.default_rng(4).multivariate_normal(np.zeros(7), cov, 400_000)
    assert_is_mean_of(value, np.asarray(backward(*z.T)))


@pytest.mark.parametrize("rho", [-1.0, 0.0, 0.3, 0.999999])
def test_two_batches_of_two_are_signs(rho):
    pair = np.array([[1.0, -1.0], [-1.0, 1.0]])
    cov = np.block([[pair, rho * pair], [rho * pair, pair]])
    value = mean(lambda *z: normalised(z[:2], 0) * normalised(z[2:], 0), cov)
    expected = 0.25 + math.asin(rho) / (2 * math.pi)
    assert value == pytest.approx(expected, abs=1e-11)


def test_equal_batches_are_one_batch():
    cov = centring(5) @ wishart(5, 5) @ centring(5)
    one = float(mean(lambda *z: normalised(z, 0) * normalised(z, 1), cov))
    both = np.block([[cov, cov], [cov, cov]])
    two = mean(lambda *z: normalised(z[:5], 0) * normalised(z[5:], 1), both)
    assert two == pytest.approx(one, rel=1e-11)


def test_axes_that_only_the_entries_of_a_batch_have():
    """A leaf that is one of the leaves of the batch, which one along an axis."""
    k = centring(4, 3) @ wishart(6, 7) @ centring(4, 3)
    a, b = k[:4, :], k[4:, :]
    shapes = {0: (4, 1), 5: (1, 3)}
    rows = {0: a, 5: b}

    def entry(i, j):
        fixed = [x - 1 if x < 5 else x - 2 for x in (i, j)]
        if i in shapes and j in shapes:
            if i == j:
                diagonal = np.diag(k[:4, :4] if i == 0 else k[4:, 4:])
                return diagonal.reshape(shapes[i])
            return k[:4, 4:]
        if j in shapes:
            return entry(j, i)
        if i in shapes:
            return rows[i][:, fixed[1]].reshape(shapes[i])
        return k[fixed[0], fixed[1]].reshape(1, 1)

    def f(*z):
        first = relu(z[0] / jnp.sqrt(square(*z[1:5])))
        return first * relu(z[5] / jnp.sqrt(square(*z[6:])))

    e = from_callable(f, 9)
    cov = [[jnp.asarray(entry(i, j)) for j in range(9)] for i in range(9)]
    table = expect([e], [None] * 9, cov)
    assert table.shape == (4, 3)
    for i, j in ((1, 0), (3, 2)):
        one = mean(lambda *z, i=i, j=j: normalised(z[:4], i) * normalised(z[4:], j), k)
        assert table[i, j] * math.sqrt(12) == pytest.approx(float(one), rel=1e-10)


# -------------------------------------------------------------------- what else is so
def test_means():
    cov, means = np.array([[1.0, 0.4], [0.4, 0.8]]), [0.5, -0.3]

    def smooth(a, b):
        return a * b**2 / jnp.sqrt(square(a, b) + 2)

    def gated(a, b):
        return relu(a - 0.2) * jnp.abs(b) / jnp.sqrt(square(a, b))

    x, w = np.polynomial.hermite_e.hermegauss(120)
    z = np.stack(np.meshgrid(x, x)).reshape(2, -1)
    a, b = np.linalg.cholesky(cov) @ z + np.reshape(means, (2, 1))
    expected = np.sum(np.outer(w, w).ravel() * np.asarray(smooth(a, b)))
    expected /= w.sum() ** 2
    assert mean(smooth, cov, means) == pytest.approx(expected, rel=1e-10)
    samples = np.random.default_rng(7).multivariate_normal(means, cov, 400_000)
    assert_is_mean_of(mean(gated, cov, means), np.asarray(gated(*samples.T)))


@pytest.mark.slow
def test_derivatives_are_those_of_finite_differences():
    a = jnp.asarray(np.random.default_rng(8).standard_normal((6, 8)))
    both = jnp.asarray(centring(3, 3))

    def value(t):
        k = a + t * jnp.roll(a, 1, axis=0)
        cov = both @ k @ k.T @ both / 8
        return mean(lambda *z: normalised(z[:3], 0, 0.1) * normalised(z[3:], 2), cov)

    h = 1e-3
    slope = float(jax.grad(value)(0.2))
    rise = float(value(0.2 + h) - value(0.2 - h)) / (2 * h)
    assert slope == pytest.approx(rise, rel=1e-5)
    assert jax.jvp(value, (0.2,), (1.0,))[1] == pytest.approx(slope, rel=1e-10)


def test_single_precision():
    cov = centring(4, 3) @ wishart(9, 7) @ centring(4, 3)

    def f(*z):
        return normalised(z[:4], 1) * normalised(z[4:], 2)

    value = mean(f, cov, dtype=jnp.float32)
    assert value.dtype == jnp.float32
    assert value == pytest.approx(float(mean(f, cov)), rel=2e-6)


@pytest.mark.parametrize(
    ("f", "cov"),
    [
        (lambda a, b: 1 / square(a, b), np.eye(2)),
        (lambda a, b: 1 / jnp.sqrt(square(a, b)), np.ones((2, 2))),
        (lambda a, b: relu(a / jnp.sqrt(square(a, b))), np.zeros((2, 2))),
    ],
)
def test_where_there_is_no_expectation_there_is_no_number(f, cov):
    assert np.isnan(mean(f, cov))


def test_a_batch_without_variance_beside_a_constant():
    def f(a, b):
        return relu(a / jnp.sqrt(square(a, b) + 0.1)) + 1 / jnp.sqrt(square(a, b) + 4)

    assert mean(f, np.zeros((2, 2))) == pytest.approx(0.5, rel=1e-11)


def test_an_estimate_has_its_error():
    def f(a, b):
        return relu(a / jnp.sqrt(square(a, b))) ** 2

    found = estimate(f, np.zeros(2), np.eye(2))
    assert found.route == "quadratic forms"
    assert abs(found.value - 0.25) <= found.error < 1e-9
    e = from_callable(f, 2)
    assert not is_exact([e], 2)


def test_other_functions_of_a_normalised_batch_go_elsewhere():
    def smooth(*z):
        return jnp.tanh(z[0] / jnp.sqrt(square(*z)))

    def shifted(*z):
        return relu(z[0] / jnp.sqrt(square(*z)) + 1.0)

    def growing(*z):
        return relu(z[0]) * jnp.sqrt(square(*z))

    for f in (smooth, shifted, growing):
        assert route([from_callable(f, 5)], 5) == "QMC"
