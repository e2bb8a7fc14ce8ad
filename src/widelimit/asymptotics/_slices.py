"""Sums of slices of an array, whose transpose is such a sum again.

JAX transposes a sum of slices to a sum of padded arrays, one for every slice, which XLA
computes with a choice at every number. As an operation of its own it is padded once,
and its slices are added, forwards and backwards.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from .._jax import Primitive, ShapedArray
from .._once import once


@dataclasses.dataclass(frozen=True, slots=True)
class Slices:
    """Slices of one shape of an array that is padded with zeros.

    Attributes:
        pads: the zeros before and after every axis.
        strides: along every axis.
        counts: the shape of a slice.
        starts: where each slice begins.
    """

    pads: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    def transposed(self, shape: tuple[int, ...]) -> "Slices":
        """The slices of the transpose, of an array filled up by zeros to strides of 1.

        Args:
            shape: of the array that is sliced.
        """
        before = np.asarray([b for b, _ in self.pads])
        # A number at q stands in slice k at (q - shifts[k]) / stride.
        shifts = np.asarray(self.starts) - before
        low = np.maximum(0, shifts.max(0))
        starts = low - shifts
        filled = (np.asarray(self.counts) - 1) * self.strides + 1
        high = np.maximum(0, starts.max(0) + shape - low - filled)
        return Slices(
            tuple(zip(low.tolist(), high.tolist(), strict=True)), (1,) * len(shape),
            tuple(shape), tuple(map(tuple, starts.tolist())),
        )  # fmt: skip

    def beside(self, size: int) -> "Slices":
        """The same of each of some arrays, along a new first axis."""
        return Slices(
            ((0, 0), *self.pads), (1, *self.strides), (size, *self.counts),
            tuple((0, *s) for s in self.starts),
        )  # fmt: skip


def sum_of(array: Any, slices: Slices, true: Any = None) -> Any:
    """The sum of slices of an array.

    Args:
        array: the array.
        slices: which.
        true: a truth that XLA does not know when it compiles, by which the padded array
            is computed once; or None.
    """
    barrier = true is not None
    true = true if barrier else jnp.asarray(True)
    return _sum_p.bind(array, true, slices=slices, barrier=barrier)


def _sum(array: Any, true: Any, *, slices: Slices, barrier: bool) -> Any:
    if any(map(any, slices.pads)):
        array = jnp.pad(array, slices.pads)
        array = once(true, array) if barrier else array
    total: Any = None
    for start in slices.starts:
        window = tuple(
            slice(s, s + step * (n - 1) + 1, step)
            for s, step, n in zip(start, slices.strides, slices.counts, strict=True)
        )
        total = array[window] if total is None else total + array[window]
    return total


def _transpose(
    cotangent: Any, array: Any, true: Any, *, slices: Slices, barrier: bool
) -> tuple[Any, None]:
    if isinstance(cotangent, ad.Zero):
        return ad.Zero(array.aval), None
    if any(s > 1 for s in slices.strides):
        filled = [(0, 0, step - 1) for step in slices.strides]
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), filled)
    back = slices.transposed(array.aval.shape)
    return _sum_p.bind(cotangent, true, slices=back, barrier=barrier), None


def _batched(args: Any, axes: Any, *, slices: Slices, barrier: bool) -> tuple[Any, int]:
    array, true = args
    if axes[0] is None:
        array = jnp.broadcast_to(array, (true.shape[axes[1]], *array.shape))
    else:
        array = jnp.moveaxis(array, axes[0], 0)
    if axes[1] is not None:
        true = true.all()
    wide = slices.beside(array.shape[0])
    return _sum_p.bind(array, true, slices=wide, barrier=barrier), 0


def _shape(array: Any, true: Any, *, slices: Slices, barrier: bool) -> ShapedArray:
    del true, barrier
    return ShapedArray(slices.counts, array.dtype)


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    (array, true), (dot, _) = primals, tangents
    value = _sum_p.bind(array, true, **params)
    if isinstance(dot, ad.Zero):
        return value, ad.Zero(ShapedArray(value.shape, value.dtype))
    return value, _sum_p.bind(dot, true, **params)


_sum_p = Primitive("sum_of_slices")
_sum_p.def_impl(_sum)
_sum_p.def_abstract_eval(_shape)
ad.primitive_jvps[_sum_p] = _jvp
ad.primitive_transposes[_sum_p] = _transpose
batching.primitive_batchers[_sum_p] = _batched
mlir.register_lowering(_sum_p, mlir.lower_fun(_sum, multiple_results=False))
