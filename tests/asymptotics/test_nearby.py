"""Near inputs keep their digits in single precision, and distances are distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply, n, readout

import widelimit as wl
from widelimit._api import _inputs_of
from widelimit._networks import struct_of
from widelimit.asymptotics import Engine
from widelimit.asymptotics._index import View
from widelimit.asymptotics._nearby import half_squares
from widelimit.asymptotics._product import materialise
from widelimit.program import LinComb, MatMul, Nonlin, Readout

LONG = np.longdouble
DTYPES = [np.float32, np.float64]
EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
SLOW = pytest.mark.slow


# ------------------------------------------------------------------- squares of data
def rows(width, near, offset, dtype):
    """Rows, and others of which some are as near as `near`."""
    rng = np.random.default_rng(width)
    x = offset + rng.normal(size=(6, width))
    y = offset + rng.normal(size=(5, width))
    y[:3] = x[:3] + near * rng.normal(size=(3, width))
    return x.astype(dtype), y.astype(dtype)


def exactly(x, y):
    between = x.astype(LONG)[:, None] - y.astype(LONG)
    return (between**2).sum(-1) / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 30, 200])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_squares_of_differences_of_near_rows(width, offset, dtype):
    """The angle between two rows, of which kinks are functions, has its digits."""
    find = jax.jit(lambda x, y: half_squares(x, y, 1, None))
    for near in (1.0, 0.1, 1e-2, 1e-4, 1e-6, 0.0):
        x, y = rows(width, near, offset, dtype)
        found, wanted = np.asarray(find(x[:, None], y[None])), exactly(x, y)
        assert found.dtype == dtype
        error = np.abs(np.sqrt(found) - np.sqrt(wanted))
        size = np.sqrt((x**2).sum(-1)[:, None] + (y**2).sum(-1))
        assert (error <= {np.float32: 4e-7, np.float64: 1e-13}[dtype] * size).all()
        if near <= 1e-4 and not offset:
            assert (np.abs(found - wanted) <= 16 * EPS[dtype] * wanted).all()
    # Rows that are equal have no distance at all, to the last digit.
    assert (found[range(3), range(3)] == 0).all()


@pytest.mark.parametrize("width", [3, 30, 200])
def test_rows_that_are_the_same_may_be_said_to_be(width):
    """Then they are no reason to compute differences; the others have their digits."""
    x = np.random.default_rng(0).normal(size=(6, width))
    same = np.eye(6, dtype=bool)
    find = jax.jit(lambda x, same: half_squares(x[:, None], x[None], 1, same))
    found = np.asarray(find(x, same))
    np.testing.assert_allclose(found[~same], exactly(x, x)[~same].astype(float), 1e-13)
    # Also if some others are near.
    x[3] = (1 + 1e-9) * x[0]
    found = np.asarray(find(x, same))
    np.testing.assert_allclose(found[~same], exactly(x, x)[~same].astype(float), 1e-13)


@pytest.mark.parametrize("width", [3, 30, 200])
@pytest.mark.parametrize("near", [1.0, 1e-4])
def test_derivatives_of_squares(width, near):
    """d/dx sum_j w_j |x - y_j|^2 / 2 = sum_j w_j (x - y_j)."""
    x, y = rows(width, near, 0.0, np.float64)
    weights = np.random.default_rng(1).normal(size=(6, 5))

    def total(x, y):
        return (weights * half_squares(x[:, None], y[None], 1, None)).sum()

    by_x, by_y = jax.jit(jax.grad(total, argnums=(0, 1)))(x, y)
    between = weights[..., None] * (x[:, None] - y)
    np.testing.assert_allclose(by_x, between.sum(1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(by_y, -between.sum(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shapes", [((4, 3, 5), (4, 3, 5)), ((4, 3, 1), (1, 1, 5))])
def test_squares_over_several_axes_that_broadcast(shapes):
    first, second = (np.random.default_rng(2).normal(size=s) for s in shapes)
    found = half_squares(jnp.asarray(first), jnp.asarray(second), 2, None)
    between = first - second
    np.testing.assert_allclose(found, (between**2).sum((1, 2)) / 2, rtol=1e-13)


# -------------------------------------------------------------------------- networks
def dense(activation):
    params = {"U": wl.normal((12, n)), "v": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((n, n), std=1.4) for i in range(2)}
    params |= {f"b{i}": wl.normal((n,), std=0.3) for i in range(2)}

    def f(p, x):
        h = apply(p["U"], x)
        for i in range(2):
            h = apply(p[f"W{i}"], activation(h)) + p[f"b{i}"]
        return readout(p, activation(h))

    return wl.limit(f, params)


def residual(activation):
    params = {"U": wl.normal((12, n)), "v": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((n, n), std=1.2) for i in range(2)}

    def f(p, x):
        h = apply(p["U"], x)
        for i in range(2):
            h = h + 0.7 * apply(p[f"W{i}"], activation(h))
        return readout(p, activation(h))

    return wl.limit(f, params)


def convolution(activation, stride=1):
    params = {
        "c1": wl.normal((3, 2, n), std=1.4),
        "c2": wl.normal((3, n, n), std=1.4),
        "v": wl.normal((n, 1)),
    }

    def f(p, x):
        h = x.reshape(len(x), 6, 2)
        for name in ("c1", "c2"):
            scale = np.sqrt(p[name].shape[0] * h.shape[-1])
            h = jax.lax.conv_general_dilated(
                h, p[name], (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            h = activation(h / scale)
        return readout(p, h.mean(1))

    return wl.limit(f, params)


def scaled_by_data():
    """Slopes and coefficients that differ from input to input, and constants."""
    params = {"U": wl.normal((12, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}
    params |= {"b": wl.normal((n,), std=0.5)}

    def f(p, x):
        size = jnp.abs(x[:, :1])
        h = jax.nn.leaky_relu(size * apply(p["U"], x), 0.2)
        h = size * apply(p["W"], h) + x[:, 1:2] * p["b"]
        return readout(p, 2.0 * jnp.abs(h))

    return wl.limit(f, params)


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


NETWORKS = {
    "dense relu": lambda: dense(jax.nn.relu),
    "residual relu": lambda: residual(jax.nn.relu),
    "convolution relu": lambda: convolution(jax.nn.relu),
    "convolution with strides": lambda: convolution(jax.nn.relu, 2),
    "scaled by data": scaled_by_data,
}
SMOOTH = {
    "dense erf": lambda: dense(jax.lax.erf),
    "dense gelu": lambda: dense(gelu),
    "convolution erf": lambda: convolution(jax.lax.erf),
}
FAST = ("dense relu",)


def marked(names):
    return [k if k in FAST else pytest.param(k, marks=SLOW) for k in names]


def near_inputs():
    """Four inputs, and copies of them at distances 1e-2 to 1e-5."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 12))
    scales = 10.0 ** -np.arange(2.0, 6.0)[:, None]
    return np.concatenate([x, x * (1 + scales * rng.normal(size=x.shape))]).astype("f4")


