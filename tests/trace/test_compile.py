"""The compiled program is the network, at finite width and without its limit."""

import difflib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_networks import TABLE
from coverage_table import IMAGE, SEQUENCE, Params, apply, n
from finite_witness import both, compiled, draw, draws_bits, inputs
from jax import Array, lax

import widelimit as wl
from widelimit.program import (
    LinComb,
    Map,
    Nonlin,
    Primitive,
    TensorProgram,
    Vector,
    parse,
    simulate,
)
from widelimit.trace import compile_network

Function = Callable[[Params, Array], Array]

FAST = (
    "recurrent_network",
    "embedding",
    "weights_on_the_left",
    "root_mean_square_normalisation",
    "tied_weights",
)
GOLDEN = Path(__file__).parent.parent / "golden"


def agree(f: Function, params: Params, x: Any) -> None:
    program, network = both(f, params, x)
    assert program.shape == network.shape
    scale = float(np.abs(network).max())
    assert scale > 1e-3
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-12 * max(1.0, scale))


# --------------------------------------------------------- program against network
@pytest.mark.parametrize("name", FAST)
def test_program_and_network_agree_on_the_same_draws(name: str) -> None:
    net = TABLE[name]
    agree(net.f, net.params, net.x)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_every_coverage_network_agrees(name: str) -> None:
    net = TABLE[name]
    if draws_bits(net.f, net.params, net.x):
        pytest.skip("its random bits cannot be set; see the test of dropout")
    agree(net.f, net.params, net.x)


def strided_convolution(p: Params, x: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(
        x,
        p["W"],
        (2, 1),
        [(1, 0), (2, 1)],
        rhs_dilation=(1, 2),
        dimension_numbers=layout,
    )
    h = lax.conv_general_dilated(
        jax.nn.relu(h), p["Q"], (1, 2), "SAME", dimension_numbers=layout
    )
    return (h / math.sqrt(4 * n)).reshape(x.shape[0], -1) @ p["v"] / jnp.sqrt(n)


def test_padded_and_strided_convolution_agrees() -> None:
    params = {
        "W": wl.normal((2, 3, 2, n)),
        "Q": wl.normal((2, 2, n, n)),
        "v": wl.normal((4 * n, 3)),
    }
    agree(strided_convolution, params, IMAGE)


def overwritten_diagonal(p: Params, x: Array) -> Array:
    h = apply(p["W"], x)[:, :3, :3]
    h = h.at[:, np.arange(3), np.arange(3)].set(jnp.tanh(h[:, 0]))
    return apply(p["v"], jnp.sin(h))


def test_overwritten_diagonal_agrees() -> None:
    params = {"W": wl.normal((2, n)), "v": wl.normal((n, 1))}
    agree(overwritten_diagonal, params, IMAGE)


def attention(p: Params, x: Array) -> Array:
    h = jnp.tanh(apply(p["U"], x))
    k, v = jnp.split(apply(p["W"], h), 2, axis=-1)
    k = k.reshape(*k.shape[:2], 2, -1)
    logits = jnp.einsum("nihd,njhd->nhij", k, k) / k.shape[-1]
    mixed = jnp.einsum(
        "nhij,njhd->nihd", jax.nn.softmax(logits), v.reshape(k.shape)
    ).reshape(h.shape)
    return apply(p["v"], mixed)


def test_attention_with_heads_and_split_projections_agrees() -> None:
    agree(
        attention,
        {
            "U": wl.normal((3, n)),
            "W": wl.normal((n, 2 * n), std=1.3),
            "v": wl.normal((n, 2)),
        },
        SEQUENCE,
    )


@pytest.mark.slow
def test_fan_in_parameterisation_and_constants_agree() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["U"] + p["b"]) * p["gain"]
        return jax.nn.relu(h @ p["W"]) @ p["v"] + p["bias"]

    kind = {"parameterization": "ntk"}
    params = {
        "U": wl.normal((3, n), std=1.5, **kind),
        "b": wl.normal((n,), std=0.5, **kind),
        "gain": wl.constant((n,), 0.7),
        "W": wl.normal((n, 2 * n), fan_in=0),
        "v": wl.normal((2 * n, 2), **kind),
        "bias": wl.normal((2,), std=0.1, **kind),
    }
    agree(f, params, SEQUENCE[:, 0])


