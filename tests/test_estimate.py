"""Expectations without a formula: samples, their errors, and three witnesses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_except

import widelimit as wl
from widelimit import gaussian
from widelimit.asymptotics import semidefinite_root

n = wl.width("n")
SENTENCES = np.random.default_rng(0).normal(size=(3, 3, 4)) / 2.0
VECTORS = SENTENCES[:, 0]


def weights(*names):
    return {
        key: value
        for name in names
        for key, value in (
            (f"U{name}", wl.normal((4, n), std=1.2)),
            (f"W{name}", wl.normal((n, n), std=1.1)),
            (f"b{name}", wl.normal((n,), std=0.3)),
        )
    } | {"v": wl.normal((n, 1))}


def gate(p, name, x, h):
    out = x @ p[f"U{name}"] + p[f"b{name}"]
    return out if h is None else out + h @ p[f"W{name}"] / jnp.sqrt(n)


def readout(p, h):
    return h @ p["v"] / jnp.sqrt(n)


def lstm(p, x):
    h, c = None, 0.0
    for t in range(x.shape[1]):
        i, f, o = (jax.nn.sigmoid(gate(p, k, x[:, t], h)) for k in "ifo")
        c = i * jnp.tanh(gate(p, "g", x[:, t], h)) + (f * c if t else 0.0)
        h = o * jnp.tanh(c)
    return readout(p, h)


def gru(p, x):
    h = None
    for t in range(x.shape[1]):
        z, r = (jax.nn.sigmoid(gate(p, k, x[:, t], h)) for k in "zr")
        new = jnp.tanh(gate(p, "h", x[:, t], r * h if t else None))
        h = (1.0 - z) * h + z * new if t else z * new
    return readout(p, h)


def minimal_gated_unit(p, x):
    h = None
    for t in range(x.shape[1]):
        f = jax.nn.sigmoid(gate(p, "f", x[:, t], h))
        new = jnp.tanh(gate(p, "h", x[:, t], f * h if t else None))
        h = (1.0 - f) * h + f * new if t else f * new
    return readout(p, h)


def maximum(p, x):
    return readout(p, jnp.max(gate(p, "a", x, None), axis=1))


def softmax(p, x):
    scores = jax.nn.softmax(gate(p, "a", x, None), axis=1)
    return readout(p, jnp.sum(scores * gate(p, "b", x, None), axis=1))


def gated_linear_unit(p, x):
    h = gate(p, "a", x, None) * jax.nn.sigmoid(gate(p, "b", x, None))
    return readout(p, jax.nn.relu(h) * jax.nn.silu(gate(p, "c", x, None)))


def mlp(p, x):
    return readout(p, jnp.tanh(gate(p, "a", x, None)))


NETWORKS = {
    "lstm": (lstm, weights(*"ifog"), SENTENCES),
    "gru": (gru, weights(*"zrh"), SENTENCES),
    "minimal gated unit": (minimal_gated_unit, weights(*"fh"), SENTENCES),
    "maximum": (maximum, weights("a"), SENTENCES),
    "softmax": (softmax, weights("a", "b"), SENTENCES),
    "gated linear unit": (gated_linear_unit, weights(*"abc"), VECTORS),
    "mlp": (mlp, weights("a"), VECTORS),
}


def batch_normalisation(p, x):
    h = gate(p, "a", x, None)
    return readout(p, jax.nn.relu((h - h.mean(0)) / jnp.sqrt(h.var(0))))


def attention(p, x):
    q, k, v = (gate(p, name, x, None) for name in "abc")
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / n)
    return readout(p, jnp.tanh(weights @ v)[:, 0])


heads, d = wl.width("heads", ratio=1 / 16), wl.width("d", ratio=1 / 16)


def many_heads(p, x):
    h = jnp.tanh(gate(p, "a", x, None))
    q, k, v = (jnp.einsum("npc,chd->nhpd", h, p[k]) / jnp.sqrt(n) for k in "QKV")
    weights = jax.nn.softmax(q @ k.mT / jnp.sqrt(d))
    y = jnp.einsum("nhpd,hdc->npc", weights @ v, p["O"]) / jnp.sqrt(heads * d)
    return readout(p, jnp.tanh(y)[:, 0])


def tied_residual(p, x):
    h = gate(p, "a", x, None)
    for _ in range(2):
        h = h + jnp.tanh(h) @ p["Wa"] / jnp.sqrt(n)
    return readout(p, h)


def mixture_of_experts(p, x):
    weights = jax.nn.softmax(jnp.stack([gate(p, k, x, None) for k in "ab"]), 0)
    experts = jnp.stack([jnp.tanh(gate(p, k, x, None)) for k in "cd"])
    return readout(p, (weights * experts).sum(0))


ARCHITECTURES = NETWORKS | {
    "batch normalisation": (
        batch_normalisation,
        weights("a"),
        np.random.default_rng(1).normal(size=(5, 4)),
    ),
    "attention": (attention, weights(*"abc"), SENTENCES),
    "attention with many heads": (
        many_heads,
        weights("a")
        | {k: wl.normal((n, heads, d), std=1.5) for k in "QKV"}
        | {"O": wl.normal((heads, d, n), std=1.5)},
        SENTENCES,
    ),
    "tied residual": (tied_residual, weights("a"), VECTORS),
    "mixture of experts": (mixture_of_experts, weights(*"abcd"), VECTORS),
}
SAMPLED = [name for name in NETWORKS if name != "mlp"]


def network(name):
    f, params, x = ARCHITECTURES[name]
    return wl.limit(f, params), x


def in_errors(found, other):
    """The largest difference in units of the combined standard error."""
    spread = np.sqrt(np.square(found.stderr) + np.square(other.stderr))
    return np.max(np.abs(found.value - other.value) / (spread + 1e-12))


def assert_close(kernel, estimate):
    """Whether a kernel is within the errors of one randomisation of 2^13 samples."""
    single = 4.0 * estimate.stderr
    assert np.all(np.abs(kernel - estimate.value) < 5.0 * single + estimate.error)


@pytest.mark.parametrize("name", slow_except(NETWORKS, ["maximum", "mlp"]))
def test_formulas_and_samples_agree(name):
    net, x = network(name)
    found = net.estimate(x, samples=2**10)
    other = net.estimate(x, samples=2**10, route="samples", key=jax.random.key(3))
    assert in_errors(found, other) < 4.5
    # What has a formula needs fewer samples; nothing that is sampled has no error.
    assert found.stderr.max() <= other.stderr.max()
    assert other.stderr.max() > 0.0
    assert "samples" in other.route
    assert ("samples" in found.route) == (name != "mlp")


@pytest.mark.parametrize("name", slow_except(ARCHITECTURES, ["mlp"]))
def test_kernels_agree_with_real_networks(name):
    net, x = network(name)
    check = net.check(x, widths=(64, 256, 1024), seeds=24, key=jax.random.key(1))
    assert check.passed, check


@pytest.mark.parametrize("name", slow_except(SAMPLED, ["maximum"]))
def test_kernels_are_the_estimates(name):
    net, x = network(name)
    found = net.estimate(x)
    value = net.nngp(x)
    assert_close(value, found)
    np.testing.assert_allclose(value, value.T)
    np.testing.assert_allclose(net.nngp(x, diagonal=True), np.diagonal(value))
    assert np.linalg.eigvalsh(np.asarray(value, float)).min() > -1e-6


def test_formulas_beside_samples_are_kept_while_they_are_few(monkeypatch):
    def f(p, x):
        return maximum(p, x) + readout(p, jnp.tanh(gate(p, "b", x[:, 0], None)))

    def asked():
        return wl.limit(f, weights("a", "b")).estimate(SENTENCES, samples=64)

    few = asked()
    monkeypatch.setattr("widelimit.asymptotics._engine.MAX_FORMULAS", 0)
    many = asked()
    assert "Hermite" in few.route
    assert "Hermite" not in many.route
    assert in_errors(few, many) < 4.5


def test_a_recursion_asks_a_few_expectations_a_pair_of_steps(monkeypatch):
    net, asked, expect = wl.limit(gru, weights(*"zrh")), [], gaussian.expect

    def counted(functions, *args, **kwargs):
        asked.append(functions)
        return expect(functions, *args, **kwargs)

    monkeypatch.setattr(gaussian, "expect", counted)
    counts = []
    for steps in (4, 8):
        x = jnp.ones((1, steps, 4))
        question, inputs = net._sampled.question(x, None, float, ("nngp",))
        question.plan(inputs)
        counts.append(len(asked))
        asked.clear()
    assert counts[1] < 4.5 * counts[0]


def test_the_error_falls_with_samples_and_is_reached_or_told():
    net, x = network("maximum")
    few, many = (net.estimate(x, samples=2**k) for k in (6, 10))
    assert many.error.max() < 0.5 * few.error.max()
    found = net.estimate(x, rtol=1e-3, samples=64)
    assert found.error.max() <= 1e-3 * np.abs(found.value).max()
    exact, y = network("mlp")
    with pytest.warns(UserWarning, match="would not help"):
        exact.estimate(y, rtol=1e-18)


def test_keys_give_other_samples_and_equal_keys_the_same():
    net, x = network("maximum")
    one, two, same = (
        net.estimate(x, samples=64, key=jax.random.key(k)).value for k in (1, 2, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, two)


def test_two_data_sets_and_repeated_inputs():
    net, x = network("maximum")
    again = np.concatenate([x, x[:1]])
    whole = net.nngp(again)
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole[0], whole[3], rtol=1e-6)
    across = net.nngp(x[:1], x)
    assert_close(across, net.estimate(x[:1], x))
    assert net.nngp(x, np.ones((2, 5, 4))).shape == (3, 2)


@pytest.mark.slow
def test_kernels_of_many_inputs_are_cut_into_blocks(monkeypatch):
    monkeypatch.setattr("widelimit._sampled._DIMENSION", 12)
    net, _ = network("maximum")
    x = np.random.default_rng(3).normal(size=(5, 3, 4))
    cut = net.nngp(x)
    two = net.nngp(x[:2], x)
    monkeypatch.undo()
    np.testing.assert_allclose(cut, cut.T)
    assert_close(cut, net.estimate(x))
    assert_close(two, net.estimate(x[:2], x))


@pytest.mark.slow
def test_the_tangent_kernel_of_a_maximum():
    net, x = network("maximum")
    found = net.estimate(x, get=("nngp", "ntk"))
    assert_close(net.ntk(x), found.ntk)
    check = net.check(x, widths=(64, 256), seeds=32, ntk=True, key=jax.random.key(2))
    assert check.passed, check


@pytest.mark.parametrize("name", slow_except(["maximum", "gru"], ["maximum"]))
def test_kernels_are_differentiable(name):
    net, x = network(name)
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        direction = np.random.default_rng(5).normal(size=x.shape)

        def total(step):
            return jnp.sum(jnp.sin(net.nngp(x + step * direction)))

        slope = jax.grad(total)(0.0)
        numerical = (total(1e-5) - total(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, numerical, rtol=1e-5)


def test_the_mean_of_a_maximum():
    def f(p, x):
        return jnp.mean(jnp.max(gate(p, "a", x, None), axis=1), axis=-1)

    x = SENTENCES
    net = wl.limit(f, weights("a"))
    mean = net.mean(x)
    sigma = np.einsum("nsi,nti->nst", x, x) * 1.2**2 + 0.3**2
    rng = np.random.default_rng(1)
    draws = np.stack(
        [rng.multivariate_normal(np.zeros(3), s, 200_000).max(1) for s in sigma]
    )
    error = draws.std(1) / np.sqrt(draws.shape[1])
    assert np.all(np.abs(mean - draws.mean(1)) < 4.5 * error)


def test_the_route_is_explained():
    net, x = network("maximum")
    explained = net.explain(x)
    (sampled,) = (r for r in explained.expectations if "samples" in r.name)
    # Two inputs with three words each.
    assert sampled.dimension == 6
    found = net.estimate(x[:2], samples=2**9)
    assert sampled.error == pytest.approx(found.error.max() / found.value.max(), rel=1)
    assert "QMC samples (numerical), 6 variables" in str(explained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 1000}, "power of two"),
        ({"samples": 2**30}, "power of two"),
        ({"samples": 2.0}, "power of two"),
        ({"rtol": 0.0}, "positive"),
        ({"route": "fast"}, "auto"),
        ({"get": "nnpg"}, "nngp"),
        ({"get": ()}, "names"),
    ],
)
def test_bad_arguments(arguments, message):
    net, x = network("maximum")
    with pytest.raises(wl.InputError, match=message):
        net.estimate(x, **arguments)


def test_nothing_to_draw_is_no_mistake():
    net = wl.limit(lambda p, x: x @ p["v"], {"v": wl.normal((4, 1))})
    found = net.estimate(VECTORS, route="samples", samples=64)
    np.testing.assert_allclose(found.value, VECTORS @ VECTORS.T, rtol=1e-12)


def test_samples_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("widelimit.asymptotics._draws.MAX_NUMBERS", 2**10)
    net, x = network("maximum")
    with pytest.raises(wl.UnsupportedError, match="fewer"):
        net.estimate(x, samples=2**18)


def test_the_root_of_a_singular_matrix():
    rng = np.random.default_rng(2)
    half = rng.normal(size=(5, 3))
    with jax.enable_x64(True):
        for matrix in (half @ half.T, np.zeros((3, 3)), np.eye(2), np.ones((4, 4))):
            root = semidefinite_root(jnp.asarray(matrix))
            np.testing.assert_allclose(root @ root.T, matrix, atol=1e-13)
            assert np.array_equal(root, np.tril(root))
        slope = jax.grad(lambda s: jnp.sum(semidefinite_root(s * jnp.ones((2, 2)))))
        assert np.isfinite(slope(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert semidefinite_root(jnp.zeros((0, 0))).shape == (0, 0)
