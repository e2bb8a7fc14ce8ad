"""Kernels whose pairs of axes stand side by side, (N1, N2, a, a', b, b')."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import InputError, ShapeMismatchError


def as_matrix(k: Any) -> Any:
    """A kernel (N1, N2, a, a', b, b', ..) as a matrix, rows (N1, a, b, ..)."""
    order = (*range(0, k.ndim, 2), *range(1, k.ndim, 2))
    rows, columns = math.prod(k.shape[::2]), math.prod(k.shape[1::2])
    return k.transpose(order).reshape(rows, columns)


def as_kernel(matrices: Any, rows: tuple[int, ...], columns: tuple[int, ...]) -> Any:
    """Matrices (.., m, n) as kernels (.., N1, N2, a, a', b, b'); undoes `as_matrix`.

    Args:
        matrices: shape (.., m, n).
        rows: (N1, a, b, ..), of product m.
        columns: (N2, a', b', ..), of product n.
    """
    before, half = matrices.ndim - 2, len(rows)
    pairs = [before + a for i in range(half) for a in (i, half + i)]
    whole = matrices.reshape((*matrices.shape[:-2], *rows, *columns))
    return whole.transpose(*range(before), *pairs)


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """Which axes of the outputs have a kernel, and which share it.

    Attributes:
        shape: of the targets, with the training inputs in it.
        traced: the axes that share a kernel, ascending; of `trace_axes`.
    """

    shape: tuple[int, ...]
    traced: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The sizes of the axes that have a kernel."""
        return tuple(s for a, s in enumerate(self.shape) if a not in self.traced)

    @property
    def shared(self) -> tuple[int, ...]:
        """The sizes of the others."""
        return tuple(self.shape[a] for a in self.traced)

    @property
    def size(self) -> int:
        """The number of targets, which the loss is the mean over."""
        return math.prod(self.shape)

    def columns(
        self, xp: Any, outputs: Any, rows: tuple[int, ...] | None = None
    ) -> Any:
        """Outputs as a matrix: a row for every row of the kernel.

        Args:
            xp: `numpy` or `jax.numpy`.
            outputs: of `shape`, or for inputs of other rows.
            rows: those.
        """
        rows = self.rows if rows is None else rows
        last = tuple(range(-len(self.traced), 0))
        moved = xp.moveaxis(outputs, self.traced, last)
        return moved.reshape(math.prod(rows), math.prod(self.shared))

    def arrays(self, xp: Any, matrices: Any, rows: tuple[int, ...]) -> Any:
        """Matrices (.., m, O) as outputs, for inputs of other `rows` perhaps."""
        before = matrices.ndim - 2
        whole = matrices.reshape((*matrices.shape[:-2], *rows, *self.shared))
        last = tuple(range(-len(self.traced), 0))
        return xp.moveaxis(whole, last, tuple(before + a for a in self.traced))

    def of(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of outputs whose axes with a kernel are `rows`."""
        sizes = iter(rows)
        return tuple(
            s if a in self.traced else next(sizes) for a, s in enumerate(self.shape)
        )

    def check_train(self, name: str, k: Any) -> None:
        """Refuse a kernel that is not of the training outputs with themselves.

        Raises:
            ShapeMismatchError: its axes are not pairs of `rows`.
        """
        expected = tuple(s for s in self.rows for _ in range(2))
        if tuple(k.shape) != expected:
            raise ShapeMismatchError(
                f"For targets of shape {self.shape} and trace_axes={self.traced}, "
                f"`{name}` should have shape {expected}: a pair of axes for every axis "
                f"of the targets that is not traced; got {tuple(k.shape)}."
            )

    def check_test(self, name: str, k: Any) -> tuple[int, ...]:
        """The axes of the test outputs that have a kernel, (M, a', b', ..).

        Raises:
            ShapeMismatchError: `k` is not of test outputs with the training outputs.
        """
        if k.ndim != 2 * len(self.rows) or tuple(k.shape[1::2]) != self.rows:
            pairs = [p for s in self.rows for p in ("_", str(s))]
            raise ShapeMismatchError(
                f"For targets of shape {self.shape} and trace_axes={self.traced}, "
                f"`{name}` should have shape ({', '.join(pairs)}), the axes of the "
                f"test outputs first in every pair; got {tuple(k.shape)}."
            )
        return tuple(k.shape[::2])


def outputs_of(shape: Sequence[int], trace_axes: int | Sequence[int]) -> Outputs:
    """The axes of targets of a shape, without those that share a kernel.

    Args:
        shape: of the targets.
        trace_axes: axes of the targets, from either end; twice is once.

    Raises:
        InputError: there is no such axis, or no targets.
    """
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
    n = len(shape)
    if not all(isinstance(a, int | np.integer) and -n <= a < n for a in axes):
        raise InputError(
            f"trace_axes should be axes of the targets, which have shape "
            f"{tuple(shape)}; got {trace_axes!r}. A kernel that has a pair of axes for "
            "every axis of the targets is trace_axes=()."
        )
    if not math.prod(shape):
        raise InputError(f"There are no targets: `y_train` has shape {tuple(shape)}.")
    return Outputs(tuple(shape), tuple(sorted({int(a) % n for a in axes})))
