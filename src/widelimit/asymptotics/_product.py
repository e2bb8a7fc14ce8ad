"""Lazy sums of products: the values that a query returns before it is evaluated.

A `Product` is the sum, over some letters, of a product of arrays read at indices and of
Kronecker deltas between letters. Keeping the deltas symbolic turns the covariance of
`x @ U` and `x' @ U` into one contraction of x with x', and keeping the indices symbolic
turns a convolution into shifts and additions.
"""

import dataclasses
import functools
import math
import operator
import string
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._jax import is_concrete
from ..program import AxisMap, compose, unravel
from ._index import Index, Letter, Letters
from ._stencil import Factor, sum_of_slices

# Axes up to this size are summed by shifting and adding rather than by gathering.
_SHIFTS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """The sum over `sums` of the product of `factors` and deltas."""

    factors: tuple[Factor, ...] = ()
    deltas: tuple[tuple[Letter, Letter], ...] = ()
    sums: tuple[Letter, ...] = ()

    def times(self, *factors: Factor, sums: Sequence[Letter] = ()) -> "Product":
        """This product with more factors and more summed letters."""
        return Product(self.factors + factors, self.deltas, self.sums + tuple(sums))

    def with_product(self, other: "Product") -> "Product":
        """The product of both."""
        return Product(
            self.factors + other.factors,
            self.deltas + other.deltas,
            self.sums + other.sums,
        )

    def renamed(self, old: Letter, new: Letter, letters: Letters) -> "Product":
        """This product with another letter in the place of one that is not summed."""
        factors = tuple(_rename(f, old, new, letters) for f in self.factors)
        return Product(factors, self.deltas, self.sums)


Sum = tuple[Product, ...]
"""A sum of products; the empty sum is a structural zero."""


def materialise(total: Sum, letters: Letters, out: Sequence[Letter]) -> Any:
    """The array of a sum over `out`, one axis a letter, of size 1 where constant.

    Returns None for a structural zero.
    """
    found = compact(total, letters, out)
    if found is None:
        return None
    return aligned(found.array, [i.letters[0] for i in found.indices], out)


def compact(total: Sum, letters: Letters, out: Sequence[Letter]) -> Factor | None:
    """The array of a sum over `out`, one axis for every letter it depends on.

    Returns None for a structural zero.
    """
    if not total:
        return None
    if len(total) == 1 and _is_settled(total[0], letters, out):
        return total[0].factors[0]
    found = [_evaluate(p, letters, out) for p in total]
    read = [a for a in out if any(a in own for _, own in found)]
    first, *rest = (aligned(array, own, read) for array, own in found)
    indices = tuple(letters.identity(a) for a in read)
    return Factor(sum(rest, first), indices)


def _is_settled(product: Product, letters: Letters, out: Sequence[Letter]) -> bool:
    """Whether a product is an array whose axes are letters, in their order."""
    if len(product.factors) != 1 or product.deltas or product.sums:
        return False
    (factor,) = product.factors
    read = [a for i in factor.indices for a in i.letters if letters.sizes[a] > 1]
    return (
        not isinstance(factor.array, np.ndarray)
        and read == [a for a in out if a in read]
        and len(read) == len(factor.indices)
        and all(map(_is_letter, factor.indices, np.shape(factor.array)))
    )


def as_factor(value: Any, letters: Letters, axes: Sequence[Letter]) -> Factor:
    """An array over letters, without the axes of size 1."""
    indices = tuple(letters.identity(a) for a in axes[len(axes) - value.ndim :])
    wide = [i for i, size in enumerate(value.shape) if size != 1]
    if len(wide) < value.ndim:
        value = value.reshape([value.shape[i] for i in wide])
    return Factor(value, tuple(indices[i] for i in wide))


def is_zero(array: Any) -> bool:
    """Whether an array is known to hold nothing but zeros."""
    return is_concrete(array) and not np.any(array)


def total_of(parts: Sequence[Any]) -> Any:
    """The sum of arrays, zero where it is the rounding of what cancels in it.

    Noise in the place of a zero would bring in a vector that is not there. Numbers that
    are traced are not known here, and simply added.
    """
    total = sum(parts[1:], parts[0])
    if len(parts) == 1 or not is_concrete(total):
        return total
    size = sum((np.abs(a) for a in parts[1:]), np.abs(parts[0]))
    noise = 64 * float(jnp.finfo(jnp.result_type(float, total)).eps)
    return jnp.where(np.abs(total) <= noise * size, 0.0, total)


