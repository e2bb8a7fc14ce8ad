"""Networks of layers: one after another, side by side, repeated, shared."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError
from ._layer import Layer, layer, layer_of, spec_of
from ._signal import Signals, Widths, shapes
from ._spec import Axes, Scope, Serial, Spec, each_of, keys_in_turn
from ._weights import Weight, is_weight


@layer
def serial(*layers: Layer) -> Layer:
    """Layers one after another.

    Args:
        *layers: triples (init_fn, apply_fn, kernel_fn).

    Returns:
        A layer; its parameters are a list of those of `layers`.
    """
    return layer_of(Serial(tuple(map(spec_of, layers))))


@layer
def parallel(*layers: Layer) -> Layer:
    """Layers side by side, each on an input of its own.

    Args:
        *layers: triples (init_fn, apply_fn, kernel_fn), as many as there are inputs:
            see `FanOut`.

    Returns:
        A layer from a list (or tuple) to one of the same kind.
    """
    return layer_of(_Parallel(tuple(map(spec_of, layers))))


@layer
def repeat(layer: Layer, n: int) -> Layer:
    """One layer `n` times after itself, each time with new weights, in a loop.

    The network of `serial(*[layer] * n)`; the finite network compiles in a time that
    does not grow with `n`.

    Args:
        layer: its output has the shape of its input.
        n: how often.

    Returns:
        A layer; its parameters are those of `layer` with a first axis of size `n`.

    Raises:
        InputError: `n` is negative or not whole.
    """
    if isinstance(n, bool) or int(n) != n or n < 0:
        raise InputError(f"`n` should be a whole number that is not negative: {n!r}.")
    return layer_of(_Repeat(spec_of(layer), int(n)))


@layer
def shared(layer: Layer) -> Layer:
    """One layer that may stand in several places, with the same weights in all.

    Within one network the first place holds the parameters, the others none.

    Args:
        layer: a triple (init_fn, apply_fn, kernel_fn).

    Example:
        ```python
        step = stax.shared(stax.Dense(512))
        stax.serial(stax.Dense(512), stax.Relu(), step, stax.Relu(), step)
        ```
    """
    return layer_of(_Shared(spec_of(layer)))


class _Parallel(Spec):
    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = specs
        each: list[Axes] = [s.axes for s in specs]
        self.axes = None if all(a is None for a in each) else each

    @property
    def parts(self) -> Sequence[Spec]:
        return self.specs

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        self._check(signal)
        found = [
            spec.declare(one, widths, scope)
            for spec, one in zip(self.specs, signal, strict=True)
        ]
        return type(signal)(s for s, _ in found), [w for _, w in found]

    def draw(self, weights: Any, key: Any) -> Any:
        keys = jax.random.split(key, len(self.specs))
        each = zip(self.specs, weights, keys, strict=True)
        return [spec.draw(mine, one) for spec, mine, one in each]

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        self._check(x)
        each = zip(each_of(self.specs, weights, kwargs), x, strict=True)
        return type(x)(
            spec.forward(mine, one, scope, **given) for (spec, mine, given), one in each
        )

    def _check(self, x: Any) -> None:
        if not isinstance(x, tuple | list) or len(x) != len(self.specs):
            count = len(x) if isinstance(x, tuple | list) else 1
            raise ShapeMismatchError(
                f"`parallel` of {len(self.specs)} layers takes a list of as many "
                f"inputs, got {count}: put `stax.FanOut({len(self.specs)})` before it."
            )


class _Repeat(Spec):
    def __init__(self, spec: Spec, count: int) -> None:
        self.spec, self.count, self.axes = spec, count, spec.axes
        # In the limit the first may read finitely many channels, the others do not.
        self._unrolled = Serial((spec,) * count)

    @property
    def parts(self) -> Sequence[Spec]:
        return (self.spec,)

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        if widths.is_infinite:
            return self._unrolled.declare(signal, widths, scope)
        after, weights = self.spec.declare(signal, widths, scope)
        if shapes(after) != shapes(signal):
            raise ShapeMismatchError(
                "A repeated layer should keep the shape of its input; "
                f"{shapes(signal)} becomes {shapes(after)}. Use `serial(*[layer] * n)`."
            )
        if not self.count:
            return signal, ()

        def stacked(w: Any) -> Any:
            if not isinstance(w, Weight):
                raise InputError("A layer with a custom `init_fn` is not repeated.")
            return w.stacked(self.count)

        return after, jax.tree.map(stacked, weights, is_leaf=is_weight)

    def draw(self, weights: Any, key: Any) -> Any:
        if not self.count:
            return ()
        keys = jnp.stack(keys_in_turn(key, self.count))
        one = jax.tree.map(lambda w: w.unstacked(), weights, is_leaf=is_weight)
        return jax.vmap(lambda k: self.spec.draw(one, k))(keys)

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        if not self.count:
            return x
        if kwargs.get("is_infinite"):
            return self._unrolled.forward(weights, x, scope, **kwargs)
        rng = kwargs.pop("rng", None)
        keys = None if rng is None else jax.random.split(rng, self.count)

        def step(x: Any, each: Any) -> tuple[Any, None]:
            mine, key = each
            return self.spec.forward(mine, x, scope, rng=key, **kwargs), None

        return jax.lax.scan(step, x, (weights, keys), self.count)[0]


class _Shared(Spec):
    def __init__(self, spec: Spec) -> None:
        self.spec, self.axes = spec, spec.axes

    @property
    def parts(self) -> Sequence[Spec]:
        return (self.spec,)

    def draw(self, weights: Any, key: Any) -> Any:
        return self.spec.draw(weights, key) if jax.tree.leaves(weights) else weights

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        after, weights = self.spec.declare(signal, widths, scope)
        first = scope.shared.setdefault(self, weights)
        if str(first) != str(weights):
            raise ShapeMismatchError(
                "A shared layer has the same weights in all places, so its inputs "
                f"should have as many channels: {first} here, {weights} there."
            )
        return after, weights if first is weights else ()

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        first = scope.shared.setdefault(self, weights)
        return self.spec.forward(first, x, scope, **kwargs)
