"""What is trained underneath a declared parameter, at finite widths.

The network receives w = c theta, and theta is trained. Which c, and so which theta, is
what a parameterisation says; the distribution of w is the same in all of them.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError
from .._jax import is_concrete
from ._declare import Constant, Normal, fan_in_root, trial_shape


def trained_factor(declaration: Normal | Constant, widths: Mapping[str, int]) -> Any:
    """The c of w = c theta at given widths.

    Args:
        declaration: made by `normal` or `constant`.
        widths: the value of every width in its shape.

    Returns:
        A number, or a scalar array where `std` is one.

    Raises:
        InputError: the standard parameterisation is asked of a width without a base.

    References:
        Sohl-Dickstein et al. (2020), https://arxiv.org/abs/2001.07301, tables 1 and 2.
    """
    if isinstance(declaration, Constant):
        return 1.0
    match declaration.parameterization:
        case "ntk":
            return declaration.std / fan_in_root(declaration, widths)
        case "standard":
            return fan_in_root_at_base(declaration) / fan_in_root(declaration, widths)
        case _:  # "standard-naive" differs from None in the default fan-in alone
            return 1.0


def tangent_variance(declaration: Normal | Constant) -> tuple[Any, Fraction]:
    """The variance of the entries of a direction, for the tangent kernel.

    Where theta moves along u ~ N(0, lr), w = c theta moves by entries of variance
    lr c^2. As a `std` of the declaration is before it is divided by the fan-in, this is
    lr c^2 times the fan-in.

    Returns:
        The variance, a number or a scalar array, at width 1, and the power of the width
        that multiplies it.

    Raises:
        InputError: the standard parameterisation is asked of a width without a base.
    """
    lr = float(declaration.lr) if is_concrete(declaration.lr) else declaration.lr
    if isinstance(declaration, Constant):
        return lr, Fraction(0)
    match declaration.parameterization:
        case "ntk":
            std = declaration.std
            return lr * (float(std) if is_concrete(std) else std) ** 2, Fraction(0)
        case "standard":
            return lr * fan_in_root_at_base(declaration) ** 2, Fraction(0)
        case _:
            sizes = [declaration.shape[a] for a in declaration.fan_in_axes]
            finite = [s for s in sizes if isinstance(s, int)]
            return lr * math.prod(finite), Fraction(len(sizes) - len(finite))


def fan_in_root_at_base(declaration: Normal) -> float:
    """The square root of the fan-in at the base widths, the N M of the paper.

    Raises:
        InputError: a width of the fan-in has no base.
    """
    fan_in = Fraction(1)
    for axis in declaration.fan_in_axes:
        size = declaration.shape[axis]
        if isinstance(size, int):
            fan_in *= size
            continue
        for width, _ in size.terms:
            if width.base is None:
                raise InputError(
                    f"The fan-in of a parameter of shape {_text(declaration.shape)} "
                    f"has the width {width.name}, whose base is not known: the "
                    f"standard parameterisation needs it. Write "
                    f"wl.width({width.name!r}, base=512), 512 being the width of the "
                    "network whose learning rates should carry over."
                )
        fan_in *= sum((c * w.base for w, c in size.terms if w.base), Fraction(0))
    return math.sqrt(fan_in)


def sample(
    declaration: Normal | Constant,
    widths: Mapping[str, int],
    key: Any,
    dtype: Any = None,
) -> jax.Array:
    """Draw the trained variable of one declared parameter, at finite width.

    Args:
        declaration: made by `normal` or `constant`.
        widths: the value of every width in its shape.
        key: a JAX random key.
        dtype: floating type of the array; JAX's default if None.

    Raises:
        InputError: a width is missing, or a size is not whole; the standard
            parameterisation is asked of a width without a base.
    """
    shape = trial_shape(declaration.shape, widths)
    dtype = jnp.result_type(float) if dtype is None else dtype
    if isinstance(declaration, Constant):
        return jnp.broadcast_to(jnp.asarray(declaration.value, dtype), shape)
    z = jax.random.normal(key, shape, dtype)
    if declaration.parameterization == "ntk":
        return z  # not std z / factor: the two cancel, and may both be zero
    std = jnp.asarray(declaration.std, dtype) / fan_in_root(declaration, widths)
    return std / trained_factor(declaration, widths) * z


def received(
    declaration: Normal | Constant, theta: Any, widths: Mapping[str, int]
) -> Any:
    """What the network receives, from the trained variable: c theta.

    Raises:
        InputError: the standard parameterisation is asked of a width without a base.
    """
    factor = trained_factor(declaration, widths)
    if isinstance(factor, float) and factor == 1.0:
        return theta
    return jnp.asarray(factor, theta.dtype) * theta


def _text(shape: Any) -> str:
    return f"({', '.join(map(str, shape))})"
