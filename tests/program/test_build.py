"""The builder: lines, operators, names, and errors that show the user's line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import scalar
from widelimit._errors import (
    InputError,
    InvalidProgramError,
    ShapeMismatchError,
    UnsupportedError,
)
from widelimit.program import (
    LinComb,
    Map,
    MatMul,
    Moment,
    Nonlin,
    ProgramBuilder,
    Transpose,
    VecIn,
    parse,
)


@pytest.fixture
def p() -> ProgramBuilder:
    p = ProgramBuilder()
    p.vector("x", "n")
    p.vector("y", "n", mean=0.5, var=4.0)
    p.vector("u", "m")
    p.matrix("A", ("m", "n"), std=1.3)
    p.matrix("C", ("n", "n"))
    return p


def run(p: ProgramBuilder) -> dict[str, np.ndarray]:
    values = p.simulate({"n": 6, "m": 10}, jax.random.key(1), seeds=2)
    return {name: np.asarray(v) for name, v in values.items()}


def test_a_linear_combination_is_one_line(p: ProgramBuilder) -> None:
    x, y = p["x"], p["y"]
    (2.0 * y - x / 4 + -y + 1.5).named("z")
    assert len(p) == 6
    assert "z : G[n]    := y - 0.25 * x + 1.5 * 1" in str(p)
    v = run(p)
    np.testing.assert_allclose(v["z"], v["y"] - v["x"] / 4 + 1.5, rtol=1e-14)


def test_numbers_of_every_kind_are_coefficients(p: ProgramBuilder) -> None:
    x = p["x"]
    handles = [
        2 * x,
        np.float64(2.0) * x,
        np.int64(2) * x,
        np.array(2.0) * x,
        jnp.float64(2.0) * x,
        x * 2,
        x / 0.5,
        x + x,
        x - -x,
        sum([x, x]),
        1.0 + 2 * x - 1,
    ]
    assert len(p) == 5 + len(handles)
    v = run(p)
    for handle in handles:
        np.testing.assert_allclose(v[handle.name], 2 * v["x"], rtol=1e-14, atol=1e-15)


def test_an_expression_that_nobody_holds_is_no_line(p: ProgramBuilder) -> None:
    x = p["x"]
    _ = 3.0 * (2.0 * x)
    del _
    held = 5.0 * x
    assert len(p) == 6
    assert p.tensor_program.lines[held.ref].terms[0].scale == 5.0  # type: ignore


def test_difference_of_equals_is_a_vector_of_zeros(p: ProgramBuilder) -> None:
    zero = (p["x"] - p["x"]).named("zero")
    assert not np.any(run(p)["zero"])
    assert zero.dim is not None


def test_matrix_expressions_distribute(p: ProgramBuilder) -> None:
    a, c, x = p["A"], p["C"], p["x"]
    t = p.moment(lambda s: s * s, x, name="t")
    (((c + c.T) / 2**0.5) @ x).named("wigner")
    (a.T @ a @ x).named("gram")
    ((t * a - 0.5 * a) @ c.T @ x).named("mixed")
    ((-c).T @ x).named("minus")
    ((c @ a.T).T @ x).named("both")
    v = run(p)
    draws = [p.simulate({"n": 6, "m": 10}, jax.random.key(1), seeds=2)["x"]]
    np.testing.assert_array_equal(draws[0], v["x"])
    # The matrices themselves come from applying them to each basis direction.
    big_a, big_c = matrices(p)
    for s in range(2):
        a0, c0, x0, t0 = big_a[s], big_c[s], v["x"][s], v["t"][s]
        values = {name: array[s] for name, array in v.items()}
        close = functools.partial(assert_close, values)
        close("wigner", (c0 + c0.T) @ x0 / 2**0.5)
        close("gram", a0.T @ a0 @ x0)
        close("mixed", (t0 - 0.5) * a0 @ (c0.T @ x0))
        close("minus", -c0.T @ x0)
        close("both", a0 @ (c0.T @ x0))


def assert_close(v: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
    np.testing.assert_allclose(v[name], value, rtol=1e-12, atol=1e-12)


def matrices(p: ProgramBuilder) -> tuple[np.ndarray, np.ndarray]:
    """The draws of A and C, through their products with recorded vectors."""
    q = ProgramBuilder()
    a, c = q.matrix("A", ("m", "n"), std=1.3), q.matrix("C", ("n", "n"))
    basis = [q.vector(f"e{i}", "n") for i in range(6)]
    for i, e in enumerate(basis):
        (a @ e).named(f"a{i}")
        (c @ e).named(f"c{i}")
    v = run(q)
    e = np.stack([v[f"e{i}"] for i in range(6)], axis=-1)
    inverse = np.linalg.inv(e)
    return (
        np.stack([v[f"a{i}"] for i in range(6)], axis=-1) @ inverse,
        np.stack([v[f"c{i}"] for i in range(6)], axis=-1) @ inverse,
    )


def test_the_transpose_is_one_line(p: ProgramBuilder) -> None:
    a, u = p["A"], p["u"]
    _ = (a.T @ u).named("v"), (a.T @ u).named("w")
    assert a.T.T.ref == a.ref
    assert sum(isinstance(line, Transpose) for line in p.tensor_program) == 1
    assert a.T.named("At").name == "At"


def test_outer_products(p: ProgramBuilder) -> None:
    x, y, u = p["x"], p["y"], p["u"]
    (u.outer(x) @ y).named("a")
    (x.outer(y).T @ x).named("b")
    ((p["C"] - 0.1 * x.outer(y)) @ y).named("c")
    v = run(p)
    mean = lambda a, b: np.mean(v[a] * v[b], axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(v["a"], v["u"] * mean("x", "y"), rtol=1e-13)
    np.testing.assert_allclose(v["b"], v["y"] * mean("x", "x"), rtol=1e-13)
    c = p["c"].ref
    assert isinstance(p.tensor_program.lines[c], LinComb)
    with pytest.raises(UnsupportedError, match="ratio"):
        _ = u.outer(x).T


def test_scalars(p: ProgramBuilder) -> None:
    x, y = p["x"], p["y"]
    t = p.moment(lambda a: a * a, x, name="t")
    s = p.moment(lambda a, b: a * b, x, y, name="s")
    ((1 + 2 * t - s / 3) ** 2 / (t + 1) - -s).named("r")
    p.map(jnp.sqrt, t, name="root")
    p.map(lambda a, b: a * jnp.tanh(b), t, s, name="mixed")
    (2.0 / t).named("inverse")
    (t * y - s * x + t).named("z")
    (y / t).named("w")
    v = run(p)
    t0, s0 = np.mean(v["x"] ** 2, 1), np.mean(v["x"] * v["y"], 1)
    np.testing.assert_allclose(v["t"], t0, rtol=1e-14)
    expected = (1 + 2 * t0 - s0 / 3) ** 2 / (t0 + 1) + s0
    np.testing.assert_allclose(v["r"], expected, rtol=1e-13)
    np.testing.assert_allclose(v["root"], np.sqrt(t0), rtol=1e-14)
    np.testing.assert_allclose(v["mixed"], t0 * np.tanh(s0), rtol=1e-14)
    np.testing.assert_allclose(v["inverse"], 2 / t0, rtol=1e-14)
    z = t0[:, None] * v["y"] - s0[:, None] * v["x"] + t0[:, None]
    np.testing.assert_allclose(v["z"], z, rtol=1e-13)
    np.testing.assert_allclose(v["w"], v["y"] / t0[:, None], rtol=1e-13)
    maps = [line.name for line in p.tensor_program if isinstance(line, Map)]
    assert maps[:4] == ["r", "root", "mixed", "inverse"]


def test_arguments_come_in_any_order(p: ProgramBuilder) -> None:
    x, y = p["x"], p["y"]
    t = p.moment(lambda a: a * a, x, name="t")
    p.nonlin(lambda s, b, a: b / s - a, t, y, x, name="h")
    p.nonlin(lambda a, b: a * b, x, x, name="square")
    p.nonlin(lambda a, b: b, x, y, name="second")
    p.nonlin(lambda a: 2.0, x, name="constant")
    p.nonlin(scalar.call("tanh", scalar.Arg(0)), x, name="tree")
    v = run(p)
    np.testing.assert_allclose(v["h"], v["y"] / v["t"][:, None] - v["x"], rtol=1e-14)
    np.testing.assert_allclose(v["square"], v["x"] ** 2, rtol=1e-14)
    np.testing.assert_array_equal(v["second"], v["y"])
    np.testing.assert_array_equal(v["constant"], np.full_like(v["x"], 2.0))
    np.testing.assert_allclose(v["tree"], np.tanh(v["x"]), rtol=1e-14)
    square = p.tensor_program.lines[p["square"].ref]
    assert isinstance(square, Nonlin)
    assert len(square.xs) == 1


def test_jointly_gaussian_vectors() -> None:
    p = ProgramBuilder()
    cov = [[2.0, 0.6], [0.6, 1.0]]
    group = p.vectors({"a": (), "b": None}, "n", mean=[1.0, -1.0], cov=cov)
    a, b = group
    assert group["b"].ref == b.ref
    assert a.shape == ()
    (row,) = p.vectors({"row": 1}, "n", mean=[0.0, 3.0], cov=cov)
    family, single = p.vectors({"f": (2, 2), "g": ()}, "n")
    assert family.shape == (2, 2)
    one, two = p.vectors(["one", "two"], "n", cov=[[1.0, 1.0], [1.0, 1.0]])
    v = p.simulate({"n": 200_000}, jax.random.key(0))
    np.testing.assert_allclose(v[one], v[two], atol=1e-12)
    # Standard errors of means and second moments of 200,000 coordinates.
    assert abs(float(v[row].mean()) - 3.0) < 5 / 200_000**0.5
    centred = np.stack([v[a][0] - 1.0, v[b][0] + 1.0])
    error = 5 * np.sqrt((np.outer([2, 1], [2, 1]) + np.square(cov)) / 200_000)
    assert np.all(np.abs(centred @ centred.T / 200_000 - cov) < error)
    assert v[family].shape == (1, 2, 2, 200_000)
    assert sum(isinstance(line, VecIn) for line in p.tensor_program) == 4
    with pytest.raises(InputError, match="No vector `c`"):
        group["c"]
    assert single.shape == ()


def test_families_with_operators() -> None:
    p = ProgramBuilder()
    (f,) = p.vectors({"f": (3,)}, "n")
    a = p.matrix("A", ("m", "n"))
    y = (a @ f).named("y")
    t = p.moment(lambda u: u * u, y, name="t")
    z = (t * y).named("z")
    h = p.nonlin(lambda u, s: u * s, y, t, name="h")
    v = p.simulate({"n": 4, "m": 5}, jax.random.key(0))
    assert v[y].shape == (1, 3, 5)
    np.testing.assert_allclose(v[t], np.mean(v[y] ** 2, -1), rtol=1e-14)
    np.testing.assert_allclose(v[z], v[t][..., None] * v[y], rtol=1e-14)
    np.testing.assert_allclose(v[h], v[z], rtol=1e-14)
    assert parse(str(p)) == p.tensor_program


def test_generated_names_give_way(p: ProgramBuilder) -> None:
    y = p["C"] @ p["x"]
    assert y.name == "g1"
    p.vector("g1", "n")
    assert y.name == "g2"
    assert y.named("z") is y
    assert "g2" not in p
    assert "z" in p
    assert y.named("z").name == "z"


def test_equality_and_length(p: ProgramBuilder) -> None:
    q = ProgramBuilder.from_program(parse(str(p)))
    assert p == q
    assert len(q) == 5
    assert [h.name for h in q] == ["x", "y", "u", "A", "C"]
    q.vector("extra", "n")
    assert p != q
    assert (q["A"].T @ q["u"]).name == "g1"


def test_a_builder_goes_on_with_a_read_program(p: ProgramBuilder) -> None:
    (p["A"].T @ p["u"]).named("w")
    q = ProgramBuilder.from_program(p.tensor_program)
    (q["A"].T @ q["u"]).named("again")
    assert sum(isinstance(line, Transpose) for line in q.tensor_program) == 1


def test_lines_know_their_place(p: ProgramBuilder) -> None:
    p.nonlin(jnp.tanh, p["x"], name="h")
    line = p.tensor_program.lines[-1]
    assert "test_build.py:" in line.source
    assert "(test_lines_know_their_place)" in line.source
    assert isinstance(line, Nonlin)
    assert line.label == "tanh"


def test_kinds_of_lines(p: ProgramBuilder) -> None:
    y = p["C"] @ p["x"]
    p.moment(lambda a: a, y)
    assert [type(line) for line in p.tensor_program.lines[5:]] == [MatMul, Moment]
    assert repr(y) == "g1 : G[n] := C @ x"


BAD = {
    "widths": (lambda p: p["x"] + p["u"], ShapeMismatchError, "width n.*width m"),
    "matmul": (lambda p: p["A"] @ p["u"], ShapeMismatchError, "m x n.*width m"),
    "product": (lambda p: p["A"] @ p["A"], ShapeMismatchError, "takes width n"),
    "sum of matrices": (lambda p: p["A"] + p["C"], ShapeMismatchError, "m x n.*n x n"),
    "matrix as vector": (
        lambda p: p.nonlin(jnp.tanh, p["A"]),
        InvalidProgramError,
        "`A`, a matrix",
    ),
    "matrix plus vector": (lambda p: p["A"] + p["x"], InvalidProgramError, "A @ x"),
    "vector plus matrix": (lambda p: p["x"] + p["A"], InvalidProgramError, "a matrix"),
    "vector as matrix": (lambda p: p["x"] @ p["A"], InvalidProgramError, r"A\.T @ x"),
    "inner product": (lambda p: p["x"] @ p["y"], InvalidProgramError, "p.moment"),
    "product of vectors": (lambda p: p["x"] * p["y"], InvalidProgramError, "p.nonlin"),
    "quotient": (lambda p: p["x"] / p["y"], InvalidProgramError, "not linear"),
    "power": (lambda p: p["x"] ** 2, InvalidProgramError, "not linear"),
    "matrix times array": (
        lambda p: p["A"] @ np.ones(3),
        InvalidProgramError,
        "got ndarray",
    ),
    "matrix times matrix": (lambda p: p["A"] * p["A"], InvalidProgramError, "with @"),
    "nameless": (
        lambda p: (p["C"] + p["C"].T).named("W"),
        InvalidProgramError,
        "no name",
    ),
    "twice": (
        lambda p: p.vector("x", "n"),
        InvalidProgramError,
        "used twice; first at",
    ),
    "renamed": (lambda p: p["y"].named("x"), InvalidProgramError, "used twice"),
    "no identifier": (lambda p: p.vector("x 1", "n"), InputError, "identifier"),
    "keyword": (lambda p: p.vector("lambda", "n"), InputError, "identifier"),
    "variance": (lambda p: p.vector("z", "n", var=-1.0), InputError, "at least 0"),
    "nan": (lambda p: p.vector("z", "n", mean=float("nan")), InputError, "finite"),
    "text": (lambda p: p.vector("z", "n", mean="big"), InputError, "is a number"),
    "std": (lambda p: p.matrix("B", ("n", "n"), std=-1.0), InputError, "at least 0"),
    "one width": (lambda p: p.matrix("B", "n"), InputError, "two widths"),
    "width": (lambda p: p.vector("z", "n^2"), InputError, "not a width"),
    "numeric width": (lambda p: p.vector("z", 100), InputError, "named by a string"),
    "coefficient": (lambda p: float("inf") * p["x"], InputError, "finite"),
    "zero": (lambda p: p["x"] / 0, InputError, "divided by zero"),
    "arity": (lambda p: p.nonlin(lambda a, b: a, p["x"]), InputError, "1 arguments"),
    "tree": (lambda p: p.nonlin(scalar.Arg(1), p["x"]), InputError, "reads 2"),
    "function": (lambda p: p.nonlin(3.0, p["x"]), InputError, "is a function"),
    "no vector": (lambda p: p.nonlin(jnp.tanh), InvalidProgramError, "needs a vector"),
    "two widths": (
        lambda p: p.nonlin(lambda a, b: a, p["x"], p["u"]),
        ShapeMismatchError,
        "one width",
    ),
    "map of vector": (
        lambda p: p.map(jnp.tanh, p["x"]),
        InvalidProgramError,
        "scalars",
    ),
    "not psd": (
        lambda p: p.vectors(["a", "b"], "n", cov=[[1.0, 2.0], [2.0, 1.0]]),
        InputError,
        "eigenvalue -1",
    ),
    "not symmetric": (
        lambda p: p.vectors(["a", "b"], "n", cov=[[1.0, 0.2], [0.1, 1.0]]),
        InputError,
        "not symmetric",
    ),
    "cov shape": (
        lambda p: p.vectors(["a", "b"], "n", cov=np.eye(3)),
        ShapeMismatchError,
        r"\(2, 2\)",
    ),
    "mean shape": (
        lambda p: p.vectors(["a", "b"], "n", mean=[1.0, 2.0, 3.0]),
        ShapeMismatchError,
        r"\(2,\)",
    ),
    "cov nan": (
        lambda p: p.vectors(["a"], "n", cov=[[float("nan")]]),
        InputError,
        "not finite",
    ),
    "no names": (lambda p: p.vectors([], "n"), InputError, "lists names"),
    "same names": (lambda p: p.vectors(["a", "a"], "n"), InvalidProgramError, "twice"),
    "mixed values": (
        lambda p: p.vectors({"a": (), "b": 2}, "n"),
        InputError,
        "row number",
    ),
    "no line": (lambda p: p["zzz"], InputError, "no line `zzz`; its lines: x, y"),
    "outer": (lambda p: p["x"].outer(p["A"]), InvalidProgramError, "takes a vector"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_show_the_users_line(p: ProgramBuilder, case: str) -> None:
    f, error, message = BAD[case]
    lines = len(p)
    with pytest.raises(error, match=f"(?s){message}") as caught:
        f(p)
    if case != "no line":
        assert "test_build.py:" in str(caught.value)
    assert len(p) == lines


def test_handles_of_another_program(p: ProgramBuilder) -> None:
    q = ProgramBuilder()
    x = q.vector("x", "n")
    for f in (
        lambda: p["x"] + x,
        lambda: p["C"] @ x,
        lambda: p.nonlin(jnp.tanh, x),
        lambda: p.moment(jnp.tanh, x),
        lambda: p["x"].outer(x),
        lambda: p["C"] + q.matrix("C", ("n", "n")),
    ):
        with pytest.raises(InvalidProgramError, match="another program"):
            f()


def test_a_source_line_is_quoted(p: ProgramBuilder) -> None:
    with pytest.raises(ShapeMismatchError) as caught:
        p["A"] @ p["u"]  # the line to be shown
    assert '`p["A"] @ p["u"]  # the line to be shown`' in str(caught.value)


def test_a_traced_value_is_no_coefficient(p: ProgramBuilder) -> None:
    with pytest.raises(InputError, match="traced"):
        jax.jit(lambda c: (c * p["x"]).ref)(2.0)
