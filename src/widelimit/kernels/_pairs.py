"""The kernel of one pair of inputs, from the programs of the two."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..asymptotics import Engine, Side
from ..trace import Network


class PairKernel:
    """The covariance of the outputs for two inputs, or for one with itself.

    Args:
        first: the network at the shape of the first input.
        second: the network at the shape of the second input.
        trace_axes: axes of the output that are averaged over equal positions.
        coupled: the input is a whole batch, whose axis is kept.
    """

    def __init__(
        self, first: Network, second: Network, trace_axes: Sequence[int], coupled: bool
    ) -> None:
        self._networks = (first, second)
        ndim = len(first.output.shape)
        self._same = tuple(sorted(a % ndim for a in trace_axes)) if ndim > 1 else ()
        self._coupled = coupled

    def pair(
        self, inputs1: Mapping[str, Any], inputs2: Mapping[str, Any], dtype: Any
    ) -> Any:
        """Cov(f(x1), f(x2)), of shape I + I' (both batch axes first if coupled)."""
        sides = (
            Side(self._networks[0].program, inputs1),
            Side(self._networks[1].program, inputs2),
        )
        return self.of(Engine(sides, dtype=dtype), (0, 1))

    def same(self, inputs: Mapping[str, Any], dtype: Any) -> Any:
        """Cov(f(x), f(x)), where equal positions are one variable."""
        engine = Engine((Side(self._networks[0].program, inputs),), dtype=dtype)
        k = self.of(engine, (0, 0))
        # Numerical routes keep the symmetry to their own accuracy only.
        batch = (1, 0) if self._coupled else ()
        half = (k.ndim - len(batch)) // 2
        first = tuple(range(len(batch), len(batch) + half))
        second = tuple(a + half for a in first)
        return 0.5 * (k + jnp.transpose(k, batch + second + first))

    def of(self, engine: Engine, sides: tuple[int, int]) -> Any:
        """The covariance between two sides of an engine."""
        first, second = (self._networks[s].output for s in sides)
        u = [a for a in range(len(first.shape)) if a not in self._same]
        v = [a for a in range(len(second.shape)) if a not in self._same]
        shape = [first.shape[a] for a in u] + [second.shape[a] for a in v]
        total = jnp.zeros(shape, engine.dtype)
        if all(o.kind != "fixed" and o.power == 0 for o in (first, second)):
            for (p, weight), (q, _) in zip(first.refs, second.refs, strict=True):
                k = engine.pair_array(p, q, sides, self._same)
                if k is not None:
                    total = total + weight * jnp.mean(
                        k, axis=tuple(range(len(self._same)))
                    ).astype(engine.dtype)
        if self._coupled:
            return jnp.moveaxis(total, len(u), 1)
        # The batch axis of either input has one entry.
        return jnp.squeeze(total, (0, len(u)))
