"""Attention with many heads: logits q.k / sqrt(d), which are random in the limit."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_except

import widelimit as wl
from widelimit import NoLimitError, UnsupportedError
from widelimit.program import Dim, parse, simulate, to_text

n = wl.width("n")
heads = wl.width("heads", ratio=0.25)
d = wl.width("d", ratio=0.5)
STEPS = 3
X = np.random.default_rng(0).normal(size=(2, STEPS, 3))
PARAMS = {
    "E": wl.normal((3, n)),
    **{name: wl.normal((n, heads, d)) for name in ("Q", "K", "V", "Q2", "K2", "V2")},
    **{name: wl.normal((n, d)) for name in ("K1", "V1")},
    **{name: wl.normal((heads, d, n), std=1.2) for name in ("O", "O2")},
    "v": wl.normal((n, 1)),
}


def embedded(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["E"])


def projected(h: Any, w: Any) -> Any:
    """(inputs, positions, heads, channels)."""
    return jnp.einsum("npc,chd->nphd", h, w) / jnp.sqrt(h.shape[-1])


def joined(u: Any, w: Any) -> Any:
    return jnp.einsum("nphd,hdo->npo", u, w) / jnp.sqrt(u.shape[2] * u.shape[3])


def readout(p: Any, y: Any) -> Any:
    y = jax.nn.relu(wl.tap("y", y)).mean(1)
    return y @ p["v"] / jnp.sqrt(y.shape[-1])


def attended(q: Any, k: Any, v: Any, weighting: Callable[[Any], Any]) -> Any:
    logits = jnp.einsum("nphd,nqhd->nhpq", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("nhpq,nqhd->nphd", weighting(logits), v)


def attention(weighting: Callable[[Any], Any], keys: str = "QKV") -> Any:
    def f(p: Any, x: Any) -> Any:
        h = embedded(p, x)
        q, k, v = (projected(h, p[name]) for name in keys)
        return readout(p, joined(attended(q, k, v, weighting), p["O"]))

    return f


def causal(logits: Any) -> Any:
    mask = jnp.tril(jnp.ones((STEPS, STEPS), bool))
    return jax.nn.softmax(jnp.where(mask, logits, -1e9))


def sums(p: Any, x: Any) -> Any:
    """The same without `einsum`: products, repeated and summed."""
    h = embedded(p, x)
    q, k, v = (projected(h, p[name]) for name in "QKV")
    logits = (q[:, :, None] * k[:, None]).sum(-1) / jnp.sqrt(q.shape[-1])
    return readout(p, joined((jnp.abs(logits)[..., None] * v[:, None]).sum(2), p["O"]))


def heads_first(p: Any, x: Any) -> Any:
    """The same with other orders of axes."""
    h = embedded(p, x)
    q, k, v = (
        jnp.einsum("npc,hcd->hnpd", h, p[name].swapaxes(0, 1)) / jnp.sqrt(h.shape[-1])
        for name in "QKV"
    )
    logits = q @ k.mT / jnp.sqrt(q.shape[-1])
    u = (jnp.abs(logits) @ v).transpose(1, 2, 0, 3)
    return readout(p, joined(u, p["O"]))


def rotated(p: Any, x: Any) -> Any:
    """Rotary embeddings: the channels of a head in two halves."""

    def turn(h: Any) -> Any:
        a, b = jnp.split(h, 2, -1)
        t = 0.7 * jnp.arange(STEPS)[:, None, None]
        cos, sin = jnp.cos(t), jnp.sin(t)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    h = embedded(p, x)
    q, k, v = (projected(h, p[name]) for name in "QKV")
    return readout(p, joined(attended(turn(q), turn(k), v, jax.nn.relu), p["O"]))


def multi_query(p: Any, x: Any) -> Any:
    """One set of keys and values for all heads."""
    h = embedded(p, x)
    q = projected(h, p["Q"])
    k, v = (h @ p[name] / jnp.sqrt(h.shape[-1]) for name in ("K1", "V1"))
    logits = jnp.einsum("nphd,nqd->nhpq", q, k) / jnp.sqrt(q.shape[-1])
    return readout(p, joined(jnp.einsum("nhpq,nqd->nphd", abs(logits), v), p["O"]))


def two_layers(p: Any, x: Any) -> Any:
    h = embedded(p, x)
    for names, out in (("QKV", "O"), (("Q2", "K2", "V2"), "O2")):
        q, k, v = (projected(h, p[name]) for name in names)
        u = attended(q, k, v, jnp.tanh)
        h = jax.nn.relu(h + joined(u, p[out]))
    return readout(p, h)


def deterministic(p: Any, x: Any) -> Any:
    """Logits that are means over the channels of a head, with many heads."""
    h = embedded(p, x)
    k, v = (projected(h, p[name]) for name in "KV")
    logits = jnp.einsum("nphd,nqhd->nhpq", k, k) / k.shape[-1]
    u = jnp.einsum("nhpq,nqhd->nphd", jax.nn.softmax(logits), v)
    return readout(p, joined(u, p["O"]))


def gated(p: Any, x: Any) -> Any:
    """Nonlinear queries and values."""
    h = embedded(p, x)
    q, k, v = (projected(h, p[name]) for name in "QKV")
    u = attended(jax.nn.relu(q), k, jnp.tanh(v) + 0.5, jax.nn.relu)
    return readout(p, joined(u, p["O"]))


NETWORKS = {
    "softmax": attention(jax.nn.softmax),
    "causal": attention(causal),
    "identity": attention(lambda x: x),
    "keys are values": attention(jnp.tanh, "QKK"),
    "sums": sums,
    "rotated": rotated,
    "multi-query": multi_query,
    "two layers": two_layers,
    "deterministic": deterministic,
    "gated": gated,
}


WITH_NTK = ("softmax", "rotated", "multi-query", "deterministic", "gated")


@pytest.mark.parametrize("name", slow_except(NETWORKS, ()))
def test_real_networks_approach_the_limit(name: str) -> None:
    net = wl.limit(NETWORKS[name], PARAMS)
    found = net.check(X, widths=(32, 96), seeds=24, ntk=name in WITH_NTK)
    assert found.passed, found.table()


@pytest.mark.parametrize("name", slow_except(("rotated", "multi-query"), ()))
def test_gradients_at_taps_are_those_of_real_networks(name: str) -> None:
    net = wl.limit(NETWORKS[name], PARAMS)
    found = net.check(X, widths=(32, 96), seeds=24, gradients=True)
    assert found.passed, found.table()


def test_all_spellings_are_one_network() -> None:
    spelled = attention(jnp.abs)
    expected = wl.limit(spelled, PARAMS).kernels(X)
    for f in (sums, heads_first):
        found = wl.limit(f, PARAMS).kernels(X)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


def test_queries_of_all_heads_meet_keys_of_one_as_their_own() -> None:
    """Given the keys, the logits of different heads are independent."""
    one, many = (wl.limit(f, PARAMS) for f in (multi_query, attention(jnp.abs)))
    np.testing.assert_allclose(one.nngp(X), many.nngp(X), rtol=1e-12)


def relu_moment(k: np.ndarray) -> np.ndarray:
    """E[relu(u) relu(v)] for (u, v) ~ N(0, k), all pairs (Cho and Saul 2009)."""
    root = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    c = np.clip(k / root, -1, 1)
    return root * (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)


def hron(weights: Callable[[np.ndarray], np.ndarray], count: int) -> Any:
    """The kernel of `attention` by theorem 3 of Hron et al. (2020) and its error.

    Logits are drawn from N(0, K x K), K the covariance of what they are made of.
    """
    flat = X.reshape(-1, 3)
    k = relu_moment(flat @ flat.T)
    size, rng = len(flat), np.random.default_rng(1)
    root = np.linalg.cholesky(k)
    found = []
    for _ in range(count):
        g = root @ rng.normal(size=(256, size, size)) @ root.T
        a = np.zeros_like(g)
        for i in range(len(X)):
            at = slice(i * STEPS, (i + 1) * STEPS)
            a[:, at, at] = weights(g[:, at, at])
        y = 1.44 * np.mean(a @ k @ a.mT, 0)
        pooled = relu_moment(y).reshape(len(X), STEPS, len(X), STEPS)
        found.append(pooled.mean((1, 3)))
    return np.mean(found, 0), np.std(found, 0, ddof=1) / count**0.5


@pytest.mark.parametrize("weights", [jax.nn.softmax, jnp.abs], ids=["softmax", "abs"])
def test_the_kernel_is_that_of_hron_et_al(weights: Any) -> None:
    # The mean of 256 draws is nearly Gaussian around the kernel before the last relu,
    # whose curvature there is a bias far below the error.
    expected, error = hron(lambda g: np.asarray(weights(g)), 400)
    found = wl.limit(attention(weights), PARAMS).estimate(X)
    both = np.hypot(error, found.stderr)
    assert np.all(abs(found.value - expected) < 4 * both + 1e-3 * expected)
    assert np.all(both < 1e-2 * expected)


def test_a_program_with_heads_is_simulated_and_printed() -> None:
    net = wl.limit(attention(jnp.tanh), PARAMS)
    program = net.program(X)
    assert parse(to_text(program)) == program
    widths = {"n": 64, "heads": 24, "d": 16}
    drawn = simulate(program, widths, jax.random.key(0), 64, {"x": X[:1]})
    values = np.asarray(drawn[dict(program.taps)["y"]])
    second = np.mean(values**2, -1).reshape(64, STEPS)
    error = np.std(second, 0, ddof=1) / 8
    statistics = net.statistics(X[:1])["y"]
    expected = np.diagonal(np.asarray(statistics.forward)[0, 0])
    assert np.all(abs(second.mean(0) - expected) < 4 * error)


def transposed(weighting: Any, names: str, out: str) -> Any:
    def f(p: Any, x: Any) -> Any:
        h = embedded(p, x)
        q, k, v = (projected(h, p[name]) for name in names)
        u = attended(q, k, v, weighting)
        y = jnp.einsum("nphd,chd->npc", u, p[out])
        return readout(p, y / jnp.sqrt(u.shape[2] * u.shape[3]))

    return f


def one_matrix(p: Any, x: Any) -> Any:
    q = jnp.tanh(projected(embedded(p, x), p["Q"]))
    y = jnp.einsum("nphd,chd->npc", q, p["Q"]) / jnp.sqrt(q.shape[2] * q.shape[3])
    return readout(p, y)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        # The mean of the weights is zero, and yet the kernels of real networks differ.
        (transposed(jnp.tanh, "QKV", "V"), "differs from head to head"),
        (transposed(jnp.tanh, "QKK", "K"), "differs from head to head"),
        (transposed(jnp.tanh, "QKK", "Q"), "A matrix and its transpose"),
        (one_matrix, "grows with the number of heads"),
    ],
)
def test_the_transposes_of_heads_are_refused(f: Any, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        wl.limit(f, PARAMS).nngp(X)


def returned(p: Any, x: Any) -> Any:
    return projected(embedded(p, x), p["Q"])


def tapped(p: Any, x: Any) -> Any:
    return readout(p, joined(wl.tap("q", projected(embedded(p, x), p["Q"])), p["O"]))


def mixed_heads(p: Any, x: Any) -> Any:
    v = projected(embedded(p, x), p["V"])
    mixed = v + v.sum(2, keepdims=True) / jnp.sqrt(v.shape[2])
    return readout(p, joined(mixed, p["O"]))


def of_weights(p: Any, x: Any) -> Any:
    """Logits of a second round within the same heads."""
    h = embedded(p, x)
    q, k, v = (projected(h, p[name]) for name in "QKV")
    u = attended(q, k, v, jnp.tanh)
    return readout(p, joined(attended(u, k, v, jnp.tanh), p["O"]))


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (returned, "read them out"),
        (tapped, "tap of vectors over both heads and channels"),
        (mixed_heads, "over the axis of heads"),
        (of_weights, "is not Gaussian"),
    ],
)
def test_what_is_not_covered_is_told(f: Any, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        wl.limit(f, PARAMS).nngp(X)


def test_heads_and_channels_are_two_widths() -> None:
    same = {name: wl.normal((n, n, n)) for name in "QKVO"}
    with pytest.raises(UnsupportedError, match="a width of its own"):
        wl.limit(attention(jnp.abs), PARAMS | same).nngp(X)


def test_few_heads_have_random_logits() -> None:
    few = {name: wl.normal((n, 4, d)) for name in "QKV"}
    f, out = attention(jax.nn.softmax), {"O": wl.normal((4, d, n))}
    net = wl.limit(f, PARAMS | few | out)
    with pytest.raises(NoLimitError, match="where the number of heads is a width"):
        net.nngp(X)


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=2)
terms = st.dictionaries(
    names.map(lambda x: "*".join(sorted(x))),
    st.fractions(Fraction(1, 9), 9),
    min_size=1,
    max_size=3,
)
dims = terms.map(lambda t: Dim(tuple(sorted(t.items()))))
SIZES = {"a": 3, "b": 5.5, "c": 7}


@given(dims, dims, st.sampled_from("abc"))
def test_dimensions_multiply_as_numbers(x: Dim, y: Dim, name: str) -> None:
    assert (x * y).ratio(SIZES) == pytest.approx(x.ratio(SIZES) * y.ratio(SIZES))
    assert (x * y).widths == x.widths | y.widths
    one = Dim.of(name)
    assert (x * one).over(one) == x or len(x.terms) > 1
    rest = (x * y).over(y)
    assert rest is None or rest * y == x * y


def test_only_a_factor_divides_a_dimension() -> None:
    a, b, c = map(Dim.of, "abc")
    assert (a * b).over(a) == b
    assert [x.over(y) for x, y in itertools.permutations((a, b, c), 2)] == [None] * 6
    assert (a * b).over(c) is None
    assert a.over(a) is None
