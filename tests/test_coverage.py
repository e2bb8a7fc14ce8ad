"""Every rule of the tracer is exercised by a network that agrees with finite ones."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from coverage_networks import TABLE, Covering, primitives

import widelimit as wl
from widelimit.trace import RULES, widths_in

SYNONYMS = (
    {"jit", "pjit"},
    {"remat2", "checkpoint", "remat"},
    {"copy", "copy_p"},
    {"custom_vjp_call", "custom_vjp_call_jaxpr"},
)
"""Names of one primitive in different versions of JAX."""

OLDER = (*SYNONYMS, {"split", "slice"}, {"stack", "concatenate"}, {"tile", "reshape"})
"""With what a function became before it had a primitive of its own."""

FAST = [name for name, net in TABLE.items() if net.fast]


@functools.cache
def primitives_of(name: str) -> set[str]:
    """The primitives of the network as it runs at a finite width."""
    net = TABLE[name]
    limit = wl.limit(net.f, net.params)
    sizes = {"n": 8, "m": 12}
    widths = {name: sizes[name] for name in widths_in(net.params)}
    found = []

    def draw(key: jax.Array) -> Any:
        f, theta = limit.at(key=key, **widths)
        found.append(f)
        return theta

    # Only shapes are asked for: nothing is drawn.
    theta = jax.eval_shape(draw, jax.random.key(0))
    return primitives(jax.make_jaxpr(found[0])(theta, jnp.asarray(net.x)))


def extended(names: set[str], groups: Iterable[set[str]]) -> set[str]:
    """The names, and the whole of every group that has one of them."""
    return names.union(*(group for group in groups if group & names))


def check(net: Covering, widths: tuple[int, ...], seeds: int) -> None:
    result = wl.limit(net.f, net.params).check(
        jnp.asarray(net.x), widths=widths, seeds=seeds
    )
    assert result.passed, str(result)


def test_every_rule_is_exercised() -> None:
    exercised = extended(set().union(*map(primitives_of, TABLE)), SYNONYMS)
    missing = sorted(set(RULES) - exercised)
    assert not missing, f"no network of the table uses {', '.join(missing)}"


@pytest.mark.parametrize("name", TABLE)
def test_network_contains_what_it_is_there_for(name: str) -> None:
    assert set(TABLE[name].rules) <= extended(primitives_of(name), OLDER)


@pytest.mark.parametrize("name", FAST)
def test_limit_agrees_with_finite_networks(name: str) -> None:
    check(TABLE[name], widths=(64, 256), seeds=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLE if name not in FAST])
def test_limit_agrees_with_more_finite_networks(name: str) -> None:
    check(TABLE[name], widths=(256,), seeds=24)
