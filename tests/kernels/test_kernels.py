"""Kernel matrices: blocks, precision, derivatives, coupled batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.kernels import _plan

n = wl.width("n")
RNG = np.random.default_rng(0)


def he_network(depth, bias=0.0, activation=jax.nn.relu):
    params = {"in": wl.normal((5, n), std=2**0.5), "out": wl.normal((n, 1))}
    for i in range(depth):
        params[f"W{i}"] = wl.normal((n, n), std=2**0.5)
        params[f"b{i}"] = wl.normal((n,), std=bias)

    def f(p, x):
        h = activation(x @ p["in"] / jnp.sqrt(5.0))
        for i in range(depth):
            h = activation(h @ p[f"W{i}"] / jnp.sqrt(h.shape[-1]) + p[f"b{i}"])
        return h @ p["out"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


def small(activation=jax.nn.relu, std=1.2, bias=0.3):
    params = {
        "U": wl.normal((3, n), std=std),
        "b": wl.normal((n,), std=bias),
        "v": wl.normal((n, 1)),
    }

    def f(p, x):
        h = activation(x @ p["U"] + p["b"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


@pytest.fixture
def tiles(monkeypatch):
    """Small tiles, and in them blocks of few pairs, from now on."""

    def set_to(side, block=2**18):
        monkeypatch.setattr(_plan, "_SIDE", side)
        monkeypatch.setattr(_plan, "_BLOCK", block)

    return set_to


# ------------------------------------------------------------------------- precision
SLOW = pytest.mark.slow


def test_the_diagonal_is_exact_in_single_precision():
    """At depth 30 in the slow test of the tangent kernel."""
    net = he_network(5, bias=0.1)
    x = RNG.normal(size=(6, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True) / 5**0.5
    exact = np.asarray(net.nngp(x))
    single = net.nngp(x.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(np.diag(single), np.diag(exact), rtol=1e-6)
    np.testing.assert_allclose(single, exact, rtol=1e-3)


@pytest.mark.slow
def test_single_and_double_precision_agree():
    x, y = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 3))
    for activation in (jax.nn.relu, jax.lax.erf, jnp.tanh):
        net = small(activation)
        single = net.nngp(x.astype(np.float32), y.astype(np.float32))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, net.nngp(x, y), rtol=2e-5, atol=2e-6)


# ---------------------------------------------------------------------------- blocks
@pytest.mark.parametrize(
    ("rows", "side"),
    [
        (1, 8),
        (33, 8),
        (33, 40),
        *(
            pytest.param(r, s, marks=SLOW)
            for r, s in ((2, 8), (70, 8), (1, 40), (70, 40))
        ),
    ],
)
def test_ragged_tiles_give_the_matrix_of_one_tile(tiles, rows, side):
    x, y = RNG.normal(size=(rows, 3)), RNG.normal(size=(37, 3))
    net = small()
    whole, cross = net.nngp(x), net.nngp(x, y)
    tiles(side, block=128)
    again = small()
    np.testing.assert_allclose(again.nngp(x), whole, rtol=1e-13)
    np.testing.assert_allclose(again.nngp(x, y), cross, rtol=1e-13)
    assert cross.shape == (rows, 37)
    assert whole.shape == (rows, rows)


@pytest.mark.parametrize("side", [8, 512])
def test_one_data_set_is_exactly_symmetric_and_like_two(tiles, side):
    tiles(side, block=64)
    x = RNG.normal(size=(21, 3))
    net = small()
    one, two = np.asarray(net.nngp(x)), np.asarray(net.nngp(x, x.copy()))
    np.testing.assert_array_equal(one, one.T)
    np.testing.assert_allclose(one, two, rtol=1e-12)
    assert np.linalg.eigvalsh(one)[0] > -1e-12


def test_one_data_set_with_positions_is_exactly_symmetric(tiles):
    """The mirrored half exchanges the positions of the two inputs as well."""
    params = {"U": wl.normal((3, n), std=1.2), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jax.nn.relu(x @ p["U"])
        h = jnp.cumsum(h, axis=1)
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    x = RNG.normal(size=(5, 4, 3))
    whole = np.asarray(wl.limit(f, params).nngp(x, x.copy()))
    assert whole.shape == (5, 5, 4, 4)
    tiles(2, block=64)
    one = np.asarray(wl.limit(f, params).nngp(x))
    np.testing.assert_array_equal(one, one.transpose(1, 0, 3, 2))
    np.testing.assert_allclose(one, whole, rtol=1e-12)


@pytest.mark.slow
def test_data_sets_of_different_lengths():
    params = {"U": wl.normal((2, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jnp.tanh(x @ p["U"])
        return h.mean(axis=1) @ p["v"] / jnp.sqrt(h.shape[-1])

    net = wl.limit(f, params)
    x, y = RNG.normal(size=(3, 4, 2)), RNG.normal(size=(2, 7, 2))
    k = net.nngp(x, y)
    assert k.shape == (3, 2)
    np.testing.assert_allclose(net.nngp(y, x), k.T, rtol=1e-12)

    def position(p, x):
        return jnp.tanh(x @ p["U"]) @ p["v"] / jnp.sqrt(p["v"].shape[0])

    at = wl.limit(position, params).nngp(x, y)
    assert at.shape == (3, 2, 4, 7)
    np.testing.assert_allclose(at.mean(axis=(2, 3)), k, rtol=1e-12)


def test_progress_counts_every_tile(tiles):
    tiles(8)
    seen = []
    small().nngp(RNG.normal(size=(20, 3)), progress=lambda i, of: seen.append((i, of)))
    assert seen == [(k, 6) for k in range(1, 7)]


# ----------------------------------------------------------------------- derivatives
def central(f, x, step=1e-5):
    """Central differences of a scalar function of an array."""
    x = np.asarray(x, float)
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        grad[i] = (float(f(up)) - float(f(down))) / (2 * step)
    return grad


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "leaky": lambda u: jnp.maximum(u, 0.1 * u),
}
NAMES = ["relu", *(pytest.param(k, marks=SLOW) for k in ("tanh", "erf", "leaky"))]


@pytest.mark.parametrize("name", NAMES)
def test_derivative_in_the_inputs(name):
    net = small(ACTIVATIONS[name])
    x, y = RNG.normal(size=(2, 3)), RNG.normal(size=(3, 3))
    weights = RNG.normal(size=(2, 3))

    def total(x):
        return jnp.sum(net.nngp(x, y) * weights)

    grad = jax.grad(total)(jnp.asarray(x))
    np.testing.assert_allclose(grad, central(total, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_where_inputs_coincide(name):
    """With a bias the kernel is smooth there; x appears on both sides and twice."""
    net = small(ACTIVATIONS[name])
    x = RNG.normal(size=(3, 3))
    x[2] = x[0]
    weights = RNG.normal(size=(3, 3))

    def total(x):
        return jnp.sum(net.nngp(x) * weights)

    grad = jax.grad(total)(jnp.asarray(x))
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, central(total, x), rtol=2e-4, atol=2e-5)
    row = jax.grad(lambda a: net.nngp(a[None], jnp.asarray(x))[0, 0])(jnp.asarray(x[0]))
    wanted = central(lambda a: net.nngp(a[None], x)[0, 0], x[0])
    np.testing.assert_allclose(row, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_where_inputs_are_orthogonal(name):
    """Where correlations change their sign; features are often one of many."""
    net = small(ACTIVATIONS[name], bias=0.0)
    x, y = np.eye(3)[:2], np.array([[0.0, 0, 2], [0, 1, 0], [-1, 0, 0]])
    weights = RNG.normal(size=(2, 3))

    def total(y):
        return jnp.sum(net.nngp(x, y) * weights)

    grad = jax.grad(total)(jnp.asarray(y))
    where = np.s_[:2]  # Opposite inputs have a kink.
    wanted = central(total, y)
    np.testing.assert_allclose(grad[where], wanted[where], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_no_nan_for_zero_and_repeated_inputs(name):
    x = np.array([[0.0, 0, 0], [1.0, 2, 3], [1, 2, 3], [0, 0, 0], [-1, -2, -3]])
    for dtype, bias in ((np.float32, 0.0), (np.float64, 0.3)):
        net = small(ACTIVATIONS[name], bias=bias)
        a = jnp.asarray(x, dtype)
        assert np.isfinite(net.nngp(a)).all()
        assert np.isfinite(net.nngp(a, a[::-1])).all()
        grad = jax.grad(lambda a, net=net: net.nngp(a).sum())(a)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("name", ["relu", pytest.param("tanh", marks=SLOW)])
def test_derivative_in_a_standard_deviation(name):
    x = jnp.asarray(RNG.normal(size=(3, 3)))

    @jax.jit
    def total(s):
        return jnp.sum(small(ACTIVATIONS[name], std=s[0], bias=s[1]).nngp(x) ** 2)

    s = jnp.asarray([1.1, 0.4])
    grad = jax.grad(total)(s)
    np.testing.assert_allclose(grad, central(total, s), rtol=1e-6)


@pytest.mark.slow
def test_derivative_in_another_array_of_the_network():
    x = jnp.asarray(RNG.normal(size=(2, 4, 3)))

    @jax.jit
    def total(mix, scale):
        params = {
            "U": wl.normal((3, n)),
            "v": wl.normal((n, 1)),
            "mix": mix,
            "scale": scale,
        }

        def f(p, x):
            h = jnp.tanh(p["scale"] * (x @ p["U"]))
            h = jnp.einsum("t,btn->bn", p["mix"], h)
            return h @ p["v"] / jnp.sqrt(h.shape[-1])

        return jnp.sum(wl.limit(f, params).nngp(x))

    mix, scale = jnp.asarray(RNG.normal(size=4)), jnp.asarray(0.8)
    by_mix, by_scale = jax.grad(total, argnums=(0, 1))(mix, scale)
    np.testing.assert_allclose(
        by_mix, central(lambda m: total(jnp.asarray(m), scale), mix), rtol=1e-6
    )
    np.testing.assert_allclose(
        by_scale, central(lambda s: total(mix, jnp.asarray(s)), scale), rtol=1e-6
    )


def test_it_can_be_jitted_and_mapped():
    net = small()
    x = jnp.asarray(RNG.normal(size=(2, 4, 3)))
    wanted = np.stack([net.nngp(a) for a in x])
    np.testing.assert_allclose(jax.jit(net.nngp)(x[0]), wanted[0], rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(net.nngp)(x), wanted, rtol=1e-13)
    cross = jax.jit(jax.vmap(net.nngp, (0, None)))(x, x[1])
    np.testing.assert_allclose(cross[1], net.nngp(x[1], x[1]), rtol=1e-13)


# --------------------------------------------------------------------------- outputs
def outputs(shape_of):
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 2), std=1.5)}

    def f(p, x):
        h = jnp.tanh(x @ p["U"])
        return shape_of(h @ p["v"] / jnp.sqrt(h.shape[-1]))

    return f, params


@pytest.mark.slow
def test_trace_axes():
    f, params = outputs(lambda y: y)
    x, y = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 3))
    k = wl.limit(f, params).nngp(x, y)
    full = wl.limit(f, params, trace_axes=()).nngp(x, y)
    assert k.shape == (3, 2)
    assert full.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(full, k[..., None, None] * np.eye(2), atol=1e-14)
    same = wl.limit(f, params, trace_axes=()).nngp(x)
    np.testing.assert_allclose(same[..., 0, 0], wl.limit(f, params).nngp(x), rtol=1e-13)
    np.testing.assert_array_equal(same[..., 0, 1], 0.0)


@pytest.mark.slow
def test_an_output_without_axes():
    f, params = outputs(lambda y: y[..., 0] - 2.0 * y[..., 1])
    x = RNG.normal(size=(3, 3))
    k = wl.limit(f, params).nngp(x)
    one = wl.limit(outputs(lambda y: y)[0], params).nngp(x)
    assert k.shape == (3, 3)
    np.testing.assert_allclose(k, 5.0 * one, rtol=1e-11)


@pytest.mark.slow
def test_an_output_with_positions():
    f, params = outputs(lambda y: y)
    x = RNG.normal(size=(2, 4, 3))
    k = wl.limit(f, params).nngp(x)
    flat = wl.limit(f, params).nngp(x.reshape(8, 3)).reshape(2, 4, 2, 4)
    assert k.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(k, flat.transpose(0, 2, 1, 3), rtol=1e-12)
    over_positions = wl.limit(f, params, trace_axes=(1, 2)).nngp(x)
    wanted = np.einsum("abii->ab", np.asarray(k)) / 4
    np.testing.assert_allclose(over_positions, wanted, rtol=1e-12)


# ------------------------------------------------------------------- coupled batches
def batch_centred(after=lambda h: h):
    params = {"U": wl.normal((3, n), std=1.3), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jax.nn.relu(x @ p["U"])
        h = after(h - h.mean(axis=0))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


def agrees_with_networks(net, x, y):
    k, cross = np.asarray(net.nngp(x)), np.asarray(net.nngp(x, y))
    assert k.shape == (len(x), len(x))
    assert cross.shape == (len(x), len(y))
    np.testing.assert_array_equal(k, k.T)
    width, seeds = 1024, 24

    def one(key):
        f, theta = net.at(n=width, key=key)
        # The hidden layer itself, so that its mean over networks has no bias at all.
        hidden = {**theta, "v": jnp.eye(width) * jnp.sqrt(width)}
        a, b = f(hidden, jnp.asarray(x)), f(hidden, jnp.asarray(y))
        return a @ a.T / width, a @ b.T / width

    found = [one(key) for key in jax.random.split(jax.random.key(1), seeds)]
    for values, wanted in zip(zip(*found, strict=True), (k, cross), strict=True):
        values = np.asarray(values)
        stderr = values.std(axis=0, ddof=1) / seeds**0.5
        assert (abs(values.mean(axis=0) - wanted) < 5 * stderr).all()


def test_a_coupled_batch_is_found_and_exact():
    net = batch_centred()
    x, y = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 3))
    assert net.coupled(x)
    assert not small().coupled(x)
    k = np.asarray(net.nngp(x))
    np.testing.assert_allclose(net.nngp(x, x.copy()), k, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(k.sum(axis=0), 0.0, atol=1e-13)
    agrees_with_networks(net, x, y)


@pytest.mark.slow
def test_a_coupled_batch_inside_a_nonlinearity():
    x, y = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 3))
    agrees_with_networks(batch_centred(jnp.tanh), x, y)


def test_a_coupled_batch_is_not_the_kernel_of_its_rows():
    net = batch_centred()
    x = RNG.normal(size=(4, 3))
    assert np.abs(np.asarray(net.nngp(x))[:2, :2] - net.nngp(x[:2])).max() > 1e-3


def test_derivative_of_a_coupled_batch():
    net = batch_centred()
    x = RNG.normal(size=(2, 3))
    weights = RNG.normal(size=(2, 2))

    def total(x):
        return jnp.sum(net.nngp(x) * weights)

    grad = jax.grad(total)(jnp.asarray(x))
    np.testing.assert_allclose(grad, central(total, x), rtol=1e-6, atol=1e-8)
