"""Whether the inputs of a batch interact is found out, not declared."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_networks import TABLE
from coverage_table import SEQUENCE, TOKENS, apply, n, readout

import widelimit as wl
from widelimit import InputError

INTERACTING = ("inputs_of_a_batch_interact", "batch_normalisation")
INDEPENDENT = (
    "recurrent_network",
    "layer_normalisation",
    "embedding",
    "causal_attention_with_heads",
    "convolution_in_one_dimension",
    "functions_of_the_data",
    "dropout",
    "dropout_shared_by_positions",
)
FLAT = np.random.default_rng(1).normal(size=(3, 4))
PARAMS = {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}
Function = Callable[[Any, Any], Any]


def is_coupled(f: Function, x: Any, params: Any = PARAMS) -> bool:
    return wl.limit(f, params).coupled(x)


def hidden(p: Any, x: Any) -> Any:
    return jax.nn.relu(apply(p["U"], x))


def batch_mean(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    return readout(p, h - h.mean(axis=0))


def data_mean(p: Any, x: Any) -> Any:
    return readout(p, hidden(p, x - x.mean(axis=0)))


def batch_norm(p: Any, x: Any) -> Any:
    h = apply(p["W"], hidden(p, x))
    return readout(p, (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-3))


def attention_over_the_batch(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    weights = jax.nn.softmax(h @ h.T / h.shape[-1])
    return readout(p, jnp.tanh(apply(p["W"], weights @ h)))


def first_of_the_batch(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    return readout(p, jnp.tanh(h + h[:1]))


def last_of_the_batch(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    return readout(p, jnp.tanh(h + h[-1:]))


def largest_of_the_batch(p: Any, x: Any) -> Any:
    return readout(p, hidden(p, x / jnp.abs(x).max()))


def next_in_the_batch(p: Any, x: Any) -> Any:
    return readout(p, hidden(p, jnp.roll(x, 1, axis=0)) + hidden(p, x))


def mean_after_dropout(p: Any, x: Any) -> Any:
    return batch_mean(p, x) + dropout(p, x)


def dropout(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    kept = jax.random.bernoulli(jax.random.key(1), 0.5, h.shape)
    return readout(p, jnp.where(kept, 2 * h, 0.0))


def noise_shared_by_the_batch(p: Any, x: Any) -> Any:
    h = hidden(p, x)
    return readout(p, h * jax.random.uniform(jax.random.key(1), h.shape[1:]))


def dense(p: Any, x: Any) -> Any:
    return readout(p, jnp.tanh(apply(p["W"], hidden(p, x))))


def written_for_one_input(p: Any, x: Any) -> Any:
    return jax.vmap(lambda row: dense(p, row[None])[0])(x)


@pytest.mark.parametrize(
    "f",
    [
        batch_mean,
        data_mean,
        batch_norm,
        attention_over_the_batch,
        first_of_the_batch,
        last_of_the_batch,
        largest_of_the_batch,
        next_in_the_batch,
        mean_after_dropout,
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_inputs_that_interact_are_found(f: Function, rows: int) -> None:
    """Also from one input, which shows nothing itself."""
    assert is_coupled(f, FLAT[:rows])


@pytest.mark.parametrize(
    "f", [dense, written_for_one_input, dropout, noise_shared_by_the_batch]
)
@pytest.mark.parametrize("rows", [1, 3])
def test_independent_inputs_are_left_alone(f: Function, rows: int) -> None:
    assert not is_coupled(f, FLAT[:rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_convolution_wants_parameters_and_data_alike(dtype: Any) -> None:
    def f(p: Any, x: Any) -> Any:
        h = jax.lax.conv(x, p["U"], (1,), "SAME") / math.sqrt(2 * 3)
        return readout(p, jnp.sin(h - h.mean(0)).mean(2))

    params = {"U": wl.normal((n, 2, 3)), "v": wl.normal((n, 1))}
    assert is_coupled(f, SEQUENCE[:, :2].astype(dtype), params)


@pytest.mark.parametrize("mixing", [False, True])
def test_parameters_may_hold_keys_and_numbers(mixing: bool) -> None:
    def f(p: Any, x: Any) -> Any:
        h = jnp.tanh(p["gain"] * apply(p["U"], x))
        h = h * jax.random.normal(p["key"], h.shape[1:])
        return readout(p, h - h.mean(0) if mixing else h)

    params = {**PARAMS, "key": jax.random.key(0), "gain": 2.0}
    assert is_coupled(f, FLAT, params) == mixing


def in_groups(count: int) -> Function:
    def f(p: Any, x: Any) -> Any:
        h = hidden(p, x).reshape(len(x), count, -1)
        return readout(p, jnp.sin(h - h.mean(0)).reshape(len(x), -1))

    return f


def test_a_number_of_groups_that_few_widths_have() -> None:
    assert is_coupled(in_groups(7), FLAT)
    with pytest.raises(InputError, match="5040, and it fails at all of them"):
        is_coupled(in_groups(576), FLAT)


@pytest.mark.parametrize("name", INTERACTING)
def test_coverage_networks_that_interact(name: str) -> None:
    net = TABLE[name]
    assert is_coupled(net.f, net.x, net.params)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_coverage_networks_that_do_not(name: str) -> None:
    net = TABLE[name]
    assert not is_coupled(net.f, net.x, net.params)


# -------------------------------------------------------------------- integer tokens
EMBEDDING = {"E": wl.normal((4, n)), "v": wl.normal((n, 1))}


def bag_of_words(p: Any, x: Any) -> Any:
    return readout(p, jnp.tanh(p["E"][x].sum(axis=1)))


def bag_without_the_common_part(p: Any, x: Any) -> Any:
    h = p["E"][x].sum(axis=1)
    return readout(p, jnp.tanh(h - h.mean(axis=0)))


@pytest.mark.parametrize(
    "x", [TOKENS, TOKENS[:1], np.zeros((2, 4), int), np.ones((1, 4), int)]
)
def test_integer_tokens(x: np.ndarray) -> None:
    """Also where all the given inputs are equal, so that others have to be made."""
    assert not is_coupled(bag_of_words, x, EMBEDDING)
    assert is_coupled(bag_without_the_common_part, x, EMBEDDING)


def test_pytree_of_inputs_and_booleans() -> None:
    def masked_mean(p: Any, x: Any) -> Any:
        h = hidden(p, x["data"]) * x["mask"][:, None]
        return readout(p, h - h.sum(axis=0))

    def masked(p: Any, x: Any) -> Any:
        return readout(p, hidden(p, x["data"]) * x["mask"][:, None])

    x = {"data": FLAT, "mask": np.array([True, False, True])}
    assert is_coupled(masked_mean, x)
    assert not is_coupled(masked, x)


def test_inputs_seen_while_traced() -> None:
    """Under jit the numbers are not known; the answer is the same."""

    def kernel(f: Function) -> Any:
        return jax.jit(wl.limit(f, PARAMS).nngp)(FLAT[:2])

    expected = wl.limit(batch_mean, PARAMS).nngp(FLAT[:2])
    np.testing.assert_allclose(kernel(batch_mean), expected, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------- what depends on the answer
def test_kernel_of_interacting_inputs_is_that_of_the_batch() -> None:
    """Centred linear features: the kernel is that of the centred data."""

    def f(p: Any, x: Any) -> Any:
        h = apply(p["U"], x)
        return readout(p, h - h.mean(axis=0))

    centred = FLAT - FLAT.mean(axis=0)
    kernel = wl.limit(f, PARAMS).nngp(FLAT)
    np.testing.assert_allclose(kernel, centred @ centred.T / 4, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_kernel_of_independent_inputs_is_one_of_pairs() -> None:
    net = wl.limit(dense, PARAMS)
    whole = np.asarray(net.nngp(FLAT))
    for i in range(3):
        for j in range(3):
            one = net.nngp(FLAT[i : i + 1], FLAT[j : j + 1])
            np.testing.assert_allclose(one, whole[i : i + 1, j : j + 1], rtol=1e-13)


def test_dropout_does_not_correlate_inputs_and_shared_noise_does() -> None:
    """E u^2 = 1/3 on the diagonal either way; E u u' is 1/4 for fresh draws."""
    params = {"U": PARAMS["U"], "v": PARAMS["v"]}

    def fresh(p: Any, x: Any) -> Any:
        h = hidden(p, x)
        return readout(p, h * jax.random.uniform(jax.random.key(1), h.shape))

    plain = np.asarray(
        wl.limit(lambda p, x: readout(p, hidden(p, x)), params).nngp(FLAT)
    )
    shared = wl.limit(noise_shared_by_the_batch, params).nngp(FLAT)
    np.testing.assert_allclose(shared, plain / 3, rtol=1e-9)
    ratio = np.where(np.eye(3, dtype=bool), 1 / 3, 1 / 4)
    kernel = wl.limit(fresh, params).nngp(FLAT)
    np.testing.assert_allclose(kernel, plain * ratio, rtol=1e-9)


