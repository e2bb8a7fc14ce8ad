"""Backward passes are the gradients, at finite width and to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_witness import check
from hypothesis import HealthCheck, given, settings
from strategies import random_program, random_programs

import widelimit as wl
from widelimit._errors import InputError, InvalidProgramError, UnsupportedError
from widelimit.program import (
    Array,
    AxisMap,
    Constant,
    Dim,
    Elementwise,
    Handle,
    LinComb,
    Map,
    MatIn,
    MatMul,
    Moment,
    Nonlin,
    ProgramBuilder,
    Ratio,
    Readout,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    Vector,
    Writer,
    identity_maps,
    parse,
    verify,
)
from widelimit.scalar import from_callable
from widelimit.transform import at_ratios, backprop

WIDTHS = {"n": 5, "m": 7}
N = Dim.of("n")


def with_outputs(p: ProgramBuilder) -> tuple[TensorProgram, list[int]]:
    """The program, and lines of every kind that can be differentiated."""
    types = p.tensor_program.types
    plain = [r for r, t in enumerate(types) if isinstance(t, Vector) and not t.shape]
    h = list(p)[plain[-1]]
    v = p.append(VecIn(name="v_out", shape=(3,), dim=h.dim))
    f = readout(p, "f_out", v, h, (0,), (), (3,))
    t = p.moment(lambda u: u * u, h, name="t_out")
    outputs = [f.ref, t.ref, h.ref]
    if "output" in p:
        outputs += [p[name].ref for name in ("output", "f", "energy", "mixed")]
    return p.tensor_program, outputs


def readout(
    p: ProgramBuilder,
    name: str,
    v: Handle,
    x: Handle,
    letters: tuple[int, ...],
    maps: tuple[AxisMap, ...],
    shape: tuple[int, ...],
    sums: tuple[int, ...] = (),
) -> Handle:
    line = Readout(
        name=name, v=v.ref, letters=letters, x=x.ref, maps=maps, shape=shape, sums=sums
    )
    return p.append(line)


def check_all(program: TensorProgram, outputs: list[int]) -> None:
    done = backprop(program, outputs)
    verify(done.program)
    assert parse(str(done.program)) == done.program
    check(program, done, WIDTHS)


@pytest.mark.parametrize(
    ("seed", "transposes", "families"), [(1, True, False), (0, True, True)]
)
def test_gradients_of_random_programs(
    seed: int, transposes: bool, families: bool
) -> None:
    p = random_program(np.random.default_rng(seed), transposes, families)
    check_all(*with_outputs(p))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transposes", "families"), [(False, False), (True, False), (True, True)]
)
def test_gradients_of_many_random_programs(transposes: bool, families: bool) -> None:
    @given(random_programs(transposes, families))
    @settings(max_examples=17, deadline=None, suppress_health_check=list(HealthCheck))
    def run(p: ProgramBuilder) -> None:
        check_all(*with_outputs(p))

    run()


# --------------------------------------------------------------- lines by themselves
def family(p: ProgramBuilder, name: str, shape: tuple[int, ...]) -> Handle:
    return p.append(VecIn(name=name, shape=shape, dim=N, mean=0.3))


def constant(p: ProgramBuilder, name: str, value: np.ndarray) -> Handle:
    line = Map(name=name, op=Constant(Array(value)), args=(), shape=value.shape)
    return p.append(line)


def tables() -> dict[str, tuple[tuple[AxisMap, ...], tuple[int, ...], tuple[int, ...]]]:
    """Ways to read an array of shape (4, 3): maps, positions, summed letters."""
    row, col = AxisMap.identity(0, 4), AxisMap.identity(1, 3)
    stride = 2 * np.arange(2)[:, None] + np.arange(3) - 1
    stride = np.where((stride < 0) | (stride > 3), -1, stride)
    return {
        "as it is": ((row, col), (4, 3), ()),
        "one row": ((AxisMap((), 2), AxisMap.identity(0, 3)), (3,), ()),
        "one entry": ((AxisMap((), 2), AxisMap((), 1)), (), ()),
        "a diagonal": (
            (AxisMap((0,), np.arange(3)), AxisMap.identity(0, 3)),
            (3,),
            (),
        ),
        "turned around": (
            (AxisMap((1,), [3, 2, 1, 0]), AxisMap.identity(0, 3)),
            (3, 4),
            (),
        ),
        "repeated": ((AxisMap((0,), [0, 0, 1, 3, 3]), col), (5, 3), ()),
        "stretched": ((row, col), (4, 3, 2), ()),
        "strided windows": ((AxisMap((0, 2), stride), col), (2, 3), (3,)),
        "pooled": ((AxisMap.identity(1, 4), AxisMap.identity(0, 3)), (3,), (4,)),
        "summed": ((AxisMap.identity(0, 4), AxisMap.identity(1, 3)), (), (4, 3)),
        "some summed entries": (
            (AxisMap((0,), [3, -1, 1]), AxisMap((), 0)),
            (),
            (3,),
        ),
        "split": (
            (AxisMap((0, 1), [[0, 1], [2, 3]]), AxisMap.identity(2, 3)),
            (2, 2, 3),
            (),
        ),
    }


FAST = ("strided windows", "one entry")


@pytest.mark.parametrize("reading", FAST)
def test_lines_that_read_families(reading: str) -> None:
    check_reading(*tables()[reading])


@pytest.mark.slow
@pytest.mark.parametrize("reading", tables())
def test_lines_that_read_families_in_all_ways(reading: str) -> None:
    check_reading(*tables()[reading])


def check_reading(
    maps: tuple[AxisMap, ...], shape: tuple[int, ...], sums: tuple[int, ...]
) -> None:
    """MatMul (of one matrix, of a family), LinComb and Readout read at the maps."""
    sizes = shape + sums
    letters = tuple(range(len(sizes)))
    p = ProgramBuilder()
    x = family(p, "x", (4, 3))
    a = p.append(MatIn(name="A", shape=(), rows=N, cols=N))
    b = p.append(MatIn(name="B", shape=sizes[-1:], rows=Dim.of("m"), cols=N))
    ax = p.append(product("ax", a, (), x, maps, shape, sums))
    bx = p.append(product("bx", b, letters[-1:], x, maps, shape, sums))
    read = LinComb(name="read", terms=(Term(x.ref, maps=maps),), shape=sizes)
    t = p.moment(lambda u: jnp.tanh(u) ** 2, p.append(read), name="t")
    c = constant(p, "c", np.linspace(-1.0, 1.0, int(np.prod(sizes))).reshape(sizes))
    of_c, of_t = TensorArg(c.ref, letters), TensorArg(t.ref, letters)
    terms = (
        Term(x.ref, 0.5, (of_c,), maps, sums),
        Term(x.ref, -2.0, (), maps, sums),
        Term(x.ref, 0.7, (of_t, of_c, of_t), maps, sums),
        Term(None, 0.3, (of_t,), (), sums),
        Term(ax.ref, maps=identity_maps(shape)),
    )
    y = p.append(LinComb(name="y", terms=terms, shape=shape))
    v, w = (
        p.append(VecIn(name=name, shape=s, dim=N))
        for name, s in (("v", sizes), ("w", (2,)))
    )
    f = readout(p, "f", v, x, letters, maps, shape, sums)
    behind = tuple(
        AxisMap(tuple(i + (i >= len(shape)) for i in m.letters), m.table) for m in maps
    )
    g = readout(p, "g", w, y, (len(shape),), identity_maps(shape), (*shape, 2))
    h = readout(p, "h", w, x, (len(shape),), behind, (*shape, 2), sums)
    check_all(p.tensor_program, [bx.ref, f.ref, g.ref, h.ref])


def product(
    name: str,
    matrix: Handle,
    letters: tuple[int, ...],
    x: Handle,
    maps: tuple[AxisMap, ...],
    shape: tuple[int, ...],
    sums: tuple[int, ...],
) -> MatMul:
    return MatMul(
        name=name, matrix=matrix.ref, letters=letters, x=x.ref, maps=maps,
        shape=shape, sums=sums,
    )  # fmt: skip


def test_functions_of_tensors() -> None:
    """Elementwise maps and primitives, tensors of some letters, and a diagonal."""
    p = ProgramBuilder()
    x = family(p, "x", (3, 3))
    t = p.moment(lambda u: jnp.tanh(u) ** 2, x, name="t")

    def elementwise(name: str, fn: object, *args: TensorArg, shape: tuple) -> Handle:
        op = Elementwise(from_callable(fn, len(args)), tuple(a.letters for a in args))
        refs = tuple(a.ref for a in args)
        return p.append(Map(name=name, op=op, args=refs, shape=shape))

    rows = elementwise(
        "rows", lambda u, v: u / (1 + v * v), TensorArg(t.ref, (1, 0)),
        TensorArg(t.ref, (0, 1)), shape=(3, 3),
    )  # fmt: skip
    writer = Writer(p.tensor_program)
    writer.call(lambda u: jnp.sum(jax.nn.softmax(u), axis=0), [rows.ref], "")
    p = ProgramBuilder.from_program(TensorProgram(tuple(writer.lines)))
    soft = len(p) - 1
    wide = p.append(
        Nonlin(
            name="y",
            fn=from_callable(lambda u, d, s, r: u * d + jnp.sin(s) + r, 4),
            xs=(x.ref,),
            tensors=(
                TensorArg(rows.ref, (0, 0)),
                TensorArg(soft, (1,)),
                TensorArg(rows.ref, (0, 1)),
            ),
        )
    )
    s = p.append(
        Moment(
            name="s",
            fn=from_callable(lambda u, r: u * u * r, 2),
            xs=(wide.ref,),
            tensors=(TensorArg(soft, (0,)),),
        )
    )
    program = p.tensor_program
    check(program, backprop(program, [s.ref, wide.ref]), WIDTHS)


# -------------------------------------------------------------------------- the outputs
def two_readouts() -> ProgramBuilder:
    """f[i] = c[i] (2 g[1 - i] + h) + bias[i - 1], read out at two widths."""
    p = ProgramBuilder()
    x, y = p.vector("x", "n"), p.vector("y", "m")
    a = p.matrix("A", ("m", "n"))
    z = p.nonlin(jnp.tanh, a @ x + y, name="z")
    v = p.append(VecIn(name="v", shape=(2,), dim=N))
    w = p.append(VecIn(name="w", shape=(), dim=Dim.of("m")))
    g = readout(p, "g", v, p.nonlin(jnp.sin, x), (0,), (), (2,))
    h = readout(p, "h", w, z, (), (), ())
    bias = p.append(VecIn(name="bias", shape=(2,), dim=None))
    c = constant(p, "c", np.array([0.5, -1.5]))
    swap, here = AxisMap((0,), [1, 0]), AxisMap.identity(0, 2)
    inner = LinComb(
        name="inner",
        shape=(2,),
        terms=(
            Term(g.ref, 2.0, (), (swap,)),
            Term(h.ref, 1.0, (TensorArg(c.ref, (0,)),)),
            Term(bias.ref, maps=(AxisMap((0,), [-1, 0]),)),
        ),
    )
    terms = (
        Term(p.append(inner).ref, 1.0, (TensorArg(c.ref, (0,)),), (swap,)),
        Term(h.ref, 0.3),
        Term(None, 1.0),
        Term(p["inner"].ref, 1.0, (), (AxisMap((1,), [1, -1, 0]),), (3,)),
        Term(bias.ref, 0.0, maps=(here,)),
    )
    p.append(LinComb(name="f", terms=terms, shape=(2,)))
    return p


def test_combinations_of_readouts_of_two_widths() -> None:
    p = two_readouts()
    check_all(p.tensor_program, [p["f"].ref])


def test_ratios_of_widths_are_numbers_in_the_limit() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    t = p.moment(lambda u: u * u, x, name="t")
    y = p.nonlin(lambda u, s: u * s, p.vector("y", "m"), t, name="y2")
    s = p.moment(lambda u: u, y, name="s")
    program = backprop(p.tensor_program, [s.ref]).program
    check_all(p.tensor_program, [s.ref])
    ops = [line.op for line in program.lines if isinstance(line, Map)]
    assert Ratio(Dim.of("m"), N) in ops
    done = at_ratios(program, {"n": 2.0, "m": 3.0})
    (value,) = (
        new.op.value.value
        for old, new in zip(program.lines, done.lines, strict=True)
        if isinstance(new, Map) and isinstance(new.op, Constant) and old != new
    )
    assert value == 1.5
    assert at_ratios(done) == done


def test_adjoints_are_absent_where_nothing_depends() -> None:
    p = ProgramBuilder()
    x, y = p.vector("x", "n"), p.vector("y", "n")
    t = p.moment(lambda u: u, x, name="t")
    step = p.nonlin(lambda u, v: jnp.sign(u) + v, y, x)
    s = p.moment(lambda u: u * 2.0, step, name="s")
    p.nonlin(jnp.tanh, y, name="unused")
    del t
    back = backprop(p.tensor_program, [s.ref])
    assert sorted(back.gradient) == [x.ref, step.ref, s.ref]
    check(p.tensor_program, back, WIDTHS)


def test_a_convolution_is_transposed_to_a_convolution() -> None:
    """Two lines forward, two lines back, and the matrix keeps its letter."""
    p = ProgramBuilder()
    x = family(p, "x", (6,))
    k = p.append(MatIn(name="K", shape=(3,), rows=N, cols=N))
    grid = np.add.outer(np.arange(6), np.arange(3)) - 1
    window = AxisMap((0, 1), np.where((grid < 0) | (grid > 5), -1, grid))
    y = p.append(product("y", k, (1,), x, (window,), (6,), (3,)))
    z = p.nonlin(jnp.tanh, y, name="z")
    v = p.append(VecIn(name="v", shape=(6,), dim=N))
    f = readout(p, "f", v, z, (0,), identity_maps((6,)), (), (6,))
    text = str(backprop(p.tensor_program, [f.ref]).program)
    assert text.splitlines()[-3:] == [
        "d_y[i<6] : H[n]    := nonlin((1.0 - tanh(y)**2.0) * v)",
        "K_T[i<3] : A[n, n] := K.T",
        "d_x[i<6] : G[n]    := sum_{j<3} K_T[j] @ d_y[i - j + 1]",
    ]


# ------------------------------------------------------------------------------- errors
def test_a_program_without_outputs_is_refused() -> None:
    with pytest.raises(InvalidProgramError, match="no output to differentiate"):
        backprop(ProgramBuilder().tensor_program)


def test_what_depends_on_no_vector_is_refused() -> None:
    p = ProgramBuilder()
    c = constant(p, "c", np.ones(2))
    b = p.append(VecIn(name="b", shape=(), dim=None))
    for line in (c, b):
        with pytest.raises(InvalidProgramError, match="depends on no wide vector"):
            backprop(p.tensor_program, [line.ref])


def test_a_matrix_is_refused() -> None:
    p = ProgramBuilder()
    a = p.matrix("A", ("n", "n"))
    with pytest.raises(InvalidProgramError, match="`A` is a matrix"):
        backprop(p.tensor_program, [a.ref])


def test_a_scalar_outside_the_readout_is_refused() -> None:
    p = two_readouts()
    t = p.moment(lambda u: u * u, p["x"], name="t")
    term = Term(p["h"].ref, 1.0, (TensorArg(t.ref, ()),))
    f = p.append(LinComb(name="bad", terms=(term,), shape=()))
    with pytest.raises(UnsupportedError, match="`bad` has a coefficient, `t`"):
        backprop(p.tensor_program, [f.ref])


def test_a_primitive_read_from_text_is_refused() -> None:
    p = ProgramBuilder()
    t = p.moment(lambda u: u * u, family(p, "x", (3,)), name="t")
    writer = Writer(p.tensor_program)
    total = writer.call(jnp.sum, [t.ref], "")
    program = parse(str(TensorProgram(tuple(writer.lines))))
    with pytest.raises(InvalidProgramError, match="was read from text"):
        backprop(program, [total])


def test_adjoints_of_several_outputs_are_asked_for_one_by_one() -> None:
    p = two_readouts()
    back = backprop(p.tensor_program, [p["f"].ref, p["g"].ref])
    with pytest.raises(InvalidProgramError, match="from 2 outputs"):
        _ = back.gradient
    names = [back.program.lines[g.adjoints[p["x"].ref]].name for g in back.gradients]
    assert names == ["d_f_x", "d_g_x"]


# --------------------------------------------------------------------------- front door
def test_front_door() -> None:
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("m", "n"))
    y = (a @ x).named("y")
    t = p.moment(lambda u: u**2, y, name="t")
    s = p.moment(lambda u: jnp.tanh(u), x, name="s")
    back = wl.backprop(p, [t, "s"])
    values = back.program.simulate(WIDTHS, jax.random.key(0))
    grad = back.gradient(y, t)
    assert grad is not None
    assert grad.name == "d_t_y"
    np.testing.assert_allclose(values[grad], 2.0 * values["y"], rtol=1e-12)
    assert back.gradient("y", s) is None
    assert back.gradient("x", "s") is not None
    assert wl.backprop(p.tensor_program, "t").gradient("y") is not None
    with pytest.raises(InputError, match="Name one of the outputs `t`, `s`"):
        back.gradient("y")
    with pytest.raises(InputError, match="another program"):
        back.gradient(wl.Program().vector("x", "n"), t)
    with pytest.raises(InputError, match="no line `u`"):
        wl.backprop(p, "u")
