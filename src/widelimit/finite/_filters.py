"""Gradients by the filters of convolutions as products of matrices.

JAX makes such a gradient a convolution whose filter is as large as the image, for which
XLA takes several times as long as for the product of the patches of the image and the
gradient of the output.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import lax

from .. import _jax
from ..program import AxisMap, read_at
from ..trace import window


def by_products(graph: _jax.Graph, rows: int) -> _jax.Graph:
    """The graph of a backward pass, with products for gradients by filters.

    Args:
        graph: of one backward pass.
        rows: how many there are, for which patches are made once. They are not where
            that takes more memory than the gradients of the outputs.
    """

    def replaced(e: _jax.Equation) -> _jax.Equation:
        if e.name != "conv_general_dilated" or not _is_of_filters(e, rows):
            return e
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in e.inputs]
        inner, _ = _jax.trace(
            lambda lhs, rhs: _product(e, lhs, rhs), *structs,
            x64=_jax.x64_enabled(),
        )  # fmt: skip
        return dataclasses.replace(e, name="jit", params={"jaxpr": inner}, raw={})

    equations = tuple(map(replaced, graph.equations))
    return _jax.inlined(dataclasses.replace(graph, equations=equations), ("jit",))


def _is_of_filters(e: _jax.Equation, rows: int) -> bool:
    p, (lhs, rhs) = e.params, e.inputs
    if p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return False
    numbers, out = p["dimension_numbers"], e.outputs[0].shape
    taps = math.prod(out[a] for a in numbers.out_spec[2:])
    places = math.prod(rhs.shape[a] for a in numbers.rhs_spec[2:])
    patches = taps * lhs.shape[numbers.lhs_spec[0]]
    return taps < places and patches <= rows * rhs.shape[numbers.rhs_spec[0]]


def _product(e: _jax.Equation, lhs: Any, rhs: Any) -> Any:
    """A convolution as a product of the patches that it reads."""
    p, out_shape = e.params, e.outputs[0].shape
    numbers = p["dimension_numbers"]
    batch, feature, *space = numbers.lhs_spec
    rank = len(space)
    # Letters: places of the window, channels, places of the result, inputs. As images
    # often stand in memory, so that the patches are not transposed.
    maps: list[Any] = [None] * lhs.ndim
    maps[feature] = AxisMap.identity(rank, lhs.shape[feature])
    maps[batch] = AxisMap.identity(2 * rank + 1, lhs.shape[batch])
    for i, a in enumerate(space):
        table = window(
            out_shape[numbers.out_spec[2 + i]],
            rhs.shape[numbers.rhs_spec[2 + i]],
            p["window_strides"][i],
            p["rhs_dilation"][i],
            p["padding"][i][0],
            p["lhs_dilation"][i],
            lhs.shape[a],
        )
        maps[a] = AxisMap((i, rank + 1 + i), table.T)
    patches = read_at(lhs, maps, 2 * rank + 2)
    out, into, *taps = numbers.rhs_spec
    filters = rhs.transpose(*taps, into, out)
    summed = tuple(range(rank + 1))
    found = lax.dot_general(
        filters, patches, ((summed, summed), ((), ())), precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )  # fmt: skip
    # Axes: channels, places, inputs.
    order = (numbers.out_spec[1], *numbers.out_spec[2:], numbers.out_spec[0])
    return found.transpose([order.index(a) for a in range(found.ndim)])
