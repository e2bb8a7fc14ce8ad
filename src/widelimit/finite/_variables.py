"""The parameters that a function may be differentiated by."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Variables = dict[str, Any]
"""Arrays of floating or complex type, by name."""


def split(params: Any) -> tuple[Variables, Callable[[Mapping[str, Any]], Any]]:
    """The leaves that a function may be differentiated by, and how to put them back.

    Args:
        params: a pytree; leaves that are not of a floating or complex type (integers,
            random keys) are held fixed.

    Returns:
        Arrays by name, and the function that makes the pytree from them.
    """
    leaves, tree = jax.tree.flatten(params)
    variables = {
        str(i): jnp.asarray(leaf) for i, leaf in enumerate(leaves) if is_inexact(leaf)
    }

    def join(variables: Mapping[str, Any]) -> Any:
        return tree.unflatten(
            variables.get(str(i), leaf) for i, leaf in enumerate(leaves)
        )

    return variables, join


def is_inexact(leaf: Any) -> bool:
    """Whether a value is of a floating or complex type."""
    if hasattr(leaf, "dtype"):
        return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
    return isinstance(leaf, float | complex)
