"""Which axes of a kernel change places when its two batches do.

A kernel of one batch with itself is symmetric, so that half of its tiles are mirror
images. A tile (N1, N2, ...) is mirrored by exchanging N1 and N2, and the two axes of
each pair of positions. Where the pairs are is not written on an array: of
(N1, N2, 8, 8) the last two may be one pair, or two positions of which only equal ones
are held. The tiles on the diagonal contain both of (i, j) and (j, i), and show it.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._cut import is_kernel
from ._parts import Parts, Path

# Of the largest entry: more than this is no rounding, whatever the precision.
_ROUNDING = 1e-3


class Mirror:
    """Finds out how the tiles of a symmetric matrix are mirrored.

    Args:
        answer: the result for one tile; shapes are enough.
        paths: where the matrices stand in it.
    """

    def __init__(self, answer: Parts, paths: list[Path]) -> None:
        leaves, known = answer.by_path(), dict(_known(answer))
        self._left = {
            p: [known[p]] if p in known else layouts(leaves[p][0].shape) for p in paths
        }

    def see(self, answer: Parts) -> None:
        """Keep the layouts by which a tile on the diagonal is symmetric."""
        found = answer.by_path()
        for path, left in self._left.items():
            tile = found[path][0]
            self._left[path] = [axes for axes in left if _is_symmetric(tile, axes)]

    @property
    def axes(self) -> Mapping[Path, tuple[int, ...]] | None:
        """How to transpose each matrix; None where that is not known.

        It is not known when no layout explains what was seen: the function is not
        symmetric. Nor when several do: all inputs of a tile may be equal, and others
        not.
        """
        if any(len(left) != 1 for left in self._left.values()):
            return None
        return {path: left[0] for path, left in self._left.items()}


def layouts(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The transpositions that may exchange the batches of a (N1, N2, ...) matrix.

    Each axis after the first two is alone, or in a pair with its neighbour, as in
    (N1, N2, H, H', W, W'); or the first half are pairs with the second, as in
    (N1, N2, H, W, H', W').

    Returns:
        The axes for `jnp.transpose`, each transposition once.
    """
    count = len(shape) - 2
    swaps = [list(s) for s in _neighbours(shape, 2)]
    half = count // 2
    if count % 2 == 0 and shape[2 : 2 + half] == shape[2 + half :]:
        swaps.append([(a, a + half) for a in range(2, 2 + half)])
    found = {}
    for pairs in swaps:
        axes = [1, 0, *range(2, len(shape))]
        for a, b in pairs:
            # Moving axes of one entry changes nothing.
            if shape[a] > 1:
                axes[a], axes[b] = b, a
        found[tuple(axes)] = None
    return list(found)


def _neighbours(shape: tuple[int, ...], start: int) -> Iterator[list[tuple[int, int]]]:
    """Every choice of pairs of neighbouring equal axes from `start` on."""
    if start >= len(shape):
        yield []
        return
    yield from _neighbours(shape, start + 1)
    if shape[start : start + 1] == shape[start + 1 : start + 2]:
        for rest in _neighbours(shape, start + 2):
            yield [(start, start + 1), *rest]


def _known(answer: Parts) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """The layout of the matrices of `Kernel` objects: these say what it is."""
    nodes = jax.tree_util.tree_flatten_with_path(answer.value, is_leaf=is_kernel)[0]
    for path, k in nodes:
        if not is_kernel(k):
            continue
        for name in ("nngp", "ntk"):
            count = np.ndim(getattr(k, name)) - 2
            if count < 0 or (count % 2 and not k.diagonal_spatial):
                continue
            axes = [1, 0, *range(2, 2 + count)]
            if not k.diagonal_spatial:
                axes[2::2], axes[3::2] = axes[3::2], axes[2::2]
            yield (*path, jax.tree_util.GetAttrKey(name)), tuple(axes)


def _is_symmetric(tile: Any, axes: tuple[int, ...]) -> bool:
    if tuple(tile.shape[a] for a in axes) != tile.shape:
        return False
    return bool(_within_rounding(tile, axes))


@functools.partial(jax.jit, static_argnums=1)
def _within_rounding(tile: Any, axes: tuple[int, ...]) -> Any:
    mirrored = jnp.transpose(tile, axes)
    if not jnp.issubdtype(tile.dtype, jnp.inexact):
        return jnp.all(tile == mirrored)
    # False where there is a NaN.
    allowed = min(float(jnp.finfo(tile.dtype).eps) ** 0.5, _ROUNDING)
    return jnp.max(jnp.abs(tile - mirrored)) <= allowed * jnp.max(jnp.abs(tile))
