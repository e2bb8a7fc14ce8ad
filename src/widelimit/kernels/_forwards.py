"""Derivatives of kernels by few numbers, which go forwards.

A gradient goes backwards: it is as dear for one standard deviation as for all inputs,
and needs again all that was computed. Along with the kernels, their derivative by one
number costs less than the kernels once more. What is then left of a gradient is a
product with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree

from .._jax import is_concrete

# Of so many numbers derivatives go forwards.
_FEW = 3


def forwards(f: Callable[..., Any], make: Callable[[], Any], *args: Any) -> Any:
    """f(make(), *args); its derivatives by few numbers of `make` go forwards.

    Args:
        f: a differentiable function.
        make: makes what is shared, of arrays that it has closed over.
        *args: pytrees of arrays.
    """
    shared = make()
    if all(map(is_concrete, jax.tree.leaves(shared))):
        return f(shared, *args)
    # A number that is used twice is one number.
    made, numbers = jax.closure_convert(make)

    @jax.custom_jvp
    def value(numbers: Any, args: Any) -> Any:
        return f(made(*numbers), *args)

    def derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(primals)
        moved = {
            k: t
            for k, t in enumerate(tree.flatten_up_to(tangents))
            if not isinstance(t, SymbolicZero)
        }

        def of_moved(*given: Any) -> Any:
            new = dict(zip(moved, given, strict=True))
            at, args = tree.unflatten(new.get(k, a) for k, a in enumerate(leaves))
            return f(made(*at), *args)

        at, along = [leaves[k] for k in moved], list(moved.values())
        few = sum(np.size(a) for a in at) <= _FEW
        if not few or any(k >= len(numbers) for k in moved):
            return jax.jvp(of_moved, at, along)
        return _by_columns(of_moved, at, along)

    value.defjvp(derivative, symbolic_zeros=True)
    return value(numbers, args)


def _by_columns(f: Callable[..., Any], at: list[Any], along: list[Any]) -> Any:
    """The value, and its derivative as a product of the derivatives by every number."""
    flat, unflat = ravel_pytree(at)
    numbers, _ = ravel_pytree(along)
    value, total = None, None
    for k in range(flat.size):
        unit = jnp.zeros_like(flat).at[k].set(1)
        value, column = jax.jvp(lambda a: f(*unflat(a)), (flat,), (unit,))
        part = jax.tree.map(lambda c, k=k: c * numbers[k].astype(c.dtype), column)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return value, total
