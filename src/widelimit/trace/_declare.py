"""Parameter declarations: what a network's arrays are at initialisation."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, InvalidProgramError
from .._jax import is_concrete
from ..program._lines import Dim
from ._number import whole
from ._tap import TAP_PREFIX as TAP_PREFIX
from ._tap import tap as tap
from ._width import Width as Width
from ._width import WidthForm as WidthForm
from ._width import same_width
from ._width import width as width
from ._width import widths_are as widths_are

Shape = tuple[int | Width | WidthForm, ...]

PARAMETERIZATIONS = ("ntk", "standard", "standard-naive")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """Independent Gaussian entries of mean zero; made by `normal`.

    Attributes:
        shape: sizes and widths.
        std: standard deviation, a number or a scalar array.
        fan_in: the axes whose sizes divide the variance, or None for the default.
        lr: learning rate of the array, relative to the others.
        parameterization: what the trained variable is, see `normal`.
    """

    shape: Shape
    std: Any = 1.0
    fan_in: tuple[int, ...] | None = None
    lr: Any = 1.0
    parameterization: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether its learning rate is not zero, as far as is known."""
        return not _is_zero(self.lr)

    @property
    def fan_in_axes(self) -> tuple[int, ...]:
        """The axes whose sizes divide the variance of what the network receives."""
        if self.fan_in is not None:
            return self.fan_in
        if self.parameterization is None or len(self.shape) < 2:
            return ()
        return tuple(range(len(self.shape) - 1))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A parameter that is the same at every initialisation; made by `constant`.

    Attributes:
        shape: sizes and widths.
        value: a number, or an array that broadcasts to `shape`.
        lr: learning rate of the array, relative to the others.
    """

    shape: Shape
    value: Any
    lr: Any = 1.0

    @property
    def is_trained(self) -> bool:
        """Whether its learning rate is not zero, as far as is known."""
        return not _is_zero(self.lr)


def normal(
    shape: Any,
    std: Any = 1.0,
    fan_in: int | tuple[int, ...] | None = None,
    lr: Any = 1.0,
    parameterization: str | None = None,
) -> Normal:
    r"""Declare a parameter with independent Gaussian entries.

    Without `parameterization` the network receives $\theta \sim N(0, \sigma^2)$, or
    $N(0, \sigma^2/\text{fan-in})$ when `fan_in` is given. With it the network receives
    the effective weight, of variance $\sigma^2/\text{fan-in}$, and writes `x @ w + b`;
    the fan-in is then every axis but the last unless given, and 1 for a bias. The
    variable $\theta$ that is trained underneath, and that the tangent kernel
    differentiates by, is

    - "ntk": $w = \sigma \theta / \sqrt{\text{fan-in}}$, $\theta \sim N(0, 1)$;
    - "standard": $w = \theta / \sqrt s$, with $s$ the fan-in over that at the base
      widths (see `wl.width`) and 1 where no width is in it, so that learning rates
      of the network at its base widths carry over;
    - "standard-naive": $w = \theta$; its tangent kernel diverges like n.

    Args:
        shape: sizes (whole numbers), widths and linear forms in widths.
        std: the standard deviation $\sigma$; may be a traced scalar.
        fan_in: an axis, or axes, whose sizes divide the variance.
        lr: learning rate relative to other parameters, used by the tangent kernel.
        parameterization: "ntk", "standard", "standard-naive", or None for an array
            that is itself trained.

    Raises:
        InputError: an argument is out of its range.

    References:
        Sohl-Dickstein et al. (2020), https://arxiv.org/abs/2001.07301, tables 1 and 2:
        "standard" is their improved standard parameterisation.
    """
    sizes = _shape(shape)
    _scale("std", std)
    _scale("lr", lr)
    if parameterization is not None and parameterization not in PARAMETERIZATIONS:
        raise InputError(
            f"parameterization should be one of {', '.join(PARAMETERIZATIONS)}, or "
            f"None, got {parameterization!r}."
        )
    return Normal(sizes, std, _axes(fan_in, len(sizes)), lr, parameterization)


def constant(shape: Any, value: Any, lr: Any = 1.0) -> Constant:
    """Declare a parameter that is deterministic at initialisation.

    Args:
        shape: sizes (whole numbers), widths and linear forms in widths.
        value: a number, or an array that broadcasts to `shape`, with size one along
            its wide axes.
        lr: learning rate relative to other parameters; 0 for one that is not trained.

    Raises:
        InputError: `value` does not broadcast, or is not finite; or `lr` is negative.
    """
    sizes = _shape(shape)
    _scale("lr", lr)
    _real("value", value)
    tail = sizes[len(sizes) - np.ndim(value) :] if np.ndim(value) else ()
    fits = np.ndim(value) <= len(sizes) and all(
        v == 1 or (isinstance(s, int) and v == s)
        for v, s in zip(np.shape(value), tail, strict=True)
    )
    if not fits:
        raise InputError(
            f"A value of shape {np.shape(value)} does not broadcast to "
            f"{_text(sizes)}; along a wide axis a constant has size one."
        )
    return Constant(sizes, value, lr)


def dims_of(shape: Any) -> tuple[int | Dim, ...]:
    """The shape of a parameter: whole numbers, and dimensions that grow.

    Raises:
        InputError: an entry is neither a positive whole number nor a width.
    """
    return tuple(s if isinstance(s, int) else s.dim for s in _shape(shape))


def widths_in(params: Any) -> dict[str, Width]:
    """All widths in a pytree of declarations, by name.

    Raises:
        InputError: two different widths have one name.
    """
    found: dict[str, Width] = {}
    for leaf in jax.tree_util.tree_leaves(params):
        if not isinstance(leaf, Normal | Constant):
            continue
        for size in leaf.shape:
            for w, _ in () if isinstance(size, int) else size.terms:
                same_width(found.setdefault(w.name, w), w)
    return found


def trial_shape(shape: Any, widths: Mapping[str, int]) -> tuple[int, ...]:
    """The shape at given widths.

    Raises:
        InputError: a width is missing, or a size is not whole.
    """
    try:
        return tuple(
            d if isinstance(d, int) else d.size(widths) for d in dims_of(shape)
        )
    except InvalidProgramError as error:
        raise InputError(str(error)) from None


def fan_in_root(declaration: Normal, widths: Mapping[str, int]) -> float:
    """What `std` is divided by at given widths, the square root of the fan-in."""
    shape = trial_shape(declaration.shape, widths)
    return math.sqrt(math.prod(shape[axis] for axis in declaration.fan_in_axes))


def _is_zero(rate: Any) -> bool:
    return is_concrete(rate) and float(rate) == 0.0


def _shape(shape: Any) -> Shape:
    if isinstance(shape, Width | WidthForm) or whole(shape):
        shape = (shape,)
    if not isinstance(shape, tuple | list):
        raise InputError(f"A shape should be a tuple such as (3, n), got {shape!r}.")
    return tuple(_size(size, shape) for size in shape)


def _size(size: Any, shape: Any) -> int | Width | WidthForm:
    if isinstance(size, Width | WidthForm):
        return size
    if not whole(size) or int(size) <= 0:
        raise InputError(
            f"The entries of a shape should be positive whole numbers or widths (n, "
            f"4 * n, n // 4, n + m), got {size!r} in {_text(shape)}."
        )
    return int(size)


def _text(shape: Any) -> str:
    inner = ", ".join(str(size) for size in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def _axes(fan_in: Any, ndim: int) -> tuple[int, ...] | None:
    if fan_in is None:
        return None
    given = tuple(fan_in) if isinstance(fan_in, tuple | list) else (fan_in,)
    if not all(whole(a) and -ndim <= a < ndim for a in given):
        raise InputError(
            f"fan_in should be an axis, or a tuple of axes, of an array with {ndim} "
            f"axes, got {fan_in!r}."
        )
    axes = tuple(int(a) % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise InputError(f"fan_in names an axis twice: {fan_in!r}.")
    return axes


def _scale(what: str, x: Any) -> None:
    _real(what, x)
    if np.ndim(x) != 0:
        raise InputError(
            f"{what} should be one number, got an array of shape {np.shape(x)}."
        )
    if is_concrete(x) and float(x) < 0:
        raise InputError(f"{what} should not be negative, got {x}.")


def _real(what: str, x: Any) -> None:
    """Refuse what is no real number, or (where it is known now) not finite."""
    if isinstance(x, Width | WidthForm):
        raise InputError(
            f"{what} should not depend on a width, got {x}: declare fan_in, or scale "
            "inside the network."
        )
    try:
        dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    except ValueError:
        dtype = np.dtype(object)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise InputError(f"{what} should be a real number or array, got {x!r}.")
    if is_concrete(x) and not np.all(np.isfinite(np.asarray(x, np.float64))):
        raise InputError(f"{what} should be finite, got {x}.")
