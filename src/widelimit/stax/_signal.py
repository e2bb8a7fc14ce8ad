"""What flows between layers before any array does: shapes, and which axis is what."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from .._errors import InputError, ShapeMismatchError, UnsupportedError
from ..trace import Width, WidthForm, width

Size = Any
"""A whole number; None for one that is not known; or a width."""


@dataclasses.dataclass(frozen=True)
class Signal:
    """One array between two layers.

    Attributes:
        shape: its sizes; the axis of channels may be a width.
        batch_axis: that of the inputs.
        channel_axis: that of the channels, which become infinitely many.
        is_gaussian: whether it is Gaussian given the layers before.
        is_input: whether no layer was applied.
        is_local: whether different positions are independent: of a layer with weights
            of its own at every position.
        is_symmetric: whether the kernel of x and x' is that of x' and x; that of
            `ElementwiseNumerical` is not.
        rows: what was taken of the inputs, one after another: slices; at last perhaps
            a number, after which there is no axis of inputs.
    """

    shape: tuple[Size, ...]
    batch_axis: int = 0
    channel_axis: int = -1
    is_gaussian: bool = False
    is_input: bool = True
    is_local: bool = False
    is_symmetric: bool = True
    rows: tuple[Any, ...] = ()

    def at(self, batch_axis: int, channel_axis: int) -> "Signal":
        """The signal as a layer with these arguments reads it.

        Raises:
            ShapeMismatchError: it does not have these axes.
        """
        ndim = len(self.shape)
        if self.has_no_inputs:
            raise UnsupportedError(
                "One input was taken by `Index` with a number, so there is no axis of "
                "inputs for further layers; take a slice, as 0:1."
            )
        for name, axis in (("batch_axis", batch_axis), ("channel_axis", channel_axis)):
            if not -ndim <= axis < ndim:
                raise ShapeMismatchError(
                    f"{name}={axis} is no axis of an array of shape {self.shape}."
                )
        batch, channel = batch_axis % ndim, channel_axis % ndim
        if batch == channel:
            raise ShapeMismatchError(
                f"batch_axis={batch_axis} and channel_axis={channel_axis} are one axis "
                f"of an array of shape {self.shape}."
            )
        return dataclasses.replace(self, batch_axis=batch, channel_axis=channel)

    @property
    def has_no_inputs(self) -> bool:
        """Whether one input was taken, and its axis is gone."""
        return bool(self.rows) and not isinstance(self.rows[-1], slice)

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of inputs and of channels, not negative."""
        ndim = len(self.shape)
        return self.batch_axis % ndim, self.channel_axis % ndim

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """The axes of positions."""
        return positions(len(self.shape), self.axes)

    @property
    def spatial_shape(self) -> tuple[Size, ...]:
        """The numbers of positions."""
        return tuple(self.shape[a] for a in self.spatial_axes)

    @property
    def channels(self) -> Size:
        """The number of channels."""
        return self.shape[self.channel_axis]

    def after(self, **changes: Any) -> "Signal":
        """The signal after a layer; positions are independent only if it says so."""
        return dataclasses.replace(
            self, **{"is_input": False, "is_local": False, **changes}
        )

    def with_channels(self, channels: Size) -> "Signal":
        """The signal after new weights for every channel: Gaussian."""
        shape = list(self.shape)
        shape[self.channel_axis] = channels
        return self.after(shape=tuple(shape), is_gaussian=True)


def positions(ndim: int, axes: tuple[int, int]) -> tuple[int, ...]:
    """The axes that are neither that of inputs nor that of channels."""
    gone = {a % ndim for a in axes}
    return tuple(a for a in range(ndim) if a not in gone)


Signals = Any
"""A signal, or a tuple or list of them for parallel branches."""


def signals(shapes: Any) -> Signals:
    """From a shape, or a tuple or list of them, of the inputs of a network."""
    if isinstance(shapes, tuple | list) and any(
        isinstance(s, tuple | list) for s in shapes
    ):
        return type(shapes)(signals(s) for s in shapes)
    return Signal(tuple(shapes))


def shapes(found: Signals) -> Any:
    """The shape of every signal."""
    if isinstance(found, Signal):
        return found.shape
    return type(found)(shapes(s) for s in found)


class Widths:
    """How many channels a layer has that was asked for `out_dim` of them.

    At finite width that many, `s` times under the standard parameterisation; in the
    limit a width whose ratio to the others is that of these numbers.
    """

    def __init__(self, largest: int | None = None) -> None:
        self._largest = largest
        self.seen: set[int] = set()

    @property
    def is_infinite(self) -> bool:
        """Whether the limit is declared, not a finite network."""
        return self._largest is not None

    def __call__(
        self, out_dim: int, parameterization: str = "ntk", s: tuple[int, int] = (1, 1)
    ) -> Size:
        """The size of the axis, of a layer with these arguments.

        Raises:
            InputError: no positive whole number is given.
        """
        if isinstance(out_dim, bool) or int(out_dim) != out_dim or out_dim < 1:
            raise InputError(
                f"The number of channels of a layer should be a positive whole number, "
                f"got {out_dim!r}."
            )
        size = int(out_dim)
        self.seen.add(size)
        if self._largest is None:
            return size * (s[1] if parameterization == "standard" else 1)
        return width(f"n{size}", ratio=size / self._largest, base=size)

    def heads(self, count: int) -> Size:
        """The number of heads, in the limit a width of its own."""
        if self._largest is None:
            return count
        return width(f"heads{count}", ratio=count / self._largest, base=count)


def known(size: Size, what: str) -> Size:
    """A size that a layer needs.

    Raises:
        ShapeMismatchError: it is not known (None or -1).
    """
    if size is None or (isinstance(size, int) and size < 0):
        raise ShapeMismatchError(
            f"{what} is needed here, and the shape has {size!r} there; only the number "
            "of inputs may be left out."
        )
    return size


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes of which at most one is a width."""
    wide = [s for s in sizes if isinstance(s, Width | WidthForm)]
    number = math.prod(
        int(known(s, "The size of every axis"))
        for s in sizes
        if not isinstance(s, Width | WidthForm)
    )
    if len(wide) > 1:
        raise ShapeMismatchError("Two axes of an array are wide; one may be.")
    return number * wide[0] if wide else number
