"""Functions that the compiler takes as a whole, under a name."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..scalar import OPS

GIVEN_PREFIX = "widelimit_given:"
"""A call equation whose name starts so marks a named function in a jaxpr."""


@functools.lru_cache(maxsize=1024)
def given(name: str) -> Callable[[Any], jax.Array]:
    """The function of a name from `scalar.define`, on arrays, to be used in a network.

    In the limit it is that operation; at finite width the function itself.
    """
    fn = OPS[name][1]

    def named(x: Any) -> Any:
        return fn(x)

    named.__name__ = named.__qualname__ = GIVEN_PREFIX + name
    return jax.jit(named)
