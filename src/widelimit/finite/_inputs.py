"""The inputs of a kernel of any function, in units that are differentiated apart.

A unit is one entry along the axes that the caller says do not interact (`vmap_axes`),
or the whole batch.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError
from .._once import together
from ._variables import Variables

# Bytes above which units are worked on in parts, one after the other. XLA takes memory
# for all that it may do beside each other, and the allocator gives back at once what is
# larger; to touch it again takes as long as the arithmetic.
_AT_ONCE, _PARTS = 2**25, 4


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """One batch of inputs. Made by `in_units`.

    Attributes:
        run: run(variables, unit), the leaves of the output of one unit, without the
            axis of units.
        units: the arrays that differ between units, along axis 0; none if the whole
            batch is one unit.
        outputs: shape and type of the leaves of the output for the whole batch.
        axes: of the units in each of them; None if the whole batch is one unit.
        tree: the structure of the output.
    """

    run: Callable[[Variables, list[Any]], list[jax.Array]]
    units: list[jax.Array]
    outputs: list[jax.ShapeDtypeStruct]
    axes: list[int | None]
    tree: Any

    @property
    def unit(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of one unit."""
        return [jax.ShapeDtypeStruct(u.shape[1:], u.dtype) for u in self.units]

    def each(self, of_unit: Callable[[list[Any]], Any], size: int = 0) -> Any:
        """What is to know of every unit, along axis 0; of the only unit as it is.

        Args:
            of_unit: from the arrays of a unit to a pytree of arrays.
            size: bytes that are held at once on the way there.
        """
        if not self.units:
            return of_unit([])
        floating = (jnp.issubdtype(u.dtype, jnp.floating) for u in self.units)
        lead = next((k for k, known in enumerate(floating) if known), None)
        count = len(self.units[0])
        if lead is None or count * size <= _AT_ONCE:
            return jax.vmap(of_unit)(self.units)
        units, step = list(self.units), -(-count // _PARTS)
        # XLA cannot know that a number is equal to itself: some are none.
        first = units[lead].ravel()[:1].sum()
        true = first == first
        parts: list[Any] = []
        for i in range(0, count, step):
            found = jax.vmap(of_unit)([u[i : i + step] for u in units])
            units[lead], found = together(true, (units[lead], found))
            parts.append(found)
        return jax.tree.map(lambda *p: jnp.concatenate(p), *parts)


def in_units(
    f: Callable[..., Any],
    variables: Variables,
    x: Any,
    kwargs: Mapping[str, Any],
    vmap_axes: Any = None,
) -> Inputs:
    """Prepare one batch of inputs.

    Args:
        f: a function `f(variables, x, **kwargs)`.
        variables: what it is differentiated by.
        x: a pytree of inputs.
        kwargs: other arguments; those without an axis in `vmap_axes` may be anything.
        vmap_axes: see `empirical_ntk_fn`.

    Raises:
        InputError: `vmap_axes` is not as the inputs and the outputs are.
        ShapeMismatchError: arrays have other numbers of units, or the output of one
            unit has not the shape that `vmap_axes` says.
    """
    whole = jax.eval_shape(lambda v: f(v, x, **kwargs), variables)
    outputs, out_tree = jax.tree.flatten(whole)
    leaves, tree = jax.tree.flatten((x, dict(kwargs)))
    in_axes, out_axes = _unit_axes(vmap_axes, x, kwargs, whole)
    mapped = {i: a for i, a in enumerate(in_axes) if a is not None}
    units = [jnp.moveaxis(jnp.asarray(leaves[i]), a, 0) for i, a in mapped.items()]
    if units:
        _check_number(units, outputs, out_axes)

    def run(variables: Variables, unit: list[Any]) -> list[jax.Array]:
        mine = list(leaves)
        for (i, axis), value in zip(mapped.items(), unit, strict=True):
            mine[i] = jnp.expand_dims(value, axis)
        one, options = tree.unflatten(mine)
        found = jax.tree.leaves(f(variables, one, **options))
        return [
            _without(jnp.asarray(y), axis, expected.shape)
            for y, axis, expected in zip(found, out_axes, outputs, strict=True)
        ]

    return Inputs(run, units, outputs, out_axes, out_tree)


def _unit_axes(
    vmap_axes: Any, x: Any, kwargs: Mapping[str, Any], outputs: Any
) -> tuple[list[int | None], list[int | None]]:
    """The axis of units in every leaf of `(x, kwargs)` and of the output."""
    if isinstance(vmap_axes, tuple) and len(vmap_axes) == 3:
        of_x, of_output, of_kwargs = vmap_axes
    else:
        of_x, of_output, of_kwargs = vmap_axes, vmap_axes, {}
    if not isinstance(of_kwargs, Mapping):
        of_kwargs = dict.fromkeys(kwargs, of_kwargs)
    if unknown := set(of_kwargs) - set(kwargs):
        raise InputError(
            "`vmap_axes` has axes of keyword arguments that are not given: "
            f"{', '.join(sorted(unknown))}."
        )
    places = {name: of_kwargs.get(name) for name in kwargs}
    ins = [
        *_spread("inputs", of_x, x),
        *_spread("keyword arguments", places, dict(kwargs)),
    ]
    if all(a is None for a in ins):
        return ins, [None] * len(jax.tree.leaves(outputs))
    outs = _spread("outputs", of_output, outputs)
    if any(a is None for a in outs):
        raise InputError(
            "Where inputs are mapped, every output needs the axis along which theirs "
            f"stand; got {of_output!r} for outputs of shapes "
            f"{[y.shape for y in jax.tree.leaves(outputs)]} in `vmap_axes`."
        )
    return ins, outs


def _spread(what: str, axes: Any, tree: Any) -> list[int | None]:
    """The axis of every leaf of a tree, from one axis for each of its parts."""

    def part(axis: Any, leaves: Any) -> list[int | None]:
        return [_axis(what, axis, leaf) for leaf in jax.tree.leaves(leaves)]

    try:
        parts = jax.tree.map(part, axes, tree, is_leaf=lambda a: a is None)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The axes of {what} in `vmap_axes`, {axes!r}, should be one axis or of "
            f"the structure of the {what}: {error}"
        ) from None
    return jax.tree.leaves(parts, is_leaf=lambda a: a is None)


