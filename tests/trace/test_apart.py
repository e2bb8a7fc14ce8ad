"""Rows that are seen to be apart by structure are apart in numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_networks import TABLE
from hypothesis import given, settings
from hypothesis import strategies as st

from widelimit import _jax
from widelimit._coupling import Traces, coupled, traces
from widelimit._networks import struct_of
from widelimit.trace import axes_apart

RNG = np.random.default_rng(0)
PLAIN = (
    "recurrent_network",
    "layer_normalisation",
    "convolution_in_one_dimension",
    "embedding",
)


def seen_apart(f: Any, *x: np.ndarray) -> bool:
    def traced(rows: int) -> _jax.Graph:
        given = (jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for a in x)
        return _jax.trace(f, *given)[0]

    try:
        one = traced(1)
    except (TypeError, ValueError):  # what is made for one number of rows
        return False
    axes = axes_apart(traced(ROWS), one, ROWS)
    return axes is not None and set(axes) <= {0, None}


def interact(f: Any, x: np.ndarray) -> bool:
    """Whether a row of the output changes with more than its own input."""
    f = jax.jit(f)
    before = np.asarray(f(x))
    if before.shape[:1] != x.shape[:1]:
        return True
    for i in range(len(x)):
        try:
            alone = np.asarray(f(x[i : i + 1]))[0]
        except (TypeError, ValueError):  # made for one number of rows
            return True
        if alone.shape != before.shape[1:] or not np.allclose(before[i], alone):
            return True
    for i in range(len(x)):
        changed = x.copy()
        changed[i] = 1.5 * changed[i] + 0.3
        others = np.arange(len(x)) != i
        if not np.array_equal(before[others], np.asarray(f(changed))[others]):
            return True
    return False


# --------------------------------------------------------------- random moves of axes
ROWS = 3


def scanned(a: Any) -> Any:
    """Sums along the first axis, as a loop carries them on."""
    return jax.lax.scan(lambda t, row: (t + row, t * row), jnp.zeros(a.shape[1:]), a)[1]


def mapped(a: Any) -> Any:
    """A loop over the second axis, of which no step reads another row."""
    start = jnp.zeros(a.shape[:1] + a.shape[2:])
    last, each = jax.lax.scan(
        lambda t, row: (t + row, jnp.sin(t + row)), start, jnp.moveaxis(a, 1, 0)
    )
    return last[:, None] + jnp.moveaxis(each, 0, 1)


def with_axis(f: Any) -> Any:
    return lambda a, axis: f(a, axis % a.ndim)


MOVES = {
    "transpose": lambda a, k: jnp.moveaxis(a, k % a.ndim, 0),
    "back": lambda a, k: jnp.moveaxis(a, 0, k % a.ndim),
    "flatten": lambda a, k: a.reshape(-1) if k % 2 else a.reshape(-1, a.shape[-1]),
    "pairs": lambda a, k: a.reshape(ROWS, -1) if a.size % ROWS == 0 else a,
    "new axis": lambda a, k: jnp.expand_dims(a, k % (a.ndim + 1)),
    "repeat": lambda a, k: jnp.broadcast_to(a, (ROWS, *a.shape)),
    "sum": with_axis(lambda a, i: a.sum(i)),
    "max": with_axis(lambda a, i: a.max(i)),
    "argmax": with_axis(lambda a, i: a.argmax(i) * 1.0),
    "cumsum": with_axis(lambda a, i: jnp.cumsum(a, i)),
    "sort": with_axis(lambda a, i: jnp.sort(a, i)),
    "flip": with_axis(lambda a, i: jnp.flip(a, i)),
    "roll": with_axis(lambda a, i: jnp.roll(a, 1, i)),
    "softmax": with_axis(lambda a, i: jax.nn.softmax(a, i)),
    "centred": with_axis(lambda a, i: a - a.mean(i, keepdims=True)),
    "take": with_axis(lambda a, i: jnp.take(a, np.arange(a.shape[i])[::-1], i)),
    "first": with_axis(lambda a, i: a + jax.lax.slice_in_dim(a, 0, 1, axis=i)),
    "pad": with_axis(lambda a, i: jnp.pad(a, [(k == i, 0) for k in range(a.ndim)])),
    "twice": with_axis(lambda a, i: jnp.concatenate([a, jnp.sin(a)], i)),
    "product": lambda a, k: a @ np.linspace(-1, 1, 3 * a.shape[-1]).reshape(-1, 3),
    "products": lambda a, k: jnp.tensordot(a, a, ((k % a.ndim,), (k % a.ndim,))),
    "outer": lambda a, k: jnp.einsum("i...,i...->...i", a, a),
    "window": with_axis(
        lambda a, i: jax.lax.reduce_window(
            a, 0.0, jax.lax.add, [1 + (k == i) for k in range(a.ndim)], [1] * a.ndim,
            "SAME",
        )
    ),
    "scan": lambda a, k: scanned(a),
    "map": lambda a, k: mapped(a) if a.ndim > 1 else a,
    "square": lambda a, k: a * a + jnp.tanh(a),
}  # fmt: skip
LOOKUP = np.arange(ROWS * 4.0).reshape(ROWS, 4) ** 2


def label(a: Any) -> Any:
    """A whole number for every row."""
    return jnp.floor(10 * jnp.abs(a[:, 0, 0])).astype(int) % 4


CHAINS = st.lists(
    st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 2)), min_size=1, max_size=5
)


def check(chain: list[tuple[str, int]]) -> None:
    def f(a: Any) -> Any:
        for name, axis in chain:
            if a.ndim and a.ndim < 5 and a.size < 2000:
                a = MOVES[name](a, axis)
        return a

    x = RNG.normal(size=(ROWS, 2, ROWS))
    if seen_apart(f, x):
        assert not interact(f, x)


@given(CHAINS)
@settings(max_examples=60, deadline=None)
def test_rows_that_interact_are_never_seen_apart(chain) -> None:
    check(chain)


@pytest.mark.slow
@given(CHAINS)
@settings(max_examples=600, deadline=None)
def test_many_rows_that_interact_are_never_seen_apart(chain) -> None:
    check(chain)


@pytest.mark.parametrize("name", MOVES)
def test_every_move_by_itself(name) -> None:
    for axis in (0, 1, 2):
        check([(name, axis)])
        check([("square", 0), (name, axis), ("sum", 1)])


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.sin(x).sum((1, 2)),
        lambda x: jax.nn.softmax(x.reshape(len(x), -1), -1),
        lambda x: jnp.swapaxes(jnp.swapaxes(x, 0, 1) * 2.0, 0, 1),
        lambda x: jnp.einsum("bij,bkj->bik", x, x),
        lambda x: jnp.concatenate([x, x[:, ::-1]], 1) @ np.ones((ROWS, 4)),
        lambda x: mapped(x),
        lambda x: jax.vmap(lambda row: row @ row.T)(x),
        lambda x: jnp.sort(x, axis=1)[:, :1],
        lambda x: jax.jit(jnp.tanh)(x),
        lambda x: jnp.take(LOOKUP, label(x), axis=1).T,
        lambda x: jnp.asarray(LOOKUP.T)[label(x)],
        lambda x: x[:, :, np.array([2, 0])] * jnp.arange(2.0),
        lambda x: (
            jnp.where(x > 0, x, jnp.zeros(x.shape)) + jnp.ones(len(x))[:, None, None]
        ),
    ],
)
def test_what_is_seen(f) -> None:
    x = RNG.normal(size=(ROWS, 2, ROWS))
    assert not interact(f, x)
    assert seen_apart(f, x)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 0.1),
        lambda x: jax.nn.softmax(x, 0),
        lambda x: jnp.swapaxes(x, 0, 2),
        lambda x: x[::-1],
        lambda x: scanned(x),
        lambda x: x.reshape(-1)[: ROWS * 2].reshape(ROWS, 2),
        lambda x: jnp.einsum("bij,cij->bc", x, x),
        lambda x: x / jnp.abs(x).max(),
        lambda x: jnp.swapaxes(x, 0, 2).reshape(ROWS, -1),
        lambda x: jnp.take(LOOKUP, label(x), axis=1),
        lambda x: jax.lax.scan(lambda t, _: (t - t.mean(0), t), x, None, 2)[0],
        lambda x: jax.lax.while_loop(lambda t: t.max() < 9, lambda t: 2 * t, x**2),
        lambda x: x * jnp.arange(len(x))[:, None, None],
        lambda x: x + jnp.linspace(0, 1, len(x))[:, None, None],
        lambda x: x * np.eye(len(x)).cumsum(0).sum(1)[:, None, None],
        lambda x: x / len(x),
        lambda x: jnp.tanh(x * jnp.ones((len(x), 1)).sum()),
    ],
)
def test_what_interacts(f) -> None:
    x = RNG.normal(size=(ROWS, 2, ROWS))
    assert interact(f, x)
    assert not seen_apart(f, x)


# -------------------------------------------------------------------------- networks
def is_seen_apart(found: Traces) -> bool:
    if found.two is None or found.one is None:
        return False
    axes = axes_apart(found.two, found.one, 2, fresh=True)
    return axes is not None and set(axes) <= {0, None}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_networks_are_seen_apart(name) -> None:
    net = TABLE[name]
    assert is_seen_apart(traces(net.f, net.params, struct_of(net.x)))


@pytest.mark.slow
def test_no_network_of_the_table_interacts_that_is_seen_apart() -> None:
    seen = []
    for name, net in TABLE.items():
        if is_seen_apart(traces(net.f, net.params, struct_of(net.x))):
            # By running it, as no graph is given.
            assert not coupled(net.f, net.params, net.x, Traces(None, None)), name
            seen.append(name)
    assert len(seen) > 0.6 * len(TABLE)
