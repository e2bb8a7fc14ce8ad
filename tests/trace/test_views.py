"""Views: where every position comes from, against NumPy's own indexing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit.program import (
    Array,
    AxisMap,
    Constant,
    Dim,
    LinComb,
    Map,
    TensorArg,
    Term,
    VecIn,
    identity_maps,
    unravel,
)
from widelimit.trace._layout import Unifier
from widelimit.trace._tracer import Tracer
from widelimit.trace._values import Linear
from widelimit.trace._views import axis_maps, combined, compose, stretched, view

Shape = tuple[int, ...]


def read(array: np.ndarray, maps: Sequence[AxisMap], out: Shape) -> np.ndarray:
    """The definition: one entry at a time, zero outside."""
    result = np.zeros(out)
    for o in np.ndindex(*out):
        index = tuple(int(m.table[tuple(o[a] for a in m.letters)]) for m in maps)
        result[o] = array[index] if min(index, default=0) >= 0 else 0.0
    return result


@pytest.mark.parametrize("shape", [(2, 1, 9000, 1), (3, 6000), (18000,)])
@pytest.mark.parametrize("before", [(2, 9000, 1), (18000, 1, 1), (4, 4500)])
def test_many_positions(shape: Shape, before: Shape) -> None:
    # As NumPy's own `unravel_index` has them, but for its mistake beyond 8192.
    rest = np.arange(18000).reshape(before)
    for size, found in zip(shape[::-1], unravel(rest, shape)[::-1], strict=True):
        np.testing.assert_array_equal(found, rest % size)
        rest = rest // size


# ------------------------------------------------------------ random moves of positions
@st.composite
def moves(draw: st.DrawFn, count: int = 4) -> tuple[Shape, list[np.ndarray]]:
    """A shape, and arrays of flat positions that say each move of a chain.

    Every move is made by NumPy on an array of positions, with -1 for padding.
    """
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    first, chain = shape, []
    for _ in range(draw(st.integers(1, count))):
        positions = np.arange(int(np.prod(shape))).reshape(shape)
        positions = _moved(draw, positions)
        chain.append(positions)
        shape = positions.shape
    return first, chain


def _moved(draw: st.DrawFn, p: np.ndarray) -> np.ndarray:
    axis = draw(st.integers(0, p.ndim - 1))
    size = p.shape[axis]
    at: list[Any] = [slice(None)] * p.ndim
    match draw(
        st.sampled_from("slice transpose reshape pad reverse join take".split())
    ):
        case "slice":
            start = draw(st.integers(0, size - 1))
            at[axis] = slice(start, None, draw(st.integers(1, 3)))
            return p[tuple(at)]
        case "transpose":
            return p.transpose(draw(st.permutations(range(p.ndim))))
        case "reshape":
            return p.reshape(_other_shape(draw, p.size))
        case "pad":
            sides = (draw(st.integers(0, 2)), draw(st.integers(0, 1)))
            widths = [sides if a == axis else (0, 0) for a in range(p.ndim)]
            return np.pad(p, widths, constant_values=-1)
        case "reverse":
            return np.flip(p, axis)
        case "join":
            at[axis] = slice(0, draw(st.integers(1, size)))
            return np.concatenate([p, p[tuple(at)]], axis=axis)
        case _:
            picks = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
            return np.take(p, picks, axis=axis)


def _other_shape(draw: st.DrawFn, size: int) -> Shape:
    shape: list[int] = []
    while size > 1 and len(shape) < 2:
        shape.append(
            draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0]))
        )
        size //= shape[-1]
    return (*shape, size)


def numbers(shape: Shape) -> np.ndarray:
    return np.random.default_rng(int(np.prod(shape))).normal(size=shape)


def moved(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.where(positions < 0, 0.0, array.reshape(-1)[np.maximum(positions, 0)])


@given(moves(count=1))
@settings(max_examples=200, deadline=None)
def test_axis_maps_read_what_numpy_reads(case: tuple[Shape, list[np.ndarray]]) -> None:
    shape, (positions,) = case
    maps = axis_maps(positions, shape)
    assert len(maps) == len(shape)
    x = numbers(shape)
    np.testing.assert_array_equal(read(x, maps, positions.shape), moved(x, positions))


@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_axis_maps_of_any_positions(data: st.DataObject, sides: list[int]) -> None:
    """Not only views: every table of positions, holes included."""
    shape, size = tuple(sides), int(np.prod(sides))
    out = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    entries = st.lists(
        st.integers(-1, size - 1),
        min_size=int(np.prod(out)),
        max_size=int(np.prod(out)),
    )
    positions = np.array(data.draw(entries)).reshape(out)
    x = numbers(shape)
    np.testing.assert_array_equal(
        read(x, axis_maps(positions, shape), out), moved(x, positions)
    )


def test_axis_maps_follow_no_more_letters_than_they_need() -> None:
    positions = np.arange(24).reshape(2, 3, 4)[:, ::-1, 1:]
    maps = axis_maps(positions, (2, 3, 4))
    assert [m.letters for m in maps] == [(0,), (1,), (2,)]
    assert maps[1].table.tolist() == [2, 1, 0]
    padded = np.pad(np.arange(6).reshape(2, 3), ((0, 0), (1, 0)), constant_values=-1)
    maps = axis_maps(padded, (2, 3))
    assert [m.letters for m in maps] == [(0,), (1,)]
    assert maps[1].table.tolist() == [-1, 0, 1, 2]


def test_letters_that_only_together_tell_the_position() -> None:
    """On a diagonal each letter alone shows one position at most."""
    positions = np.where(np.eye(3, dtype=bool), np.arange(3), -1)
    (m,) = axis_maps(positions, (3,))
    x = numbers((3,))
    np.testing.assert_array_equal(read(x, (m,), (3, 3)), np.diag(x))


def test_axis_maps_of_a_scalar() -> None:
    assert axis_maps(np.asarray(0), ()) == ()


@st.composite
def tables(draw: st.DrawFn, sizes: Shape, top: int) -> AxisMap:
    """A random map over some of the letters of these sizes, to -1..top - 1."""
    letters = tuple(a for a in range(len(sizes)) if draw(st.booleans()))
    shape = tuple(sizes[a] for a in letters)
    count = int(np.prod(shape))
    values = draw(st.lists(st.integers(-1, top - 1), min_size=count, max_size=count))
    return AxisMap(letters, np.array(values, int).reshape(shape))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_composed_map_is_one_map_after_another(data: st.DataObject) -> None:
    sides = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    middle, out = data.draw(sides), data.draw(sides)
    outer = data.draw(tables(middle, 5))
    inner = [data.draw(tables(out, size)) for size in middle]
    m = compose(outer, inner)
    assert set(m.letters) == {a for i in outer.letters for a in inner[i].letters}
    for o in np.ndindex(*out):
        at = [
            int(inner[i].table[tuple(o[a] for a in inner[i].letters)])
            for i in outer.letters
        ]
        expected = -1 if min(at, default=0) < 0 else int(outer.table[tuple(at)])
        assert int(m.table[tuple(o[a] for a in m.letters)]) == expected


# ---------------------------------------------------------------- views of combinations
def tracer(shape: Shape, tensor: Shape) -> tuple[Tracer, int, int]:
    tr = Tracer({}, Unifier(), {"n": 1.0}, dry=False)
    x = tr.emit.emit(VecIn(name="x", shape=shape, dim=Dim.of("n")))
    t = tr.emit.emit(
        Map(name="t", op=Constant(Array(numbers(tensor))), args=(), shape=tensor)
    )
    return tr, x, t


def values(tr: Tracer, linear: Linear) -> np.ndarray:
    """A combination by its definition, one coordinate of every vector."""
    total = np.zeros(linear.shape)
    for t in linear.terms:
        sizes = (*linear.shape, *t.sums)
        part = np.full(sizes, t.scale)
        if t.x is not None:
            x = value(tr, t.x)
            part = part * read(x, t.maps, sizes)
        for arg in t.tensors:
            # Letters of -1 follow nothing.
            maps = [
                AxisMap((), 0) if a < 0 else AxisMap.identity(a, sizes[a])
                for a in arg.letters
            ]
            part = part * read(value(tr, arg.ref), maps, sizes)
        total += part.sum(axis=tuple(range(len(linear.shape), len(sizes))))
    return total


def value(tr: Tracer, ref: int) -> np.ndarray:
    match tr.emit.lines[ref]:
        case VecIn() as line:
            return numbers(line.shape)
        case LinComb() as line:
            return values(tr, Linear(line.terms, line.shape))
        case Map(op=Constant(array)):
            return array.value
        case line:
            raise AssertionError(line)


@given(moves(count=3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_view_of_a_combination(case: tuple[Shape, list[np.ndarray]], kind: int) -> None:
    """x, ones, t * x and a sum over t's second axis, moved as NumPy moves them."""
    shape, chain = case
    tr, x, t = tracer(shape, (*shape, 2))
    letters = tuple(range(len(shape)))
    over = TensorArg(t, (*letters, len(shape)))
    terms = (
        (Term(x, 2.0, maps=identity_maps(shape)),),
        (Term(x, maps=identity_maps(shape)), Term(None, 0.5)),
        (Term(x, 1.0, (over,), identity_maps(shape), (2,)),),
        (Term(None, 1.0, (over,), (), (2,)), Term(x, maps=identity_maps(shape))),
    )[kind]
    linear = Linear(terms, shape)
    expected = values(tr, linear)
    for positions in chain:
        maps = axis_maps(positions, linear.shape)
        linear = view(tr, linear, maps, positions.shape)
        expected = moved(expected, positions)
        assert linear.shape == positions.shape
    np.testing.assert_allclose(values(tr, linear), expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1])
