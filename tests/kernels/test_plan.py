"""Tiles cover every pair once; memory is known, and refused, before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit import InputError, UnsupportedError
from widelimit.kernels import _blocks, _plan
from widelimit.kernels._parts import Bytes
from widelimit.kernels._plan import memory, plan

n = wl.width("n")
RNG = np.random.default_rng(0)
SLOW = pytest.mark.slow


# --------------------------------------------------------------------- tiles, blocks
@st.composite
def plans(draw):
    n1 = draw(st.integers(1, 200))
    symmetric = draw(st.booleans())
    n2 = n1 if symmetric else draw(st.integers(1, 200))
    size = draw(st.integers(4, 2**24))
    most = draw(st.none() | st.integers(1, 300))
    even = draw(st.booleans())
    result = draw(st.integers(4, size))
    return plan(size, n1, n2, symmetric, even, most, result), most, even


@given(plans())
@settings(max_examples=100, deadline=None)
def test_tiles_cover_every_pair_once(case):
    cut, most, even = case
    tiles = list(cut.tiles)
    assert len(tiles) == cut.count == len(set(tiles))
    whole = {(i, j) for i in range(cut.rows.tiles) for j in range(cut.cols.tiles)}
    if cut.symmetric:
        assert cut.rows == cut.cols
        mirrored = {(j, i) for i, j in tiles}
        assert set(tiles) | mirrored == whole
        assert all(i == j for i, j in mirrored.intersection(tiles))
    else:
        assert set(tiles) == whole
    for side in (cut.rows, cut.cols):
        # The last tile holds the last input, and no tile holds none.
        assert (side.tiles - 1) * side.tile < side.count <= side.tiles * side.tile
        assert side.tile % side.block == 0
        assert most is None or side.tile <= most
        if even:
            # Equal parts: less than one input for every tile is filled up.
            assert side.tiles * side.tile - side.count < side.tiles
        else:
            assert bin(side.tile).count("1") == bin(side.block).count("1") == 1
    assert cut.rows.block * cut.cols.block * cut.bytes <= max(_plan._BLOCK, cut.bytes)


@given(plans())
@settings(max_examples=100, deadline=None)
def test_blocks_cover_every_pair_that_is_asked_for(case):
    """Those below the diagonal are mirrored, and single inputs are no pairs."""
    cut, *_ = case
    sides, found = (cut.rows, cut.cols), np.zeros((cut.rows.count, cut.cols.count), int)
    for tile in cut.tiles:
        places, count = cut.blocks(*tile)
        assert len(places) == np.prod(cut.sizes.counts)
        for place in places[:count]:
            first = [
                t * side.tile + k * side.block
                for side, t, k in zip(sides, tile, place, strict=True)
            ]
            inside = [a < side.count for a, side in zip(first, sides, strict=True)]
            assert all(inside)
            row, col = (
                slice(a, a + side.block) for a, side in zip(first, sides, strict=True)
            )
            found[row, col] += 1
    assert found.max(initial=0) <= 1
    if cut.symmetric:
        found = np.triu(np.maximum(found, found.T), 1) + np.tri(len(found), dtype=int)
    assert (found == 1).all()


def test_small_tiles_of_large_pairs_are_compiled_once():
    size = 2**22
    cuts = [plan(size, k, 9 - k, False, False) for k in range(1, 9)]
    assert {cut.sizes for cut in cuts} == {plan(size, 3, 3, True, False).sizes}
    one = plan(size, 8, 8, True, False, None, size)
    assert one.rows.tile < cuts[0].rows.tile, "results would take much memory"


SIZES = st.integers(0, 2**40)


@given(plans(), SIZES, SIZES)
@settings(max_examples=100, deadline=None)
def test_what_is_held_fits(case, rows, cols):
    cut, *_ = case
    one = Bytes(rows=rows, cols=cols, result=8, working=0, alone=0)
    held = cut.held(one)
    needed = max(cut.rows.tiles, cut.cols.tiles)
    assert min(2, needed) <= held <= needed
    per_tile = rows * cut.rows.tile // cut.rows.block
    per_tile += cols * cut.cols.tile // cut.cols.block
    assert held <= 2 or held * per_tile <= _plan._HELD


@given(plans(), st.integers(1, 64), st.integers(0, 9999), st.integers(0, 2**26))
@settings(max_examples=100, deadline=None)
def test_memory_is_that_of_the_result_and_of_what_is_under_way(
    case, size, working, alone
):
    cut, *_ = case
    block = cut.rows.block * cut.cols.block
    one = Bytes(7, 5, size * block, working, alone)
    found = memory(cut, one)
    assert found.result == size * cut.rows.count * cut.cols.count
    assert found.extra == found.tables + found.tiles + found.working
    tile = size * cut.rows.tile * cut.cols.tile
    assert found.tiles == _plan.UNDER_WAY * tile * (2 if cut.symmetric else 1)
    at_once = max(map(one.at_once, cut.sizes.counts))
    assert found.working == max(working, alone * at_once)
    assert at_once == 1 or alone * at_once <= 2**26


def test_few_tiles_and_few_sizes_for_many_numbers_of_inputs():
    """A program is compiled for a size; of a thousand numbers most find it."""
    cuts = [plan(4, k, k, True, False) for k in range(1000, 2000)]
    assert len({cut.sizes for cut in cuts}) <= 8
    assert all(cut.count <= 2 * _plan._CALLS for cut in cuts)


# ------------------------------------------------------------------------- networks
def small():
    params = {"U": wl.normal((3, n)), "b": wl.normal((n,)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jax.nn.relu(x @ p["U"] + p["b"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


def deep():
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((n, n), std=1.4) for i in range(4)}

    def f(p, x):
        h = x @ p["U"]
        for i in range(4):
            h = jax.nn.relu(h) @ p[f"W{i}"] / jnp.sqrt(h.shape[-1])
        return jax.nn.relu(h) @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


def sequences():
    """The output has positions, and both inputs have other lengths."""
    params = {"U": wl.normal((2, n)), "v": wl.normal((n, 1))}

    def f(p, x):
        h = jnp.cumsum(jax.nn.relu(x @ p["U"]), axis=1)
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    return wl.limit(f, params)


@pytest.fixture(scope="module")
def net():
    return small()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=SLOW), 17])
def test_kernels_do_not_depend_on_blocks(net, count):
    x, y = RNG.normal(size=(count, 3)), RNG.normal(size=(5, 3))
    whole, cross = net.kernels(x), net.kernels(x, y)
    for block in (1, 2, 3, 4, 100):
        if block == 1 and count == 17:
            continue  # 153 tiles of one pair
        one, two = net.kernels(x, block=block), net.kernels(x, y, block=block)
        for found, wanted in zip((*one, *two), (*whole, *cross), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
        for k in one:
            np.testing.assert_array_equal(k, np.asarray(k).T)
    np.testing.assert_allclose(net.nngp(x, block=2), whole.nngp, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        net.ntk(x, y, block=2), cross.ntk, rtol=1e-12, atol=1e-14
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 4])
def test_blocks_of_networks_with_positions(block):
    x, y = RNG.normal(size=(5, 4, 2)), RNG.normal(size=(3, 2, 2))
    net = sequences()
    for args in ((x,), (x, y)):
        for one, two in zip(
            net.kernels(*args, block=block), net.kernels(*args), strict=True
        ):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-13)


def test_progress_is_told_after_every_tile(net):
    x, seen = RNG.normal(size=(9, 3)), []
    net.kernels(x, block=2, progress=lambda done, total: seen.append((done, total)))
    count = net.plan(x, block=2).cut.count
    assert seen == [(k + 1, count) for k in range(count)]
    seen.clear()
    net.kernels(x, x[:3], block=4, progress=lambda *step: seen.append(step))
    assert seen == [(k + 1, 3) for k in range(3)]


def test_a_bar_is_shown_on_a_terminal(net, capsys, monkeypatch):
    x = RNG.normal(size=(4, 3))
    net.nngp(x, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    net.nngp(x, progress=True)
    shown = capsys.readouterr()
    assert "kernels" in shown.err
    assert shown.out == ""
    net.nngp(x)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("block", [0, -3, 2.0, "8", True])
def test_blocks_are_whole_numbers_above_zero(net, block):
    x = np.ones((2, 3))
    for ask in (net.kernels, net.nngp, net.ntk, net.plan):
        with pytest.raises(InputError, match="whole number"):
            ask(x, block=block)


@pytest.mark.parametrize("progress", [1, "yes", [print]])
def test_progress_is_a_flag_or_a_function(net, progress):
    for ask in (net.kernels, net.nngp, net.ntk):
        with pytest.raises(InputError, match="True, False or a function"):
            ask(np.ones((2, 3)), progress=progress)


@pytest.mark.parametrize("free", [10_000, 100])
def test_what_does_not_fit_is_refused_before_it_runs(net, free, monkeypatch):
    x, told = RNG.normal(size=(64, 3)), []
    net.kernels(x, block=8)  # it is compiled, so that it could run
    monkeypatch.setattr(_plan, "free_bytes", lambda device: free)

    def forbidden(*args, **kwargs):
        raise AssertionError("a tile is computed")

    for name in ("OnHost", "OnDevice"):
        monkeypatch.setattr(_blocks, name, forbidden)
    with pytest.raises(InputError) as error:
        net.kernels(x, block=8, progress=lambda *step: told.append(step))
    assert not told
    message = str(error.value)
    # Two matrices of 64 x 64 numbers of 8 bytes.
    assert "(64, 64) float64, (64, 64) float64" in message
    assert "take 65.5 kB" in message
    assert f"has {free / 1000:.0f} kB free" in message or f"{free} bytes" in message
    advice = "fewer inputs" if net.plan(x, block=8).memory.extra <= free else "`block`"
    assert advice in message


def test_what_just_fits_is_computed(net, monkeypatch):
    x = RNG.normal(size=(32, 3))
    needed = net.plan(x, block=8).memory
    monkeypatch.setattr(
        _plan, "free_bytes", lambda device: needed.result + needed.extra
    )
    assert net.kernels(x, block=8).ntk.shape == (32, 32)
    monkeypatch.setattr(
        _plan, "free_bytes", lambda device: needed.result + needed.extra - 1
    )
    with pytest.raises(InputError, match="free"):
        net.kernels(x, block=8)


# ----------------------------------------------------------------------------- plans
def test_a_plan_is_of_shapes_and_says_what_runs(net):
    x, y = RNG.normal(size=(33, 3)), RNG.normal(size=(7, 3))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, y)]
    for block in (None, 4):
        of_shapes, of_arrays = (
            str(net.plan(*args, block=block)) for args in (shapes, (x, y))
        )
        assert of_shapes == of_arrays
        seen = []
        net.kernels(x, y, block=block, progress=lambda *s, seen=seen: seen.append(s))
        cut = net.plan(x, y, block=block).cut
        assert len(seen) == cut.count
        tile = f"{cut.count} of {cut.rows.tile} x {cut.cols.tile} pairs"
        assert tile in of_shapes
    assert "33 x 7 inputs in float64" in of_shapes
    assert "symmetric" not in of_shapes
    assert "on and above the diagonal" in str(net.plan(shapes[0]))


def test_the_memory_of_a_result_is_the_size_of_the_arrays():
    """Also of outputs with positions, in single precision, of one kernel or both."""
    x, y = (RNG.normal(size=s).astype("f4") for s in ((5, 4, 2), (3, 2, 2)))
    net = sequences()
    result = net.nngp(x, y)
    assert net.plan(x, y, get="nngp").memory.result == result.nbytes
    assert net.plan(x, y).memory.result == 2 * result.nbytes
    whole = net.nngp(x)
    assert net.plan(x, get="nngp").memory.result == whole.nbytes


def test_a_plan_names_what_is_asked_and_the_layers_that_are_one_loop():
    shape = jax.ShapeDtypeStruct((2000, 3), np.float32)
    for get, title in (("nngp", "nngp"), (("nngp", "ntk"), "nngp and ntk")):
        text = str(deep().plan(shape, get=get))
        assert text.startswith(f"{title} of 2000 x 2000 inputs in float32")
        assert "4 blocks, one loop" in text
        assert "Once for every pair of inputs:" in text
        assert "16 MB for the result" in text or get != "nngp"
    with pytest.raises(InputError):
        deep().plan(shape, get="ntks")


def test_there_is_no_plan_without_tiles():
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}

    def centred(p, x):
        h = jax.nn.relu(x @ p["U"])
        return (h - h.mean(0)) @ p["v"] / jnp.sqrt(h.shape[-1])

    with pytest.raises(UnsupportedError, match="interact"):
        wl.limit(centred, params).plan(np.ones((4, 3)))
