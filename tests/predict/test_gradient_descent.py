"""Descent on any loss: by closed forms, by tiny steps, by the peer, to the end."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_models import OUT, RATE, START, TANGENT, N, Y, blocks, interleaved

import widelimit as wl
from widelimit import InputError, ShapeMismatchError, predict

# Every case compiles a solver.
pytestmark = pytest.mark.slow

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
K, CROSS, _ = blocks(TANGENT)
LABELS = np.eye(OUT)[[0, 1, 1, 0, 1]]


def mse(f, y):
    return 0.5 * jnp.mean((f - y) ** 2)


def cross_entropy(f, y):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(f) * y, axis=-1))


def test_the_mean_squared_error_has_a_closed_form():
    times = np.array([[7.3, 0.0, 60.0], [0.5, 7.3, 2.0]])  # in no order
    f = predict.gradient_descent(mse, K, Y, RATE)
    closed = predict.gradient_descent_mse(K, Y, RATE)
    given = (START[:N], START[N:], CROSS)
    found, value = f(times, *given), closed(times, *given)
    for one, other in zip(found, value, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[1][0, 1], START[N:], atol=1e-14)
    np.testing.assert_allclose(
        f(times, None, START[N:], CROSS),
        closed(times, None, START[N:], CROSS),
        atol=1e-8,
    )
    np.testing.assert_allclose(f(times, START[:N]), found[0], atol=1e-8)


@pytest.mark.parametrize(
    "momentum", [0.9, *(pytest.param(m, marks=pytest.mark.slow) for m in (0.0, 0.3))]
)
def test_momentum_has_a_closed_form(momentum):
    times = [0.0, 0.5, 7.3, 60.0]
    f = predict.gradient_descent(mse, K, Y, RATE, momentum)
    found = f(times, START[:N], START[N:], CROSS)
    closed = wl.trained_ensemble(
        K, Y, times, RATE, k_cross=CROSS, f_train=START[:N], f_test=START[N:],
        continuous=True, momentum=momentum or 1e-300,
    )  # fmt: skip
    np.testing.assert_allclose(found[0], closed.mean, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[1], closed.test_mean, rtol=0, atol=1e-8)


@pytest.mark.parametrize("momentum", [0.8, pytest.param(None, marks=pytest.mark.slow)])
def test_tiny_steps_on_parameters_lead_there(momentum):
    rate, fine, t = 1.0, 300, 8
    ends = []
    for steps in (fine, 2 * fine, 4 * fine):
        w, v = (np.zeros((TANGENT.shape[1], OUT)) for _ in range(2))
        dt = t / steps
        for _ in range(steps):
            f = START[:N] + TANGENT[:N] @ w
            softmax = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
            force = -rate * TANGENT[:N].T @ ((softmax - LABELS) / N)
            if momentum is None:
                w = w + dt * force
            else:
                w, v = w + dt * v, v + dt * (force - (1 - momentum) * v)
        ends.append(START + TANGENT @ w)
    # The errors of the first two orders in the size of a step are gone.
    limit = (ends[0] - 6 * ends[1] + 8 * ends[2]) / 3
    f = predict.gradient_descent(cross_entropy, K, LABELS, rate, momentum)
    found = np.concatenate(f(t, START[:N], START[N:], CROSS))
    np.testing.assert_allclose(found, limit, rtol=0, atol=1e-5)
    assert np.abs(found - START).max() > 0.1


def soft_cross_entropy(f, y):
    return -jnp.mean(jax.nn.log_softmax(f) * jax.nn.softmax(y))


@pytest.mark.parametrize(
    ("net", "loss", "momentum"),
    [
        ("relu_mlp_d3", mse, 0.9),
        ("conv_same_gap", soft_cross_entropy, None),
        pytest.param("relu_mlp_d3", mse, None, marks=pytest.mark.slow),
        pytest.param("conv_same_gap", mse, None, marks=pytest.mark.slow),
        pytest.param("conv_same_gap", mse, 0.9, marks=pytest.mark.slow),
        pytest.param("relu_mlp_d3", soft_cross_entropy, None, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_neural_tangents(net, loss, momentum):
    times = np.array([1.0, 10.0] if loss is mse else 10.0)
    head = f"gd_ode/mom{momentum}" if loss is mse else "gd_ode_xent/t10.0"
    with np.load(DATA) as data:
        k, cross = data[f"k/{net}/ntk11"], data[f"k/{net}/ntk12"].T
        y, *start = (
            data[f"p/{net}/{name}"] for name in ("y_train", "fx_train_0", "fx_test_0")
        )
        expected = [data[f"p/{net}/{head}/{where}"] for where in ("train", "test")]
    found = predict.gradient_descent(loss, k, y, 0.5, momentum)(times, *start, cross)
    for one, other in zip(found, expected, strict=True):
        # The tolerance of the peer's solver is 1.4e-8 in a step.
        np.testing.assert_allclose(one, other, rtol=2e-7, atol=2e-7)


def test_training_goes_on_from_a_state():
    f = predict.gradient_descent(mse, K, Y, RATE, 0.9)
    start = predict.ODEState(START[:N], START[N:])
    whole = f([7.0, 3.0], start, None, CROSS)
    assert isinstance(whole, predict.ODEState)
    first = jax.tree.map(lambda a: a[1], whole)
    step = 1e-4
    second = f([4.0, 4.0 + step], first, None, CROSS)
    for name in ("fx_train", "fx_test", "qx_train", "qx_test"):
        found, end = (getattr(state, name)[0] for state in (second, whole))
        np.testing.assert_allclose(found, end, rtol=0, atol=1e-8)
    pair = f([7.0, 3.0], START[:N], START[N:], CROSS)
    np.testing.assert_array_equal(pair[1], whole.fx_test)
    slope = (second.fx_test[1] - second.fx_test[0]) / (step * np.sqrt(RATE))
    np.testing.assert_allclose(second.qx_test[0], slope, rtol=0, atol=1e-4)
    alone = f([7.0, 3.0], predict.ODEState(START[:N]))
    assert alone.fx_test is None
    assert alone.qx_test is None
    np.testing.assert_array_equal(alone.fx_train, pair[0])
    assert start.replace(fx_test=None).astuple()[1:] == (None, None, None)


@pytest.mark.parametrize(
    ("trace_axes", "momentum"),
    [
        ((-2,), None),
        pytest.param((), None, marks=pytest.mark.slow),
        pytest.param((0, -1), 0.5, marks=pytest.mark.slow),
        pytest.param((0, 1, 2), None, marks=pytest.mark.slow),
    ],
)
def test_traced_axes_share_a_kernel(trace_axes, momentum):
    shape, rng = (3, 2, 2), np.random.default_rng(1)
    traced = {a % 3 for a in trace_axes}
    test_shape = shape if 0 in traced else (2, *shape[1:])
    rows, test_rows = (
        tuple(s for a, s in enumerate(sizes) if a not in traced)
        for sizes in (shape, test_shape)
    )
    n, m = (int(np.prod(sizes)) for sizes in (rows, test_rows))
    k, cross, _ = blocks(rng.standard_normal((n + m, 60)) / 4, n)
    y, train, test = (rng.standard_normal(s) for s in (shape, shape, test_shape))
    given = (train, test, interleaved(cross, test_rows, rows))
    k = interleaved(k, rows, rows)
    f = predict.gradient_descent(mse, k, y, RATE, momentum, trace_axes)
    found = f([[1.0, 4.0]], *given)
    if momentum is None:
        closed = predict.gradient_descent_mse(k, y, RATE, trace_axes=trace_axes)
        value = closed([[1.0, 4.0]], *given)
        for one, other in zip(found, value, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)
    assert [x.shape for x in found] == [(1, 2, *shape), (1, 2, *test_shape)]


@pytest.mark.parametrize(
    "differentiated", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_predictions_are_compiled_and_differentiated(differentiated):
    def ode(k, cross, start, t, rate):
        f = predict.gradient_descent(mse, k, Y, rate)
        return jnp.sum(f(t, start, 0.0, cross)[1] ** 2)

    def closed(k, cross, start, t, rate):
        f = predict.gradient_descent_mse(k, Y, rate)
        return jnp.sum(f(t, start, 0.0, cross)[1] ** 2)

    arguments = (K, CROSS, START[:N], np.array([2.0, 1.0]), RATE)
    functions = (ode, closed)
    if differentiated:
        functions = [jax.value_and_grad(f, argnums=(0, 1, 2, 3, 4)) for f in functions]
    found, expected = (jax.jit(f)(*arguments) for f in functions)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if a.shape == K.shape:  # of a symmetric matrix
            a, b = a + a.T, b + b.T
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_infinite_time_is_where_training_ends():
    f = predict.gradient_descent(mse, K, Y, RATE)
    closed = predict.gradient_descent_mse(K, Y, RATE)
    given = (START[:N], START[N:], CROSS)
    for one, other in zip(f(None, *given), closed(None, *given), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
    found = f([jnp.inf, 1.0, jnp.inf], *given)[1]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0], closed(None, *given)[1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found[1], closed(1.0, *given)[1], rtol=0, atol=1e-8)
    with pytest.raises(InputError, match="can not be compiled"):
        jax.jit(lambda x: f(None, x))(START[:N])
    with pytest.raises(InputError, match=r"no end of training|gives up after"):
        predict.gradient_descent(cross_entropy, K, LABELS, max_steps=300)(None)


def test_a_solver_that_gives_up_says_so():
    f = predict.gradient_descent(mse, 1e6 * K, Y, max_steps=50)
    with pytest.raises(InputError, match=r"gives up after 50 steps .*Kvaerno5"):
        f(1e3)


@pytest.mark.slow
def test_another_solver_and_other_tolerances():
    import diffrax

    closed = predict.gradient_descent_mse(1e4 * K, Y, RATE)(50.0)
    f = predict.gradient_descent(
        mse, 1e4 * K, Y, RATE, solver=diffrax.Kvaerno5(), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(f(50.0), closed, rtol=0, atol=1e-5)


def test_precision_is_that_of_the_kernel():
    f = predict.gradient_descent(mse, K.astype(np.float32), Y, RATE)
    found = f(2.0, 0.0, 0.0, CROSS.astype(np.float32))
    assert [x.dtype for x in found] == [jnp.float32] * 2
    closed = predict.gradient_descent_mse(K, Y, RATE)(2.0, 0.0, 0.0, CROSS)
    np.testing.assert_allclose(found[1], closed[1], rtol=1e-5, atol=1e-6)


STATE = predict.ODEState(START[:N], START[N:], np.zeros((N, OUT)))


@pytest.mark.parametrize(
    ("changed", "call", "error", "message"),
    [
        ({}, (1.0, None), InputError, "nothing to predict"),
        ({}, (1.0, 0.0, 0.0), InputError, "give `k_test_train`"),
        ({}, (1.0, predict.ODEState()), InputError, "nothing to predict"),
        ({}, (1.0, STATE, None, CROSS), InputError, "here momentum is None"),
        ({}, (1.0, STATE, 0.0, CROSS), InputError, "a second time"),
        ({}, (-1.0,), InputError, "0 or more"),
        ({}, ([],), InputError, "empty"),
        ({}, (1.0, Y[1:]), ShapeMismatchError, "`fx_train` should be a number"),
        ({}, (1.0, 0.0, Y, CROSS), ShapeMismatchError, "`fx_test` should be"),
        ({}, (1.0, 0.0, 0.0, CROSS.T), ShapeMismatchError, r"shape \(_, 5\)"),
        ({"k_train_train": K[1:, 1:]}, (), ShapeMismatchError, r"shape \(5, 5\)"),
        ({"k_train_train": K * np.nan}, (), InputError, "not finite"),
        ({"y_train": Y * np.nan}, (), InputError, "`y_train` has"),
        ({"loss": "mse"}, (), InputError, "function of outputs and targets"),
        ({"momentum": 1.5}, (), InputError, "from 0 to 1"),
        ({"momentum": -0.5}, (), InputError, "zero or more"),
        ({"learning_rate": -1.0}, (), InputError, "above zero"),
    ],
)
def test_errors(changed, call, error, message):
    given = {"loss": mse, "k_train_train": K, "y_train": Y} | changed
    with pytest.raises(error, match=message):
        predict.gradient_descent(**given)(*call)
