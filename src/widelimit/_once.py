"""Arrays that XLA computes once, and does not copy for that.

On the CPU it removes optimization barriers before it fuses, and copies what a branch
gives back. A loop it keeps, where it cannot foresee how many steps that makes, and a
loop takes its first state over as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir

from ._jax import Primitive, ShapedArray

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
    return array if array.size < _MANY else _once_p.bind(true, array)[0]


def together(true: Any, arrays: Any) -> Any:
    """Arrays none of which is read before all of them are there.

    Args:
        true: as for `once`.
        arrays: a pytree.
    """
    leaves, tree = jax.tree.flatten(arrays)
    return tree.unflatten(_once_p.bind(true, *leaves))


def unless(wrong: Any, arrays: Any, otherwise: Callable[[Any], Any]) -> Any:
    """The arrays; where they are wrong, what is made of them.

    Args:
        wrong: a truth.
        arrays: a pytree.
        otherwise: from such a pytree to another; not differentiated.
    """

    def step(state: tuple[Any, Any]) -> tuple[Any, Any]:
        return otherwise(state[0]), jnp.zeros_like(wrong)

    return lax.while_loop(lambda state: state[1], step, (arrays, wrong))[0]


def _once(true: Any, *arrays: Any) -> list[Any]:
    def same(arrays: list[Any]) -> list[Any]:
        # Where it is made, and that is never, it changes nothing; XLA cannot know.
        return [jnp.where(true, jnp.zeros_like(a), a) for a in arrays]

    return unless(~true, list(arrays), same)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    true, dots = primals[0], list(tangents[1:])
    moving = [k for k, dot in enumerate(dots) if not isinstance(dot, ad.Zero)]
    found = _once_p.bind(true, *(dots[k] for k in moving)) if moving else []
    for k, dot in zip(moving, found, strict=True):
        dots[k] = dot
    return _once_p.bind(*primals), dots


def _transpose(cotangents: Sequence[Any], true: Any, *arrays: Any) -> list[Any]:
    del arrays
    return [None, *_once_p.bind(true, *map(ad.instantiate_zeros, cotangents))]


def _batched(args: Sequence[Any], axes: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    true, *arrays = args
    return _once_p.bind(true if axes[0] is None else true.all(), *arrays), axes[1:]


_once_p = Primitive("once")
_once_p.multiple_results = True
_once_p.def_impl(_once)
_once_p.def_abstract_eval(
    lambda true, *arrays: [ShapedArray(a.shape, a.dtype) for a in arrays]
)
ad.primitive_jvps[_once_p] = _jvp
ad.primitive_transposes[_once_p] = _transpose
batching.primitive_batchers[_once_p] = _batched
mlir.register_lowering(_once_p, mlir.lower_fun(_once, multiple_results=True))
