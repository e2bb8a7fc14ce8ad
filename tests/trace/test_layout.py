"""Layouts of wide axes: unification, and what it refuses."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_witness import both

import widelimit as wl
from widelimit.trace._layout import (
    Atom,
    Axis,
    Major,
    Minor,
    Row,
    Unifier,
    atoms,
    blocks,
    resolve,
    size_of,
)
from widelimit.trace._sizes import Size

N = Size((("n", Fraction(1)),))
M = Size((("m", Fraction(1)),))

n, m = wl.width("n"), wl.width("m", ratio=1.5)
X = np.random.default_rng(5).normal(size=(2, 3))


def atom(size: Any = N) -> Atom:
    assert isinstance(size, Size)
    return Atom(size)


def unify(x: Axis, y: Axis) -> Unifier:
    unifier = Unifier()
    unifier.unify(x, y, ", at net.py:4")
    return unifier


def order(axis: Axis, copies: int = 12) -> list[tuple[int, int]]:
    """(block, coordinate-and-copy) of every place, when atoms have `copies` entries."""
    axis = resolve(axis)
    match axis:
        case Atom():
            return [(id(axis), i) for i in range(copies)]
        case Row():
            return [p for part in axis.parts for p in order(part, copies)]
        case Major():
            inner = order(axis.axis, copies)
            return [(a, i * 100 + r) for r in range(axis.count) for a, i in inner]
        case Minor():
            inner = order(axis.axis, copies)
            return [(a, i * 100 + r) for a, i in inner for r in range(axis.count)]


# ------------------------------------------------------------------------ unification
def test_equal_atoms_become_one_without_structure() -> None:
    x, y = atom(), atom()
    assert unify(x, y).structured == 0
    assert resolve(x) is resolve(y)
    assert unify(x, y).structured == 0


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(wl.UnsupportedError, match=r"sizes n and m are used.*net\.py:4"):
        unify(atom(), atom(M))


def test_one_copy_is_no_structure() -> None:
    x = atom()
    for axis in (Major(1, x), Minor(x, 1), Row((x,)), Row((Major(1, x),))):
        assert resolve(axis) is x
        assert size_of(axis) == N


@pytest.mark.parametrize("major", [True, False])
def test_atom_takes_the_structure_it_meets(major: bool) -> None:
    x, part = atom(4 * N), atom()
    y = Major(4, part) if major else Minor(part, 4)
    assert unify(x, y).structured == 1
    (block,) = blocks(x)
    assert block.atom is part
    assert (block.majors, block.minors) == (((4,), ()) if major else ((), (4,)))
    assert block.count == 4


@pytest.mark.parametrize("major", [True, False])
def test_copies_of_copies(major: bool) -> None:
    def copies(count: int, axis: Axis) -> Axis:
        return Major(count, axis) if major else Minor(axis, count)

    x, y = copies(2, atom(6 * N)), copies(6, atom(2 * N))
    unify(x, y)
    assert order(x) == order(copies(2, copies(3, resolve(resolve(y).axis))))  # type: ignore[union-attr]
    (one,), (two,) = blocks(x), blocks(y)
    assert one.atom is two.atom
    assert one.atom.size == 2 * N
    assert one.count == two.count == 6


def test_counts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(wl.UnsupportedError, match="into 3 and into 2 blocks"):
        unify(Major(2, atom(3 * N)), Major(3, atom(2 * N)))


def test_major_and_minor_meet_in_a_common_refinement() -> None:
    # r * (n/k) + a = a' * g + r': i = (r, b, r').
    x, y = Major(2, atom(3 * N)), Minor(atom(2 * N), 3)
    unify(x, y)
    (one,), (two,) = blocks(x), blocks(y)
    assert one.atom is two.atom
    assert one.atom.size == N
    assert (one.majors, one.minors) == (two.majors, two.minors) == ((2,), (3,))


@pytest.mark.parametrize("swap", [True, False])
def test_channel_shuffle_is_refused(swap: bool) -> None:
    part = atom()
    x, y = Major(2, part), Minor(part, 2)
    with pytest.raises(wl.UnsupportedError, match="major and in minor order at once"):
        unify(*((y, x) if swap else (x, y)))


def test_axis_inside_itself_is_refused() -> None:
    part = atom(2 * N)
    with pytest.raises(wl.UnsupportedError):
        unify(part, Row((part, atom())))


# ------------------------------------------------------------------------------- rows
def test_unequal_parts_cut_an_atom() -> None:
    whole, a, b = atom(N + M), atom(), atom(M)
    assert unify(whole, Row((a, b))).structured == 1
    assert [x is y for x, y in zip(atoms(whole), (a, b), strict=True)] == [True, True]


def test_two_cuts_of_one_axis_refine_each_other() -> None:
    x = Row((atom(), atom(3 * N)))
    y = Row((atom(2 * N), atom(2 * N)))
    unify(x, y)
    assert [a.size for a in atoms(x)] == [N, N, 2 * N]
    assert all(a is b for a, b in zip(atoms(x), atoms(y), strict=True))


def test_rotated_parts_are_cut_until_they_fit() -> None:
    # (a, b) = (c, a) with a twice as large: all of them are one block, repeated.
    a, b, c = atom(2 * N), atom(), atom()
    unify(Row((a, b)), Row((c, a)))
    parts = [*atoms(a), *atoms(b), *atoms(c)]
    assert [p.size for p in parts] == [N] * 4
    assert len({id(p) for p in parts}) == 1


def test_shuffle_found_through_other_axes_is_refused() -> None:
    p, q = atom(), atom()
    unifier = unify(Major(2, p), Minor(q, 2))
    with pytest.raises(wl.UnsupportedError, match="channel shuffle"):
        unifier.unify(p, q, "")


def test_one_layout_written_in_two_orders() -> None:
    part = atom()
    unify(Major(2, Minor(part, 3)), Minor(Major(2, part), 3))
    assert size_of(part) == N


def test_rows_inside_rows_are_flat() -> None:
    a, b, c = atom(), atom(M), atom()
    unify(whole := atom(2 * N + M), Row((Row((a, b)), c)))
    assert [x.atom for x in blocks(whole)] == [a, b, c]


def test_gates_of_a_row_are_copies_of_one_axis() -> None:
    part = atom()
    x, y = Major(2, part), Row((a := atom(), b := atom()))
    unify(x, y)
    assert resolve(a) is resolve(b) is resolve(part)


def test_cut_that_depends_on_the_widths_is_refused() -> None:
    with pytest.raises(wl.UnsupportedError, match="which is larger depends"):
        unify(Row((atom(), atom(M))), Row((atom(M), atom())))


def test_cut_inside_an_interleaved_block_is_refused() -> None:
    x = Row((Minor(atom(), 2), atom()))
    with pytest.raises(wl.UnsupportedError, match="cut inside a block"):
        unify(x, Row((atom(), atom(2 * N))))


def test_blocks_keep_the_order_of_nested_copies() -> None:
    part = atom()
    axis = Major(2, Minor(Major(3, part), 5))
    (block,) = blocks(axis)
    assert (block.majors, block.minors, block.count) == ((2, 3), (5,), 30)
    assert size_of(axis) == 30 * N


# --------------------------------------------------------------------------- networks
def dense(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["U"] / np.sqrt(3))


def refused(f: Callable[..., Any], match: str, width: Any = n) -> None:
    params = {"U": wl.normal((3, width)), "v": wl.normal((width, 1))}
    with pytest.raises(wl.UnsupportedError, match=match):
        wl.limit(f, params).nngp(X)


def test_channel_shuffle_in_a_network_is_refused_with_its_line() -> None:
    def g(p: Any, x: Any) -> Any:
        h = dense(p, x)
        shuffled = h.reshape(x.shape[0], 2, -1).swapaxes(1, 2)
        h = h + shuffled.reshape(h.shape)
        return h @ p["v"] / np.sqrt(h.shape[-1])

    refused(g, r"(?s)channel shuffle.*test_layout\.py:\d+ \(.*g\)")


@pytest.mark.slow
def test_swapped_halves_are_no_shuffle() -> None:
    def f(p: Any, x: Any) -> Any:
        h = dense(p, x)
        a, b = jnp.split(h, 2, axis=-1)
        h = h * jnp.concatenate([b, a], axis=-1)
        return h @ p["v"] / np.sqrt(h.shape[-1])

    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    program, network = both(f, params, X)
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-13)


def test_unequal_split_in_a_network_agrees() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"] / np.sqrt(3)
        a, b, c = jnp.split(h, [m, n + m], axis=-1)
        h = jnp.concatenate([jnp.tanh(b) * c, a], axis=-1)
        return h @ p["v"] / np.sqrt(h.shape[-1])

    params = {"U": wl.normal((3, 2 * n + m)), "v": wl.normal((n + m, 2))}
    program, network = both(f, params, X)
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-13)


def test_interleaved_groups_agree() -> None:
    def f(p: Any, x: Any) -> Any:
        h = dense(p, x).reshape(x.shape[0], -1, 4)
        h = jnp.tanh(h - h.mean(axis=-1, keepdims=True)).reshape(x.shape[0], -1)
        h = h @ p["W"] / np.sqrt(h.shape[-1])
        return h @ p["v"] / np.sqrt(h.shape[-1])

    params = {
        "U": wl.normal((3, n)),
        "W": wl.normal((n, m)),
        "v": wl.normal((m, 1)),
    }
    program, network = both(f, params, X)
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-13)


def test_split_that_the_widths_do_not_decide_is_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        a = jnp.concatenate([jnp.tanh(h[:, :n]), h[:, n:]], axis=-1)
        b = jnp.concatenate([h[:, :m], jnp.tanh(h[:, m:])], axis=-1)
        return (a + b) @ p["v"] / np.sqrt(h.shape[-1])

    refused(f, "which is larger depends", n + m)
