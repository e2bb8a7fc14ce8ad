"""Kernels of many test inputs, by blocks of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from .._errors import InputError
from ._gaussian import kernel_part
from ._interleaved import as_matrix
from ._namespace import real


class KernelOfTest:
    """The kernels of test inputs with the training inputs and with themselves.

    Args:
        kernel_fn: `(x1, x2, get, **options)`.
        x_test: the test inputs.
        x_train: the training inputs.
        of_train: options of the kernel of the training inputs.
        of_test: those of the test inputs, as the caller gives them.
        block: the most inputs in one call of `kernel_fn`; None for all.
    """

    def __init__(
        self,
        kernel_fn: Callable[..., Any],
        x_test: Any,
        x_train: Any,
        of_train: Mapping[str, Any],
        of_test: Mapping[str, Any],
        block: int | None,
    ) -> None:
        self._kernel_fn, self._x_train = kernel_fn, x_train
        self._cross, self._test = merged_options(of_train, of_test)
        size = _length(x_test)
        paired = any(
            name == "rng" or _is_pair(name, value)
            for name, value in self._cross.items()
        )
        if block is None or size is None or size <= block or paired:
            self._blocks = [x_test]
        else:
            self._blocks = [
                jax.tree_util.tree_map(lambda a, i=i, stop=i + block: a[i:stop], x_test)
                for i in range(0, size, block)
            ]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._blocks)

    def cross(self, i: int, names: tuple[str, ...]) -> dict[str, Any]:
        """The kernels of a block of test inputs with the training inputs."""
        found = self._kernel_fn(self._blocks[i], self._x_train, names, **self._cross)
        kernels = {n: kernel_part("kernel_fn(..)", found, n) for n in names}
        self._check(i, kernels[names[0]])
        return kernels

    def test(self, xp: Any) -> Any:
        """The NNGP kernel of the test inputs with themselves, as a matrix (m, m).

        Blocks off the diagonal are of different inputs, so that what holds for an input
        with itself (dropout) holds on the diagonal only, as it does for all at once.
        """
        rows: list[list[Any]] = []
        for i, x in enumerate(self._blocks):
            row = [rows[j][i].T for j in range(i)]
            for j in range(i, self.blocks):
                other = None if i == j else self._blocks[j]
                found = self._kernel_fn(x, other, "nngp", **self._test)
                k = real(xp, "kernel_fn(x_test)", kernel_part("..", found, "nngp"))
                self._check(i, k)
                row.append(as_matrix(k))
            rows.append(row)
        return xp.block(rows) if self.blocks > 1 else rows[0][0]

    def _check(self, i: int, k: Any) -> None:
        size = _length(self._blocks[i])
        if self.blocks > 1 and (k.ndim == 0 or k.shape[0] != size):
            raise InputError(
                f"For a block of {size} test inputs the kernel function gives a kernel "
                f"of shape {tuple(k.shape)}. Blocks are of the first axis of `x_test`; "
                "where the inputs are along another, give block=None."
            )


def merged_options(
    of_train: Mapping[str, Any], of_test: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the kernel function for test with training inputs, and for test.

    Those of the training inputs hold for the test inputs as well unless given again.
    A pair of arrays, one for each batch, is then put together from the two pairs.

    Raises:
        InputError: an option is new, or differs and is not an array.
    """
    cross, test = dict(of_train), dict(of_train)
    for name, value in of_test.items():
        if name not in of_train:
            raise InputError(
                f"`{name}` is given for the test inputs only. Give it also where the "
                "training inputs are: the kernels have to be of the same process."
            )
        before = of_train[name]
        if _is_pair(name, before) and _is_pair(name, value):
            cross[name], test[name] = (value[0], before[0]), value
        elif _has_arrays(before) and _has_arrays(value):
            cross[name] = test[name] = value
        elif _has_arrays(before) or _has_arrays(value) or before != value:
            raise InputError(
                f"`{name}` is {before!r} for the training inputs and {value!r} for the "
                "test inputs; the kernel between them needs one value."
            )
    return cross, test


def _has_arrays(value: Any) -> bool:
    leaves = jax.tree_util.tree_leaves(value)
    return bool(leaves) and all(isinstance(x, np.ndarray | jax.Array) for x in leaves)


def _is_pair(name: str, value: Any) -> bool:
    """Whether an option is a pair of arrays, one for each batch of inputs.

    Parameters of two layers are a pair of another kind.
    """
    pair = isinstance(value, tuple) and len(value) == 2
    return name != "params" and pair and _has_arrays(value)


def _length(x: Any) -> int | None:
    """The size of the first axis, if all arrays in `x` have the same."""
    shapes = [np.shape(leaf) for leaf in jax.tree_util.tree_leaves(x)]
    sizes = {shape[0] if shape else None for shape in shapes}
    return sizes.pop() if len(sizes) == 1 else None
