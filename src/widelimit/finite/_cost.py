"""What it costs to run a network once, read off its graph."""

import dataclasses
import math

from .._jax import Equation, Graph


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run.

    Attributes:
        work: multiplications in products and convolutions, and other entries made.
        kept: numbers in all values together, which a backward pass may keep.
        largest: numbers in the largest value.
    """

    work: int
    kept: int
    largest: int


def cost(graph: Graph) -> Cost:
    """The cost of a graph; loops of unknown length count as one step."""
    work = kept = largest = 0
    for equation in graph.equations:
        inner = [cost(g) for g in equation.graphs]
        sizes = [math.prod(v.shape) for v in equation.outputs]
        steps = equation.params["length"] if equation.name == "scan" else 1
        own = 0 if inner else sum(sizes) * _terms(equation)
        work += own + steps * sum(c.work for c in inner)
        kept += sum(sizes) + steps * sum(c.kept for c in inner)
        largest = max([largest, *sizes, *(c.largest for c in inner)])
    return Cost(work, kept, largest)


def _terms(equation: Equation) -> int:
    """How many products are summed in one entry of the result."""
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(equation.inputs[0].shape[a] for a in contracted)
    if equation.name == "conv_general_dilated":
        filters = equation.inputs[1].shape
        outputs = equation.params["dimension_numbers"].rhs_spec[0]
        return math.prod(filters) // filters[outputs]
    return 1
