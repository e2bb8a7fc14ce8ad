"""Backward passes are the gradients, at finite width and to rounding."""

import numpy as np
import pytest
from gradient_witness import check
from strategies import random_program

from widelimit.program import (
    ProgramBuilder,
    Readout,
    TensorProgram,
    VecIn,
    Vector,
    parse,
    verify,
)
from widelimit.transform import backprop

WIDTHS = {"n": 5, "m": 7}


def with_outputs(p: ProgramBuilder) -> tuple[TensorProgram, list[int]]:
    """The program with a readout; and a readout, a scalar and a vector of it."""
    vectors = [r for r, t in enumerate(p.tensor_program.types) if isinstance(t, Vector)]
    plain = [r for r in vectors if p.tensor_program.types[r].shape == ()]
    h = list(p)[plain[-1]]
    v = p.append(VecIn(name="v_out", shape=(3,), dim=h.dim))
    f = p.append(
        Readout(name="f_out", v=v.ref, letters=(0,), x=h.ref, maps=(), shape=(3,))
    )
    t = p.moment(lambda u: u * u, h, name="t_out")
    outputs = [f.ref, t.ref, plain[-1]]
    if "output" in p:
        outputs += [p["output"].ref, p["f"].ref, p["energy"].ref, p["mixed"].ref]
    return p.tensor_program, outputs


def check_random(p: ProgramBuilder) -> None:
    program, outputs = with_outputs(p)
    done = backprop(program, outputs)
    verify(done.program)
    assert parse(str(done.program)) == done.program
    check(program, done, WIDTHS)


@pytest.mark.parametrize(
    ("transposes", "families"), [(False, False), (True, False), (True, True)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_of_random_programs(
    transposes: bool, families: bool, seed: int
) -> None:
    check_random(random_program(np.random.default_rng(seed), transposes, families))
