"""The kernels of one pair of inputs, from the programs of the two."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..asymptotics import PAIRS, Engine, Loop, Side, find_loops
from ..program import Ref, TensorProgram
from ..trace import Traced
from ._quantities import Gradient, Quantities


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of a network that do not interact.

    Attributes:
        shared: arrays that all of them share, by key.
        rows: arrays with an input a row, by key.
        count: how many there are.
        ids: equal whole numbers for equal inputs, (count,), or None.
    """

    shared: Mapping[str, Any]
    rows: Mapping[str, Any]
    count: int
    ids: Any = None

    def side(self, program: TensorProgram) -> Side:
        """The program of one of them at all of them."""
        rows = {key: a[:, None] for key, a in self.rows.items()}
        return Side(program, self.shared, rows, self.count, self.ids)


class PairKernel:
    """The covariances of two inputs, or of one with itself.

    Results are by name, those of taps as "tap:name" and "gradient:name".

    Args:
        first: the lines at the shape of the first input.
        second: the same at the shape of the second input.
        trace_axes: axes of the output that are averaged over equal positions.
        coupled: the input is a whole batch, whose axis is kept.
    """

    def __init__(
        self,
        first: Quantities,
        second: Quantities,
        trace_axes: Sequence[int],
        coupled: bool,
    ) -> None:
        self._asked = (first, second)
        self._trace_axes, self._coupled = tuple(trace_axes), coupled

    def tile(self, first: Inputs, second: Inputs, dtype: Any, **options: Any) -> Any:
        """Kernels of all inputs of one side with all of another, (R, C, I, I').

        Args:
            first: R inputs.
            second: C inputs.
            dtype: of the numbers.
            **options: of the engine.

        Raises:
            NeedsDraws: an expectation has no formula.
        """
        return self.asked(first, second, dtype, **options)[1]

    def asked(
        self, first: Inputs, second: Inputs, dtype: Any, **options: Any
    ) -> tuple[Engine, dict[str, Any]]:
        """The engine behind `tile`, after it was asked, and its answers."""
        one, two = self._asked
        sides = first.side(one.program), second.side(two.program)
        return self._folded(sides, dtype, options, self.on)

    def both(
        self, first: Inputs, second: Inputs, dtype: Any, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`tile`, and `same` of the first inputs, which share what they compute."""
        one, two = self._asked
        sides = first.side(one.program), second.side(two.program)

        def ask(engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.on(engine), self._own(engine)

        return self._folded(sides, dtype, options, ask)[1]

    def same(self, inputs: Inputs, dtype: Any, **options: Any) -> dict[str, Any]:
        """Kernels of inputs with themselves, where equal positions are one variable."""
        sides = (inputs.side(self._asked[0].program),)
        return self._folded(sides, dtype, options, self.on)[1]

    def _folded(
        self,
        sides: tuple[Side, ...],
        dtype: Any,
        options: dict[str, Any],
        ask: Callable[[Engine], Any],
    ) -> tuple[Engine, Any]:
        """An engine whose equal layers are loops, and its answers."""
        loops = self.loops

        def engine(states: Any) -> Engine:
            known = (loops, states) if loops else None
            return Engine(sides, None, dtype, PAIRS, loops=known, **options)

        states = None
        if loops:
            trial = engine(None)
            jax.eval_shape(lambda: ask(trial))
            assert trial.folding is not None
            states = trial.folding.states
        final = engine(states)
        return final, ask(final)

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """The loops that the programs of both inputs have."""
        one, two = (asked.program for asked in self._asked)
        found = find_loops(one)
        return found if one is two or found == find_loops(two) else []

    def on(self, engine: Engine) -> dict[str, Any]:
        """The kernels between the two sides of an engine, or of its only side."""
        return self.of(engine, (0, 1)) if len(engine.sides) > 1 else self._own(engine)

    def _own(self, engine: Engine) -> dict[str, Any]:
        """The kernels of the first side of an engine with itself."""
        found, swap = self.of(engine, (0, 0)), self.swap
        for _ in engine.batches(0):
            swap = jax.vmap(swap)
        # Numerical routes keep the symmetry to their own accuracy only.
        return jax.tree.map(lambda k, t: 0.5 * (k + t), found, swap(found))

    def swap(self, kernels: dict[str, Any]) -> dict[str, Any]:
        """The kernels with the roles of the two inputs exchanged."""
        return jax.tree.map(lambda k: swapped(k, self._coupled), kernels)

    def of(self, engine: Engine, sides: tuple[int, int]) -> dict[str, Any]:
        """The kernels between two sides of an engine."""
        first, second = (self._asked[s] for s in sides)
        found = {}
        for name, traced in first.outputs.items():
            found[name] = self._output(engine, sides, traced, second.outputs[name])
        for name, traced in first.taps.items():
            found[f"tap:{name}"] = self._tap(engine, sides, traced, second.taps[name])
        for name, one in first.gradients.items():
            found[f"gradient:{name}"] = self._gradient(
                engine, sides, one, second.gradients[name]
            )
        return found

    def _output(
        self, engine: Engine, sides: tuple[int, int], first: Traced, second: Traced
    ) -> Any:
        """The covariance of outputs; the mean product of coordinates of a wide one."""
        same = averaged(self._trace_axes, len(first.shape))
        shapes = [_without(t.shape, same) for t in (first, second)]
        refs: list[_Refs] = [first.refs, second.refs]
        if any(t.kind == "fixed" or t.power != 0 for t in (first, second)):
            refs = [(), ()]
        centred = first.axis is None
        total = _sum(engine, sides, refs, shapes, same, centred)
        return self._by_input(engine, sides, total, len(shapes[0]))

    def _tap(
        self, engine: Engine, sides: tuple[int, int], first: Traced, second: Traced
    ) -> Any:
        """E[Z Z'] of a tap, averaged over its wide axis; zero if it vanishes."""
        same = () if first.axis is None else (first.axis,)
        shapes = [_without(t.shape, same) for t in (first, second)]
        if first.power == 0 and first.kind == "fixed":
            total = _products(
                engine, sides, [first.refs[0][0], second.refs[0][0]], same
            )
        else:
            refs = [t.refs if t.power == 0 else () for t in (first, second)]
            total = _sum(engine, sides, refs, shapes, same, centred=False)
        return self._by_input(engine, sides, total, len(shapes[0]))

    def _gradient(
        self,
        engine: Engine,
        sides: tuple[int, int],
        first: Gradient,
        second: Gradient,
    ) -> Any:
        """The sum over coordinates of the products of the derivatives at a tap.

        Its axes are those of the output that are not averaged and those of the tap,
        for either input. An output is differentiated at the tap of its own input.
        """
        lead = len(first.lead)
        output = averaged(self._trace_axes, lead)
        same = output if first.axis is None else (*output, lead + first.axis)
        shapes = [_without((*g.lead, *g.shape), same) for g in (first, second)]
        refs = [first.refs, second.refs]
        total = _sum(engine, sides, refs, shapes, same, centred=False)
        if not lead:  # one wide vector, contracted with its cotangent
            return self._by_input(engine, sides, total, len(shapes[0]))
        # Either side begins with the batch axis of the output; that of the tap follows
        # the axes of the output.
        half, start = len(shapes[0]), lead - len(output)

        def of_own_input(k: Any) -> Any:
            k = jnp.diagonal(k, 0, 0, start)
            k = jnp.diagonal(k, 0, half - 2, half - 2 + start)
            return jnp.moveaxis(k, (-2, -1), (0, half - 1))

        for _ in engine.batches(*sides):
            of_own_input = jax.vmap(of_own_input)
        return self._by_input(engine, sides, of_own_input(total), half - 1)

    def _by_input(
        self, engine: Engine, sides: tuple[int, int], k: Any, half: int
    ) -> Any:
        """With both batch axes first; without them where each has one entry."""
        if self._coupled:
            return jnp.moveaxis(k, half, 1)
        lead = len(engine.batches(*sides))
        return jnp.squeeze(k, (lead, lead + half))


def swapped(k: Any, batches: bool) -> Any:
    """A kernel with the roles of the two inputs exchanged.

    Args:
        k: of shape I + I', or N1, N2, I + I'.
        batches: whether it has the two axes of inputs.
    """
    batch = (1, 0) if batches else ()
    half = (k.ndim - len(batch)) // 2
    first = tuple(range(len(batch), len(batch) + half))
    return jnp.transpose(k, batch + tuple(a + half for a in first) + first)


def mean_of(engine: Engine, output: Traced) -> Any:
    """The mean of an output, of its traced shape; zero where it vanishes."""
    total = jnp.zeros(output.shape, engine.dtype)
    for ref, weight in output.refs if output.power == 0 else ():
        if output.kind == "fixed":
            mean = engine.tensor_or_zeros(0, ref)
        else:
            mean = engine.mean_array(ref)
        if mean is not None and output.axis is not None:
            mean = jnp.mean(mean, axis=output.axis, keepdims=True)
        if mean is not None:
            total = total + weight * mean.astype(engine.dtype)
    return total


def averaged(trace_axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes of an output with `ndim` axes that a kernel is averaged over."""
    return tuple(sorted(a % ndim for a in trace_axes)) if ndim > 1 else ()


def _without(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [s for a, s in enumerate(shape) if a not in axes]


_Refs = tuple[tuple[Ref, float], ...]


def _products(
    engine: Engine, sides: tuple[int, int], refs: Sequence[Ref], same: tuple[int, ...]
) -> Any:
    """The products of the entries of two tensors, averaged over the axes `same`."""

    def product(one: Any, two: Any) -> Any:
        return jnp.tensordot(jnp.mean(one, same), jnp.mean(two, same), axes=0)

    rows = [engine.tensors.rows(s, r) for s, r in zip(sides, refs, strict=True)]
    match len(engine.batches(*sides)):
        case 0:
            return product(rows[0][0], rows[1][0])
        case 1:
            return jax.vmap(product)(*rows)
        case _:
            each = jax.vmap(product, (None, 0))
            return jax.vmap(each, (0, None))(*rows)


def _sum(
    engine: Engine,
    sides: tuple[int, int],
    refs: Sequence[_Refs],
    shapes: Sequence[list[int]],
    same: tuple[int, ...],
    centred: bool,
) -> Any:
    """The weighted sum of covariances of lines, averaged over the axes `same`."""
    lead = [engine.letters.sizes[a] for a in engine.batches(*sides)]
    total = jnp.zeros(lead + shapes[0] + shapes[1], engine.dtype)
    for (p, weight), (q, _) in zip(*refs, strict=True):
        k = engine.pair_array(p, q, sides, same, centred)
        if k is not None:
            axes = range(len(lead), len(lead) + len(same))
            mean = jnp.mean(k, axis=tuple(axes))
            total = total + weight * mean.astype(engine.dtype)
    return total
