"""Reading at maps, against the definition: one entry at a time, zero outside."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from widelimit.program import AxisMap, maps_of, read_at

RNG = np.random.default_rng(0)


@st.composite
def reads(draw: st.DrawFn) -> tuple[np.ndarray, list[AxisMap], int]:
    """An array, its maps, and the rank of the result; maps may share letters."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    maps = []
    for n in shape:
        places = st.sets(st.integers(0, len(sizes) - 1), max_size=2)
        letters = tuple(sorted(draw(places)))
        own = tuple(sizes[a] for a in letters)
        count = int(np.prod(own))
        table = st.lists(st.integers(-1, n - 1), min_size=count, max_size=count)
        maps.append(AxisMap(letters, np.reshape(draw(table), own)))
    return RNG.normal(size=shape), maps, len(sizes)


def by_definition(array: np.ndarray, maps: list[AxisMap], rank: int) -> np.ndarray:
    sizes = [1] * rank
    for m in maps:
        for a, n in zip(m.letters, m.table.shape, strict=True):
            sizes[a] = n
    out = np.zeros(sizes)
    for at in itertools.product(*map(range, sizes)):
        place = tuple(int(m.table[tuple(at[a] for a in m.letters)]) for m in maps)
        if min(place, default=0) >= 0:
            out[at] = array[place]
    return out


@given(reads())
@settings(max_examples=60, deadline=None)
def test_it_reads_entry_by_entry(case):
    array, maps, rank = case
    wanted = by_definition(*case)
    np.testing.assert_array_equal(read_at(array, maps, rank), wanted)
    found = jax.jit(lambda x: read_at(x, maps, rank))(array)
    np.testing.assert_array_equal(found, wanted)
    both = jax.vmap(lambda x: read_at(x, maps, rank))(jnp.stack([array, -array]))
    np.testing.assert_array_equal(both, np.stack([wanted, -wanted]))


@pytest.mark.parametrize("joint", [False, True])
def test_its_derivatives_are_those_of_a_linear_function(joint):
    table = np.asarray([[-1, 0], [0, 1], [1, 2], [2, -1]])
    other = (0,) if joint else (2,)
    maps = [AxisMap((0, 1), table), AxisMap(other, [1, 0, -1, 2])]
    x = jnp.asarray(RNG.normal(size=(3, 3)))
    rank = 2 if joint else 3

    def f(x):
        return read_at(x, maps, rank)

    check_grads(f, (x,), order=2, modes=["fwd", "rev"], atol=1e-9, rtol=1e-9)
    check_grads(jax.vmap(f), (x[None] + 1,), order=1, atol=1e-9, rtol=1e-9)


def test_programs_tell_what_they_read():
    """A convolution of data reads its windows at known maps."""
    import widelimit as wl

    n = wl.width("n")

    def f(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, p["w"], (2, 1), "SAME", dimension_numbers=dims
        )
        return jnp.mean(jax.nn.relu(y), (1, 2)) @ p["v"]

    params = {"w": wl.normal((3, 2, 2, n)), "v": wl.normal((n, 1), std=1.0)}
    net = wl.limit(f, params)
    program = net.program(jnp.zeros((1, 5, 4, 2)))
    (maps,) = filter(None, map(maps_of, program.lines))
    tables = [m.table for m in maps if len(m.letters) == 2]
    # Rows: stride 2, one row of zeros before; columns: none before, one behind.
    np.testing.assert_array_equal(tables[0], [[-1, 0, 1], [1, 2, 3], [3, 4, -1]])
    np.testing.assert_array_equal(tables[1], [[0, 1], [1, 2], [2, 3], [3, -1]])
