"""A matrix of pairs, put together from its tiles."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# What XLA takes over from NumPy without a copy begins at such an address.
_ALIGNED = 64


class OnHost:
    """The matrices in the memory of the host, which is that of JAX on a CPU.

    Args:
        tile: a tile, (R, C, *I, *I'), or a pytree of them; shapes are enough.
        rows: of the whole.
        cols: of the whole.
    """

    def __init__(self, tile: Any, rows: int, cols: int) -> None:
        self._whole = jax.tree.map(
            lambda a: _empty((rows, cols, *a.shape[2:]), a.dtype), tile
        )

    def put(self, tile: Any, row: int, col: int) -> None:
        """Put a tile in its place; what stands beyond the matrix is left out."""
        jax.tree.map(lambda w, t: _put(w, np.asarray(t), row, col), self._whole, tile)

    def result(self) -> Any:
        """The matrices as arrays of JAX, without a copy."""
        return jax.device_put(self._whole)


class OnDevice:
    """The matrices where the tiles are made, each filled in place; as `OnHost`."""

    def __init__(self, tile: Any, rows: int, cols: int) -> None:
        self._whole = jax.tree.map(
            lambda a: jnp.zeros((rows, cols, *a.shape[2:]), a.dtype), tile
        )

    def put(self, tile: Any, row: int, col: int) -> None:
        """Put a tile in its place."""
        rows, cols = jax.tree.leaves(self._whole)[0].shape[:2]
        inside = jax.tree.map(lambda a: a[: rows - row, : cols - col], tile)
        self._whole = _written(self._whole, inside, row, col)

    def result(self) -> Any:
        """The matrices."""
        return self._whole


@jax.jit
def mirrored(tile: Any) -> Any:
    """Tiles with the roles of both sides exchanged."""
    return jax.tree.map(exchanged, tile)


def exchanged(k: Any) -> Any:
    """A kernel (R, C, *I, *I') with the roles of both sides exchanged."""
    half = (k.ndim - 2) // 2
    first = tuple(range(2, 2 + half))
    return k.transpose(1, 0, *(a + half for a in first), *first)


@jax.jit
def square(tile: Any, diagonal: Any) -> Any:
    """A square tile, symmetric: from what is above its diagonal, and its entries."""

    def one(t: Any, d: Any) -> Any:
        index = jnp.arange(len(d))
        axes = tuple(range(2, t.ndim))
        below = jnp.expand_dims(index[:, None] > index, axes)
        on = jnp.expand_dims(index[:, None] == index, axes)
        return jnp.where(on, d[:, None], jnp.where(below, exchanged(t), t))

    return jax.tree.map(one, tile, diagonal)


@functools.partial(jax.jit, donate_argnums=0)
def _written(whole: Any, tile: Any, row: Any, col: Any) -> Any:
    def write(w: Any, t: Any) -> Any:
        return lax.dynamic_update_slice(w, t, (row, col, *(0,) * (w.ndim - 2)))

    return jax.tree.map(write, whole, tile)


def _put(whole: np.ndarray, tile: np.ndarray, row: int, col: int) -> None:
    rows, cols = whole.shape[0] - row, whole.shape[1] - col
    height, width = min(rows, len(tile)), min(cols, tile.shape[1])
    whole[row : row + height, col : col + width] = tile[:height, :width]


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins at an address that JAX takes over."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(count + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + count].view(dtype).reshape(shape)
