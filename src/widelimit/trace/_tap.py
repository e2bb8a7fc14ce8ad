"""Taps: names for quantities inside a network."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError

TAP_PREFIX = "widelimit_tap:"
"""A call equation whose name starts so marks a tapped value in a jaxpr."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def tap(name: str, x: Any) -> jax.Array:
    """Name a quantity, and return it unchanged.

    Works in jit, vmap, grad and scan. Its statistics in the limit, and those of finite
    networks, are reported under the name; names are unique in a network. Inside scan
    the time axis comes first, after the batch axis.

    Args:
        name: letters, digits, `_` and `.`, not starting with a digit or a dot.
        x: an array.

    Raises:
        InputError: `name` is no such name, or `x` is not one array.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "output":
        raise InputError(
            "The name of a tap should be made of letters, digits, `_` and `.`, start "
            f"with a letter, and not be 'output'; got {name!r}."
        )
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError):
        raise InputError(
            f"`tap({name!r}, x)` takes one array, got {type(x).__name__}: tap its "
            "arrays one by one, under different names."
        ) from None
    return _marker(name)(array)


@functools.lru_cache(maxsize=1024)
def _marker(name: str) -> Callable[[jax.Array], jax.Array]:
    def identity(x: jax.Array) -> jax.Array:
        return x

    identity.__name__ = identity.__qualname__ = TAP_PREFIX + name
    marked = jax.jit(identity)

    @jax.custom_jvp
    def marker(x: jax.Array) -> jax.Array:
        return marked(x)

    # Without a rule the tangent would be marked as well, under the same name.
    @marker.defjvp
    def _rule(primals: Any, tangents: Any) -> Any:
        return marked(*primals), tangents[0]

    return marker
