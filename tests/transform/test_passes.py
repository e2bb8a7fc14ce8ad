"""Passes keep every value at finite width, and run twice change nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from strategies import random_program, random_programs

from widelimit.program import (
    LinComb,
    Map,
    MatIn,
    Nonlin,
    ProgramBuilder,
    Ref,
    TensorProgram,
    Transpose,
    VecIn,
    Vector,
    operands,
    simulate,
    verify,
)
from widelimit.transform import (
    STAGES,
    Rewritten,
    drop_dead,
    merge_equal,
    normal_form,
)

WIDTHS = {"n": 6, "m": 9}
KEY = jax.random.key(11)
Pass = Callable[[TensorProgram, tuple[Ref, ...]], Rewritten]
KINDS = [(False, False), (True, False), (True, True)]
PASSES: list[Pass] = [merge_equal, drop_dead, normal_form]


def with_repeats(p: ProgramBuilder, seed: int) -> TensorProgram:
    """The program with some of its lines written again, and used."""
    rng = np.random.default_rng(seed)
    for line in list(p.tensor_program.lines):
        if rng.random() < 0.4 and not isinstance(line, VecIn | MatIn | Map | Transpose):
            p.append(dataclasses.replace(line, name=f"{line.name}_again"))
    x = p["x0"]
    program = p.tensor_program
    for line, t in zip(program.lines, program.types, strict=True):
        same = isinstance(t, Vector) and (t.shape, t.dim) == ((), x.dim)
        if same and line.name.endswith("_again"):
            p.nonlin(jnp.tanh, 0.5 * p[line.name] + 0.25 * x)
    return p.tensor_program


def kept(program: TensorProgram) -> tuple[Ref, ...]:
    """Some lines that are asked for."""
    simulated = [r for r, line in enumerate(program.lines) if not _matrix(line)]
    return tuple(simulated[-1:] + simulated[len(simulated) // 2 :: 7])


def _matrix(line: object) -> bool:
    return isinstance(line, MatIn | Transpose)


def check_passes(program: TensorProgram) -> None:
    keep = kept(program)
    before = simulate(program, WIDTHS, KEY, seeds=2)
    for run in PASSES:
        done = run(program, keep)
        verify(done.program)
        assert set(keep) <= set(done.place)
        assert set(done.place.values()) == set(range(len(done.program)))
        after = simulate(done.program, WIDTHS, KEY, seeds=2)
        for old, new in done.place.items():
            assert program.types[old] == done.program.types[new]
            if not _matrix(program.lines[old]):
                equal(before[old], after[new])
        again = run(done.program, tuple(done.place[r] for r in keep))
        assert again.program == done.program
        assert dict(again.place) == {r: r for r in range(len(done.program))}


def equal(a: Any, b: Any) -> None:
    scale = max(1.0, float(np.abs(a).max(initial=0.0)))
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-12 * scale)


@pytest.mark.parametrize(("transposes", "families"), KINDS)
def test_passes_keep_values(transposes: bool, families: bool) -> None:
    p = random_program(np.random.default_rng(3), transposes, families)
    check_passes(with_repeats(p, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("transposes", "families"), KINDS)
def test_passes_keep_values_of_many_programs(transposes: bool, families: bool) -> None:
    @given(random_programs(transposes, families))
    @settings(max_examples=15, deadline=None)
    def check(p: ProgramBuilder) -> None:
        check_passes(with_repeats(p, len(p)))

    check()


# ------------------------------------------------------------------------ merge equal
def twice() -> ProgramBuilder:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    a = p.matrix("A", ("n", "n"))
    for i in range(2):
        y = p.nonlin(jnp.tanh, a @ x, name=f"y{i}")
        (y + 2.0 * x).named(f"z{i}")
    return p


def test_equal_lines_are_merged_with_all_that_follows() -> None:
    program = twice().tensor_program
    done = merge_equal(program)
    names = [line.name for line in program.lines]
    assert done.place[names.index("z1")] == done.place[names.index("z0")]
    assert done.place[names.index("y1")] == done.place[names.index("y0")]
    assert "z1" not in [line.name for line in done.program.lines]
    assert len(done.program) == len(program) - 3


def test_inputs_are_never_merged() -> None:
    p = ProgramBuilder()
    x, y = p.vector("x", "n"), p.vector("y", "n")
    a, b = p.matrix("A", ("n", "n")), p.matrix("B", ("n", "n"))
    for h in (a @ x, b @ x, a @ y, a.T @ x):
        p.nonlin(jnp.tanh, h)
    program = p.tensor_program
    assert merge_equal(program).program == program


def test_lines_that_differ_in_a_number_are_not_merged() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    _ = (2.0 * x).named("a"), (3.0 * x).named("b")
    _ = p.nonlin(jnp.tanh, x, name="c"), p.nonlin(jnp.sin, x, name="d")
    program = p.tensor_program
    assert merge_equal(program).program == program


def test_outputs_and_taps_move_with_their_lines() -> None:
    lines = twice().tensor_program
    names = [line.name for line in lines.lines]
    program = TensorProgram(
        lines.lines,
        (names.index("z1"),),
        (("first", names.index("y0")), ("second", names.index("y1"))),
    )
    done = normal_form(program)
    verify(done.program)
    (out,) = done.program.outputs
    assert done.program.lines[out].name == "z0"
    assert [name for name, _ in done.program.taps] == ["first", "second"]
    assert len({ref for _, ref in done.program.taps}) == 1


# -------------------------------------------------------------------------- drop dead
def test_only_what_is_asked_for_is_left() -> None:
    p = twice()
    p.nonlin(jnp.sin, p["x"], name="dead")
    program = p.tensor_program
    names = [line.name for line in program.lines]
    done = drop_dead(program, (names.index("y0"),))
    left = [line.name for line in done.program.lines]
    assert left[0] == "x"
    assert left[-1] == "y0"
    assert "dead" not in left
    assert "z0" not in left
    needed = {r for line in done.program.lines for r in operands(line)}
    assert needed | {len(left) - 1} == set(range(len(left)))


def test_nothing_asked_for_leaves_nothing() -> None:
    done = drop_dead(twice().tensor_program)
    assert len(done.program) == 0
    assert dict(done.place) == {}


# ------------------------------------------------------------------------- normal form
def test_normal_form_runs_the_stages_in_order() -> None:
    assert list(STAGES) == ["merge-equal", "drop-dead"]
    program = twice().tensor_program
    names = [line.name for line in program.lines]
    keep = (names.index("z1"),)
    merged = merge_equal(program, keep)
    dropped = drop_dead(merged.program, (merged.place[keep[0]],))
    done = normal_form(program, keep)
    assert done.program == dropped.program


def test_place_of_normal_form_names_every_line_that_is_left() -> None:
    p = twice()
    p.nonlin(jnp.sin, p["x"], name="dead")
    program = p.tensor_program
    names = [line.name for line in program.lines]
    done = normal_form(program, (names.index("z1"),))
    assert names.index("dead") not in done.place
    left = [line.name for line in done.program.lines]
    for name, new in (("x", "x"), ("A", "A"), ("y1", "y0"), ("z1", "z0"), ("z0", "z0")):
        assert left[done.place[names.index(name)]] == new
    assert isinstance(done.program.lines[-1], LinComb)
    assert isinstance(program.lines[names.index("y0")], Nonlin)
