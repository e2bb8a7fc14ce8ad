"""Ensembles under gradient descent: by steps, by samples, by the peer, in limits."""

import pathlib
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.integrate

import widelimit as wl
from widelimit import _errors

DATA = pathlib.Path(__file__).parents[1] / "data" / "neural_tangents_predict.npz"
RNG = np.random.default_rng(0)
N, M, OUT, RATE = 5, 3, 2, 0.4
TANGENT = RNG.standard_normal((N + M, 40)) / 4
PRIOR = RNG.standard_normal((N + M, 30)) / 5
Y = RNG.standard_normal((N, OUT))


def blocks(features, n=N):
    """Kernels of linear features: training, cross, test."""
    k = features @ features.T
    return k[:n, :n], k[n:, :n], k[n:, n:]


def train(times, rate=RATE, y=Y, tangent=TANGENT, prior=PRIOR, **options):
    k_train, k_cross, _ = blocks(tangent)
    nngp_train, nngp_cross, nngp_test = blocks(prior)
    given = {
        "k_cross": k_cross, "nngp_train": nngp_train, "nngp_cross": nngp_cross,
        "nngp_test": nngp_test,
    }  # fmt: skip
    return wl.trained_ensemble(k_train, y, times, rate, **(given | options))


def by_steps(start, steps, rate=RATE, momentum=0.0, ridge=0.0, y=Y, tangent=TANGENT):
    """Gradient descent on the parameters of f = start + tangent w, as optax.sgd.

    `start` has shape (.., N + M, OUT): any number of functions at once.
    """
    w = np.zeros((*start.shape[:-2], tangent.shape[1], start.shape[-1]))
    v, kept = np.zeros_like(w), {}
    for step in range(max(steps) + 1):
        f = start + tangent @ w
        if step in steps:
            kept[step] = f
        gradient = tangent[:N].T @ (f[..., :N, :] - y) + ridge * w
        v = momentum * v + gradient / y.size
        w = w - rate * v
    return np.stack([kept[step] for step in steps])


def both(result):
    """The means for training and test inputs."""
    return np.concatenate([result.mean, result.test_mean], axis=1)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_steps_are_those_of_gradient_descent(momentum, ridge):
    steps = [0, 1, 2, 3, 17, 300]
    options = {"momentum": momentum, "ridge": ridge}
    found = train(steps, **options)
    f = by_steps(np.zeros((N + M, OUT)), steps, **options)
    np.testing.assert_allclose(both(found), f, rtol=0, atol=1e-13)
    # The map from the outputs at time 0 to those at time t, one column for each.
    basis = np.eye(N + M)[:, :, None]
    maps = by_steps(basis, steps, y=np.zeros((N, 1)), rate=RATE / OUT, **options)
    maps = np.moveaxis(maps[..., 0], 1, 2)
    cov = maps @ (PRIOR @ PRIOR.T) @ np.moveaxis(maps, 1, 2)
    np.testing.assert_allclose(found.cov, cov[:, :N, :N], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.test_cov, cov[:, N:, N:], rtol=0, atol=1e-13)
    variance = np.einsum("tii->ti", cov)
    np.testing.assert_allclose(found.std**2, variance[:, :N], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.test_std**2, variance[:, N:], rtol=0, atol=1e-13)
    losses = 0.5 * np.mean((f[:, :N] - Y) ** 2, axis=(1, 2))
    losses += 0.5 * np.einsum("tnn->t", cov[:, :N, :N]) / N
    np.testing.assert_allclose(found.losses, losses, rtol=1e-12, atol=1e-15)


