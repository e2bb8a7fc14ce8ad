"""Programs print in the notation of the paper, and read back equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import random_program, random_programs

from widelimit import scalar
from widelimit._errors import InvalidProgramError, ParseError
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
    Primitive,
    ProgramBuilder,
    Readout,
    TensorArg,
    TensorProgram,
    Term,
    Transpose,
    VecIn,
    identity_maps,
    parse,
    to_text,
)

N = Dim.of("n")
QUIET = settings(
    deadline=None, max_examples=25, suppress_health_check=list(HealthCheck)
)


def test_prints_in_the_notation_of_the_paper() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    a = p.matrix("A", ("m", "n"), std=1.3)
    y = (a @ x).named("y")
    z = p.nonlin(jax.nn.relu, y, name="z")
    t = p.moment(lambda u: u * u, z, name="t")
    (a.T @ z).named("w")
    (2.0 * y - t * z).named("s")
    assert str(p) == (
        "x   : G[n]    := vecin(mean=0.0, std=1.0)\n"
        "A   : A[m, n] := matin(std=1.3)\n"
        "y   : G[m]    := A @ x\n"
        "z   : H[m]    := nonlin(max(y, 0.0))\n"
        "t   : scalar  := E[z * z]\n"
        "A_T : A[n, m] := A.T\n"
        "w   : G[n]    := A_T @ z\n"
        "s   : H[m]    := 2.0 * y - t * z"
    )


def everything() -> TensorProgram:
    """Every kind of line and of argument."""
    u, v = scalar.Arg(0), scalar.Arg(1)
    window = AxisMap((0, 2), [[-1, 0, 1], [1, 2, 3], [3, -1, -1]])
    stencil = AxisMap((0, 2), [[-1, 0, 1], [0, 1, 2], [1, 2, 3]])
    big = Dim.of("n", 3)
    quarter = Dim((("m", 1), ("n", Dim.of("n", 1).terms[0][1] / 4)))
    return TensorProgram(
        lines=(
            Map(name="s", op=Input("data['x']"), args=(), shape=(4, 1)),
            Map(
                name="c",
                op=Constant(Array(np.array([[1, 2], [3, 4]]))),
                args=(),
                shape=(2, 2),
            ),
            Map(name="e", op=Constant(Array(np.zeros((0, 2)))), args=(), shape=(0, 2)),
            Map(name="sd", op=Constant(Array(np.float64(1.5))), args=(), shape=()),
            VecIn(name="x", shape=(4, 2), dim=N, mean=0.25, std=TensorArg(3, ())),
            VecIn(
                name="g",
                shape=(2,),
                dim=N,
                mean=Array(np.array([0.1, -0.0])),
                cov=Array(np.array([[1.0, 0.5], [0.5, 1.0]])),
                per_example=True,
            ),
            MatIn(name="W", shape=(1, 3), rows=big, cols=N, std=TensorArg(3, ())),
            Transpose(name="Wt", matrix=6),
            MatMul(
                name="y",
                matrix=6,
                letters=(-1, 2),
                x=4,
                maps=(stencil, AxisMap.identity(1, 2)),
                shape=(3, 2),
                sums=(3,),
            ),
            Nonlin(name="h", fn=scalar.call("mul", u, v), xs=(8, 8)),
            Moment(
                name="t",
                fn=scalar.call("mul", v, u),
                xs=(9, 8),
                tensors=(TensorArg(3, ()),),
            ),
            Map(
                name="r",
                op=Elementwise(scalar.call("sub", v, u), ((0, 1), ())),
                args=(10, 3),
                shape=(3, 2),
            ),
            LinComb(
                name="q",
                terms=(
                    Term(
                        4,
                        -0.5,
                        (TensorArg(10, (0, 1)),),
                        (
                            AxisMap((0,), [3, 0, 2]),
                            AxisMap((0, 1), [[0, 0], [1, 1], [0, 1]]),
                        ),
                    ),
                    Term(4, 1.0, (), (window, AxisMap.identity(1, 2)), (3,)),
                    Term(None, 2.0, (TensorArg(3, ()),)),
                    Term(None, -1.0),
                ),
                shape=(3, 2),
            ),
            VecIn(name="v", shape=(3,), dim=N),
            Readout(
                name="f",
                v=13,
                letters=(0,),
                x=12,
                maps=(AxisMap.identity(0, 3), AxisMap.identity(1, 2)),
                shape=(3,),
                sums=(2,),
            ),
            VecIn(name="b", shape=(3,), dim=None, std=0.5),
            LinComb(
                name="o",
                terms=(
                    Term(14, 1.0, (), identity_maps((3,))),
                    Term(15, 1.0, (), identity_maps((3,))),
                ),
                shape=(3,),
            ),
            VecIn(name="p q", shape=(), dim=quarter),
            Map(
                name="d",
                op=Primitive("transpose", (("permutation", (1, 0)), ("kind", None))),
                args=(1,),
                shape=(2, 2),
            ),
            Map(
                name="k",
                op=Primitive("convert", (("new_dtype", np.dtype("float32")),)),
                args=(1,),
                shape=(2, 2),
            ),
            Nonlin(name="one", fn=scalar.Const(1.0), xs=(8,)),
        ),
        outputs=(16, 12),
        taps=(("h/1", 9),),
    )


def test_every_kind_of_line_reads_back_equal() -> None:
    program = everything()
    assert parse(to_text(program)) == program
    assert to_text(parse(to_text(program))) == to_text(program)


def test_sources_are_comments() -> None:
    p = ProgramBuilder()
    p.vector("x", "n")
    text = to_text(p.tensor_program, sources=True)
    assert "# " in text
    assert "test_text.py" in text
    assert parse(text) == p.tensor_program


MAPS = [
    (AxisMap((0,), [0, 1, 2, 3]), 4, "i"),
    (AxisMap((0,), [1, 2, 3, -1]), 4, "i + 1"),
    (AxisMap((0,), [3, 2, 1, 0]), 4, "-i + 3"),
    (AxisMap((0,), [0, 2, 4, 6]), 8, "2*i"),
    (AxisMap((0,), [0, 0, 1, 1]), 2, "i // 2"),
    (AxisMap((0,), [0, 1, 0, 1]), 2, "i % 2"),
    (AxisMap((0,), [0, 0, 1, 1, 0, 0, 1, 1]), 2, "i // 2 % 2"),
    (AxisMap((0,), [2, 2]), 4, "0*i + 2"),
    (AxisMap((0,), [-1, 0]), 4, "i - 1"),
    (AxisMap((0,), [-1, -1]), 4, "[-1, -1][i]"),
    (AxisMap((0,), [2, 0, 1]), 3, "[2, 0, 1][i]"),
    (AxisMap((), 3), 4, "3"),
    (AxisMap((), -1), 4, "-1"),
    (AxisMap((0, 1), [[-1, 0], [1, 2], [3, -1]]), 4, "2*i + j - 1"),
    (AxisMap((0, 1), [[0, 0], [0, 1], [1, 1]]), 2, "(2*i + j) // 3"),
    (AxisMap((0, 1), [[0, 3], [1, 0]]), 4, "[[0, 3], [1, 0]][i, j]"),
    (AxisMap((0,), []), 4, "[][i]"),
]


@pytest.mark.parametrize(("m", "size", "text"), MAPS, ids=[m[2] for m in MAPS])
def test_index_maps(m: AxisMap, size: int, text: str) -> None:
    shape = m.table.shape
    program = TensorProgram(
        (
            VecIn(name="x", shape=(size,), dim=N),
            LinComb(name="y", terms=(Term(0, maps=(m,)),), shape=shape),
        )
    )
    assert f"x[{text}]" in to_text(program)
    assert parse(to_text(program)) == program


@QUIET
@given(st.data())
def test_random_index_maps(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    letters = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    own = tuple(shape[i] for i in sorted(letters))
    count = int(np.prod(own))
    values = data.draw(st.lists(st.integers(-1, 4), min_size=count, max_size=count))
    m = AxisMap(tuple(sorted(letters)), np.array(values).reshape(own))
    program = TensorProgram(
        (
            VecIn(name="x", shape=(5,), dim=N),
            LinComb(name="y", terms=(Term(0, maps=(m,)),), shape=shape),
        )
    )
    assert parse(to_text(program)) == program


@QUIET
@given(random_programs(transposes=True, families=True))
def test_random_programs_read_back_equal(p: ProgramBuilder) -> None:
    program = p.tensor_program
    assert parse(str(p)) == program
    assert to_text(parse(str(p))) == str(p)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_simulation_is_that_of_the_printed_program(seed: int) -> None:
    p = random_program(np.random.default_rng(seed), transposes=True, families=True)
    q = ProgramBuilder.from_program(parse(str(p)))
    widths, key = {"n": 24, "m": 36}, jax.random.key(seed)
    mine, theirs = p.simulate(widths, key, seeds=2), q.simulate(widths, key, seeds=2)
    assert list(mine) == list(theirs)
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-12, atol=1e-12)


def test_a_text_by_hand() -> None:
    p = ProgramBuilder.from_program(
        parse(
            """
            # A convolution with two filter positions.
            x[a<4] : G[n] := vecin(std=2.0)   # the pixels
            W[k<2] : A[n, n] := matin(std=1.0)
            y[a<4] : G[n] := sum_{k<2} W[k] @ x[a + k]
            h[a<4] : H[n] := nonlin(tanh(y))
            s      : H[n] := sum_{a<4} 0.25 * h[a]
            return s
            """
        )
    )
    assert len(p) == 5
    values = p.simulate({"n": 8}, jax.random.key(0))
    np.testing.assert_allclose(values["s"], values["h"].mean(1), atol=1e-12)
    assert p.tensor_program.outputs == (p["s"].ref,)


BAD = [
    ("x : G[n] := vecin(\n", 1, "expected `)`"),
    ("x G[n] := vecin()", 1, "expected `:`"),
    ("x : Q[n] := vecin()", 1, "expected a type"),
    ("x : G[n, m] := vecin()", 1, "one width"),
    ("x : G[n] := vecin()\ny : G[n] := x + z", 2, "`z` is not defined above"),
    ("x : G[n] := vecin()\nx : G[n] := vecin()", 2, "defined twice"),
    ("x : G[n] := vecin()\n\ny : G[n] := tanh(x)", 3, "`tanh` is not defined"),
    ("x : G[n] := vecin()\ny : H[n] := nonlin(tan_h(x))", 2, "not an operation"),
    (
        "x : G[n] := vecin()\ny : G[n] := nonlin(tanh(x))",
        2,
        "declared G[n], but it is H",
    ),
    ("x : G[n] := vecin()\ny : G[n] := 2.0", 2, "expected `*`"),
    ("x : G[n] := vecin()\ny : G[n] := x x", 2, "expected `+`"),
    ("x : G[n] := vecin()\ny : G[n] := x[0]", 2, "needs 0 indices, got 1"),
    ("x[i<3] : G[n] := vecin()\ny : G[n] := x[3]", 2, "leaves an axis of size 3"),
    ("x[i<3] : G[n] := vecin()\ny : G[n] := x[j]", 2, "not an index letter"),
    ("x[i<3] : G[n] := vecin()\ny[j<3] : G[n] := x[j*0.5]", 2, "not an index"),
    ("x[i<3, i<3] : G[n] := vecin()", 1, "used twice"),
    ("x[i<2.5] : G[n] := vecin()", 1, "whole number"),
    ("x : G[n] := vecin(var=1.0)", 1, "expected one of mean, std, cov"),
    ("x : G[n] := vecin(mean=hello)", 1, "not a number or an array"),
    ("x : G[n] := vecin()\nt : scalar := F[x]", 2, "expected"),
    ("x : G[n] := vecin()\nt : scalar := E[x * x; x=x", 2, "expected `]`"),
    ("x : G[n] := vecin()\nt : scalar := E[u * x; u=x]", 2, "not among the arguments"),
    (
        "A : A[m, n] := matin()\nx : G[m] := vecin()\ny : G[m] := A @ x",
        3,
        "takes width n",
    ),
    ("A : A[m, n] := matin()\ny : G[m] := A @ A", 2, "needs a matrix and a vector"),
    ("x : G[n] := vecin() ; 3", 1, "end of the line"),
    ("x : G[n] := vecin() $", 1, "not part of the language"),
    ("return x", 1, "not defined"),
    ("tap h = x", 1, "quotes"),
    ("t : scalar := primitive('f'; p=<Weird>)", 1, "has no text form"),
    ("t : scalar := map(u + 1.0)", 1, "`u` is not defined"),
    ("t : scalar := constant([1.0])", 1, "shape"),
]


@pytest.mark.parametrize(("text", "line", "expected"), BAD)
def test_bad_text(text: str, line: int, expected: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"Line {line}: `{text.splitlines()[line - 1].strip()}`")
    assert expected in message


def test_a_parameter_without_text_prints_and_refuses_to_be_read() -> None:
    op = Primitive("gather", (("mode", object()),))
    program = TensorProgram((Map(name="t", op=op, args=(), shape=()),))
    assert "mode=<object>" in str(program)
    with pytest.raises(ParseError, match="no text form"):
        parse(str(program))


def test_two_lines_of_one_name_cannot_be_printed() -> None:
    x = VecIn(name="x", shape=(), dim=N)
    with pytest.raises(InvalidProgramError, match="used twice"):
        to_text(TensorProgram((x, x)))


def test_functions_print_readably() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    t = p.moment(lambda u: u**2, x, name="t")
    p.nonlin(lambda s, u: u / jnp.sqrt(s), t, x, name="y")
    assert "nonlin(x / sqrt(t))" in str(p)
