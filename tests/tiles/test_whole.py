"""What a kernel function gives is put together by name, or refused."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import InputError, UnsupportedError
from widelimit._kernel import Kernel
from widelimit.tiles import Parts, Whole, _memory, check_memory

TILE, SIZE = (2, 2), (4, 6)


def whole_of(value, asked="nngp"):
    return Whole(Parts.of(value), TILE, SIZE, asked)


def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)


def test_arrays_of_a_result_have_their_own_shapes():
    Named = namedtuple("Named", "nngp cov1 mask2 x1_is_x2 shape1")
    whole = whole_of(
        Named(zeros(2, 2, 5), zeros(2, 3), zeros(2, 7), jnp.asarray(False), (2, 9))
    )
    whole.allocate(True, None)
    result = whole.result()
    assert [result.nngp.shape, result.cov1.shape, result.mask2.shape] == [
        (4, 6, 5), (4, 3), (6, 7),
    ]  # fmt: skip
    assert result.shape1 == (4, 9)
    assert not result.x1_is_x2
    assert whole.bytes == 4 * (120 + 12 + 42) + 1


def test_where_the_batch_is_in_a_shape_is_known_or_asked():
    one = {"nngp": zeros(2, 2), "shape1": (2, 2), "batch_axis": 1}
    whole = whole_of(one)
    whole.allocate(True, None)
    assert whole.result()["shape1"] == (2, 4)
    del one["batch_axis"]
    whole = whole_of(one)
    whole.allocate(True, None)
    with pytest.raises(UnsupportedError, match="ask for 'batch_axis' too"):
        whole.result()


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (zeros(), "nngp"),
        (zeros(2), "nngp"),
        (zeros(4, 6), "nngp"),
        ({"cov1": zeros(3, 5)}, "nngp"),
        (zeros(3, 7), "cov2"),
        (Kernel(nngp=zeros(2, 2), mask1=zeros(1, 5)), "nngp"),
    ],
)
def test_arrays_of_other_sizes_are_refused(value, asked):
    with pytest.raises(InputError, match=r"for a tile of 2 x 2 inputs. It should"):
        whole_of(value, asked)


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (Kernel(nngp=zeros(2, 2), cov1=zeros(2, 2), diagonal_batch=False), "nngp"),
        ({"nngp": zeros(2, 2), "cov1": zeros(2, 2)}, "nngp"),
        (zeros(2, 2, 3), "cov1"),
    ],
)
def test_covariances_between_the_inputs_of_one_batch_are_refused(value, asked):
    with pytest.raises(UnsupportedError, match="diagonal_batch=False"):
        whole_of(value, asked)


def test_what_changes_from_tile_to_tile_is_refused():
    whole = whole_of({"nngp": zeros(2, 2, 3)})
    whole.allocate(False, None)
    at = slice(0, 2)
    for other in ({"nngp": zeros(2, 2, 1)}, {"nngp": jnp.zeros((2, 2, 3), int)}):
        with pytest.raises(InputError, match="the same for all tiles"):
            whole.put(Parts.of(other), at, at, ("pairs",))
    with pytest.raises(InputError, match="gave no `nngp`"):
        whole.put(Parts.of({"ntk": zeros(2, 2, 3)}), at, at, ("pairs",))


def test_parts_keep_what_is_no_array_out_of_a_trace():
    seen = []

    @jax.jit
    def same(parts):
        seen.append(parts.value)
        return parts

    value = {"a": np.ones(3), "b": ("nngp", True, None), "c": 1}
    found = same(Parts.of(value)).value
    assert found["b"] == ("nngp", True, None)
    assert found["c"] == 1
    np.testing.assert_array_equal(found["a"], value["a"])
    same(Parts.of({**value, "a": np.zeros(3)}))
    assert len(seen) == 1
    same(Parts.of({**value, "c": True}))  # equal to 1, and something else
    assert seen[1]["c"] is True


class Device:
    platform = "gpu"

    def __init__(self, free):
        self._free = free

    def memory_stats(self):
        return {"bytes_limit": 10**9, "bytes_in_use": 10**9 - self._free}

    def __repr__(self):
        return "gpu:0"


def test_memory_is_checked_where_the_result_is_kept(monkeypatch):
    small, large = Device(10**6), Device(10**8)
    check_memory(10**7, 10**5, [large, small], False, "")
    with pytest.raises(InputError, match=r"gpu:0 has 1 MB free.*store_on_device=False"):
        check_memory(10**7, 10**5, [small, large], False, "nngp")
    check_memory(10**7, 10**5, [small, large], True, "nngp")
    with pytest.raises(InputError, match=r"a tile 900 kB.*1.8 MB.*Lower `batch_size`"):
        check_memory(10**7, 9 * 10**5, [small, large], True, "nngp")
    monkeypatch.setattr(_memory, "free_bytes", lambda device: None)
    check_memory(10**30, 10**30, [small], False, "nngp")


def test_the_free_memory_of_this_machine_is_known():
    free = _memory.free_bytes(None)
    assert free is not None
    assert 10**6 < free < 10**14