def _evaluate(
    product: Product, letters: Letters, out: Sequence[Letter]
) -> tuple[Any, list[Letter]]:
    """The array of a product, and the letters that are its axes."""
    factors, sums = _resolve_deltas(product, letters, out)
    if (apart := windows_apart(factors, sums, letters)) is not None:
        inner = (Product(apart.factors, (), apart.sums),)
        whole = compact(inner, letters, apart.letters)
        assert whole is not None
        factors, sums = [apart.read(whole)], list(apart.windows)
    count = 1
    for letter in sums:
        if not any(letter in f.letters() for f in factors):
            count *= letters.sizes[letter]
    sums = [s for s in sums if any(s in f.letters() for f in factors)]
    plain: list[Factor] = []
    for i, factor in enumerate(factors):
        others = {a for j, f in enumerate(factors) if j != i for a in f.letters()}
        private = [s for s in sums if s in factor.letters() and s not in others]
        plain.append(_plain(factor, private, letters))
    plain = [_narrow(f, letters) for f in plain]
    read = {a for f in plain for a in f.letters()}
    kept = [a for a in out if a in read]
    result = _einsum(plain, kept)
    return (result if count == 1 else count * result), kept


@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
    """Factors whose product is one at whole axes, of which windows are summed.

    Attributes:
        factors: the factors, at letters for whole axes.
        sums: the letters to be summed at every position.
        windows: the letters to be summed over positions.
        indices: how the windows read the whole axes.
    """

    factors: tuple[Factor, ...]
    sums: tuple[Letter, ...]
    windows: tuple[Letter, ...]
    indices: dict[Letter, Index]

    @property
    def letters(self) -> tuple[Letter, ...]:
        """The letters of the product at whole axes."""
        read = {a for f in self.factors for a in f.letters()}
        return tuple(sorted(read.difference(self.sums)))

    def read(self, whole: Factor) -> Factor:
        """What the windows read of a result at whole axes."""
        indices = tuple(self.indices.get(i.letters[0], i) for i in whole.indices)
        return Factor(whole.array, indices)


def windows_apart(
    factors: Sequence[Factor], sums: Sequence[Letter], letters: Letters
) -> Apart | None:
    """Factors that read the same windows, taken apart from these; None if they do not.

    In sum_k x[o + k] y[o + k] the windows overlap: x y is computed once a position.
    """
    indices = [i for f in factors for i in f.indices]
    moving: dict[Index, Letter] = {}
    windows: list[Letter] = []
    for a in sums:
        reading = {i for i in indices if a in i.letters}
        if len(reading) == 1 and not (index := reading.pop()).is_identity:
            windows.append(a)
            moving.setdefault(index, -1)
    if not moving:
        return None
    for index in moving:
        alone = all(
            i == index or set(i.letters).isdisjoint(index.letters) for i in indices
        )
        sizes = [
            np.shape(f.array)[axis]
            for f in factors
            for axis, i in enumerate(f.indices)
            if i == index
        ]
        overlap = len(set(sizes)) == 1 and 1 < sizes[0] < index.table.size
        if not alone or not overlap or len(sizes) < 2:
            return None
        moving[index] = letters.new(sizes[0])
    if any(len(set(f.indices) & moving.keys()) < len(moving) for f in factors):
        return None
    whole = {index: letters.identity(a) for index, a in moving.items()}
    return Apart(
        tuple(
            Factor(f.array, tuple(whole.get(i, i) for i in f.indices)) for f in factors
        ),
        tuple(a for a in sums if a not in windows),
        tuple(windows),
        {a: index for index, a in moving.items()},
    )


def _narrow(factor: Factor, letters: Letters) -> Factor:
    """Without the axes at letters of one position."""
    single = [letters.sizes[i.letters[0]] == 1 for i in factor.indices]
    if not any(single):
        return factor
    array = factor.array.reshape(
        [n for n, one in zip(factor.array.shape, single, strict=True) if not one]
    )
    pairs = zip(factor.indices, single, strict=True)
    return Factor(array, tuple(i for i, one in pairs if not one))


def _resolve_deltas(
    product: Product, letters: Letters, out: Sequence[Letter]
) -> tuple[list[Factor], list[Letter]]:
    factors, sums = list(product.factors), list(product.sums)
    deltas = list(product.deltas)
    while deltas:
        a, b = deltas.pop()
        if a == b:
            continue
        if a in sums:
            a, b = b, a
        if b not in sums:
            size = letters.sizes[a]
            eye = np.eye(size)
            factors.append(Factor(eye, (letters.identity(a), letters.identity(b))))
            continue
        sums.remove(b)
        factors = [_rename(f, b, a, letters) for f in factors]
        deltas = [(a if x == b else x, a if y == b else y) for x, y in deltas]
    return factors, sums


