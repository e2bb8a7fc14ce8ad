"""The arguments of a kernel function for one tile."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from .._errors import InputError, ShapeMismatchError
from .._jax import is_concrete
from .._kernel import Kernel
from ._parts import is_array

Index = tuple[int, int]
"""The place of a tile: its row and its column of tiles."""


class Cut:
    """Arguments that are cut along the rows and columns of a matrix.

    Args:
        inputs: from the rows, the columns, and whether x2 is left out, the positional
            arguments for a tile.
        size: rows and columns of the matrix.
        alone: one batch with itself.
        kwargs: keyword arguments. A pair of arrays has entries for the rows and for
            the columns; `rng` is one key or two, of which every row and column of
            tiles gets its own; others are the same for all tiles.
    """

    def __init__(
        self,
        inputs: Callable[[slice, slice, bool], tuple[Any, ...]],
        size: tuple[int, int],
        alone: bool,
        kwargs: Mapping[str, Any],
    ) -> None:
        self.size, self.alone = size, alone
        self._inputs = inputs
        self._pairs = {k: v for k, v in kwargs.items() if _is_pair(k, v)}
        self._keys = {k: v for k, v in kwargs.items() if k == "rng" and _arrays(v)}
        self.fixed = {
            k: v
            for k, v in kwargs.items()
            if k not in self._pairs and k not in self._keys
        }
        for name, pair in self._pairs.items():
            _check_pair(name, pair, size)
        self.into(size)

    def into(self, step: tuple[int, int]) -> None:
        """Cut into tiles of `step` rows and columns; fewer at the ends."""
        self.rows, self.cols = (
            [slice(i, min(i + by, n)) for i in range(0, n, by)]
            for n, by in zip(self.size, step, strict=True)
        )
        self._rng = {k: self._split(v) for k, v in self._keys.items()}

    @property
    def is_one(self) -> bool:
        """Whether there is one tile."""
        return len(self.rows) == len(self.cols) == 1

    @property
    def is_symmetric(self) -> bool:
        """Whether rows and columns have the same arguments."""
        return self.alone and all(_same(*pair) for pair in self._pairs.values())

    def tile(self, at: Index) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a tile.

        On the diagonal of one batch with itself x2 is left out, as in the whole call:
        a kernel may be exact there, and approximate elsewhere.
        """
        rows, cols = self.rows[at[0]], self.cols[at[1]]
        itself = self.alone and at[0] == at[1]
        kwargs: dict[str, Any] = {k: keys(at, itself) for k, keys in self._rng.items()}
        for name, (one, two) in self._pairs.items():
            if two is None and self.alone and not itself:
                two = one
            kwargs[name] = (cut(one, rows), cut(two, cols))
        return self._inputs(rows, cols, itself), kwargs

    def _split(self, rng: Any) -> Callable[[Index, bool], Any]:
        """Keys by tile. One batch has the same key in its rows and in its columns."""
        if len(self.rows) == len(self.cols) == 1:
            return lambda at, itself: rng
        paired = isinstance(rng, tuple)
        if paired:
            one, two = rng
        elif self.alone:
            one, two = rng, None
        else:
            one, two = jax.random.split(rng)
        first = _split_key(one, len(self.rows))
        second = first if self.alone else _split_key(two, len(self.cols))

        def keys(at: Index, itself: bool) -> Any:
            pair = (
                None if first is None else first[at[0]],
                None if second is None else second[at[1]],
            )
            if not itself:
                return pair
            return (pair[0], None) if paired else pair[0]

        return keys


