"""A kernel as Neural Tangents returns it: matrices, and what they are of."""

import dataclasses
import functools
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._errors import InputError

_ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2", "origin")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The covariances of the outputs of an infinitely wide network.

    A pytree. Positions come in pairs: an output of shape (N, H, W, C) has
    `nngp` of shape (N1, N2, H, H, W, W), or (N1, N2, H, W) with `diagonal_spatial`.

    Attributes:
        nngp: covariance of the outputs of the first and the second batch.
        ntk: tangent kernel of the same shape; None if it was not asked for.
        cov1: covariance of the first batch with itself; of each input with itself,
            shape (N1, ...), where `diagonal_batch`.
        cov2: of the second batch; None if there is none.
        x1_is_x2: whether the two batches are one.
        is_gaussian: whether the outputs are Gaussian given those of the layers before.
        is_reversed: always False: positions keep their order.
        is_input: whether no layer was applied.
        diagonal_batch: see `cov1`.
        diagonal_spatial: whether only equal positions are held.
        shape1: of the outputs of the finite network for the first batch.
        shape2: for the second.
        batch_axis: the axis of the inputs in the output.
        channel_axis: the axis of the output that is infinite.
        mask1: True where an output for the first batch is masked.
        mask2: for the second.
        origin: how it was made, for layers that are applied to it; None once changed.
    """

    nngp: Any
    ntk: Any = None
    cov1: Any = None
    cov2: Any = None
    x1_is_x2: Any = False
    is_gaussian: bool = False
    is_reversed: bool = False
    is_input: bool = False
    diagonal_batch: bool = True
    diagonal_spatial: bool = False
    shape1: tuple[int, ...] | None = None
    shape2: tuple[int, ...] | None = None
    batch_axis: int = 0
    channel_axis: int = -1
    mask1: Any = None
    mask2: Any = None
    origin: Any = dataclasses.field(default=None, repr=False, compare=False)

    def replace(self, **changes: Any) -> "Kernel":
        """The kernel with other values of some attributes."""
        return dataclasses.replace(self, **{"origin": None, **changes})

    def asdict(self) -> dict[str, Any]:
        """The attributes by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """The attributes in their order."""
        return tuple(self.asdict().values())

    def slice(self, n1_slice: slice, n2_slice: slice) -> "Kernel":
        """The kernel of some inputs of either batch."""
        second = self.cov1 if self.cov2 is None else self.cov2
        mask2 = self.mask1 if self.mask2 is None else self.mask2
        nngp = self.nngp[n1_slice, n2_slice]

        def rows(cov: Any, part: slice) -> Any:
            if cov is None:
                return None
            return cov[part] if self.diagonal_batch else cov[part, part]

        def resized(shape: tuple[int, ...] | None, size: int) -> Any:
            if shape is None:
                return None
            return (*shape[: self.batch_axis], size, *shape[self.batch_axis + 1 :])

        return self.replace(
            nngp=nngp,
            ntk=None if self.ntk is None else self.ntk[n1_slice, n2_slice],
            cov1=rows(self.cov1, n1_slice),
            cov2=rows(second, n2_slice),
            x1_is_x2=self.x1_is_x2 if n1_slice == n2_slice else False,
            shape1=resized(self.shape1, nngp.shape[0]),
            shape2=resized(self.shape2, nngp.shape[1]),
            mask1=None if self.mask1 is None else self.mask1[n1_slice],
            mask2=None if mask2 is None else mask2[n2_slice],
        )

    def reverse(self) -> "Kernel":
        """The pairs of positions in the opposite order: (N1, N2, W, W, H, H)."""
        pairs = range(_positions(self))
        return self.transpose(tuple(pairs)[::-1])

    def transpose(self, axes: Sequence[int] | None = None) -> "Kernel":
        """The axes of positions in another order.

        Args:
            axes: as of `numpy.transpose`, without the axes of batch and channels.
        """
        order = tuple(range(_positions(self)))[::-1] if axes is None else tuple(axes)
        if self.diagonal_spatial:
            places = order
        else:
            places = tuple(p for a in order for p in (2 * a, 2 * a + 1))
        first = 1 if self.diagonal_batch else 2

        def moved(k: Any, start: int) -> Any:
            if k is None or jnp.ndim(k) <= start:
                return k
            return jnp.transpose(k, (*range(start), *(start + p for p in places)))

        return self.replace(
            nngp=moved(self.nngp, 2),
            ntk=moved(self.ntk, 2),
            cov1=moved(self.cov1, first),
            cov2=moved(self.cov2, first),
        )


def _positions(k: Kernel) -> int:
    count = jnp.ndim(k.nngp) - 2
    return count if k.diagonal_spatial else count // 2


jax.tree_util.register_dataclass(
    Kernel,
    data_fields=list(_ARRAYS),
    meta_fields=[f.name for f in dataclasses.fields(Kernel) if f.name not in _ARRAYS],
)


def wanted(get: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """What is asked of a kernel function, in lower case; None is everything.

    Raises:
        InputError: a name twice, or no name.
    """
    if get is None:
        return None
    names = (get,) if isinstance(get, str) else tuple(get)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"`get` should be names such as 'nngp', 'ntk'; got {get!r}.")
    names = tuple(name.lower() for name in names)
    if len(set(names)) < len(names):
        raise InputError(f"`get` names something twice: {get!r}.")
    return names


def check_names(names: Iterable[str] | None, known: Iterable[str]) -> None:
    """Refuse names in `get` that nothing has.

    Raises:
        InputError: there is one.
    """
    known = list(known)
    missing = [n for n in names or () if n not in known]
    if missing:
        raise InputError(
            f"`get` should be of {', '.join(known)}; got {', '.join(missing)}."
        )


def returned(
    values: Mapping[str, Any], get: str | Iterable[str] | None, name: str
) -> Any:
    """What a kernel function gives: one array, or a named tuple.

    Args:
        values: by name.
        get: one name gives its array; several, a named tuple in their order; None, one
            of everything.
        name: of the named tuple.

    Raises:
        InputError: there is no such value.
    """
    names = wanted(get)
    if names is None:
        names = tuple(values)
    check_names(names, values)
    if isinstance(get, str):
        return values[names[0]]
    return _named(name, names)(*(values[n] for n in names))


@functools.cache
def _named(name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(name, fields)
