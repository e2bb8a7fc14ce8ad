"""Detransposition as a pass: its lines, its names, and that it keeps the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import InputError
from widelimit.asymptotics import Engine, Side
from widelimit.program import (
    Array,
    Constant,
    Elementwise,
    LinComb,
    Map,
    MatIn,
    MatMul,
    Moment,
    Regression,
    TensorProgram,
    Transpose,
    simulate,
    verify,
)
from widelimit.transform import detranspose


def there_and_back(std: float = 1.5) -> wl.Program:
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("m", "n"), std=std)
    z = p.nonlin(jnp.tanh, (a @ x).named("y"), name="z")
    _ = (a.T @ z).named("w")
    return p


def names(program: TensorProgram) -> list[str]:
    return [line.name for line in program.lines]


def test_a_product_with_the_transpose_gains_a_combination() -> None:
    q = there_and_back().detranspose({"m": 4.0})
    assert str(q).splitlines() == [
        "x       : G[n]    := vecin(mean=0.0, std=1.0)",
        "A       : A[m, n] := matin(std=1.5)",
        "y       : G[m]    := A @ x",
        "z       : H[m]    := nonlin(tanh(y))",
        "`A^T`   : A[n, m] := matin(std=3.0)",
        "E_dz_dy : scalar  := E[1.0 - tanh(y)**2.0]",
        "w_hat   : G[n]    := `A^T` @ z",
        "w       : G[n]    := w_hat + 9.0 * E_dz_dy * x",
    ]


def test_it_prints_and_reads_back_with_the_same_limit() -> None:
    p = there_and_back()
    q = p.detranspose({"m": 2.0})
    again = wl.parse(str(q))
    assert again == q
    wanted = p.limit({"m": 2.0})
    for one in (q, again):
        lim = one.limit({"m": 2.0})
        for x, y in (("w", "w"), ("w", "x"), ("z", "y")):
            assert float(lim.cov(x, y)) == pytest.approx(
                float(wanted.cov(x, y)), rel=1e-12
            )


def test_no_transpose_is_left_and_every_line_has_its_place() -> None:
    program = there_and_back().tensor_program
    done = detranspose(program)
    verify(done.program)
    assert not any(isinstance(line, Transpose) for line in done.program.lines)
    assert set(done.place) == set(range(len(program)))
    for old, new in done.place.items():
        kept = not isinstance(program.lines[old], Transpose)
        wanted = program.lines[old].name if kept else "A^T"
        assert done.program.lines[new].name == wanted


def test_outputs_and_taps_move_with_their_lines() -> None:
    lines = there_and_back().tensor_program.lines
    where = {line.name: i for i, line in enumerate(lines)}
    program = TensorProgram(lines, (where["w"],), (("tap", where["z"]),))
    done = detranspose(program).program
    assert [done.lines[r].name for r in done.outputs] == ["w"]
    assert [(name, done.lines[r].name) for name, r in done.taps] == [("tap", "z")]


def test_a_program_without_transposes_stays_as_it_is() -> None:
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    p.nonlin(jnp.tanh, a @ (a @ x))
    program = p.tensor_program
    done = detranspose(program)
    assert done.program is program
    assert dict(done.place) == {r: r for r in range(len(program))}


def test_a_matrix_used_only_transposed_stays_a_product() -> None:
    p = wl.Program()
    x, a = p.vector("x", "m"), p.matrix("A", ("m", "n"))
    _ = (a.T @ x).named("w")
    program = detranspose(p.tensor_program).program
    product = program.lines[names(program).index("w")]
    assert isinstance(product, MatMul)
    assert program.lines[product.matrix].name == "A^T"


def test_a_transpose_of_a_transpose_is_the_matrix() -> None:
    text = """
    x : G[n]    := vecin(mean=0.0, std=1.0)
    A : A[n, n] := matin(std=1.0)
    B : A[n, n] := A.T
    C : A[n, n] := B.T
    y : G[n]    := A @ x
    z : G[n]    := C @ x
    w : G[n]    := B @ z
    """
    lim = wl.parse(text).limit()
    assert float(lim.cov("y", "z")) == 1.0
    assert float(lim.cov("w", "x")) == 1.0


def test_a_standard_deviation_that_is_a_tensor() -> None:
    text = """
    s : scalar  := constant(float64(1.3))
    x : G[n]    := vecin(mean=0.0, std=1.0)
    A : A[m, n] := matin(std=s)
    y : G[m]    := A @ x
    z : H[m]    := nonlin(max(y, 0.0))
    B : A[n, m] := A.T
    w : G[n]    := B @ z
    """
    p = wl.parse(text)
    q = p.detranspose({"m": 2.0})
    assert wl.parse(str(q)) == q
    lim = p.limit({"m": 2.0})
    assert float(lim.cov("w", "x")) == pytest.approx(1.69, rel=1e-12)
    assert float(lim.cov("w", "w")) == pytest.approx(2 * 1.69**2, rel=1e-12)


def test_a_moment_that_the_user_wrote_is_used() -> None:
    p = there_and_back()
    text = str(p).replace("w ", "slope : scalar := E[1.0 - tanh(y)**2.0]\nw ", 1)
    done = wl.parse(text).detranspose().tensor_program
    assert sum(isinstance(line, Moment) for line in done.lines) == 1
    assert "slope" in names(done)


def test_names_of_the_user_are_kept() -> None:
    p = there_and_back()
    p.nonlin(jnp.sin, p["x"], name="w_hat")
    p.nonlin(jnp.cos, p["x"], name="E_dz_dy")
    q = p.detranspose()
    assert set(names(p.tensor_program)) - {"A_T"} <= set(names(q.tensor_program))
    assert float(q.limit().mean("E_dz_dy")) == pytest.approx(np.exp(-0.5))


def test_the_fresh_matrix_has_one_name_in_two_programs() -> None:
    one, two = there_and_back(), there_and_back()
    two.nonlin(jnp.sin, two["w"])
    fresh = [
        [x for x in p.detranspose().tensor_program if isinstance(x, MatIn)]
        for p in (one, two)
    ]
    assert fresh[0] == fresh[1]


def test_linear_programs_need_no_moments() -> None:
    p = wl.Program()
    a, x = p.matrix("A", ("n", "n")), p.vector("x", "n")
    for _ in range(4):
        x = (a + a.T) @ x
    done = detranspose(p.tensor_program).program
    assert not any(isinstance(line, Moment | Map) for line in done.lines)


def test_recursions_grow_as_the_square_of_their_length() -> None:
    """Every step reads two before it: derivatives along all paths would double."""

    def lines(steps: int) -> int:
        p = wl.Program()
        a, x = p.matrix("A", ("n", "n")), p.vector("x", "n")
        before, now = x, x
        for _ in range(steps):
            t = p.moment(lambda u: u * u, now)
            before, now = now, a.T @ (a @ now) - t * now + t * before
        return len(detranspose(p.tensor_program).program)

    assert lines(12) < 5 * lines(6)


def test_gradients_that_are_independent_have_no_correction_in_the_limit() -> None:
    """A backward pass from a fresh vector: every correction is a structural zero."""
    p = wl.Program()
    x, w, v = p.vector("x", "n"), p.matrix("W", ("n", "n"), 1.2), p.vector("v", "n")
    g = (w @ x).named("g")
    h = p.nonlin(jax.nn.relu, g)
    g2 = (w @ h).named("g2")
    dg2 = p.nonlin(lambda d, u: d * (u > 0), v, g2)
    dh = (w.T @ dg2).named("dh")
    dg = p.nonlin(lambda d, u: d * (u > 0), dh, g)
    _ = (w.T @ dg).named("dx")
    q = p.detranspose()
    corrected = [x for x in q.tensor_program if isinstance(x, LinComb)]
    assert [x.name for x in corrected] == ["dh", "dx"]
    engine = Engine([Side(q.tensor_program, {})])
    for line in corrected:
        for term in line.terms[1:]:
            (arg,) = term.tensors
            assert engine.tensor(0, arg.ref) is None
    assert float(q.limit().cov("dx", "dx")) == pytest.approx(1.44**2 / 4.0, rel=1e-12)


def test_wrong_ratios_are_refused() -> None:
    p = there_and_back()
    with pytest.raises(InputError, match="ratios names the width 'k'; the program has"):
        p.detranspose({"k": 2.0})
    with pytest.raises(InputError, match="should be positive, got 0"):
        p.limit({"m": 0.0})


# ------------------------------------------------------------------------- regression
def test_a_jump_makes_a_regression_that_prints_and_reads_back() -> None:
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    s = p.nonlin(jnp.sign, (a @ x).named("y"), name="s")
    _ = (a.T @ s).named("w")
    q = p.detranspose()
    line = q.tensor_program.lines[names(q.tensor_program).index("E_ds_dy")]
    assert isinstance(line, Map)
    assert line.op == Regression(0, 1)
    assert "E_ds_dy : scalar  := regression(0; E_y_y; E_y_s)" in str(q)
    assert wl.parse(str(q)) == q
    assert float(q.limit().value("E_ds_dy")) == pytest.approx(np.sqrt(2 / np.pi))


def tensors(*values: np.ndarray) -> list[Map]:
    return [
        Map(name=f"c{i}", op=Constant(Array(v)), args=(), shape=v.shape)
        for i, v in enumerate(values)
    ]


def test_blocks_of_a_singular_regression() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 3)) * np.array([[1e3], [1.0], [1e-3], [1.0], [1.0]])
    c, b = root @ root.T, root @ rng.normal(size=(3, 2))
    first, second = c[:3, :3], c[3:, 3:]
    lines = tensors(first, c[:3, 3:], second, b[:3], b[3:])
    for part, shape in ((0, (3, 2)), (1, (2, 2))):
        args, op = tuple(range(5)), Regression(part, 2)
        lines.append(Map(name=f"a{part}", op=op, args=args, shape=shape))
    program = TensorProgram(tuple(lines))
    assert wl.parse(str(program)).tensor_program == program
    values = simulate(program, {}, jax.random.key(0))
    a = np.concatenate([values["a0"][0], values["a1"][0]])
    # Not unique, but what it predicts is.
    scale = np.abs(b) + np.sqrt(np.diagonal(c))[:, None]
    np.testing.assert_allclose((c @ a) / scale, b / scale, atol=1e-9)


def test_a_regression_that_does_not_fit_is_refused() -> None:
    lines = tensors(np.eye(2), np.ones(3))
    bad = Map(name="a", op=Regression(0, 1), args=(0, 1), shape=(2,))
    with pytest.raises(wl.InvalidProgramError, match=r"block b\[0\] has shape"):
        TensorProgram((*lines, bad))
    few = Map(name="a", op=Regression(0, 2), args=(0, 1), shape=(2,))
    with pytest.raises(wl.InvalidProgramError, match="2 blocks need 5 tensors"):
        TensorProgram((*lines, few))


def test_derivatives_of_deterministic_coefficients_are_tensors() -> None:
    text = """
    T[i<2] : tensor  := constant([0.5, 2.0])
    x[i<2] : G[n]    := vecin(mean=0.0, std=1.0)
    A      : A[n, n] := matin(std=1.0)
    y[i<2] : G[n]    := A @ x[i]
    z[i<2] : H[n]    := nonlin(y * T[i] + 1.0)
    B      : A[n, n] := A.T
    w[i<2] : G[n]    := B @ z[i]
    """
    q = wl.parse(text).detranspose()
    assert not any(isinstance(line, Moment) for line in q.tensor_program)
    maps = [x for x in q.tensor_program if isinstance(x, Map)]
    assert all(isinstance(x.op, Constant | Elementwise) for x in maps)
    k = np.asarray(q.limit().cov("w", "x"))
    np.testing.assert_allclose(k, np.diag([0.5, 2.0]), atol=1e-12)


def recurrent(steps: int) -> TensorProgram:
    """A simple recurrent network, and the gradients at its states."""
    p = wl.Program()
    a, v, h = p.matrix("A", ("n", "n")), p.vector("v", "n"), p.vector("h0", "n")
    for t in range(steps):
        h = p.nonlin(jnp.tanh, a @ h, name=f"h{t + 1}")
    g = p.nonlin(lambda v, h: v * (1 - h**2), v, h, name=f"g{steps}")
    for t in range(steps - 1, 0, -1):
        back = a.T @ g
        g = p.nonlin(lambda b, h: b * (1 - h**2), back, p[f"h{t}"], name=f"g{t}")
    return p.tensor_program


def test_what_vanishes_by_symmetry_is_left_out() -> None:
    program = recurrent(4)
    whole, few = detranspose(program), detranspose(program, symmetric=True)
    # As many lines, and no term of theorem 6.
    assert len(few.program) == len(program) < len(whole.program)
    assert not few.dots
    last = len(program) - 1
    k, expected = (
        Engine((Side(one.program, {}),)).pair_array(
            one.place[last], one.place[last], (0, 0), (), False
        )
        for one in (few, whole)
    )
    np.testing.assert_allclose(k, expected, rtol=1e-6)


def test_what_does_not_vanish_stays() -> None:
    program = there_and_back().tensor_program
    whole, few = detranspose(program), detranspose(program, symmetric=True)
    assert str(few.program) == str(whole.program)