def test_witness_tells_one_matrix_from_two() -> None:
    """The comparison fails where it should: a tied matrix is not two matrices."""

    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(apply(p["W"], apply(p["U"], x)))
        return apply(p["v"], jnp.tanh(apply(p["W"], h)))

    def untied(p: Params, x: Array) -> Array:
        h = jnp.tanh(apply(p["W"], apply(p["U"], x)))
        return apply(p["v"], jnp.tanh(apply(p["W2"], h)))

    params = {"U": wl.normal((3, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}
    more = {**params, "W2": wl.normal((n, n))}
    tied, _ = both(f, params, SEQUENCE[:, 0])
    other, _ = both(untied, more, SEQUENCE[:, 0])
    assert np.abs(tied - other).max() > 1e-3


# --------------------------------------------------------------------------- dropout
def dropout(p: Params, x: Array) -> Array:
    h = jax.nn.relu(apply(p["U"], x))
    kept = jax.random.bernoulli(jax.random.key(3), 0.6, h.shape)
    h = jnp.tanh(apply(p["W"], jnp.where(kept, h / 0.6, 0.0)))
    return apply(p["v"], h * jax.random.uniform(jax.random.key(4), h.shape))


def test_random_bits_are_uniform_numbers_from_input_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With JAX's draws replaced by the program's, dropout agrees as the others do."""
    params = {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}
    x = np.random.default_rng(2).normal(size=(3, 4))
    c = compiled(dropout, params, x)
    lines = draw(c.network.program, c.widths, inputs(params, x))
    drawn = [lines[f"random{i}"] for i in range(2)]
    uniforms = [jax.scipy.special.ndtr(z).reshape(3, -1) for z in drawn]
    plain = (jax.random.bernoulli, jax.random.uniform)
    left = iter(uniforms)

    def uniform(key: Array, shape: Any) -> Array:
        value = next(left, None)
        return plain[1](key, shape) if value is None else value

    theta = {
        "U": lines["U"].reshape(4, -1),
        "W": lines["W"].T * math.sqrt(c.widths["n"]),
        "v": lines["v"].reshape(-1, 1),
    }
    monkeypatch.setattr(jax.random, "bernoulli", lambda k, q, s: uniform(k, s) < q)
    monkeypatch.setattr(jax.random, "uniform", uniform)
    actual = dropout(theta, jnp.asarray(x))
    ((out, _),) = c.network.output.refs
    program = lines[c.network.program.lines[out].name]
    np.testing.assert_allclose(program, actual, rtol=0.0, atol=1e-12)


# ---------------------------------------------------------------------- distribution
def recurrent(p: Params, x: Array) -> Array:
    def step(h: Array, word: Array) -> tuple[Array, Array]:
        h = jnp.tanh(apply(p["W"], h) + apply(p["U"], word))
        return h, h

    start = jnp.zeros((x.shape[0], n))
    _, states = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return apply(p["v"], states.mean(axis=0))


RECURRENT = {
    "U": wl.normal((3, n), std=1.2),
    "W": wl.normal((n, n), std=1.4),
    "v": wl.normal((n, 1)),
}


@pytest.mark.slow
def test_second_moments_of_simulation_and_network_agree() -> None:
    """Independent draws of both, so that the laws of the input lines are seen too."""
    x, width, seeds = SEQUENCE[:, :3], 8, 4000
    struct = jax.ShapeDtypeStruct(x.shape, np.float64)
    network = compile_network(recurrent, RECURRENT, struct)
    data = inputs(RECURRENT, x)
    lines = simulate(network.program, {"n": width}, jax.random.key(1), seeds, data)
    ((out, _),) = network.output.refs
    net = wl.limit(recurrent, RECURRENT)

    def one(key: Array) -> Array:
        f, theta = net.at(key=key, n=width)
        return f(theta, jnp.asarray(x))

    real = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), seeds))
    products = [np.einsum("sio,sjo->sij", y, y) for y in (lines[out], real)]
    errors = [p.std(axis=0) / math.sqrt(seeds) for p in products]
    gap = np.abs(products[0].mean(axis=0) - products[1].mean(axis=0))
    assert (gap < 5 * np.hypot(*errors)).all()
    assert (errors[0] < 0.05 * products[0].mean(axis=0).max()).all()


# ------------------------------------------------------- sums inside a nonlinearity
def nonlinear_lines(f: Function, params: Params) -> list[Nonlin]:
    program = wl.limit(f, params).program(np.ones((2, 4)))
    return [line for line in program.lines if isinstance(line, Nonlin)]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "activation", [jax.nn.gelu, jax.nn.silu, jax.nn.mish, jax.nn.hard_swish]
)
def test_an_activation_of_a_sum_is_a_function_of_one_line(
    activation: Callable[[Array], Array], scale: float
) -> None:
    """However often it uses its argument, a sum over the inputs in the first layer."""
    params = {"U": wl.normal((4, n)), "b": wl.normal((n,)), "v": wl.normal((n, 1))}

    def f(p: Params, x: Array) -> Array:
        h = scale * (x @ p["U"]) + p["b"]
        return apply(p["v"], activation(h) + h)

    lines = nonlinear_lines(f, params)
    assert [line.xs for line in lines] == [lines[0].xs] * len(lines)
    assert len(lines[0].xs) == 1


def test_gaussian_terms_of_a_mixed_sum_are_one_leaf() -> None:
    params = {
        "U": wl.normal((4, n)),
        "W": wl.normal((n, n)),
        "b": wl.normal((n,)),
        "v": wl.normal((n, 1)),
    }

    def f(p: Params, x: Array) -> Array:
        h = jax.nn.relu(x @ p["U"])
        mixed = x @ p["U"] + p["b"] + apply(p["W"], h) + 0.5 * h
        return apply(p["v"], jnp.tanh(mixed))

    net = wl.limit(f, params)
    program = net.program(np.ones((2, 4)))
    (mixed,) = (
        line
        for line, kind in zip(program.lines, program.types, strict=True)
        if isinstance(line, LinComb) and isinstance(kind, Vector) and kind.kind == "H"
    )
    assert len(mixed.terms) == 2
    agree(f, params, np.random.default_rng(0).normal(size=(2, 4)))


@pytest.mark.parametrize(
    "readout",
    [
        lambda v, h: jnp.sum(h * v[:, 0], axis=-1),
        lambda v, h: jnp.sum(2.0 * v[:, 0] * jnp.tanh(h) * h, axis=-1),
        lambda v, h: (-v[:, 0] / (1.0 + h**2)).sum(axis=-1),
        lambda v, h: jnp.sum(h * v[:, 0]) * jnp.ones(len(h)),
        lambda v, h: v.sum() * jnp.ones(len(h)),
        lambda v, h: jnp.sum(v.T * h - jnp.tanh(h) * v.T, axis=-1),
    ],
)
def test_a_sum_of_products_with_a_parameter_is_a_readout(readout: Any) -> None:
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1))}

    def f(p: Params, x: Array) -> Array:
        return readout(p["v"], x @ p["U"]) / jnp.sqrt(n)

    x = np.random.default_rng(0).normal(size=(2, 4))
    net = wl.limit(f, params)
    agree(f, params, x[:1])
    kernel = np.asarray(net.nngp(x))
    assert (np.linalg.eigvalsh(kernel) > -1e-12).all()
    assert np.abs(kernel).all()


# ----------------------------------------------------------------------- golden texts
def dense_network(p: Params, x: Array) -> Array:
    h = wl.tap("hidden", jax.nn.relu(apply(p["U"], x) + p["b"]))
    h = h + 0.5 * jnp.tanh(apply(p["W"], h))
    return apply(p["v"], h) + p["c"]


def tied_network(p: Params, x: Array) -> Array:
    h = jnp.tanh(apply(p["U"], x))
    for _ in range(2):
        h = jnp.tanh(apply(p["W"], h) + apply(p["U"], x))
    return apply(p["v"], h)


def gated_network(p: Params, x: Array) -> Array:
    a, b = jnp.split(apply(p["U"], x), 2, axis=-1)
    return apply(p["v"], jnp.tanh(a) * jax.nn.relu(b))


GOLDEN_NETWORKS: dict[str, tuple[Function, Params]] = {
    "dense": (
        dense_network,
        {
            "U": wl.normal((4, n)),
            "b": wl.normal((n,), std=0.1),
            "W": wl.normal((n, n), std=1.5),
            "v": wl.normal((n, 2)),
            "c": wl.normal((2,)),
        },
    ),
    "tied": (
        tied_network,
        {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))},
    ),
    "gated": (gated_network, {"U": wl.normal((4, 2 * n)), "v": wl.normal((n, 1))}),
}
"""Without lines that name JAX primitives, whose parameters change with its version."""


@functools.cache
def golden_program(name: str) -> TensorProgram:
    f, params = GOLDEN_NETWORKS[name]
    return wl.limit(f, params).program(np.ones((2, 4)))


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_program_is_printed_as_stored(name: str) -> None:
    """Set WIDELIMIT_GOLDEN=write to store the texts anew, and read the difference."""
    text, path = str(golden_program(name)) + "\n", GOLDEN / f"{name}.txt"
    if os.environ.get("WIDELIMIT_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    stored = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        stored.splitlines(), text.splitlines(), "stored", "printed", lineterm=""
    )
    assert text == stored, "\n".join(difference)


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_compiling_twice_gives_equal_programs(name: str) -> None:
    f, params = GOLDEN_NETWORKS[name]
    again = wl.limit(f, params).program(np.ones((2, 4)))
    assert again == golden_program(name)
    assert str(again) == str(golden_program(name))


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
def test_stored_program_parses_back(name: str) -> None:
    program = golden_program(name)
    maps = [line.op for line in program.lines if isinstance(line, Map)]
    assert not any(isinstance(op, Primitive) for op in maps)
    assert parse(str(program)) == program


def test_weights_of_more_positions_than_numpy_counts_right() -> None:
    # numpy/numpy#31980: weights of their own for each of 2 * 9000 positions.
    params = {"U": wl.normal((2, 1, 9000, n)), "v": wl.normal((n, 1))}

    def local(p: Params, x: Array) -> Array:
        h = jnp.einsum("npi,pio->npo", x, p["U"][:, 0]).sum(1)
        return h @ p["v"] / jnp.sqrt(n)

    x = np.random.default_rng(0).normal(size=(2, 2, 9000))
    expected = np.einsum("npi,mpi->nm", x, x)
    np.testing.assert_allclose(wl.limit(local, params).nngp(x), expected, rtol=1e-10)