def _rename(factor: Factor, old: Letter, new: Letter, letters: Letters) -> Factor:
    if old not in factor.letters():
        return factor

    def rename(index: Index) -> Index:
        if old not in index.letters:
            return index
        local = AxisMap(tuple(range(len(index.letters))), index.table)
        return compose(
            local, [letters.identity(new if a == old else a) for a in index.letters]
        )

    return Factor(factor.array, tuple(rename(i) for i in factor.indices))


def _plain(factor: Factor, private: Sequence[Letter], letters: Letters) -> Factor:
    """The factor with every index a letter; private sums by shifting and adding."""
    shifting = [
        a
        for a in private
        if letters.sizes[a] <= _SHIFTS
        and any(a in i.letters and not i.is_identity for i in factor.indices)
    ]
    if shifting:
        factor = sum_of_slices(factor, shifting, letters) or _sums(
            factor, shifting, letters
        )
    factor = _merged(factor)
    sizes = np.shape(factor.array)
    if all(_is_letter(i, s) for i, s in zip(factor.indices, sizes, strict=True)):
        return factor
    seen: set[Letter] = set()
    for index in factor.indices:
        if seen & set(index.letters):
            return _gather(factor, letters)
        seen |= set(index.letters)
    array, indices = factor.array, []
    for index in factor.indices:
        axis = len(indices)
        array = _take(array, index, axis)
        indices += [letters.identity(a) for a in index.letters]
    return Factor(array, tuple(indices))


def _merged(factor: Factor) -> Factor:
    """Axes that one letter runs through in row order as one, as a flattened image."""
    by_letter: dict[Letter, list[int]] = {}
    for axis, index in enumerate(factor.indices):
        if len(index.letters) == 1:
            by_letter.setdefault(index.letters[0], []).append(axis)
    for letter, axes in by_letter.items():
        shape = [factor.array.shape[a] for a in axes]
        grid = [factor.indices[a].table for a in axes]
        if len(axes) < 2 or math.prod(shape) != grid[0].size:
            continue
        rows = unravel(np.arange(grid[0].size), shape)
        if not all(map(np.array_equal, grid, rows)):
            continue
        first, gone = axes[0], axes[1:]
        array = jnp.moveaxis(factor.array, gone, range(first + 1, first + len(axes)))
        joined = (
            *array.shape[:first],
            math.prod(shape),
            *array.shape[first + len(axes) :],
        )
        kept = [i for k, i in enumerate(factor.indices) if k not in axes]
        index = AxisMap.identity(letter, math.prod(shape))
        indices = (*kept[:first], index, *kept[first:])
        return _merged(Factor(array.reshape(joined), indices))
    return factor


def _sums(factor: Factor, summed: Sequence[Letter], letters: Letters) -> Factor:
    for letter in summed:
        factor = _sum_letter(factor, letter, letters)
    return factor


def _is_letter(index: Index, size: int) -> bool:
    return index.is_identity and index.table.size == size


def _sum_letter(factor: Factor, letter: Letter, letters: Letters) -> Factor:
    total: Any = None
    fixed: tuple[Index, ...] = ()
    array = letters.once(factor.array)
    for value in range(letters.sizes[letter]):
        indices = tuple(_fix(i, letter, value) for i in factor.indices)
        shifted = _shift_touched(Factor(array, indices), factor, letter, letters)
        total = shifted.array if total is None else total + shifted.array
        fixed = shifted.indices
    return Factor(total, fixed)


def _shift_touched(
    now: Factor, before: Factor, letter: Letter, letters: Letters
) -> Factor:
    """`now` with the axes that depended on `letter` read; the others are left lazy."""
    touched = [letter in i.letters for i in before.indices]
    counts: dict[Letter, int] = {}
    for index in now.indices:
        for a in index.letters:
            counts[a] = counts.get(a, 0) + 1
    if any(
        counts[a] > 1
        for i, t in zip(now.indices, touched, strict=True)
        if t
        for a in i.letters
    ):
        return _gather(now, letters)
    array, indices = now.array, []
    for index, t in zip(now.indices, touched, strict=True):
        axis = len(indices)
        if t:
            array = _take(array, index, axis)
            indices += [letters.identity(a) for a in index.letters]
        else:
            indices.append(index)
    return Factor(array, tuple(indices))


def _fix(index: Index, letter: Letter, value: int) -> Index:
    if letter not in index.letters:
        return index
    axis = index.letters.index(letter)
    rest = tuple(a for a in index.letters if a != letter)
    return AxisMap(rest, np.take(index.table, value, axis=axis))


