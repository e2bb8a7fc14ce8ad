"""Which entries of two outputs a kernel compares, and where each pair of them stands.

Every axis of the output stands twice in the kernel, first that of `x1` and then that of
`x2`; once if it is diagonal; not at all if it is averaged over:
(N1, N2, H, C, C) from outputs (N, H, C) whose axis 1 is diagonal.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError

Axes = int | Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs of entries of two outputs. Made by `pairing`.

    Attributes:
        first: shape of the output for the first batch.
        second: for the second.
        traced: axes whose equal entries are compared, and averaged over.
        diagonal: axes whose equal entries are compared.
        units: the axis along which the parts stand that are computed apart, if any.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    traced: tuple[int, ...]
    diagonal: tuple[int, ...]
    units: int | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """The axes that stand twice."""
        once = (*self.traced, *self.diagonal)
        return tuple(a for a in range(len(self.first)) if a not in once)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return tuple(self._size(axis) for axis in sorted(self._axes()))

    def entries(self, output: Any) -> jax.Array:
        """The output of one unit, (diagonal, kept, traced)."""
        groups = [self._inside(g) for g in (self.diagonal, self.kept, self.traced)]
        sizes = [math.prod(output.shape[a] for a in g) for g in groups]
        order = [a for g in groups for a in g]
        return jnp.transpose(output, order).reshape(sizes)

    def kernel(
        self, compare: Callable[[Any, Any], jax.Array], one: Any, two: Any
    ) -> jax.Array:
        """The kernel, shape `shape`.

        Args:
            compare: from what is known of one unit of either batch to the sum over
                traced entries, (diagonal, kept of the first, kept of the second).
            one: what is known of the units of the first batch, along axis 0; of the
                whole batch where `units` is None.
            two: of the second.
        """
        if self.units is None:
            k = compare(one, two)
        elif self.units in self.kept:
            k = jax.vmap(jax.vmap(compare, (None, 0)), (0, None))(one, two)
        else:
            k = jax.vmap(compare)(one, two)
            k = jnp.sum(k, axis=0) if self.units in self.traced else k
        axes = self._axes()
        k = k.reshape([self._size(axis) for axis in axes])
        k = jnp.transpose(k, sorted(range(len(axes)), key=axes.__getitem__))
        return k / math.prod(self.first[a] for a in self.traced)

    def _inside(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Axes of the whole output as axes of that of one unit."""
        u = self.units
        return tuple(a - (u is not None and a > u) for a in axes if a != u)

    def _axes(self) -> list[tuple[int, int]]:
        """Axes of the kernel as they are computed: of the output, and of which side.

        A side is 1 or 2, or 0 for both. In the kernel they are sorted.
        """
        once = [(a, 0) for a in self.diagonal if a != self.units]
        twice = [(a, side) for side in (1, 2) for a in self.kept if a != self.units]
        apart: list[tuple[int, int]] = []
        if self.units is not None and self.units in self.kept:
            apart = [(self.units, 1), (self.units, 2)]
        elif self.units is not None and self.units in self.diagonal:
            apart = [(self.units, 0)]
        return [*apart, *once, *twice]

    def _size(self, axis: tuple[int, int]) -> int:
        a, side = axis
        return self.second[a] if side == 2 else self.first[a]


def pairing(
    first: Sequence[int],
    second: Sequence[int],
    trace_axes: Axes,
    diagonal_axes: Axes,
    units: int | None = None,
) -> Pairing:
    """The pairs of entries of two outputs.

    Args:
        first: shape of the output for the first batch.
        second: for the second.
        trace_axes: axes to average over, negative ones from the last.
        diagonal_axes: axes that stand once.
        units: see `Pairing`.

    Raises:
        InputError: an axis that the output does not have, is in both, or is averaged
            over and empty.
        ShapeMismatchError: the outputs have other numbers of axes, or other sizes along
            axes that stand once.
    """
    if len(first) != len(second):
        raise ShapeMismatchError(
            "The outputs for `x1` and `x2` should have equally many axes, got shapes "
            f"{tuple(first)} and {tuple(second)}."
        )
    traced = _checked("trace_axes", trace_axes, first)
    diagonal = _checked("diagonal_axes", diagonal_axes, first)
    if both := sorted(set(traced) & set(diagonal)):
        raise InputError(
            f"An axis is averaged over or diagonal, not both: {both} of the output "
            f"{tuple(first)} are in trace_axes={trace_axes} and in "
            f"diagonal_axes={diagonal_axes}."
        )
    for a in (*traced, *diagonal):
        if first[a] != second[a]:
            raise ShapeMismatchError(
                f"Axis {a} of the output has {first[a]} entries for `x1` and "
                f"{second[a]} for `x2`; it is in trace_axes={trace_axes} or "
                f"diagonal_axes={diagonal_axes}, which compare equal entries."
            )
    if any(first[a] == 0 for a in traced):
        raise InputError(
            f"There is no mean over an empty axis: outputs of shape {tuple(first)} "
            f"with trace_axes={trace_axes}."
        )
    return Pairing(tuple(first), tuple(second), traced, diagonal, units)


def _checked(name: str, axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    ndim = len(shape)
    try:
        given = [operator.index(a) for a in _listed(axes)]
    except TypeError:
        raise InputError(
            f"`{name}` should be an axis or a sequence of axes, got {axes!r}."
        ) from None
    if not all(-ndim <= a < ndim for a in given):
        raise InputError(
            f"`{name}` should be axes of every output; {axes!r} are not all of one of "
            f"shape {tuple(shape)}."
        )
    return tuple(sorted({a % ndim for a in given}))


def _listed(axes: Axes) -> list[Any]:
    return list(axes) if isinstance(axes, Iterable) else [axes]
