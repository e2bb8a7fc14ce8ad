"""What the structure of a program decides: sharing, sums, scalars, honest errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import widelimit as wl
from widelimit.asymptotics import Engine, Side

# The trapezoidal rule, exact to rounding for a function analytic near the real line.
POINTS = np.linspace(-12.0, 12.0, 961)
WEIGHTS = norm.pdf(POINTS) / norm.pdf(POINTS).sum()


def mean1(f, variance=1.0, mean=0.0):
    """E f(z), z ~ N(mean, variance), of a smooth f."""
    return float(WEIGHTS @ np.asarray(f(mean + variance**0.5 * POINTS)))


def half_line_mean(f):
    """E f(z), z ~ N(0, 1), of a function smooth on either side of 0."""
    t, w = np.polynomial.legendre.leggauss(200)
    x = 5.0 * (t + 1.0)
    density = 5.0 * w * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return float(density @ np.asarray(f(x)) + density @ np.asarray(f(-x)))


def mean2(f, cov):
    """E f(u, v) by a product rule, of a smooth f."""
    (a, c), (_, b) = cov
    u = a**0.5 * POINTS[:, None]
    v = c / a * u + (b - c * c / a) ** 0.5 * POINTS[None, :]
    return float(WEIGHTS @ np.asarray(f(u, v)) @ WEIGHTS)


# ------------------------------------------------------------------ sums and sharing
def test_a_sum_with_itself_has_four_times_the_variance():
    p = wl.Program()
    x = p.vector("x", "n", var=0.7)
    y = p.nonlin(jnp.tanh, x)
    twice = p.nonlin(lambda u, v: u + v, y, y)
    double = x + x
    lim = p.limit()
    assert float(lim.cov(double, double)) == pytest.approx(2.8, rel=1e-14)
    assert float(lim.cov(twice, twice)) == pytest.approx(
        4 * mean1(lambda u: np.tanh(u) ** 2, 0.7), rel=1e-12
    )


def test_a_difference_with_itself_is_exactly_zero():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    y = p.nonlin(jnp.tanh, A @ x)
    z = (y - y).named("z")
    h = p.nonlin(jnp.cos, z)
    lim = p.limit()
    assert float(lim.cov(z, z)) == 0.0
    assert float(lim.mean(h)) == pytest.approx(1.0, abs=1e-14)


def test_a_product_with_itself_is_a_fourth_moment():
    p = wl.Program()
    x = p.vector("x", "n", mean=0.3, var=0.5)
    square = p.nonlin(lambda u: u * u, x)
    lim = p.limit()
    assert float(lim.mean(square)) == pytest.approx(0.59, rel=1e-13)
    # Var z^2 = 2 v^2 + 4 m^2 v.
    assert float(lim.cov(square, square)) == pytest.approx(0.5 + 0.18, rel=1e-13)
    assert float(lim.cov(square, x)) == pytest.approx(2 * 0.3 * 0.5, rel=1e-13)


def test_one_matrix_used_twice_correlates_and_two_do_not():
    p = wl.Program()
    x, y = p.vectors({"x": 0, "y": 1}, "n", 0.0, [[1.0, 0.6], [0.6, 2.0]])
    A, B = p.matrix("A", ("m", "n"), std=1.5), p.matrix("B", ("m", "n"), std=1.5)
    lim_of = [(A @ x).named("ax"), (A @ y).named("ay"), (B @ y).named("by")]
    lim = p.limit({"m": 3.0})
    ax, ay, by = lim_of
    assert float(lim.cov(ax, ay)) == pytest.approx(2.25 * 0.6, rel=1e-14)
    assert float(lim.cov(ay, ay)) == pytest.approx(2.25 * 2.0, rel=1e-14)
    assert float(lim.cov(ax, by)) == 0.0
    both = p.nonlin(lambda u, v: jnp.tanh(u) * jnp.tanh(v), ax, ay)
    apart = p.nonlin(lambda u, v: jnp.tanh(u) * jnp.tanh(v), ax, by)
    cov = 2.25 * np.array([[1.0, 0.6], [0.6, 2.0]])
    lim = p.limit({"m": 3.0})
    wanted = mean2(lambda u, v: np.tanh(u) * np.tanh(v), cov)
    assert wanted > 0.1
    assert float(lim.mean(both)) == pytest.approx(wanted, rel=1e-10)
    assert abs(float(lim.mean(apart))) < 1e-15


def test_a_recurrence_with_one_matrix_correlates_its_steps():
    p = wl.Program()
    x, W = p.vector("x", "n", mean=0.5, var=0.0), p.matrix("W", ("n", "n"), std=1.2)
    h1 = p.nonlin(jnp.tanh, x)
    g2 = W @ h1
    h2 = p.nonlin(lambda u, v: jnp.tanh(u + v), g2, x)
    g3 = W @ h2
    lim = p.limit()
    c, s2 = np.tanh(0.5), 1.44
    wanted = s2 * c * mean1(lambda u: np.tanh(u + 0.5), s2 * c * c)
    assert float(lim.cov(g2, g3)) == pytest.approx(wanted, rel=1e-11)
    assert wanted > 0.1


def test_vectors_of_two_widths_have_covariance_zero():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("m", "n"))
    y = A @ x
    estimate = p.limit().cov(x, y)
    assert float(estimate) == 0.0
    assert "class" in estimate.route


# ------------------------------------------------------------ leaves of nonlinearities
def test_relu_plus_x_through_tanh_is_one_leaf():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    g = A @ x
    r = p.nonlin(jax.nn.relu, g)
    z = p.nonlin(lambda u, v: jnp.tanh(u + v), r, g)
    lim = p.limit()
    wanted = half_line_mean(lambda u: np.tanh(np.maximum(u, 0) + u) ** 2)
    mean = half_line_mean(lambda u: np.tanh(np.maximum(u, 0) + u))
    assert float(lim.mean(z)) == pytest.approx(mean, rel=1e-11)
    assert float(lim.cov(z, z)) == pytest.approx(wanted - mean**2, rel=1e-10)


def test_relu_of_one_vector_plus_another_through_tanh_is_two_leaves():
    p = wl.Program()
    x, y = p.vectors({"x": 0, "y": 1}, "n", 0.0, [[1.0, 0.8], [0.8, 1.0]])
    z = p.nonlin(lambda u, v: jnp.tanh(u + v), p.nonlin(jax.nn.relu, x), y)
    estimate = p.limit().expect(lambda u: u * u, z)

    # v = 0.8 u + 0.6 e: smooth in e, and in u on either side of 0.
    def inner(u):
        e = POINTS[:, None]
        return WEIGHTS @ np.tanh(np.maximum(u, 0) + 0.8 * u + 0.6 * e) ** 2

    wanted = half_line_mean(inner)
    assert abs(float(estimate) - wanted) <= estimate.error + 1e-12
    assert estimate.error < 1e-3


def test_a_linear_combination_inside_a_nonlinearity_is_one_gaussian():
    p = wl.Program()
    x, y = p.vectors({"x": 0, "y": 1}, "n", 0.0, [[1.0, -0.4], [-0.4, 0.5]])
    z = p.nonlin(jnp.tanh, 0.5 * x - 2.0 * y + 0.3)
    variance = 0.25 + 0.8 + 2.0
    estimate = p.limit().cov(z, z)
    first = mean1(np.tanh, variance, 0.3)
    second = mean1(lambda u: np.tanh(u) ** 2, variance, 0.3)
    assert float(estimate) == pytest.approx(second - first**2, rel=1e-9)


def test_an_odd_function_of_an_independent_vector_kills_a_term():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    z = p.nonlin(lambda u, v: jnp.tanh(u) * v, x, A @ x)
    lim = p.limit()
    assert float(lim.mean(z)) == 0.0
    assert float(lim.cov(z, x)) == 0.0
    wanted = mean1(lambda u: np.tanh(u) ** 2)
    assert float(lim.cov(z, z)) == pytest.approx(wanted, rel=1e-12)


# --------------------------------------------------------------------------- scalars
def test_layer_norm_through_moments():
    p = wl.Program()
    x = p.vector("x", "n", mean=0.4, var=2.0)
    h = p.nonlin(jax.nn.relu, x)
    mean = p.moment(lambda u: u, h)
    var = p.moment(lambda u, m: (u - m) ** 2, h, mean)
    z = p.nonlin(lambda u, m, v: (u - m) / jnp.sqrt(v + 1e-3), h, mean, var)
    lim = p.limit()
    m, v = float(lim.mean(h)), float(lim.cov(h, h))
    assert float(lim.value(mean)) == pytest.approx(m, rel=1e-13)
    assert float(lim.value(var)) == pytest.approx(v, rel=1e-12)
    assert float(lim.mean(z)) == pytest.approx(0.0, abs=1e-13)
    assert float(lim.cov(z, z)) == pytest.approx(v / (v + 1e-3), rel=1e-12)
    assert float(lim.cov(z, h)) == pytest.approx(v / (v + 1e-3) ** 0.5, rel=1e-12)


def test_a_scalar_as_a_coefficient():
    p = wl.Program()
    x, A = p.vector("x", "n", mean=0.5, var=1.5), p.matrix("A", ("n", "n"))
    t = p.moment(lambda u: u * u, x)
    y = A @ x
    z = (t * y - x / (1.0 + t)).named("z")
    lim = p.limit()
    e = 1.75
    assert float(lim.value(t)) == pytest.approx(e, rel=1e-14)
    assert float(lim.cov(z, z)) == pytest.approx(
        e * e * e + 1.5 / (1 + e) ** 2, rel=1e-13
    )
    assert float(lim.mean(z)) == pytest.approx(-0.5 / (1 + e), rel=1e-13)
    assert float(lim.cov(z, x)) == pytest.approx(-1.5 / (1 + e), rel=1e-13)


def test_a_moment_of_correlated_vectors_inside_a_nonlinearity():
    p = wl.Program()
    x, y = p.vectors({"x": 0, "y": 1}, "n", 0.0, [[1.0, 0.3], [0.3, 1.0]])
    t = p.moment(lambda u, v: u * v, x, y)
    z = p.nonlin(lambda u, s: jnp.sin(s * u), x, t)
    # E sin(s z)^2 = (1 - exp(-2 s^2)) / 2.
    wanted = (1 - np.exp(-2 * 0.09)) / 2
    assert float(p.limit().cov(z, z)) == pytest.approx(wanted, rel=1e-13)


def test_expect_of_vectors_and_scalars_in_any_order():
    p = wl.Program()
    x = p.vector("x", "n", mean=0.2, var=0.8)
    t = p.moment(lambda u: u * u, x)
    lim = p.limit()
    s = 0.8 + 0.04
    assert float(lim.expect(lambda c, u: c * u, t, x)) == pytest.approx(s * 0.2)
    assert float(lim.expect(lambda u, c: u - c, "x", t)) == pytest.approx(0.2 - s)
    wanted = mean1(lambda u: np.tanh(s * u), 0.8, 0.2)
    found = lim.expect(lambda u, c: jnp.tanh(c * u), x, t)
    assert float(found) == pytest.approx(wanted, rel=1e-11)


# ------------------------------------------------------------- degenerate covariances
def test_zero_variance_is_a_constant():
    p = wl.Program()
    x, A = p.vector("x", "n", mean=0.7, var=0.0), p.matrix("A", ("n", "n"), std=0.0)
    h = p.nonlin(jnp.tanh, x)
    k = p.nonlin(lambda u, v: jax.nn.relu(u) * jnp.exp(v), x, A @ x)
    lim = p.limit()
    assert float(lim.mean(h)) == pytest.approx(np.tanh(0.7), rel=1e-14)
    assert float(lim.cov(h, h)) == pytest.approx(0.0, abs=1e-15)
    assert float(lim.mean(k)) == pytest.approx(0.7, rel=1e-13)
    assert np.isfinite(lim.cov(k, k).error)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "silu": jax.nn.silu,
    "step": lambda u: jnp.where(u > 0, 1.0, 0.0),
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "scale"),
    [("relu", -1.0), ("erf", 2.0), ("step", 1.0), ("tanh", 2.0)]
    + [
        pytest.param(k, s, marks=SLOW)
        for k in ACTIVATIONS
        for s in (1.0, 2.0, -1.0, -0.3)
    ],
)
def test_parallel_vectors(name, scale):
    """A scaled copy: exactly singular, and the same as a function of one variable."""
    f = ACTIVATIONS[name]
    p = wl.Program()
    x, A = p.vector("x", "n", var=1.3), p.matrix("A", ("n", "n"))
    y = (scale * x).named("y")
    one = p.nonlin(f, A @ x)
    two = p.nonlin(f, A @ y)
    lim = p.limit()
    found = lim.expect(lambda u, v: u * v, one, two)

    def product(u):
        return np.asarray(f(1.3**0.5 * u)) * np.asarray(f(scale * 1.3**0.5 * u))

    assert float(found) == pytest.approx(half_line_mean(product), abs=1e-10)


def test_three_vectors_of_rank_two():
    p = wl.Program()
    x, y = p.vectors({"x": 0, "y": 1}, "n", 0.0, [[1.0, 0.5], [0.5, 1.0]])
    A = p.matrix("A", ("n", "n"))
    a, b, c = A @ x, A @ y, A @ (x - y)
    z = p.nonlin(lambda u, v, w: jnp.tanh(u - v - w), a, b, c)
    found = p.limit().cov(z, z)
    assert abs(float(found)) <= found.error + 1e-13


# ----------------------------------------------------------------------- the estimates
def test_a_closed_form_says_so():
    p = wl.Program()
    x = p.vector("x", "n", var=2.0)
    h = p.nonlin(jax.nn.relu, x)
    estimate = p.limit().cov(h, h)
    assert float(estimate) == pytest.approx(1.0 - 1.0 / np.pi, rel=1e-14)
    assert estimate.stderr == 0.0
    assert estimate.error < 1e-11
    assert "closed form" in estimate.route


@pytest.mark.slow
def test_many_leaves_need_random_points_and_admit_it():
    """cos of a sum of five has a closed form, which a hidden sum does not show."""
    p = wl.Program()
    rng = np.random.default_rng(3)
    root = rng.normal(size=(5, 5)) / 3
    cov = root @ root.T
    mean = 0.2 * rng.normal(size=5)
    xs = p.vectors([f"x{i}" for i in range(5)], "n", mean, cov)

    def f(a, b, c, d, e):
        return jnp.exp(-0.5 * (a + b + c + d + e) ** 2)

    estimate = p.limit().expect(f, *xs)
    m, v = mean.sum(), cov.sum()
    # E exp(-s^2 / 2), s ~ N(m, v).
    wanted = np.exp(-0.5 * m * m / (1 + v)) / np.sqrt(1 + v)
    assert abs(float(estimate) - wanted) <= estimate.error
    assert estimate.error < 1e-2


def test_a_maximum_of_five_is_an_honest_random_estimate():
    p = wl.Program()
    xs = p.vectors([f"x{i}" for i in range(5)], "n", 0.0, 0.5 * np.eye(5) + 0.5)

    def f(*u):
        return jnp.maximum(
            jnp.maximum(jnp.maximum(u[0], u[1]), jnp.maximum(u[2], u[3])), u[4]
        )

    estimate = p.limit().expect(f, *xs)
    # max of equicorrelated = sqrt(1 - rho) max of independent; E max of 5 normals.
    t, w = np.polynomial.legendre.leggauss(400)
    x = 10 * t
    wanted = 0.5**0.5 * 10 * w @ (x * 5 * norm.pdf(x) * norm.cdf(x) ** 4)
    assert "QMC" in estimate.route
    assert 0 < estimate.stderr < estimate.error < 1e-2
    assert abs(float(estimate) - wanted) <= estimate.error


# ------------------------------------------------------------------------------ errors
def test_the_engine_refuses_a_transpose_with_advice():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    y = (A.T @ (A @ x)).named("y")
    engine = Engine([Side(p.tensor_program, {})])
    with pytest.raises(wl.UnsupportedError, match=r"transpose `A_T`.*detranspose"):
        engine.pair_array(y.ref, y.ref, (0, 0))
    assert float(p.limit().cov("y", "y")) == pytest.approx(2.0)


def test_a_ratio_of_an_unknown_width_is_refused():
    p = wl.Program()
    p.vector("x", "n")
    with pytest.raises(wl.InputError, match=r"'k'.*has n"):
        p.limit({"k": 2.0})


@pytest.mark.parametrize("ratio", [0.0, -1.0, np.inf, np.nan])
def test_a_ratio_that_is_not_positive_is_refused(ratio):
    p = wl.Program()
    p.vector("x", "n")
    with pytest.raises(wl.InputError, match="positive"):
        p.limit({"n": ratio})


def test_a_matrix_or_a_scalar_has_no_mean():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    t = p.moment(lambda u: u, x)
    lim = p.limit()
    for line in (A, t):
        with pytest.raises(wl.InvalidProgramError, match="not a vector"):
            lim.mean(line)
    with pytest.raises(wl.InvalidProgramError, match="not a scalar"):
        lim.value(x)
    with pytest.raises(wl.InvalidProgramError, match="vectors"):
        lim.expect(lambda a: a, t)
    with pytest.raises(wl.InputError, match="at least one"):
        lim.expect(lambda: 1.0)


def test_vectors_of_two_widths_have_no_joint_expectation():
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("m", "n"))
    y = A @ x
    with pytest.raises(wl.WidelimitError, match="width"):
        p.limit().expect(lambda u, v: u * v, x, y)


def test_a_line_of_another_program_is_refused():
    p, q = wl.Program(), wl.Program()
    p.vector("x", "n")
    y = q.vector("y", "n")
    with pytest.raises(wl.InputError, match="another program"):
        p.limit().mean(y)


def test_a_line_written_later_is_refused():
    p = wl.Program()
    x = p.vector("x", "n")
    lim = p.limit()
    y = p.nonlin(jnp.tanh, x)
    with pytest.raises(wl.InputError, match="after"):
        lim.mean(y)
