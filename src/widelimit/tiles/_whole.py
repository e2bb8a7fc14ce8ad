"""The result of a kernel function from its results for tiles."""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import InputError, UnsupportedError
from .._jax import is_concrete
from .._kernel import Kernel
from ._cut import is_kernel
from ._parts import Parts, Path, is_array

Kind = Literal["pairs", "rows", "cols", "flag", "number"]
"""What an array has an entry for: every pair, an input of x1 or of x2, or nothing."""
_KINDS: dict[str, Kind] = {
    "cov1": "rows", "mask1": "rows", "cov2": "cols", "mask2": "cols",
    "x1_is_x2": "flag",
}  # fmt: skip
_SHAPES = {"shape1": 0, "shape2": 1}
_NAMES = {f.name for f in dataclasses.fields(Kernel)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """An array of the whole result."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: Any

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, rows: slice, cols: slice) -> tuple[slice, ...]:
        """Where a tile stands in it."""
        return {"pairs": (rows, cols), "rows": (rows,), "cols": (cols,)}.get(
            self.kind, ()
        )


class Whole:
    """A result that is put together from tiles.

    Kernels have entries for pairs (N1, N2, ...), but for `cov1`, `cov2`, `mask1` and
    `mask2` (one row for every input), `x1_is_x2`, `shape1` and `shape2`: so named in a
    `Kernel`, a named tuple or a dict, or by `asked`.

    Args:
        answer: the result for one tile; shapes are enough.
        tile: rows and columns of that tile.
        size: of the whole.
        asked: what an array without a name is.

    Raises:
        InputError: an array is not of the rows and columns of the tile.
        UnsupportedError: covariances of a batch with itself, of which tiles hold only a
            part; a shape whose batch axis is not known.
    """

    def __init__(
        self, answer: Parts, tile: tuple[int, int], size: tuple[int, int], asked: str
    ) -> None:
        self._answer, self._tile, self._size, self._asked = answer, tile, size, asked
        leaves = answer.by_path()
        self._places: dict[Path, _Place] = {}
        for path, (leaf, array) in leaves.items():
            if array:
                self._places[path] = self._place(path, leaf)
        self._check_covariances(leaves)
        self._flags: dict[Path, list[Any]] = {
            path: [] for path in leaves if self._name(path) == "x1_is_x2"
        }
        self._arrays: dict[Path, Any] = {}

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(place.bytes for place in self._places.values())

    @property
    def tile_bytes(self) -> int:
        """Of the result for the tile."""
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self._answer.arrays
        )

    @property
    def pairs(self) -> list[Path]:
        """Where the arrays with entries for pairs stand."""
        return [p for p, place in self._places.items() if place.kind == "pairs"]

    def __str__(self) -> str:
        return ", ".join(
            f"{self._name(p)} {x.shape} {x.dtype.name}" for p, x in self._places.items()
        )

    def allocate(self, on_host: bool, device: Any | None) -> None:
        """Make room for the arrays, on the host or on a device (None: where JAX does).

        They are filled in place: nothing is ever held twice.
        """
        self._on_host, self._device = on_host, device
        for path, place in self._places.items():
            if place.kind in ("flag", "number"):
                continue
            if on_host:
                self._arrays[path] = np.empty(place.shape, place.dtype)
            else:
                zeros = jnp.zeros(place.shape, place.dtype)
                self._arrays[path] = _on(device, zeros)

    def put(
        self,
        answer: Parts,
        rows: slice,
        cols: slice,
        kinds: Collection[str],
        axes: Mapping[Path, tuple[int, ...]] | None = None,
    ) -> None:
        """Put a tile in its place.

        Args:
            answer: the result for the tile.
            rows: where it stands.
            cols: the same.
            kinds: of the arrays that are wanted of it.
            axes: transposes the arrays with entries for pairs first.

        Raises:
            InputError: the result is not like that of the first tile.
        """
        found = answer.by_path()
        for path, flags in self._flags.items():
            if "flag" in kinds and path in found:
                flags.append(found[path][0])
        for path, place in self._places.items():
            if place.kind not in kinds or place.kind == "flag":
                continue
            if path not in found or not found[path][1]:
                raise InputError(
                    f"The kernel function gave no `{self._name(path)}` for rows "
                    f"{rows.start} to {rows.stop}, but did for others. It should give "
                    "the same for all tiles."
                )
            leaf = found[path][0]
            if place.kind == "number":
                self._arrays[path] = _on(self._device, leaf)
                continue
            if axes is not None and place.kind == "pairs":
                leaf = leaf.transpose(axes[path])
            self._write(path, place, leaf, place.part(rows, cols))

    def _write(
        self, path: Path, place: _Place, leaf: Any, part: tuple[slice, ...]
    ) -> None:
        lead = tuple(s.stop - s.start for s in part)
        expected = lead + place.shape[len(part) :]
        if leaf.shape != expected or leaf.dtype != place.dtype:
            raise InputError(
                f"The kernel function gave `{self._name(path)}` of shape {leaf.shape} "
                f"and {leaf.dtype} for a tile of {lead}; {expected} and {place.dtype} "
                "were expected after the first. It should give the same for all tiles."
            )
        whole = self._arrays[path]
        if self._on_host:
            whole[part] = np.asarray(leaf)
            return
        start = [s.start for s in part] + [0] * (len(expected) - len(part))
        leaf = _on(self._device, leaf)
        concrete = is_concrete(whole) and is_concrete(leaf)
        write = _written if concrete else lax.dynamic_update_slice
        self._arrays[path] = write(whole, leaf, start)

    def result(self) -> Any:
        """The whole, as the kernel function would give it."""
        leaves = []
        for path, (leaf, _) in self._answer.by_path().items():
            if path in self._flags:
                leaf = self._flag(self._flags[path])
            elif path in self._places:
                leaf = self._arrays[path]
            elif self._is_batch_axis(path):
                leaf = self._size[_SHAPES[self._name(path)]]
            leaves.append(
                np.asarray(leaf) if is_array(leaf) and self._on_host else leaf
            )
        whole = jax.tree.unflatten(self._answer.tree, leaves)
        return jax.tree.map(self._sized, whole, is_leaf=is_kernel)

    def _sized(self, k: Any) -> Any:
        """A `Kernel` with the shapes of the whole."""
        if not is_kernel(k):
            return k
        shapes = {}
        for name, side in _SHAPES.items():
            shape = getattr(k, name)
            if shape is not None:
                at = k.batch_axis % len(shape)
                shapes[name] = (*shape[:at], self._size[side], *shape[at + 1 :])
        return k.replace(origin=k.origin, **shapes)

    def _flag(self, flags: list[Any]) -> Any:
        """Whether both batches are one: so are all tiles on the diagonal."""
        if all(isinstance(f, bool) for f in flags):
            return self._size[0] == self._size[1] and all(flags)
        flags = [_on(self._device, jnp.asarray(f)) for f in flags]
        if self._size[0] != self._size[1]:
            return jnp.zeros_like(flags[0])
        return functools.reduce(jnp.logical_and, flags)

    # What an array is ----

    def _name(self, path: Path) -> str:
        for key in reversed(path):
            name = getattr(key, "name", getattr(key, "key", None))
            if name in _NAMES:
                return str(name)
        return self._asked

    def _place(self, path: Path, leaf: Any) -> _Place:
        name, shape = self._name(path), tuple(leaf.shape)
        kind = _KINDS.get(name, "pairs") if name != "origin" else _kind_of_origin(path)
        if kind == "flag" or (name == "ntk" and not shape):
            return _Place("flag" if kind == "flag" else "number", shape, leaf.dtype)
        sides = {"pairs": (0, 1), "rows": (0,), "cols": (1,)}[kind]
        lead = tuple(self._tile[s] for s in sides)
        if shape[: len(lead)] != lead:
            raise InputError(
                f"The kernel function gives `{name}` of shape {shape} for a tile of "
                f"{self._tile[0]} x {self._tile[1]} inputs. It should begin with "
                f"{lead}: an entry for every {'pair' if kind == 'pairs' else 'input'}."
            )
        whole = tuple(self._size[s] for s in sides)
        return _Place(kind, whole + shape[len(lead) :], leaf.dtype)

    def _check_covariances(self, leaves: Mapping[Path, tuple[Any, bool]]) -> None:
        """Refuse the covariances between all inputs of one batch."""
        for k in jax.tree.leaves(self._answer.value, is_leaf=is_kernel):
            if is_kernel(k) and not k.diagonal_batch:
                raise UnsupportedError(_BETWEEN)
        for path, (leaf, array) in leaves.items():
            name = self._name(path)
            if not array or name not in ("cov1", "cov2") or leaf.ndim < 2:
                continue
            pairs = [
                other.ndim
                for key, (other, _) in leaves.items()
                if key[:-1] == path[:-1] and self._name(key) in ("nngp", "ntk")
            ]
            # One row an input, or one more axis, for pairs of inputs?
            if leaf.ndim in pairs or (not pairs and leaf.shape[0] == leaf.shape[1]):
                raise UnsupportedError(_BETWEEN)

    def _is_batch_axis(self, path: Path) -> bool:
        """Whether a number is the size of a batch in a shape."""
        name = self._name(path)
        if name not in _SHAPES:
            return False
        leaves = self._answer.by_path()
        shape = [key for key in leaves if key[:-1] == path[:-1]]
        for key, (leaf, _) in leaves.items():
            if self._name(key) == "batch_axis" and key[:-1] == path[:-2]:
                return path == shape[leaf]
        count = self._tile[_SHAPES[name]]
        equal = [key for key in shape if leaves[key][0] == count]
        if len(equal) == 1:
            return path == equal[0]
        raise UnsupportedError(
            f"Which axis of `{name}` is that of the batch is not known: ask for "
            "'batch_axis' too, or for everything with `get=None`."
        )


def _kind_of_origin(path: Path) -> Kind:
    """What made the kernel: `x1`, `x2`, or `pattern` with one array for each."""
    for key, after in zip(path, (*path[1:], None), strict=True):
        name = getattr(key, "name", None)
        if name in ("x1", "x2"):
            return "rows" if name == "x1" else "cols"
        if name == "pattern":
            return "cols" if getattr(after, "idx", 0) else "rows"
    raise AssertionError(f"unknown part of an origin: {path}")


_BETWEEN = (
    "Covariances between all inputs of one batch (`diagonal_batch=False`) are not put "
    "together from tiles: ask for `get=('nngp', 'ntk')` alone, or do not batch."
)


def _on(device: Any | None, a: Any) -> Any:
    return a if device is None else jax.device_put(a, device)


@functools.partial(jax.jit, donate_argnums=0)
def _written(whole: Any, part: Any, start: Any) -> Any:
    return lax.dynamic_update_slice(whole, part, start)