@given(cut=st.integers(1, 3), scale=st.sampled_from([1.0, -0.5]))
@settings(max_examples=10, deadline=None)
def test_parts_of_one_view_join_again(axis: int, cut: int, scale: float) -> None:
    """A sum of complementary padded slices is one term, equal to the whole."""
    shape = (4, 4)
    tr, x, _ = tracer(shape, (1,))
    whole = Linear((Term(x, scale, maps=identity_maps(shape)),), shape)
    positions = np.arange(16).reshape(shape)
    first = np.indices(shape)[axis] < cut
    parts = [
        view(tr, whole, axis_maps(np.where(keep, positions, -1), shape), shape)
        for keep in (first, ~first)
    ]
    joined = combined(parts, shape)
    assert len(joined.terms) == 1
    np.testing.assert_array_equal(values(tr, joined), values(tr, whole))


def test_opposite_terms_cancel() -> None:
    _, x, _ = tracer((3,), (1,))
    one = Linear((Term(x, 1.5, maps=identity_maps((3,))),), (3,))
    other = Linear((Term(x, -1.5, maps=identity_maps((3,))),), (3,))
    assert combined([one, other], (3,)).terms == ()


@pytest.mark.parametrize("out", [(2, 3, 4), (2, 3, 1)])
def test_stretched_axes_repeat(out: Shape) -> None:
    tr, x, _ = tracer((2, 1, out[2]), (1,))
    linear = Linear((Term(x, maps=identity_maps((2, 1, out[2]))),), (2, 1, out[2]))
    wide = stretched(tr, linear, out)
    expected = np.broadcast_to(values(tr, linear), out)
    np.testing.assert_array_equal(values(tr, wide), expected)
