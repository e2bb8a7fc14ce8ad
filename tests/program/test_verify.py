"""What the language refuses, line by line."""

import numpy as np
import pytest

from widelimit import scalar
from widelimit._errors import InvalidProgramError
from widelimit.program import (
    Array,
    AxisMap,
    Constant,
    Dim,
    Elementwise,
    Input,
    LinComb,
    Map,
    MatIn,
    MatMul,
    Moment,
    Nonlin,
    ProgramBuilder,
    Readout,
    TensorArg,
    TensorProgram,
    Term,
    Transpose,
    VecIn,
    identity_maps,
    verify,
)

N, M = Dim.of("n"), Dim.of("m")
BASE = (
    VecIn(name="x", shape=(3,), dim=N),
    VecIn(name="u", shape=(), dim=M),
    MatIn(name="A", shape=(2,), rows=M, cols=N),
    Map(name="t", op=Input("t"), args=(), shape=(3,)),
    VecIn(name="b", shape=(), dim=None),
)
ID = identity_maps((3,))
F = scalar.Arg(0)

BAD = {
    "a later line": (Nonlin(name="y", fn=F, xs=(7,)), "not earlier"),
    "no vector": (Nonlin(name="y", fn=F, xs=()), "has no vector"),
    "matrix": (Nonlin(name="y", fn=F, xs=(2,)), "takes vectors, got a matrix"),
    "arity": (Nonlin(name="y", fn=scalar.Arg(1), xs=(0,)), "reads 2 arguments, got 1"),
    "widths": (Moment(name="y", fn=F, xs=(0, 1)), "widths"),
    "tensor letters": (
        Nonlin(name="y", fn=F, xs=(0,), tensors=(TensorArg(3, ()),)),
        r"shape \(3,\) is read as \(\)",
    ),
    "unknown letter": (
        Nonlin(name="y", fn=F, xs=(0,), tensors=(TensorArg(3, (1,)),)),
        "reads the letters",
    ),
    "transpose": (Transpose(name="y", matrix=0), "only a matrix"),
    "no map": (
        MatMul(name="y", matrix=2, letters=(0,), x=0, maps=(), shape=(2,)),
        "1 index maps, got 0",
    ),
    "matrix letters": (
        MatMul(name="y", matrix=2, letters=(0,), x=0, maps=ID, shape=(3,)),
        r"\(2,\) is read as \(3,\)",
    ),
    "matrix width": (
        MatMul(name="y", matrix=2, letters=(0,), x=1, maps=(), shape=(2,)),
        "takes width n, the vector has m",
    ),
    "not a matrix": (
        MatMul(name="y", matrix=0, letters=(0,), x=0, maps=ID, shape=(3,)),
        "needs a matrix and a vector",
    ),
    "map leaves": (
        LinComb(name="y", terms=(Term(0, maps=(AxisMap((0,), [0, 3]),)),), shape=(2,)),
        "leaves the axis of size 3",
    ),
    "map size": (
        LinComb(name="y", terms=(Term(0, maps=(AxisMap((0,), [0, 1]),)),), shape=(3,)),
        "does not fit",
    ),
    "map order": (
        LinComb(
            name="y", terms=(Term(0, maps=(AxisMap((1, 0), [[0]]),)),), shape=(1, 1)
        ),
        "has the letters",
    ),
    "nothing": (LinComb(name="y", terms=(Term(None),), shape=()), "has no vector"),
    "mixed": (
        LinComb(name="y", terms=(Term(1), Term(4)), shape=()),
        "mixes wide vectors and finite outputs",
    ),
    "sum of widths": (
        LinComb(name="y", terms=(Term(0, maps=(AxisMap((), 0),)), Term(1)), shape=()),
        "widths",
    ),
    "coefficient": (
        LinComb(name="y", terms=(Term(1, tensors=(TensorArg(0, ()),)),), shape=()),
        "coefficient is a tensor",
    ),
    "map of vectors": (
        Map(name="y", op=Elementwise(F, ((),)), args=(1,), shape=()),
        "takes tensors",
    ),
    "map letters": (
        Map(name="y", op=Elementwise(F, ()), args=(3,), shape=()),
        "letters of every tensor",
    ),
    "constant": (
        Map(name="y", op=Constant(Array(np.ones(2))), args=(), shape=(3,)),
        r"shape \(2,\), not \(3,\)",
    ),
    "mean": (
        VecIn(name="y", shape=(2,), dim=N, mean=Array(np.ones(3))),
        "mean has shape",
    ),
    "cov": (VecIn(name="y", shape=(2,), dim=N, cov=Array(np.ones(2))), "cov has shape"),
    "std": (
        VecIn(name="y", shape=(), dim=N, std=TensorArg(3, (0,))),
        "std is a scalar",
    ),
    "readout": (
        Readout(name="y", v=1, letters=(), x=0, maps=(AxisMap((), 0),), shape=()),
        "width",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_types_are_checked_when_a_program_is_made(case: str) -> None:
    line, message = BAD[case]
    TensorProgram(BASE)
    with pytest.raises(InvalidProgramError, match=f"Line `y`.*{message}"):
        TensorProgram((*BASE, line))


def program(*lines: object, **rest: object) -> TensorProgram:
    return TensorProgram((*BASE, *lines), **rest)  # type: ignore


LATE = {
    "name": (program(VecIn(name="x", shape=(), dim=N)), "shares its name"),
    "empty": (program(VecIn(name="", shape=(), dim=N)), "has no name"),
    "std": (program(VecIn(name="y", shape=(), dim=N, std=-1.0)), "std is -1.0"),
    "mean": (program(VecIn(name="y", shape=(), dim=N, mean=np.inf)), "not finite"),
    "cov": (
        program(VecIn(name="y", shape=(1,), dim=N, cov=Array(np.array([[-1.0]])))),
        "eigenvalue -1",
    ),
    "output": (program(outputs=(9,)), "an output is line 9"),
    "matrix": (program(taps=(("h", 2),)), "the tap 'h' is a matrix"),
    "not fresh": (
        program(Readout(name="y", v=1, letters=(), x=1, maps=(), shape=())),
        "also part of what is read out",
    ),
    "mean readout": (
        program(
            VecIn(name="v", shape=(), dim=M, mean=1.0),
            Readout(name="y", v=5, letters=(), x=1, maps=(), shape=()),
        ),
        "whose mean is not 0",
    ),
    "no input": (
        program(
            Nonlin(name="v", fn=F, xs=(1,)),
            Readout(name="y", v=5, letters=(), x=1, maps=(), shape=()),
        ),
        "not an input",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_verify(case: str) -> None:
    bad, message = LATE[case]
    with pytest.raises(InvalidProgramError, match=message):
        verify(bad)
    with pytest.raises(InvalidProgramError, match=message):
        ProgramBuilder.from_program(bad)


def test_a_good_program_passes() -> None:
    good = program(
        VecIn(name="v", shape=(), dim=M),
        Readout(name="f", v=5, letters=(), x=1, maps=(), shape=()),
        outputs=(6, 4, 3),
        taps=(("h", 1),),
    )
    assert verify(good) is good
