"""Gradients by weights, as the two factors that a backward pass multiplies.

The gradient of one output by the weights W of h W is the product of h and of the
gradient by h W. Two such gradients have the inner product
sum_st (u_s . u'_t) (v_s . v'_t), and the product itself, the size of W, need not be
made. The backward pass is traced and its results are followed back to the products
that make them; a weight that is used several times has a longer sum.

References:
    Novak, Sohl-Dickstein & Schoenholz (2022), Fast finite width neural tangent kernel,
    https://arxiv.org/abs/2206.08720, section 3.3 (structured derivatives).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ._filters import by_products

_CALLS = ("jit", "pjit", "closed_call")


@dataclasses.dataclass(frozen=True, slots=True)
class _Term:
    """c sum_t u_t v_t^T, from one product of the backward pass.

    Attributes:
        operands: the values that are multiplied.
        contracted: their axes that are summed over.
        scales: the numbers that make c, and whether each divides.
        path: what is done to the axes of the product afterwards.
    """

    operands: tuple[_jax.Atom, _jax.Atom]
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    scales: tuple[tuple[_jax.Atom, bool], ...] = ()
    path: tuple[Any, ...] = ()

    def free(self, side: int) -> tuple[int, ...]:
        """The axes of an operand that are axes of the weights."""
        axes = range(len(self.operands[side].shape))
        return tuple(a for a in axes if a not in self.contracted[side])

    def free_shape(self, side: int) -> tuple[int, ...]:
        """Their sizes."""
        return tuple(self.operands[side].shape[a] for a in self.free(side))

    @property
    def steps(self) -> int:
        """The number of terms of the sum over t."""
        return math.prod(self.operands[0].shape[a] for a in self.contracted[0])

    @property
    def layout(self) -> Any:
        """Equal for two terms whose factors may be compared with each other."""
        return self.free_shape(0), self.free_shape(1), self.path

    def transposed(self, axes: tuple[int, ...]) -> "_Term":
        """With the axes of the weights in another order."""
        left, right = len(self.free(0)), len(self.free(1))
        swapped = (*range(left, left + right), *range(left))
        if not self.path and axes == swapped:
            operands, contracted = self.operands[::-1], self.contracted[::-1]
            return dataclasses.replace(self, operands=operands, contracted=contracted)
        return dataclasses.replace(self, path=(*self.path, axes))


@dataclasses.dataclass(frozen=True, slots=True)
class Factors:
    """sum_t u_t v_t^T, up to an order of axes.

    Attributes:
        terms: parts of the sum.
        layout: see `_Term`; factors of two networks go together if theirs are equal.
        steps: the number of terms of the sum over t.
        left: the length of u_t.
        right: the length of v_t.
    """

    terms: tuple[_Term, ...]
    layout: Any
    steps: int
    left: int
    right: int


class Backward:
    """The backward pass of a function of some variables, for any output gradient.

    Args:
        run: run(variables, rest, x), an array.
        variables: arrays, or their shapes, by name.
        rest: pytree of arrays or shapes.
        x: pytree of arrays or shapes.
    """

    def __init__(
        self, run: Callable[..., Any], variables: Mapping[str, Any], rest: Any, x: Any
    ) -> None:
        def gradient(variables: Any, rest: Any, x: Any, cotangent: Any) -> Any:
            _, pull = jax.vjp(lambda v: run(v, rest, x), variables)
            return pull(cotangent)[0]

        args = jax.tree.map(_struct, (dict(variables), rest, x))
        self.output = jax.eval_shape(run, *args)
        traced, _ = _jax.trace(
            gradient, *args, _struct(self.output), x64=_jax.x64_enabled()
        )
        rows = math.prod(self.output.shape)
        self._graph = by_products(_jax.inlined(traced, _CALLS), rows)
        self._maker = {v: e for e in self._graph.equations for v in e.outputs}
        self._moving = self._reached({self._graph.inputs[-1]})
        self.results = dict(zip(sorted(variables), self._graph.outputs, strict=True))

    @property
    def bytes(self) -> int:
        """What all output gradients hold at once, at the most."""
        graph, rows = self._graph, math.prod(self.output.shape)
        return rows * _jax.live_bytes(graph.equations, graph.outputs)

    def factors(self, name: str) -> Factors | None:
        """The gradient by a variable as factors, if the backward pass makes it so."""
        terms = self._terms(self.results[name])
        if terms is None or len({t.layout for t in terms}) != 1:
            return None
        left, right = (math.prod(terms[0].free_shape(side)) for side in (0, 1))
        steps = sum(t.steps for t in terms)
        return Factors(terms, terms[0].layout, steps, left, right)

    def rows(
        self,
        args: tuple[Any, Any, Any],
        factored: Mapping[str, Factors],
        cotangents: Callable[[Any, Any], Any],
        indices: tuple[Any, Any],
        multiplied: Mapping[str, Factors] = MappingProxyType({}),
    ) -> dict[str, tuple[Any, ...]]:
        """Gradients of many outputs.

        Args:
            args: variables, rest and x.
            factored: the variables whose gradients are given as factors.
            cotangents: the output gradient of a pair of indices.
            indices: all first and all second indices.
            multiplied: variables whose gradients are given in the order in which their
                factors make them, that of their layout.

        Returns:
            By name of the variable one array (*indices, size), or two factors
            (*indices, steps, length); size one along the axes of `indices` in a
            factor that is the same for all output gradients.
        """
        leaves = jax.tree.leaves(args)
        still = {
            (name, side): self._is_still(f, side)
            for name, f in factored.items()
            for side in (0, 1)
        }

        def one(i: Any, j: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
            read = self._run([*leaves, cotangents(i, j)], {**factored, **multiplied})
            moving, fixed = {}, {}
            for name, result in self.results.items():
                if name in multiplied:
                    u, v = (_factor(multiplied[name], side, read) for side in (0, 1))
                    moving[name, 0] = jnp.ravel(u.T @ v)
                    continue
                if name not in factored:
                    moving[name, 0] = jnp.ravel(read(result))
                    continue
                for side in (0, 1):
                    found = fixed if still[name, side] else moving
                    found[name, side] = _factor(factored[name], side, read)
            return moving, fixed

        inner = jax.vmap(one, (None, 0), (0, None))
        moving, fixed = jax.vmap(inner, (0, None), (0, None))(*indices)
        parts = moving | {key: value[None, None] for key, value in fixed.items()}
        return {
            name: tuple(parts[name, s] for s in ((0, 1) if name in factored else (0,)))
            for name in self.results
        }

    def _terms(self, atom: _jax.Atom) -> tuple[_Term, ...] | None:
        """The products that a value is a sum of, if it is one."""
        equation = self._maker.get(atom) if isinstance(atom, _jax.Var) else None
        if equation is None:
            return None
        ins = equation.inputs
        match equation.name:
            case "dot_general":
                contracted, batched = equation.params["dimension_numbers"]
                if any(batched) or any(a.dtype != atom.dtype for a in ins):
                    return None
                left, right = contracted
                return (_Term((ins[0], ins[1]), (tuple(left), tuple(right))),)
            case "add_any" | "add" if ins[0].shape == ins[1].shape:
                both = [self._terms(a) for a in ins]
                return None if None in both else tuple(t for b in both for t in b or ())
            case "transpose":
                axes = tuple(equation.params["permutation"])
                terms = self._terms(ins[0])
                return (
                    None if terms is None else tuple(t.transposed(axes) for t in terms)
                )
            case "mul" | "div":
                for whole, scale in (ins, ins[::-1])[: 1 + (equation.name == "mul")]:
                    number = self._number(scale)
                    terms = None if number is None else self._terms(whole)
                    if number is not None and terms is not None:
                        more = (number, equation.name == "div")
                        return tuple(
                            dataclasses.replace(t, scales=(*t.scales, more))
                            for t in terms
                        )
                return None
            case _:
                return None

    def _number(self, atom: _jax.Atom) -> _jax.Atom | None:
        """The scalar that a value repeats, if it does."""
        equation = self._maker.get(atom) if isinstance(atom, _jax.Var) else None
        if equation is not None and equation.name == "broadcast_in_dim":
            atom = equation.inputs[0]
        return atom if atom.shape == () else None

    def _is_still(self, factors: Factors, side: int) -> bool:
        """Whether a factor is the same for all output gradients."""
        used = [t.operands[side] for t in factors.terms]
        if side == 0:  # which the numbers are multiplied into
            used += [a for t in factors.terms for a, _ in t.scales]
        return not any(a in self._moving for a in used)

    def _reached(self, start: set[_jax.Atom]) -> set[_jax.Atom]:
        reached = set(start)
        for e in self._graph.equations:
            if any(a in reached for a in e.inputs):
                reached.update(e.outputs)
        return reached

    def _run(
        self, args: Sequence[Any], factored: Mapping[str, Factors]
    ) -> Callable[[_jax.Atom], Any]:
        """Evaluate what the wanted values need, and read from it."""
        needed = {self.results[name] for name in self.results if name not in factored}
        for factors in factored.values():
            for t in factors.terms:
                needed.update((*t.operands, *(a for a, _ in t.scales)))
        wanted = []
        for e in reversed(self._graph.equations):
            if any(v in needed for v in e.outputs):
                needed.update(e.inputs)
                wanted.append(e)
        values: dict[_jax.Atom, Any] = dict(self._graph.constants)
        values.update(zip(self._graph.inputs, args, strict=True))

        def read(atom: _jax.Atom) -> Any:
            if isinstance(atom, _jax.Literal):
                return np.asarray(atom.value, atom.dtype)
            return values[atom]

        for e in reversed(wanted):
            outputs = _jax.evaluate(e, [read(a) for a in e.inputs])
            values.update(zip(e.outputs, outputs, strict=True))
        return read


def _factor(factors: Factors, side: int, read: Callable[[_jax.Atom], Any]) -> Any:
    """The u (side 0) or v (side 1) of all terms, (steps, length)."""
    parts = []
    for t in factors.terms:
        value = jnp.transpose(
            read(t.operands[side]), (*t.contracted[side], *t.free(side))
        )
        value = value.reshape(t.steps, math.prod(t.free_shape(side)))
        for number, divides in t.scales if side == 0 else ():
            scale = read(number)
            value = value / scale if divides else value * scale
        parts.append(value)
    return jnp.concatenate(parts)


def _struct(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)
