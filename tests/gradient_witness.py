"""Gradients of a program by `jax.vjp` of its own run, to compare backward passes with.

Every line of a run is given a perturbation, zero, that is added to its value. The
derivatives of an output with respect to the perturbations are the gradients of all
lines at once, matrices included, by a route that knows nothing of transposed lines.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.program import (
    MatIn,
    MatMul,
    Moment,
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
    """A run whose lines are moved by `shifts`; its draws depend on names alone."""

    def normal(self, line: VecIn | MatIn, shape: tuple[int, ...]) -> Any:
        rng = np.random.default_rng(zlib.crc32(line.name.encode()))
        return jnp.asarray(rng.normal(size=shape))

    def all_values(self, shifts: Mapping[Ref, Any]) -> dict[Ref, Any]:
        self.env: dict[Ref, Any] = {}
        for ref, line in enumerate(self.program.lines):
            value = self.value(line, self.types[ref])
            self.env[ref] = value + shifts[ref] if ref in shifts else value
        return self.env


def values(
    program: TensorProgram, widths: dict[str, int], data: Any = None
) -> dict[Ref, Any]:
    """One draw of every line, matrices too."""
    return jax.jit(Perturbed(program, widths, data or {}).all_values)({})


def gradients(
    done: Backprop, widths: dict[str, int], data: Any, found: Mapping[Ref, Any]
) -> list[dict[Ref, Any]]:
    """For every output f: df[o] / d(line) for every line, of shape O + the line's.

    A vector output is contracted with its cotangent first.
    """
    last = max(g.output for g in done.gradients)
    program = TensorProgram(done.program.lines[: last + 1])
    shifts = {
        r: jnp.zeros_like(found[r])
        for r in range(last + 1)
        if jnp.issubdtype(jnp.asarray(found[r]).dtype, jnp.floating)
    }

    def f(moved: dict[Ref, Any]) -> list[Any]:
        lines = Perturbed(program, widths, data or {}).all_values(moved)
        return [
            lines[g.output]
            if g.cotangent is None
            else jnp.vdot(lines[g.output], found[g.cotangent])
            for g in done.gradients
        ]

    return jax.jit(jax.jacrev(f))(shifts)


def check(
    program: TensorProgram, done: Backprop, widths: dict[str, int], data: Any = None
) -> None:
    """Assert that all adjoints of all outputs are the gradients."""
    assert done.program.lines[: len(program)] == program.lines
    found = values(done.program, widths, data)
    exact = gradients(done, widths, data, found)
    for g, all_lines in zip(done.gradients, exact, strict=True):
        from_lines = by_lines(done, g, widths, found)
        for ref, x in all_lines.items():
            if ref in from_lines:
                _equal(from_lines[ref], x)
            elif ref != g.output and _has_adjoint(program, ref):
                assert not np.any(x), program.lines[ref].name


def _has_adjoint(program: TensorProgram, ref: Ref) -> bool:
    """Whether a line without an adjoint must have gradient zero."""
    line, kind = program.lines[ref], program.types[ref]
    return isinstance(line, VecIn | MatIn | Moment) or isinstance(kind, Vector)


def by_lines(
    done: Backprop, g: Gradients, widths: dict[str, int], found: Mapping[Ref, Any]
) -> dict[Ref, Any]:
    """df/d(line) of one output, as the lines of the backward pass have it."""
    n = g.width.size(widths)
    scale = n ** float(g.power)
    unit = {Vector: scale, Tensor: scale / n, Output: 1.0}
    types = done.program.types
    results = {r: found[d] / unit[type(types[r])] for r, d in g.adjoints.items()}
    for matrix in g.uses:
        results[matrix] = _matrix_gradient(done, g, matrix, found) / scale
    return results


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
