"""Kernel matrices by blocks: every pair once, per-input work once per tile.

A pair kernel is a function of two inputs. It is mapped over a tile of pairs, as one
nested vmap where a pair is small and as a loop over rows where it is not; nested, the
work that depends on one input alone stays at one input. Tiles are cut to a budget of
memory, the last ones ragged. When both data sets are one, only the tiles on and above
the diagonal are computed.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._jax import is_concrete

# Memory for the intermediate arrays of one tile. Larger tiles leave the cache.
_TILE_BYTES = 32 * 2**20
_MAX_SIDE = 512
_ROWS = 32

Pair = Callable[[Any, Any, Any], Any]
"""(shared arrays, one input, another) -> the kernel of the pair."""
Progress = Callable[[int, int], None]
"""Called with the number of tiles done, and of all."""


class BlockKernel:
    """The kernel matrix of a pair kernel.

    Args:
        pair: the kernel of one pair of inputs; its result has the axes of both.
        same: the kernel of an input with itself, exact where `pair` only converges.
        swap: exchanges the roles of the two inputs in the result of `pair`.
    """

    def __init__(
        self, pair: Pair, same: Callable[[Any, Any], Any], swap: Callable[[Any], Any]
    ) -> None:
        # Jitted, so that measuring a pair and mapping it trace it once.
        self._pair, self._same, self._swap = jax.jit(pair), jax.jit(same), swap
        self._sides: dict[Any, tuple[int, int]] = {}
        self._nested = _compiled(self._nested_tile)
        self._by_rows = _compiled(self._row_tile)
        self._join = jax.jit(self._joined)
        self._mirror = _compiled(self._mirrored)

    def __call__(
        self, shared: Any, x1: Any, x2: Any | None, progress: Progress | None = None
    ) -> Any:
        """The matrix of all pairs, (N1, N2, ...); symmetric when `x2` is None.

        Args:
            shared: arrays that every pair uses.
            x1: a pytree of arrays with N1 inputs along the first axis.
            x2: the same with N2 inputs, or None for `x1`.
            progress: called after every tile.
        """
        other = x1 if x2 is None else x2
        n1, n2 = _count(x1), _count(other)
        rows, cols = self._tile(shared, x1, other)
        tile = self._nested if rows > _ROWS or cols >= n2 else self._by_rows
        if x2 is None:
            rows = cols = max(rows, cols) if tile is self._by_rows else min(rows, cols)
        starts = [(i, j) for i in range(0, n1, rows) for j in range(0, n2, cols)]
        needed = [(i, j) for i, j in starts if x2 is not None or j >= i]
        tiles: dict[tuple[int, int], Any] = {}
        for done, (i, j) in enumerate(needed):
            if progress is not None:
                progress(done, len(needed))
            tiles[i, j] = tile(
                shared, _rows(x1, i, i + rows), _rows(other, j, j + cols)
            )
            if progress is not None:
                jax.block_until_ready(tiles[i, j])
        if progress is not None:
            progress(len(needed), len(needed))
        if x2 is None:
            return self._mirror(shared, x1, tiles)
        return self._join(tiles)

    def _joined(self, tiles: dict[tuple[int, int], Any]) -> Any:
        rows, cols = (sorted({k[side] for k in tiles}) for side in (0, 1))
        return jnp.concatenate(
            [jnp.concatenate([tiles[i, j] for j in cols], axis=1) for i in rows]
        )

    def _mirrored(self, shared: Any, x: Any, tiles: dict[tuple[int, int], Any]) -> Any:
        """The whole matrix from the tiles on and above its diagonal: exactly symmetric."""
        full = dict(tiles)
        for (i, j), t in tiles.items():
            if i != j:
                full[j, i] = jnp.swapaxes(self._swapped(t), 0, 1)
                continue
            index = jnp.arange(t.shape[0])
            lower = index[:, None] > index[None, :]
            lower = lower.reshape(lower.shape + (1,) * (t.ndim - 2))
            full[i, i] = jnp.where(lower, jnp.swapaxes(self._swapped(t), 0, 1), t)
        matrix = self._joined(full)
        exact = lax.map(lambda one: self._same(shared, one), x, batch_size=_ROWS)
        index = jnp.arange(matrix.shape[0])
        return matrix.at[index, index].set(exact)

    def _swapped(self, tile: Any) -> Any:
        return jax.vmap(jax.vmap(self._swap))(tile)

    def _nested_tile(self, shared: Any, a: Any, b: Any) -> Any:
        inner = jax.vmap(self._pair, in_axes=(None, None, 0))
        return jax.vmap(inner, in_axes=(None, 0, None))(shared, a, b)

    def _row_tile(self, shared: Any, a: Any, b: Any) -> Any:
        def row(x: Any) -> Any:
            return jax.vmap(self._pair, in_axes=(None, None, 0))(shared, x, b)

        return lax.map(row, a)

    def _tile(self, shared: Any, x1: Any, x2: Any) -> tuple[int, int]:
        """Rows and columns of a tile, from the memory that one pair takes."""
        one, two = (jax.tree.map(lambda a: a[0], x) for x in (x1, x2))
        key = str(jax.tree.map(lambda a: (a.shape, str(a.dtype)), (one, two)))
        if key not in self._sides:
            jaxpr = jax.make_jaxpr(self._pair)(shared, one, two)
            pair = max(_bytes(jaxpr.jaxpr), 8)
            side = int(min(_MAX_SIDE, math.isqrt(max(1, _TILE_BYTES // (8 * pair)))))
            if side > _ROWS:
                self._sides[key] = (side, side)
            else:
                cols = int(max(1, min(_MAX_SIDE, _TILE_BYTES // (4 * pair))))
                self._sides[key] = (_ROWS, min(cols, _ROWS))
        return self._sides[key]


def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit(f)`, with the optimisation barriers of `f` respected.

    XLA removes them on the CPU before it fuses, and then computes a layer anew for every
    shift of the convolution that follows. Only an outermost jit takes options.
    """
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    nested = jax.jit(f)
    cpu = jax.default_backend() == "cpu"
    outermost = jax.jit(f, compiler_options=options) if cpu else nested

    def call(*args: Any) -> Any:
        # Inside a trace even a new array is a tracer.
        alone = all(is_concrete(a) for a in jax.tree.leaves((args, jnp.zeros(()))))
        return (outermost if alone else nested)(*args)

    return call


def _bytes(jaxpr: Any) -> int:
    """The largest intermediate array of a traced function, in bytes."""
    largest = 0
    for e in jaxpr.eqns:
        for inner in e.params.values():
            inner = getattr(inner, "jaxpr", inner)
            largest = max(largest, _bytes(inner) if hasattr(inner, "eqns") else 0)
        for v in e.outvars:
            shape = getattr(v.aval, "shape", ())
            largest = max(
                largest, math.prod(shape) * getattr(v.aval.dtype, "itemsize", 8)
            )
    return largest


def _count(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _rows(x: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda a: a[start:stop], x)
