"""Gradient descent of a linear model in closed form."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from widelimit import _errors
from widelimit.predict import linearised

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
RNG = np.random.default_rng(0)
N, M, OUT = 5, 3, 2
J = RNG.standard_normal((N + M, OUT, 40))
FULL = np.einsum("aip,bjp->abij", J, J)
Y = RNG.standard_normal((N, OUT))
START = RNG.standard_normal((N + M, OUT))
RATE = 0.05


def descend(steps, rate=RATE):
    """Steps of gradient descent on the parameters themselves."""
    w = np.zeros(J.shape[-1])
    kept = {}
    for step in range(max(steps) + 1):
        f = START + J @ w
        if step in steps:
            kept[step] = f
        w = w - rate * np.einsum("aip,ai->p", J[:N], f[:N] - Y) / Y.size
    return np.stack([kept[step] for step in steps])


def predicted(times, **options):
    given = {"k_cross": FULL[N:, :N], "f_test": START[N:]} | options
    return linearised(FULL[:N, :N], Y, START[:N], times, RATE, **given)


def test_steps_are_those_of_gradient_descent():
    steps = [0, 1, 2, 17, 300]
    f = descend(steps)
    found = predicted(steps)
    np.testing.assert_array_equal(found.steps, steps)
    np.testing.assert_allclose(found.outputs, f[:, :N], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.test_outputs, f[:, N:], rtol=1e-11, atol=1e-12)
    losses = 0.5 * np.mean((f[:, :N] - Y) ** 2, axis=(1, 2))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-11, atol=1e-15)


def test_flow_is_the_matrix_exponential():
    times = [0.0, 0.7, 30.0]
    found = predicted(times, continuous=True)
    k = np.moveaxis(FULL, 1, 2).reshape((N + M) * OUT, -1)
    train, cross = k[: N * OUT, : N * OUT], k[N * OUT :, : N * OUT]
    error = (Y - START[:N]).ravel()
    for i, t in enumerate(times):
        left = scipy.linalg.expm(-RATE * t * train / Y.size)
        expected = Y.ravel() - left @ error
        np.testing.assert_allclose(found.outputs[i].ravel(), expected, atol=1e-12)
        moved = cross @ np.linalg.solve(train, error - left @ error)
        change = found.test_outputs[i] - START[N:]
        np.testing.assert_allclose(change.ravel(), moved, atol=1e-12)


def test_a_kernel_for_every_output_may_be_given_once():
    shared = np.einsum("aip,bip->ab", J, J) / OUT
    whole = np.einsum("ab,ij->abij", shared, np.eye(OUT))
    once = linearised(
        shared[:N, :N],
        Y,
        START[:N],
        [3],
        RATE,
        k_cross=shared[N:, :N],
        f_test=START[N:],
    )
    full = linearised(
        whole[:N, :N], Y, START[:N], [3], RATE, k_cross=whole[N:, :N], f_test=START[N:]
    )
    np.testing.assert_allclose(once.outputs, full.outputs, rtol=1e-13)
    np.testing.assert_allclose(once.test_outputs, full.test_outputs, rtol=1e-13)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
def test_flow_agrees_with_neural_tangents(net):
    with np.load(DATA) as data:
        k, cross = data[f"k/{net}/ntk11"], data[f"k/{net}/ntk12"].T
        y, f_train, f_test = (
            data[f"p/{net}/{name}"] for name in ("y_train", "fx_train_0", "fx_test_0")
        )
        times = [0.0, 1.0, 10.0]
        expected = [
            np.stack([data[f"p/{net}/gd_mse/reg0_lr1/t{t}/{which}"] for t in times])
            for which in ("train", "test")
        ]
    found = linearised(
        k, y, f_train, times, 1.0, k_cross=cross, f_test=f_test, continuous=True
    )
    # The peer's diagonal has half the digits, others in every way of asking for it.
    np.testing.assert_allclose(found.outputs, expected[0], rtol=0, atol=2e-8)
    np.testing.assert_allclose(found.test_outputs, expected[1], rtol=0, atol=2e-8)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_singular_kernel_learns_what_it_can(continuous):
    features = RNG.standard_normal((N + M, 2))
    k = features @ features.T
    y, start = Y[:, 0], START[:, 0]
    found = linearised(
        k[:N, :N], y, start[:N], [10**7], 0.1, k_cross=k[N:, :N], f_test=start[N:],
        continuous=continuous,
    )  # fmt: skip
    w = np.linalg.lstsq(features[:N], y - start[:N], rcond=None)[0]
    np.testing.assert_allclose(
        found.outputs[0], start[:N] + features[:N] @ w, rtol=1e-8
    )
    np.testing.assert_allclose(
        found.test_outputs[0], start[N:] + features[N:] @ w, rtol=1e-8
    )


def test_too_large_a_rate_is_seen():
    found = linearised(np.eye(2), np.ones(2), np.zeros(2), [10, 10**4], 8.0)
    assert found.losses[0] == pytest.approx(0.5 * 9.0**10)
    assert not np.isfinite(found.losses[1])


def test_single_precision_kernels_are_solved_in_double():
    k = jnp.asarray(FULL[:N, :N], jnp.float32)
    found = linearised(k, Y, START[:N], [4], RATE)
    assert found.outputs.dtype == np.float64
    assert found.test_outputs is None
    np.testing.assert_allclose(found.outputs[0], descend([4])[0, :N], rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps": [1.5]}, _errors.InputError, "whole numbers"),
        ({"steps": [-1.0], "continuous": True}, _errors.InputError, "0 or more"),
        ({"learning_rate": 0.0}, _errors.InputError, "positive number"),
        ({"f_train": START}, _errors.ShapeMismatchError, "one shape"),
        ({"k_train": FULL}, _errors.ShapeMismatchError, "should have shape"),
        ({"k_train": -FULL[:N, :N]}, _errors.InputError, "below zero"),
        ({"k_train": np.triu(np.ones((N, N)))}, _errors.InputError, "not symmetric"),
        ({"f_test": START[N:]}, _errors.InputError, "both"),
        ({"y": Y * np.nan}, _errors.InputError, "not finite"),
    ],
)
def test_errors(changed, error, message):
    given = {
        "k_train": FULL[:N, :N], "y": Y, "f_train": START[:N], "steps": [1],
        "learning_rate": RATE,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        linearised(**(given | changed))


def test_traced_kernels_are_refused():
    with pytest.raises(_errors.InputError, match="traced"):
        jax.jit(lambda k: linearised(k, Y, START[:N], [1], 0.1))(FULL[:N, :N])
