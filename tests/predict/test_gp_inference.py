"""Posteriors with kernels of either name: by textbook, by the peer, by each other."""

import pathlib
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_models import OUT, PRIOR, TANGENT, M, N, Y, blocks, interleaved, whole

import widelimit as wl
from widelimit import InputError, ShapeMismatchError, predict
from widelimit._kernel import Kernel

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
Kernels = namedtuple("Kernels", "nngp ntk")
K, T = blocks(PRIOR), blocks(TANGENT)
TRAIN, CROSS, TEST = (Kernels(*pair) for pair in zip(K, T, strict=True))


def textbook(kind, reg=0.0, k=K, t=T, y=Y):
    """Mean and covariance with explicit inverses."""
    inverted = k if kind == "nngp" else t
    inverse = np.linalg.inv(inverted[0] + reg * np.eye(len(inverted[0])))
    a = inverted[1] @ inverse
    if kind == "ntk":
        b = a @ k[1].T
        return a @ y, k[2] + a @ k[0] @ a.T - b - b.T
    return a @ y, inverted[2] - a @ inverted[1].T


@pytest.mark.parametrize("reg", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["nngp", "ntk", "ntkgp"])
def test_mean_and_covariance_are_the_textbook_formulas(kind, reg):
    f = predict.gp_inference(TRAIN, Y, reg, diag_reg_absolute_scale=True)
    found = f(kind, CROSS, TEST)
    mean, cov = textbook(kind, reg)
    assert isinstance(found, predict.Gaussian)
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, cov, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(f(kind, CROSS), found.mean)


def test_it_is_the_posterior_of_the_front_page():
    found = predict.gp_inference(K[0], Y, diag_reg=0.1)("nngp", K[1], K[2])
    posterior = wl.gp_posterior(*K, Y, noise=0.1 * np.trace(K[0]) / N)
    np.testing.assert_allclose(found.mean, posterior.mean, atol=1e-14)
    np.testing.assert_allclose(found.covariance, posterior.cov, atol=1e-14)


def test_what_is_asked_for_is_what_is_returned():
    f = predict.gp_inference(TRAIN, Y)
    both = f(None, CROSS, TEST)
    assert both._fields == ("nngp", "ntk")
    assert type(both).__name__ == "Gaussians"
    some = f(("NTKGP", "nngp"), CROSS)
    assert some._fields == ("ntkgp", "nngp")
    np.testing.assert_array_equal(some.nngp, both.nngp.mean)
    (one,) = f(("ntk",), CROSS, TEST)
    np.testing.assert_array_equal(one.covariance, both.ntk.covariance)
    kernels = [Kernel(pair.nngp, pair.ntk) for pair in (TRAIN, CROSS, TEST)]
    again = predict.gp_inference(kernels[0], Y)("ntk", *kernels[1:])
    np.testing.assert_array_equal(again.covariance, both.ntk.covariance)
    array = predict.gp_inference(TRAIN.ntk, Y)
    np.testing.assert_array_equal(array("ntk", CROSS.ntk), both.ntk.mean)
    alone = array("ntkgp", CROSS.ntk, TEST.ntk)
    np.testing.assert_array_equal(alone.covariance, f("ntkgp", CROSS, TEST).covariance)


def test_training_inputs_have_their_targets():
    f = predict.gp_inference(TRAIN, Y)
    np.testing.assert_array_equal(f("ntk"), Y)
    found = f("nngp", k_test_test=True)
    np.testing.assert_array_equal(found.covariance, np.zeros((N, N)))
    same = f("nngp", TRAIN, TRAIN)
    np.testing.assert_allclose(same.mean, Y, atol=1e-12)
    np.testing.assert_allclose(same.covariance, 0, atol=1e-13)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