def _take(array: Any, index: Index, axis: int) -> Any:
    """Read one axis at a table; the axis is replaced by those of the table."""
    size, table = array.shape[axis], index.table
    if table.ndim == 1 and np.array_equal(table, np.arange(size)):
        return array
    if size == 0:
        shape = (*array.shape[:axis], *table.shape, *array.shape[axis + 1 :])
        return jnp.zeros(shape, array.dtype)
    if table.ndim == 1 and (shifted := _shift(array, table, axis)) is not None:
        return shifted
    if table.ndim == 0 and table >= 0:
        return lax.index_in_dim(array, int(table), axis, keepdims=False)
    taken = jnp.take(array, np.maximum(table, 0), axis=axis)
    if table.size and table.min() < 0:
        mask = (table >= 0).reshape(table.shape + (1,) * (array.ndim - axis - 1))
        taken = jnp.where(mask, taken, jnp.zeros((), taken.dtype))
    return taken


def _shift(array: Any, table: np.ndarray, axis: int) -> Any:
    """A strided slice with zeros at both ends, or None if the table is not one."""
    valid = np.flatnonzero(table >= 0)
    if valid.size == 0:
        shape = (*array.shape[:axis], table.size, *array.shape[axis + 1 :])
        return jnp.zeros(shape, array.dtype)
    first, last = valid[0], valid[-1]
    run = table[first : last + 1]
    steps = np.diff(run)
    if (run < 0).any() or (steps.size and (steps != steps[0]).any()):
        return None
    stride = int(steps[0]) if steps.size else 1
    if stride < 1:
        return None
    sliced = lax.slice_in_dim(array, int(run[0]), int(run[-1]) + 1, stride, axis=axis)
    before, after = int(first), int(table.size - 1 - last)
    if before == after == 0:
        return sliced
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (before, after, 0)
    return lax.pad(sliced, jnp.zeros((), array.dtype), config)


def _gather(factor: Factor, letters: Letters) -> Factor:
    """Read all axes at once, for indices that share letters."""
    order = sorted(factor.letters())
    tables, mask = [], np.ones((1,) * len(order), bool)
    for index in factor.indices:
        table = index.spread(order)
        mask = mask & (table >= 0)
        tables.append(np.maximum(table, 0))
    taken = jnp.asarray(factor.array)[tuple(tables)]
    if not mask.all():
        taken = jnp.where(mask, taken, jnp.zeros((), taken.dtype))
    return Factor(taken, tuple(letters.identity(a) for a in order))


def _einsum(factors: Sequence[Factor], kept: Sequence[Letter]) -> Any:
    scalars = [f.array for f in factors if not f.indices]
    number = math.prod(float(s) for s in scalars if isinstance(s, np.ndarray))
    values = [s for s in scalars if not isinstance(s, np.ndarray)]
    if number != 1.0:
        values.append(number)
    if len(scalars) < len(factors):
        values.append(_contracted([f for f in factors if f.indices], kept))
    # Numbers are multiplied before they meet arrays.
    return jnp.asarray(functools.reduce(operator.mul, values) if values else 1.0)


def _contracted(factors: Sequence[Factor], kept: Sequence[Letter]) -> Any:
    """The product of factors that are read at letters, summed over those not kept."""
    arrays = [f.array for f in factors]
    names: dict[Letter, str] = {}
    for a in (a for f in factors for i in f.indices for a in i.letters):
        names.setdefault(a, string.ascii_letters[len(names)])
    terms = ["".join(names[i.letters[0]] for i in f.indices) for f in factors]
    target = "".join(names[a] for a in kept)
    if len(arrays) == 1 and terms[0] == target:
        return jnp.asarray(arrays[0])
    traced = [a for a in arrays if not isinstance(a, np.ndarray)]
    dtype = jnp.result_type(*traced, jnp.float32) if traced else jnp.result_type(float)
    arrays = [a if a.dtype == dtype else jnp.asarray(a, dtype) for a in arrays]
    if all(len(set(t)) == len(t) and set(t) <= set(target) for t in terms):
        # Nothing is summed: XLA compiles products several times faster than einsums.
        pairs = zip(arrays, terms, strict=True)
        return functools.reduce(operator.mul, (aligned(a, t, target) for a, t in pairs))
    return jnp.einsum(
        ",".join(terms) + "->" + target,
        *arrays,
        optimize="optimal" if len(arrays) < 6 else "greedy",
        precision=lax.Precision.HIGHEST,
    )


def aligned(array: Any, term: Sequence[Any], target: Sequence[Any]) -> Any:
    """The array with its axes in the order of the target, and axes of size 1 beside."""
    order = sorted(range(len(term)), key=lambda i: target.index(term[i]))
    absent = [i for i, a in enumerate(target) if a not in term]
    if order != list(range(len(order))):
        array = jnp.transpose(array, order)
    return lax.expand_dims(array, absent) if absent else array
