"""Layers of a user's own functions."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

from .._errors import InputError
from ._kernel_fn import KernelFn
from ._layer import Foreign, Layer, layer_of


def layer(layer_fn: Callable[..., Any]) -> Callable[..., Layer]:
    """Make layers of a function that returns `init_fn` and `apply_fn`.

    The kernel is compiled from `apply_fn`, which is ordinary JAX; a third function, the
    kernel's in Neural Tangents, is accepted and not used. Layers with parameters of
    their own have finite networks only: write those whose kernel is wanted as a
    function for `widelimit.limit`.

    Args:
        layer_fn: returns (init_fn, apply_fn), (init_fn, apply_fn, kernel_fn), or a
            layer.

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
    def made(*args: Any, **kwargs: Any) -> Layer:
        functions = layer_fn(*args, **kwargs)
        if len(functions) > 2 and isinstance(functions[2], KernelFn):
            return Layer(*functions[:3])
        if len(functions) < 2 or not all(callable(f) for f in functions[:2]):
            raise InputError(
                f"`{layer_fn.__name__}` should return (init_fn, apply_fn), got "
                f"{functions!r}."
            )
        mask_fn = functions[3] if len(functions) > 3 else None
        return layer_of(Foreign(functions[0], functions[1], mask_fn))

    return made


def supports_masking(
    remask_kernel: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark layers whose `apply_fn` takes `mask`; goes below `layer`.

    The function that is decorated may return a fourth function, `mask_fn(mask,
    input_shape)`, of the mask of the output; without one it is that of the input.

    Args:
        remask_kernel: accepted and not needed: masked entries are always zero.
    """

    def decorator(layer_fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(layer_fn)
        def with_mask(*args: Any, **kwargs: Any) -> Any:
            init_fn, apply_fn, *more = layer_fn(*args, **kwargs)
            kernel_fn, mask_fn, *_ = [*more, None, None]
            return init_fn, apply_fn, kernel_fn, mask_fn or _same_mask

        return with_mask

    return decorator


def _same_mask(mask: Any, input_shape: Any) -> Any:
    return mask


def requires(**static_reqs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Accepted, and not needed: what a kernel needs is found by the compiler."""

    def decorator(kernel_fn: Callable[..., Any]) -> Callable[..., Any]:
        return kernel_fn

    return decorator


class Bool(enum.IntEnum):
    """No, perhaps, or yes: for the arguments of `requires`."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Whether equal positions suffice, for the arguments of `requires`.

    Attributes:
        input: of the inputs of a layer.
        output: of its outputs.
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO
