"""Gradients that the network computes itself, with `jax.grad`, have their limits."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import Params, apply
from jax import Array

import widelimit as wl
from widelimit import UnsupportedError

n, m = wl.width("n"), wl.width("m", 2.0)
RNG = np.random.default_rng(0)
X, TRAIN, TARGETS = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 4)), RNG.normal(size=2)
LR = 0.3


def dense(p: Params, x: Array) -> Array:
    h = jnp.sin(apply(p["U"], x))
    return apply(p["v"], jnp.sin(apply(p["W"], h)))


def normalised(p: Params, x: Array) -> Array:
    h = apply(p["W"], jax.nn.relu(apply(p["U"], x)))
    h = h - h.mean(axis=-1, keepdims=True)
    h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 0.1)
    return apply(p["v"], jax.nn.relu(h))


def tied(p: Params, x: Array) -> Array:
    h = jnp.sin(apply(p["U"], x))
    for _ in range(2):
        h = jnp.sin(apply(p["W"], h) + apply(p["U"], x))
    return apply(p["v"], h)


def two_widths(p: Params, x: Array) -> Array:
    h = jnp.tanh(apply(p["A"], x) + p["b"])
    return apply(p["v"], jnp.tanh(apply(p["B"], h)))


SQUARE = {
    "U": wl.normal((4, n), std=1.3),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 1)),
}
RECTANGULAR = {
    "A": wl.normal((4, n)),
    "b": wl.normal((n,), std=0.5),
    "B": wl.normal((n, m)),
    "v": wl.normal((m, 1), std=0.7),
}


def with_gain(p: Params, x: Array) -> Array:
    h = jax.nn.relu(apply(p["U"], x)) * p["gain"]
    return apply(p["v"], h)


GAIN = {
    "U": wl.normal((4, n)),
    "gain": wl.constant((n,), 0.8),
    "v": wl.normal((n, 1)),
}


def conv(w: Array, h: Array, stride: int = 1, dilation: int = 1) -> Array:
    out = jax.lax.conv_general_dilated(
        h, w, (stride,), "SAME", rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip
    return out / math.sqrt(w.shape[0] * w.shape[1])


def convolutional(p: Params, x: Array) -> Array:
    h = jnp.sin(conv(p["U"], x.reshape(len(x), 2, 2)))
    return apply(p["v"], jnp.sin(conv(p["W"], h)).mean(1))


FILTERS = {
    "U": wl.normal((3, 2, n)),
    "W": wl.normal((3, n, m)),
    "v": wl.normal((m, 1)),
}


def positional(p: Params, x: Array) -> Array:
    """Two tokens with an embedding of their positions, looked up in a table."""
    h = apply(p["U"], x.reshape(len(x), 2, 2)) + p["E"][jnp.array([2, 0])]
    return apply(p["v"], jnp.sin(h).mean(1))


POSITIONAL = {
    "U": wl.normal((2, n)),
    "E": wl.normal((3, n), std=0.6),
    "v": wl.normal((n, 1)),
}
NETWORKS = {
    "with_gain": (with_gain, GAIN),
    "dense": (dense, SQUARE),
    "normalised": (normalised, SQUARE),
    "two_widths": (two_widths, RECTANGULAR),
    "convolutional": (convolutional, FILTERS),
    "positional": (positional, POSITIONAL),
}


# -------------------------------------------------------------- tangent kernels by hand
def by_hand(f: Any, name: str, p: Params, x: Array) -> Array:
    def one(w: Array, row: Array) -> Array:
        return f({**p, name: w}, row[None])[0, 0]

    g = jax.vmap(jax.grad(one), (None, 0))(p[name], x)
    axes = tuple(range(1, g.ndim))
    return jnp.tensordot(g, g, (axes, axes))


def squares(f: Any, name: str, p: Params, x: Array) -> Array:
    g = jax.grad(lambda w: f({**p, name: w}, x).sum())(p[name])
    return jnp.sum(g**2) * jnp.ones((len(x), len(x)))


def pair_by_pair(f: Any, name: str, p: Params, x: Array) -> Array:
    def one(w: Array, row: Array) -> Array:
        return f({**p, name: w}, row[None])[0, 0]

    g = [jax.grad(one)(p[name], row) for row in x]
    return jnp.stack([jnp.stack([jnp.sum(a * b) for b in g]) for a in g])


def with_jacobian(f: Any, name: str, p: Params, x: Array) -> Array:
    g = jax.jacobian(lambda w: f({**p, name: w}, x)[:, 0])(p[name])
    return jnp.einsum("iab,jab->ij", g, g)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("dense", "W"), pytest.param("two_widths", "b", marks=pytest.mark.slow)],
)
def test_a_tangent_kernel_by_hand(kind: str, name: str) -> None:
    check_by_hand(kind, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dense", "U"),
        ("two_widths", "B"),
        ("dense", "v"),
        ("normalised", "W"),
        ("positional", "E"),
        ("convolutional", "U"),
        ("convolutional", "W"),
    ],
)
def test_more_tangent_kernels_by_hand(kind: str, name: str) -> None:
    check_by_hand(kind, name)


def check_by_hand(kind: str, name: str) -> None:
    f, params = NETWORKS[kind]
    hand = wl.limit(functools.partial(by_hand, f, name), params)
    wanted = wl.limit(f, params).ntk(X, by_param=True)[name]
    np.testing.assert_allclose(hand.mean(X), wanted, rtol=1e-11)


@pytest.mark.slow
def test_other_spellings_of_the_tangent_kernel() -> None:
    wanted = wl.limit(dense, SQUARE).ntk(X, by_param=True)["W"]
    jacobian = wl.limit(functools.partial(with_jacobian, dense, "W"), SQUARE)
    np.testing.assert_allclose(jacobian.mean(X), wanted, rtol=1e-11)
    square = wl.limit(functools.partial(squares, dense, "W"), SQUARE)
    np.testing.assert_allclose(square.mean(X), jnp.sum(wanted), rtol=1e-11)


def pooled(h: Array) -> Array:
    window, add = (1, 2, 1), jax.lax.add
    return jax.lax.reduce_window(h, 0.0, add, window, window, "SAME")


POSITIONS = {
    "strides": lambda p, h: conv(p["W"], h, stride=2),
    "dilation": lambda p, h: conv(p["W"], h, dilation=2),
    "pooling": lambda p, h: pooled(conv(p["W"], h)),
    "running_sums": lambda p, h: jnp.cumsum(conv(p["W"], h), axis=1),
    "circular": lambda p, h: conv(p["W"], jnp.pad(h, ((0, 0), (2, 2), (0, 0)), "wrap")),
    "merged": lambda p, h: conv(p["W"], h).reshape(len(h), 2, 2, -1).sum(1),
    "last": lambda p, h: conv(p["W"], h)[:, -1:],
    "chosen": lambda p, h: conv(p["W"], h)[:, jnp.array([2, 0, 2])],
    "joined": lambda p, h: jnp.concatenate([conv(p["W"], h), 0.5 * h], axis=1),
    "flattened": lambda p, h: conv(p["W"], h).reshape(len(h), 1, -1),
    "joined_widths": lambda p, h: jnp.concatenate([conv(p["W"], h), h], axis=2),
}
"""What may happen to positions between a filter and the output."""


@pytest.mark.parametrize(
    "name",
    [n if n == "pooling" else pytest.param(n, marks=pytest.mark.slow)
     for n in POSITIONS],
)  # fmt: skip
def test_gradients_find_their_positions(name: str) -> None:
    def f(p: Params, x: Array) -> Array:
        h = apply(p["U"], x.reshape(len(x), 4, 1))
        return apply(p["v"], jnp.sin(POSITIONS[name](p, h)).sum(1))

    wide = {"flattened": 4 * n, "joined_widths": 2 * n}.get(name, n)
    params = {
        "U": wl.normal((1, n)),
        "W": wl.normal((3, n, n)),
        "v": wl.normal((wide, 1)),
    }
    wanted = wl.limit(f, params).ntk(X, by_param=True)
    for one in ("W", "U"):
        hand = wl.limit(functools.partial(pair_by_pair, f, one), params)
        np.testing.assert_allclose(hand.mean(X), wanted[one], rtol=1e-11)


# --------------------------------------------------------------------- gradient descent
def trained(f: Any, steps: int, p: Params, x: Array, lr: Any = LR) -> Array:
    """The network after steps of gradient descent on a squared loss."""

    def loss(p: Params) -> Array:
        return 0.5 * jnp.sum((f(p, TRAIN)[:, 0] - TARGETS) ** 2)

    for _ in range(steps):
        p = jax.tree.map(lambda a, g: a - lr * g, p, jax.grad(loss)(p))
    return f(p, x)


def predicted(f: Any, params: Params, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance that the tangent kernel predicts."""
    net = wl.limit(f, params)
    k, k_train = np.asarray(net.ntk(X, TRAIN)), np.asarray(net.ntk(TRAIN))
    prior = np.asarray(net.nngp(np.concatenate([X, TRAIN])))
    keep = np.eye(len(TRAIN)) - LR * k_train
    total = sum(np.linalg.matrix_power(keep, t) for t in range(steps))
    gain = LR * k @ total
    weights = np.concatenate([np.eye(len(X)), -gain], axis=1)
    return gain @ TARGETS, weights @ prior @ weights.T


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("with_gain", 1)],
)
def test_gradient_descent_is_that_of_the_tangent_kernel(kind: str, steps: int) -> None:
    check_descent(*NETWORKS[kind], steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "params", "steps"),
    [
        (dense, SQUARE, 2),
        (tied, SQUARE, 1),
        (convolutional, FILTERS, 1),
        (positional, POSITIONAL, 1),
    ],
)
def test_more_gradient_descent(f: Any, params: Params, steps: int) -> None:
    check_descent(f, params, steps)


