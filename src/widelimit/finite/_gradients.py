"""Gradients of one finite network at its taps."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._moments import Layout, flat

GRADIENT = "gradient:"
"""The quantity of a tap's gradient is called so, and then as the tap."""

_MOST_COLUMNS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Gradients:
    """The sums over coordinates a of df/dh_a df'/dh'_a, for taps h of a network.

    An output is differentiated at the tap of its own input. Sums are averaged over the
    columns of the output; where there are more than 16, over 16 random combinations of
    them, of the same expectation.

    Attributes:
        taps: the layouts of the taps.
        output: that of the output.
        position: the index of the output f among its axes that are not averaged.
        coupled: whether inputs interact, so that they have to be differentiated one
            after another.
    """

    taps: Mapping[str, Layout]
    output: Layout
    position: tuple[int, ...]
    coupled: bool

    def moments(
        self, f: Callable[[Any], Any], values: Mapping[str, Any], bits: Any
    ) -> dict[str, jax.Array]:
        """The matrices over (input, index) of one network.

        Args:
            f: its output, as a function of what is added at taps.
            values: what is tapped.
            bits: a random uint32.
        """
        zeros = {name: jnp.zeros_like(values[name]) for name in self.taps}
        output, back = jax.vjp(f, zeros)
        count = self.output.positions[0]
        # Where inputs do not interact, one pass gives every input its own gradient.
        inputs = jnp.eye(count) if self.coupled else jnp.ones((1, count))

        def grams(columns: Any) -> dict[str, Any]:
            def own(weights: Any) -> dict[str, Any]:
                (found,) = back(self._cotangent(output, weights, columns))
                return {
                    k: weights[:, None] * flat(v, self.taps[k]).reshape(count, -1)
                    for k, v in found.items()
                }

            found = {}
            for name, parts in jax.lax.map(own, inputs).items():
                side = math.prod(self.taps[name].positions)
                rows = jnp.sum(parts, 0).reshape(side, -1)
                found[GRADIENT + name] = rows @ rows.T
            return found

        found = jax.lax.map(grams, self._combinations(output, bits))
        return {name: jnp.mean(v, 0) for name, v in found.items()}

    def _combinations(self, output: Any, bits: Any) -> Any:
        """Weights of the columns of the output, one row for every combination."""
        count = math.prod(output.shape[a] for a in self.output.averaged)
        if count <= _MOST_COLUMNS:
            return jnp.eye(count)
        signs = jax.random.rademacher(jax.random.key(bits), (_MOST_COLUMNS, count))
        return signs / math.sqrt(count)

    def _cotangent(self, output: Any, inputs: Any, columns: Any) -> Any:
        """What the output is contracted with: weights of inputs and of columns."""
        k = self.output
        averaged = tuple(output.shape[a] for a in k.averaged)
        weights = jnp.multiply.outer(inputs, columns.reshape(averaged))
        moved = jnp.zeros((*k.positions, *averaged), output.dtype)
        moved = moved.at[(slice(None), *self.position)].set(weights.astype(moved.dtype))
        order = (k.batch, *k.index, *k.averaged)
        return jnp.transpose(moved, sorted(range(len(order)), key=order.__getitem__))
