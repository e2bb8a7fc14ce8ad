"""The empirical tangent kernel, against the Jacobian of all inputs at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _errors
from widelimit.finite import _ntk

n = wl.width("n", base=8)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3))
Y = RNG.standard_normal((4, 3))
IMAGES = RNG.standard_normal((3, 4, 4, 2))
WORDS = RNG.standard_normal((3, 4, 3))
RATES = {"U": 1.0, "b": 2.0, "W": 0.5, "v": 1.0}


def mlp(p, x):
    h = jnp.tanh(x @ p["U"] + p["b"])
    return jnp.tanh(h @ p["W"]) @ p["v"]


def declared(**changed):
    shapes = {"U": (3, n), "b": (n,), "W": (n, n), "v": (n, 2)}
    options = {"fan_in": None, "parameterization": "ntk"} | changed
    return {
        k: wl.normal(
            shapes[k], std=0.7 if k == "b" else 1.3, lr=RATES[k],
            parameterization=options["parameterization"],
        )
        for k in shapes
    }  # fmt: skip


def rnn(p, x):
    """Tied weights in a loop that JAX does not unroll."""

    def step(h, token):
        return jnp.tanh(h @ p["W"] + token @ p["U"] + p["b"]), None

    start = jnp.zeros((x.shape[0], p["W"].shape[0]))
    h, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return h @ p["v"]


def unrolled(p, x):
    h = jnp.zeros((x.shape[0], p["W"].shape[0]))
    for token in jnp.swapaxes(x, 0, 1):
        h = jnp.tanh(h @ p["W"] + token @ p["U"] + p["b"])
    return h @ p["v"]


def two_way(p, x):
    """One matrix, used as it is, transposed, and by einsum inside a jit."""
    h = jnp.tanh(x @ p["U"] + p["b"])
    h = jnp.tanh(h @ p["W"].T / jnp.sqrt(n)) + jnp.tanh(2.0 * h @ p["W"])
    return jax.jit(lambda h: jnp.einsum("ba,ac,cd->bd", h, p["W"], p["v"]))(h)


def per_token(p, x):
    """An output for every token, and products over two axes."""
    return jnp.tanh(jnp.tanh(x @ p["U"] + p["b"]) @ p["W"]) @ p["v"]


def cnn(p, x):
    def conv(h, w):
        return jax.lax.conv_general_dilated(
            h, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    h = jax.nn.relu(conv(x, p["U"]) + p["b"])
    h = jax.nn.relu(conv(h, p["W"]))
    return jnp.mean(h, (1, 2)) @ p["v"]


FILTERS = {
    "U": wl.normal((3, 3, 2, n), parameterization="standard"),
    "b": wl.normal((n,), std=0.3, lr=2.0, parameterization="standard"),
    "W": wl.normal((3, 3, n, n), lr=0.5, parameterization="standard"),
    "v": wl.normal((n, 2), parameterization="standard"),
}

CASES = {
    "mlp": (mlp, declared(), X, Y),
    "standard": (mlp, declared(parameterization="standard"), X, Y),
    "naive": (mlp, declared(parameterization="standard-naive"), X, Y),
    "cnn": (cnn, FILTERS, IMAGES, IMAGES[:2] + 1),
    "rnn": (rnn, declared(), WORDS, WORDS[:, :2] - 1),
    "unrolled": (unrolled, declared(), WORDS, WORDS[:, :2] - 1),
    "two_way": (two_way, declared(), X, Y),
    "per_token": (per_token, declared(), WORDS, WORDS[:2, :3] - 1),
}


def oracle(f, theta, x1, x2, rates, axes=(-1,)):
    """The parts of all parameters, from the whole Jacobians."""
    jacobian = jax.jit(jax.jacobian(f))
    j1 = jacobian(theta, x1)
    j2 = j1 if x2 is x1 else jacobian(theta, x2)
    out1, out2 = (jax.eval_shape(f, theta, x).ndim for x in (x1, x2))
    parts = {}
    for name, rate in rates.items():
        a, b = np.asarray(j1[name]), np.asarray(j2[name])
        k = np.tensordot(a, b, (range(out1, a.ndim), range(out2, b.ndim)))
        if axes:
            k = np.trace(k, axis1=out1 - 1, axis2=out1 + out2 - 1) / f_out(f, theta, x1)
            k = np.moveaxis(k, out1 - 1, 1)
        else:
            k = np.moveaxis(k, out1, 1)
        parts[name] = rate * k
    return parts


def f_out(f, theta, x):
    return jax.eval_shape(f, theta, x).shape[-1]


@pytest.mark.parametrize(
    ("case", "axes"),
    [
        ("mlp", ()),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [(c, (-1,)) for c in CASES] + [("cnn", ()), ("rnn", ())]
        ),
    ],
)
def test_kernel_equals_the_contraction_of_whole_jacobians(case, axes):
    function, params, x1, x2 = CASES[case]
    f, theta = wl.limit(function, params, trace_axes=axes).at(n=12, key=KEY)
    expected = oracle(f, theta, x1, x2, RATES, axes)
    parts = f.ntk(theta, x1, x2, by_param=True)
    assert set(parts) == set(RATES)
    for name, part in parts.items():
        assert part.shape == expected[name].shape
        scale = 1e-12 * np.abs(expected[name]).max()
        np.testing.assert_allclose(part, expected[name], rtol=0, atol=scale)
    same = sum(oracle(f, theta, x1, x1, RATES, axes).values())
    scale = 1e-12 * np.abs(same).max()
    np.testing.assert_allclose(f.ntk(theta, x1), same, rtol=0, atol=scale)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 30_000])
@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("case", ["mlp", "per_token"])
def test_blocks_and_routes_do_not_change_the_kernel(case, pushed, memory, monkeypatch):
    function, params, x1, x2 = CASES[case]
    f, theta = wl.limit(function, params).at(n=12, key=KEY)
    whole = f.ntk(theta, x1, x2, by_param=True)
    half = f.ntk(theta, x1)
    choose = _ntk.contraction

    def contraction(*args):
        return 10**9 if pushed else choose(*args) // 10**9

    monkeypatch.setattr(_ntk, "contraction", contraction)
    parts = f.ntk(theta, x1, x2, by_param=True, memory=memory)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-11, atol=1e-13)
    same = f.ntk(theta, x1, memory=memory)
    np.testing.assert_allclose(same, half, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "case",
    [
        "mlp",
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ("cnn", "rnn", "two_way", "per_token")
        ),
    ],
)
def test_products_with_vectors_equal_the_full_kernel(case):
    function, params, x1, x2 = CASES[case]
    f, theta = wl.limit(function, params, trace_axes=()).at(n=12, key=KEY)
    k = f.ntk(theta, x1, x2)
    out1, out2 = f(theta, x1), f(theta, x2)
    vector = RNG.standard_normal(out2.shape)
    k = np.moveaxis(k, 1, out1.ndim).reshape(out1.size, out2.size)
    expected = (k @ vector.ravel()).reshape(out1.shape)
    found = f.ntk_vp(theta, x1, x2, vector)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    with pytest.raises(_errors.ShapeMismatchError, match="shape of the output"):
        f.ntk_vp(theta, x1, x2, vector[:1])


def batch_normed(p, x):
    h = x @ p["U"] + p["b"]
    h = jax.nn.relu((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3))
    return jnp.tanh(h @ p["W"]) @ p["v"]


def with_dropout(p, x):
    """Masks that one key makes for the whole batch."""
    h = jnp.tanh(x @ p["U"] + p["b"])
    keep = jax.random.bernoulli(jax.random.key(7), 0.5, h.shape)
    return jnp.tanh(jnp.where(keep, 2 * h, 0.0) @ p["W"]) @ p["v"]


@pytest.mark.slow
@pytest.mark.parametrize("memory", [2**29, 0])
@pytest.mark.parametrize("function", [batch_normed, with_dropout])
def test_inputs_that_go_together_are_differentiated_together(function, memory):
    f, theta = wl.limit(function, declared()).at(n=12, key=KEY)
    expected = sum(oracle(f, theta, X, Y, RATES).values())
    found = f.ntk(theta, X, Y, memory=memory)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    expected = sum(oracle(f, theta, X, X, RATES).values())
    found = f.ntk(theta, X, memory=memory)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_custom_derivatives_survive():
    """Of the function that is differentiated, and of the kernel by its inputs."""

    @jax.custom_jvp
    def rounded(h):
        return jnp.round(h)

    rounded.defjvps(lambda t, out, h: t)

    def straight_through(p, x):
        h = jnp.tanh(rounded(3 * x) @ p["U"] + p["b"])
        return rounded(2 * h @ p["W"]) @ p["v"]

    f, theta = wl.limit(straight_through, declared()).at(n=12, key=KEY)

    def contracted(x):
        j1, j2 = (jax.jacobian(f)(theta, a) for a in (x, Y))
        parts = [
            RATES[k] * jnp.einsum("io...,jo...->", j1[k], j2[k]) / 2 for k in RATES
        ]
        return sum(parts)

    expected, slope = jax.jit(jax.value_and_grad(contracted))(X)
    found, by_inputs = jax.value_and_grad(lambda x: f.ntk(theta, x, Y).sum())(X)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(by_inputs, slope, rtol=1e-10, atol=1e-12)


def test_what_is_not_trained_has_no_part():
    params = {
        "U": wl.normal((3, n), lr=0.0),
        "scale": wl.constant((n,), 1.5, lr=3.0),
        "table": jnp.asarray(RNG.standard_normal((5, 3))),
        "depth": 2,
        "v": wl.normal((n, 1)),
    }

    def embedded(p, x):
        h = p["table"][x] @ p["U"]
        for _ in range(p["depth"]):
            h = p["scale"] * jnp.tanh(h)
        return h @ p["v"] / jnp.sqrt(n)

    f, theta = wl.limit(embedded, params).at(n=9, key=KEY)
    x = jnp.array([0, 3, 4])
    parts = f.ntk(theta, x, by_param=True)
    rates = {"scale": 3.0, "v": 1.0}
    assert f.rates == rates
    assert set(parts) == set(rates)

    def by(some, x):
        return f({**theta, **some}, x)

    expected = oracle(by, {k: theta[k] for k in rates}, x, x, rates)
    for name in rates:
        np.testing.assert_allclose(parts[name], expected[name], rtol=1e-12)
    frozen = {"U": wl.normal((3, n), lr=0), "v": wl.normal((n, 1), lr=0.0)}
    f, theta = wl.limit(lambda p, x: x @ p["U"] @ p["v"], frozen).at(n=4, key=KEY)
    with pytest.raises(_errors.InputError, match="No parameter is trained"):
        f.ntk(theta, X)


@pytest.mark.slow
def test_single_precision_and_scalar_outputs():
    def scalar(p, x):
        return mlp(p, x)[:, 0]

    f, theta = wl.limit(scalar, declared()).at(n=64, key=KEY)
    exact = f.ntk(theta, X, Y)
    assert exact.shape == (5, 4)
    low = jax.tree.map(lambda a: a.astype(jnp.float32), theta)
    found = f.ntk(low, X.astype(np.float32), Y.astype(np.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_errors_say_what_to_do():
    f, theta = wl.limit(mlp, declared()).at(n=12, key=KEY)
    with pytest.raises(_errors.InputError, match="structure of the parameters"):
        f.ntk({"U": theta["U"]}, X)
    with pytest.raises(_errors.ShapeMismatchError, match="at least one input"):
        f.ntk(theta, X[:0])
    twice = {"a": {"b": wl.normal((3, n))}, "a_b": wl.normal((n, 1))}
    g, drawn = wl.limit(lambda p, x: x @ p["a"]["b"] @ p["a_b"], twice).at(n=2, key=KEY)
    with pytest.raises(_errors.InputError, match="Two parameters are called a_b"):
        g.ntk(drawn, X)
    gram = {"U": wl.normal((3, n))}
    h, drawn = wl.limit(lambda p, x: x @ p["U"] @ p["U"].T @ x.T, gram).at(n=2, key=KEY)
    with pytest.raises(_errors.ShapeMismatchError, match="5 entries for `x1` and 4"):
        h.ntk(drawn, X, Y)