def test_positions_that_interact_are_no_batch() -> None:
    def f(p: Any, x: Any) -> Any:
        h = jax.nn.relu(apply(p["U"], x))
        return readout(p, h - h.mean(axis=1, keepdims=True))

    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    assert not is_coupled(f, SEQUENCE, params)


# ------------------------------------------------------------------ places and numbers
SCALES = {
    "a count": lambda x: 1.0 + jnp.arange(len(x)),
    "numbers in a row": lambda x: jnp.linspace(1.0, 2.0, len(x)),
    "an array for a batch": lambda x: np.array([0.5, 2.0, 3.0])[: len(x)],
    "how many there are": lambda x: jnp.full(len(x), len(x)),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_kernel_of_inputs_that_are_scaled_by_their_place(name: str) -> None:
    """A network that is linear in a scale has the kernel of one without, times both."""
    scale = SCALES[name]

    def f(p: Any, x: Any) -> Any:
        return readout(p, hidden(p, x * scale(x)[:, None]))

    params = {"U": PARAMS["U"], "v": PARAMS["v"]}
    plain = wl.limit(lambda p, x: readout(p, hidden(p, x)), params)
    net = wl.limit(f, params)
    assert net.coupled(FLAT)
    s = np.asarray(scale(FLAT))
    both = s[:, None] * s
    np.testing.assert_allclose(net.nngp(FLAT), both * plain.nngp(FLAT), rtol=1e-12)
    np.testing.assert_allclose(net.ntk(FLAT), both * plain.ntk(FLAT), rtol=1e-12)
