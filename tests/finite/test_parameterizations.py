"""Which variable is trained underneath, and the kernels that follow from it."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _errors


def widths(bases):
    small, large = bases
    return wl.width("n", base=small), wl.width("m", large / small, base=large)


BASES = (8, 12)
n, m = widths(BASES)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5))
IMAGES = RNG.standard_normal((2, 4, 2))
STDS = {"U": 1.2, "b": 0.4, "W": 1.4, "c": 0.3, "v": 0.9, "d": 0.2}
ALL = ("ntk", "standard", "standard-naive")


def dense(p, x):
    h = jax.nn.relu(x @ p["U"] + p.get("b", 0.0))
    h = jax.nn.relu(h @ p["W"] + p.get("c", 0.0))
    return h @ p["v"] + p.get("d", 0.0)


def circular(h, w):
    """A convolution along a circle, with filters of three positions."""
    around = jnp.pad(h, ((0, 0), (1, 1), (0, 0)), mode="wrap")
    return jax.lax.conv_general_dilated(
        around, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


def conv(p, x):
    h = jax.nn.relu(circular(x, p["U"]) + p.get("b", 0.0))
    h = jax.nn.relu(circular(h, p["W"]) + p.get("c", 0.0))
    return jnp.mean(h, 1) @ p["v"] + p.get("d", 0.0)


def declared(kind, biases=True, outputs=2, bases=BASES):
    n, m = widths(bases)
    filters = () if kind is dense else (3,)
    inputs = 5 if kind is dense else 2
    shapes = {
        "U": (*filters, inputs, n), "b": (n,), "W": (*filters, n, m), "c": (m,),
        "v": (m, outputs), "d": (outputs,),
    }  # fmt: skip
    return {
        name: wl.normal(shape, std=STDS[name])
        for name, shape in shapes.items()
        if biases or len(shape) > 1
    }


def network(kind, parameterization, biases=True, s=1, outputs=2, bases=BASES):
    params = declared(kind, biases, outputs, bases)
    net = wl.limit(kind, params, parameterization=parameterization)
    return net.at(n=bases[0] * s, m=bases[1] * s, key=KEY)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dense, conv])
def test_one_draw_is_one_function_with_three_kernels(kind):
    """Per parameter the kernels differ by the squared factor of the paper's tables."""
    s, positions = 2, 1 if kind is dense else 3
    x = X if kind is dense else IMAGES
    outputs, parts = {}, {}
    for name in ALL:
        f, theta = network(kind, name, s=s)
        outputs[name] = f(theta, x)
        parts[name] = f.ntk(theta, x, by_param=True)
    fan_in = {"U": 5 if kind is dense else 2, "W": 8 * s, "v": 12 * s}
    for name in ALL:
        np.testing.assert_allclose(outputs[name], outputs["ntk"], rtol=1e-11)
    for p, naive in parts["standard-naive"].items():
        over = fan_in.get(p, 1) * (positions if p in ("U", "W") else 1)
        ntk, standard = STDS[p] ** 2 / over, 1 / s if p in ("W", "v") else 1.0
        np.testing.assert_allclose(parts["ntk"][p], ntk * naive, rtol=1e-11)
        np.testing.assert_allclose(parts["standard"][p], standard * naive, rtol=1e-11)


def test_trained_variables_have_the_variances_of_the_tables():
    wide = wl.width("n", base=30)
    shapes = {"W": (wide, wide), "b": (10_000,)}
    for name, expected in (
        ("ntk", (1.0, 1.0)),
        ("standard", (4.0 / 30, 4.0)),
        ("standard-naive", (4.0 / 300, 4.0)),
    ):
        params = {k: wl.normal(shape, std=2.0) for k, shape in shapes.items()}
        net = wl.limit(lambda p, x: x, params, parameterization=name)
        f, theta = net.at(n=300, key=KEY)
        received = f.received(theta)
        effective = (4.0 / 300, 4.0)
        for i, k in enumerate(shapes):
            for array, variance in ((theta, expected[i]), (received, effective[i])):
                z = np.asarray(array[k]).ravel() / math.sqrt(variance)
                assert abs(np.mean(z**2) - 1) < 5 * math.sqrt(2 / z.size)


