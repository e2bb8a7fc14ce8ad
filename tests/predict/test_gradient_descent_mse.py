"""Gradient flow in closed form: by matrix exponentials, by the peer, in the limits."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_models import (
    OUT,
    RATE,
    START,
    TANGENT,
    M,
    N,
    Y,
    blocks,
    flow_map,
    interleaved,
    whole,
)  # fmt: skip

import widelimit as wl
from widelimit import InputError, ShapeMismatchError, predict

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
K, CROSS, _ = blocks(TANGENT)


def expected(t, k=K, cross=CROSS, y=Y, start=START, rate=RATE):
    """Training and test outputs at one time."""
    n = len(k)
    state = np.concatenate([start[:n] - y, start[n:]])
    state = flow_map(k, cross, rate * t / y.size) @ state
    return state[:n] + y, state[n:]


@pytest.mark.parametrize("t", [0, 0.5, 7.3, [[1.0, 0.0, 20.0], [3.0, 300.0, 2.0]]])
def test_outputs_are_those_of_the_matrix_exponential(t):
    found = predict.gradient_descent_mse(K, Y, RATE)(t, START[:N], START[N:], CROSS)
    for where, rows in ((0, N), (1, M)):
        assert found[where].shape == (*np.shape(t), rows, OUT)
        for i in np.ndindex(np.shape(t)):
            value = expected(np.asarray(t)[i])[where]
            np.testing.assert_allclose(found[where][i], value, rtol=0, atol=1e-12)


def test_what_is_returned_is_what_has_outputs_at_time_0():
    f = predict.gradient_descent_mse(K, Y, RATE)
    train, test = f(3.0, START[:N], START[N:], CROSS)
    np.testing.assert_array_equal(f(3.0, START[:N]), train)
    np.testing.assert_array_equal(f(3.0, START[:N], None, CROSS), train)
    zero = f(3.0, None, START[N:], CROSS)
    np.testing.assert_array_equal(zero, f(3.0, 0.0, START[N:], CROSS)[1])
    np.testing.assert_allclose(f(0.0), np.zeros_like(Y), atol=1e-14)
    np.testing.assert_array_equal(f(3.0, START[:N], 0.5, CROSS)[1].shape, test.shape)
    assert isinstance(train, jax.Array)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
@pytest.mark.parametrize(("reg", "rate"), [(0.0, 1.0), (1e-3, 0.5)])
def test_agrees_with_neural_tangents(net, reg, rate):
    with np.load(DATA) as data:
        k, cross = data[f"k/{net}/ntk11"], data[f"k/{net}/ntk12"].T
        y, train, test = (
            data[f"p/{net}/{name}"] for name in ("y_train", "fx_train_0", "fx_test_0")
        )
        head = f"p/{net}/gd_mse/reg{reg:g}_lr{rate:g}"
        values = {
            t: [data[f"{head}/t{t}/{where}"] for where in ("train", "test")]
            for t in (0.0, 1.0, 10.0, None)
        }
    f = predict.gradient_descent_mse(k, y, rate, diag_reg=reg)
    for t, value in values.items():
        found = f(t, train, test, cross)
        # The diagonal of the peer's tangent kernel has half the digits, others in
        # every way of asking for it.
        np.testing.assert_allclose(found[0], value[0], rtol=0, atol=2e-7)
        np.testing.assert_allclose(found[1], value[1], rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    "trace_axes", [(), (-1,), (1,), (-2, 2), (0,), (0, -1), (0, 1, 2), 2, (-1, 2, 2)]
)
@pytest.mark.parametrize("t", [None, 2.0, [[0.0, 4.0]]])
def test_traced_axes_share_a_kernel(trace_axes, t):
    shape, rng = (3, 2, 2), np.random.default_rng(1)
    axes = (trace_axes,) if isinstance(trace_axes, int) else trace_axes
    traced = sorted({a % 3 for a in axes})
    test_shape = shape if 0 in traced else (2, *shape[1:])
    rows, test_rows = (
        tuple(s for a, s in enumerate(sizes) if a not in traced)
        for sizes in (shape, test_shape)
    )
    n, m = (int(np.prod(sizes)) for sizes in (rows, test_rows))
    k, cross, _ = blocks(rng.standard_normal((n + m, 60)) / 4, n)
    y, train, test = (rng.standard_normal(s) for s in (shape, shape, test_shape))
    f = predict.gradient_descent_mse(
        interleaved(k, rows, rows), y, RATE, trace_axes=trace_axes
    )
    found = f(t, train, test, interleaved(cross, test_rows, rows))
    k = whole(k, shape, shape, traced)
    cross = whole(cross, test_shape, shape, traced)
    start = np.concatenate([train.ravel(), test.ravel()])
    for i in np.ndindex(np.shape(t)):
        time = 1e5 if t is None else np.asarray(t)[i]
        both = expected(time, k, cross, y.ravel(), start)
        for one, value in zip(found, both, strict=True):
            np.testing.assert_allclose(one[i].ravel(), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("absolute", [False, True])
def test_diag_reg_is_added_in_its_units(absolute):
    reg = 0.3 * (1.0 if absolute else np.trace(K) / N)
    f = predict.gradient_descent_mse(K, Y, RATE, 0.3, absolute)
    g = predict.gradient_descent_mse(K + reg * np.eye(N), Y, RATE)
    for t in (None, 4.0, jnp.inf):
        for one, other in zip(
            f(t, START[:N], 0.0, CROSS), g(t, START[:N], 0.0, CROSS), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)
    ridge = wl.gp_posterior(K, CROSS, np.ones(M), Y, noise=reg)
    np.testing.assert_allclose(f(None, 0.0, 0.0, CROSS)[1], ridge.mean, atol=1e-13)


def test_infinite_time_is_late():
    f = predict.gradient_descent_mse(K, Y, RATE)
    for found in zip(
        *(f(t, START[:N], START[N:], CROSS) for t in (None, jnp.inf, 1e6)), strict=True
    ):
        np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[0], found[2], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(f(None, START[:N]), Y)


SINGULAR = np.concatenate([TANGENT[:2], TANGENT[:1], TANGENT[3:]])  # inputs 0 and 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_kernel_is_refused_at_infinite_time_with_numbers(dtype):
    k, cross = (a.astype(dtype) for a in blocks(SINGULAR)[:2])
    f = predict.gradient_descent_mse(k, Y, RATE)
    for given in ((None, 0.0), (None, 0.0, 0.0, cross)):
        with pytest.raises(InputError, match=r"smallest eigenvalue .* coincide") as e:
            f(*given)
    enough = re.search(r"diag_reg=([0-9.e+-]+)` is enough", str(e.value))
    assert enough is not None
    g = predict.gradient_descent_mse(k, Y, RATE, diag_reg=float(enough[1]))
    assert np.isfinite(g(None, 0.0, 0.0, cross)[1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_kernel_learns_what_it_can(dtype):
    k, cross = (a.astype(dtype) for a in blocks(SINGULAR)[:2])
    f = predict.gradient_descent_mse(k, Y, RATE)
    atol = 1e-5 if dtype == np.float32 else 1e-12
    train, test = f(jnp.inf, 0.0, 0.0, cross)
    middle = (Y[0] + Y[2]) / 2
    fit = np.stack([middle, Y[1], middle, Y[3], Y[4]])
    np.testing.assert_allclose(train, fit, rtol=0, atol=atol)
    weights = np.linalg.lstsq(SINGULAR[:N], Y, rcond=None)[0]
    np.testing.assert_allclose(test, SINGULAR[N:] @ weights, rtol=0, atol=10 * atol)
    assert train.dtype == dtype
    assert len(f.kernel.unlearned) == 1
    assert float(f.kernel.unlearned[0]) <= float(f.kernel.tolerance)
    for t in (0.0, 3.0, 200.0):  # what time there is, is exact
        both = expected(t, *blocks(SINGULAR)[:2])
        found = f(t, START[:N], START[N:], cross)
        np.testing.assert_allclose(found[0], both[0], rtol=0, atol=10 * atol)
        np.testing.assert_allclose(found[1], both[1], rtol=0, atol=10 * atol)


def test_equal_inputs_and_some_regularisation_are_no_matter_of_rounding():
    # In float32, 1e-7 of the diagonal is less than the roundings might make; here they
    # make nothing, as the rows are the same.
    k = blocks(SINGULAR)[0].astype(np.float32)
    f = predict.gradient_descent_mse(k, Y, diag_reg=1e-7, diag_reg_absolute_scale=True)
    solved = np.linalg.solve(k.astype(np.float64) + 1e-7 * np.eye(N), Y)
    found = f(None, None, 0.0, k)
    np.testing.assert_allclose(found, k.astype(np.float64) @ solved, atol=1e-5)


def test_a_kernel_of_zeros_learns_nothing():
    f = predict.gradient_descent_mse(np.zeros((2, 2)), np.ones((2, 1)))
    for t in (0.0, 5.0, jnp.inf):
        np.testing.assert_array_equal(f(t), np.zeros((2, 1)))
    with pytest.raises(InputError, match="diag_reg=1` is enough"):
        f(None)


def test_factorisations_are_made_once_and_can_be_shared(monkeypatch):
    import scipy.linalg

    calls = []
    for name in ("eigh", "cholesky"):
        made = getattr(scipy.linalg, name)
        monkeypatch.setattr(
            scipy.linalg,
            name,
            lambda *a, made=made, name=name, **k: calls.append(name) or made(*a, **k),
        )
    kernel = predict.FactorisedKernel(K, diag_reg=0.1)
    assert calls == []
    f, g = (predict.gradient_descent_mse(kernel, y, RATE) for y in (Y, 2 * Y))
    for t in (1.0, 2.0, None, None):
        np.testing.assert_allclose(g(t), 2 * f(t), rtol=1e-13)
    h = jax.jit(lambda t: f(t))
    np.testing.assert_allclose(h(1.0), f(1.0), rtol=1e-12)
    assert sorted(calls) == ["cholesky", "eigh"]
    again = predict.gradient_descent_mse(K, Y, RATE, diag_reg=0.1)
    np.testing.assert_array_equal(again(1.0), f(1.0))
    with pytest.raises(InputError, match="factorised already, with"):
        predict.gradient_descent_mse(kernel, Y, diag_reg=0.2)


def test_compiled_predictions_are_the_same_in_every_argument():
    def both(k, cross, y, train, test, t, rate, reg):
        f = predict.gradient_descent_mse(k, y, rate, reg)
        return f(t, train, test, cross), f(None, train, test, cross)

    arguments = (K, CROSS, Y, START[:N], START[N:], np.array([1.0, 30.0]), RATE, 0.01)
    plain = both(*arguments)
    for found in (jax.jit(both)(*arguments), jax.jit(lambda: both(*arguments))()):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)
    f = predict.gradient_descent_mse(K, Y, RATE, 0.01)
    compiled = jax.jit(f)
    for t in (0.0, 5, np.arange(3)):
        for a, b in zip(
            f(t, START[:N], START[N:], CROSS),
            compiled(t, START[:N], START[N:], CROSS),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    f(2.0)  # nothing of the trace was kept


def test_one_prediction_for_every_kernel_of_a_batch():
    ks = jnp.stack([K, 2 * K])
    found = jax.jit(jax.vmap(lambda k: predict.gradient_descent_mse(k, Y, RATE)(3.0)))(
        ks
    )
    for k, value in zip(ks, found, strict=True):
        np.testing.assert_allclose(
            value, predict.gradient_descent_mse(k, Y, RATE)(3.0), rtol=0, atol=1e-12
        )


def test_derivatives():
    def loss(cross, start, t, k):
        f = predict.gradient_descent_mse(k, Y, RATE)
        return jnp.sum(f(t, start, 0.0, cross)[1] ** 3)

    arguments = (jnp.asarray(CROSS), jnp.asarray(START[:N]), 3.0, jnp.asarray(K))
    compiled = jax.jit(loss)
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)
    rng = np.random.default_rng(3)
    for i, slope in enumerate(slopes):
        way = rng.standard_normal(np.shape(arguments[i]))
        way = way + way.T if i == 3 else way
        ends = []
        for step in (1e-5, -1e-5):
            moved = list(arguments)
            moved[i] = moved[i] + step * way
            ends.append(float(compiled(*moved)))
        assert float(jnp.sum(slope * way)) == pytest.approx(
            (ends[0] - ends[1]) / 2e-5, rel=1e-6
        )


def test_precision_is_that_of_the_kernel_and_inside_it_is_double():
    k, cross = (jnp.asarray(a, jnp.float32) for a in (K, CROSS))
    found = predict.gradient_descent_mse(k, Y, RATE)(None, 0.0, 0.0, cross)
    assert [f.dtype for f in found] == [jnp.float32] * 2
    exact = np.asarray(cross, np.float64) @ np.linalg.solve(np.asarray(k, float), Y)
    np.testing.assert_allclose(found[1], exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("changed", "call", "error", "message"),
    [
        ({}, (1.0, None), InputError, "nothing to predict"),
        ({}, (1.0, 0.0, 0.0), InputError, "give `k_test_train`"),
        ({}, (-1.0,), InputError, "0 or more, got -1"),
        ({}, ([],), InputError, "`t` is empty"),
        ({}, (np.nan,), InputError, "`t` has 1 entries"),
        ({}, ("late",), InputError, "real numbers"),
        ({}, (1.0, Y[1:]), ShapeMismatchError, "`fx_train_0` should be a number"),
        ({}, (1.0, 0.0, Y, CROSS), ShapeMismatchError, "`fx_test_0` should be"),
        ({}, (1.0, Y * np.nan), InputError, "`fx_train_0` has 10 entries"),
        ({}, (1.0, 0.0, 0.0, CROSS.T), ShapeMismatchError, r"shape \(_, 5\)"),
        ({"k_train_train": K[1:]}, (), ShapeMismatchError, "with themselves"),
        ({"k_train_train": K[1:, 1:]}, (), ShapeMismatchError, r"shape \(5, 5\)"),
        ({"k_train_train": K[:, :, None]}, (), ShapeMismatchError, "with themselves"),
        ({"k_train_train": np.triu(K)}, (), InputError, "not symmetric"),
        ({"k_train_train": K * np.inf}, (), InputError, "not finite"),
        ({"k_train_train": K + 1j}, (), InputError, "complex"),
        ({"k_train_train": -K}, (1.0,), InputError, "not the kernel of any model"),
        ({"k_train_train": -K}, (None,), InputError, "not the kernel of any process"),
        ({"y_train": Y[:, 0]}, (), ShapeMismatchError, "For targets of shape"),
        ({"y_train": Y * np.nan}, (), InputError, "`y_train` has"),
        ({"y_train": np.ones((0, 2))}, (), InputError, "no targets"),
        ({"y_train": 1.0}, (), InputError, "trace_axes=()"),
        ({"trace_axes": (2,)}, (), InputError, "axes of the targets"),
        ({"trace_axes": "last"}, (), InputError, "axes of the targets"),
        ({"learning_rate": 0.0}, (), InputError, "above zero"),
        ({"learning_rate": "much"}, (), InputError, "'much'"),
        ({"diag_reg": -1.0}, (), InputError, "zero or more"),
        ({"diag_reg": np.nan}, (), InputError, "zero or more"),
    ],
)
def test_errors(changed, call, error, message):
    given = {"k_train_train": K, "y_train": Y, "learning_rate": RATE} | changed
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        predict.gradient_descent_mse(**given)(*call)
