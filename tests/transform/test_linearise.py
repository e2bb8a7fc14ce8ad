"""Changes along random directions are the derivatives, at finite width."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_witness import Perturbed, values
from hypothesis import HealthCheck, given, settings
from strategies import random_program, random_programs

import widelimit as wl
from widelimit.program import (
    MatIn,
    Moment,
    ProgramBuilder,
    Ref,
    TensorProgram,
    VecIn,
    parse,
    verify,
)
from widelimit.transform import linearise

WIDTHS = {"n": 5, "m": 7}


class WithFixedScalars(Perturbed):
    """A run whose scalars do not move."""

    def value(self, line: Any, kind: Any) -> Any:
        found = super().value(line, kind)
        return jax.lax.stop_gradient(found) if isinstance(line, Moment) else found


def check(program: TensorProgram, data: Any = None) -> None:
    """The lines of the changes against `jax.jvp` of the run of the program."""
    directions = {
        ref: 1.0 + 0.1 * ref
        for ref, line in enumerate(program.lines)
        if isinstance(line, VecIn | MatIn)
    }
    done = linearise(program, directions)
    verify(done.program)
    assert parse(str(done.program)) == done.program
    assert done.program.lines[: len(program)] == program.lines
    (changes,) = done.changes
    found = values(done.program, WIDTHS, data)
    moved = {ref: found[changes[ref]] for ref in directions}
    still = {ref: 0.0 * x for ref, x in moved.items()}
    run = WithFixedScalars(program, WIDTHS, data or {})
    _, exact = jax.jvp(run.all_values, (still,), (moved,))
    for ref in range(len(program)):
        compare(program, ref, changes.get(ref), found, exact)


def compare(
    program: TensorProgram, ref: Ref, change: Ref | None, found: Any, exact: Any
) -> None:
    size = float(np.abs(exact[ref]).max(initial=0.0)) if _moves(exact[ref]) else 0.0
    if change is None:
        assert size == 0.0, program.lines[ref].name
        return
    np.testing.assert_allclose(
        found[change], exact[ref], rtol=0.0, atol=1e-12 * max(size, 1e-3)
    )


def _moves(tangent: Any) -> bool:
    return tangent.dtype != jax.dtypes.float0


@pytest.mark.parametrize(
    ("seed", "transposes", "families"), [(1, True, False), (0, True, True)]
)
def test_changes_of_random_programs(
    seed: int, transposes: bool, families: bool
) -> None:
    p = random_program(np.random.default_rng(seed), transposes, families)
    check(p.tensor_program)


@pytest.mark.slow
@pytest.mark.parametrize("families", [False, True])
def test_changes_of_many_random_programs(families: bool) -> None:
    @given(random_programs(True, families))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    def run(p: ProgramBuilder) -> None:
        check(p.tensor_program)

    run()


def test_sets_of_directions_are_independent_and_add_up() -> None:
    """Along all inputs together a line changes by the sum of its changes."""
    p = random_program(np.random.default_rng(2), True, False)
    program = p.tensor_program
    inputs = [r for r, x in enumerate(program.lines) if isinstance(x, VecIn | MatIn)]
    done = linearise(program, *({ref: 0.7} for ref in inputs))
    names = [
        done.program.lines[c[r]].name for r, c in zip(inputs, done.changes, strict=True)
    ]
    assert len(set(names)) == len(inputs)
    verify(done.program)


def test_a_direction_of_a_key_is_an_input() -> None:
    p = wl.Program()
    x = p.vector("x", "n")
    program = p.tensor_program
    done = linearise(program, {x.ref: "direction:x"})
    found = values(done.program, WIDTHS, {"direction:x": np.asarray(0.0)})
    np.testing.assert_array_equal(found[done.changes[0][x.ref]], 0.0)


def test_what_depends_on_no_direction_does_not_change() -> None:
    p = wl.Program()
    x, y = p.vector("x", "n"), p.vector("y", "n")
    A = p.matrix("A", ("n", "n"))
    h = p.nonlin(jnp.tanh, A @ x)
    z = x + y
    step = p.nonlin(jnp.sign, z)
    (changes,) = linearise(p.tensor_program, {y.ref: 1.0}).changes
    assert {y.ref, z.ref} <= set(changes)
    assert h.ref not in changes
    assert step.ref not in changes  # the derivative beside the jump
