"""The interface of what layers and networks are made of."""

from collections.abc import Sequence
from typing import Any

import jax

from .._errors import InputError
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


class Serial(Spec):
    """One part after another.

    Attributes:
        specs: the parts.
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = specs
        self.axes = next((s.axes for s in specs if s.axes is not None), None)

    @property
    def parts(self) -> Sequence[Spec]:
        """See `Spec`."""
        return self.specs

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        """See `Spec`."""
        weights = []
        for spec in self.specs:
            signal, mine = spec.declare(signal, widths, scope)
            weights.append(mine)
        return signal, weights

    def draw(self, weights: Any, key: Any) -> Any:
        """See `Spec`."""
        return [
            spec.draw(mine, one)
            for spec, mine, one in zip(
                self.specs, weights, keys_in_turn(key, len(self.specs)), strict=True
            )
        ]

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        """See `Spec`."""
        for spec, mine, given in each_of(self.specs, weights, kwargs):
            x = spec.forward(mine, x, scope, **given)
        return x


def keys_in_turn(key: Any, count: int) -> list[Any]:
    """Keys for layers one after another, as in `jax.example_libraries.stax`."""
    keys = []
    for _ in range(count):
        key, one = jax.random.split(key)
        keys.append(one)
    return keys


def each_of(specs: Sequence[Spec], weights: Any, kwargs: dict[str, Any]) -> Any:
    """Every part with its weights and arguments: a random key of its own."""
    if len(weights) != len(specs):
        raise InputError(
            f"A network of {len(specs)} layers has a list of as many parameters, got "
            f"{len(weights)}."
        )
    rng = kwargs.get("rng")
    keys = [None] * len(specs) if rng is None else jax.random.split(rng, len(specs))
    return [
        (spec, mine, kwargs if rng is None else {**kwargs, "rng": key})
        for spec, mine, key in zip(specs, weights, keys, strict=True)
    ]
