"""Gradients of a program by `jax.vjp` of its own run, to compare backward passes with.

Every line of a run is given a perturbation, zero, that is added to its value. The
derivatives of an output with respect to the perturbations are the gradients of all
lines at once, matrices included, by a route that knows nothing of transposed lines.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.program import (
    MatIn,
    MatMul,
    Moment,
    Nonlin,
    Output,
    Ref,
    Tensor,
    TensorProgram,
    VecIn,
    Vector,
)
from widelimit.program._run import Run
from widelimit.transform import Backprop, Gradients

TOLERANCE = 1e-12


class Perturbed(Run):
    """A run whose lines are moved by `shifts`."""

    def all_values(self, key: jax.Array, shifts: Mapping[Ref, Any]) -> dict[Ref, Any]:
        self.key, self.env = key, {}
        for ref, line in enumerate(self.program.lines):
            value = self.value(line, self.types[ref])
            self.env[ref] = value + shifts[ref] if ref in shifts else value
        return self.env


def values(
    program: TensorProgram, widths: dict[str, int], key: jax.Array, data: Any = None
) -> dict[Ref, Any]:
    """One draw of every line, matrices too."""
    run = Perturbed(program, widths, data or {})
    return jax.jit(lambda k: run.all_values(k, {}))(key)


def gradients(
    program: TensorProgram,
    output: Ref,
    widths: dict[str, int],
    key: jax.Array,
    cotangent: Any,
    data: Any,
    start: Mapping[Ref, Any],
) -> dict[Ref, Any]:
    """The derivatives of f[o] (or of <cotangent, f>) with respect to every line.

    Returns:
        Arrays of shape O + the line's; nothing for lines of whole numbers.
    """
    shifts = {
        r: jnp.zeros_like(x)
        for r, x in start.items()
        if r < output and jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)
    }

    def f(moved: dict[Ref, Any]) -> Any:
        run = Perturbed(program, widths, data or {})
        return run.all_values(key, moved)[output]

    if cotangent is not None:
        return jax.jit(lambda s: jax.vjp(f, s)[1](cotangent)[0])(shifts)
    return jax.jit(jax.jacrev(f))(shifts)


def check(
    program: TensorProgram,
    done: Backprop,
    widths: dict[str, int],
    key: jax.Array,
    data: Any = None,
) -> None:
    """Assert that all adjoints of all outputs are the gradients."""
    assert done.program.lines[: len(program)] == program.lines
    found = values(done.program, widths, key, data)
    for g in done.gradients:
        cotangent = None if g.cotangent is None else found[g.cotangent]
        exact = gradients(program, g.output, widths, key, cotangent, data, found)
        n = g.width.size(widths)
        scale = n ** float(g.power)
        for ref, x in exact.items():
            if ref in g.uses:
                _equal(_matrix_gradient(done, g, ref, found) / scale, x)
            elif ref in g.adjoints:
                unit = {Vector: scale, Tensor: scale / n, Output: 1.0}
                _equal(found[g.adjoints[ref]] / unit[type(program.types[ref])], x)
            elif isinstance(program.lines[ref], VecIn | MatIn | Nonlin | Moment):
                assert not np.any(x), program.lines[ref].name


def _equal(actual: Any, expected: Any) -> None:
    assert actual.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=TOLERANCE * scale)


def _matrix_gradient(
    done: Backprop, g: Gradients, matrix: Ref, found: Mapping[Ref, Any]
) -> Any:
    """The sum of the outer products over all uses of a matrix, letter by letter."""
    lead, shape = len(g.shape), done.program.types[matrix].shape
    rows, cols = found[matrix].shape[-2:]
    total = np.zeros((*g.shape, *shape, rows, cols))
    for use in g.uses[matrix]:
        line = done.program.lines[use.line]
        assert isinstance(line, MatMul)
        dy, x = np.asarray(found[use.gradient]), np.asarray(found[line.x])
        for at in np.ndindex(*line.shape, *line.sums):
            a = tuple(0 if i < 0 else at[i] for i in line.letters)
            read = tuple(
                int(m.table[tuple(at[i] for i in m.letters)]) for m in line.maps
            )
            if min(read, default=0) < 0:
                continue
            left = dy[(slice(None),) * lead + at[: len(line.shape)]]
            outer = left[..., :, None] * x[read]
            outer = np.swapaxes(outer, -1, -2) if use.transposed else outer
            total[(slice(None),) * lead + a] += outer
    return total
