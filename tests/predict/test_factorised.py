"""A kernel with its factorisations, its layout as a matrix, and where it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_models import PRIOR, TANGENT, N, blocks, interleaved

from widelimit import InputError, predict
from widelimit.predict._cholesky import cholesky, smallest_estimate
from widelimit.predict._interleaved import as_kernel, as_matrix, outputs_of
from widelimit.predict._namespace import namespace

K = blocks(TANGENT)[0]


@pytest.mark.parametrize("rows", [(3,), (2, 3), (2, 3, 4), ()])
def test_pairs_of_axes_are_rows_and_columns(rows):
    columns = tuple(s + 1 for s in rows)
    size = int(np.prod(rows)), int(np.prod(columns))
    matrix = np.random.default_rng(0).standard_normal(size)
    kernel = interleaved(matrix, rows, columns)
    np.testing.assert_array_equal(as_matrix(kernel), matrix)
    np.testing.assert_array_equal(as_kernel(matrix, rows, columns), kernel)
    stack = np.stack([matrix, 2 * matrix])
    np.testing.assert_array_equal(as_kernel(stack, rows, columns)[1], 2 * kernel)


def test_outputs_are_columns_of_the_axes_that_share_a_kernel():
    outputs = outputs_of((3, 4, 5), (1, -1, 1))
    assert (outputs.rows, outputs.shared, outputs.size) == ((3,), (4, 5), 60)
    f = np.arange(60.0).reshape(3, 4, 5)
    flat = outputs.columns(np, f)
    assert flat.shape == (3, 20)
    np.testing.assert_array_equal(outputs.arrays(np, flat, (3,)), f)
    middle = outputs_of((3, 4, 5), 1)
    flat = middle.columns(np, f)
    np.testing.assert_array_equal(flat, np.moveaxis(f, 1, 2).reshape(15, 4))
    twice = middle.arrays(jnp, jnp.stack([flat, 2 * flat]), (3, 5))
    np.testing.assert_array_equal(twice, [f, 2 * f])
    assert middle.of((7, 5)) == (7, 4, 5)


def test_factorisations():
    kernel = predict.FactorisedKernel(K, 0.3)
    regularised = K + 0.3 * np.trace(K) / N * np.eye(N)
    values, vectors = kernel.eigen
    np.testing.assert_allclose((vectors * values) @ vectors.T, regularised, atol=1e-14)
    np.testing.assert_allclose(
        kernel.cholesky @ kernel.cholesky.T, regularised, atol=1e-14
    )
    b = np.ones((N, 2))
    np.testing.assert_allclose(regularised @ kernel.solve(b), b, atol=1e-13)
    np.testing.assert_allclose(kernel.cholesky @ kernel.half_solve(b), b, atol=1e-13)
    assert kernel.eigen[1] is vectors
    assert kernel.rows == (N,)
    assert kernel.dtype == jnp.float64
    assert len(kernel.unlearned) == 0


def test_what_counts_as_zero_is_what_the_roundings_of_the_kernel_make():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 20))
    for dtype in (np.float32, np.float64):
        k = (features @ features.T).astype(dtype)
        kernel = predict.FactorisedKernel(k)
        assert len(kernel.unlearned) == 40
        values = np.linalg.eigvalsh(k.astype(float))
        assert np.abs(values[:40]).max() < float(kernel.tolerance) < 1e-2 * values[40]
        with pytest.raises(InputError, match="outnumber the features"):
            _ = kernel.cholesky
    # With regularisation above the noise, all that is asked for is learned.
    noise = float(np.abs(values[:40]).max())
    assert len(predict.FactorisedKernel(k, 100 * noise).unlearned) == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_a_type_of_kernels(dtype):
    k = jnp.asarray(K, dtype)
    kernel = predict.FactorisedKernel(k)
    assert kernel.dtype == dtype
    values = np.linalg.eigvalsh(np.asarray(k, np.float64))
    np.testing.assert_allclose(kernel.eigen[0], values, rtol=1e-12)


def test_the_smallest_eigenvalue_is_estimated_from_above():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors = np.linalg.qr(rng.standard_normal((30, 30)))[0]
        values = np.sort(10.0 ** rng.uniform(-12, 0, 30))
        k = (vectors * values) @ vectors.T
        factor = cholesky((k + k.T) / 2, 1e-13, 0.0, lambda: pytest.fail("singular"))
        least = values[0] + 1e-13
        found = smallest_estimate(factor)
        assert 0.9 * least <= found <= 3 * least


def test_numbers_stay_with_numpy_and_traces_with_jax():
    seen = []

    def f(x):
        seen.append(namespace(x, K))
        return x

    jax.jit(f)(1.0)
    jax.vmap(f)(jnp.ones(2))
    jax.grad(f)(1.0)
    assert seen == [jnp] * 3
    assert namespace(K, None, 1.0, jnp.ones(2), {"a": [jnp.ones(1)]}) is np


def test_a_traced_kernel_leaves_nothing_behind():
    made = []

    def f(k):
        kernel = predict.FactorisedKernel(k)
        made.append(kernel)
        return kernel.solve(jnp.eye(N)), kernel.eigen[0], kernel.tolerance

    solved, values, tolerance = jax.jit(f)(jnp.asarray(K))
    np.testing.assert_allclose(solved @ K, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(K), atol=1e-14)
    plain = predict.FactorisedKernel(K)
    assert float(tolerance) == pytest.approx(float(plain.tolerance))
    assert made[0]._kept == {}


def test_a_kernel_of_numbers_is_factorised_once_by_what_is_compiled():
    kernel = predict.FactorisedKernel(blocks(PRIOR)[0])
    jax.jit(lambda b: kernel.solve(b))(jnp.ones((N, 1)))
    assert isinstance(kernel._kept["cholesky"], np.ndarray)
