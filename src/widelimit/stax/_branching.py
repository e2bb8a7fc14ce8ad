"""From one signal to several, and back."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._errors import ShapeMismatchError
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import all_masked, concatenated
from ._signal import Signal, Widths
from ._spec import Scope, Spec


@layer
def FanOut(num: int) -> Layer:
    """So many copies of the input, for the branches of `parallel`.

    They are one signal: their sum is `num` times it.

    Args:
        num: how many.
    """
    return layer_of(_FanOut(num))


@layer
def FanInSum() -> Layer:
    """The sum of several inputs of one shape."""
    return layer_of(Leaf(_reduced(operator.add), _like_first(keeps=True), _all))


@layer
def FanInProd() -> Layer:
    """The product of several inputs of one shape, entry by entry."""
    return layer_of(Leaf(_reduced(operator.mul), _like_first(keeps=False), _all))


@layer
def FanInConcat(axis: int = -1) -> Layer:
    """Several inputs side by side.

    Args:
        axis: along which; of the channels, of positions, or of inputs.
    """

    def declared(signals: Any, widths: Widths) -> tuple[Signal, tuple[()]]:
        first = signals[0]
        place = axis % len(first.shape)
        for other in signals[1:]:
            if len(other.shape) != len(first.shape) or any(
                str(p) != str(q)
                for a, (p, q) in enumerate(zip(first.shape, other.shape, strict=True))
                if a != place
            ):
                raise ShapeMismatchError(
                    "Inputs that are put side by side should agree along the other "
                    f"axes, got {first.shape} and {other.shape} (axis {axis})."
                )
        shape = list(first.shape)
        shape[place] = functools.reduce(operator.add, (s.shape[place] for s in signals))
        gaussian = place != first.axes[1] and all(s.is_gaussian for s in signals)
        symmetric = all(s.is_symmetric for s in signals)
        after = first.after(
            shape=tuple(shape), is_gaussian=gaussian, is_symmetric=symmetric
        )
        return after, ()

    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        return jnp.concatenate(x, axis)

    def mask(masks: Any, shapes: Any) -> Any:
        return concatenated(masks, shapes, axis)

    return layer_of(Leaf(run, declared, mask))


class _FanOut(Spec):
    def __init__(self, num: int) -> None:
        self.num = num

    def declare(
        self, signal: Any, widths: Widths, scope: Scope
    ) -> tuple[list[Any], tuple[()]]:
        return [signal] * self.num, ()

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> list[Any]:
        return [x] * self.num


def _reduced(op: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def run(weights: Any, x: Any, **kwargs: Any) -> Any:
        return functools.reduce(op, x)

    return run


def _like_first(keeps: bool) -> Callable[[Any, Widths], tuple[Signal, tuple[()]]]:
    """The signal of the first input; all should be alike."""

    def declared(signals: Any, widths: Widths) -> tuple[Signal, tuple[()]]:
        first = signals[0]
        for other in signals[1:]:
            if str(other.shape) != str(first.shape):
                raise ShapeMismatchError(
                    f"Inputs that are combined should have one shape, got "
                    f"{first.shape} and {other.shape}."
                )
        gaussian = all(s.is_gaussian for s in signals) and (keeps or len(signals) == 1)
        symmetric = all(s.is_symmetric for s in signals)
        return first.after(is_gaussian=gaussian, is_symmetric=symmetric), ()

    return declared


def _all(masks: Any, shapes: Any) -> Any:
    return all_masked(masks)
