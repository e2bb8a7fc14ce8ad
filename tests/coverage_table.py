"""The table that the coverage networks are entered into, and what they share."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

import widelimit as wl

Params = Mapping[str, Any]
Function = Callable[[Params, Array], Array]

n = wl.width("n")
m = wl.width("m", ratio=1.5)


@dataclasses.dataclass(frozen=True)
class Covering:
    """A small network that exercises rules of the tracer.

    Attributes:
        name: its name in the table.
        f: the network, `f(params, x)`.
        params: its parameters.
        x: the input that it is checked at.
        rules: the primitives that it is there for; its jaxpr contains them.
        fast: whether it is checked in the fast tests too.
    """

    name: str
    f: Function
    params: Params
    x: np.ndarray
    rules: tuple[str, ...]
    fast: bool = False


TABLE: dict[str, Covering] = {}

_random = np.random.default_rng(20)
FLAT = _random.normal(size=(3, 4))
SEQUENCE = _random.normal(size=(2, 5, 3))
IMAGE = _random.normal(size=(2, 4, 4, 2))
VOLUME = _random.normal(size=(2, 2, 3, 3, 2))
TOKENS = np.array([[0, 2, 1, 2], [1, 1, 0, 3], [3, 0, 2, 2]])


def covers(
    *rules: str, x: np.ndarray = FLAT, fast: bool = False, **params: Any
) -> Callable[[Function], Function]:
    """Enter the decorated network into the table."""

    def add(f: Function) -> Function:
        add_network(f.__name__, f, params, x, rules, fast)
        return f

    return add


def add_network(
    name: str,
    f: Function,
    params: Params,
    x: np.ndarray,
    rules: tuple[str, ...],
    fast: bool = False,
) -> None:
    """Enter a network into the table under a name of its own."""
    if name in TABLE:
        raise ValueError(f"two networks are called {name}")
    TABLE[name] = Covering(name, f, params, x, rules, fast)


def apply(weight: Array, x: Array) -> Array:
    """A matrix with its 1/sqrt(fan-in), on the last axis."""
    return x @ weight / math.sqrt(x.shape[-1])


def readout(p: Params, h: Array) -> Array:
    """The last layer; what it reads is tapped, so that `check` compares it too."""
    return apply(p["v"], wl.tap("last", h))


def primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives in a jaxpr and in the jaxprs inside it."""
    return {equation.primitive.name for equation in _equations(jaxpr)}


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if hasattr(getattr(leaf, "jaxpr", leaf), "eqns"):
                yield from _equations(leaf)
