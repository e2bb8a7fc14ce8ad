"""Whether the inputs of a network are differentiated apart.

Derivatives are part of the graph that says so, since a function may have a rule for
them that is not that of what it computes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from .._jax import Graph
from ..trace import axes_apart
from ._variables import Variables


def independent(
    f: Callable[[Variables, Any], Any], variables: Variables, x: Any
) -> tuple[int, Any, dict[str, Any]] | None:
    """The `vmap_axes` of a network whose inputs stand along axis 0 and do not interact.

    Args:
        f: the network.
        variables: what it is differentiated by.
        x: inputs along axis 0 of every leaf.

    Returns:
        The axes in `x` and in the outputs, if every output depends on the entries of
        `x` one by one, and so do its derivatives by the variables. None if not, or if
        that is not seen.
    """
    leaves, tree = jax.tree.flatten(x)
    shapes = [tuple(np.shape(leaf)) for leaf in leaves]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        return None
    structs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in variables.items()}

    def derivative(variables: Variables, tangents: Variables, leaves: Any) -> Any:
        of_leaves = tree.unflatten(leaves)
        return jax.jvp(lambda v: f(v, of_leaves), (variables,), (tangents,))

    def traced(size: int) -> tuple[Graph, Any]:
        inputs = [
            jax.ShapeDtypeStruct((size, *shape[1:]), jnp.result_type(leaf))
            for shape, leaf in zip(shapes, leaves, strict=True)
        ]
        args = (structs, structs, inputs)
        return _jax.trace(derivative, *args, x64=_jax.x64_enabled(), sources=False)

    size = max(2, sizes.pop())
    try:
        (batch, (outputs, _)), (one, _) = traced(size), traced(1)
    except Exception:  # of the user's function: it may need numbers, or more inputs
        return None
    tree = jax.tree.structure(outputs)
    axes = (axes_apart(batch, one, size) or [None])[: tree.num_leaves]
    return None if None in axes else (0, tree.unflatten(axes), {})
