"""A network at small widths, to find out what holds at all of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._jax import is_concrete
from .trace import Constant, Normal, trial_shape, widths_are, widths_in

# Divisible by the usual numbers of heads and groups; the last by all up to ten.
WIDTHS = (48, 192, 960, 5040)

# Weights with an axis of heads are cubes of the width.
_MOST_NUMBERS = 2**29


def small_network(
    f: Callable[..., Any], params: Any, widths: Mapping[str, int], dtype: Any
) -> tuple[Callable[..., Any], Any]:
    """The network at small widths, and its parameters, of one floating type.

    Only which numbers meet matters, not their law.
    """
    rng = np.random.default_rng(1)

    def draw(p: Any) -> Any:
        if isinstance(p, Normal):
            shape = trial_shape(p.shape, widths)
            std = float(p.std) if is_concrete(p.std) else 1.0
            scale = std / math.prod(shape[a] for a in p.fan_in_axes) ** 0.5
            return (scale * rng.standard_normal(shape)).astype(dtype)
        if isinstance(p, Constant):
            value = np.asarray(p.value) if is_concrete(p.value) else np.ones(())
            return np.broadcast_to(value, trial_shape(p.shape, widths)).astype(dtype)
        return in_precision(p if is_concrete(p) else np.ones(p.shape, p.dtype), dtype)

    theta = jax.tree.map(draw, params, is_leaf=_is_declared)

    def run(theta: Any, x: Any) -> Any:
        with widths_are(widths):
            return f(theta, x)

    return jax.jit(run), theta


def in_precision(a: Any, dtype: Any) -> Any:
    """An array of another floating type, if of one; labels and keys are left alone."""
    floating = hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)
    return np.asarray(a).astype(dtype) if floating else a


def small_scales(params: Any) -> list[int]:
    """The common scales to try: `WIDTHS`, as far as parameters stay small arrays."""

    def is_small(scale: int) -> bool:
        widths = small_widths(params, scale)
        leaves = jax.tree.leaves(params, is_leaf=_is_declared)
        shapes = (trial_shape(p.shape, widths) for p in leaves if _is_declared(p))
        return sum(map(math.prod, shapes)) <= _MOST_NUMBERS

    return [scale for scale in WIDTHS if scale == WIDTHS[0] or is_small(scale)]


def _is_declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def small_widths(params: Any, scale: int) -> dict[str, int]:
    """Every width at a common scale."""
    return {
        name: max(1, round(float(w.ratio) * scale))
        for name, w in widths_in(params).items()
    }
