"""The posterior against the textbook formulas, and its refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from widelimit._errors import InputError, ShapeMismatchError
from widelimit.predict import gp_posterior

RNG = np.random.default_rng(0)
N, M = 12, 5
X = RNG.normal(size=(N + M, 3))


def kernel(x, z):
    return np.exp(-0.5 * ((x[:, None] - z[None]) ** 2).sum(-1)) + 0.3 * x @ z.T


K = kernel(X, X)
K_TRAIN, K_CROSS, K_TEST = K[:N, :N], K[N:, :N], K[N:, N:]
Y = RNG.normal(size=(N, 2))


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5])
def test_mean_and_covariance_are_the_textbook_formulas(noise):
    posterior = gp_posterior(K_TRAIN, K_CROSS, K_TEST, Y, noise)
    inverse = np.linalg.inv(K_TRAIN + noise * np.eye(N))
    expected = K_TEST - K_CROSS @ inverse @ K_CROSS.T
    assert posterior.cov is not None
    np.testing.assert_allclose(posterior.mean, K_CROSS @ inverse @ Y, rtol=1e-9)
    np.testing.assert_allclose(posterior.cov, expected, atol=1e-11)
    np.testing.assert_allclose(posterior.variance, np.diag(expected), atol=1e-11)
    np.testing.assert_array_equal(posterior.std, np.sqrt(posterior.variance))


def test_log_marginal_likelihood_is_a_gaussian_log_density():
    normal = scipy.stats.multivariate_normal(cov=K_TRAIN + 0.1 * np.eye(N))
    one = gp_posterior(K_TRAIN, K_CROSS, K_TEST, Y[:, 0], 0.1)
    both = gp_posterior(K_TRAIN, K_CROSS, K_TEST, Y, 0.1)
    expected = normal.logpdf(Y.T)
    assert one.log_marginal_likelihood == pytest.approx(expected[0], rel=1e-12)
    assert both.log_marginal_likelihood == pytest.approx(expected.sum(), rel=1e-12)


def test_the_chain_rule_of_probability_ties_mean_variance_and_likelihood():
    # log p(y, y*) = log p(y) + log p(y* | y), with one more observation.
    k, noise, star = K[: N + 1, : N + 1], 0.2, 0.7
    y = np.append(Y[:, 0], star)
    first = gp_posterior(K_TRAIN, k[N:, :N], k[N:, N:], Y[:, 0], noise)
    whole = gp_posterior(k, K[N + 1 :, : N + 1], K[N + 1 :, N + 1 :], y, noise)
    spread = np.sqrt(first.variance[0] + noise)
    last = scipy.stats.norm.logpdf(star, first.mean[0], spread)
    total = first.log_marginal_likelihood + last
    assert whole.log_marginal_likelihood == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("outputs", [(), (1,), (2,), (2, 3)])
def test_outputs_keep_their_shape(outputs):
    y = RNG.normal(size=(N, *outputs))
    posterior = gp_posterior(K_TRAIN, K_CROSS, K_TEST, y, 0.1)
    assert posterior.mean.shape == (M, *outputs)
    assert posterior.variance.shape == (M,)


def test_a_diagonal_test_kernel_gives_variances_only():
    full = gp_posterior(K_TRAIN, K_CROSS, K_TEST, Y, 0.1)
    diagonal = gp_posterior(K_TRAIN, K_CROSS, np.diag(K_TEST), Y, 0.1)
    np.testing.assert_array_equal(diagonal.variance, full.variance)
    assert diagonal.cov is None


def test_without_noise_the_training_targets_are_interpolated():
    posterior = gp_posterior(K_TRAIN, K_TRAIN, K_TRAIN, Y)
    np.testing.assert_allclose(posterior.mean, Y, atol=1e-8)
    assert posterior.variance.min() >= 0
    assert posterior.variance.max() < 1e-9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_jax_arrays_are_solved_in_double_precision(dtype):
    arrays = [jnp.asarray(a, dtype) for a in (K_TRAIN, K_CROSS, K_TEST, Y)]
    posterior = gp_posterior(*arrays, noise=0.01)
    same = gp_posterior(*[np.asarray(a, np.float64) for a in arrays], noise=0.01)
    assert posterior.mean.dtype == np.float64
    np.testing.assert_array_equal(posterior.mean, same.mean)


def test_integer_targets_and_lists_are_numbers():
    posterior = gp_posterior([[2.0]], [[1.0]], [[2.0]], [4])
    np.testing.assert_allclose(posterior.mean, [2.0], rtol=1e-15)
    np.testing.assert_allclose(posterior.variance, [1.5], rtol=1e-15)


def test_the_arguments_are_not_changed():
    arrays = [K_TRAIN.copy(), K_CROSS.copy(), K_TEST.copy(), Y.copy()]
    gp_posterior(*arrays, noise=0.1)
    for before, after in zip((K_TRAIN, K_CROSS, K_TEST, Y), arrays, strict=True):
        np.testing.assert_array_equal(before, after)


def rank_deficient(dtype, n=30, rank=4):
    features = np.random.default_rng(1).normal(size=(n + M, rank)).astype(dtype)
    k = features @ features.T
    return k[:n, :n], k[n:, :n], k[n:, n:], np.ones(n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_kernel_names_its_eigenvalue_and_a_noise_that_suffices(dtype):
    arrays = rank_deficient(dtype)
    with pytest.raises(InputError, match=r"smallest eigenvalue") as caught:
        gp_posterior(*arrays)
    found = re.search(r"noise=([0-9.e+-]+)", str(caught.value))
    assert found is not None
    posterior = gp_posterior(*arrays, noise=float(found[1]))
    assert np.isfinite(posterior.mean).all()
    assert np.isfinite(posterior.variance).all()


def test_two_equal_inputs_are_singular_even_if_cholesky_succeeds():
    # Rounding may leave a pivot of 1e-16 where the true one is 0.
    k = np.array([[1.0, 1.0 - 2e-16], [1.0 - 2e-16, 1.0]])
    np.linalg.cholesky(k)
    with pytest.raises(InputError, match="inputs coincide"):
        gp_posterior(k, k, k, [1.0, 2.0])
    noisy = gp_posterior(k, k, k, [1.0, 2.0], noise=1e-6)
    np.testing.assert_allclose(noisy.mean, [1.5, 1.5], atol=1e-5)


def test_a_matrix_that_is_no_kernel_is_called_so():
    k = np.diag([1.0, -1.0])
    with pytest.raises(InputError, match="not the kernel of any process"):
        gp_posterior(k, k, np.eye(2), [1.0, 2.0])


def test_a_kernel_of_zeros_is_singular():
    zero = np.zeros((2, 2))
    with pytest.raises(InputError, match="singular"):
        gp_posterior(zero, zero, zero, [1.0, 2.0])
    assert gp_posterior(zero, zero, zero, [1.0, 2.0], 1.0).mean.tolist() == [0, 0]


def test_kernels_of_two_processes_are_refused_rather_than_clipped():
    with pytest.raises(InputError, match="below zero by more than rounding"):
        gp_posterior(K_TRAIN, 2 * K_CROSS, K_TEST, Y, 0.01)


def test_float32_rounding_of_a_good_kernel_is_accepted():
    k = K.astype(np.float32)
    posterior = gp_posterior(k[:N, :N], k[:N, :N], k[:N, :N], Y, 1e-5)
    assert posterior.variance.min() >= 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k_cross": K_CROSS.T}, ShapeMismatchError, "test inputs first"),
        ({"k_train": K_TRAIN[:-1]}, ShapeMismatchError, "12 training targets"),
        ({"k_test": K_TEST[:-1]}, ShapeMismatchError, "5 test inputs"),
        ({"y": Y[:-1]}, ShapeMismatchError, "11 training targets"),
        ({"y": 3.0}, ShapeMismatchError, "single number"),
        ({"y": []}, InputError, "0 training targets"),
        ({"k_cross": np.zeros((0, N))}, InputError, "0 test inputs"),
        ({"noise": -1.0}, InputError, "zero or more"),
        ({"noise": np.nan}, InputError, "finite number"),
        ({"noise": "a"}, InputError, "`noise` is 'a'"),
        ({"y": np.where(Y > 1, np.nan, Y)}, InputError, "`y` has .* not finite"),
        ({"k_train": K_TRAIN * np.inf}, InputError, "`k_train` has"),
        ({"k_train": K_TRAIN + 1j}, InputError, "complex128"),
        ({"y": np.array(["a"] * N)}, InputError, "real numbers"),
        ({"k_train": np.triu(K_TRAIN)}, InputError, "not symmetric"),
        ({"k_test": np.triu(K_TEST)}, InputError, "`k_test` is not symmetric"),
    ],
)
def test_bad_input_says_what_was_given_and_expected(change, error, words):
    arguments = {
        "k_train": K_TRAIN,
        "k_cross": K_CROSS,
        "k_test": K_TEST,
        "y": Y,
        "noise": 0.1,
    }
    with np.errstate(invalid="ignore"), pytest.raises(error, match=words):
        gp_posterior(**{**arguments, **change})


def test_traced_arrays_are_refused_with_the_way_out():
    with pytest.raises(InputError, match="traced by JAX"):
        jax.jit(lambda k: gp_posterior(k, K_CROSS, K_TEST, Y).mean)(K_TRAIN)
