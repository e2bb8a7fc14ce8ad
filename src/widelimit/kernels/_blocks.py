"""Kernel matrices by tiles: every pair once, per-input work once.

Numbers are computed tile by tile, each a call of a program that is compiled for a few
sizes of tiles; while one is put in its place the next is under way. When both data sets
are one, only the tiles on and above the diagonal are computed. Where something is
traced, all of it is one program, with a loop over the tiles.
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import is_concrete, is_on_host, jit_for_cpu
from .._progress import Progress
from ._parts import Parts
from ._plan import LEAST, UNDER_WAY, Cut, Memory, Plan, Sizes, memory, plan
from ._whole import OnDevice, OnHost, exchanged, mirrored, square

Tile = Callable[..., Any]
"""(shared, x1, x2, ids1, ids2, true, inputs_last) -> (R, C, *I, *I'), or a pytree."""
Same = Callable[..., Any]
"""(shared, x, true, inputs_last) -> every input with itself, (R, *I, *I')."""


class BlockKernel:
    """The kernel matrices of a kernel of two blocks of inputs.

    Args:
        tile: the kernels of all pairs of two blocks.
        same: those of every input with itself, exact where `tile` only converges.
        both: the kernels of all pairs of a block and one with other inputs of the same
            data set, and those of every input of the first with itself; made of the
            other two if None.

    Results may be pytrees: several matrices, computed together.
    """

    def __init__(self, tile: Tile, same: Same, both: Tile | None = None) -> None:
        self._tile, self._same, self._both = tile, same, both or self._one_by_one
        self._bytes: dict[Any, tuple[int, int]] = {}
        self._parts: dict[Any, Parts] = {}
        self._run_blocks = jit_for_cpu(self._blocks_now, static_argnums=(0, 1, 2))
        self._run_pairs = jit_for_cpu(self._pairs_now, static_argnums=(0, 1))
        self._run_own = jax.jit(self._own_now, static_argnums=(0, 1))
        self._run_same = jax.jit(self._same_now, static_argnums=(0, 1))
        self._run_all = jax.jit(self._all_now, static_argnums=0)

    def __call__(
        self,
        shared: Any,
        x1: Any,
        x2: Any | None,
        *,
        block: int | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The matrix of all pairs, (N1, N2, ...); symmetric when `x2` is None.

        Args:
            shared: arrays that every pair uses.
            x1: a pytree of arrays with N1 inputs along the first axis.
            x2: the same with N2 inputs, or None for `x1`.
            block: the most inputs along the side of a tile; chosen if None.
            progress: called with the tiles done, and all, after every one.

        Raises:
            InputError: it does not fit in memory.
        """
        alone = _is_alone(shared, x1, x2)
        cut = self._cut(shared, x1, x2, block, even=not alone)
        if not alone:
            true = _true((shared, x1, x2))
            return self._run_all(cut, (shared, true), *_unknown(true, (x1, x2)))
        return self._by_tiles(cut, shared, x1, x2, progress or _silent)

    def plan(
        self, shared: Any, x1: Any, x2: Any | None, block: int | None = None
    ) -> tuple[Plan, Memory]:
        """How the matrix of concrete arrays is cut, and the memory that it takes."""
        cut = self._cut(shared, x1, x2, block)
        return cut, memory(cut, self._parts_of(cut, shared, x1, x2).bytes)

    def _cut(
        self,
        shared: Any,
        x1: Any,
        x2: Any | None,
        block: int | None = None,
        even: bool = False,
    ) -> Plan:
        """Tiles for these inputs; most often those for the least of pairs."""
        counts = _count(x1), _count(x1 if x2 is None else x2)
        given = *counts, x2 is None, even, block
        key = str(_structs((x1, x2), 1)), even
        if key not in self._bytes:
            parts = self._parts_of(plan(LEAST, *given), shared, x1, x2, even)
            self._bytes[key] = parts.pair_bytes, parts.result_bytes
        size, result = self._bytes[key]
        return plan(size, *given, result)

    def diagonal(self, shared: Any, x: Any) -> Any:
        """Every input with itself, (N, ...)."""
        n = _count(x)
        cut = self._cut(shared, x, None, even=not _is_alone(shared, x, None))
        same = functools.partial(self._run_same, cut.rows.block, cut.inputs_last)
        given = shared, _true((shared, x))
        parts = [same(given, rows) for rows in _blocks(x, cut.rows)]
        return jax.tree.map(lambda *a: jnp.concatenate(a)[:n], *parts)

    def _by_tiles(
        self, cut: Plan, shared: Any, x1: Any, x2: Any | None, progress: Progress
    ) -> Any:
        """Tile by tile, one call each."""
        parts = self._parts_of(cut, shared, x1, x2)
        (device, *_) = jnp.zeros(()).devices()
        needed, shapes = parts.bytes, parts.shapes(cut.rows.count, cut.cols.count)
        memory(cut, needed).check(device, shapes)
        shared = shared, np.asarray(True)
        held = functools.lru_cache(cut.held(needed))

        def blocks(first: bool, i: int) -> Any:
            side = cut.rows if first else cut.cols
            x = _rows(x1 if first or x2 is None else x2, i * side.tile, side.tile)
            ids = _ids(i, side, first or x2 is None)
            count = np.int32(side.blocks(i))
            return self._run_blocks(parts, side.block, first, shared, (x, ids), count)

        rows = cols = held(functools.partial(blocks, True))
        if x2 is not None or not parts.alike:
            cols = held(functools.partial(blocks, False))

        def pairs(i: int, j: int) -> Any:
            given = shared, rows(i), cols(j), *cut.blocks(i, j)
            return self._run_pairs(parts, cut.sizes, *given)

        def compute(i: int, j: int) -> list[tuple[int, int, Any]]:
            """A tile and its mirror image, each with its first row and column."""
            row, col = i * cut.rows.tile, j * cut.cols.tile
            if x2 is None and i == j:
                own = self._run_own(parts, cut.sizes.counts[0], shared, rows(i))
                return [(row, col, _squared(own, functools.partial(pairs, i, i)))]
            tile = pairs(i, j)
            image = [] if x2 is not None else [(col, row, mirrored(tile))]
            return [(row, col, tile), *image]

        kind = OnHost if device.platform == "cpu" else OnDevice
        whole: OnHost | OnDevice | None = None
        under_way: deque[list[tuple[int, int, Any]]] = deque()
        places = iter(cut.tiles)
        for done in range(cut.count):
            for place in itertools.islice(places, UNDER_WAY - len(under_way)):
                under_way.append(compute(*place))
            for row, col, tile in under_way.popleft():
                if whole is None:
                    whole = kind(tile, cut.rows.count, cut.cols.count)
                whole.put(tile, row, col)
            progress(done + 1, cut.count)
        assert whole is not None
        return whole.result()

    def _one_by_one(
        self, shared: Any, a: Any, b: Any, i: Any, j: Any, true: Any, last: bool
    ) -> Any:
        tile = self._tile(shared, a, b, i, j, true, last)
        return tile, self._same(shared, a, true, last)

    # Compiled parts -------------------------------------------------------------------

    def _parts_of(
        self,
        cut: Plan,
        shared: Any,
        x1: Any,
        x2: Any | None,
        differentiable: bool = False,
    ) -> Parts:
        """The kernel of a block of pairs, taken apart."""
        ids, other = np.zeros(1, np.int32), x1 if x2 is None else x2
        one = _structs((x1, ids), cut.rows.block)
        two = _structs((other, ids), cut.cols.block)
        given = _structs((shared, np.asarray(True)))
        flags = cut.symmetric, cut.inputs_last, differentiable
        key = (str((given, one, two)), flags)

        def both(shared: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
            (shared, true), (a, i), (b, j) = shared, x1, x2
            given = shared, a, b, i, j, true, cut.inputs_last
            return self._both(*given) if cut.symmetric else (self._tile(*given), ())

        if key not in self._parts:
            self._parts[key] = Parts(both, given, one, two, differentiable)
        return self._parts[key]

    def _blocks_now(
        self, parts: Parts, block: int, rows: bool, shared: Any, x: Any, count: Any
    ) -> Any:
        """What pairs need of the inputs of a tile, in so many of its blocks."""
        one = parts.rows if rows else parts.cols
        x = _cut(x, block)
        blocks = _count(x)
        if parts.bytes.at_once(blocks) == blocks:
            return jax.vmap(lambda x: one(shared, x))(x)
        places = np.arange(blocks, dtype=np.int32)[:, None]
        return _filled(lambda k: one(shared, _at(x, k)), (blocks,), places, count)

    def _pairs_now(
        self,
        parts: Parts,
        sizes: Sizes,
        shared: Any,
        rows: Any,
        cols: Any,
        places: Any,
        count: Any,
    ) -> Any:
        """All pairs of a tile that are in blocks at the first places, and zeros."""

        def at_place(i: Any, j: Any) -> Any:
            return parts.pairs(shared, _at(rows, i), _at(cols, j))

        def joined(k: Any) -> Any:
            k = k.swapaxes(1, 2)
            return k.reshape(*sizes.tile, *k.shape[4:])

        return jax.tree.map(joined, _filled(at_place, sizes.counts, places, count))

    def _own_now(self, parts: Parts, count: int, shared: Any, rows: Any) -> Any:
        """Every input of a tile of so many blocks with itself."""
        of_rows = functools.partial(parts.of_rows, shared)
        own = jax.vmap(of_rows, axis_size=count)(rows)
        return jax.tree.map(lambda k: k.reshape(-1, *k.shape[2:]), own)

    def _same_now(self, block: int, inputs_last: bool, shared: Any, x: Any) -> Any:
        def same(x: Any) -> Any:
            return self._same(shared[0], x, shared[1], inputs_last)

        found = lax.map(same, _cut(x, block))
        return jax.tree.map(lambda k: k.reshape(-1, *k.shape[2:]), found)

    def _all_now(self, cut: Plan, shared: Any, x1: Any, x2: Any | None) -> Any:
        """The whole matrix as one program."""
        ids = [jnp.arange(c.count, dtype=np.int32) for c in (cut.rows, cut.cols)]
        first = second = _cut((x1, ids[0]), cut.rows.tile)
        if x2 is not None:
            second = _cut((x2, -1 - ids[1]), cut.cols.tile)
        parts = self._parts_of(cut, shared[0], x1, x2, differentiable=True)

        # What is needed of a tile for its derivative is computed again, tile by tile.
        @jax.checkpoint
        def of_rows(x: Any) -> Any:
            return parts.rows(shared, x)

        @jax.checkpoint
        def of_cols(x: Any) -> Any:
            return parts.cols(shared, x)

        @jax.checkpoint
        def tile(rows: Any, cols: Any, at: Any) -> Any:
            return parts.pairs(shared, _at(rows, at[0]), _at(cols, at[1]))

        rows = cols = _mapped(of_rows, first)
        if x2 is not None or not parts.alike:
            cols = _mapped(of_cols, second)

        def of_places(places: list[tuple[int, int]]) -> Any:
            return _mapped(lambda at: tile(rows, cols, at), np.asarray(places))

        if x2 is not None:
            tiles = of_places(list(cut.tiles))
            return jax.tree.map(lambda k: _grid(k, cut.rows, cut.cols), tiles)
        own = functools.partial(parts.of_rows, shared)
        same = jax.vmap(own, axis_size=cut.rows.tiles)(rows)
        one = cut.rows.tile == 1
        on = [(i, i) for i in range(0 if one else cut.rows.tiles)]
        above = [(i, j) for i, j in cut.tiles if i != j]
        if not on + above:
            return same
        tiles = of_places(on + above)

        def whole(k: Any, d: Any) -> Any:
            squares = d[:, :, None] if one else jax.vmap(square)(k[: len(on)], d)
            return _mirrored(squares, k[len(on) :], cut.rows)

        return jax.tree.map(whole, tiles, same)


def _squared(own: Any, pairs: Callable[[], Any]) -> Any:
    """A tile on the diagonal, from inputs with themselves and from the pairs of them.

    In one program XLA would compute numbers again for their mirror images, and round
    them differently.
    """
    if _count(own) == 1:
        return jax.tree.map(lambda k: k[:, None], own)
    return square(pairs(), own)


def _count(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


def _is_alone(*args: Any) -> bool:
    """Whether nothing is traced. Inside a trace even a new array is a tracer."""
    return all(is_concrete(a) for a in jax.tree.leaves((args, jnp.zeros(()))))


def _structs(x: Any, rows: int | None = None) -> Any:
    """Shapes, with another number of rows."""

    def one(a: Any) -> Any:
        shape = a.shape if rows is None else (rows, *a.shape[1:])
        return jax.ShapeDtypeStruct(shape, a.dtype)

    return jax.tree.map(one, x)


def _true(given: Any) -> Any:
    """A truth that XLA cannot know: what it is given only at run time is finite."""
    for a in jax.tree.leaves(given):
        if not is_concrete(a):
            first = a[(0,) * a.ndim]
            floating = jnp.issubdtype(first.dtype, jnp.floating)
            return jnp.isfinite(first) if floating else first == first
    return jnp.asarray(True)


def _unknown(true: Any, x: Any) -> Any:
    """Arrays that XLA does not compute with when it compiles, though it has them."""
    return jax.tree.map(lambda a: jnp.where(true, a, a[:1]), x)


def _ids(i: int, side: Cut, first: bool) -> np.ndarray:
    """Whole numbers for the inputs of a tile, others for inputs of the second set."""
    ids = np.arange(i * side.tile, (i + 1) * side.tile, dtype=np.int32)
    ids = np.minimum(ids, side.count - 1)
    return ids if first else -1 - ids


def _blocks(x: Any, cut: Cut) -> list[Any]:
    """The inputs of every tile; the last input again where there are no more."""
    return [_rows(x, i * cut.tile, cut.tile) for i in range(cut.tiles)]


def _rows(x: Any, start: int, count: int) -> Any:
    total = _count(x)
    if start == 0 and count == total:
        return x

    def rows(a: Any) -> Any:
        if not isinstance(a, np.ndarray) and is_on_host(a):
            a = np.asarray(a)
        if start + count > total:
            return a[np.minimum(np.arange(start, start + count), total - 1)]
        if isinstance(a, np.ndarray):
            # A view, which JAX takes over where it is aligned.
            return jax.device_put(a[start : start + count])
        return _slice(a, start, count)

    return jax.tree.map(rows, x)


@functools.partial(jax.jit, static_argnums=2)
def _slice(a: Any, start: Any, count: int) -> Any:
    return lax.dynamic_slice_in_dim(a, start, count)


def _cut(x: Any, step: int) -> Any:
    """Rows in equal parts, one behind the other; the last row again at the end."""
    count = _count(x)
    total = -(-count // step) * step
    index = np.minimum(np.arange(total), count - 1)

    def parts(a: Any) -> Any:
        a = a if total == count else a[index]
        return a.reshape(-1, step, *a.shape[1:])

    return jax.tree.map(parts, x)


def _mapped(f: Callable[[Any], Any], x: Any) -> Any:
    """`lax.map`; once is no loop, through which JAX takes no second derivatives."""
    if _count(x) > 1:
        return lax.map(f, x)
    return jax.tree.map(lambda a: a[None], f(jax.tree.map(lambda a: a[0], x)))


def _at(x: Any, place: Any) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, place, keepdims=False), x)


def _filled(
    f: Callable[..., Any], shape: tuple[int, ...], places: Any, count: Any
) -> Any:
    """Results at some places of a grid, and zeros at the others.

    Args:
        f: from the numbers of a place to a pytree of arrays.
        shape: of the grid.
        places: the numbers of one place after the other.
        count: of how many of them.
    """
    if math.prod(shape) == 1:
        found = f(*(0,) * len(shape))
        return jax.tree.map(lambda a: a.reshape(*shape, *a.shape), found)
    places = jnp.asarray(places)

    def step(k: Any, found: Any) -> Any:
        at = tuple(places[k])

        def put(one: Any, a: Any) -> Any:
            return one.at[at].set(a, mode="promise_in_bounds")

        return jax.tree.map(put, found, f(*at))

    like = jax.eval_shape(f, *places[0])
    empty = jax.tree.map(lambda a: jnp.zeros((*shape, *a.shape), a.dtype), like)
    return lax.fori_loop(0, count, step, empty)


def _grid(tiles: Any, rows: Cut, cols: Cut) -> Any:
    """The matrix of all tiles, row by row."""
    k = tiles.reshape(rows.tiles, cols.tiles, *tiles.shape[1:]).swapaxes(1, 2)
    k = k.reshape(rows.tiles * rows.tile, cols.tiles * cols.tile, *k.shape[4:])
    return k[: rows.count, : cols.count]


def _mirrored(on: Any, above: Any, cut: Cut) -> Any:
    """The whole matrix from tiles on its diagonal, and those above it."""
    count = cut.tiles
    places = [(i, j) for i in range(count) for j in range(i + 1, count)]
    upper = {at: count + n for n, at in enumerate(places)}
    tiles = jnp.concatenate([on, above, jax.vmap(exchanged)(above)])
    index = [
        i if i == j else upper[i, j] if i < j else len(places) + upper[j, i]
        for i in range(count)
        for j in range(count)
    ]
    return _grid(tiles[np.asarray(index)], cut, cut)
