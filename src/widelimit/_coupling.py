"""Whether inputs of a batch interact, found by running the network, not declared."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError
from ._jax import Graph, is_concrete
from ._small import in_precision, small_network, small_scales, small_widths
from .trace import axes_apart, trace_at, trial_widths

# Of networks in single precision, whose parameters are of order one.
_ROUNDED = 1e-4


class Traces(NamedTuple):
    """A network as JAX traces it at two inputs and at one; None where that fails.

    Its widths are the first of `trial_widths`.
    """

    two: Graph | None
    one: Graph | None


def traces(f: Callable[..., Any], params: Any, x: Any) -> Traces:
    """The network at two inputs, and at one.

    Where one fails the compiler meets the same failure, and says where it is.
    """
    two, one = (_traced(f, params, x, rows) for rows in (2, 1))
    return Traces(two, one)


def coupled(f: Callable[..., Any], params: Any, x: Any, found: Traces) -> bool:
    """Whether an output of a batch depends on more than its own input.

    That is another input, their number, or the place of its own.

    Args:
        f: the network.
        params: its declarations.
        x: inputs; when they are traced, others of their shape are used.
        found: its `traces`.

    Raises:
        InputError: it cannot be found out, as the network runs at no small width.
    """
    two, one = found
    if two is not None and one is not None:
        axes = axes_apart(two, one, 2, fresh=True)
        if axes is not None and set(axes) <= {0, None}:
            return False
    elif two is not None:
        return True
    # Draws of its own differ from place to place, and are no interaction.
    placed = two is not None and not _draw_sizes(two)
    inputs, problem = _three_inputs(x), None
    for width, dtype in itertools.product(small_scales(params), _dtypes(x)):
        try:
            # Now, even where the caller is being traced: only structure is asked.
            with jax.ensure_compile_time_eval():
                small = small_widths(params, width)
                return _depends(f, params, small, inputs, dtype, placed)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            problem = problem or error
    if two is None:
        return False
    raise InputError(
        "Whether the inputs of a batch interact is found out by running the network at "
        f"widths {', '.join(map(str, small_scales(params)))}, and it fails at all of "
        f"them; first: {problem}"
    ) from problem


def _depends(
    f: Callable[..., Any],
    params: Any,
    widths: Mapping[str, int],
    inputs: tuple[Any, Any, Any],
    dtype: Any,
    placed: bool,
) -> bool:
    """Whether the first output reads a later input, or the second an earlier one.

    If `placed`, also whether they read their places, or how many inputs there are.
    """
    first, second, third = (
        jax.tree.map(lambda a: in_precision(a, dtype), x) for x in inputs
    )
    run, theta = small_network(f, params, widths, dtype)
    before = [run(theta, _stack(first, y)) for y in (second, third)]
    after = [run(theta, _stack(y, first)) for y in (second, third)]
    if not all(hasattr(y, "shape") and np.ndim(y) for y in (*before, *after)):
        return False
    if not all(
        np.array_equal(a[row], b[row], equal_nan=True)
        for row, (a, b) in enumerate((before, after))
    ):
        return True
    if not placed:
        return False
    alone = run(theta, _stack(first))[0]
    # Products of other numbers of rows are rounded in other ways.
    close = functools.partial(
        np.allclose, rtol=_ROUNDED, atol=_ROUNDED * np.abs(alone).max(initial=0),
        equal_nan=True,
    )  # fmt: skip
    return not (close(before[0][0], alone) and close(after[0][1], alone))


def _dtypes(x: Any) -> list[Any]:
    """What parameters and data may be: some operations want both alike."""
    floating = [
        np.dtype(a.dtype)
        for a in jax.tree.leaves(x)
        if np.issubdtype(a.dtype, np.floating)
    ]
    default = np.dtype(jnp.result_type(float))
    return list(dict.fromkeys([*floating, default, np.dtype(np.float32)]))


def _traced(f: Callable[..., Any], params: Any, x: Any, rows: int) -> Graph | None:
    """The network as JAX traces it at this number of inputs; None if it fails."""
    struct = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), x
    )
    try:
        return trace_at(f, params, struct, trial_widths(params)[0])
    except Exception:
        return None


def _three_inputs(x: Any) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)

    def row(a: Any, which: int) -> np.ndarray:
        if is_concrete(a) and (which == 0 or not np.issubdtype(a.dtype, np.floating)):
            array = np.asarray(a)
            return array[min(which, len(array) - 1)]
        if np.issubdtype(a.dtype, np.floating):
            return rng.standard_normal(a.shape[1:]).astype(np.float32)
        return np.full(a.shape[1:], which % 2).astype(a.dtype)

    first, second, third = (jax.tree.map(lambda a, w=w: row(a, w), x) for w in range(3))
    same = all(
        np.array_equal(b, c)
        for b, c in zip(jax.tree.leaves(second), jax.tree.leaves(third), strict=True)
    )
    if same:
        # Few inputs, all of them labels: any others will do.
        third = jax.tree.map(_another, second)
    return first, second, third


def _another(row: np.ndarray) -> np.ndarray:
    """A row of labels that is not `row`."""
    # Not their order: a bag of labels would be the same.
    first = np.full_like(row, row.flat[0] if row.size else 0)
    if not np.array_equal(first, row):
        return first
    return np.zeros_like(row) if row.any() else np.ones_like(row)


def _stack(*rows: Any) -> Any:
    return jax.tree.map(lambda *a: np.stack(a), *rows)


def fresh_draws(found: Traces) -> tuple[bool, ...]:
    """For every draw of random bits inside the network: is it fresh for each input?

    A draw whose size grows with the batch is; one that does not is shared.

    Args:
        found: the network's `traces`.
    """
    if found.two is None or found.one is None:
        return ()
    two, one = _draw_sizes(found.two), _draw_sizes(found.one)
    if len(one) != len(two):
        raise InputError(
            "The number of random draws inside the network depends on the batch."
        )
    return tuple(b > a for a, b in zip(one, two, strict=True))


def _draw_sizes(graph: Graph) -> list[int]:
    sizes: list[int] = []
    for e in graph.equations:
        if e.name == "random_bits":
            sizes.append(int(np.prod(e.outputs[0].shape)))
        repeats = e.params["length"] if e.name == "scan" else 1
        for inner in e.graphs:
            sizes += _draw_sizes(inner) * repeats
    return sizes
