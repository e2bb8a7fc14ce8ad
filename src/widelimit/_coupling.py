"""Whether inputs of a batch interact, found by running the network, not declared."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ._errors import InputError
from ._jax import Graph, is_concrete
from ._small import WIDTHS, small_network, small_widths
from .trace import trace_at


def coupled(f: Callable[..., Any], params: Any, x: Any) -> bool:
    """Whether changing one input of a batch changes the output of another.

    Args:
        f: the network.
        params: its declarations.
        x: inputs; when they are traced, others of their shape are used.
    """
    first, second, third = _three_inputs(x)
    for width in WIDTHS:
        try:
            # Now, even where the caller is being traced: only structure is asked.
            with jax.ensure_compile_time_eval():
                run, theta = small_network(f, params, small_widths(params, width))
                before = [run(theta, _pair(first, y)) for y in (second, third)]
                after = [run(theta, _pair(y, first)) for y in (second, third)]
        except (TypeError, ValueError, ArithmeticError, LookupError):
            continue
        if not all(hasattr(y, "shape") and np.ndim(y) for y in (*before, *after)):
            return False
        # Whether the first output reads a later input, or the second an earlier one.
        return not all(
            np.array_equal(a[row], b[row], equal_nan=True)
            for row, (a, b) in enumerate((before, after))
        )
    # It fails at every width: the compiler will say where.
    return False


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
    rolled = np.roll(row, 1)
    if not np.array_equal(rolled, row):
        return rolled
    return np.zeros_like(row) if row.any() else np.ones_like(row)


def _pair(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda p, q: np.stack([p, q]), a, b)


def fresh_draws(f: Callable[..., Any], params: Any, x: Any) -> tuple[bool, ...]:
    """For every draw of random bits inside the network: is it fresh for each input?

    A draw whose size grows with the batch is; one that does not is shared.
    """
    sizes = []
    for rows in (1, 2):
        struct = jax.tree.map(
            lambda a, r=rows: jax.ShapeDtypeStruct((r, *a.shape[1:]), a.dtype), x
        )
        try:
            graph = trace_at(f, params, struct, small_widths(params, 20160))
        except Exception:
            # The compiler meets the same failure, and says where it is.
            return ()
        sizes.append(_draw_sizes(graph))
    if len(sizes[0]) != len(sizes[1]):
        raise InputError(
            "The number of random draws inside the network depends on the batch."
        )
    return tuple(b > a for a, b in zip(*sizes, strict=True))


def _draw_sizes(graph: Graph) -> list[int]:
    sizes: list[int] = []
    for e in graph.equations:
        if e.name == "random_bits":
            sizes.append(int(np.prod(e.outputs[0].shape)))
        repeats = e.params["length"] if e.name == "scan" else 1
        for inner in e.graphs:
            sizes += _draw_sizes(inner) * repeats
    return sizes