def uncut(inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cut:
    """All arguments as they are: inputs may be along any axis, if along one at all."""
    cut = Cut(lambda rows, cols, itself: inputs, (1, 1), False, {})
    cut.fixed.update(kwargs)
    return cut


def cut_inputs(x1: Any, x2: Any, kwargs: Mapping[str, Any]) -> Cut:
    """Cut batches of inputs: pytrees of arrays with one input per row.

    Args:
        x1: N1 inputs.
        x2: N2 inputs; without an array, for those of `x1`.
        kwargs: see `Cut`.

    Raises:
        InputError: no array, or no row.
        ShapeMismatchError: arrays of one batch have other numbers of rows.
    """
    x1, n1 = _batch("x1", x1)
    alone = not jax.tree.leaves(x2)
    other, n2 = (x1, n1) if alone else _batch("x2", x2)

    def inputs(rows: slice, cols: slice, itself: bool) -> tuple[Any, ...]:
        return cut(x1, rows), x2 if itself else cut(other, cols)

    return Cut(inputs, (n1, n2), alone, kwargs)


def cut_kernels(kernels: Any, with_x2: bool, kwargs: Mapping[str, Any]) -> Cut:
    """Cut the kernels of the layer before: a `Kernel`, or a pytree of them.

    Args:
        kernels: all of the same two batches.
        with_x2: whether the function is given None for `x2`.
        kwargs: see `Cut`.

    Raises:
        ShapeMismatchError: the kernels are of batches of other sizes.
    """
    nodes = jax.tree.leaves(kernels, is_leaf=is_kernel)
    sizes = {tuple(k.nngp.shape[:2]) for k in nodes}
    if len(sizes) > 1:
        raise ShapeMismatchError(
            f"The kernels are of {sorted(sizes)} pairs of inputs; give kernels of the "
            "same two batches."
        )
    (size,) = sizes
    alone = size[0] == size[1] and all(k.cov2 is None for k in nodes)
    # Views of NumPy's cost nothing; each slice of a JAX array is a compiled program.
    kernels = jax.tree.map(
        lambda a: np.asarray(a) if is_array(a) and is_concrete(a) else a, kernels
    )

    def piece(k: Kernel, rows: slice, cols: slice, itself: bool) -> Kernel:
        part = k.slice(rows, cols)
        if itself:
            mask2 = None if k.mask2 is None else part.mask2
            part = part.replace(cov2=None, mask2=mask2)
        return part.replace(origin=_origin(k.origin, rows, cols, itself))

    def inputs(rows: slice, cols: slice, itself: bool) -> tuple[Any, ...]:
        part = jax.tree.map(
            lambda k: piece(k, rows, cols, itself), kernels, is_leaf=is_kernel
        )
        return (part, None) if with_x2 else (part,)

    return Cut(inputs, size, alone, kwargs)


def _origin(origin: Any, rows: slice, cols: slice, itself: bool) -> Any:
    """What made a kernel, for some of its inputs."""
    if origin is None:
        return None
    x2, (one, two) = origin.x2, origin.pattern
    if not itself:
        x2 = cut(origin.x1 if x2 is None else x2, cols)
    return dataclasses.replace(
        origin, x1=cut(origin.x1, rows), x2=x2, pattern=(cut(one, rows), cut(two, cols))
    )


def is_kernel(x: Any) -> bool:
    """Whether `x` is the result of a kernel function with all its attributes."""
    return isinstance(x, Kernel)


def cut(x: Any, part: slice) -> Any:
    """Some rows of every array of a pytree."""

    def rows(a: Any) -> Any:
        if part == slice(0, a.shape[0]):
            return a
        if isinstance(a, np.ndarray):
            return a[part]
        # One program for all tiles of a shape, unlike `a[part]`.
        return lax.dynamic_slice_in_dim(a, part.start, part.stop - part.start)

    return jax.tree.map(rows, x)


def _batch(name: str, x: Any) -> tuple[Any, int]:
    """A batch of arrays, and its number of inputs."""
    x = jax.tree.map(lambda a: a if is_array(a) else np.asarray(a), x)
    leaves = jax.tree.leaves(x)
    if not leaves or any(a.ndim == 0 or a.dtype == object for a in leaves):
        raise InputError(
            f"`{name}` should be an array with one input a row, or a pytree of them; "
            f"got {'a number' if leaves else 'nothing'}."
        )
    counts = sorted({a.shape[0] for a in leaves})
    if len(counts) > 1:
        raise ShapeMismatchError(
            f"The arrays of `{name}` have {counts} rows; give one number of inputs."
        )
    if counts == [0]:
        raise InputError(
            f"`{name}` is empty: shape {leaves[0].shape}. Give at least one input."
        )
    return x, counts[0]


def _arrays(x: Any) -> bool:
    """Whether `x` is a pytree of arrays, and holds one."""
    leaves = jax.tree.leaves(x)
    return bool(leaves) and all(is_array(a) for a in leaves)


def _is_pair(name: str, value: Any) -> bool:
    # The convention of kernel functions: the first for x1, the second for x2.
    if name in ("rng", "params") or type(value) is not tuple or len(value) != 2:
        return False
    return _arrays(value)


def _check_pair(name: str, pair: tuple[Any, Any], size: tuple[int, int]) -> None:
    for which, part, count in zip(("first", "second"), pair, size, strict=True):
        for a in jax.tree.leaves(part):
            if a.ndim == 0 or a.shape[0] != count:
                raise ShapeMismatchError(
                    f"The {which} of the pair `{name}` has shape {a.shape}; give "
                    f"{count} rows, one for each input, or bind what is no pair with "
                    f"`functools.partial(kernel_fn, {name}=...)`."
                )


def _same(one: Any, two: Any) -> bool:
    if two is None or one is two:
        return True
    first, second = (jax.tree.flatten(x) for x in (one, two))
    if first[1] != second[1] or not all(map(is_concrete, first[0] + second[0])):
        return False
    return all(map(np.array_equal, first[0], second[0]))


def _split_key(key: Any, count: int) -> Any:
    return None if key is None else jax.random.split(key, count)