def relu_dual(k):
    """E relu relu' and E step step' of a covariance over all positions."""
    size = np.sqrt(np.diag(k))
    scale = np.outer(size, size)
    rho = np.clip(k / scale, -1, 1)
    angle = np.pi - np.arccos(rho)
    first = scale * (np.sqrt(1 - rho**2) + rho * angle) / (2 * np.pi)
    return first, angle / (2 * np.pi)


def table(kind, parameterization, x, biases, bases=BASES):
    """The recursion of tables 1 and 2 of Sohl-Dickstein et al. (2020), by hand."""
    inputs, on = x.shape[-1], float(biases)
    size, shape = x.shape[0], x.shape[1:-1]

    def average(k):
        if not shape:
            return k
        grid = k.reshape(size, *shape, size, *shape)
        shifted = [np.roll(grid, (d, d), (1, 3)) for d in (-1, 0, 1)]
        return (sum(shifted) / 3).reshape(k.shape)

    def layer(k, theta, w, b, fan_in, positions):
        nngp = STDS[w] ** 2 * k + on * STDS[b] ** 2
        if parameterization == "ntk":
            own = nngp
        else:
            own = fan_in * positions * k + on
        return nngp, own + STDS[w] ** 2 * theta

    positions = 3 if shape else 1
    rows = x.reshape(-1, inputs)
    k, theta = average(rows @ rows.T / inputs), np.zeros((len(rows),) * 2)
    k, theta = layer(k, theta, "U", "b", inputs, positions)
    dual, slope = relu_dual(k)
    k, theta = layer(
        average(dual), average(theta * slope), "W", "c", bases[0], positions
    )
    dual, slope = relu_dual(k)
    k, theta = dual, theta * slope
    if shape:
        k, theta = (
            a.reshape(size, *shape, size, *shape).mean((1, 3)) for a in (k, theta)
        )
    return layer(k, theta, "v", "d", bases[1], 1)


@pytest.mark.parametrize(
    ("kind", "parameterization", "biases"),
    [
        (dense, "standard", True),
        (conv, "standard", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product((dense, conv), ("ntk", "standard"), (0, 1))
        ),
    ],
)
def test_the_limit_is_that_of_the_paper(kind, parameterization, biases):
    x = X if kind is dense else IMAGES
    params = declared(kind, biases)
    net = wl.limit(kind, params, parameterization=parameterization)
    nngp, ntk = table(kind, parameterization, x, biases)
    kernels = net.kernels(x)
    np.testing.assert_allclose(kernels.nngp, nngp, rtol=1e-12)
    # At equal inputs the arc cosine by hand has half of the digits.
    np.testing.assert_allclose(kernels.ntk, ntk, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameterization", "bases", "biases"),
    [
        ("ntk", BASES, True),
        ("ntk", BASES, False),
        ("standard", BASES, True),
        ("standard", (20, 8), False),
        ("standard", (64, 4), True),
    ],
)
@pytest.mark.parametrize("kind", [dense, conv])
def test_kernels_tend_to_those_of_the_paper(kind, biases, parameterization, bases):
    """The deviation shrinks like s^-1/2, and its mean is noise at s = 64."""
    x, scales, seeds = X if kind is dense else IMAGES, np.array([1, 4, 16, 64]), 16
    _, expected = table(kind, parameterization, x, biases, bases)
    gaps = []
    for s in scales:
        f, _ = network(kind, parameterization, biases, int(s), 4, bases)
        kernels = np.stack(
            [f.ntk(f.draw(jax.random.key(seed)), x) for seed in range(seeds)]
        )
        gaps.append(np.sqrt(np.mean((kernels - expected) ** 2, axis=(1, 2))))
    # The fitted power of s, with its standard error over seeds.
    at = np.log(scales) - np.log(scales).mean()
    logs = np.log(gaps)
    slope = at @ logs.mean(1) / (at @ at)
    spread = logs.std(1, ddof=1) / math.sqrt(seeds)
    error = math.sqrt(at**2 @ spread**2) / (at @ at)
    assert abs(slope + 0.5) < 3 * error + 0.05
    t = np.abs(kernels.mean(0) - expected) / kernels.std(0, ddof=1) * math.sqrt(seeds)
    assert t.max() < 4.5


