"""Phase diagrams: closed forms, quadrature by SciPy, deep finite networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

import widelimit as wl
from widelimit.phase import _settle

n = wl.width("n")
W = wl.normal((n, n), fan_in=0)
b = wl.normal((n,))
PARAMS = {"W": W, "b": b}
SLOW = pytest.mark.slow


def dense(phi):
    return lambda p, h: phi(h) @ p["W"] + p["b"]


def diagram(f, ws, bs, params=PARAMS, **options):
    return wl.phase_diagram(f, params, {"W": ws, "b": bs}, **options)


def length(rate):
    return -1 / np.log(rate)


# Witnesses ----------------------------------------------------------------------------


def test_relu_in_closed_form():
    """q = b^2 / (1 - w^2/2) below the edge w^2 = 2, which no bias moves."""
    w, s = np.array([0.5, 1.0, 1.4, 1.5, 2.0]), np.array([0.0, 0.1, 1.0])
    found = diagram(dense(jax.nn.relu), w, s)
    half = np.broadcast_to(w[:, None] ** 2 / 2, (5, 3))
    with np.errstate(divide="ignore"):
        q = np.where(half < 1, s**2 / (1 - half), np.inf)
    np.testing.assert_allclose(found.variance, q, rtol=1e-9)
    np.testing.assert_allclose(found.chi, half, rtol=1e-7)
    np.testing.assert_allclose(found.gradient, half, rtol=1e-9)
    np.testing.assert_array_equal(found.correlation, np.ones((5, 3)))
    exponential = (half < 1) & (s > 0)
    expected = np.where(exponential, length(np.where(half < 1, half, 0.5)), np.inf)
    np.testing.assert_allclose(found.correlation_length, expected, rtol=1e-6)
    assert 1.4 < found.edge[:, 0].min() <= found.edge[:, 0].max() < 1.5


def test_at_the_edge_relu_keeps_every_variance():
    found = diagram(dense(jax.nn.relu), [np.sqrt(2)], [0.0])
    assert np.isnan(found.variance)
    assert found.chi == found.gradient == found.correlation == 1
    assert np.isinf(found.correlation_length)


@pytest.mark.slow
def test_erf_in_closed_form():
    """Williams (1997); its fixed points by SciPy."""
    w, s = np.array([0.6, 1.2, 2.0]), np.array([0.2, 0.7])
    found = diagram(dense(jax.scipy.special.erf), w, s)
    for i, j in np.ndindex(3, 2):
        a, c = w[i] ** 2, s[j] ** 2

        def covariance(q, k, a=a, c=c):
            return a * 2 / np.pi * np.arcsin(2 * k / (1 + 2 * q)) + c

        def slope(q, k, a=a):
            return a * 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - 4 * k**2)

        q = optimize.brentq(lambda q, f=covariance: f(q, q) - q, 1e-9, 10)
        k = q
        if slope(q, q) > 1:
            k = optimize.brentq(
                lambda k, q=q, f=covariance: f(q, k) - k, 0, q * (1 - 1e-9)
            )
        np.testing.assert_allclose(found.variance[i, j], q, rtol=1e-9)
        np.testing.assert_allclose(found.correlation[i, j], k / q, rtol=1e-7)
        np.testing.assert_allclose(found.chi[i, j], slope(q, q), rtol=1e-8)
        np.testing.assert_allclose(found.gradient[i, j], slope(q, q), rtol=1e-8)
        np.testing.assert_allclose(
            found.correlation_length[i, j], length(slope(q, k)), rtol=1e-6
        )


def gaussian_mean(f, *scales):
    def density(*z):
        return f(*z) * np.exp(-sum(x**2 for x in z) / 2)

    if len(scales) == 1:
        return integrate.quad(density, -12, 12, limit=200)[0] / np.sqrt(2 * np.pi)
    return integrate.dblquad(density, -8, 8, -8, 8, epsabs=1e-9)[0] / (2 * np.pi)


@pytest.mark.slow
def test_tanh_against_quadrature():
    """Schoenholz et al., equations 3 to 9, at an ordered and a chaotic point."""
    for w, s in ((0.9, 0.3), (1.8, 0.4)):
        found = diagram(dense(jnp.tanh), [w], [s])
        q = optimize.brentq(
            lambda q, w=w, s=s: (
                w**2 * gaussian_mean(lambda z: np.tanh(np.sqrt(q) * z) ** 2, 1)
                + s**2
                - q
            ),
            1e-6,
            10,
        )
        chi = w**2 * gaussian_mean(lambda z, q=q: np.cosh(np.sqrt(q) * z) ** -4.0, 1)
        np.testing.assert_allclose(found.variance, q, rtol=1e-7)
        np.testing.assert_allclose(found.chi, chi, rtol=1e-7)
        np.testing.assert_allclose(found.gradient, chi, rtol=1e-7)
        c = found.correlation.item()
        assert (c == 1) == (chi < 1)
        if c < 1:
            other = np.sqrt(1 - c**2)

            def pair(phi, q=q, c=c, other=other):
                r = np.sqrt(q)
                return gaussian_mean(
                    lambda x, y: phi(r * x) * phi(r * (c * x + other * y)), 1, 1
                )

            assert abs(w**2 * pair(np.tanh) + s**2 - c * q) < 1e-6
            slope = w**2 * pair(lambda z: np.cosh(z) ** -2.0)
            np.testing.assert_allclose(
                found.correlation_length, length(slope), rtol=1e-4
            )


@pytest.mark.slow
def test_without_bias_tanh_leaves_zero_at_one():
    """The variance decays like a power of the depth at the edge itself."""
    found = diagram(dense(jnp.tanh), [0.8, 1.0, 1.3], [0.0])
    np.testing.assert_array_equal(found.variance[:2, 0], 0.0)
    assert found.variance[2, 0] > 0
    np.testing.assert_allclose(found.chi[:2, 0], [0.64, 1.0], rtol=1e-6)
    assert np.isnan(found.correlation[0, 0])  # it is that of the inputs
    assert found.correlation[2, 0] == pytest.approx(0, abs=1e-12)


# Other layers -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_residual_layer_has_no_exponential_scale():
    """Yang and Schoenholz (2017): powers of the depth for tanh, a factor for relu."""
    found = diagram(lambda p, h: h + jnp.tanh(h) @ p["W"] + p["b"], [0.5, 2.0], [0.2])
    np.testing.assert_array_equal(found.variance, np.inf)
    np.testing.assert_array_equal(found.chi, 1.0)
    np.testing.assert_array_equal(found.gradient, 1.0)
    np.testing.assert_array_equal(found.correlation_length, np.inf)
    assert not len(found.edge)
    w = np.array([0.5, 2.0])
    found = diagram(lambda p, h: h + jax.nn.relu(h) @ p["W"] + p["b"], w, [0.2])
    np.testing.assert_array_equal(found.variance, np.inf)
    np.testing.assert_allclose(found.gradient[:, 0], 1 + w**2 / 2, rtol=1e-9)


def normalised(h):
    h = h - h.mean(-1, keepdims=True)
    return h / jnp.sqrt((h**2).mean(-1, keepdims=True))


@SLOW
def test_layer_normalisation():
    """relu of a normalised state: V = w^2/2 + b^2, and the slope divides by V."""
    w, s = np.array([0.5, 2.0]), np.array([0.3, 1.0])
    found = diagram(lambda p, h: jax.nn.relu(normalised(h)) @ p["W"] + p["b"], w, s)
    half = w[:, None] ** 2 / 2
    np.testing.assert_allclose(found.variance, half + s**2, rtol=1e-9)
    np.testing.assert_allclose(found.chi, half / (half + s**2), rtol=1e-7)
    np.testing.assert_allclose(found.gradient, half / (half + s**2), rtol=1e-7)


@SLOW
def test_attention_averages_tokens():
    """Three tokens, logits of order 1 that equal tokens share: the mean of values.

    The covariance that all tokens share has the factor 1/4 + v^2, the largest.
    """
    params = {name: W for name in "QKV"}

    def layer(p, h):
        logits = (h @ p["Q"]) @ jnp.swapaxes(h @ p["K"], -1, -2) / n
        return 0.5 * h + jax.nn.softmax(logits, axis=-1) @ h @ p["V"]

    v = np.array([0.3, 0.7, 1.0])
    grid = {("Q", "K"): [0.5, 1.0], "V": v}
    found = wl.phase_diagram(layer, params, grid, shape=(3, n))
    np.testing.assert_allclose(found.chi, np.tile(0.25 + v**2, (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.gradient, found.chi, rtol=1e-6)
    assert found.names == ("Q+K", "V")


@SLOW
def test_a_convolution_is_as_deep_as_a_dense_layer():
    """Xiao et al. (2018): the same fixed points and factors, for a closed ring."""
    params = {"W": wl.normal((3, n, n), fan_in=(0, 1)), "b": b}

    def ring(p, h):
        h = jax.scipy.special.erf(h)
        return sum(jnp.roll(h, k - 1, 1) @ p["W"][k] for k in range(3)) + p["b"]

    w, s = np.array([0.7, 1.6]), np.array([0.3])
    found = diagram(ring, w, s, params, shape=(3, n))
    same = diagram(dense(jax.scipy.special.erf), w, s)
    for name in ("variance", "correlation", "chi", "gradient", "correlation_length"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(same, name), rtol=1e-6, err_msg=name
        )


@pytest.mark.slow
def test_dropout_has_no_edge_at_one():
    """Schoenholz et al., section 5: different masks keep equal inputs apart."""
    rate = 0.8

    def layer(p, h):
        keep = jax.random.bernoulli(jax.random.key(0), rate, h.shape) / rate
        return (jax.nn.relu(h) * keep) @ p["W"] + p["b"]

    found = diagram(layer, [1.0], [0.5])
    np.testing.assert_allclose(found.variance, 0.25 / (1 - 0.5 / rate), rtol=1e-9)
    np.testing.assert_allclose(found.chi, 0.5, rtol=1e-7)
    np.testing.assert_allclose(found.gradient, 0.5 / rate, rtol=1e-9)
    assert found.correlation < 0.999


@SLOW
@pytest.mark.parametrize("w", [1.8])
def test_gradients_of_deep_finite_networks(w):
    """The mean ratio of squared gradients at neighbouring layers, over seeds.

    Far from the input, where the variance is at rest.
    """
    s, width, depth, first, seeds = 0.4, 400, 24, 8, 16
    factor = diagram(dense(jnp.tanh), [w], [s]).gradient.item()

    @jax.jit
    def ratio(key):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        ws = w * jax.random.normal(k1, (depth, width, width)) / width**0.5
        bs = s * jax.random.normal(k2, (depth, width))

        def out(shifts):
            def step(h, p):
                return jnp.tanh(h + p[2]) @ p[0] + p[1], None

            h, _ = jax.lax.scan(step, jax.random.normal(k3, (width,)), (ws, bs, shifts))
            return h @ jax.random.normal(k4, (width,))

        squares = (jax.grad(out)(jnp.zeros((depth, width))) ** 2).sum(1)[first:]
        return jnp.mean(squares[:-1] / squares[1:])

    values = np.array([ratio(k) for k in jax.random.split(jax.random.key(1), seeds)])
    stderr = values.std(ddof=1) / seeds**0.5
    assert stderr < 0.02 * factor
    assert abs(values.mean() - factor) < 4 * stderr


# What is returned ---------------------------------------------------------------------


@pytest.mark.slow
def test_summary_and_plot(tmp_path):
    found = diagram(dense(jax.nn.relu), np.linspace(1, 2, 6), np.linspace(0, 1, 4))
    text = str(found)
    assert "Edge of chaos" in text
    assert "variance grows" in text
    found.plot(tmp_path / "phases.png")
    assert (tmp_path / "phases.png").stat().st_size > 10_000
    one = diagram(dense(jax.nn.relu), [1.0], [0.5])
    one.plot(tmp_path / "one.png")
    assert "No edge" in str(one)


def test_fixed_points_of_plain_maps():
    """Creeping, decaying, diverging: with and without a place to rest."""

    def end(f):
        one = np.ones((1, 1, 1))
        return _settle.settle(
            lambda _, k: f(k), one, lambda _, k: _settle.is_covariance(k)
        )

    assert end(lambda k: 0.9999 * k + 1).state.item() == pytest.approx(1e4, rel=1e-8)
    assert end(lambda k: k + 0.09).huge
    assert end(lambda k: 1.0005 * k).huge
    assert end(lambda k: 0.5 * k).tiny
    assert end(lambda k: k - 0.2 * k**2).state.item() < 1e-6
    assert not end(lambda k: 3.9 * k * (1.1 - k)).done  # chaos: no place to rest


# Errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stds", "message"),
    [
        ({"W": [1.0]}, "two entries"),
        ([1.0, 2.0], "two entries"),
        ({"V": [1.0], "b": [0.1]}, "names 'V'.*W, b"),
        ({"W": [1.0], ("b", "W"): [0.1]}, "Both entries"),
        ({"W": [[1.0]], "b": [0.1]}, "one axis"),
        ({"W": 1.0, "b": [0.1]}, "one axis"),
        ({"W": [], "b": [0.1]}, "one axis"),
        ({"W": [1.0], "b": [-0.1]}, "not negative"),
        ({"W": [np.nan], "b": [0.1]}, "finite"),
        ({"W": [2.0, 1.0], "b": [0.1]}, "increase"),
        ({"W": ["a"], "b": [0.1]}, "numbers"),
    ],
)
def test_bad_grids(stds, message):
    with pytest.raises(wl.InputError, match=message):
        wl.phase_diagram(dense(jnp.tanh), PARAMS, stds)


def test_bad_arguments():
    with pytest.raises(wl.InputError, match="function"):
        diagram("tanh", [1.0], [0.1])
    with pytest.raises(wl.InputError, match="variance"):
        diagram(dense(jnp.tanh), [1.0], [0.1], variance=0.0)
    with pytest.raises(wl.InputError, match="correlation"):
        diagram(dense(jnp.tanh), [1.0], [0.1], correlation=1.0)
    with pytest.raises(wl.InputError, match=r"\(8, 8, n\)"):
        diagram(dense(jnp.tanh), [1.0], [0.1], shape=(4,))
    m = wl.width("m")
    wide = {"W": wl.normal((n, m), fan_in=0), "b": wl.normal((m,))}
    with pytest.raises(wl.InputError, match="widths"):
        diagram(dense(jnp.tanh), [1.0], [0.1], wide)
    fixed = {"W": W, "b": wl.constant((n,), 1.0)}
    with pytest.raises(wl.InputError, match="not a random parameter"):
        diagram(dense(jnp.tanh), [1.0], [0.1], fixed)


def test_bad_layers():
    with pytest.raises(wl.ShapeMismatchError, match="returns the shape that it takes"):
        diagram(lambda p, h: h[:, :3], [1.0], [0.1])
    plain = {"W": wl.normal((n, n)), "b": b}
    with pytest.raises(wl.NoLimitError, match="diverges"):
        diagram(dense(jnp.tanh), [1.0], [0.1], plain)
    with pytest.raises(wl.UnsupportedError, match="couples"):
        diagram(lambda p, h: (h - h.mean(0)) @ p["W"] + p["b"], [1.0], [0.1])
    with pytest.raises(wl.UnsupportedError, match="one applied twice"):
        diagram(lambda p, h: h + jax.nn.relu(h @ p["W"]) + p["b"], [1.0], [0.1])
