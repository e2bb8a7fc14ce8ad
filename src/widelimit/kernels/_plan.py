"""How a matrix of pairs is cut: tiles of few sizes, and blocks that stay in the cache.

A tile is one call of a compiled program, so its sides come from a short list: other
numbers of inputs find it compiled. Inside a tile a loop runs over blocks, whose arrays
share the cache of a core.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._errors import InputError
from .._memory import free_bytes, size_text
from ._parts import Bytes

# Bytes of a pair, at the least.
LEAST = 4
# Tiles that are computed before the first is put in its place.
UNDER_WAY = 3
# Bytes of what is known of single inputs that are held, rather than found again.
_HELD = 2**29
# Bytes of the largest array of a block.
_BLOCK = 2**21
# Inputs along the side of a block, and of a tile.
_SIDE, _TILE_SIDE = 512, 2048
# Bytes that pass through a tile, and how many tiles are worth their calls.
_TILE = 2**30
# Bytes of the results of a tile of several blocks.
_RESULT = 2**26
_CALLS = 300
# Pairs with more bytes are computed in few calls, with room for so many inputs a side.
_BUSY, _FEW = 2**10, 8
# Pairs with more bytes stand in front of their positions, others behind.
_LARGE = 2**15


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """A number of inputs, cut.

    Attributes:
        count: the number.
        tile: inputs of a tile; the last tile is filled up.
        block: inputs of a block; a tile is some of them.
    """

    count: int
    tile: int
    block: int

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return -(-self.count // self.tile)

    def blocks(self, tile: int) -> int:
        """How many blocks of a tile have an input of their own."""
        return -(-min(self.tile, self.count - tile * self.tile) // self.block)


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """What the program of a tile is compiled for.

    Attributes:
        tile: its rows and columns.
        block: those of the blocks that it is computed in.
        inputs_last: the axes of inputs stand behind those of positions.
    """

    tile: tuple[int, int]
    block: tuple[int, int]
    inputs_last: bool

    @property
    def counts(self) -> tuple[int, int]:
        """How many blocks stand along either side of a tile."""
        (rows, cols), (height, width) = self.tile, self.block
        return rows // height, cols // width


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Tiles and blocks of a matrix of pairs.

    Attributes:
        rows: of the first inputs.
        cols: of the second inputs.
        bytes: of the largest array that belongs to one pair.
        symmetric: whether both are the same inputs; then half of the tiles will do.
    """

    rows: Cut
    cols: Cut
    bytes: int
    symmetric: bool

    @property
    def inputs_last(self) -> bool:
        """Whether the axes of inputs stand behind those of positions."""
        return self.bytes < _LARGE

    @property
    def sizes(self) -> Sizes:
        """What tiles are compiled for."""
        rows, cols = self.rows, self.cols
        return Sizes((rows.tile, cols.tile), (rows.block, cols.block), self.inputs_last)

    def held(self, one: Bytes) -> int:
        """How many tiles on a side are remembered by what is known of their inputs.

        Args:
            one: the sizes of a block.
        """
        count = max(self.rows.tiles, self.cols.tiles)
        return min(count, max(2, _HELD // max(self.tables(one), 1)))

    def tables(self, one: Bytes) -> int:
        """Bytes of what is known of the inputs of a tile, on both sides.

        Args:
            one: the sizes of a block.
        """
        rows, cols = self.sizes.counts
        return rows * one.rows + cols * one.cols

    @property
    def tiles(self) -> Iterator[tuple[int, int]]:
        """The places of the tiles that are computed, row by row."""
        for i in range(self.rows.tiles):
            for j in range(i if self.symmetric else 0, self.cols.tiles):
                yield i, j

    def blocks(self, i: int, j: int) -> tuple[np.ndarray, np.int32]:
        """Where the blocks of a tile are that are computed, and how many these are.

        There are as many places as blocks in a tile; the last ones do not count.
        """
        shape = self.rows.blocks(i), self.cols.blocks(j)
        row, col = np.indices(shape, np.int32).reshape(2, -1)
        if self.symmetric and i == j:
            # Every input with itself is known already.
            above = col - row >= (self.rows.block == 1)
            row, col = row[above], col[above]
        places = np.zeros((math.prod(self.sizes.counts), 2), np.int32)
        places[: len(row)] = np.stack([row, col], -1)
        return places, np.int32(len(row))

    @property
    def count(self) -> int:
        """How many tiles are computed."""
        rows, cols = self.rows.tiles, self.cols.tiles
        return rows * (rows + 1) // 2 if self.symmetric else rows * cols


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a matrix of pairs takes beside its inputs, known before anything runs.

    Attributes:
        result: of the matrices.
        tables: of what is known of single inputs and held, for some tiles.
        tiles: of the results of the tiles that are under way.
        working: of the arrays inside of a block, at the most; or of blocks alone.
    """

    result: int
    tables: int
    tiles: int
    working: int

    @property
    def extra(self) -> int:
        """What is taken beside the result, however many pairs there are."""
        return self.tables + self.tiles + self.working

    def check(self, device: Any, shapes: str) -> None:
        """Refuse matrices that do not fit.

        Args:
            device: where they are computed and kept.
            shapes: of the matrices, for the message.

        Raises:
            InputError: more bytes are needed than are free.
        """
        place = None if device.platform == "cpu" else device
        free = free_bytes(place)
        if free is None or self.result + self.extra <= free:
            return
        advice = "Give fewer inputs, or of a lower precision"
        if self.extra > free:
            advice = "Set a smaller `block`, or give inputs with fewer positions"
        elif place is not None:
            advice += ", or keep the result on the host: `wl.batch` does"
        raise InputError(
            f"The kernels ({shapes}) take {size_text(self.result)}, and computing them "
            f"{size_text(self.extra)} more ({size_text(self.tables)} of single inputs, "
            f"{size_text(self.tiles)} of tiles, {size_text(self.working)} inside of "
            f"one). {'The host' if place is None else place} has {size_text(free)} "
            f"free. {advice}."
        )


def memory(cut: Plan, one: Bytes) -> Memory:
    """What is held at once.

    Args:
        cut: the tiles and blocks.
        one: the sizes of a block.
    """
    rows, cols, counts = cut.rows, cut.cols, cut.sizes.counts
    # A tile and its mirror image.
    copies = UNDER_WAY * (1 + cut.symmetric)
    alone = one.alone * max(map(one.at_once, counts))
    return Memory(
        result=one.result * rows.count * cols.count // (rows.block * cols.block),
        tables=cut.tables(one) * cut.held(one),
        tiles=one.result * math.prod(counts) * copies,
        working=max(one.working, alone),
    )


def plan(
    size: int,
    n1: int,
    n2: int,
    symmetric: bool,
    even: bool,
    most: int | None = None,
    result: int = LEAST,
) -> Plan:
    """Tiles for n1 x n2 pairs.

    Args:
        size: bytes of the largest array of a pair.
        n1: inputs along the rows.
        n2: inputs along the columns.
        symmetric: whether they are the same.
        even: tiles of any equal sizes, rather than of a few sizes.
        most: inputs along the side of a tile; chosen if None.
        result: bytes of the results of a pair.
    """
    pairs = max(1, _BLOCK // size)
    side = _SIDE if most is None else min(most, _SIDE)
    rows, cols = _sides(pairs, side, (n1, n2), symmetric, even)
    blocks, limit = (rows, cols), _TILE_SIDE if most is None else most
    # Of large pairs, calls cost more than to put one result in place beside the next:
    # threads wake up, memory is taken anew. What a tile has room for is not computed,
    # so that few sizes do.
    costly = size >= _BUSY
    least = _FEW if costly else 1
    while not even and (costly or _calls(rows, cols, n1, n2, symmetric) > _CALLS):
        grow = rows < max(n1, least), cols < max(n2, least)
        full = 4 * rows * cols * size > _TILE or 4 * rows * cols * result > _RESULT
        if full or 2 * max(rows, cols) > limit or not any(grow):
            break
        rows, cols = rows * (1 + grow[0]), cols * (1 + grow[1])
    return Plan(Cut(n1, rows, blocks[0]), Cut(n2, cols, blocks[1]), size, symmetric)


def _sides(
    pairs: int, most: int, counts: tuple[int, int], symmetric: bool, even: bool
) -> tuple[int, int]:
    """The sides of a block of at most so many pairs, and so many inputs to a side."""
    n1, n2 = counts
    side = min(most, math.isqrt(pairs))
    if symmetric:
        side = _fitting(n1, side, even)
        return side, side
    cols = _fitting(n2, min(n2, side), even)
    rows = _fitting(n1, min(most, max(1, pairs // cols)), even)
    cols = _fitting(n2, min(most, max(1, pairs // rows)), even)
    return rows, cols


def _fitting(count: int, most: int, even: bool) -> int:
    """A side of at most `most`: equal parts, or a power of two that wastes little."""
    if even:
        return -(-count // -(-count // most))
    sizes = [2**k for k in range(most.bit_length())]
    # A call costs as much as some pairs.
    return min(sizes, key=lambda s: (-(-count // s) * (s + 16), -s))


def _calls(rows: int, cols: int, n1: int, n2: int, symmetric: bool) -> int:
    whole = -(-n1 // rows) * -(-n2 // cols)
    return whole // 2 if symmetric else whole
