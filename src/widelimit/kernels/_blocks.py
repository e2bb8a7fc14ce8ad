"""Kernel matrices by blocks: every pair once, per-input work once per block.

A pair kernel is a function of two inputs. The matrix is cut into tiles of one shape, so
that one program is compiled, and a tile into blocks of pairs whose arrays stay in the
cache: a loop over blocks, a nested vmap inside a block. Nested, work that depends on
one input alone stays at one input. When both data sets are one, only the tiles on and
above the diagonal are computed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import is_concrete

# Bytes of the largest array of a block: several of them share a core's cache.
_BLOCK = 2**18
# Inputs along the side of a tile, and bytes that pass through one: seconds of work.
_SIDE = 256
_TILE = 2**30

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

    Results may be pytrees: several matrices, computed together.
    """

    def __init__(
        self, pair: Pair, same: Callable[[Any, Any], Any], swap: Callable[[Any], Any]
    ) -> None:
        # Jitted, so that measuring a pair and mapping it trace it once.
        self._pair, self._same, self._swap = jax.jit(pair), jax.jit(same), swap
        self._bytes: dict[Any, int] = {}
        self._tile = _compiled(self._tile_now, static=(0,))
        self._diagonal = _compiled(self._diagonal_now, static=(0,))
        self._join = jax.jit(self._joined, static_argnums=(1, 2))
        self._mirror = jax.jit(self._mirrored, static_argnums=(2,))

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
        size = self._pair_bytes(shared, x1, other)
        plan = _plan(size, n1, n2, symmetric=x2 is None)
        starts = [
            (i, j) for i in range(0, n1, plan.rows) for j in range(0, n2, plan.cols)
        ]
        needed = [(i, j) for i, j in starts if x2 is not None or j >= i]
        tiles: dict[tuple[int, int], Any] = {}
        for done, (i, j) in enumerate(needed):
            if progress is not None:
                progress(done, len(needed))
            a, b = _rows(x1, i, plan.rows), _rows(other, j, plan.cols)
            tiles[i, j] = self._tile(plan, shared, a, b)
            if progress is not None:
                jax.block_until_ready(tiles[i, j])
        if progress is not None:
            progress(len(needed), len(needed))
        if x2 is not None:
            return self._join(tiles, n1, n2)
        steps = [_rows(x1, i, plan.rows) for i in range(0, n1, plan.rows)]
        exact = [self._diagonal(plan.block_rows, shared, x) for x in steps]
        return self._mirror(tiles, exact, n1)

    def diagonal(self, shared: Any, x: Any) -> Any:
        """Every input with itself, (N, ...)."""
        n = _count(x)
        plan = _plan(self._pair_bytes(shared, x, x), n, n, symmetric=True)
        parts = [
            self._diagonal(plan.block_rows, shared, _rows(x, i, plan.rows))
            for i in range(0, n, plan.rows)
        ]
        return jax.tree.map(lambda *a: jnp.concatenate(a)[:n], *parts)

    def _joined(self, tiles: dict[tuple[int, int], Any], n1: int, n2: int) -> Any:
        rows, cols = (sorted({k[side] for k in tiles}) for side in (0, 1))

        def join(*parts: Any) -> Any:
            at = dict(zip(tiles, parts, strict=True))
            lines = [jnp.concatenate([at[i, j] for j in cols], axis=1) for i in rows]
            return jnp.concatenate(lines)[:n1, :n2]

        return jax.tree.map(join, *tiles.values())

    def _mirrored(
        self, tiles: dict[tuple[int, int], Any], exact: list[Any], n: int
    ) -> Any:
        """The whole matrix from tiles on and above its diagonal: exactly symmetric."""
        full = {}
        for (i, j), tile in tiles.items():
            other = _swap_sides(jax.vmap(jax.vmap(self._swap))(tile))
            if i == j:
                diagonal = exact[i // _count(exact[0])]
                # Computed anew for its mirror image it would differ by rounding.
                diagonal = jax.tree.map(
                    lambda a, b: 0.5 * (a + b), diagonal, jax.vmap(self._swap)(diagonal)
                )
                tile = jax.tree.map(_with_diagonal, tile, other, diagonal)
            else:
                full[j, i] = other
            full[i, j] = tile
        return self._joined(full, n, n)

    def _tile_now(self, plan: "_Plan", shared: Any, a: Any, b: Any) -> Any:
        """All pairs of the rows `a` and the columns `b`, block by block."""

        def block(x: Any, y: Any) -> Any:
            inner = jax.vmap(self._pair, in_axes=(None, None, 0))
            return jax.vmap(inner, in_axes=(None, 0, None))(shared, x, y)

        def across(x: Any) -> Any:
            return _in_steps(lambda y: _swap_sides(block(x, y)), b, plan.block_cols)

        def down(x: Any) -> Any:
            return _swap_sides(across(x))

        return _in_steps(down, a, plan.block_rows)

    def _diagonal_now(self, step: int, shared: Any, x: Any) -> Any:
        return _in_steps(jax.vmap(lambda one: self._same(shared, one)), x, step)

    def _pair_bytes(self, shared: Any, x1: Any, x2: Any) -> int:
        """Bytes of the largest array that belongs to a pair, not to one input."""
        one, two = (jax.tree.map(lambda a: a[0], x) for x in (x1, x2))
        key = str(jax.tree.map(lambda a: (a.shape, str(a.dtype)), (one, two)))
        if key not in self._bytes:
            jaxpr = jax.make_jaxpr(self._pair)(shared, one, two).jaxpr
            marks = [
                m for m, x in enumerate((shared, one, two)) for _ in jax.tree.leaves(x)
            ]
            self._bytes[key] = max(_largest(jaxpr, marks)[0], 4)
        return self._bytes[key]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """Inputs along the sides of a tile, and of the blocks it is computed in."""

    rows: int
    cols: int
    block_rows: int
    block_cols: int


def _plan(size: int, n1: int, n2: int, symmetric: bool) -> _Plan:
    """Tiles for a matrix of n1 x n2 pairs of `size` bytes each."""
    pairs = max(1, _BLOCK // size)
    side = max(1, min(_SIDE, math.isqrt(_TILE // size)))
    rows, cols = _even(n1, side), _even(n2, side)
    if pairs < cols:
        block_rows, block_cols = 1, _even(cols, pairs)
        cols = block_cols * -(-cols // block_cols)
        rows = cols if symmetric else rows
        return _Plan(rows, cols, block_rows, block_cols)
    block_rows = _even(rows, pairs // cols)
    rows = block_rows * -(-rows // block_rows)
    cols = rows if symmetric else cols
    return _Plan(rows, cols, block_rows, cols)


def _even(count: int, most: int) -> int:
    """The size of the parts when `count` is cut evenly into parts of at most `most`."""
    return -(-count // -(-count // most))


def _in_steps(f: Callable[[Any], Any], x: Any, step: int) -> Any:
    """`f` of all rows of `x`, by a loop over equal parts of them."""
    count = _count(x)
    if step == count:
        return f(x)
    parts = jax.tree.map(lambda a: a.reshape(count // step, step, *a.shape[1:]), x)
    return jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), lax.map(f, parts))


def _swap_sides(tile: Any) -> Any:
    return jax.tree.map(lambda t: jnp.swapaxes(t, 0, 1), tile)


def _with_diagonal(upper: Any, lower: Any, exact: Any) -> Any:
    """A square tile from one above its diagonal, one below it, and the diagonal."""
    index = jnp.arange(upper.shape[0])
    axes = tuple(range(2, upper.ndim))
    below = jnp.expand_dims(index[:, None] > index, axes)
    on = jnp.expand_dims(index[:, None] == index, axes)
    return jnp.where(on, exact[:, None], jnp.where(below, lower, upper))


def _compiled(f: Callable[..., Any], static: tuple[int, ...]) -> Callable[..., Any]:
    """`jax.jit(f)`, with the optimisation barriers of `f` respected.

    XLA removes them on the CPU before it fuses, and then computes a layer anew for
    every shift of the convolution that follows. Only an outermost jit takes options.
    """
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    nested = jax.jit(f, static_argnums=static)
    if jax.default_backend() != "cpu":
        return nested
    outermost = jax.jit(f, static_argnums=static, compiler_options=options)

    def call(*args: Any) -> Any:
        # Inside a trace even a new array is a tracer.
        alone = all(is_concrete(a) for a in jax.tree.leaves((args, jnp.zeros(()))))
        return (outermost if alone else nested)(*args)

    return call


_LOOPS = ("while", "scan", "cond")


def _largest(jaxpr: Any, marks: list[int]) -> tuple[int, list[int]]:
    """Bytes of the largest array of a pair, and the marks of the results.

    A mark says what an array depends on: 1 the first input, 2 the second, 3 both.
    """
    known = {id(v): m for v, m in zip(jaxpr.invars, marks, strict=True)}
    largest = 0
    for e in jaxpr.eqns:
        args = [known.get(id(v), 0) for v in e.invars]
        mark = 0
        for m in args:
            mark |= m
        outs = [mark] * len(e.outvars)
        for inner in (
            getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(e.params.values()))
        ):
            # A function that maps itself by broadcasting keeps the arrays of one input.
            if not hasattr(inner, "eqns") or e.primitive.name == "custom_vmap_call":
                continue
            direct = e.primitive.name not in _LOOPS and len(inner.invars) == len(args)
            size, found = _largest(
                inner, args if direct else [mark] * len(inner.invars)
            )
            largest = max(largest, size)
            outs = found if direct and len(found) == len(outs) else outs
        for v, m in zip(e.outvars, outs, strict=True):
            known[id(v)] = m
            if m == 3:
                item = getattr(v.aval.dtype, "itemsize", 8)
                largest = max(largest, math.prod(v.aval.shape) * item)
    return largest, [known.get(id(v), 0) for v in jaxpr.outvars]


def _count(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _rows(x: Any, start: int, count: int) -> Any:
    """`count` rows from `start` on; the last input again where there are no more."""
    last = _count(x) - 1
    if start == 0 and count == last + 1:
        return x
    if start + count <= last + 1:
        return jax.tree.map(lambda a: a[start : start + count], x)
    index = np.minimum(np.arange(start, start + count), last)
    return jax.tree.map(lambda a: a[index], x)
