"""Arrays read at maps, as one operation that tells its maps.

Who computes with the numbers that are read may so do it once for every entry, rather
than once for every place where it is read: windows of an image overlap.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from .._jax import Primitive, ShapedArray
from ._lines import AxisMap, Line, Map
from ._lines import Primitive as Operation

_NAME = "read"

Maps = tuple[tuple[tuple[int, ...], Any], ...]
"""Letters and table of every axis, as nested tuples."""


def read_at(array: Any, maps: Sequence[AxisMap], rank: int) -> Any:
    """An array read at maps, of size one along letters that it does not follow.

    Args:
        array: of NumPy, read now, or of JAX.
        maps: for every axis of the array, over the axes of the result; -1 reads zero.
        rank: how many axes the result has.
    """
    if isinstance(array, np.ndarray):
        return _now(array, maps, rank)
    plain = tuple((m.letters, _nested(m.table.tolist())) for m in maps)
    return _read_p.bind(array, maps=plain, rank=rank)


def maps_of(line: Line) -> list[AxisMap] | None:
    """The maps at which a line reads its argument; None for a line that does not."""
    if not isinstance(line, Map) or not isinstance(line.op, Operation):
        return None
    if line.op.equation is None or line.op.name != _NAME:
        return None
    return _maps(line.op.equation.params["maps"])


def _maps(plain: Maps) -> list[AxisMap]:
    return [AxisMap(letters, table) for letters, table in plain]


def _nested(table: Any) -> Any:
    return tuple(map(_nested, table)) if isinstance(table, list) else table


def _now(array: Any, maps: Sequence[AxisMap], rank: int) -> Any:
    letters = [a for m in maps for a in m.letters]
    if len(set(letters)) < len(letters):
        return _jointly(array, maps, rank)
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    done: list[int] = []
    for m in maps:
        axis, size = len(done), array.shape[len(done)]
        whole = m.table.ndim == 1 and np.array_equal(m.table, np.arange(size))
        if not whole:
            array = xp.take(array, np.maximum(m.table, 0), axis=axis)
        if not m.is_inside:
            mask = (m.table >= 0).reshape(
                m.table.shape + (1,) * (array.ndim - axis - m.table.ndim)
            )
            array = xp.where(mask, array, xp.zeros((), array.dtype))
        done += m.letters
    array = xp.transpose(array, np.argsort(done))
    shape = iter(array.shape)
    return xp.reshape(array, [next(shape) if a in done else 1 for a in range(rank)])


def _jointly(array: Any, maps: Sequence[AxisMap], rank: int) -> Any:
    """All axes at once, for maps that share letters."""
    tables, inside = [], np.ones((1,) * rank, bool)
    for m in maps:
        table = m.spread(range(rank))
        inside = inside & (table >= 0)
        tables.append(np.maximum(table, 0))
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    taken = array[tuple(tables)] if tables else xp.reshape(array, (1,) * rank)
    return taken if inside.all() else xp.where(inside, taken, xp.zeros((), taken.dtype))


def _of_jax(array: Any, *, maps: Maps, rank: int) -> Any:
    return _now(array, _maps(maps), rank)


def _shape(array: Any, *, maps: Maps, rank: int) -> ShapedArray:
    sizes = [1] * rank
    for m in _maps(maps):
        for a, size in zip(m.letters, m.table.shape, strict=True):
            sizes[a] = size
    return ShapedArray(tuple(sizes), array.dtype)


def _transpose(cotangent: Any, array: Any, **params: Any) -> tuple[Any]:
    if isinstance(cotangent, ad.Zero):
        return (ad.Zero(array.aval),)
    given = jax.ShapeDtypeStruct(array.aval.shape, cotangent.dtype)
    back = jax.linear_transpose(lambda x: _of_jax(x, **params), given)
    return (back(cotangent)[0],)


def _batched(args: Any, axes: Any, *, maps: Maps, rank: int) -> tuple[Any, int]:
    array = jnp.moveaxis(args[0], axes[0], 0)
    behind = tuple((tuple(a + 1 for a in at), table) for at, table in maps)
    first = ((0,), tuple(range(len(array))))
    return _read_p.bind(array, maps=(first, *behind), rank=rank + 1), 0


_read_p = Primitive(_NAME)
_read_p.def_impl(_of_jax)
_read_p.def_abstract_eval(_shape)
ad.deflinear2(_read_p, _transpose)
batching.primitive_batchers[_read_p] = _batched
mlir.register_lowering(_read_p, mlir.lower_fun(_of_jax, multiple_results=False))
