"""Equal layers as one loop: covariances of a block from those of the one before.

What a question about the lines of a block needs of the block before is found by asking
once. If that is again about the lines of a block, the same lines one block earlier,
these answers are the state of a recursion, and a loop of JAX takes it to the last
block: a network of a hundred layers compiles like one of three.

What depends on one side alone is a loop of its own, which other loops read: it is then
computed once for every input, and not for every pair.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from ..program import Input, Map
from ._answers import Answer, Answers, Key, Value
from ._index import is_last
from ._loops import Loop
from ._product import aligned

if TYPE_CHECKING:
    from ._engine import Engine

# The questions that can be the state of a loop.
_STATES = ("second", "cov", "distance", "mean", "tensor")

# How often the letters of a state may grow before it is given up.
_TRIALS = 3


class NotFoldable(Exception):
    """A block needs more than the state of the block before."""


States = dict[tuple[int, int], list[Key]]
"""For every loop and block, the state that is asked for, as questions about block 0."""


class Folding:
    """Finds the questions of an engine whose answers are loops.

    Args:
        engine: the engine.
        loops: those of the programs of its sides, which are the same.
        states: those that are asked for; None to find these out, with answers of any
            value.

    Attributes:
        states: those that were found, or given.
        folded: the loops that answers came from.
    """

    def __init__(
        self, engine: "Engine", loops: Sequence[Loop], states: States | None
    ) -> None:
        self._engine, self._loops = engine, tuple(loops)
        self._is_trial = states is None
        self.states: States = {} if states is None else states
        self._stack: list[Key] = []
        self._read: dict[Key, dict[Key, None]] = {}
        self._refused: set[Key] = set()
        self._body: _Body | None = None
        self.folded: dict[Loop, None] = {}

    def carries(self, key: Key) -> bool:
        """Whether the answer is part of the state that a loop carries on."""
        return self._body is not None and key in self._body.carried

    def asked(self, key: Key) -> None:
        """Note that a question is asked, and answer it by a loop if that can be."""
        if self._stack:
            self._read.setdefault(self._stack[-1], {})[key] = None
        if self._body is not None:
            self._body.asked(
                key, is_joint=not self._stack or self._stack[-1].side is None
            )
            return
        at = self._block(key)
        if (
            at is None
            or at[1] < 2
            or key in self._engine.answers
            or key in self._refused
        ):
            return
        try:
            with self._apart():
                self._fold(key, at)
        except NotFoldable:
            self._refused.add(key)

    @contextlib.contextmanager
    def computing(self, key: Key) -> Iterator[None]:
        """While an answer is computed, others that it needs are noted."""
        self._stack.append(key)
        try:
            yield
        finally:
            self._stack.pop()

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        before, self._stack = self._stack, []
        try:
            yield
        finally:
            self._stack = before

    def _block(self, key: Key) -> tuple[int, int] | None:
        """The loop and the block that a question is about; None if not about one."""
        if key.kind not in _STATES:
            return None
        for number, loop in enumerate(self._loops):
            blocks = {loop.block(ref) for _, ref in key.lines}
            inside = {k for k in blocks if k is not None and k >= 0}
            if inside:
                later = any(ref >= loop.end for _, ref in key.lines)
                return None if later or len(inside) > 1 else (number, inside.pop())
        return None

    # The state ------------------------------------------------------------------------

    def _fold(self, key: Key, at: tuple[int, int]) -> None:
        loop, engine = self._loops[at[0]], self._engine
        asked, state = key.moved(loop, -at[1]), self.states.get(at, [])
        if asked not in state:
            state = self._closure(loop, [asked, *state])
        if self._is_trial:
            self.states[at] = state
            engine.answers[key] = self.answer(asked)
            return
        first, before = 1, {k: k for k in state}
        if all(map(loop.is_read, (ref for k in state for _, ref in k.lines))):
            # The lines before the first block will do as one.
            first, before = 0, {k: k.moved(loop, -1) for k in state}
        start = {k: self.answer(before[k]) for k in state}
        start = {k: self._cast(v) for k, v in start.items()}
        last = _Run(self._engine, self, loop, first, at[1]).state(start)
        self.folded[loop] = None
        for k, value in last.items():
            engine.answers[k.moved(loop, at[1])] = value

    def _closure(self, loop: Loop, wanted: Sequence[Key]) -> list[Key]:
        """The state that these are part of, as questions about block 0.

        Raises:
            NotFoldable: no block needs an answer that is wanted.
        """
        needs: dict[Key, list[Key]] = {}
        left = list(wanted)
        while left:
            key = left.pop()
            if key not in needs:
                later = key.moved(loop, 1)
                self.answer(later)
                needs[key] = self._needs(later, loop)
                left += needs[key]
        if not all(any(k in some for some in needs.values()) for k in wanted):
            raise NotFoldable
        # In one order whatever was asked first, so that equal sides are equal.
        return sorted(needs, key=str)

    def _needs(self, key: Key, loop: Loop) -> list[Key]:
        """What a question about block 1 needs of block 0."""
        found, seen, stack = {}, set(), [key]
        while stack:
            for k in self._read.get(stack.pop(), ()):
                if k in seen:
                    continue
                seen.add(k)
                blocks = {loop.block(ref) for _, ref in k.lines}
                if k.kind in _STATES and 0 in blocks and 1 not in blocks:
                    found[k] = None
                elif 0 in blocks or 1 in blocks:
                    stack.append(k)
        return list(found)

    def _cast(self, value: Any) -> Any:
        """An answer whose numbers are those of JAX, and of the engine."""
        if getattr(value, "array", None) is None:
            return value
        return value._replace(array=self._engine.cast(value.array))

    def answer(self, key: Key) -> Any:
        """The answer to a question; see `Answers`."""
        self._engine.ask(key)
        if key not in self._engine.answers:
            raise NotFoldable
        return self._engine.answers[key]

    @contextlib.contextmanager
    def inside(self, body: "_Body") -> Iterator[None]:
        """While the body of a loop is traced."""
        engine = self._engine
        before, engine.answers = engine.answers, body.answers
        self._body, read, self._read = body, self._read, {}
        try:
            yield
        finally:
            engine.answers, self._body, self._read = before, None, read


class _Body:
    """The answers of one block, from the state of the block before.

    Args:
        outer: what was known before the loop.
        loop: the loop; the body is its block 1, with the state as that of block 0.
        known: answers about block 0, and tensors of block 1.
        state: the questions of the state.
    """

    def __init__(
        self, outer: Answers, loop: Loop, known: dict[Key, Any], state: Sequence[Key]
    ) -> None:
        self.answers = Answers(outer, loop)
        self.answers.own.update(known)
        self._loop = loop
        self.carried = frozenset(k.moved(loop, 1) for k in state)
        self.read: dict[Key, None] = {}

    def asked(self, key: Key, is_joint: bool) -> None:
        """Refuse what is not of the state; note what joint answers read of a side."""
        blocks = {self._loop.block(ref) for _, ref in key.lines}
        if is_joint and key.side is not None and not blocks.isdisjoint((0, 1)):
            self.read[key] = None
        if key.kind in _STATES and 0 in blocks and key not in self.answers.own:
            raise NotFoldable
        if any(k is not None and k > 1 for k in blocks):
            raise NotFoldable


class _Run:
    """A loop, run over some of its blocks.

    Args:
        engine: the engine.
        folding: its foldings.
        loop: the loop.
        first: the first block.
        last: the last block.
    """

    def __init__(
        self, engine: "Engine", folding: Folding, loop: Loop, first: int, last: int
    ) -> None:
        self._engine, self._folding, self._loop = engine, folding, loop
        self._first, self._last = first, last
        self._outer = engine.answers
        sides = range(len(engine.sides))
        self._inputs = {s: self._stacked(s) for s in sides}

    def state(self, start: dict[Key, Any]) -> dict[Key, Any]:
        """The state of the last block, from that before the first."""
        sides = {side for k in start if (side := k.side) is not None}
        joint = {k: v for k, v in start.items() if k.side is None}
        own = {s: {k: v for k, v in start.items() if k.side == s} for s in sides}
        read = self._read_jointly(start, joint) if joint else []
        last, beside = {}, {}
        for s in sorted(sides):
            needed = [k for k in read if k.side == s]
            found, values = self._over(own[s], self._inputs[s], needed)
            last |= found
            beside |= values
        if joint:
            inputs = {k: v for some in self._inputs.values() for k, v in some.items()}
            found, _ = self._over(joint, inputs | beside, [])
            last |= found
        return last

    def _stacked(self, side: int) -> dict[Key, Any]:
        """The inputs of a side that every block has its own of, block by block."""
        program, loop = self._engine.sides[side].program, self._loop
        given, found = self._engine.sides[side], {}
        for ref in range(loop.start + loop.period, loop.start + 2 * loop.period):
            line = program.lines[ref]
            if not (isinstance(line, Map) and isinstance(line.op, Input)):
                continue
            keys = []
            for k in range(self._first, self._last + 1):
                same = program.lines[ref + (k - 1) * loop.period]
                assert isinstance(same, Map)
                assert isinstance(same.op, Input)
                keys.append(same.op.key)
            if any(key in given.rows for key in keys):
                raise NotFoldable
            arrays = [self._engine.cast(given.inputs[key]) for key in keys]
            found[Key("tensor", ((side, ref),))] = Value(jnp.stack(arrays))
        return found

    def _read_jointly(self, start: dict[Key, Any], joint: dict[Key, Any]) -> list[Key]:
        """What the joint state of a block reads of what depends on one side."""
        read: dict[Key, None] = {}
        inputs = {k: v for some in self._inputs.values() for k, v in some.items()}

        def run(arrays: Any) -> Any:
            first = [[a[0] for a in some] for some in arrays]
            body = self._body(start, start | _filled(inputs, first))
            with self._folding.inside(body):
                found = [self._next(k) for k in joint]
            read.update(body.read)
            return [_arrays(v) for v in found]

        jax.eval_shape(run, [_arrays(v) for v in inputs.values()])
        return list(read)

    def _over(
        self, start: dict[Key, Any], xs: dict[Key, Any], needed: Sequence[Key]
    ) -> tuple[dict[Key, Any], dict[Key, Any]]:
        """The last state, and what is needed of every block."""
        beside: dict[Key, Any] = {}
        after: dict[Key, Any] = {}

        def step(carry: Any, x: Any) -> Any:
            # Or every operation that reads them would take them out of all blocks'.
            x = jax.tree.map(self._engine.letters.once, x)
            body = self._body(start, _filled(start, carry) | _filled(xs, x))
            with self._folding.inside(body):
                after.update((k, self._next(k)) for k in start)
                beside.update((k, self._folding.answer(k)) for k in needed)
            return after, beside

        def arrays(carry: Any, x: Any) -> Any:
            after, beside = step(carry, x)
            fitted = [self._fitted(after[k], start[k]) for k in start]
            return [_arrays(v) for v in fitted], [_arrays(v) for v in beside.values()]

        given = [_arrays(v) for v in xs.values()]
        for _ in range(_TRIALS):
            carry = [_arrays(v) for v in start.values()]
            first = jax.tree.map(lambda a: a[0], given)
            jax.eval_shape(lambda c, x: [_arrays(v) for v in step(c, x)[0].values()],
                           carry, first)  # fmt: skip
            grown = {k: self._grown(v, after[k]) for k, v in start.items()}
            if all(grown[k] is start[k] for k in start):
                break
            start = grown
        else:
            raise NotFoldable
        count = self._last - self._first + 1
        last, stacked = lax.scan(arrays, carry, given, count)
        return _filled(start, last), _filled(beside, stacked)

    def _body(self, start: dict[Key, Any], known: dict[Key, Any]) -> _Body:
        return _Body(self._outer, self._loop, known, list(start))

    def _next(self, key: Key) -> Any:
        return self._folding.answer(key.moved(self._loop, 1))

    def _grown(self, value: Any, after: Any) -> Any:
        """An answer with the axes, too, that the next one has."""
        if not (isinstance(value, Answer | None) and isinstance(after, Answer)):
            return value
        mine = () if value is None else value.places
        more = set(after.places).difference(mine)
        if value is not None and not more:
            return value
        places = tuple(sorted({*mine, *more}, key=_order))
        sizes = dict(zip(after.places, after.array.shape, strict=True))
        if value is None:
            zeros = jnp.zeros([sizes[p] for p in places], after.array.dtype)
            return Answer(zeros, places)
        sizes |= dict(zip(mine, value.array.shape, strict=True))
        return _spread(value, places, sizes)

    def _fitted(self, value: Any, like: Any) -> Any:
        """An answer with the axes of another.

        Raises:
            NotFoldable: it has more.
        """
        if type(value) is not type(like):
            if value is None and isinstance(like, Answer):
                return like._replace(array=jnp.zeros_like(like.array))
            raise NotFoldable
        if not isinstance(value, Answer):
            return value
        if not set(value.places) <= set(like.places):
            raise NotFoldable
        sizes = dict(zip(like.places, like.array.shape, strict=True))
        return _spread(value, like.places, sizes)


def _order(place: int) -> tuple[int, int]:
    """Axes stand in the order of their letters, those of inputs before or behind."""
    if place >= 0:
        return 1, place
    return (2 if is_last(~place) else 0), ~place


def _spread(value: Answer, places: tuple[int, ...], sizes: dict[int, int]) -> Answer:
    array = aligned(value.array, value.places, places)
    return Answer(jnp.broadcast_to(array, [sizes[p] for p in places]), places)


def _arrays(value: Any) -> list[Any]:
    """The arrays of an answer: one, or none."""
    array = getattr(value, "array", None)
    return [] if array is None else [array]


def _filled(answers: dict[Key, Any], arrays: Sequence[Sequence[Any]]) -> dict[Key, Any]:
    """Answers with other arrays in their places."""
    return {
        key: value._replace(array=new[0]) if new else value
        for (key, value), new in zip(answers.items(), arrays, strict=True)
    }
