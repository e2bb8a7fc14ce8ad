"""One finite network: a draw of its parameters, and the function at its widths."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._errors import InputError
from ..trace._declare import (
    Constant,
    Normal,
    sample,
    widths_are,
    widths_in,
)


def at(
    f: Callable[..., Any],
    params: Any,
    key: Any,
    widths: Mapping[str, int],
    dtype: Any = None,
) -> tuple[Callable[..., Any], Any]:
    """Draw a finite network.

    Args:
        f: the network, `f(params, x)`.
        params: a pytree of declarations and arrays; arrays are kept as they are.
        key: a JAX random key.
        widths: the value of every width.
        dtype: floating type of the drawn arrays; JAX's default if None.

    Returns:
        `f` at these widths (it may be jitted, differentiated, mapped), and the pytree
        of arrays to call it with.

    Raises:
        InputError: a width is missing, unknown or not a positive whole number, or
            makes a size that is not whole.
    """
    sizes = _complete(widths, params)
    f_at_widths = _at_widths(f, sizes)
    leaves, tree = jax.tree_util.tree_flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    theta = [
        sample(leaf, sizes, k, dtype) if isinstance(leaf, Normal | Constant) else leaf
        for leaf, k in zip(leaves, keys, strict=False)
    ]
    return f_at_widths, jax.tree_util.tree_unflatten(tree, theta)


def _complete(widths: Mapping[str, int], params: Any) -> dict[str, int]:
    declared = widths_in(params)
    missing = sorted(set(declared) - set(widths))
    unknown = sorted(set(widths) - set(declared))
    if missing or unknown:
        wrong = [f"{name} is missing" for name in missing]
        wrong += [f"{name} is in no parameter" for name in unknown]
        raise InputError(
            f"The network has the widths {', '.join(sorted(declared)) or '(none)'}: "
            f"give each of them once, as in net.at(n=1024); {', '.join(wrong)}."
        )
    return dict(widths)


def _at_widths(f: Callable[..., Any], widths: Mapping[str, int]) -> Callable[..., Any]:
    with widths_are(widths):  # refuses bad values now rather than at the first call
        pass

    @functools.wraps(f)
    def at_widths(theta: Any, x: Any) -> Any:
        with widths_are(widths):
            return f(theta, x)

    return at_widths