def check_descent(f: Any, params: Params, steps: int) -> None:
    net = wl.limit(functools.partial(trained, f, steps), params)
    mean, covariance = predicted(f, params, steps)
    np.testing.assert_allclose(net.mean(X)[:, 0], mean, rtol=1e-11)
    np.testing.assert_allclose(net.nngp(X), covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_tapped_network_may_be_trained() -> None:
    def tapped(p: Params, x: Array) -> Array:
        h = wl.tap("h", apply(p["U"], x))
        return apply(p["v"], jnp.concatenate([jnp.sin(h), h], axis=-1))[:, :1]

    def f(p: Params, x: Array) -> Array:
        return trained(tapped, 1, p, x)

    params = {"U": wl.normal((4, n)), "v": wl.normal((2 * n, 3))}
    net = wl.limit(f, params)
    mean, _ = predicted(tapped, params, 1)
    np.testing.assert_allclose(net.mean(X)[:, 0], mean, rtol=1e-11)
    wanted = wl.limit(tapped, params).forward(X)["h"]
    np.testing.assert_allclose(net.forward(X)["h"], wanted, rtol=1e-12)


@pytest.mark.slow
def test_a_step_agrees_with_networks() -> None:
    net = wl.limit(functools.partial(trained, dense, 1), SQUARE)
    result = net.check(X, widths=(128, 512), seeds=32)
    assert result.passed, str(result)
    assert "output:mean" in str(result)


def mean_field(p: Params, x: Array) -> Array:
    h = jnp.sin(apply(p["U"], x))
    return jnp.sin(apply(p["W"], h)) @ p["v"] / p["v"].shape[0]


def moved_features(p: Params, x: Array) -> Array:
    """A step with readout 1 / n and rate n: hidden vectors move by order one."""
    return trained(mean_field, 1, p, x, lr=0.8 * p["v"].shape[0])


@pytest.mark.slow
def test_a_step_that_moves_features_agrees_with_networks() -> None:
    net = wl.limit(moved_features, SQUARE)
    with pytest.warns(UserWarning, match="constant"):
        assert net.check(X, widths=(128, 512), seeds=32).passed
    # It is not the step in which features stay.
    lazy = wl.limit(lambda p, x: mean_field(p, x) * p["v"].shape[0] ** 0.5, SQUARE)
    k = np.asarray(lazy.ntk(X, TRAIN))
    assert np.abs(net.mean(X)[:, 0] - 0.8 * k @ TARGETS).max() > 1e-3


# --------------------------------------------------------------------- other products
def test_a_product_of_matrices_waits_for_a_vector() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(apply(p["U"], x))
        return apply(p["v"], h @ (p["W"].T @ p["W"]) / n)

    def one_by_one(p: Params, x: Array) -> Array:
        h = jnp.tanh(apply(p["U"], x))
        return apply(p["v"], (h @ p["W"].T) @ p["W"] / n)

    nets = [wl.limit(g, SQUARE) for g in (f, one_by_one)]
    np.testing.assert_allclose(nets[0].nngp(X), nets[1].nngp(X), rtol=1e-12)


def test_a_constant_along_a_summed_axis_is_counted() -> None:
    """Products with arrays that are constant along what is contracted."""

    def f(p: Params, x: Array) -> Array:
        ones = jnp.ones((p["W"].shape[0], 3))
        both = p["v"] @ jnp.ones((1, p["v"].shape[0]))  # v 1^T
        return (jnp.tanh(apply(p["U"], x)) @ both @ ones).sum(axis=1) / n**1.5

    def plain(p: Params, x: Array) -> Array:
        return 3.0 * apply(p["v"], jnp.tanh(apply(p["U"], x)))[:, 0]

    nets = [wl.limit(g, SQUARE) for g in (f, plain)]
    np.testing.assert_allclose(nets[0].nngp(X), nets[1].nngp(X), rtol=1e-12)


def test_what_is_not_asked_for_is_not_traced() -> None:
    def f(p: Params, x: Array) -> Array:
        _ = jnp.tanh(dense(p, x)) ** 2  # no line could hold it
        return dense(p, x)

    net = wl.limit(f, SQUARE)
    np.testing.assert_array_equal(net.nngp(X), wl.limit(dense, SQUARE).nngp(X))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            lambda p, x: apply(p["v"], x @ p["U"] @ jnp.tanh(p["v"] @ p["v"].T)),
            "outer product.*`tanh`",
        ),
        (lambda p, x: x[:, :1, None] * (p["v"] @ p["v"].T), "as the output"),
        (
            lambda p, x: apply(p["v"], jnp.tanh(dense(p, x) * (x @ p["U"]))),
            "finite random array.*`tanh`",
        ),
        (
            lambda p, x: apply(p["v"], x @ p["U"] + dense(p, x) * (x @ p["U"])),
            "finite random array",
        ),
    ],
)
def test_where_a_line_is_needed_the_product_is_refused(f: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"(?s){message}") as error:
        wl.limit(f, SQUARE).nngp(X)
    assert "test_gradients_inside.py" in str(error.value)
