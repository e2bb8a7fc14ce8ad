"""The kernels of one pair of inputs, from the programs of the two."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..asymptotics import PAIRS, Engine, Side
from ..program import Ref
from ..trace import Traced
from ._quantities import Gradient, Quantities


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

    def pair(
        self, inputs1: Mapping[str, Any], inputs2: Mapping[str, Any], dtype: Any
    ) -> dict[str, Any]:
        """Kernels of shape I + I' (both batch axes first if coupled).

        Raises:
            NeedsDraws: an expectation has no formula.
        """
        sides = (
            Side(self._asked[0].program, inputs1),
            Side(self._asked[1].program, inputs2),
        )
        return self.on(Engine(sides, dtype=dtype, sampling=PAIRS))

    def same(self, inputs: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
        """Kernels of an input with itself, where equal positions are one variable."""
        side = Side(self._asked[0].program, inputs)
        return self.on(Engine((side,), dtype=dtype, sampling=PAIRS))

    def on(self, engine: Engine) -> dict[str, Any]:
        """The kernels between the two sides of an engine, or of its only side."""
        if len(engine.sides) > 1:
            return self.of(engine, (0, 1))
        found = self.of(engine, (0, 0))
        # Numerical routes keep the symmetry to their own accuracy only.
        return jax.tree.map(lambda k, t: 0.5 * (k + t), found, self.swap(found))

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
        return self._by_input(total, len(shapes[0]))

    def _tap(
        self, engine: Engine, sides: tuple[int, int], first: Traced, second: Traced
    ) -> Any:
        """E[Z Z'] of a tap, averaged over its wide axis; zero if it vanishes."""
        same = () if first.axis is None else (first.axis,)
        shapes = [_without(t.shape, same) for t in (first, second)]
        if first.power == 0 and first.kind == "fixed":
            values = [
                engine.tensor_or_zeros(s, t.refs[0][0])
                for s, t in zip(sides, (first, second), strict=True)
            ]
            values = [jnp.mean(v, axis=same) for v in values]
            total = jnp.tensordot(values[0], values[1], axes=0)
        else:
            refs = [t.refs if t.power == 0 else () for t in (first, second)]
            total = _sum(engine, sides, refs, shapes, same, centred=False)
        return self._by_input(total, len(shapes[0]))

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
            return self._by_input(total, len(shapes[0]))
        # Either side begins with the batch axis of the output; that of the tap follows
        # the axes of the output.
        half, start = len(shapes[0]), lead - len(output)
        total = jnp.diagonal(total, 0, 0, start)
        total = jnp.diagonal(total, 0, half - 2, half - 2 + start)
        total = jnp.moveaxis(total, (-2, -1), (0, half - 1))
        return self._by_input(total, half - 1)

    def _by_input(self, k: Any, half: int) -> Any:
        """With both batch axes first; without them where each has one entry."""
        return jnp.moveaxis(k, half, 1) if self._coupled else jnp.squeeze(k, (0, half))


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


def _sum(
    engine: Engine,
    sides: tuple[int, int],
    refs: Sequence[_Refs],
    shapes: Sequence[list[int]],
    same: tuple[int, ...],
    centred: bool,
) -> Any:
    """The weighted sum of covariances of lines, averaged over the axes `same`."""
    total = jnp.zeros(shapes[0] + shapes[1], engine.dtype)
    for (p, weight), (q, _) in zip(*refs, strict=True):
        k = engine.pair_array(p, q, sides, same, centred)
        if k is not None:
            mean = jnp.mean(k, axis=tuple(range(len(same))))
            total = total + weight * mean.astype(engine.dtype)
    return total
