"""Common dimension classes."""

import jax
import jax.numpy as jnp

from widelimit.program import ProgramBuilder, parse


def test_a_plain_network() -> None:
    p = ProgramBuilder()
    x = p.vector("x", "n")
    y = (p.matrix("A", ("m", "n")) @ x).named("y")
    z = p.nonlin(jax.nn.relu, y, name="z")
    (p.matrix("B", ("n", "m")) @ z).named("w")
    # B is used once, so nothing ties its output to x, whatever the width is called.
    assert p.classes() == [{"x"}, {"y", "z"}, {"w"}]
    assert p.classes(together=[(x, p["w"])]) == [{"x", "w"}, {"y", "z"}]


def test_one_matrix_used_twice() -> None:
    p = ProgramBuilder()
    a = p.matrix("A", ("n", "n"))
    x, u = p.vector("x", "n"), p.vector("u", "n")
    (a @ x).named("y")
    (a @ u).named("v")
    assert p.classes() == [{"x", "u"}, {"y", "v"}]


def test_a_recurrence_has_one_class() -> None:
    p = ProgramBuilder()
    a = p.matrix("A", ("n", "n"))
    h = p.vector("h0", "n")
    for t in (1, 2):
        h = p.nonlin(jnp.tanh, (a @ h).named(f"g{t}"), name=f"h{t}")
    assert p.classes() == [{"h0", "g1", "h1", "g2", "h2"}]


def test_the_transpose_exchanges_the_sides() -> None:
    p = ProgramBuilder()
    a = p.matrix("A", ("m", "n"))
    x, v = p.vector("x", "n"), p.vector("v", "m")
    (a.T @ v).named("back")
    (a @ x).named("y")
    (a.T.T @ x).named("again")
    assert p.classes() == [{"x", "back"}, {"v", "y", "again"}]


def test_a_transpose_before_and_a_transpose_of_a_transpose() -> None:
    text = """
    A : A[m, n] := matin()
    At : A[n, m] := A.T
    Att : A[m, n] := At.T
    x : G[n] := vecin()
    v : G[m] := vecin()
    w : G[n] := At @ v
    y : G[m] := Att @ x
    """
    p = ProgramBuilder.from_program(parse(text))
    assert p.classes() == [{"x", "w"}, {"v", "y"}]


def test_moments_and_combinations_tie() -> None:
    p = ProgramBuilder()
    a, b, c, d = (p.vector(name, "n") for name in "abcd")
    p.moment(lambda s, t: s * t, a, b)
    (c + d).named("e")
    t = p.moment(lambda s: s, a)
    p.nonlin(lambda s, u: s * u, c, t, name="f")
    assert p.classes() == [{"a", "b"}, {"c", "d", "e", "f"}]


def test_readouts_tie_and_outputs_are_no_vectors() -> None:
    text = """
    v : G[n] := vecin()
    x : G[n] := vecin()
    z : G[n] := vecin()
    f : output := <v, x> / sqrt(n)
    b : output := vecin()
    g : output := f + b
    """
    assert ProgramBuilder.from_program(parse(text)).classes() == [{"v", "x"}, {"z"}]
