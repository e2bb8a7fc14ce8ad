"""Which parameter may be drawn many times for one network at little cost.

The second moment of an output with few columns averages over little, so that its
distribution across seeds is far from Gaussian and a t-test rejects too often. Drawing
the readout several times in each network averages over more. It leaves the seeds
independent and the expectation as it is, whichever parameter is drawn.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import _jax
from ..trace._declare import Normal
from ._taps import called

_COLUMNS = 40


def redrawn(graph: _jax.Graph, leaves: Sequence[Any]) -> int | None:
    """The vector-like Gaussian parameter that the network uses last, if any.

    Args:
        graph: the network; its first inputs are `leaves`.
        leaves: declarations and arrays.
    """
    uses = _first_uses(graph)
    candidates = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Normal)
        and sum(not isinstance(size, int) for size in leaf.shape) == 1
        and i in uses
    ]
    return max(candidates, key=lambda i: uses[i], default=None)


def draws(columns: int) -> int:
    """How many readouts make enough columns for a t-test."""
    return max(1, math.ceil(_COLUMNS / columns))


def _first_uses(graph: _jax.Graph) -> dict[int, int]:
    """For every input that is used, the equation that uses it first."""
    clock = itertools.count()
    uses: dict[int, int] = {}

    def visit(graph: _jax.Graph, owner: Mapping[_jax.Atom, int]) -> None:
        for equation in graph.equations:
            inner = called(equation)
            owned = [owner.get(v) for v in equation.inputs]
            if inner is not None:
                pairs = zip(inner.inputs, owned, strict=True)
                visit(inner, {v: i for v, i in pairs if i is not None})
                continue
            now = next(clock)
            for i in owned:
                if i is not None:
                    uses.setdefault(i, now)

    visit(graph, {v: i for i, v in enumerate(graph.inputs)})
    return uses
