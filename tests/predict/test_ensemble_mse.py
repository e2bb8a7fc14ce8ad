"""Ensembles from a kernel function: by exponentials, samples, the peer, by blocks."""

import pathlib
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_models import (
    OUT,
    PRIOR,
    RATE,
    TANGENT,
    M,
    N,
    Y,
    blocks,
    flow_map,
    interleaved,
)

from widelimit import InputError, ShapeMismatchError, predict
from widelimit._kernel import Kernel

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
Kernels = namedtuple("Kernels", "nngp ntk")
X = np.eye(N + M)
TIMES = np.array([[0.0, 0.5], [7.3, 60.0]])


def kernel_fn(x1, x2, get, prior=PRIOR, tangent=TANGENT):
    """Kernels of linear features of one-hot inputs, as kernel functions give them."""
    x2 = x1 if x2 is None else x2
    found = Kernels(*((x1 @ f) @ (x2 @ f).T for f in (prior, tangent)))
    return getattr(found, get) if isinstance(get, str) else found


def expected(kind, t, reg=0.0):
    """Mean and covariance of all outputs, of which the first N are of training."""
    prior = PRIOR @ PRIOR.T
    moved = (prior if kind == "nngp" else TANGENT @ TANGENT.T).copy()
    moved[:N, :N] += reg * np.eye(N)
    if kind == "nngp":
        prior = moved
    a = flow_map(moved[:N, :N], moved[N:, :N], RATE * t / Y.size)
    mean = a @ np.concatenate([-Y, np.zeros((M, OUT))])
    mean[:N] += Y
    return mean, a @ prior @ a.T


