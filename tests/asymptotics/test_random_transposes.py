"""Random programs that go back through their matrices, against finite width.

As in `test_random_programs`, with the same rule for what counts as a difference.
"""

import dataclasses

import jax
import numpy as np
import pytest
from strategies import random_program
from test_random_programs import RATIOS, Comparison, compare, pairs_of

import widelimit as wl
from widelimit.asymptotics import Engine, Side
from widelimit.program import LinComb, MatMul, Vector
from widelimit.transform import _detranspose, _tangent, detranspose

Detransposition = _detranspose._Detransposition


def program(seed: int) -> wl.Program:
    rng = np.random.default_rng(seed)
    built = random_program(rng, transposes=True, back=True)
    return wl.Program.from_program(built.tensor_program)


def corrected(p: wl.Program) -> list[str]:
    """The products that meet their matrix's transpose."""
    names = {line.name for line in p.tensor_program if isinstance(line, MatMul)}
    lines = p.detranspose(RATIOS).tensor_program
    return [x.name for x in lines if isinstance(x, LinComb) and x.name in names]


def wrong(seed: int, pairs: int = 10) -> list[Comparison]:
    return [c for c in compare(program(seed), seed, pairs) if not c.passed]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_random_programs_with_transposes(seed: int) -> None:
    assert not wrong(seed, pairs_of(seed)), program(seed)


def test_most_of_the_programs_have_corrections() -> None:
    counts = [len(corrected(program(seed))) for seed in range(60)]
    assert sum(c > 0 for c in counts) > 35
    assert sum(c > 1 for c in counts) > 12


@pytest.mark.parametrize("seed", [3, 6, 8])
def test_the_detransposed_program_has_the_same_limit(seed: int) -> None:
    p = program(seed)
    q = p.detranspose(RATIOS)
    assert wl.parse(str(q)) == q
    name = p.tensor_program.lines[-1].name
    one, two = p.limit(RATIOS).mean(name), q.limit(RATIOS).mean(name)
    assert float(two) == pytest.approx(float(one), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "seed",
    [7, 63, *(pytest.param(s, marks=pytest.mark.slow) for s in (4, 31, 33, 113, 160))],
)
def test_terms_that_are_left_out_by_symmetry_are_zero(seed: int) -> None:
    lines = program(seed).tensor_program
    whole, few = (detranspose(lines, RATIOS, symmetric=s) for s in (False, True))
    assert len(few.program) < len(whole.program)
    last = [r for r, t in enumerate(lines.types) if isinstance(t, Vector)][-1]
    found = []
    for one in (whole, few):
        engine = Engine((Side(one.program, {}),))
        at = one.place[last]
        found.append(np.asarray(engine.pair_array(at, at, (0, 0), (), False)))
    # Up to the error of an integral that is zero.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


# ---------------------------------------------------------------------------- mutants
def without_dot(self, product, roots):
    return {}


class Partial(_tangent.Tangents):
    """The mutant: the derivative does not go through the dotZ of lines between."""

    def _combination(self, line, root):
        first = line.terms[0]
        if first.x is not None and self._emit.name(first.x) == f"{line.name}_hat":
            line = dataclasses.replace(line, terms=(first,))
        return super()._combination(line, root)


def second_moment_of_a_return() -> wl.Program:
    """t = A^T tanh(A tanh(A^T relu(A x)))."""
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("m", "n"), std=1.3)
    v = p.nonlin(jax.numpy.tanh, a.T @ p.nonlin(jax.nn.relu, a @ x))
    _ = (a.T @ p.nonlin(jax.numpy.tanh, a @ v)).named("t")
    return p


MUTANT_SEEDS = (6, 8)


@pytest.mark.slow
def test_a_limit_that_drops_corrections_is_caught(monkeypatch) -> None:
    monkeypatch.setattr(Detransposition, "_dot", without_dot)
    assert any(wrong(seed, pairs=4) for seed in MUTANT_SEEDS)


@pytest.mark.slow
def test_a_limit_with_partial_derivatives_is_caught(monkeypatch) -> None:
    p = second_moment_of_a_return()
    good = p.limit(RATIOS)
    monkeypatch.setattr(_detranspose, "Tangents", Partial)
    bad = p.limit(RATIOS)
    assert float(bad.cov("t", "x")) == pytest.approx(0.9062, abs=5e-5)
    draws = p.simulate({"n": 400, "m": 800}, jax.random.key(0), 16)
    each = np.asarray((draws["t"] * draws["x"]).mean(-1))
    stderr = each.std(ddof=1) / 4.0
    assert abs(each.mean() - float(good.cov("t", "x"))) < 5.0 * stderr
    assert abs(each.mean() - float(bad.cov("t", "x"))) > 10.0 * stderr
