"""The tangent kernel of one finite network.

Rows of the Jacobian (one output position of one input, one averaged column) are made
by backward passes, block by block. A block is then either contracted with a block of
rows of the other inputs, or pushed through the network at the other inputs as a tangent
(one forward derivative gives the kernel with all their outputs). Which of the two
costs less is read off the network's graph.

References:
    Novak, Sohl-Dickstein & Schoenholz (2022), Fast finite width neural tangent kernel,
    https://arxiv.org/abs/2206.08720, sections 3.1 (contraction) and 3.2 (products).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from .._errors import ShapeMismatchError
from ._cost import Cost, cost
from ._moments import Layout, flat, output_layout

Apply = Callable[[Any, Any, Any], Any]
"""f(variables, rest, x); hashable, and equal only to the same function."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Inputs on one side of the kernel, in units that are differentiated apart.

    A unit is one input, or the whole batch where inputs interact.

    Attributes:
        x: pytree with a leading axis of units, then one of inputs.
        units: their number.
        layout: of the output of one unit.
        cost: of running one unit.
    """

    x: Any
    units: int
    layout: Layout
    cost: Cost

    @property
    def rows(self) -> int:
        """Rows of the kernel that one unit makes."""
        return math.prod(self.layout.positions)

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of inputs, and the index shape."""
        inputs, *index = self.layout.positions
        return (self.units * inputs, *index)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How much of a Jacobian is held at one time."""

    units: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
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


def ntk(
    apply: Apply,
    variables: Mapping[str, Any],
    rest: Any,
    rates: Mapping[str, Any],
    x1: Any,
    x2: Any | None,
    *,
    trace_axes: Sequence[int],
    whole: bool,
    by_param: bool,
    memory: int,
) -> dict[str, Any]:
    """The tangent kernel, see `FiniteNetwork.ntk`.

    Args:
        apply: the network.
        variables: its trained variables, by name.
        rest: its other arrays.
        rates: the learning rate of every trained variable.
        x1: inputs along axis 0.
        x2: other inputs, or None.
        trace_axes: axes of the output to average over.
        whole: whether the inputs of a batch have to be run together.
        by_param: the parts of all variables rather than their sum.
        memory: bytes for the rows held at one time.

    Returns:
        Arrays (N1, N2, *I, *I') by name of the variable, or one under "".
    """
    variables = dict(variables)
    run = functools.partial(_unit, apply, tuple(trace_axes))
    first = _side(run, apply, variables, rest, x1, trace_axes, whole)
    second = first
    if x2 is not None:
        second = _side(run, apply, variables, rest, x2, trace_axes, whole)
        _check_columns(first.layout, second.layout)
    size = sum(v.size for v in variables.values())
    passes = len(variables) if by_param else 1
    pushed = 2 * passes * second.cost.work < second.rows * size
    dtype = jnp.result_type(*variables.values())
    plans = _plans(first, second, size, memory // dtype.itemsize)
    if pushed:
        plans = _pushed_plan(first, second, plans[0], memory // dtype.itemsize)
    with jax.default_matmul_precision("highest"):
        blocks = _blocks(
            _Kernel(apply, tuple(trace_axes), variables, rest, dict(rates), by_param),
            first, second, plans, symmetric=x2 is None, pushed=pushed,
        )  # fmt: skip
    found = {}
    for name, rows in blocks.items():
        k = jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows], axis=0)
        k = k.reshape(*first.positions, *second.positions) / first.layout.columns
        found[name] = jnp.moveaxis(k, len(first.positions), 1)
    return found


def ntk_vp(
    apply: Apply,
    variables: Mapping[str, Any],
    rest: Any,
    rates: Mapping[str, Any],
    x1: Any,
    x2: Any,
    vector: Any,
) -> jax.Array:
    """The full tangent kernel times a vector, see `FiniteNetwork.ntk_vp`."""
    expected = jax.eval_shape(apply, variables, rest, x2).shape
    if vector.shape != expected:
        raise ShapeMismatchError(
            f"`vector` should have the shape of the output for `x2`, {expected}, got "
            f"{vector.shape}."
        )
    with jax.default_matmul_precision("highest"):
        return _product(apply, dict(variables), rest, dict(rates), x1, x2, vector)


@functools.partial(jax.jit, static_argnums=0)
def _product(
    apply: Apply,
    variables: dict[str, Any],
    rest: Any,
    rates: dict[str, Any],
    x1: Any,
    x2: Any,
    vector: Any,
) -> jax.Array:
    y, pull = jax.vjp(lambda v: apply(v, rest, x2), variables)
    (gradient,) = pull(vector.astype(y.dtype))
    tangent = {name: rates[name] * g for name, g in gradient.items()}
    tangent = {name: t.astype(variables[name].dtype) for name, t in tangent.items()}
    _, out = jax.jvp(lambda v: apply(v, rest, x1), (variables,), (tangent,))
    return out


# Blocks of rows -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    """The arguments that all blocks share."""

    apply: Apply
    trace_axes: tuple[int, ...]
    variables: dict[str, Any]
    rest: Any
    rates: dict[str, Any]
    by_param: bool

    def rows(self, chunk: _Chunk, columns: Any) -> dict[str, Any]:
        """Rows of the Jacobian, (rows, columns, *shape) by variable."""
        return _rows(
            self.apply, self.trace_axes, self.variables, self.rest, chunk.x,
            chunk.rows, columns,
        )  # fmt: skip

    def contracted(self, j1: Any, j2: Any) -> dict[str, Any]:
        """The kernel between two blocks of rows."""
        return _contract(j1, j2, self.rates, self.by_param)

    def pushed(self, j1: Any, chunk: _Chunk, columns: Any) -> dict[str, Any]:
        """The kernel between a block of rows and all outputs of other inputs."""
        return _push(
            self.apply, self.trace_axes, self.variables, self.rest, self.rates, j1,
            chunk.x, columns, self.by_param,
        )  # fmt: skip


def _blocks(
    kernel: _Kernel,
    first: _Side,
    second: _Side,
    plans: tuple[_Plan, _Plan],
    *,
    symmetric: bool,
    pushed: bool,
) -> dict[str, list[list[Any]]]:
    """The kernel as blocks, row by row of blocks, for every name."""
    step = plans[0].columns
    columns = [jnp.arange(c, c + step) for c in range(0, first.layout.columns, step)]
    one = list(_chunks(first, plans[0]))
    two = one if symmetric and not pushed else list(_chunks(second, plans[1]))
    half = symmetric and not pushed
    found: dict[str, dict[tuple[int, int], Any]] = {}
    for i, a in enumerate(one):
        for some in columns:
            j1 = kernel.rows(a, some)
            for j, b in enumerate(two):
                if half and j < i:
                    continue
                if pushed:
                    parts = kernel.pushed(j1, b, some)
                else:
                    j2 = j1 if half and i == j else kernel.rows(b, some)
                    parts = kernel.contracted(j1, j2)
                for name, part in parts.items():
                    blocks = found.setdefault(name, {})
                    part = part[a.skip :, b.skip :]
                    blocks[i, j] = blocks[i, j] + part if (i, j) in blocks else part
    return {
        name: [
            [
                blocks[j, i].T if half and j < i else blocks[i, j]
                for j in range(len(two))
            ]
            for i in range(len(one))
        ]
        for name, blocks in found.items()
    }


def _unit(
    apply: Apply, trace_axes: tuple[int, ...], variables: Any, rest: Any, x: Any
) -> jax.Array:
    """The output of one unit, (averaged columns, rows)."""
    y = apply(variables, rest, x)
    return flat(y, output_layout(y.shape, (), trace_axes)).T


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rows(
    apply: Apply,
    trace_axes: tuple[int, ...],
    variables: dict[str, Any],
    rest: Any,
    x: Any,
    rows: Any,
    columns: Any,
) -> dict[str, Any]:
    def of_unit(unit: Any) -> Any:
        y, pull = jax.vjp(lambda v: _unit(apply, trace_axes, v, rest, unit), variables)

        def gradient(row: Any, column: Any) -> Any:
            return pull(jnp.zeros_like(y).at[column, row].set(1))[0]

        both = jax.vmap(jax.vmap(gradient, (None, 0)), (0, None))
        return both(rows, columns)

    found = jax.vmap(of_unit)(x)
    return {name: g.reshape(-1, *g.shape[2:]) for name, g in found.items()}


@functools.partial(jax.jit, static_argnums=3)
def _contract(
    j1: dict[str, Any], j2: dict[str, Any], rates: dict[str, Any], by_param: bool
) -> dict[str, Any]:
    parts = {
        name: rates[name]
        * (a.reshape(len(a), -1) @ j2[name].reshape(len(j2[name]), -1).T)
        for name, a in j1.items()
    }
    return parts if by_param else {"": functools.reduce(jnp.add, parts.values())}


@functools.partial(jax.jit, static_argnums=(0, 1, 8))
def _push(
    apply: Apply,
    trace_axes: tuple[int, ...],
    variables: dict[str, Any],
    rest: Any,
    rates: dict[str, Any],
    j1: dict[str, Any],
    x: Any,
    columns: Any,
    by_param: bool,
) -> dict[str, Any]:
    """Tangents j1 through the network at every unit of x."""
    groups = [(name,) for name in variables] if by_param else [tuple(variables)]

    def of_unit(unit: Any, names: tuple[str, ...]) -> Any:
        def out(some: dict[str, Any]) -> Any:
            return _unit(apply, trace_axes, {**variables, **some}, rest, unit)

        _, push = jax.linearize(out, {name: variables[name] for name in names})

        def product(tangent: Any, column: Any) -> Any:
            return push(tangent)[column]

        tangents = {
            name: (rates[name] * j1[name]).astype(variables[name].dtype)
            for name in names
        }
        over_columns = jax.vmap(product)
        return jax.vmap(lambda t: jnp.sum(over_columns(t, columns), 0))(tangents)

    found = {}
    for names in groups:
        k = jax.vmap(lambda unit, n=names: of_unit(unit, n), out_axes=1)(x)
        found[names[0] if by_param else ""] = k.reshape(len(k), -1)
    return found


# How much at a time -------------------------------------------------------------------


def _side(
    run: Callable[..., Any],
    apply: Apply,
    variables: Any,
    rest: Any,
    x: Any,
    trace_axes: Sequence[int],
    whole: bool,
) -> _Side:
    units = jax.tree.map(lambda a: a[None] if whole else a[:, None], x)
    structs = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
        (variables, rest, jax.tree.map(lambda a: a[0], units)),
    )
    graph, _ = _jax.trace(run, *structs, x64=_jax.x64_enabled())
    shape = jax.eval_shape(apply, *structs).shape
    layout = output_layout(shape, (), trace_axes)
    return _Side(units, jax.tree.leaves(units)[0].shape[0], layout, cost(graph))


def _check_columns(first: Layout, second: Layout) -> None:
    if first.columns != second.columns:
        raise ShapeMismatchError(
            f"The axes of the output that are averaged have {first.columns} entries "
            f"for `x1` and {second.columns} for `x2`: see `trace_axes`."
        )


def _plans(first: _Side, second: _Side, size: int, numbers: int) -> tuple[_Plan, _Plan]:
    """As many columns as fit if all rows do, else as many rows of one column."""
    half = numbers // 2
    columns = min(
        max(half - s.units * s.cost.kept, 0)
        // (s.units * s.rows * (size + s.cost.largest))
        for s in (first, second)
    )
    if columns >= 1:
        columns = _divisor(first.layout.columns, columns)
        return (
            _Plan(first.units, first.rows, columns),
            _Plan(second.units, second.rows, columns),
        )
    plans = []
    for s in (first, second):
        row = size + s.cost.largest
        units = min(half // (s.cost.kept + s.rows * row), s.units)
        rows = s.rows if units else max(1, (half - s.cost.kept) // row)
        plans.append(_Plan(max(units, 1), min(rows, s.rows), 1))
    return plans[0], plans[1]


def _pushed_plan(
    first: _Side, second: _Side, plan: _Plan, numbers: int
) -> tuple[_Plan, _Plan]:
    """The second side has no rows, but the derivatives of all tangents at once."""
    tangents = plan.units * plan.rows * plan.columns
    unit = second.cost.kept + 2 * tangents * second.cost.largest
    units = min(max(1, numbers // 2 // unit), second.units)
    return plan, _Plan(units, second.rows, plan.columns)


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _chunks(side: _Side, plan: _Plan) -> Iterator[_Chunk]:
    for u in range(0, side.units, plan.units):
        start = min(u, side.units - plan.units)
        x = jax.tree.map(lambda a, s=start: a[s : s + plan.units], side.x)
        for r in range(0, side.rows, plan.rows):
            row = min(r, side.rows - plan.rows)
            skip = (u - start) * side.rows + (r - row)
            yield _Chunk(x, jnp.arange(row, row + plan.rows), skip)
