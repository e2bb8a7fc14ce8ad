"""A function of two blocks of inputs, in parts: of either block, and of both.

What depends on one input is computed once for it, and not once for every pair. The
function is traced; what its equations depend on says where they belong. Values that are
made of both blocks in the same way have one number, so that a block that stands on both
sides is worked on once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from .. import _jax
from .._memory import without_collection

# What a value depends on: arrays that all share, the rows, the columns, both.
_SHARED, _ROWS, _COLS, _PAIRS = 0, 1, 2, 3
_CALLS = ("jit", "pjit", "closed_call")
_RESHAPES = ("broadcast_in_dim", "reshape", "squeeze")
_CHEAP = ("add", "max", "min", "mul", "neg", "select_n", "sub")
# Bytes that are held while single blocks are worked on.
_AT_ONCE = 2**26
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")

Function = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(shared, x1, x2) -> what belongs to pairs, and what belongs to rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """An equation that belongs to one block, on values by number."""

    equation: _jax.Equation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def is_free(self) -> bool:
        """Whether it costs more to keep than to do again, in every part that needs it.

        So it is with axes of size one, with numbers that are repeated, and with a
        product of arrays that repeat along different axes.
        """
        e = self.equation
        given = [a.shape for a in e.inputs]
        (made,) = (v.shape for v in e.outputs[:1])
        if e.name in _RESHAPES:
            sizes = [[n for n in shape if n != 1] for shape in (given[0], made)]
            return sizes[0] == sizes[1] or math.prod(made) > math.prod(given[0])
        return e.name in _CHEAP and math.prod(made) > sum(map(math.prod, given))


@dataclasses.dataclass(frozen=True, slots=True)
class Bytes:
    """Sizes for one block of pairs.

    Attributes:
        rows: of what pairs need of the rows.
        cols: of what pairs need of the columns.
        result: of the results.
        working: of what is held at once on the way to them, at the most.
        alone: of what is held at once on the way to what pairs need of a block.
    """

    rows: int
    cols: int
    result: int
    working: int
    alone: int

    def at_once(self, blocks: int) -> int:
        """How many of so many blocks are worked on at once, each alone: one, or all."""
        return blocks if blocks * self.alone <= _AT_ONCE else 1


class Parts:
    """A function of two blocks of inputs of given sizes, taken apart.

    Args:
        f: the function.
        shared: arrays that both blocks use, or their shapes.
        x1: a block of inputs, or their shapes.
        x2: another.
        differentiable: keep the derivatives that functions give themselves.

    Attributes:
        alike: whether rows and columns have the same shapes; then a block is the same
            in the place of either.
    """

    @without_collection()
    def __init__(
        self, f: Function, shared: Any, x1: Any, x2: Any, differentiable: bool
    ) -> None:
        args = jax.tree.map(_struct, (shared, x1, x2))
        graph, out = _jax.trace(f, *args, x64=_jax.x64_enabled(), sources=False)
        calls = _CALLS if differentiable else (*_CALLS, *_CUSTOM)
        self._graph = _jax.inlined(graph, calls)
        self._counts = _count(x1), _count(x2)
        self._trees = [jax.tree.structure(o) for o in out]
        self._marks: dict[_jax.Var, int] = {}
        self._numbers: dict[_jax.Var, int] = {}
        self._known: dict[Any, tuple[int, ...]] = {}
        self._makers: dict[int, _Step] = {}
        self._constants: dict[int, Any] = {}
        self._held: dict[_jax.Atom, Any] = dict(self._graph.constants)
        self._count = 0
        self._number_inputs([jax.tree.leaves(a) for a in args])
        for e in self._graph.equations:
            self._number(e)
        split = self._trees[0].num_leaves
        self._pair_results = self._graph.outputs[:split]
        self._row_results = [self._value(a) for a in self._graph.outputs[split:]]
        self._pair_steps, read = self._needed_by_pairs()
        wanted = [n for n in read if self._side[n] != _SHARED] + self._row_results
        self._wanted = {
            side: [n for n in dict.fromkeys(wanted) if self._is_of(n, side)]
            for side in (_ROWS, _COLS)
        }

    def rows(self, shared: Any, x: Any) -> list[Any]:
        """What pairs need of a block in the place of `x1`, and results of rows."""
        return self._of_block(_ROWS, shared, x)

    def cols(self, shared: Any, x: Any) -> list[Any]:
        """What pairs need of a block in the place of `x2`."""
        return self._of_block(_COLS, shared, x)

    def pairs(self, shared: Any, rows: Any, cols: Any) -> Any:
        """What belongs to pairs, from what they need of both blocks."""
        given = self._given(shared)
        # A number stands for a value of either block.
        blocks = {_SHARED: _Run(self._makers, given)}
        for side, values in ((_ROWS, rows), (_COLS, cols)):
            own = zip(self._wanted[side], values, strict=True)
            blocks[side] = _Run(self._makers, given | dict(own))
        env: dict[_jax.Var, Any] = {}

        def read(atom: _jax.Atom) -> Any:
            if isinstance(atom, _jax.Var) and self._mark(atom) == _PAIRS:
                return env[atom]
            return blocks[self._mark(atom)].value(self._value(atom))

        for e in self._pair_steps:
            out = _jax.evaluate(e, [read(a) for a in e.inputs])
            env.update(zip(e.outputs, out, strict=True))
        return self._trees[0].unflatten(map(read, self._pair_results))

    def shapes(self, rows: int, cols: int) -> str:
        """The matrices of so many inputs in words."""
        whole = [(rows, cols, *a.shape[2:]) for a in self._pair_results]
        names = zip(whole, self._pair_results, strict=True)
        return ", ".join(f"{shape} {a.dtype}" for shape, a in names)

    @property
    def pair_bytes(self) -> int:
        """Bytes of the largest array of one pair."""
        sizes = self._counts
        largest = max((_jax.bytes_of([v]) for v in self._arrays_of_pairs()), default=4)
        return max(1, largest // math.prod(sizes))

    @property
    def result_bytes(self) -> int:
        """Bytes of the results of one pair."""
        return max(1, _jax.bytes_of(self._pair_results) // math.prod(self._counts))

    def _arrays_of_pairs(self) -> Iterator[_jax.Var]:
        def inside(graph: _jax.Graph) -> Iterator[_jax.Var]:
            for e in graph.equations:
                # Nothing says here what belongs to pairs; their arrays have both axes.
                yield from (v for v in e.outputs if _has_axes(v.shape, self._counts))
                for g in e.graphs:
                    yield from inside(g)

        for e in self._pair_steps:
            yield from e.outputs
            for g in e.graphs:
                yield from inside(g)

    @functools.cached_property
    def bytes(self) -> "Bytes":
        """The sizes of what is given and made for one block of pairs."""
        values = {n: v for v, n in self._numbers.items()}
        rows, cols = (
            _jax.bytes_of(values[n] for n in self._wanted[side])
            for side in (_ROWS, _COLS)
        )
        alone = []
        for side in (_ROWS, _COLS):
            steps = [
                e for e in self._graph.equations if side in map(self._mark, e.outputs)
            ]
            wanted = [values[n] for n in self._wanted[side]]
            alone.append(_jax.live_bytes(steps, wanted))
        return Bytes(
            rows=rows,
            cols=cols,
            result=_jax.bytes_of(self._pair_results),
            working=_jax.live_bytes(self._pair_steps, self._pair_results),
            alone=max(alone),
        )

    def of_rows(self, shared: Any, rows: Any) -> Any:
        """What belongs to rows, from `rows`."""
        own = dict(zip(self._wanted[_ROWS], rows, strict=True))
        run = _Run(self._makers, self._given(shared) | own)
        return self._trees[1].unflatten([run.value(n) for n in self._row_results])

    def _of_block(self, side: int, shared: Any, x: Any) -> list[Any]:
        given = self._given(shared)
        given.update(zip(self._inputs[side], jax.tree.leaves(x), strict=True))
        run = _Run(self._makers, given)
        return [run.value(n) for n in self._wanted[side]]

    def _given(self, shared: Any) -> dict[int, Any]:
        leaves = jax.tree.leaves(shared)
        return self._constants | dict(zip(self._inputs[_SHARED], leaves, strict=True))

    # Numbers --------------------------------------------------------------------------

    def _number_inputs(self, args: list[list[Any]]) -> None:
        shapes = [[(a.shape, a.dtype) for a in part] for part in args]
        alike = shapes[_ROWS] == shapes[_COLS]
        self._side: dict[int, int] = {}
        self._inputs: dict[int, list[int]] = {}
        inputs = iter(self._graph.inputs)
        for side, part in enumerate(args):
            own = [next(inputs) for _ in part]
            block = _ROWS if alike and side == _COLS else side
            for k, v in enumerate(own):
                self._marks[v] = side
                (self._numbers[v],) = self._new(("input", block, k), 1, block)
            self._inputs[side] = [self._numbers[v] for v in own]
        self.alike = alike

    def _is_of(self, number: int, side: int) -> bool:
        return self._side[number] == (_ROWS if self.alike else side)

    def _new(self, what: Any, count: int, side: int) -> tuple[int, ...]:
        """Numbers for values, the same for what is the same."""
        if what not in self._known:
            found = tuple(range(self._count, self._count + count))
            self._known[what], self._count = found, self._count + count
            self._side.update(dict.fromkeys(found, side))
        return self._known[what]

    def _value(self, atom: _jax.Atom) -> int:
        """The number of a value that does not belong to pairs."""
        if isinstance(atom, _jax.Var) and atom in self._numbers:
            return self._numbers[atom]
        if isinstance(atom, _jax.Literal):
            value = np.asarray(atom.value, atom.dtype)
            what = ("literal", value.tobytes(), str(value.dtype))
        else:
            value = self._held[atom]
            what = ("constant", id(value))
        (number,) = self._new(what, 1, _SHARED)
        self._constants[number] = value
        return number

    def _number(self, e: _jax.Equation) -> None:
        mark = _SHARED
        for a in e.inputs:
            mark |= self._mark(a)
        self._marks.update(dict.fromkeys(e.outputs, mark))
        if mark == _PAIRS:
            return
        inputs = tuple(map(self._value, e.inputs))
        block = _ROWS if mark == _COLS and self.alike else mark
        numbers = self._new((e.name, _text(e), inputs), len(e.outputs), block)
        self._numbers.update(zip(e.outputs, numbers, strict=True))
        step = _Step(e, inputs, numbers)
        for n in numbers:
            self._makers.setdefault(n, step)

    def _mark(self, a: _jax.Atom) -> int:
        """Which blocks a value depends on."""
        return self._marks.get(a, _SHARED) if isinstance(a, _jax.Var) else _SHARED

    def _needed_by_pairs(self) -> tuple[list[_jax.Equation], list[int]]:
        """The equations of pairs that count, and what they read of one block."""
        results = [(a, self._mark(a)) for a in self._pair_results]
        needed = {a for a, mark in results if mark == _PAIRS}
        read = [a for a, mark in results if mark != _PAIRS]
        steps = []
        for e in reversed(self._graph.equations):
            if needed.isdisjoint(e.outputs):
                continue
            steps.append(e)
            for a in e.inputs:
                if isinstance(a, _jax.Var) and self._mark(a) == _PAIRS:
                    needed.add(a)
                else:
                    read.append(a)
        found: dict[int, None] = {}
        stack = [self._value(a) for a in read]
        while stack:
            n = stack.pop()
            if n in self._makers and self._makers[n].is_free:
                stack += self._makers[n].inputs
            else:
                found[n] = None
        return steps[::-1], list(found)


class _Run:
    """Values by number, computed when they are read.

    Args:
        makers: the equation behind every value that is not given.
        given: values.
    """

    def __init__(self, makers: Mapping[int, _Step], given: Mapping[int, Any]) -> None:
        self._makers, self._values = makers, dict(given)

    def value(self, number: int) -> Any:
        """A value."""
        needed, stack = set(), [number]
        while stack:
            n = stack.pop()
            if n not in self._values and n not in needed:
                needed.add(n)
                stack += self._makers[n].inputs
        # Numbers grow along the program.
        for n in sorted(needed):
            if n not in self._values:
                step = self._makers[n]
                args = [self._values[i] for i in step.inputs]
                out = _jax.evaluate(step.equation, args)
                self._values.update(zip(step.outputs, out, strict=True))
        return self._values[number]


def _has_axes(shape: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    left = list(shape)
    for n in sizes:
        if n not in left:
            return False
        left.remove(n)
    return True


def _count(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _struct(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _text(e: _jax.Equation) -> Any:
    """What an equation does, comparable with others."""
    found = []
    for key, value in sorted(e.params.items()):
        if key in e.raw:
            # Functions inside, and what they have captured.
            raw = e.raw[key]
            parts = raw if isinstance(raw, tuple | list) else (raw,)
            held = tuple(id(c) for p in parts for c in getattr(p, "consts", ()))
            found.append((key, str(raw), held))
            continue
        try:
            hash(value)
        except TypeError:
            value = str(value)
        found.append((key, value, ()))
    return tuple(found)