@pytest.mark.parametrize("name", marked([*NETWORKS, *SMOOTH]))
def test_kernels_of_near_inputs_in_single_precision(name):
    """Kinks make tangent kernels functions of the angle, the root of a difference."""
    make, x = (NETWORKS | SMOOTH)[name], near_inputs()
    net = make()
    single, double = net.kernels(x), make().kernels(x.astype(float))
    for kind in ("nngp", "ntk"):
        found, wanted = (np.asarray(getattr(k, kind)) for k in (single, double))
        assert found.dtype == np.float32
        size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
        assert (np.abs(found - wanted) <= 2e-6 * size).all()
        np.testing.assert_array_equal(found, found.T)
    whole, each = net.nngp(x), net.nngp(x, diagonal=True)
    np.testing.assert_allclose(np.diag(whole), each, rtol=4 * EPS[np.float32])


@pytest.mark.parametrize(
    ("count", "dtype"),
    [
        (8, np.float32),
        *(
            pytest.param(c, d, marks=SLOW)
            for c, d in ((13, np.float32), (40, np.float32), (13, np.float64))
        ),
    ],
)
def test_one_data_set_is_exactly_symmetric(count, dtype):
    """Also in its last digit, where a number and its mirror image are one tile's."""
    x = np.random.default_rng(0).normal(size=(count, 12)).astype(dtype)
    for activation in (jax.nn.relu, jax.lax.erf):
        for k in dense(activation).kernels(x):
            np.testing.assert_array_equal(k, np.asarray(k).T)


# ------------------------------------------------------------------------- distances
def half_distances(net, x, y):
    """D of every line that has one, and what second moments say it is.

    Both at equal positions, for all pairs of inputs.
    """
    asked = net._networks.asked(struct_of(x), False, frozenset({"nngp"}))
    shared = net._networks.shared(x.dtype)
    lines = asked.program.lines

    def views(engine, ref):
        u, letters = engine.view(ref, 0)
        return u, View(1, ref, u.indices), letters

    def run(x, y):
        sides = [_inputs_of(shared, z).side(asked.program) for z in (x, y)]
        engine, other = (Engine(sides, None, x.dtype) for _ in range(2))
        other.distances.matter = False
        known = {}
        for ref, line in enumerate(lines):
            if not isinstance(line, MatMul | LinComb | Nonlin | Readout):
                continue
            u, v, letters = views(engine, ref)
            d = engine.distances.of(u, v)
            if d is None:
                continue
            found = materialise(d, engine.letters, engine.given(letters))
            u, v, letters = views(other, ref)
            uu, vv, uv = (
                materialise(other.second(*pair), other.letters, other.given(letters))
                for pair in ((u, u), (v, v), (u, v))
            )
            known[line.name] = found, 0.5 * (uu + vv) - uv, uu + vv
        # Up to the last function nothing is known as a difference only.
        assert all(a.name in known for a in lines if isinstance(a, Nonlin))
        return known

    return jax.jit(run)(x, y)


@pytest.mark.parametrize("name", marked(NETWORKS))
def test_half_distances_are_those_of_second_moments(name):
    net, rng = NETWORKS[name](), np.random.default_rng(4)
    x, y = rng.normal(size=(3, 12)), rng.normal(size=(4, 12))
    known = half_distances(net, x, y)
    for found, wanted, size in known.values():
        assert (np.abs(found - wanted) <= 1e-14 * size).all()


@pytest.mark.parametrize("name", marked(NETWORKS))
def test_half_distances_of_near_inputs_in_single_precision(name):
    net, x = NETWORKS[name](), near_inputs()
    single = half_distances(net, x, x)
    double = half_distances(net, x.astype(float), x.astype(float))
    assert single.keys() == double.keys()
    pairs = (range(4), range(4, 8))
    for line, (found, *_) in single.items():
        found, wanted = np.asarray(found)[pairs], np.asarray(double[line][0])[pairs]
        if name != "scaled by data":
            assert (np.abs(found - wanted) <= 2e-6 * wanted).all(), line
        # A change of scale by e is known to the last digit of e. Angles have theirs.
        size = np.broadcast_to(double[line][2], double[line][0].shape)[pairs]
        error = np.abs(np.sqrt(found) - np.sqrt(wanted))
        assert (error <= 1e-6 * np.sqrt(size)).all(), line