@pytest.mark.parametrize("reg", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_the_process_is_that_of_the_matrix_exponential(kind, reg):
    f = predict.gradient_descent_mse_ensemble(
        kernel_fn, X[:N], Y, RATE, reg, diag_reg_absolute_scale=True
    )
    train, test = (f(TIMES, x, kind, True) for x in (None, X[N:]))
    assert train.covariance.shape == (2, 2, N, N)
    assert test.mean.shape == (2, 2, M, OUT)
    for i in np.ndindex(2, 2):
        mean, cov = expected(kind, TIMES[i], reg)
        for found, part in ((train, slice(0, N)), (test, slice(N, None))):
            np.testing.assert_allclose(found.mean[i], mean[part], rtol=0, atol=1e-12)
            np.testing.assert_allclose(
                found.covariance[i], cov[part, part], rtol=0, atol=1e-12
            )
    np.testing.assert_array_equal(f(TIMES, X[N:], kind), test.mean)
    np.testing.assert_array_equal(f(TIMES, None, kind), train.mean)
    end = f(None, X[N:], kind, True)
    for late in (jnp.inf, 1e6):
        found = f(late, X[N:], kind, True)
        np.testing.assert_allclose(found.mean, end.mean, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.covariance, end.covariance, rtol=0, atol=1e-11)
    end, found = (f(late, None, kind, True) for late in (None, jnp.inf))
    np.testing.assert_allclose(found.mean, end.mean, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.covariance, end.covariance, rtol=0, atol=1e-11)


def test_a_sample_of_trained_linear_models_has_that_mean_and_covariance():
    members, steps, rate = 1500, 150, 0.04
    rng = np.random.default_rng(1)
    start = PRIOR @ rng.standard_normal((PRIOR.shape[1], members * OUT))
    y = np.tile(Y, members)
    w = np.zeros((TANGENT.shape[1], members * OUT))
    for _ in range(steps):  # so small that they are a flow
        error = start[:N] + TANGENT[:N] @ w - y
        w -= rate / Y.size * (TANGENT[:N].T @ error)
    f = (start + TANGENT @ w).reshape(N + M, members, OUT)
    predicted = predict.gradient_descent_mse_ensemble(kernel_fn, X[:N], Y, rate)
    for found, part in (
        (predicted(steps, None, "ntk", True), slice(0, N)),
        (predicted(steps, X[N:], "ntk", True), slice(N, None)),
    ):
        sample, cov = f[part], np.asarray(found.covariance)
        error = np.sqrt(np.diag(cov) / members)[:, None]
        assert (np.abs(sample.mean(1) - found.mean) < 5 * error + 2e-3).all()
        off = sample - sample.mean(1, keepdims=True)
        products = np.einsum("iso,jso->ijs", off, off) / OUT
        error = products.std(2) / np.sqrt(members)
        assert (np.abs(products.mean(2) - cov) < 5 * error + 2e-3).all()
        prior = PRIOR[part] @ PRIOR[part].T
        assert np.abs(cov - prior).max() > 0.2  # more than any tolerance


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_infinite_time_is_inference(kind):
    f = predict.gradient_descent_mse_ensemble(kernel_fn, X[:N], Y, diag_reg=0.1)
    g = predict.gp_inference(kernel_fn(X[:N], None, ("nngp", "ntk")), Y, diag_reg=0.1)
    found = f(None, X[N:], kind, True)
    cross, test = (kernel_fn(X[N:], x, ("nngp", "ntk")) for x in (X[:N], None))
    value = g(kind, cross, test)
    np.testing.assert_allclose(found.mean, value.mean, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.covariance, value.covariance, rtol=0, atol=1e-14)
    for both in zip(f(None, None, kind, True), g(kind, None, True), strict=True):
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
@pytest.mark.parametrize(("reg", "rate"), [(0.0, 1.0), (1e-3, 0.5)])
def test_agrees_with_neural_tangents(net, reg, rate):
    with np.load(DATA) as data:
        parts = {}
        for kind in ("nngp", "ntk"):
            train, cross = (data[f"k/{net}/{kind}{ends}"] for ends in ("11", "12"))
            test = data[f"p/{net}/ensemble/reg0_lr1/test/nngp/cov"][0]
            parts[kind] = np.block([[train, cross], [cross.T, test]])
        y = data[f"p/{net}/y_train"]
        head = f"p/{net}/ensemble/reg{reg:g}_lr{rate:g}"
        expected = {
            (where, kind, part): data[f"{head}/{where}/{kind}/{part}"]
            for where in ("train", "test")
            for kind in ("nngp", "ntk")
            for part in ("mean", "cov")
        }
    n, size = len(y), len(parts["ntk"])

    def stored(x1, x2, get):
        x2 = x1 if x2 is None else x2
        found = Kernels(*(parts[kind][np.ix_(x1, x2)] for kind in ("nngp", "ntk")))
        return getattr(found, get) if isinstance(get, str) else found

    x = np.arange(size)
    f = predict.gradient_descent_mse_ensemble(stored, x[:n], y, rate, reg)
    for where, x_test in (("train", None), ("test", x[n:])):
        for i, t in enumerate((0.0, 1.0, 10.0, None)):
            found = f(t, x_test, None, True)
            for kind in ("nngp", "ntk"):
                # The diagonal of the peer's tangent kernel has half the digits, others
                # in every way of asking for it.
                atol = 1e-12 if kind == "nngp" else 2e-7
                gaussian = getattr(found, kind)
                for part, value in zip(("mean", "cov"), gaussian, strict=True):
                    other = expected[where, kind, part][i]
                    np.testing.assert_allclose(value, other, rtol=0, atol=atol)


class Calls:
    """A kernel function that counts; equal inputs are one, as of x2 = None, noisy."""

    def __init__(self, noise=0.0):
        self.seen, self.noise = [], noise

    def __call__(self, x1, x2, get, **options):
        self.seen.append((len(x1), None if x2 is None else len(x2), get))
        found = kernel_fn(x1, x2, get)
        if x2 is None and self.noise and get == "nngp":
            return found + self.noise * np.eye(len(x1))
        return found


@pytest.mark.parametrize("t", [None, 3.0, [1.0, 5.0]])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blocks_of_test_inputs_change_nothing(t, block):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((7, N + M))
    found = []
    for size in (None, block):
        calls = Calls(noise=0.1)
        f = predict.gradient_descent_mse_ensemble(calls, X[:N], Y, RATE, block=size)
        found.append(f(t, x, None, True))
        assert max(c[0] for c in calls.seen[1:]) == min(size or 7, 7)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_kernels_are_asked_for_once_and_only_if_needed():
    calls = Calls()
    f = predict.gradient_descent_mse_ensemble(calls, X[:N], Y)
    f(1.0, None, "ntk")
    f(None, None, "ntk")
    assert calls.seen == [(N, None, "ntk")]
    f(1.0, None, ("ntk", "nngp"), True)
    assert calls.seen[1:] == [(N, None, "nngp")]
    f(1.0, X[N:], "ntk")
    f(1.0, X[N:], "ntk", True)
    cross, test = (M, N, ("nngp", "ntk")), (M, None, "nngp")
    assert calls.seen[2:] == [(M, N, ("ntk",)), cross, test]
    assert f.kernel("ntk") is f.kernel("ntk")
    calls = Calls()
    predict.gradient_descent_mse_ensemble(calls, X[:N], Y)(1.0)
    assert calls.seen == [(N, None, ("nngp", "ntk"))]


def test_what_is_asked_for_is_what_is_returned():
    f = predict.gradient_descent_mse_ensemble(kernel_fn, X[:N], Y)
    both = f(1.0, X[N:])
    assert both._fields == ("nngp", "ntk")
    assert type(both).__name__ == "Gaussians"
    other = f(1.0, X[N:], ("NTK", "NNGP"), compute_cov=True)
    assert other._fields == ("ntk", "nngp")
    np.testing.assert_array_equal(other.ntk.mean, both.ntk)
    (one,) = f(x_test=X[N:], t=1.0, get=("ntk",))
    np.testing.assert_array_equal(one, both.ntk)


def test_kernel_objects_and_trees_of_inputs():
    def f(x1, x2, get):
        other = None if x2 is None else x2["x"]
        k = kernel_fn(x1["x"], other, ("nngp", "ntk"))
        return getattr(k, get) if isinstance(get, str) else Kernel(k.nngp, k.ntk)

    tree = predict.gradient_descent_mse_ensemble(f, {"x": X[:N]}, Y, block=2)
    plain = predict.gradient_descent_mse_ensemble(kernel_fn, X[:N], Y)
    for a, b in zip(
        jax.tree.leaves(tree(1.0, {"x": X[N:]}, None, True)),
        jax.tree.leaves(plain(1.0, X[N:], None, True)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", [1, None])
def test_positions_have_a_pair_of_axes(block):
    places, outs = 2, 2
    n, m = 3 * places * outs, 2 * places * outs
    prior, tangent = (
        np.random.default_rng(i).standard_normal((n + m, 60)) / 3 for i in (5, 6)
    )
    y = np.random.default_rng(7).standard_normal((3, places, outs))

    def spatial(x1, x2, get):
        x2 = x1 if x2 is None else x2
        shapes = [(len(x), places, outs) for x in (x1, x2)]
        rows = [np.concatenate([np.arange(4) + 4 * i for i in x]) for x in (x1, x2)]
        found = Kernels(
            *(interleaved(f[rows[0]] @ f[rows[1]].T, *shapes) for f in (prior, tangent))
        )
        return getattr(found, get) if isinstance(get, str) else found

    def flat(x1, x2, get):
        return kernel_fn(x1, x2, get, prior, tangent)

    f = predict.gradient_descent_mse_ensemble(
        spatial, np.arange(3), y, RATE, trace_axes=(), block=block
    )
    g = predict.gradient_descent_mse_ensemble(
        flat, np.eye(n + m)[:n], y.reshape(n, 1), RATE
    )
    for t in (None, 2.0):
        found = f(t, np.arange(3, 5), None, True)
        value = g(t, np.eye(n + m)[n:], None, True)
        for one, other in zip(found, value, strict=True):
            np.testing.assert_allclose(one.mean.ravel(), other.mean.ravel(), atol=1e-12)
            assert one.covariance.shape == (2, 2, places, places, outs, outs)
            rows = np.transpose(one.covariance, (0, 2, 4, 1, 3, 5)).reshape(m, m)
            np.testing.assert_allclose(rows, other.covariance, rtol=0, atol=1e-12)


def test_options_of_the_kernel_function():
    seen = []

    def f(x1, x2, get, **options):
        seen.append(options)
        return kernel_fn(x1, x2, get)

    a, b = (np.full(2, float(i)) for i in (1, 2))
    params = ((a, a), (b, b))
    ensemble = predict.gradient_descent_mse_ensemble(
        f, X[:N], Y, pattern=(a, a), scale=2, params=params, w=a, block=1
    )
    ensemble(1.0, X[N:], "nngp", True, pattern=(b, b), scale=2, params=params, w=a)
    train, cross, test = seen  # a pair of arrays is not cut into blocks
    assert train["pattern"] == (a, a)
    assert cross["pattern"][0] is b
    assert cross["pattern"][1] is a
    assert test["pattern"][0] is b
    assert all(options["params"] is params for options in seen)
    assert all(options["scale"] == 2 for options in seen)
    key = jax.random.key(0)
    seen.clear()
    g = predict.gradient_descent_mse_ensemble(f, X[:N], Y, rng=(key, None))
    g(1.0, X[N:], "nngp", rng=(jax.random.key(1), None))
    assert seen[1]["rng"] == (jax.random.key(1), key)
    for options, message in (
        ({"scale": 3}, "`scale` is 2 for the training inputs and 3"),
        ({"scale": a}, "`scale` is 2"),
        ({"new": 1}, "given for the test inputs only"),
    ):
        with pytest.raises(InputError, match=message):
            ensemble(1.0, X[N:], "nngp", **options)


def test_compiled_predictions_are_the_same_and_leave_nothing_behind():
    f = predict.gradient_descent_mse_ensemble(
        kernel_fn, jnp.asarray(X[:N]), Y, RATE, 1e-3, block=2
    )

    def all_of_it(x, t):
        return [
            f(time, where, None, cov)
            for time in (None, t)
            for where in (None, x)
            for cov in (False, True)
        ]

    x, t = jnp.asarray(X[N:]), jnp.array([1.0, 4.0])
    compiled = jax.jit(all_of_it)(x, t)
    for a, b in zip(
        jax.tree.leaves(compiled), jax.tree.leaves(all_of_it(x, t)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_a_singular_kernel_is_refused_at_infinite_time_and_learned_before():
    same = np.concatenate([X[:2], X[:1], X[3:N]])
    f = predict.gradient_descent_mse_ensemble(kernel_fn, same, Y, RATE)
    for x in (None, X[N:]):
        with pytest.raises(InputError, match=r"kernel_fn\(x_train, None, 'nngp'\)"):
            f(None, x)
        for t in (5.0, jnp.inf):
            for leaf in jax.tree.leaves(f(t, x, None, True)):
                assert np.isfinite(leaf).all()
    found = f(jnp.inf, None, "ntk", True)
    np.testing.assert_allclose(found.mean[0], (Y[0] + Y[2]) / 2, atol=1e-12)
    # What the twins have in common at the start is the same, so nothing is left.
    np.testing.assert_allclose(found.covariance, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "call", "error", "message"),
    [
        ({}, {"get": "ntkgp"}, InputError, "of nngp, ntk; got ntkgp"),
        ({}, {"get": ()}, InputError, "`get` should be names"),
        ({}, {"t": -1.0}, InputError, "0 or more"),
        ({}, {"t": []}, InputError, "empty"),
        ({"block": 0}, {}, InputError, "block should be"),
        ({"y_train": Y * np.nan}, {}, InputError, "`y_train` has"),
        ({"y_train": Y[1:]}, {}, ShapeMismatchError, "should have shape"),
        ({"learning_rate": -1}, {}, InputError, "learning_rate should be"),
        ({"kernel_fn": lambda *_: None}, {}, InputError, "have the kernel `nngp`"),
        ({"kernel_fn": lambda *_: K_WRONG}, {}, ShapeMismatchError, "`kernel_fn"),
        (
            {"kernel_fn": lambda a, b, get: kernel_fn(a, None, get)[:, :, None]},
            {"get": "ntk"}, ShapeMismatchError, "with themselves",
        ),
    ],
)  # fmt: skip
def test_errors(changed, call, error, message):
    given = {"kernel_fn": kernel_fn, "x_train": X[:N], "y_train": Y} | changed
    with pytest.raises(error, match=message):
        predict.gradient_descent_mse_ensemble(**given)(**({"t": 1.0} | call))


K_WRONG = blocks(TANGENT)[0][1:, 1:]


def test_blocks_along_another_axis_are_refused():
    def transposed(x1, x2, get):  # of as many features as there are
        x1, x2 = (
            None if x is None else np.pad(x.T, ((0, 0), (0, 8 - len(x))))
            for x in (x1, x2)
        )
        return kernel_fn(x1, x2, get)

    f = predict.gradient_descent_mse_ensemble(transposed, X[:N].T, Y, block=2)
    with pytest.raises(InputError, match="give block=None"):
        f(1.0, X[N:].T, "ntk")
    g = predict.gradient_descent_mse_ensemble(transposed, X[:N].T, Y, block=None)
    plain = predict.gradient_descent_mse_ensemble(kernel_fn, X[:N], Y)
    np.testing.assert_allclose(
        g(1.0, X[N:].T, "ntk"), plain(1.0, X[N:], "ntk"), atol=1e-14
    )