@pytest.mark.parametrize("tag", ["reg0_lr1", "reg0.001_lr0.5", "abs0.1"])
def test_agrees_with_neural_tangents(net, tag):
    with np.load(DATA) as data:
        train, cross = (
            Kernels(*(data[f"k/{net}/{kind}{ends}"] for kind in ("nngp", "ntk")))
            for ends in ("11", "12")
        )
        y = data[f"p/{net}/y_train"]
        test = data[f"p/{net}/ensemble/reg0_lr1/test/nngp/cov"][0]
        kinds = ["nngp"] if tag == "abs0.1" else ["nngp", "ntk", "ntkgp"]
        expected = {
            kind: [data[f"p/{net}/gp/{tag}/{kind}/{part}"] for part in ("mean", "cov")]
            for kind in kinds
        }
    cross = Kernels(cross.nngp.T, cross.ntk.T)
    reg = {"reg0_lr1": 0.0, "reg0.001_lr0.5": 1e-3, "abs0.1": 0.1}[tag]
    f = predict.gp_inference(train, y, reg, diag_reg_absolute_scale=tag == "abs0.1")
    for kind, (mean, cov) in expected.items():
        # The diagonal of the peer's tangent kernel has half the digits, others in
        # every way of asking for it.
        atol = 1e-12 if kind == "nngp" else 2e-7
        if kind == "ntkgp":
            np.testing.assert_allclose(f(kind, cross), mean, rtol=0, atol=atol)
            continue
        found = f(kind, cross, test)
        np.testing.assert_allclose(found.mean, mean, rtol=0, atol=atol)
        np.testing.assert_allclose(found.covariance, cov, rtol=0, atol=atol)


@pytest.mark.parametrize("trace_axes", [(), (-1,), (1,), (-1, -2)])
@pytest.mark.parametrize("kind", ["nngp", "ntk", "ntkgp"])
def test_traced_axes_share_a_kernel(trace_axes, kind):
    shape, rng = (3, 2, 2), np.random.default_rng(1)
    traced = sorted(a % 3 for a in trace_axes)
    test_shape = (2, *shape[1:])
    rows, test_rows = (
        tuple(s for a, s in enumerate(sizes) if a not in traced)
        for sizes in (shape, test_shape)
    )
    n, m = (int(np.prod(sizes)) for sizes in (rows, test_rows))
    y = rng.standard_normal(shape)
    pairs = [(rows, rows), (test_rows, rows), (test_rows, test_rows)]
    k, t = (blocks(rng.standard_normal((n + m, 60)), n) for _ in range(2))
    given = [
        Kernels(*(interleaved(part, *sizes) for part in parts))
        for parts, sizes in zip(zip(k, t, strict=True), pairs, strict=True)
    ]
    f = predict.gp_inference(given[0], y, 0.1, True, trace_axes)
    found = f(kind, *given[1:])
    shapes = [(shape, shape), (test_shape, shape), (test_shape, test_shape)]
    wide = [
        [whole(part, *sizes, traced) for part, sizes in zip(parts, shapes, strict=True)]
        for parts in (k, t)
    ]
    mean, cov = textbook(kind, 0.1, *wide, y.ravel())
    np.testing.assert_allclose(found.mean.ravel(), mean, rtol=0, atol=1e-11)
    assert found.covariance.shape == given[2].nngp.shape
    order = (*range(0, 2 * len(rows), 2), *range(1, 2 * len(rows), 2))
    inside = np.transpose(found.covariance, order).reshape(m, m)
    inside = whole(inside, test_shape, test_shape, traced)
    np.testing.assert_allclose(inside, cov, rtol=0, atol=1e-11)


def test_kernels_are_factorised_once():
    kernel = predict.FactorisedKernel(K[0], 0.2)
    f = predict.gp_inference(Kernels(kernel, T[0]), Y)
    g = predict.gp_inference(kernel, 2 * Y)
    np.testing.assert_allclose(g("nngp", K[1]), 2 * f("nngp", K[1]), rtol=1e-14)
    assert f.kernel("nngp") is g.kernel("nngp") is kernel
    assert f.kernel("ntk") is f.kernel("ntk")
    with pytest.raises(InputError, match=r"k_train_train.nngp` is factorised already"):
        predict.gp_inference(Kernels(kernel, T[0]), Y, diag_reg=0.1)("nngp")


