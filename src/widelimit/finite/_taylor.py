"""A function as a polynomial in its parameters."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError, ShapeMismatchError
from ._variables import Variables, is_inexact, split


def linearize(f: Callable[..., Any], params: Any) -> Callable[..., Any]:
    """The Taylor polynomial of degree one of a function of its parameters.

    Args:
        f: a function `f(params, *args, **kwargs)` to a pytree.
        params: the parameters to expand about, a pytree. Leaves that are not of a
            floating or complex type are no variables of the polynomial.

    Returns:
        `f_lin(new_params, *args, **kwargs)`, f + df at `params`, as `f` returns.

    Raises:
        InputError: (by `f_lin`) an output of integers.
        ShapeMismatchError: `new_params` are not as `params`.
    """
    return taylor_expand(f, params, 1)


def taylor_expand(
    f: Callable[..., Any], params: Any, degree: int
) -> Callable[..., Any]:
    """The Taylor polynomial of a function of its parameters.

    Args:
        f: a function `f(params, *args, **kwargs)` to a pytree.
        params: the parameters to expand about, a pytree. Leaves that are not of a
            floating or complex type are no variables of the polynomial.
        degree: of the polynomial, 0 or more. Derivatives are nested forward modes: time
            grows as 2^degree.

    Returns:
        `f_tayl(new_params, *args, **kwargs)`, the sum of dᵏf / k! at `params` along
        `new_params - params` for k up to `degree`, as `f` returns.

    Raises:
        InputError: the degree is no whole number, or negative; (by `f_tayl`) an output
            of integers.
        ShapeMismatchError: `new_params` are not as `params`.
    """
    highest = _degree(degree)
    start, _ = split(params)

    def f_tayl(new_params: Any, *args: Any, **kwargs: Any) -> Any:
        step, join = _step(params, start, new_params)

        def run(variables: Variables) -> tuple[Any]:
            return (jax.tree.map(_checked, f(join(variables), *args, **kwargs)),)

        derivatives: Callable[[Variables], tuple[Any, ...]] = run
        for _ in range(highest):
            derivatives = _with_next(derivatives, step)
        terms = derivatives(start)
        return jax.tree.map(_sum, *terms)

    return f_tayl


def _with_next(
    derivatives: Callable[[Variables], tuple[Any, ...]], step: Variables
) -> Callable[[Variables], tuple[Any, ...]]:
    """f, df .. dᵏf along a step, and dᵏ⁺¹f."""

    def longer(variables: Variables) -> tuple[Any, ...]:
        values, tangents = jax.jvp(derivatives, (variables,), (step,))
        return (*values, tangents[-1])

    return longer


def _checked(y: Any) -> Any:
    if not is_inexact(y):
        raise InputError(
            "Only outputs of real or complex numbers have a Taylor polynomial, got "
            f"one of type {jnp.result_type(y)}."
        )
    return y


def _sum(*derivatives: Any) -> Any:
    total = derivatives[0]
    for k, term in enumerate(derivatives[1:], start=1):
        total = total + term / math.factorial(k)
    return total


def _step(
    params: Any, start: Variables, new_params: Any
) -> tuple[Variables, Callable[..., Any]]:
    """From the old parameters to the new, and how to make the new of variables."""
    old, new = jax.tree.structure(params), jax.tree.structure(new_params)
    end, join = split(new_params)
    if old != new or start.keys() != end.keys():
        raise ShapeMismatchError(
            "New parameters should have the structure of those that the function is "
            f"expanded about, {old}, with real numbers in the same places; got {new}."
        )
    for name, value in start.items():
        if end[name].shape != value.shape:
            raise ShapeMismatchError(
                "New parameters should have the shapes of those that the function is "
                f"expanded about; got {end[name].shape} in place of {value.shape}."
            )
        if jnp.iscomplexobj(end[name]) and not jnp.iscomplexobj(value):
            raise InputError(
                "A function that is expanded about real parameters is no function of "
                "complex ones."
            )
    step = {name: (end[name] - v).astype(v.dtype) for name, v in start.items()}
    return step, join


def _degree(degree: Any) -> int:
    try:
        found = operator.index(degree)
    except TypeError:
        found = -1
    if found < 0 or isinstance(degree, bool):
        raise InputError(
            f"`degree` should be a whole number, 0 or more; got {degree!r}."
        )
    return found
