"""NumPy in float64 for numbers on the CPU, JAX for traced arrays and accelerators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError
from .._jax import is_concrete
from ._check import double


def namespace(*arrays: Any) -> Any:
    """Where functions of these arrays are computed: `numpy` or `jax.numpy`.

    NumPy computes in float64 whether or not JAX does, and compiles nothing. Arrays that
    are traced, so that results can be differentiated and compiled, and arrays that live
    on an accelerator, stay with JAX.

    Args:
        *arrays: arrays, numbers, or None.
    """
    leaves = jax.tree_util.tree_leaves(arrays)
    return np if all(_on_host(leaf) for leaf in leaves) else jnp


def _on_host(x: Any) -> bool:
    if not isinstance(x, jax.Array):
        return True
    return is_concrete(x) and all(d.platform == "cpu" for d in x.devices())


def real(xp: Any, name: str, x: Any, *, infinite: bool = False) -> Any:
    """An array in the widest real type there is: float64, or float32 in JAX without it.

    Args:
        xp: where to.
        name: for messages.
        x: any array of numbers.
        infinite: whether infinities are numbers.

    Raises:
        InputError: it is complex, not numeric, or known and not finite.
    """
    if _on_host(x):
        x = double(name, x, infinite=infinite)
    if xp is np:
        return x
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise InputError(f"`{name}` has type {x.dtype}; real numbers were expected.")
    array = jnp.asarray(x, jnp.result_type(float))
    if is_concrete(array) and not isinstance(x, np.ndarray):
        good = jnp.isnan(array) == 0 if infinite else jnp.isfinite(array)
        if not bool(good.all()):
            double(name, array, infinite=infinite)  # says which entries
    return array


def dtype_of(k: Any) -> Any:
    """The type of predictions from a kernel: its own, if that has fractions."""
    dtype = jnp.result_type(k)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def positive(name: str, x: Any, *, zero: bool = False) -> Any:
    """A number above zero, or also zero; one that is traced is taken as it is.

    Raises:
        InputError: it is another number, or none.
    """
    if not is_concrete(x):
        return x
    try:
        value = float(x)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        what = "zero or more" if zero else "above zero"
        raise InputError(f"{name} should be a finite number {what}, got {x!r}.")
    return value


def broadcast(xp: Any, name: str, x: Any, shape: tuple[int, ...]) -> Any:
    """An array or a number as an array of `shape`.

    Raises:
        ShapeMismatchError: it has another shape.
        InputError: it has entries that are no numbers.
    """
    array = real(xp, name, x)
    if array.ndim == 0 or tuple(array.shape) == shape:
        return xp.broadcast_to(array, shape)
    raise ShapeMismatchError(
        f"`{name}` should be a number or have shape {shape}, got shape "
        f"{tuple(array.shape)}."
    )