def _axis(what: str, axis: Any, leaf: Any) -> int | None:
    if axis is None:
        return None
    ndim = np.ndim(leaf)
    if not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise InputError(
            f"An axis of {what} in `vmap_axes` should be a whole number or None, and "
            f"one that the array has; got {axis!r} for shape {np.shape(leaf)}."
        )
    return operator.index(axis) % ndim


def _check_number(
    units: list[jax.Array],
    outputs: list[jax.ShapeDtypeStruct],
    out_axes: list[int | None],
) -> None:
    ins = {u.shape[0] for u in units}
    outs = {y.shape[a] for y, a in zip(outputs, out_axes, strict=True) if a is not None}
    if len(ins | outs) > 1:
        raise ShapeMismatchError(
            "The axes of `vmap_axes` should have one length, that of the batch; got "
            f"{sorted(ins)} in the inputs and {sorted(outs)} in the outputs."
        )


def _without(y: jax.Array, axis: int | None, whole: tuple[int, ...]) -> jax.Array:
    """The output of one unit without their axis."""
    if axis is None:
        return y
    expected = (*whole[:axis], 1, *whole[axis + 1 :])
    if y.shape != expected:
        raise ShapeMismatchError(
            f"The output has the shape {y.shape} for one entry of the batch, and "
            f"{whole} for all: with `vmap_axes` {expected} was expected. If entries "
            "interact, leave `vmap_axes` out."
        )
    return y.reshape(*whole[:axis], *whole[axis + 1 :])
