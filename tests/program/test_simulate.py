"""Programs at finite widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _jax, scalar
from widelimit._errors import InputError, InvalidProgramError, ShapeMismatchError
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
    Primitive,
    ProgramBuilder,
    Readout,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    _simulate,
    parse,
    simulate,
)

KEY = jax.random.key(0)
N = Dim.of("n")


def test_entries_have_the_declared_moments() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n", mean=0.7, var=2.0)
    p.matrix("A", ("m", "n"), std=1.3) @ x
    v = p.simulate({"n": 50, "m": 200}, KEY, seeds=400)
    n = v["x"].size
    assert v["x"].dtype == jnp.float64
    assert abs(float(v["x"].mean()) - 0.7) < 5 * (2.0 / n) ** 0.5
    assert abs(float(v["x"].var()) - 2.0) < 5 * 2.0 * (2.0 / n) ** 0.5


def test_matrix_entries_have_variance_over_the_columns() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n", mean=1.0, var=0.0)
    y = p.matrix("A", ("m", "n"), std=1.5) @ x
    y.named("y")
    v = p.simulate({"n": 10, "m": 40}, KEY, seeds=500)["y"]
    # A row sum of n entries of variance 1.5**2 / n, over 20,000 independent rows.
    assert abs(float(v.var()) - 2.25) < 5 * 2.25 * (2 / v.size) ** 0.5


def test_the_transpose_is_the_same_matrix() -> None:
    p = ProgramBuilder()
    x, u = p.vector("x", "n"), p.vector("u", "m")
    a = p.matrix("A", ("m", "n"))
    left = p.moment(lambda s, t: s * t, a @ x, u)
    right = p.moment(lambda s, t: s * t, x, a.T @ u)
    v = p.simulate({"n": 30, "m": 60}, KEY, seeds=3)
    np.testing.assert_allclose(60 * v[left], 30 * v[right], rtol=1e-11)


def test_seeds_are_prefixes_and_draws_follow_names() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    a = p.matrix("A", ("n", "n"))
    (a @ x).named("y")
    q = ProgramBuilder()
    b = q.matrix("A", ("n", "n"))
    q.vector("other", "n")
    (b @ q.vector("x", "n")).named("y")
    few, many = p.simulate({"n": 5}, KEY, 2), p.simulate({"n": 5}, KEY, 5)
    np.testing.assert_array_equal(few["y"], many["y"][:2])
    np.testing.assert_array_equal(few["y"], q.simulate({"n": 5}, KEY, 2)["y"])
    assert len(np.unique(np.asarray(many["x"]).round(12))) == 25


def test_batches_of_seeds_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    p = ProgramBuilder()
    (p.matrix("A", ("n", "n")) @ p.vector("x", "n")).named("y")
    whole = p.simulate({"n": 6}, KEY, 5)
    monkeypatch.setattr(_simulate, "_BATCH_BYTES", 800)
    parts = p.simulate({"n": 6}, KEY, 5)
    assert parts["y"].shape == (5, 6)
    np.testing.assert_allclose(parts["y"], whole["y"], rtol=1e-13)


def test_single_precision_when_x64_is_off() -> None:
    p = ProgramBuilder()
    p.vectors(["x", "y"], "n", mean=1.0)
    with _jax.enable_x64(False):
        v = p.simulate({"n": 6}, jax.random.key(0))
        assert v["x"].dtype == jnp.float32


def test_lookup() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    a = p.matrix("A", ("n", "n"))
    v = p.simulate({"n": 4}, KEY)
    assert list(v) == ["x"]
    assert len(v) == 1
    np.testing.assert_array_equal(v[x], v["x"])
    np.testing.assert_array_equal(v[x.ref], v["x"])
    y = (a @ x).named("y")
    for missing in (y, "y", "A", 7):
        with pytest.raises(InputError, match="lines with values: x"):
            v[missing]


def stencil_program(size: int = 4, filters: int = 3) -> TensorProgram:
    grid = np.add.outer(np.arange(size), np.arange(filters)) - 1
    window = AxisMap((0, 2), np.where((grid < 0) | (grid >= size), -1, grid))
    return TensorProgram(
        (
            Map(name="s", op=Input("s"), args=(), shape=(1, filters)),
            VecIn(name="x", shape=(size,), dim=N, mean=Array(np.arange(size) * 1.0)),
            MatIn(name="W", shape=(filters, 2), rows=N, cols=N),
            MatMul(
                name="y",
                matrix=2,
                letters=(2, 1),
                x=1,
                maps=(window,),
                shape=(size, 2),
                sums=(filters,),
            ),
            LinComb(
                name="z",
                shape=(size, 2),
                terms=(
                    Term(1, 2.0, (TensorArg(0, (-1, 2)),), (window,), (filters,)),
                    Term(
                        3, -1.0, (), (AxisMap.identity(0, size), AxisMap((1,), [1, 0]))
                    ),
                ),
            ),
            VecIn(name="v", shape=(2,), dim=N),
            Readout(
                name="f",
                v=5,
                letters=(1,),
                x=3,
                maps=(AxisMap.identity(0, size), AxisMap.identity(1, 2)),
                shape=(size,),
                sums=(2,),
            ),
        )
    )


def test_index_families_against_loops() -> None:
    p = ProgramBuilder.from_program(stencil_program())
    one = p.append(VecIn(name="probe", shape=(), dim=N))
    coefficients = np.array([[0.5, -1.0, 2.0]])
    v = p.simulate({"n": 5}, KEY, seeds=2, inputs={"s": coefficients})
    x, y = np.asarray(v["x"]), np.asarray(v["y"])
    z = np.zeros((2, 4, 2, 5))
    for i in range(4):
        for k in range(3):
            if 0 <= i + k - 1 < 4:
                z[:, i] += 2.0 * coefficients[0, k] * x[:, None, i + k - 1]
        z[:, i] -= y[:, i, ::-1]
    np.testing.assert_allclose(v["z"], z, rtol=1e-12)
    f = np.einsum("scn,sicn->si", v["v"], y) / np.sqrt(5)
    np.testing.assert_allclose(v["f"], f, rtol=1e-12)
    assert v[one].shape == (2, 5)


def test_matrix_families_against_single_matrices() -> None:
    text = """
    W[k<2] : A[n, n] := matin()
    x[i<3] : G[n] := vecin()
    a[k<2, i<3] : G[n] := W[k] @ x[i]
    y[i<3] : G[n] := sum_{k<2} W[k] @ x[2*i + k - 1]
    """
    v = simulate(parse(text), {"n": 4}, KEY)
    a, y = np.asarray(v["a"][0]), np.asarray(v["y"][0])
    expected = [a[1, 0], a[0, 1] + a[1, 2], np.zeros(4)]
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_maps_constants_and_primitives() -> None:
    graph, _ = _jax.trace(jnp.transpose, jax.ShapeDtypeStruct((2, 3), np.float64))
    (equation,) = graph.equations
    data = np.arange(6.0).reshape(2, 3)
    fn = scalar.call("add", scalar.Arg(0), scalar.Arg(1))
    program = TensorProgram(
        (
            Map(name="c", op=Constant(Array(data)), args=(), shape=(2, 3)),
            Map(
                name="t",
                op=Primitive("transpose", (("permutation", (1, 0)),), equation),
                args=(0,),
                shape=(3, 2),
            ),
            Map(
                name="e",
                op=Elementwise(fn, ((1, 0), (0, 1))),
                args=(0, 1),
                shape=(3, 2),
            ),
            Map(name="d", op=Elementwise(scalar.Const(2.0), ()), args=(), shape=(3,)),
        )
    )
    v = simulate(program, {}, KEY)
    np.testing.assert_array_equal(v["t"][0], data.T)
    np.testing.assert_array_equal(v["e"][0], 2 * data.T)
    np.testing.assert_array_equal(v["d"][0], [2.0, 2.0, 2.0])
    with pytest.raises(InvalidProgramError, match=r"`transpose`.*read from text"):
        simulate(parse(str(program)), {}, KEY)


def test_a_scale_that_is_an_input() -> None:
    text = """
    s : scalar := input('s')
    x : G[n] := vecin(mean=1.0, std=s)
    A : A[n, n] := matin(std=s)
    b[i<2] : output := vecin(std=s)
    """
    v = simulate(parse(text), {"n": 3}, KEY, inputs={"s": 0.0})
    np.testing.assert_array_equal(v["x"], np.ones((1, 3)))
    np.testing.assert_array_equal(v["b"], np.zeros((1, 2)))


def test_rectangular_and_split_widths() -> None:
    text = "x : G[n/4] := vecin()\ny : G[2*n + m] := vecin()"
    v = simulate(parse(text), {"n": 8, "m": 3}, KEY)
    assert v["x"].shape == (1, 2)
    assert v["y"].shape == (1, 19)
    with pytest.raises(InvalidProgramError, match=r"n/4 is 9/4"):
        simulate(parse(text), {"n": 9, "m": 3}, KEY)


BAD_WIDTHS = [
    ({}, "width `n` of line `x`"),
    ({"m": 3}, "given: m"),
    ({"n": 2.5}, "whole number"),
    ({"n": 0}, "at least 1"),
    ({"n": -3}, "at least 1"),
    ({"n": "4"}, "whole number"),
    ({"n": True}, "whole number"),
]


@pytest.mark.parametrize(("widths", "message"), BAD_WIDTHS)
def test_bad_widths(widths: dict, message: str) -> None:
    p = ProgramBuilder()
    p.vector("x", "n")
    with pytest.raises(InputError, match=message):
        p.simulate(widths, KEY)


def test_bad_keys_seeds_and_inputs() -> None:
    program = stencil_program()
    good = {"s": np.ones((1, 3))}
    with pytest.raises(InputError, match="random key"):
        simulate(program, {"n": 4}, "seed", inputs=good)  # type: ignore
    for seeds in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="whole number of draws"):
            simulate(program, {"n": 4}, KEY, seeds, inputs=good)  # type: ignore
    with pytest.raises(InputError, match=r"input `s` of shape \(1, 3\)"):
        simulate(program, {"n": 4}, KEY)
    with pytest.raises(
        ShapeMismatchError, match=r"\(1, 3\) in the program, got \(3,\)"
    ):
        simulate(program, {"n": 4}, KEY, inputs={"s": np.ones(3)})
