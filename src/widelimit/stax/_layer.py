"""What a layer is: its weights, what it does with them, and what it does to a mask."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax

from .._errors import InputError
from ._kernel_fn import KernelFn
from ._masks import joined, masked, parts
from ._signal import Signal, Signals, Widths, shapes, signals
from ._spec import Axes, Scope, Spec
from ._weights import Custom, effective


class Layer(NamedTuple):
    """A layer or a network, as in `jax.example_libraries.stax`.

    Attributes:
        init_fn: `init_fn(rng, input_shape)` gives the shape of the output and the
            parameters.
        apply_fn: `apply_fn(params, inputs, **kwargs)` runs the finite network.
        kernel_fn: `kernel_fn(x1, x2, get)` gives the kernels of the infinite network;
            see `KernelFn`.
    """

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]
    kernel_fn: Callable[..., Any]


def _same_signal(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
    return signal.after(), ()


def _same_mask(mask: Any, shape: Any) -> Any:
    return mask


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf(Spec):
    """One layer.

    Attributes:
        run: `run(weights, x, mask=.., **kwargs)` on arrays, zero where masked.
        declared: the signal after it, and its weights; by default the same and none.
        mask: the mask of its output from that of its input and the input's shape.
        axes: the axes of inputs and of channels that its arguments name.
        held: an array with one entry an input, the inputs first; `run` and `mask` are
            given those of their inputs as `held`.
    """

    run: Callable[..., Any]
    declared: Callable[[Any, Widths], tuple[Any, Any]] = _same_signal
    mask: Callable[..., Any] = _same_mask
    axes: Axes = None
    held: Any = None

    def arrays(self) -> dict[Any, Any]:
        """See `Spec`."""
        return {} if self.held is None else {self: self.held}

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        """See `Spec`."""
        if isinstance(signal, Signal) and self.axes is not None:
            signal = signal.at(*self.axes)
        return self.declared(signal, widths)

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        """See `Spec`."""
        mask = self.mask
        if self.held is not None:
            # In the limit they are data, of as many inputs as there are.
            here = kwargs["held"][self] if kwargs.get("is_infinite") else self.held
            kwargs, mask = {**kwargs, "held": here}, functools.partial(mask, held=here)
        return _with_mask(x, functools.partial(self.run, weights, **kwargs), mask)


def _with_mask(
    x: Any, run: Callable[..., Any], mask_fn: Callable[[Any, Any], Any]
) -> Any:
    """What `run(value, mask=..)` makes, with the mask of the output if there is one."""
    value, mask = parts(x)
    y = run(value, mask=mask)
    if not jax.tree.leaves(mask):
        return y
    return joined(y, mask_fn(mask, jax.tree.map(lambda a: a.shape, value)))


P = ParamSpec("P")


def layer(layer_fn: Callable[P, Any]) -> Callable[P, Layer]:
    """Make layers of a function that returns `init_fn` and `apply_fn`.

    The kernel is compiled from `apply_fn`, which is ordinary JAX; a third function, the
    kernel's in Neural Tangents, is accepted and not used. Layers with parameters of
    their own have finite networks only: write those whose kernel is wanted as a
    function for `widelimit.limit`.

    Args:
        layer_fn: returns (init_fn, apply_fn), (init_fn, apply_fn, kernel_fn), or a
            layer. The functions are renamed after it.

    Example:
        ```python
        @stax.layer
        def Cube():
            def init_fn(rng, input_shape):
                return input_shape, ()

            def apply_fn(params, inputs, **kwargs):
                return inputs**3

            return init_fn, apply_fn
        ```
    """

    @functools.wraps(layer_fn)
    def made(*args: P.args, **kwargs: P.kwargs) -> Layer:
        functions = layer_fn(*args, **kwargs)
        if len(functions) < 2 or not all(callable(f) for f in functions[:2]):
            raise InputError(
                f"`{layer_fn.__name__}` should return (init_fn, apply_fn), got "
                f"{functions!r}."
            )
        if len(functions) > 2 and isinstance(functions[2], KernelFn):
            found = Layer(*functions[:3])
        else:
            mask_fn = functions[3] if len(functions) > 3 else None
            found = layer_of(Foreign(functions[0], functions[1], mask_fn))
        for function in found:
            function.__name__ = layer_fn.__name__
        return found

    return made


def layer_of(spec: Spec) -> Layer:
    """The three functions of a layer."""

    def init_fn(rng: Any, input_shape: Any) -> tuple[Any, Any]:
        out, weights = spec.declare(signals(input_shape), Widths(), Scope())
        return shapes(out), spec.draw(weights, rng)

    def apply_fn(
        params: Any, inputs: Any, *, mask_constant: Any = None, **kwargs: Any
    ) -> Any:
        inputs = masked(inputs, mask_constant)
        found = signals(_shapes(parts(inputs)[0]))
        _, weights = spec.declare(found, Widths(), Scope())
        return spec.forward(effective(weights, params), inputs, Scope(), **kwargs)

    return Layer(init_fn, apply_fn, KernelFn(spec, (init_fn, apply_fn)))


def spec_of(layer: Any) -> Spec:
    """What a layer was made of.

    Raises:
        InputError: this is no layer.
    """
    if not isinstance(layer, tuple | list) or len(layer) < 2 or not callable(layer[1]):
        raise InputError(
            "A layer is a triple (init_fn, apply_fn, kernel_fn), such as "
            f"stax.Dense(512); got {layer!r}."
        )
    kernel_fn = layer[2] if len(layer) > 2 else None
    if isinstance(kernel_fn, KernelFn) and kernel_fn.functions == tuple(layer[:2]):
        return kernel_fn.spec
    return Foreign(layer[0], layer[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign(Spec):
    """A layer of the user's own functions; it has a kernel if it has no weights.

    Attributes:
        init_fn: as of `Layer`.
        apply_fn: as of `Layer`; with `mask` where there is a `mask_fn`.
        mask_fn: of the mask of the output, `mask_fn(mask, input_shape)`.
    """

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]
    mask_fn: Callable[..., Any] | None = None

    def declare(
        self, signal: Signals, widths: Widths, scope: Scope
    ) -> tuple[Signals, Any]:
        """See `Spec`."""
        # A number of channels that can be told from all others in the output.
        wide = {}
        if isinstance(signal, Signal) and not isinstance(signal.channels, int):
            wide = {_CHANNELS: signal.channels}
            shape = list(signal.shape)
            shape[signal.channel_axis] = _CHANNELS
            found = Custom(self.init_fn, tuple(shape))
        else:
            found = Custom(self.init_fn, shapes(signal))
        out = signals(found.shape_after())
        if isinstance(out, Signal) and isinstance(signal, Signal):
            shape = tuple(
                (s // _CHANNELS) * wide[_CHANNELS]
                if wide and isinstance(s, int) and s and s % _CHANNELS == 0
                else s
                for s in out.shape
            )
            out = dataclasses.replace(
                signal.after(is_gaussian=False),
                shape=shape,
                channel_axis=_moved(signal.channel_axis, len(signal.shape), len(shape)),
            )
        return out, found

    def forward(self, weights: Any, x: Any, scope: Scope, **kwargs: Any) -> Any:
        """See `Spec`."""
        given = {
            k: v
            for k, v in kwargs.items()
            if v is not None and k not in ("is_infinite", "held")
        }
        if self.mask_fn is None:
            return self.apply_fn(weights, x, **given)
        run = functools.partial(self.apply_fn, weights, **given)
        return _with_mask(x, run, self.mask_fn)


_CHANNELS = 15_485_863


def _moved(axis: int, before: int, after: int) -> int:
    """The axis counted from the end, where the number of axes changed."""
    return axis if before == after else axis % before - before


def _shapes(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return type(x)(_shapes(a) for a in x)
    return tuple(x.shape)
