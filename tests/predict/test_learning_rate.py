"""The largest learning rate, by hand, by the peer, and by what diverges."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import widelimit as wl
from widelimit import _errors

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
RNG = np.random.default_rng(0)


def test_by_hand():
    # Eigenvalues 3 and 1.
    assert wl.max_learning_rate([[2.0, 1.0], [1.0, 2.0]]) == pytest.approx(4 / 3)
    assert wl.max_learning_rate([[2.0, 1.0], [1.0, 2.0]], 6) == pytest.approx(4.0)
    assert wl.max_learning_rate([[2.0]], 1, momentum=0.5) == pytest.approx(1.5)
    assert wl.max_learning_rate([[0.0]], eps=0.5) == 4.0


def test_index_axes_are_rows():
    features = RNG.standard_normal((3, 4, 20))
    k = np.einsum("aip,bjp->abij", features, features)
    rows = features.reshape(12, 20)
    top = np.linalg.eigvalsh(rows @ rows.T)[-1]
    assert wl.max_learning_rate(k) == pytest.approx(2 * 12 / top, rel=1e-11)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
def test_agrees_with_neural_tangents(net):
    with np.load(DATA) as data:
        k, size = data[f"k/{net}/ntk11"], data[f"p/{net}/y_train"].size
        peer = {
            key: float(data[f"p/{net}/max_learning_rate/{key}"])
            for key in ("mom0", "mom0.9", "no_size")
        }
    # The peer's diagonal has half the digits, others in every way of asking for it.
    assert wl.max_learning_rate(k, size) == pytest.approx(peer["mom0"], rel=1e-8)
    found = wl.max_learning_rate(k, size, momentum=0.9)
    assert found == pytest.approx(peer["mom0.9"], rel=1e-8)
    assert wl.max_learning_rate(k) == pytest.approx(peer["no_size"], rel=1e-8)


n = wl.width("n")
PARAMS = {"u": wl.normal((4, n), lr=0.5), "w": wl.normal((4, 3), lr=2.0)}


def linear(p, x):
    """Linear in what is trained, so that the bound is exact."""
    return x @ p["w"] + jnp.sin(x) @ p["u"][:, :3]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_converges_just_below_and_diverges_just_above(momentum):
    f, theta = wl.limit(linear, PARAMS, trace_axes=()).at(n=3, key=jax.random.key(0))
    x, y = RNG.standard_normal((2, 4)), RNG.standard_normal((2, 3))
    largest = wl.max_learning_rate(f.ntk(theta, x), y.size, momentum)
    losses = {}
    for factor in (0.99, 1.01):
        optimizer = optax.sgd(factor * largest, momentum=momentum)
        run = f.train(theta, x, y, (0, 3000), optimizer=optimizer)
        losses[factor] = run.losses
    assert losses[0.99][1] < 1e-6 * losses[0.99][0]
    assert losses[1.01][1] > 1e3 * losses[1.01][0]


def test_a_wide_network_obeys_it():
    m = wl.width("m")

    def mlp(p, x):
        return jnp.tanh(x @ p["u"]) @ p["v"]

    params = {"u": wl.normal((4, m)), "v": wl.normal((m, 1))}
    net = wl.limit(mlp, params, parameterization="ntk")
    f, theta = net.at(m=4096, key=jax.random.key(1))
    x = RNG.standard_normal((6, 4))
    k = f.ntk(theta, x)
    # The error lies where it moves fastest.
    y = f(theta, x) - np.linalg.eigh(k)[1][:, -1:]
    largest = wl.max_learning_rate(k)
    below = f.train(theta, x, y, (0, 100), 0.9 * largest)
    assert below.losses[1] < 0.1 * below.losses[0]
    # Later it finds a flatter place, at a distance that grows with the width.
    above = f.train(theta, x, y, (0, 1, 2), 1.6 * largest)
    assert above.losses[2] > 4 * above.losses[1]
    model = above.linearised(k)
    np.testing.assert_allclose(above.losses, model.losses, rtol=0.1)


@pytest.mark.parametrize(
    ("kernel", "options", "error", "message"),
    [
        (np.ones((2, 3)), {}, _errors.ShapeMismatchError, "should be the kernel"),
        (np.ones((2, 2, 3, 2)), {}, _errors.ShapeMismatchError, "should be the kernel"),
        (np.float64(1.0), {}, _errors.ShapeMismatchError, "should be the kernel"),
        (np.ones((0, 0)), {}, _errors.InputError, "empty"),
        ([[1.0, 2.0], [0.0, 1.0]], {}, _errors.InputError, "not symmetric"),
        ([[np.inf]], {}, _errors.InputError, "not finite"),
        ([[1.0]], {"momentum": 1.5}, _errors.InputError, "from 0 to 1"),
        ([[1.0]], {"y_train_size": 0}, _errors.InputError, "y.size"),
        ([[1.0]], {"y_train_size": 2.5}, _errors.InputError, "y.size"),
    ],
)
def test_errors(kernel, options, error, message):
    with pytest.raises(error, match=message):
        wl.max_learning_rate(kernel, **options)


def test_pairs_of_axes_may_stand_side_by_side():
    features = RNG.standard_normal((3, 2, 2, 20))
    rows = features.reshape(12, 20)
    rate = 2 * 12 / np.linalg.eigvalsh(rows @ rows.T)[-1]
    for order in ("iabp,jcdp->ijacbd", "iabp,jcdp->ijabcd"):
        k = np.einsum(order, features, features)
        assert wl.max_learning_rate(k) == pytest.approx(rate, rel=1e-11)
    other = np.einsum("iabp,jcdp->ijacbd", *[RNG.standard_normal((3, 2, 4, 20))] * 2)
    assert wl.max_learning_rate(other, 1) > 0
    # A product of equal kernels is symmetric in both orders.
    a = np.array([[2.0, 1.0], [1.0, 2.0]])
    k = np.einsum("ij,ac,bd->ijacbd", np.eye(2), a, a)
    with pytest.raises(_errors.InputError, match="interleaved=True"):
        wl.max_learning_rate(k)
    assert wl.max_learning_rate(k, interleaved=True) == pytest.approx(16 / 9)
    assert wl.max_learning_rate(k, interleaved=False) == pytest.approx(16 / 10)
    with pytest.raises(_errors.ShapeMismatchError, match="interleaved=False"):
        wl.max_learning_rate(other, interleaved=False)
