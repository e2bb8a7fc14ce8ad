"""Whether inputs of a batch interact, found by running the network, not declared."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError
from ._jax import Graph, is_concrete
from ._rows import rows_are_apart
from ._small import in_precision, small_network, small_scales, small_widths
from .trace import trace_at


def two_inputs(f: Callable[..., Any], params: Any, x: Any) -> Graph | None:
    """The network as JAX traces it at two inputs; None if it fails.

    The compiler then meets the same failure, and says where it is.
    """
    return _traced(f, params, x, rows=2)


def coupled(f: Callable[..., Any], params: Any, x: Any, graph: Graph | None) -> bool:
    """Whether changing one input of a batch changes the output of another.

    Args:
        f: the network.
        params: its declarations.
        x: inputs; when they are traced, others of their shape are used.
        graph: that of `two_inputs`.

    Raises:
        InputError: it cannot be found out, as the network runs at no small width.
    """
    if graph is not None and rows_are_apart(graph, len(jax.tree.leaves(x))):
        return False
    inputs, problem = _three_inputs(x), None
    for width, dtype in itertools.product(small_scales(params), _dtypes(x)):
        try:
            # Now, even where the caller is being traced: only structure is asked.
            with jax.ensure_compile_time_eval():
                return _depends(f, params, small_widths(params, width), inputs, dtype)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            problem = problem or error
    if graph is None:
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
) -> bool:
    """Whether the first output reads a later input, or the second an earlier one."""
    first, second, third = (
        jax.tree.map(lambda a: in_precision(a, dtype), x) for x in inputs
    )
    run, theta = small_network(f, params, widths, dtype)
    before = [run(theta, _pair(first, y)) for y in (second, third)]
    after = [run(theta, _pair(y, first)) for y in (second, third)]
    if not all(hasattr(y, "shape") and np.ndim(y) for y in (*before, *after)):
        return False
    return not all(
        np.array_equal(a[row], b[row], equal_nan=True)
        for row, (a, b) in enumerate((before, after))
    )


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
        return trace_at(f, params, struct, small_widths(params, 20160))
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


def _pair(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda p, q: np.stack([p, q]), a, b)


def fresh_draws(
    f: Callable[..., Any], params: Any, x: Any, graph: Graph | None
) -> tuple[bool, ...]:
    """For every draw of random bits inside the network: is it fresh for each input?

    A draw whose size grows with the batch is; one that does not is shared.

    Args:
        f: the network.
        params: its declarations.
        x: inputs, or their shapes.
        graph: that of `two_inputs`.
    """
    two = () if graph is None else _draw_sizes(graph)
    alone = _traced(f, params, x, rows=1) if two else None
    if alone is None:
        return ()
    one = _draw_sizes(alone)
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
