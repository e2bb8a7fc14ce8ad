"""Backward passes of compiled networks are the networks' own gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_networks import TABLE
from coverage_table import Function, Params
from finite_witness import _declared, _parameter, compiled, draws_bits, inputs
from gradient_witness import by_lines, values

from widelimit._errors import UnsupportedError
from widelimit.program import MatIn, TensorProgram, VecIn, parse
from widelimit.trace import Normal, path_name, widths_are
from widelimit.trace._declare import fan_in_root
from widelimit.transform import backprop

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
    if "=<" not in str(c.network.program):  # A parameter that has no text form.
        assert parse(str(done.program)) == done.program
    (g,) = done.gradients
    lines = values(done.program, c.widths, inputs(params, x))
    draws = {done.program.lines[r].name: value for r, value in lines.items()}
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
    assert any(np.any(e) for e in exact)
    gradients = by_lines(done, g, c.widths, lines)
    for o in np.ndindex(*g.shape):
        placed = _at_output(done.program, gradients, draws, o)
        for i, expected in zip(random, exact, strict=True):
            path, p = paths[i]
            # theta is a permutation of the draws times a number s, df/dtheta the same
            # permutation of their gradients over s; columns are divided out below.
            actual = _parameter(c, placed, path_name(path), p)
            actual = actual * fan_in_root(p, c.widths) ** 2
            scale = max(1e-3, float(np.abs(expected[o]).max()))
            np.testing.assert_allclose(
                actual, expected[o], rtol=0.0, atol=1e-12 * scale, err_msg=str(path)
            )


def _at_output(
    program: TensorProgram,
    gradients: Mapping[int, Any],
    draws: Mapping[str, Any],
    o: tuple[int, ...],
) -> dict[str, Any]:
    """df[o] over every input line, over its columns where it is a matrix."""
    found: dict[str, Any] = {}
    for ref, line in enumerate(program.lines):
        if isinstance(line, VecIn | MatIn):
            zero = np.zeros(draws[line.name].shape)
            value = np.asarray(gradients[ref])[o] if ref in gradients else zero
            found[line.name] = value / (
                zero.shape[-1] if isinstance(line, MatIn) else 1
            )
    return found


@pytest.mark.parametrize("name", FAST)
def test_gradients_agree(name: str) -> None:
    net = TABLE[name]
    agree(net.f, net.params, net.x[:1])


# Networks whose gradient is not the derivative of their values, by the user's wish.
OWN_GRADIENTS = ("wrapped_functions", "copies")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLE if name not in OWN_GRADIENTS])
def test_gradients_of_every_coverage_network_agree(name: str) -> None:
    net = TABLE[name]
    if name == "gamma_functions":
        with pytest.raises(UnsupportedError, match="digamma"):
            agree(net.f, net.params, net.x[:1])
        return
    if draws_bits(net.f, net.params, net.x):
        pytest.skip("its random bits cannot be set")
    agree(net.f, net.params, net.x[:2])
