"""Equal layers: stretches of a program that repeat, each reading the one before.

    s, s + p, s + 2p, ..     where the blocks begin
    lines i and i + p        differ in nothing but their references: those into the
                             stretch are p further, those before it are the same

Inputs of one kind are equal whatever they are called: weights are new in every block.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from ..program import (
    Input,
    Line,
    Map,
    Nonlin,
    Ref,
    TensorProgram,
    operands,
    renumber,
)

# Fewer blocks are not worth a loop.
_LEAST = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Loop:
    """Equal blocks of lines.

    Attributes:
        start: the first line of block 0. What it reads of a block before it are lines
            of the same type.
        period: the number of lines of a block.
        count: the number of blocks.
        read: the lines of block 0 that block 1 reads.
    """

    start: Ref
    period: int
    count: int
    read: frozenset[Ref]

    @property
    def end(self) -> Ref:
        """The line behind the last block."""
        return self.start + self.period * self.count

    def is_read(self, ref: Ref) -> bool:
        """Whether block 1 reads a line of block 0, or stands outside."""
        return self.block(ref) != 0 or ref in self.read

    def block(self, ref: Ref) -> int | None:
        """The block of a line, -1 for what block 0 reads; None outside."""
        k = (ref - self.start) // self.period
        return k if -1 <= k < self.count else None


def find_loops(program: TensorProgram) -> list[Loop]:
    """The loops of a program, in order; they do not overlap."""
    kinds, reads = _kinds(program), [operands(line) for line in program.lines]
    found, stretches = [], [(0, len(kinds))]
    while stretches:
        first, last = stretches.pop()
        loop = _longest(program, kinds, reads, first, last)
        if loop is not None:
            found.append(loop)
            stretches += [(first, loop.start), (loop.end, last)]
    return sorted(found, key=lambda loop: loop.start)


def _kinds(program: TensorProgram) -> np.ndarray:
    """A number for every line, equal for what differs in references and names."""
    nowhere = collections.defaultdict[Ref, Ref](int)
    known: dict[Any, int] = {}

    def kind(line: Line) -> int:
        if isinstance(line, Map) and isinstance(line.op, Input):
            # Hyperparameters of a layer; data stand before all layers.
            return known.setdefault((Input, line.shape), len(known))
        key = dataclasses.replace(renumber(line, nowhere), name="")
        return known.setdefault(key, len(known))

    return np.asarray([kind(line) for line in program.lines])


def _longest(
    program: TensorProgram,
    kinds: np.ndarray,
    reads: list[tuple[Ref, ...]],
    first: Ref,
    last: Ref,
) -> Loop | None:
    """The loop between two lines that covers most of them."""
    best, most = None, 0
    for period in range(1, (last - first) // _LEAST + 1):
        if best is not None and period % best.period == 0:
            continue  # some layers as one: it covers no more
        same = kinds[first : last - period] == kinds[first + period : last]
        for a, b in _runs(same, max((_LEAST - 1) * period, most - period + 1)):
            for start, end in _connected(reads, first + a, first + b, period):
                loop = _placed(program, reads, start, end, period)
                if loop is not None and loop.count * period > most:
                    best, most = loop, loop.count * period
    return best


def _runs(same: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Where so many entries in a row are true."""
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], same, [False]]).astype(int))
    )
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= least]


def _connected(
    reads: list[tuple[Ref, ...]], first: Ref, last: Ref, period: int
) -> list[tuple[Ref, Ref]]:
    """Where lines i and i + period also read alike, from first to last."""
    fits = np.asarray(
        [
            all(
                s == r + period or (s == r and r < first)
                for r, s in zip(reads[i], reads[i + period], strict=True)
            )
            for i in range(first, last)
        ]
    )
    return [(first + a, first + b) for a, b in _runs(fits, (_LEAST - 1) * period)]


def _placed(
    program: TensorProgram,
    reads: list[tuple[Ref, ...]],
    first: Ref,
    last: Ref,
    period: int,
) -> Loop | None:
    """The loop whose lines i and i + period agree from first to last.

    It may begin at any line of a block. Best is where little is read of the block
    before, and that has been through a function: then functions are computed once, and
    read many times by the window of a convolution after it.
    """
    found = []
    for start in range(first, first + period):
        count = (last + period - start) // period
        if count < _LEAST:
            break
        # What the next block reads at the same place stands before all blocks.
        read = {
            r
            for i in range(start + period, start + 2 * period)
            for r, s in zip(reads[i], reads[i + period], strict=True)
            if r != s and r < start + period
        }
        before = [r - period for r in read]
        if any(r < start for r in read) or min(before, default=0) < 0:
            continue  # of two blocks before
        if any(program.types[r] != program.types[r + period] for r in before):
            continue
        linear = sum(not isinstance(program.lines[r], Nonlin) for r in read)
        found.append((linear, len(read), -count, start, frozenset(read)))
    if not found:
        return None
    *_, count, start, lines = min(found, key=lambda one: one[:4])
    return Loop(start, period, -count, lines)
