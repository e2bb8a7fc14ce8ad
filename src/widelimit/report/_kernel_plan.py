"""How a matrix of kernels will be computed, before anything is."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from .._memory import size_text
from ..asymptotics import Engine, Step
from ..kernels import Memory, Plan
from ..program import AxisMap, MatMul, Readout, TensorProgram

# A blank that is no place to break a line.
_JOINED = "\u00a0"


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedStep:
    """One family of numbers of the recursion.

    Attributes:
        what: `E[a b]`, a second moment; `K[a, b]`, a covariance; `d[a, b]`, half of the
            mean squared difference, from which a covariance follows; `E[a]`, a mean.
        positions: at which positions of both lines.
        window: the sizes of the sum over positions that a product with a matrix has.
        by_pair: whether there is one for every pair of inputs, or for every input.
    """

    what: str
    positions: str
    window: tuple[int, ...]
    by_pair: bool

    @property
    def where(self) -> str:
        """The positions in words, with those that are summed over."""
        summed = f", sums over {_sizes(self.window)}" if self.window else ""
        return self.positions + summed


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """What a kernel of two data sets costs; printed by `widelimit show --after plan`.

    Attributes:
        title: of what the plan is.
        steps: what is computed, in order; of equal layers those of one.
        loops: the equal layers that are one loop: first line, last line, blocks.
        cut: the tiles and the blocks inside of them.
        memory: the bytes that are taken beside the inputs.
    """

    title: str
    steps: tuple[PlannedStep, ...]
    loops: tuple[tuple[str, str, int], ...]
    cut: Plan
    memory: Memory

    def __str__(self) -> str:
        lines = [self.title, "", *self._tiles(), *self._memory(), "", "Equal layers:"]
        lines += [
            f"  {first} to {last}: {count} blocks, one loop"
            for first, last, count in self.loops
        ] or ["  none that repeat"]
        for title, by_pair in (("input", False), ("pair of inputs", True)):
            lines += ["", f"Once for every {title}:"]
            families: dict[str, list[str]] = {}
            for step in self.steps:
                if step.by_pair == by_pair:
                    families.setdefault(step.where, []).append(step.what)
            for where, found in families.items():
                lines += [f"  {where}", *_wrapped(found)]
        return "\n".join(lines)

    def _tiles(self) -> list[str]:
        cut = self.cut
        rows, cols = cut.rows, cut.cols
        half = ", those on and above the diagonal" if cut.symmetric else ""
        place = "behind" if cut.inputs_last else "before"
        return [
            f"Tiles:   {cut.count} of {rows.tile} x {cols.tile} pairs{half}",
            f"Blocks:  {rows.block} x {cols.block} pairs, {size_text(cut.bytes)} each "
            f"in the largest array, inputs {place} positions",
        ]

    def _memory(self) -> list[str]:
        m = self.memory
        result, tables, tiles, working = map(
            size_text, (m.result, m.tables, m.tiles, m.working)
        )
        return [
            f"Memory:  {result} for the result",
            f"         {size_text(m.extra)} more: {tables} of single inputs, {tiles} "
            f"of tiles, {working} inside of a block",
        ]


def kernel_plan(
    title: str, engine: Engine, program: TensorProgram, cut: Plan, memory: Memory
) -> KernelPlan:
    """The plan behind the steps that an engine took.

    Args:
        title: of what it is.
        engine: after the kernels of two blocks of inputs were asked of it.
        program: that of the first input.
        cut: the tiles.
        memory: what they take.
    """
    steps = sorted(engine.steps, key=lambda s: s.u.ref)
    planned = dict.fromkeys(_planned(s, program) for s in steps)
    folded = () if engine.folding is None else tuple(engine.folding.folded)
    names = [line.name for line in program.lines]
    loops = tuple((names[a.start], names[a.end - 1], a.count) for a in folded)
    return KernelPlan(title, tuple(planned), loops, cut, memory)


def _planned(step: Step, program: TensorProgram) -> PlannedStep:
    u, v = step.u, step.v or step.u
    a, b = program.lines[u.ref], program.lines[v.ref]
    by_pair = step.v is not None and u.side != v.side
    mark = "'" if by_pair else ""
    match step.rule:
        case "mean":
            what = f"E[{a.name}]"
        case "distance":
            what = f"d[{a.name}, {b.name}{mark}]"
        case "matmul" | "readout":
            what = f"K[{a.name}, {b.name}{mark}]"
        case _:
            what = f"E[{a.name} {b.name}{mark}]"
    window = a.sums if isinstance(a, MatMul | Readout) else ()
    return PlannedStep(what, _positions(u.indices, v.indices), tuple(window), by_pair)


def _positions(first: Sequence[AxisMap], second: Sequence[AxisMap]) -> str:
    """At which positions two lines are asked for."""
    equal = [i for i in first if i.letters and i in second]
    one, two = (
        [i for i in some if i.letters and i not in equal] for some in (first, second)
    )
    shared = {a for i in one for a in i.letters} & {a for i in two for a in i.letters}
    found = []
    if equal:
        found.append(f"{_grid(equal)} equal positions")
    if shared:
        offsets = math.prod(max(len({*i.table.flat}), 1) for i in two)
        found.append(f"{_grid(one)} positions, {offsets} offsets")
    elif one or two:
        found.append(f"{_grid(one)} with {_grid(two)} positions")
    return ", ".join(found) or "one position"


def _wrapped(words: Sequence[str]) -> list[str]:
    text = "; ".join(words).replace(" ", _JOINED)
    text = text.replace(f";{_JOINED}", "; ")
    indent = " " * 4
    lines = textwrap.wrap(text, 79, initial_indent=indent, subsequent_indent=indent)
    return [line.replace(_JOINED, " ") for line in lines]


def _grid(indices: Sequence[AxisMap]) -> str:
    return _sizes([i.table.size for i in indices]) or "1"


def _sizes(sizes: Sequence[Any]) -> str:
    return " x ".join(map(str, sizes))
