"""A pytree in two parts: its arrays, and what is no array."""

import dataclasses
from typing import Any

import jax
import numpy as np

Path = tuple[Any, ...]
"""Where a leaf stands: the keys that `jax.tree_util` gives it."""
_ARRAY = object()


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """A pytree whose arrays are traced by `jax.jit`, and whose other leaves are static.

    A jitted function can take it and give it: names, flags and sizes stay what they
    are, and the function is compiled again when they change.

    Attributes:
        arrays: the leaves that are arrays.
        fixed: all leaves, with a mark where an array stands.
        tree: their structure.
    """

    arrays: tuple[Any, ...]
    fixed: tuple[Any, ...]
    tree: Any

    @classmethod
    def of(cls, value: Any) -> "Parts":
        """The parts of a pytree."""
        leaves, tree = jax.tree.flatten(value)
        fixed = tuple(_ARRAY if is_array(leaf) else leaf for leaf in leaves)
        return cls(tuple(leaf for leaf in leaves if is_array(leaf)), fixed, tree)

    @property
    def value(self) -> Any:
        """The pytree."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.fixed]
        return jax.tree.unflatten(self.tree, leaves)

    def by_path(self) -> dict[Path, tuple[Any, bool]]:
        """The leaves in order, each with whether it is an array."""
        leaves = jax.tree_util.tree_flatten_with_path(self.value)[0]
        return {
            tuple(path): (leaf, fixed is _ARRAY)
            for (path, leaf), fixed in zip(leaves, self.fixed, strict=True)
        }

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """For JAX: the arrays, and the rest. 1, 1.0 and True are not the same."""
        return self.arrays, (self.fixed, tuple(map(type, self.fixed)), self.tree)

    @classmethod
    def tree_unflatten(cls, aux: Any, arrays: tuple[Any, ...]) -> "Parts":
        """For JAX."""
        fixed, _, tree = aux
        return cls(tuple(arrays), fixed, tree)


def is_array(x: Any) -> bool:
    """Whether `x` is an array of JAX or of NumPy; a number is none."""
    return isinstance(x, jax.Array | np.ndarray)
