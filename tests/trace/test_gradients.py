"""Backward passes of compiled networks are the networks' own gradients."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_networks import TABLE
from coverage_table import IMAGE, SEQUENCE, Function, Params, apply, m, n
from finite_witness import Compiled, _declared, _parameter, compiled, draw, inputs
from jax import Array, lax

import widelimit as wl
from widelimit.program import MatIn, MatMul, TensorProgram, VecIn, parse
from widelimit.trace import Normal, path_name, widths_are
from widelimit.trace._declare import fan_in_root
from widelimit.transform import Gradients, backprop

FAST = (
    "layer_normalisation",
    "causal_attention_with_heads",
    "recurrent_network",
    "tied_weights",
)


def agree(f: Function, params: Params, x: Any) -> None:
    """df/dtheta from the lines of the program, and by JAX from the network."""
    c = compiled(f, params, x)
    ((out, _),) = c.network.output.refs
    done = backprop(c.network.program, [out])
    assert str(parse(str(done.program))) == str(done.program)
    (g,) = done.gradients
    draws = draw(done.program, c.widths, inputs(params, x))
    paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    leaves = [_parameter(c, draws, path_name(k), p) for k, p in paths]
    random = [i for i, (_, p) in enumerate(paths) if isinstance(p, Normal)]

    def network(moved: list[Any]) -> Any:
        given = list(leaves)
        for i, leaf in zip(random, moved, strict=True):
            given[i] = leaf
        with widths_are(c.widths):
            return f(tree.unflatten(given), jnp.asarray(x))

    exact = jax.jit(jax.jacrev(network))([leaves[i] for i in random])
    for o in np.ndindex(*g.shape):
        lines = line_gradients(done.program, g, draws, c.widths, o)
        for i, expected in zip(random, exact, strict=True):
            path, p = paths[i]
            found = (
                _parameter(c, lines, path_name(path), p) * fan_in_root(p, c.widths) ** 2
            )
            scale = max(1e-3, float(np.abs(expected[o]).max()))
            np.testing.assert_allclose(
                found, expected[o], rtol=0.0, atol=1e-12 * scale, err_msg=str(path)
            )
    assert any(np.any(e) for e in exact)


def line_gradients(
    program: TensorProgram,
    g: Gradients,
    draws: Mapping[str, Any],
    widths: dict[str, int],
    o: tuple[int, ...],
) -> dict[str, Any]:
    """df[o] over every input line, over its columns where it is a matrix."""
    s = g.width.size(widths) ** float(g.power)
    found: dict[str, Any] = {}
    for ref, line in enumerate(program.lines):
        if not isinstance(line, VecIn | MatIn):
            continue
        total = np.zeros(draws[line.name].shape)
        if ref in g.adjoints:
            unit = 1.0 if line.dim is None else s
            total = np.asarray(draws[program.lines[g.adjoints[ref]].name])[o] / unit
        for use in g.uses.get(ref, ()):
            product = program.lines[use.line]
            assert isinstance(product, MatMul)
            dy = np.asarray(draws[program.lines[use.gradient].name])[o]
            x = np.asarray(draws[program.lines[product.x].name])
            for at in np.ndindex(*product.shape, *product.sums):
                read = tuple(
                    int(t.table[tuple(at[i] for i in t.letters)]) for t in product.maps
                )
                if min(read, default=0) >= 0:
                    outer = np.outer(dy[at[: len(product.shape)]], x[read])
                    a = tuple(0 if i < 0 else at[i] for i in product.letters)
                    total[a] += (outer.T if use.transposed else outer) / s
        if isinstance(line, MatIn):
            total = total / total.shape[-1]
        found[line.name] = total
    return found


@pytest.mark.parametrize("name", FAST)
def test_gradients_agree(name: str) -> None:
    net = TABLE[name]
    agree(net.f, net.params, net.x[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_gradients_of_every_coverage_network_agree(name: str) -> None:
    net = TABLE[name]
    agree(net.f, net.params, net.x[:2])
