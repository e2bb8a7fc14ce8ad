"""Kernels with index axes, as matrices."""

import math
from typing import Any

import numpy as np

from .._errors import ShapeMismatchError
from ._check import double


def kernel_matrix(
    name: str, k: Any, rows: tuple[int, ...], columns: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """A kernel between outputs of two shapes, as a matrix, and its multiplicity.

    Args:
        name: of the kernel, for messages.
        k: shape (M, N, *I, *I'), the same for every entry of the last axis of the
            output, or (M, N, *I, O, *I', O').
        rows: shape of the outputs of the first inputs, (M, *I, O) or (M,).
        columns: shape of the outputs of the second inputs.

    Returns:
        The matrix, and the number of output entries that share it: O, or 1.

    Raises:
        ShapeMismatchError: the kernel has neither shape.
        InputError: it is not finite, complex or traced.
    """
    array = double(name, k)
    for shared in (0, 1):
        if len(rows) <= shared or len(columns) != len(rows):
            continue
        a, b = rows[: len(rows) - shared], columns[: len(columns) - shared]
        if array.shape == (a[0], b[0], *a[1:], *b[1:]):
            moved = np.moveaxis(array, 1, len(a))
            return moved.reshape(math.prod(a), -1), math.prod(columns[len(b) :])
    a, b = rows[:-1] or rows, columns[:-1] or columns
    raise ShapeMismatchError(
        f"For outputs of shape {rows} and {columns}, `{name}` should have shape "
        f"{(a[0], b[0], *a[1:], *b[1:])} (averaged over the last axis) or "
        f"{(rows[0], columns[0], *rows[1:], *columns[1:])}; got {array.shape}."
    )


def kernel_block(
    name: str, k: Any, rows: tuple[int, ...], columns: tuple[int, ...]
) -> np.ndarray:
    """A kernel between outputs of two shapes, all of whose axes it has, as a matrix.

    Args:
        name: of the kernel, for messages.
        k: shape (rows[0], columns[0], *rows[1:], *columns[1:]).
        rows: shape of the outputs of the first inputs.
        columns: shape of the outputs of the second inputs.

    Raises:
        ShapeMismatchError: the kernel has another shape.
        InputError: it is not finite, complex or traced.
    """
    array = double(name, k)
    expected = (rows[0], columns[0], *rows[1:], *columns[1:])
    if array.shape != expected:
        raise ShapeMismatchError(
            f"`{name}` should have shape {expected}, got {array.shape}."
        )
    return np.moveaxis(array, 1, len(rows)).reshape(math.prod(rows), -1)


def kernel_array(matrices: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    """Square matrices (T, n, n) as kernels (T, N, N, *I, *I)."""
    arrays = matrices.reshape(len(matrices), *rows, *rows)
    return np.moveaxis(arrays, 1 + len(rows), 2)
