"""What may stand around a user's own layers: see `layer`."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any


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

    def __and__(self, other: int) -> "Bool":
        return Bool(min(int(self), int(other)))

    __rand__ = __and__


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Whether equal positions suffice, for the arguments of `requires`.

    `a >> b` is of layer a and then layer b, `a & b` of both side by side.

    Attributes:
        input: of the inputs of a layer.
        output: of what comes after it, up to the output of the network.
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO

    def __rshift__(self, other: "Diagonal") -> "Diagonal":
        if self.output == Bool.YES:
            return self
        if self.output > Bool.NO and other.input > Bool.NO:
            return Diagonal(self.input, other.output)
        if self.output == Bool.NO and other.input < Bool.YES:
            return Diagonal(Bool.NO, other.output)
        return Diagonal(min(self.input, other.input), other.output)

    def __lshift__(self, other: "Diagonal") -> "Diagonal":
        return other >> self

    def __and__(self, other: "Diagonal") -> "Diagonal":
        return Diagonal(min(self.input, other.input), min(self.output, other.output))

    __rand__ = __and__

    def __bool__(self) -> bool:
        return self.input == Bool.YES and self.output > Bool.NO
