"""Matrices that are large enough for other routines: the numbers are the same."""

import types

import numpy as np
import pytest
from linear_models import flow_map

from widelimit import InputError, predict
from widelimit._jax import enable_x64
from widelimit.predict._eigen import SMALL, Eigen

N, M, RATE = 600, 30, 1.3
RNG = np.random.default_rng(0)
FEATURES = {
    "nngp": RNG.standard_normal((N + M, 900)) / 30,
    "ntk": RNG.standard_normal((N + M, 1000)) / 30,
}
Y = RNG.standard_normal((N, 2))
TRAIN, TEST = np.arange(N), np.arange(N, N + M)
TIMES = np.array([0.0, 30.0, 3000.0])


def kernel_of(dtype):
    def kernel_fn(x1, x2, get):
        x2 = x1 if x2 is None else x2
        found = {k: (f[x1] @ f[x2].T).astype(dtype) for k, f in FEATURES.items()}
        return found[get] if isinstance(get, str) else types.SimpleNamespace(**found)

    return kernel_fn


def expected(kind, t, dtype):
    """Mean and covariance of the test outputs, by the exponential of the system."""
    every = np.arange(N + M)
    k = kernel_of(dtype)
    prior, moved = (np.asarray(k(every, None, n), float) for n in ("nngp", kind))
    a = flow_map(moved[:N, :N], moved[N:, :N], RATE * t / Y.size)
    return (a @ np.concatenate([-Y, np.zeros((M, 2))]))[N:], (a @ prior @ a.T)[N:, N:]


@pytest.mark.parametrize(("dtype", "digits"), [(np.float64, 1e-12), (np.float32, 1e-7)])
def test_ensembles_of_many_inputs(dtype, digits):
    with enable_x64(dtype == np.float64):  # whose setting makes no difference inside
        f = predict.gradient_descent_mse_ensemble(kernel_of(dtype), TRAIN, Y, RATE)
        both = f(TIMES, TEST, None, True)
        end, late = (f(t, TEST, None, True) for t in (None, np.inf))
    for kind in ("nngp", "ntk"):
        found = getattr(both, kind)
        assert found.mean.dtype == found.covariance.dtype == dtype
        for i, t in enumerate(TIMES):
            mean, cov = expected(kind, t, dtype)
            np.testing.assert_allclose(found.mean[i], mean, rtol=digits, atol=digits)
            # Rounded once, also where they are small.
            np.testing.assert_allclose(
                found.covariance[i], cov, rtol=digits, atol=1e-12
            )
        for a, b in zip(getattr(end, kind), getattr(late, kind), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e4 * digits, atol=1e3 * digits)


def test_a_singular_kernel_of_many_inputs_is_refused():
    twice = np.concatenate([TRAIN[:-1], TRAIN[:1]])
    f = predict.gradient_descent_mse_ensemble(kernel_of(np.float64), twice, Y)
    with pytest.raises(InputError, match="singular"):
        f(None, TEST, None, True)


@pytest.mark.parametrize("n", [SMALL - 1, SMALL])
def test_rows_and_columns_in_the_basis_of_eigenvectors(n):
    k = FEATURES["ntk"][:n] @ FEATURES["ntk"][:n].T
    rows = RNG.standard_normal((3, n))
    eigen = Eigen(k)
    few, back = eigen.rows(rows), eigen.columns(rows.T)
    vectors = eigen.vectors
    np.testing.assert_allclose(k @ vectors, vectors * eigen.values, atol=1e-13)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-13)
    for rows_again in (rows, np.tile(rows, (n, 1))):
        found = eigen.rows(rows_again)
        np.testing.assert_allclose(found[:3], rows @ vectors, atol=1e-12)
    np.testing.assert_allclose(few, rows @ vectors, atol=1e-12)
    np.testing.assert_allclose(back, vectors @ rows.T, atol=1e-12)
    np.testing.assert_allclose(eigen.columns(rows.T), vectors @ rows.T, atol=1e-12)
