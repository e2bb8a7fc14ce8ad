"""The interface of what layers and networks are made of."""

from collections.abc import Sequence
from typing import Any

from ._signal import Signals, Widths
from ._weights import drawn

Axes = Any
"""(batch axis, channel axis); None if a layer reads any; a list for branches."""


class Scope:
    """What one run through a network remembers: the weights of shared layers."""

    def __init__(self) -> None:
        self.shared: dict[Any, Any] = {}


class Spec:
    """The base of what layers are made of.

    `declare` and `forward` meet the layers of a network in one order.
    """

    axes: Axes = None

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        """The signal after the layer, and a pytree of `Weight`s."""
        raise NotImplementedError

    @property
    def parts(self) -> "Sequence[Spec]":
        """What it is made of."""
        return ()

    def arrays(self) -> dict[Any, Any]:
        """Arrays with one entry an input, the inputs first, that layers hold."""
        return {k: a for part in self.parts for k, a in part.arrays().items()}

    def draw(self, weights: Any, key: Any) -> Any:
        """The trained variables at initialisation."""
        return drawn(weights, key)

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        """The layer on an array (or `MaskedArray`, or several) and its weights."""
        raise NotImplementedError
