"""`widelimit kernel`, and kernels computed tile by tile with a progress bar."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import InputError
from .._jax import enable_x64
from ._files import read, writable, write
from ._network import load
from ._progress import progress

TILE = 256
"""Inputs along the side of a tile: seconds of work for an expensive network."""


def kernel(target: str, x1: str, x2: str | None, output: Path, dtype: str) -> int:
    """Compute a kernel from files to a file."""
    writable(output)
    a = _real(x1, read(x1), dtype)
    b = None if x2 is None else _real(x2, read(x2), dtype)
    network = load(target)
    with network.blame(), enable_x64(dtype == "float64"):
        result = tiled(network.limit, a, b)
    write(output, result)
    print(f"{output}: {dtype} kernel of shape {result.shape}")
    return 0


def _real(name: str, x: np.ndarray, dtype: str) -> np.ndarray:
    if x.dtype.kind not in "fiub":
        raise InputError(f"{name} has type {x.dtype}; real numbers were expected.")
    # Token indices and masks keep their type; the network may index with them.
    return x.astype(dtype) if x.dtype.kind == "f" else x


def tiled(net: Any, x1: np.ndarray, x2: np.ndarray | None = None) -> np.ndarray:
    """The kernel `net.nngp(x1, x2)`, with a progress bar when standard error shows one.

    Without `x2`, the tiles on one side of the diagonal are computed and mirrored. A
    batch whose inputs interact is one tile.
    """
    if x1.ndim == 0 or net.coupled(x1):
        return np.asarray(net.nngp(x1, x2))
    symmetric = x2 is None
    rows, columns = _starts(len(x1)), _starts(len(x1 if x2 is None else x2))
    tiles = [(i, j) for i in rows for j in columns if not symmetric or i <= j]
    if len(tiles) <= 1:
        return np.asarray(net.nngp(x1, x2))
    with progress("kernel") as report:
        return _assembled(net, x1, x2, tiles, report)


def _assembled(
    net: Any,
    x1: np.ndarray,
    x2: np.ndarray | None,
    tiles: list[tuple[int, int]],
    report: Callable[[int, int], None],
) -> np.ndarray:
    right = x1 if x2 is None else x2
    result = np.empty(0)
    for done, (i, j) in enumerate(tiles):
        same = x2 is None and i == j
        other = None if same else right[j : j + TILE]
        tile = np.asarray(net.nngp(x1[i : i + TILE], other))
        if done == 0:
            result = np.empty((len(x1), len(right), *tile.shape[2:]), tile.dtype)
        result[i : i + TILE, j : j + TILE] = tile
        if x2 is None and not same:
            result[j : j + TILE, i : i + TILE] = _mirror(tile)
        report(done + 1, len(tiles))
    return result


def _starts(size: int) -> list[int]:
    """Starts of tiles that cover `size` inputs.

    The last one overlaps its neighbour instead of being smaller: every new shape would
    be compiled anew.
    """
    if size <= TILE:
        return [0]
    return [*range(0, size - TILE, TILE), size - TILE]


def _mirror(tile: np.ndarray) -> np.ndarray:
    """The tile of the same pairs in the other order: inputs and positions swap."""
    positions = (tile.ndim - 2) // 2
    first = range(2, 2 + positions)
    second = range(2 + positions, 2 + 2 * positions)
    return tile.transpose(1, 0, *second, *first)
