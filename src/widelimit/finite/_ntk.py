"""The tangent kernel of one finite network.

Rows of the Jacobian (one output position of one input, one averaged column) are made
by backward passes, block by block: as they are, or as the factors of `_factors`. A
block is then either contracted with a block of rows of the other inputs, or pushed
through the network at the other inputs as a tangent (one forward derivative gives the
kernel with all their outputs). What costs less is read off the network's graph.

References:
    Novak, Sohl-Dickstein & Schoenholz (2022), Fast finite width neural tangent kernel,
    https://arxiv.org/abs/2206.08720, section 3.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from .._errors import ShapeMismatchError
from ._contraction import contract
from ._cost import cost
from ._factors import Backward
from ._moments import Layout, flat, output_layout
from ._plan import (
    Chunk,
    Plan,
    Side,
    chunks,
    contracted_plan,
    contraction,
    pushed_plan,
    worth_factoring,
)

Apply = Callable[[Any, Any, Any], Any]
"""f(variables, rest, x); hashable, and equal only to the same function."""


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
    kernel = _Kernel(
        apply, tuple(trace_axes), dict(variables), rest, dict(rates), by_param
    )
    first = kernel.side(x1, whole)
    second = first if x2 is None else kernel.side(x2, whole)
    _check_columns(first.layout, second.layout)
    with jax.default_matmul_precision("highest"):
        blocks = _blocks(kernel, first, second, memory, symmetric=x2 is None)
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
    expected = jax.eval_shape(apply, dict(variables), rest, x2).shape
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
    tangent = _scaled(gradient, rates)
    return jax.jvp(lambda v: apply(v, rest, x1), (variables,), (tangent,))[1]


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

    def side(self, x: Any, whole: bool) -> Side:
        """The inputs of one side, in units."""
        units = jax.tree.map(lambda a: a[None] if whole else a[:, None], x)
        structs = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
            (self.variables, self.rest, jax.tree.map(lambda a: a[0], units)),
        )
        graph, shape = _jax.trace(self.apply, *structs, x64=_jax.x64_enabled())
        layout = output_layout(shape.shape, (), self.trace_axes)
        back = Backward(_unit(self.apply, self.trace_axes), *structs)
        factors = {name: back.factors(name) for name in self.variables}
        return Side(
            units,
            jax.tree.leaves(units)[0].shape[0],
            layout,
            cost(graph),
            {name: f for name, f in factors.items() if f is not None},
        )

    def rows(
        self, chunk: Chunk, columns: Any, factored: frozenset[str]
    ) -> dict[str, tuple[Any, ...]]:
        """Rows of the Jacobian."""
        return _rows(
            self.apply, self.trace_axes, factored, self.variables, self.rest, chunk.x,
            chunk.rows, columns,
        )  # fmt: skip

    def contracted(self, j1: Any, j2: Any) -> dict[str, Any]:
        """The kernel between two blocks of rows."""
        return _contract(j1, j2, self.rates, self.by_param)

    def pushed(self, j1: Any, chunk: Chunk, columns: Any) -> dict[str, Any]:
        """The kernel between a block of rows and all outputs of other inputs."""
        return _push(
            self.apply, self.trace_axes, self.by_param, self.variables, self.rest,
            self.rates, j1, chunk.x, columns,
        )  # fmt: skip


def _blocks(
    kernel: _Kernel, first: Side, second: Side, memory: int, *, symmetric: bool
) -> dict[str, list[list[Any]]]:
    """The kernel as blocks, row by row of blocks, for every name."""
    plan, factored, pushed = _choose(kernel, first, second, memory)
    every = jnp.arange(first.layout.columns).reshape(-1, plan.columns)
    one = list(chunks(first, plan.units[0], plan.rows[0]))
    half = symmetric and not pushed
    two = one if half else list(chunks(second, plan.units[1], plan.rows[1]))
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for i, a in enumerate(one):
        for columns in every:
            j1 = kernel.rows(a, columns, factored)
            for j, b in enumerate(two):
                if half and j < i:
                    continue
                if pushed:
                    parts = kernel.pushed(j1, b, columns)
                elif half and i == j:
                    parts = kernel.contracted(j1, j1)
                else:
                    parts = kernel.contracted(j1, kernel.rows(b, columns, factored))
                parts = {k: part[a.skip :, b.skip :] for k, part in parts.items()}
                before = found.get((i, j))
                found[i, j] = (
                    parts if before is None else jax.tree.map(jnp.add, before, parts)
                )

    def block(name: str, i: int, j: int) -> Any:
        return found[j, i][name].T if half and j < i else found[i, j][name]

    return {
        name: [[block(name, i, j) for j in range(len(two))] for i in range(len(one))]
        for name in found[0, 0]
    }


def _choose(
    kernel: _Kernel, first: Side, second: Side, memory: int
) -> tuple[Plan, frozenset[str], bool]:
    """How much at a time, what as factors, and whether rows are pushed."""
    sizes = {name: int(v.size) for name, v in kernel.variables.items()}
    numbers = memory // jnp.result_type(*kernel.variables.values()).itemsize
    factored = worth_factoring(first, second, sizes)
    passes = len(sizes) if kernel.by_param else 1
    contract = second.rows * contraction(first, second, sizes, factored)
    # Running with a tangent costs two runs, one for each factor of every product.
    if 2 * passes * second.cost.work >= contract:
        plan = contracted_plan(first, second, sizes, factored, numbers)
        return plan, factored, False
    plan = contracted_plan(first, second, sizes, frozenset(), numbers)
    return pushed_plan(first, second, plan, numbers), frozenset(), True


def _check_columns(first: Layout, second: Layout) -> None:
    if first.columns != second.columns:
        raise ShapeMismatchError(
            f"The axes of the output that are averaged have {first.columns} entries "
            f"for `x1` and {second.columns} for `x2`: see `trace_axes`."
        )


# Compiled parts -----------------------------------------------------------------------


def _unit(apply: Apply, trace_axes: tuple[int, ...]) -> Callable[..., jax.Array]:
    """The output of one unit as a function, (averaged columns, rows)."""

    def run(variables: Any, rest: Any, x: Any) -> jax.Array:
        y = apply(variables, rest, x)
        return flat(y, output_layout(y.shape, (), trace_axes)).T

    return run


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rows(
    apply: Apply,
    trace_axes: tuple[int, ...],
    factored: frozenset[str],
    variables: dict[str, Any],
    rest: Any,
    x: Any,
    rows: Any,
    columns: Any,
) -> dict[str, tuple[Any, ...]]:
    """Gradients (units, rows, columns, ..) by variable, see `Backward.rows`."""
    one = jax.tree.map(lambda a: a[0], x)
    back = Backward(_unit(apply, trace_axes), variables, rest, one)
    factors = {name: f for name in factored if (f := back.factors(name)) is not None}

    def cotangent(row: Any, column: Any) -> Any:
        zero = jnp.zeros(back.output.shape, back.output.dtype)
        return zero.at[column, row].set(1)

    return jax.vmap(
        lambda unit: back.rows(
            (variables, rest, unit), factors, cotangent, (rows, columns)
        )
    )(x)


@functools.partial(jax.jit, static_argnums=3)
def _contract(
    j1: dict[str, Any], j2: dict[str, Any], rates: dict[str, Any], by_param: bool
) -> dict[str, Any]:
    parts = {}
    for name, a in j1.items():
        part = contract(a, j2[name])
        parts[name] = rates[name] * part.reshape(part.shape[0] * part.shape[1], -1)
    return parts if by_param else {"": functools.reduce(jnp.add, parts.values())}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _push(
    apply: Apply,
    trace_axes: tuple[int, ...],
    by_param: bool,
    variables: dict[str, Any],
    rest: Any,
    rates: dict[str, Any],
    j1: dict[str, tuple[Any, ...]],
    x: Any,
    columns: Any,
) -> dict[str, Any]:
    """Rows as tangents through the network at every unit of x."""
    run = _unit(apply, trace_axes)
    tangents = {
        name: rows.reshape(-1, rows.shape[2], *variables[name].shape)
        for name, (rows,) in j1.items()
    }
    tangents = _scaled(tangents, rates)
    found = {}
    for names in [(name,) for name in variables] if by_param else [tuple(variables)]:
        some = {name: variables[name] for name in names}
        moving = {name: tangents[name] for name in names}

        def of_unit(unit: Any, some: Any = some, moving: Any = moving) -> Any:
            _, push = jax.linearize(lambda v: run({**variables, **v}, rest, unit), some)
            product = jax.vmap(lambda t, column: push(t)[column])
            return jax.vmap(lambda t: jnp.sum(product(t, columns), axis=0))(moving)

        k = jax.vmap(of_unit, out_axes=1)(x)
        found[names[0] if by_param else ""] = k.reshape(len(k), -1)
    return found


def _scaled(gradient: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (rates[name] * g).astype(g.dtype) for name, g in gradient.items()}