def test_an_ensemble_of_linear_models_is_that_gaussian():
    members, steps = 20_000, [0, 4, 60]
    rng = np.random.default_rng(1)
    start = PRIOR @ rng.standard_normal((members, PRIOR.shape[1], OUT))
    f = by_steps(start, steps, momentum=0.5)
    found = train(steps, momentum=0.5)
    for i in range(len(steps)):
        for mean, cov, sample in (
            (found.mean[i], found.cov[i], f[i, :, :N]),
            (found.test_mean[i], found.test_cov[i], f[i, :, N:]),
        ):
            error = np.sqrt(np.diag(cov) / members)[:, None]
            assert (np.abs(sample.mean(0) - mean) < 5 * error + 1e-12).all()
            off = sample - mean
            products = np.einsum("sio,sjo->sij", off, off) / OUT
            error = products.std(0) / np.sqrt(members)
            assert (np.abs(products.mean(0) - cov) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_flow_solves_its_differential_equation(momentum):
    k_train, k_cross, _ = blocks(TANGENT)
    k = np.concatenate([k_train, k_cross])

    def slope(_, state):
        f, v = state.reshape(2, N + M, OUT)
        force = -RATE * k @ (f[:N] - Y) / Y.size
        parts = (v, force - (1 - momentum) * v) if momentum else (force, 0 * v)
        return np.concatenate([part.ravel() for part in parts])

    times = [0.0, 0.5, 7.3, 60.0]
    solved = scipy.integrate.solve_ivp(
        slope, (0, 60), np.zeros(2 * (N + M) * OUT), "DOP853", times,
        rtol=1e-12, atol=1e-13,
    )  # fmt: skip
    expected = solved.y.T.reshape(len(times), 2, N + M, OUT)[:, 0]
    found = train(times, momentum=momentum, continuous=True)
    np.testing.assert_allclose(both(found), expected, rtol=0, atol=1e-10)


def test_momentum_in_continuous_time_is_descent_with_small_rates_and_much_momentum():
    distances = []
    for small in (0.04, 0.01):
        options = {"rate": 10 * small**2, "momentum": 1 - small}
        times = np.round(np.array([1, 3, 10]) / small)
        flow = train(times, continuous=True, **options)
        distances.append(np.abs(both(flow) - both(train(times, **options))).max())
    assert distances[0] < 0.05
    assert distances[1] < 0.3 * distances[0]


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
@pytest.mark.parametrize("tag", ["reg0_lr1", "reg0.001_lr0.5"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_ensembles_agree_with_neural_tangents(net, tag, kind):
    with np.load(DATA) as data:
        k, cross = data[f"k/{net}/{kind}11"], data[f"k/{net}/{kind}12"].T
        nngp, nngp_cross = data[f"k/{net}/nngp11"], data[f"k/{net}/nngp12"].T
        y = data[f"p/{net}/y_train"]
        head = f"p/{net}/ensemble/{tag}"
        nngp_test = data[f"{head}/test/nngp/cov"][0]
        expected = {
            where: (
                data[f"{head}/{where}/{kind}/mean"],
                data[f"{head}/{where}/{kind}/cov"],
            )
            for where in ("train", "test")
            # With a ridge, the peer takes the training outputs to end at the targets.
            if where == "test" or tag == "reg0_lr1"
        }
    reg, rate = {"reg0_lr1": (0.0, 1.0), "reg0.001_lr0.5": (1e-3, 0.5)}[tag]
    ridge = reg * np.trace(k) / len(k)
    if kind == "nngp":  # there, the peer takes the ridge for noise on the targets
        nngp = nngp + ridge * np.eye(len(k))
    found = wl.trained_ensemble(
        k, y, [0, 1, 10, np.inf], rate, k_cross=cross, nngp_train=nngp,
        nngp_cross=nngp_cross, nngp_test=nngp_test, continuous=True,
        ridge=ridge,
    )  # fmt: skip
    # The diagonal of the peer's tangent kernel has half the digits, others in every
    # way of asking for it.
    atol = 1e-12 if kind == "nngp" else 1e-7
    mean, cov = expected["test"]
    np.testing.assert_allclose(found.test_mean, mean, rtol=0, atol=atol)
    np.testing.assert_allclose(found.test_cov, cov, rtol=0, atol=atol)
    if "train" in expected:
        mean, cov = expected["train"]
        np.testing.assert_allclose(found.mean, mean, rtol=0, atol=atol)
        np.testing.assert_allclose(found.cov, cov, rtol=0, atol=atol)


@pytest.mark.parametrize("net", ["relu_mlp_d3", "conv_same_gap"])
@pytest.mark.parametrize("momentum", ["None", "0.9"])
def test_momentum_agrees_with_neural_tangents(net, momentum):
    with np.load(DATA) as data:
        k, cross = data[f"k/{net}/ntk11"], data[f"k/{net}/ntk12"].T
        y, f_train, f_test = (
            data[f"p/{net}/{name}"] for name in ("y_train", "fx_train_0", "fx_test_0")
        )
        expected = [
            data[f"p/{net}/gd_ode/mom{momentum}/{where}"] for where in ("train", "test")
        ]
    found = wl.trained_ensemble(
        k, y, [1, 10], 0.5, k_cross=cross, f_train=f_train, f_test=f_test,
        continuous=True, momentum=0.0 if momentum == "None" else float(momentum),
    )  # fmt: skip
    # The peer's solver of differential equations has a tolerance of 1.4e-8 in a step.
    np.testing.assert_allclose(found.mean, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.test_mean, expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_infinite_time_with_a_ridge_is_kernel_ridge_regression(continuous, momentum):
    k_train, k_cross, _ = blocks(TANGENT)
    regression = wl.gp_posterior(k_train, k_cross, np.ones(M), Y, noise=0.2)
    found = train(np.inf, ridge=0.2, momentum=momentum, continuous=continuous)
    np.testing.assert_allclose(found.test_mean[0], regression.mean, atol=1e-13)
    np.testing.assert_array_equal(found.times, [np.inf])
    late = train(10**5, ridge=0.2, momentum=momentum, continuous=continuous)
    for name in ("mean", "cov", "test_mean", "test_cov", "losses"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(late, name), rtol=0, atol=1e-12
        )


def test_the_last_layer_alone_ends_at_the_posterior():
    found = train(np.inf, tangent=PRIOR)
    posterior = wl.gp_posterior(*blocks(PRIOR), Y)
    np.testing.assert_allclose(found.test_mean[0], posterior.mean, atol=1e-13)
    np.testing.assert_allclose(found.test_cov[0], posterior.cov, atol=1e-13)
    np.testing.assert_allclose(found.mean[0], Y, atol=1e-14)
    np.testing.assert_allclose(found.std[0], 0.0, atol=1e-14)


def test_noise_on_the_targets_is_a_ridge_and_variance_at_time_0():
    noisy = blocks(PRIOR)[0] + 0.2 * np.eye(N)
    found = train(np.inf, tangent=PRIOR, ridge=0.2, nngp_train=noisy)
    posterior = wl.gp_posterior(*blocks(PRIOR), Y, noise=0.2)
    np.testing.assert_allclose(found.test_mean[0], posterior.mean, atol=1e-13)
    np.testing.assert_allclose(found.test_cov[0], posterior.cov, atol=1e-13)


def test_without_a_prior_there_is_a_mean_and_no_covariance():
    k_train, k_cross, _ = blocks(TANGENT)
    found = wl.trained_ensemble(k_train, Y, (0, 5), RATE, k_cross=k_cross)
    whole = train((0, 5))
    np.testing.assert_array_equal(found.mean, whole.mean)
    np.testing.assert_array_equal(found.test_mean, whole.test_mean)
    nothing = (found.cov, found.std, found.variance, found.test_cov, found.test_std)
    assert nothing == (None,) * 5
    alone = wl.trained_ensemble(k_train, Y[:, 0], 5, RATE)
    assert alone.mean.shape == (1, N)
    assert alone.test_mean is None


def test_a_prior_mean_moves_like_one_function():
    start = RNG.standard_normal((N + M, OUT))
    found = train([3, 40], f_train=start[:N], f_test=start[N:])
    np.testing.assert_allclose(both(found), by_steps(start, [3, 40]), atol=1e-13)
    np.testing.assert_array_equal(found.cov, train([3, 40]).cov)


def test_a_diagonal_test_kernel_gives_variances_only():
    whole = train([0, 4])
    found = train([0, 4], nngp_test=np.diag(blocks(PRIOR)[2]))
    assert found.test_cov is None
    np.testing.assert_array_equal(found.test_variance, whole.test_variance)


def test_axes_of_the_index_and_of_the_output():
    # One input of two places and two entries is four rows of a matrix.
    n, m, places, out = 3, 2, 2, 2
    tangent = RNG.standard_normal(((n + m) * places * out, 60))
    prior = RNG.standard_normal(((n + m) * places * out, 60))
    y = RNG.standard_normal((n, places, out))
    split = n * places * out

    def arrays(features, axes, cut):
        sizes = (places, out)[: axes - 1]
        found = [
            k.reshape(a, *sizes, b, *sizes)
            for k, a, b in zip(blocks(features, cut), (n, m, m), (n, n, m), strict=True)
        ]
        return [np.moveaxis(k, axes, 1) for k in found]

    names = ("k_cross", "nngp_train", "nngp_cross", "nngp_test")
    flat = [*blocks(tangent, split)[:2], *blocks(prior, split)]
    flat = wl.trained_ensemble(
        flat[0], y.ravel(), [2, 9], 1e-2, **dict(zip(names, flat[1:], strict=True))
    )
    k = [*arrays(tangent, 3, split)[:2], *arrays(prior, 3, split)]
    found = wl.trained_ensemble(
        k[0], y, [2, 9], 1e-2, **dict(zip(names, k[1:], strict=True))
    )
    assert found.test_cov.shape == (2, m, m, places, out, places, out)
    assert found.variance.shape == (2, n, places, out)
    np.testing.assert_allclose(found.test_mean.ravel(), flat.test_mean.ravel())
    rows = np.moveaxis(found.test_cov, 2, 4).reshape(2, m * places * out, -1)
    np.testing.assert_allclose(rows, flat.test_cov, rtol=1e-12)

    # One kernel for both entries of the output.
    cut = n * places
    shared = [
        *arrays(tangent[: cut + m * places], 2, cut)[:2],
        *arrays(prior[: cut + m * places], 2, cut),
    ]
    k_flat = [
        *blocks(tangent[: cut + m * places], cut)[:2],
        *blocks(prior[: cut + m * places], cut),
    ]
    found = wl.trained_ensemble(
        shared[0], y, 9, 1e-2, **dict(zip(names, shared[1:], strict=True))
    )
    flat = wl.trained_ensemble(
        k_flat[0], y.reshape(cut, out), 9, 1e-2,
        **dict(zip(names, k_flat[1:], strict=True)),
    )  # fmt: skip
    assert found.test_mean.shape == (1, m, places, out)
    assert found.cov.shape == (1, n, n, places, places)
    assert found.losses == pytest.approx(flat.losses)
    np.testing.assert_allclose(found.test_mean.ravel(), flat.test_mean.ravel())
    np.testing.assert_allclose(found.std.ravel(), flat.std.ravel())


SINGULAR = np.concatenate([TANGENT[:2], TANGENT[:1], TANGENT[3:]])  # inputs 0 and 2


@pytest.mark.parametrize("continuous", [False, True])
def test_a_singular_kernel_learns_what_it_can_and_says_so(continuous):
    with pytest.warns(UserWarning, match="1 of the 5 eigenvalues") as caught:
        found = train(np.inf, tangent=SINGULAR, continuous=continuous)
    assert caught[0].filename == __file__
    assert len(found.unlearned) == 1
    assert abs(found.unlearned[0]) < 1e-14
    middle = (Y[0] + Y[2]) / 2
    expected = np.stack([middle, Y[1], middle, Y[3], Y[4]])
    np.testing.assert_allclose(found.mean[0], expected, atol=1e-13)
    weights = np.linalg.lstsq(SINGULAR[:N], Y, rcond=None)[0]
    np.testing.assert_allclose(found.test_mean[0], SINGULAR[N:] @ weights, atol=1e-12)
    assert np.isfinite(found.test_cov).all()
    # What tells the two inputs apart is never learned: half the variance of its prior.
    apart = PRIOR[0] - PRIOR[2]
    assert found.variance[0, 0] == pytest.approx(apart @ apart / 4)


def test_a_short_training_on_a_singular_kernel_is_no_matter_of_choice():
    steps = [0, 1, 50]
    found = train(steps, tangent=SINGULAR)  # and no warning
    f = by_steps(np.zeros((N + M, OUT)), steps, tangent=SINGULAR)
    np.testing.assert_allclose(both(found), f, atol=1e-13)
    assert len(found.unlearned) == 1


def test_a_ridge_makes_a_singular_kernel_regular():
    found = train(np.inf, tangent=SINGULAR, ridge=1e-3)
    assert len(found.unlearned) == 0
    assert np.isfinite(found.test_cov).all()


def test_directions_too_faint_for_float64_still_move_the_test_outputs():
    # An eigenvalue of 1e-18 hides a feature of 1e-9 that is large at the test input.
    tangent = np.array([[1.0, 0.0], [1.0, 1e-9], [0.0, 1.0]])
    k = tangent @ tangent.T
    y = np.array([-1.0, 1.0])
    found = wl.trained_ensemble(k[:2, :2], y, 1000, 1.0, k_cross=k[2:, :2])
    assert found.test_mean[0, 0] == pytest.approx(1000 * 1e-9 / 2, rel=1e-9)


def test_kernels_of_zeros_learn_nothing():
    zero = np.zeros((2, 2))
    with pytest.warns(UserWarning, match="2 of the 2"):
        found = wl.trained_ensemble(
            zero, [1.0, 2.0], [5, np.inf], 1.0, k_cross=zero, nngp_train=np.eye(2),
            nngp_cross=zero, nngp_test=np.eye(2),
        )  # fmt: skip
    np.testing.assert_array_equal(found.mean, np.zeros((2, 2)))
    np.testing.assert_array_equal(found.test_cov, np.stack([np.eye(2)] * 2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_many_steps_lose_no_digits(momentum):
    z, t = 1e-9 * (1 - momentum), 10**8
    found = wl.trained_ensemble([[z]], [1.0], t, 1.0, momentum=momentum)
    # The error is a sum of two powers; the fast one has died out.
    root = np.sqrt((1 - momentum + z) ** 2 - 4 * z)
    fast = (1 - momentum + z + root) / 2
    slow = z / fast
    expected = -np.expm1(t * np.log1p(-slow) + np.log((fast - z) / root))
    assert found.mean[0, 0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_of_the_kernels_sets_what_is_noise(dtype):
    features = np.random.default_rng(2).normal(size=(30, 4)).astype(dtype)
    with pytest.warns(UserWarning, match="26 of the 30"):
        found = wl.trained_ensemble(features @ features.T, np.ones(30), np.inf, 0.1)
    fit = features @ np.linalg.lstsq(features, np.ones(30), rcond=None)[0]
    atol = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found.mean[0], fit, atol=atol)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    ranks=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    t=st.one_of(st.integers(0, 1000), st.just(np.inf)),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    ridge=st.sampled_from([0.0, 1e-3, 1.0]),
    continuous=st.booleans(),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_covariances_are_covariances(seed, n, ranks, t, momentum, ridge, continuous):
    rng = np.random.default_rng(seed)
    tangent, prior = (rng.standard_normal((n + 3, rank)) for rank in ranks)
    k_train, k_cross, _ = blocks(tangent, n)
    nngp_train, nngp_cross, nngp_test = blocks(prior, n)
    y = rng.standard_normal(n)
    rate = 0.9 * wl.max_learning_rate(k_train + ridge * np.eye(n), n, momentum)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* cannot be told from 0")
        found = wl.trained_ensemble(
            k_train, y, [0, t], rate, k_cross=k_cross, nngp_train=nngp_train,
            nngp_cross=nngp_cross, nngp_test=nngp_test, continuous=continuous,
            momentum=momentum, ridge=ridge,
        )  # fmt: skip
    np.testing.assert_allclose(found.cov[0], nngp_train, atol=1e-12)
    np.testing.assert_array_equal(found.test_cov[0], (nngp_test + nngp_test.T) / 2)
    np.testing.assert_allclose(found.mean[0], 0, atol=1e-14)
    for mean, cov, std in (
        (found.mean, found.cov, found.std),
        (found.test_mean, found.test_cov, found.test_std),
    ):
        assert np.isfinite(mean).all()
        assert (std >= 0).all()
        np.testing.assert_array_equal(cov, np.swapaxes(cov, 1, 2))
        values = np.linalg.eigvalsh(cov[1])
        # Rounding of the weights that the prior's covariance is multiplied by, twice.
        inverse = 1 + np.linalg.norm(k_cross) * np.linalg.norm(
            np.linalg.pinv(k_train, 1e-13)
        )
        scale = np.linalg.norm(prior) ** 2 * inverse**2
        assert values[0] >= -1e-14 * scale


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"times": 1.5}, _errors.InputError, "whole numbers"),
        ({"times": -1.0, "continuous": True}, _errors.InputError, "0 or more"),
        ({"times": np.nan}, _errors.InputError, "`times` has 1 entries"),
        ({"times": []}, _errors.InputError, "whole numbers"),
        ({"rate": -1.0}, _errors.InputError, "positive number"),
        ({"rate": 1e3, "times": np.inf}, _errors.InputError, "times the largest"),
        ({"rate": 1e3, "times": 10**4}, _errors.InputError, "diverges"),
        ({"momentum": 1.0}, _errors.InputError, "from 0 to below 1"),
        ({"momentum": "much"}, _errors.InputError, "got 'much'"),
        ({"ridge": -1.0}, _errors.InputError, "zero or more"),
        ({"ridge": np.inf}, _errors.InputError, "zero or more"),
        ({"y": 3.0}, _errors.ShapeMismatchError, "`y` should hold"),
        ({"y": Y[:-1]}, _errors.ShapeMismatchError, "`k_train` should have shape"),
        ({"y": Y * np.nan}, _errors.InputError, "`y` has 10 entries"),
        ({"k_cross": np.ones((N, M))}, _errors.ShapeMismatchError, "`k_cross` should"),
        ({"k_cross": np.ones((M, N, 2))}, _errors.ShapeMismatchError, "2 axes"),
        ({"k_cross": np.ones((0, N))}, _errors.InputError, "empty"),
        ({"k_cross": None}, _errors.InputError, "without `k_cross`"),
        ({"nngp_cross": None}, _errors.InputError, "got nngp_train, nngp_test with"),
        ({"nngp_train": None}, _errors.InputError, "give `nngp_train`"),
        ({"nngp_test": np.ones((2, 2))}, _errors.ShapeMismatchError, "`nngp_test`"),
        ({"nngp_train": -np.eye(N)}, _errors.InputError, "`nngp_train` has the eigen"),
        ({"nngp_train": np.triu(np.ones((N, N)))}, _errors.InputError, "not symmetric"),
        ({"nngp_test": np.zeros((M, M))}, _errors.InputError, "not kernels of"),
        ({"f_train": Y}, _errors.InputError, "Give both"),
        ({"f_test": Y}, _errors.InputError, "Give both"),
        ({"f_train": Y, "f_test": Y}, _errors.ShapeMismatchError, "`f_test` should"),
        ({"f_train": Y.T, "f_test": Y}, _errors.ShapeMismatchError, "one shape"),
    ],
)  # fmt: skip
def test_errors(changed, error, message):
    with pytest.raises(error, match=message):
        train(**({"times": 1} | changed))


def test_a_tangent_kernel_that_is_none_is_refused():
    with pytest.raises(_errors.InputError, match="`k_train` has the eigenvalue -1"):
        wl.trained_ensemble(np.diag([1.0, -1.0]), [1.0, 2.0], 1, 0.1)
    with pytest.raises(_errors.InputError, match="not symmetric"):
        wl.trained_ensemble([[1.0, 2.0], [0.0, 1.0]], [1.0, 2.0], 1, 0.1)


def test_traced_kernels_are_refused():
    with pytest.raises(_errors.InputError, match="traced"):
        jax.jit(lambda k: wl.trained_ensemble(k, Y, 1, 0.1).mean)(np.eye(N))
