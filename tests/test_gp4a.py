"""Kernels of a recurrent network and of transformers, on GloVe vectors and on pixels.

`data/gp4a.npz` holds the word vectors of "The brown fox jumps over the dog" and "The
quick brown fox jumps over the lazy dog" and, over all 16 words, the kernels of Yang
(2019), "Tensor Programs I" (arXiv:1910.12478), recomputed in closed form (error 1e-15)
with the conventions below. The sentences have 7 and 9 words: the inputs of a kernel may
differ in length. Of Yang (2020), "Tensor Programs II" (arXiv:2006.14548), it holds two
tangent kernels with the parts of their parameters, and two sequences of 5 tokens. Of
both it holds kernels of networks with batch normalisation, by Gauss-Laguerre quadrature
(error 1e-10, tangent kernel 4e-9), on two batches of 32 images, given by their Gram
matrix, and on 12 inputs of 13 numbers in batches of 7 and 5. The kernel of a GRU is by
quasi-Monte Carlo, with its standard errors (2e-6) beside it.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.scipy.special import erf

import widelimit as wl

DATA = pathlib.Path(__file__).parent / "data" / "gp4a.npz"
n = wl.width("n")
Params = dict[str, Any]


@functools.cache
def array(key: str) -> np.ndarray:
    with np.load(DATA) as data:
        return data[key]


def sentences() -> tuple[Array, Array]:
    """Each sentence as a batch of one: shapes (1, 7, 300) and (1, 9, 300)."""
    vectors = jnp.asarray(array("glove_vecs"))
    return vectors[None, :7], vectors[None, 7:]


def kernel_of_all_words(f: Callable[[Params, Array], Array], params: Params) -> Array:
    """The 16 by 16 kernel, assembled from the blocks of pairs of sentences."""
    first, second = sentences()
    net = wl.limit(f, params)
    across = net.nngp(first, second)
    assert across.shape == (1, 1, 7, 9)
    rows = [
        [net.nngp(first)[0, 0], across[0, 0]],
        [net.nngp(second, first)[0, 0], net.nngp(second)[0, 0]],
    ]
    return jnp.block(rows)


def assert_close(kernel: Array, key: str) -> None:
    expected = array(key)
    error = np.abs(np.asarray(kernel) - expected).max() / np.abs(expected).max()
    assert error < 1e-12, f"largest error {error:.1e} of the largest entry"


# ------------------------------------------------------------ a gated recurrent network
GRU = {f"{kind}{gate}": wl.normal(shape) for gate in "zrc" for kind, shape in (
    ("U", (300, n)), ("W", (n, n)), ("b", (n,)),
)} | {"readout": wl.normal((n, 1))}  # fmt: skip


def gru(p: Params, x: Array) -> Array:
    """Gates (1 + erf a) / 2, h <- (1 - z) h + z erf(c), read out at every word."""

    def gate(name: str, word: Array, state: Array) -> Array:
        recurrent = state @ p[f"W{name}"] / jnp.sqrt(state.shape[-1])
        return recurrent + word @ p[f"U{name}"] / math.sqrt(300) + p[f"b{name}"]

    h, outputs = jnp.zeros((x.shape[0], p["Wz"].shape[0])), []
    for t in range(x.shape[1]):
        z, r = ((1 + erf(gate(name, x[:, t], h))) / 2 for name in "zr")
        h = (1 - z) * h + z * erf(gate("c", x[:, t], h * r))
        outputs.append(h @ p["readout"] / jnp.sqrt(h.shape[-1]))
    return jnp.stack(outputs, 1)


@pytest.mark.slow
def test_gru() -> None:
    first, second = sentences()
    words = 4
    net = wl.limit(gru, GRU)
    found = net.estimate(first[:, :words], second[:, :words], samples=2**12)
    at = np.s_[:words, 7 : 7 + words]
    spread = np.hypot(found.stderr[0, 0], array("gru_nngp_glove_se")[at])
    assert np.all(np.abs(found.value[0, 0] - array("gru_nngp_glove")[at]) < 4 * spread)
    assert found.stderr.max() < 3e-5
    assert "samples" in found.route


# -------------------------------------------------------------- the recurrent network
RNN = {
    "W": wl.normal((n, n)),
    "U": wl.normal((300, n)),
    "readout": wl.normal((n, 1)),
}


def rnn(p: Params, x: Array) -> Array:
    """h_t = W s_{t-1} + U x_t, s_t = erf(h_t), one output at each word."""

    def step(state: Array, word: Array) -> tuple[Array, Array]:
        recurrent = state @ p["W"] / jnp.sqrt(state.shape[-1])
        state = erf(recurrent + word @ p["U"] / math.sqrt(300))
        return state, state

    start = jnp.zeros((x.shape[0], p["W"].shape[0]))
    _, states = lax.scan(step, start, x.swapaxes(0, 1))
    return states.swapaxes(0, 1) @ p["readout"] / jnp.sqrt(states.shape[-1])


@pytest.mark.slow
def test_rnn() -> None:
    assert_close(kernel_of_all_words(rnn, RNN), "rnn_nngp_glove_erf")


@pytest.mark.slow
def test_rnn_without_its_readout_in_time_is_the_last_word() -> None:
    def last(p: Params, x: Array) -> Array:
        return rnn(p, x)[:, -1]

    first, second = sentences()
    kernel = wl.limit(last, RNN).nngp(first, second)
    expected = array("rnn_nngp_glove_erf")[6, 15]
    np.testing.assert_allclose(kernel, [[expected]], rtol=1e-12)


# --------------------------------------------------------------------- transformers
def transformer_parameters(depth: int) -> Params:
    """Variances 2 for U, 3 for W1 and W2, 0.1 for the biases."""
    layers = [
        {
            "U": wl.normal((n if layer else 300, n), std=math.sqrt(2)),
            "W1": wl.normal((n, n), std=math.sqrt(3)),
            "W2": wl.normal((n, n), std=math.sqrt(3)),
            "b1": wl.normal((n,), std=math.sqrt(0.1)),
            "b2": wl.normal((n,), std=math.sqrt(0.1)),
        }
        for layer in range(depth)
    ]
    return {"layers": layers, "readout": wl.normal((n, 1))}


def layer_norm(h: Array) -> Array:
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(h.var(axis=-1, keepdims=True))


def linear(x: Array, weight: Array) -> Array:
    return x @ weight / jnp.sqrt(x.shape[-1])


def transformer(causal: bool, p: Params, x: Array) -> Array:
    words = x.shape[1]
    for layer in p["layers"]:
        k = linear(x, layer["U"])
        logits = jnp.einsum("nid,njd->nij", k, k) / k.shape[-1]
        if causal:
            mask = jnp.tril(jnp.ones((words, words), dtype=bool))
            logits = jnp.where(mask, logits, -jnp.inf)
        z = layer_norm(k + jax.nn.softmax(logits, axis=-1) @ k)
        hidden = jax.nn.relu(linear(z, layer["W1"]) + layer["b1"])
        x = layer_norm(linear(hidden, layer["W2"]) + layer["b2"] + z)
    return linear(x, p["readout"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "causal", "key"),
    [
        (1, True, "transformer_nngp_glove_d1"),
        (2, False, "transformer_nngp_glove_d2_unmasked"),
    ],
)
def test_transformer(depth: int, causal: bool, key: str) -> None:
    f = functools.partial(transformer, causal)
    assert_close(kernel_of_all_words(f, transformer_parameters(depth)), key)


# ------------------------------------------------------------------ tangent kernels
def assert_tangent_kernel(
    f: Callable[[Params, Array], Array], params: Params, key: str
) -> None:
    net, x = wl.limit(f, params), jnp.asarray(array("pix_tokens"))
    assert_close(net.ntk(x), key)
    for name, part in net.ntk(x, by_param=True).items():
        assert_close(part, f"{key}_part_{name}")


@pytest.mark.slow
def test_tangent_kernel_of_an_averaged_rnn() -> None:
    params = {
        "W": wl.normal((n, n)),
        "U": wl.normal((3, n), std=math.sqrt(2)),
        "b": wl.normal((n,), std=math.sqrt(0.2)),
        "v": wl.normal((n, 1)),
    }

    def f(p: Params, x: Array) -> Array:
        def step(state: Array, token: Array) -> tuple[Array, Array]:
            recurrent = linear(state, p["W"]) + linear(token, p["U"]) + p["b"]
            return erf(recurrent), erf(recurrent)

        # At the first token there is no recurrent term.
        start = jnp.zeros((x.shape[0], p["W"].shape[0]))
        _, states = lax.scan(step, start, x.swapaxes(0, 1))
        return linear(states.mean(0), p["v"])

    assert_tangent_kernel(f, params, "rnn_ntk_pix_avgpool")


@pytest.mark.slow
def test_tangent_kernel_of_a_transformer() -> None:
    params = {
        "U": wl.normal((3, n)),
        "W1": wl.normal((n, n)),
        "W2": wl.normal((n, n)),
        "v": wl.normal((n, 1)),
    }

    def f(p: Params, x: Array) -> Array:
        k = linear(x, p["U"])
        logits = jnp.einsum("nid,njd->nij", k, k) / k.shape[-1]
        z = layer_norm(k + jax.nn.softmax(logits, axis=-1) @ k)
        hidden = jax.nn.relu(linear(z, p["W1"]))
        return linear(layer_norm(linear(hidden, p["W2"]) + z).mean(1), p["v"])

    assert_tangent_kernel(f, params, "transformer_ntk_pix_d1_vw1_vu1")


# ---------------------------------------------------------------- batch normalisation
NORMALISED = {"W": wl.normal((13, n)), "v": wl.normal((n, 1))}


def batch_normalised(p: Params, x: Array) -> Array:
    """One hidden layer, every neuron normalised over the batch, without epsilon."""
    h = linear(x, p["W"])
    centred = h - h.mean(axis=0)
    return linear(jax.nn.relu(centred / jnp.sqrt(h.var(axis=0))), p["v"])


def assert_kernel_of_batches(
    kernel: Callable[..., Array], key: str, tol: float
) -> None:
    first, second = jnp.split(jnp.asarray(array("bn12_inputs")), [7])
    expected = array(key)
    np.testing.assert_allclose(kernel(first), expected[:7, :7], rtol=0, atol=tol)
    np.testing.assert_allclose(kernel(second), expected[7:, 7:], rtol=0, atol=tol)
    across = kernel(first, second)
    np.testing.assert_allclose(across, expected[:7, 7:], rtol=0, atol=tol)


def test_batch_normalisation() -> None:
    net = wl.limit(batch_normalised, NORMALISED)
    assert_kernel_of_batches(net.nngp, "bn_nngp_bn12_d1", 1e-9)


@pytest.mark.slow
def test_tangent_kernel_of_batch_normalisation() -> None:
    net = wl.limit(batch_normalised, NORMALISED)
    assert_kernel_of_batches(net.ntk, "bn_ntk_bn12_d1", 1e-8)


@pytest.mark.slow
def test_batch_normalisation_of_two_batches_of_images() -> None:
    gram, expected = array("bn64_gram"), array("bn_nngp_cifar64_d1")
    x = np.linalg.cholesky(gram) * math.sqrt(64)
    net = wl.limit(batch_normalised, NORMALISED | {"W": wl.normal((64, n))})
    first, second = jnp.asarray(x[:32]), jnp.asarray(x[32:])
    np.testing.assert_allclose(net.nngp(first), expected[:32, :32], rtol=0, atol=1e-9)
    across = net.nngp(first, second)
    np.testing.assert_allclose(across, expected[:32, 32:], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_gradient_of_a_kernel_with_batch_normalisation() -> None:
    net = wl.limit(batch_normalised, NORMALISED)
    x = jnp.asarray(array("bn12_inputs")[:4])
    rng = np.random.default_rng(0)
    direction, weights = rng.standard_normal((4, 13)), rng.standard_normal((4, 4))

    def value(t: Array | float) -> Array:
        return jnp.sum(weights * net.nngp(x + t * direction))

    h = 1e-3
    rise = (value(h) - value(-h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(value)(0.0), rise, rtol=1e-5)


def test_a_batch_of_one_has_nothing_to_divide_by() -> None:
    net = wl.limit(batch_normalised, NORMALISED)
    with pytest.raises(wl.NoLimitError, match="batch of one"):
        net.nngp(jnp.asarray(array("bn12_inputs")[:1]))