def test_compiled_posteriors_are_the_same():
    def posterior(train, cross, test, y):
        return predict.gp_inference(train, y, 0.1)(
            ("nngp", "ntk", "ntkgp"), cross, test
        )

    plain = jax.tree.leaves(posterior(TRAIN, CROSS, TEST, Y))
    f = predict.gp_inference(TRAIN, Y, 0.1)
    compiled = jax.jit(lambda cross, test: f(("nngp", "ntk", "ntkgp"), cross, test))
    for found in (jax.jit(posterior)(TRAIN, CROSS, TEST, Y), compiled(CROSS, TEST)):
        for a, b in zip(plain, jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)
    f("nngp", CROSS)  # nothing of the trace was kept


def test_the_marginal_fit_has_the_derivative_of_its_formula():
    def fit(scale):
        f = predict.gp_inference(scale * K[0] + 0.1 * jnp.eye(N), Y)
        return jnp.sum(f("nngp", scale * K[1]))

    step = 1e-5
    slope = float(fit(1 + step) - fit(1 - step)) / (2 * step)
    assert float(jax.grad(fit)(1.0)) == pytest.approx(slope, rel=1e-8)


def test_single_precision_loses_nothing_inside():
    train, cross, test = (a.astype(np.float32) for a in K)
    found = predict.gp_inference(train, Y)("nngp", cross, test)
    assert found.covariance.dtype == jnp.float32
    mean, cov = textbook("nngp", k=[a.astype(float) for a in (train, cross, test)])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.covariance, cov, rtol=1e-6, atol=1e-7)


def test_a_singular_kernel_is_refused_by_name():
    singular = np.ones((N, N))
    f = predict.gp_inference(Kernels(K[0], singular), Y)
    assert np.isfinite(f("nngp", CROSS)).all()
    with pytest.raises(
        InputError, match=r"`k_train_train.ntk` plus diag_reg 0 is sing"
    ):
        f("ntk", CROSS)
    with pytest.raises(InputError, match="is singular"):
        f("ntk")


@pytest.mark.parametrize(
    ("train", "call", "error", "message"),
    [
        (TRAIN, ("gp",), InputError, "should be of nngp, ntk, ntkgp"),
        (TRAIN, ((),), InputError, "`get` should be names"),
        (TRAIN, (("ntk", "NTK"),), InputError, "twice"),
        (T[0], ("ntk", T[1], K[2]), InputError, "`k_train_train` is one array"),
        (TRAIN, ("ntk", T[1], K[2]), InputError, "`k_test_train` is one array"),
        (Kernels(K[0], None), ("ntk",), InputError, "have the kernel `ntk`"),
        (TRAIN, ("ntkgp", CROSS, Kernels(K[2], None)), InputError, "k_test_test"),
        (
            Kernels(None, T[0]), ("ntk", CROSS, TEST), InputError,
            "`k_train_train` should be an array or have the kernel `nngp`",
        ),
        (
            TRAIN, ("ntk", Kernels(None, T[1]), TEST), InputError,
            "of which the covariance of a trained network",
        ),
        (TRAIN, ("nngp", K[1].T), ShapeMismatchError, r"shape \(_, 5\)"),
        (TRAIN, ("nngp", K[1], K[0]), ShapeMismatchError, r"shape \(3, 3\)"),
        (K[0][1:, 1:], ("nngp",), ShapeMismatchError, "For targets of shape"),
        (None, ("nngp",), InputError, "NoneType"),
    ],
)  # fmt: skip
def test_errors(train, call, error, message):
    with pytest.raises(error, match=message):
        predict.gp_inference(train, Y)(*call)


def test_shapes():
    assert (M, OUT) == predict.gp_inference(K[0], Y)("nngp", K[1]).shape
