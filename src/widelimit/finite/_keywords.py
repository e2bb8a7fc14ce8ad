"""Keyword arguments of a function, for either batch of inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError

RNG = "rng"
"""The argument that is a random key."""


def is_absent(x2: Any) -> bool:
    """Whether there is no second batch: None, or a pytree of nothing else."""
    return not jax.tree.leaves(x2)


def of_both(
    kwargs: Mapping[str, Any], x1: Any, x2: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of the first and of the second batch.

    A pair `(a, b)` is one value for each batch, anything else is for both. A random
    key `rng` is the same for both where the batches are equal, and another one
    otherwise, so that a network with dropout is one draw on equal inputs.

    Args:
        kwargs: by name.
        x1: the first batch.
        x2: the second; `x1` when None.
    """
    one, two = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, tuple) and len(value) == 2:
            one[name], two[name] = value
        else:
            one[name] = two[name] = value
        if name == RNG and value is not None and not is_absent(x2):
            one[name], two[name] = _keys(one[name], two[name], equal(x1, x2))
    return one, two


def equal(x1: Any, x2: Any) -> Any:
    """Whether two pytrees are equal: a bool, or an array of one where it is traced."""
    one, tree1 = jax.tree.flatten(x1)
    two, tree2 = jax.tree.flatten(x2)
    if all(a is b for a, b in zip(one, two, strict=False)) and tree1 == tree2:
        return True
    if tree1 != tree2 or any(
        jnp.shape(a) != jnp.shape(b) for a, b in zip(one, two, strict=True)
    ):
        return False
    parts = [jnp.all(jnp.equal(a, b)) for a, b in zip(one, two, strict=True)]
    return jnp.all(jnp.stack(parts))


def _keys(key1: Any, key2: Any, same: Any) -> tuple[Any, Any]:
    """Keys that are equal where the batches are, and only there."""
    for key in (key1, key2):
        if not hasattr(key, "dtype"):
            raise InputError(
                f"`{RNG}` should be a random key, or a pair of them for `x1` and `x2`; "
                f"got {type(key).__name__}."
            )
    other = _choose(equal(key1, key2), jax.random.fold_in(key2, 1), key2)
    return key1, _choose(same, key1, other)


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(condition, bool):
        return yes if condition else no
    return jnp.where(condition, yes, no)