@pytest.mark.slow
def test_the_naive_kernel_grows_like_the_width():
    widths, sizes = (16, 64, 256), []
    for s in widths:
        f, _ = network(dense, "standard-naive", s=s // 8)
        kernels = [f.ntk(f.draw(jax.random.key(i)), X[:1]) for i in range(6)]
        sizes.append(float(np.mean(kernels)))
    slope = np.polyfit(np.log(widths), np.log(sizes), 1)[0]
    assert abs(slope - 1) < 0.1


def test_the_scale_of_a_joined_fan_in():
    """s is the whole fan-in over that of the base network."""
    params = {"W": wl.normal((2 * n + m, 3), parameterization="standard")}
    f, theta = wl.limit(lambda p, x: x @ p["W"], params).at(n=80, m=36, key=KEY)
    s = (2 * 80 + 36) / (2 * 8 + 12)
    ratio = f.received(theta)["W"] / theta["W"]
    np.testing.assert_allclose(ratio, 1 / math.sqrt(s), rtol=1e-13)


@pytest.mark.slow
def test_a_standard_deviation_may_be_traced_or_zero():
    x = X

    def total(std):
        params = declared(dense) | {"b": wl.normal((n,), std=std)}
        net = wl.limit(dense, params, parameterization="ntk")
        f, theta = net.at(n=8, m=12, key=KEY)
        return jnp.sum(f.ntk(theta, x))

    value, slope = jax.value_and_grad(total)(0.4)
    step = (total(0.4 + 1e-6) - total(0.4 - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(step), rel=1e-6)
    f, theta = network(dense, "ntk")
    assert float(value) == pytest.approx(float(jnp.sum(f.ntk(theta, x))), rel=1e-12)
    params = declared(dense) | {"b": wl.normal((n,), std=0.0)}
    f, theta = wl.limit(dense, params, parameterization="ntk").at(n=8, m=12, key=KEY)
    assert np.std(theta["b"]) > 0.5
    np.testing.assert_array_equal(f.ntk(theta, x, by_param=True)["b"], 0.0)


def test_standard_needs_the_base_of_a_fan_in():
    k = wl.width("k")
    good = {"U": wl.normal((3, k)), "b": wl.normal((k,))}
    net = wl.limit(lambda p, x: x @ p["U"], good, parameterization="standard")
    net.at(k=4, key=KEY)  # no width in a fan-in
    bad = good | {"v": wl.normal((k, 1))}
    net = wl.limit(lambda p, x: x @ p["U"] @ p["v"], bad, parameterization="standard")
    with pytest.raises(_errors.InputError, match="base=512") as error:
        net.at(k=4, key=KEY)
    assert "(k, 1) has the width k" in str(error.value)


def test_the_gaussian_process_needs_no_base():
    def f(p, x):
        return jnp.tanh(x @ p["U"]) @ p["v"]

    k, base = wl.width("k"), wl.width("k", base=64)
    net, based = (
        wl.limit(
            f,
            {"U": wl.normal((5, width)), "v": wl.normal((width, 1))},
            parameterization="standard",
        )
        for width in (k, base)
    )
    np.testing.assert_allclose(net.nngp(X), based.nngp(X), rtol=1e-13)
    assert "theorem 4" in str(net.explain(X)).lower()
    with pytest.raises(_errors.InputError, match="base=512"):
        net.ntk(X)
