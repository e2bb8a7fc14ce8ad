"""How much of the Jacobians of a tangent kernel is held at one time."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._contraction import pays
from ._cost import Cost
from ._factors import Factors
from ._moments import Layout


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Inputs on one side of the kernel, in units that are differentiated apart.

    A unit is one input, or the whole batch where inputs interact.

    Attributes:
        x: pytree with a leading axis of units, then one of inputs.
        units: their number.
        layout: of the output of one unit.
        cost: of running one unit.
        factors: of the gradients by every variable that has them.
    """

    x: Any
    units: int
    layout: Layout
    cost: Cost
    factors: Mapping[str, Factors]

    @property
    def rows(self) -> int:
        """Rows of the kernel that one unit makes."""
        return math.prod(self.layout.positions)

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of inputs, and the index shape."""
        inputs, *index = self.layout.positions
        return (self.units * inputs, *index)

    def numbers(self, sizes: Mapping[str, int], factored: frozenset[str]) -> int:
        """The numbers that one row of the Jacobian takes, and its making."""
        total = self.cost.largest
        for name, size in sizes.items():
            f = self.factors[name] if name in factored else None
            total += size if f is None else f.steps * (f.left + f.right)
        return total


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much is done at one time.

    Attributes:
        units: of each side.
        rows: of every unit of each side.
        columns: of those that are averaged.
    """

    units: tuple[int, int]
    rows: tuple[int, int]
    columns: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some consecutive rows of one side.

    Attributes:
        x: the inputs of its units.
        rows: the rows that are made of every unit.
        skip: how many of the first rows an earlier chunk has made already; chunks
            overlap at the end so that all have one shape.
    """

    x: Any
    rows: Any
    skip: int


def worth_factoring(
    first: Side, second: Side, sizes: Mapping[str, int]
) -> frozenset[str]:
    """The variables whose gradients cost less to contract as factors."""
    return frozenset(
        name
        for name, size in sizes.items()
        if pays(first.factors.get(name), second.factors.get(name), size)
    )


def contraction(
    first: Side, second: Side, sizes: Mapping[str, int], factored: frozenset[str]
) -> int:
    """Multiplications to contract one row with one other."""
    total = 0
    for name, size in sizes.items():
        if name in factored:
            a, b = first.factors[name], second.factors[name]
            size = a.steps * b.steps * (a.left + a.right)
        total += size
    return total


def contracted_plan(
    first: Side,
    second: Side,
    sizes: Mapping[str, int],
    factored: frozenset[str],
    numbers: int,
) -> Plan:
    """As many columns as fit if all rows do, else as many rows of one column.

    Args:
        first: one side.
        second: the other.
        sizes: of the variables.
        factored: the variables whose gradients are held as factors.
        numbers: how many numbers fit, a quarter of them for the rows of each side
            and the rest for the products of steps of both.
    """
    sides, share = (first, second), numbers // 4
    row = [s.numbers(sizes, factored) for s in sides]
    steps = [max((s.factors[k].steps for k in factored), default=1) for s in sides]
    most = max(1, math.isqrt(numbers // 2 // math.prod(steps)))
    columns = min(
        max(share - s.units * s.cost.kept, 0) // (s.units * s.rows * r)
        for s, r in zip(sides, row, strict=True)
    )
    if columns and all(s.units * s.rows <= most for s in sides):
        columns = _divisor(first.layout.columns, columns)
        return Plan((first.units, second.units), (first.rows, second.rows), columns)
    units, rows = [], []
    for s, r in zip(sides, row, strict=True):
        whole = min(share // (s.cost.kept + s.rows * r), most // s.rows, s.units)
        part = min(max(0, share - s.cost.kept) // r, most, s.rows)
        units.append(max(1, whole))
        rows.append(s.rows if whole else max(1, part))
    return Plan((units[0], units[1]), (rows[0], rows[1]), 1)


def pushed_plan(first: Side, second: Side, plan: Plan, numbers: int) -> Plan:
    """The second side has no rows, but the derivatives of all tangents at once."""
    tangents = plan.units[0] * plan.rows[0] * plan.columns
    unit = second.cost.kept + 2 * tangents * second.cost.largest
    units = min(max(1, numbers // 2 // unit), second.units)
    return Plan((plan.units[0], units), (plan.rows[0], second.rows), plan.columns)


def chunks(side: Side, units: int, rows: int) -> Iterator[Chunk]:
    """All rows of a side, in chunks of one shape."""
    for u in range(0, side.units, units):
        start = min(u, side.units - units)
        x = jax.tree.map(lambda a, s=start: a[s : s + units], side.x)
        for r in range(0, side.rows, rows):
            row = min(r, side.rows - rows)
            skip = (u - start) * side.rows + (r - row)
            yield Chunk(x, jnp.arange(row, row + rows), skip)


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)
