"""The tangent kernel of any function, by three methods that agree.

All three make, for every entry of the first output, its gradient by the variables. They
differ in what becomes of it at the second batch, and in how it is held.

References:
    Novak, Sohl-Dickstein & Schoenholz (2022), Fast finite width neural tangent kernel,
    https://arxiv.org/abs/2206.08720, sections 3.1 to 3.3.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _jax
from ._contraction import contract, pays
from ._cost import cost
from ._factors import Backward, Factors
from ._inputs import Inputs
from ._pairing import Pairing
from ._variables import Variables


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The tangent kernel of one leaf of the output.

    Attributes:
        variables: what it is differentiated by, real arrays.
        first: one batch.
        second: the other; the same object if there is none.
        pairing: of the entries of the leaf.
        leaf: its place among the leaves.
    """

    variables: Variables
    first: Inputs
    second: Inputs
    pairing: Pairing
    leaf: int

    def output(self, inputs: Inputs, variables: Variables, unit: Any) -> jax.Array:
        """The leaf for one unit, (diagonal, kept, traced)."""
        return self.pairing.entries(inputs.run(variables, unit)[self.leaf])

    def jacobian(self, inputs: Inputs) -> Variables:
        """By variable, (units, diagonal, kept, traced, *variable)."""

        def of_unit(unit: Any) -> Variables:
            return jax.jacrev(lambda v: self.output(inputs, v, unit))(self.variables)

        return inputs.each(of_unit)

    def both(self, prepare: Callable[[Inputs], Any]) -> tuple[Any, Any]:
        """What is to know of both batches, found once if they are one."""
        first = prepare(self.first)
        return first, first if self.second is self.first else prepare(self.second)


Method = Callable[[Problem], jax.Array]


def jacobian_contraction(problem: Problem) -> jax.Array:
    """Rows of both Jacobians, contracted."""
    return _contraction(problem, lambda *_: False)


def ntk_vector_products(problem: Problem) -> jax.Array:
    """Rows of one Jacobian, pushed through the function at the other batch."""
    variables = problem.variables

    def compare(rows: Variables, unit: Any) -> jax.Array:
        y, push = jax.linearize(
            lambda v: problem.output(problem.second, v, unit), variables
        )

        def product(row: Variables, diagonal: Any, column: Any) -> jax.Array:
            return push(row)[diagonal, :, column]

        over_columns = jax.vmap(product, (0, None, 0))
        over_kept = jax.vmap(over_columns, (0, None, None))
        over_diagonal = jax.vmap(over_kept, (0, 0, None))
        found = over_diagonal(rows, jnp.arange(y.shape[0]), jnp.arange(y.shape[2]))
        return jnp.sum(found, axis=2)

    rows = problem.jacobian(problem.first)
    return problem.pairing.kernel(compare, rows, problem.second.units)


def structured_derivatives(problem: Problem) -> jax.Array:
    """Rows of both Jacobians as the factors that the backward pass multiplies.

    The gradient by a matrix that is used in products is such a product itself, and is
    contracted without being made where that costs less. By other variables (biases,
    filters of convolutions), and by matrices inside of loops, rows are held as they
    are, as by `jacobian_contraction`.
    """
    return _contraction(problem, pays)


METHODS: tuple[Method, ...] = (
    jacobian_contraction,
    ntk_vector_products,
    structured_derivatives,
)


def kernel(problem: Problem, method: Method) -> jax.Array:
    """The tangent kernel, of the shape that the pairing says."""
    shape = problem.pairing.shape
    if not problem.variables or 0 in shape:
        return jnp.zeros(shape)
    return method(problem)


def cheapest(problems: list[Problem]) -> Method:
    """The method with the fewest operations, the first of equals.

    Counted in the traced computation: multiplications of products and convolutions, and
    one operation for every entry that anything else makes.
    """

    def work(method: Method) -> float:
        try:
            return sum(_work(method, problem) for problem in problems)
        except TypeError:  # no forward mode: a function with a `custom_vjp`
            if method is jacobian_contraction:
                raise
            return math.inf

    return min(METHODS, key=work)


def _work(method: Method, problem: Problem) -> int:
    traced, _ = _jax.trace(
        lambda v: kernel(dataclasses.replace(problem, variables=v), method),
        _structs(problem.variables),
        x64=_jax.x64_enabled(),
    )
    return cost(traced).work


def _over_diagonal(compare: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
    """`compare` for every diagonal entry.

    One entry is no batch of one: products of those are slower than plain ones.
    """

    def each(one: Any, two: Any) -> jax.Array:
        if jax.tree.leaves(one)[0].shape[0] > 1:
            return jax.vmap(compare)(one, two)
        single = (jax.tree.map(lambda a: a[0], side) for side in (one, two))
        return compare(*single)[None]

    return each


def _backward(problem: Problem, inputs: Inputs) -> Backward:
    def run(variables: Variables, rest: Any, unit: Any) -> jax.Array:
        return problem.output(inputs, variables, unit)

    return Backward(run, _structs(problem.variables), (), inputs.unit)


def _contraction(problem: Problem, held: Callable[..., bool]) -> jax.Array:
    """Rows of both Jacobians, contracted.

    Args:
        problem: the kernel.
        held: of the factors of two gradients and the size of the variable, whether they
            are held as factors.
    """
    backs = problem.both(lambda inputs: _backward(problem, inputs))
    sides: tuple[_Gradients, _Gradients] = _Gradients({}, {}), _Gradients({}, {})
    for name, value in problem.variables.items():
        a, b = (back.factors(name) for back in backs)
        if a is not None and b is not None and a.layout == b.layout:
            one = held(a, b, value.size)
            for side, factors in zip(sides, (a, b), strict=True):
                (side.factored if one else side.multiplied)[name] = factors
    rows1 = rows2 = _rows(problem, problem.first, backs[0], sides[0])
    if problem.second is not problem.first:
        rows2 = _rows(problem, problem.second, backs[1], sides[1])

    def of_diagonal(rows1: Any, rows2: Any) -> jax.Array:
        a, b = (jax.tree.map(lambda r: r[None], rows) for rows in (rows1, rows2))
        parts = [contract(a[name], b[name])[0, :, 0] for name in problem.variables]
        return functools.reduce(jnp.add, parts)

    return problem.pairing.kernel(_over_diagonal(of_diagonal), rows1, rows2)


class _Gradients(NamedTuple):
    """The factors of gradients that are held, and of those that are multiplied."""

    factored: dict[str, Factors]
    multiplied: dict[str, Factors]


def _rows(
    problem: Problem, inputs: Inputs, back: Backward, gradients: _Gradients
) -> Any:
    """Gradients by variable, (units, diagonal, kept, traced, ..): `Backward.rows`."""
    diagonal, kept, traced = (jnp.arange(n) for n in back.output.shape)

    def of_unit(unit: Any) -> Any:
        def of_diagonal(d: Any) -> Any:
            def cotangent(k: Any, t: Any) -> jax.Array:
                zero = jnp.zeros(back.output.shape, back.output.dtype)
                return zero.at[d, k, t].set(1)

            args = (problem.variables, (), unit)
            return back.rows(
                args, gradients.factored, cotangent, (kept, traced),
                gradients.multiplied,
            )  # fmt: skip

        return jax.vmap(of_diagonal)(diagonal)

    return inputs.each(of_unit, back.bytes)


def _structs(variables: Variables) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in variables.items()}
