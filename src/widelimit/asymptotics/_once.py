"""Arrays that XLA computes once, and does not copy for that.

On the CPU it removes optimization barriers before it fuses, and copies what a branch
gives back. A loop it keeps, where it cannot foresee how many steps that makes, and a
loop takes its first state over as it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from .._jax import Primitive, ShapedArray

# Arrays of fewer numbers are as well computed again.
_MANY = 2**13


def once(true: Any, array: Any) -> Any:
    """The array, which XLA is not to compute again for every one of its readers.

    It fuses what it can, and a layer would be computed anew for every shift of the
    convolution after it.

    Args:
        true: a truth that XLA does not know when it compiles.
        array: the array.
    """
    return array if array.size < _MANY else _once_p.bind(array, true)


def unless(wrong: Any, array: Any, otherwise: Callable[[Any], Any]) -> Any:
    """The array; where it is wrong, what is made of it.

    Args:
        wrong: a truth.
        array: the array.
        otherwise: from the array to one of its shape; not differentiated.
    """

    def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
        return otherwise(state[0]), jnp.zeros_like(wrong)

    return lax.while_loop(lambda state: state[1], step, (array, wrong))[0]


def linear_jvp(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> Any:
    """The rule of a primitive of an array, in which it is linear, and a truth."""
    (array, true), (dot, _) = primals, tangents
    value = primitive.bind(array, true, **params)
    if isinstance(dot, ad.Zero):
        return value, ad.Zero(ShapedArray(value.shape, value.dtype))
    return value, primitive.bind(dot, true, **params)


def _once(array: Any, true: Any) -> Any:
    return unless(~true, array, lambda x: np.nan * x)


def _transpose(cotangent: Any, array: Any, true: Any) -> tuple[Any, None]:
    if isinstance(cotangent, ad.Zero):
        return ad.Zero(array.aval), None
    return _once_p.bind(cotangent, true), None


def _batched(args: Any, axes: Any) -> tuple[Any, int]:
    array, true = args
    if axes[0] is None:
        array = jnp.broadcast_to(array, (true.shape[axes[1]], *array.shape))
    else:
        array = jnp.moveaxis(array, axes[0], 0)
    return _once_p.bind(array, true if axes[1] is None else true.all()), 0


_once_p = Primitive("once")
_once_p.def_impl(_once)
_once_p.def_abstract_eval(lambda array, true: ShapedArray(array.shape, array.dtype))
ad.primitive_jvps[_once_p] = functools.partial(linear_jvp, _once_p)
ad.primitive_transposes[_once_p] = _transpose
batching.primitive_batchers[_once_p] = _batched
mlir.register_lowering(_once_p, mlir.lower_fun(_once, multiple_results=False))
