"""Convolutions and windows: positions read through static tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._jax import Equation, Var
from ..program import AxisMap, Term
from ._contract import Letters, data_times, inner_product, matrix_times, products
from ._deferred import outer_reason, random_multiple
from ._deferred_moves import cut, on_one_factor, reshaped, with_table, with_weights
from ._elementwise import folded
from ._fixed import on_tensors
from ._layout import Major
from ._product import added, counted, finished, product, summands
from ._sizes import Extent, Shape, Size, finite
from ._tracer import Tracer, deferred_rule, rule, wide_axis
from ._values import Deferred, Factor, Leaf, Linear, MatrixValue, Value, known
from ._views import view


def window(
    out: int, size: int, stride: int, dilation: int, pad: int, base: int, extent: int
) -> np.ndarray:
    """Position read at (output position, window position); -1 outside and in gaps."""
    at = np.arange(out)[:, None] * stride + np.arange(size)[None, :] * dilation - pad
    whole = (at % base == 0) & (at >= 0) & (at // base < extent)
    return np.where(whole, at // base, -1)


@rule(
    "convolutions of 1 to 3 dimensions: strides, dilation, padding, groups, depthwise",
    "conv_general_dilated",
)
def convolution(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A convolution of data or wide channels with a filter."""
    lhs, rhs = ins
    if not isinstance(lhs, MatrixValue) and not isinstance(rhs, MatrixValue):
        if lhs.kind == rhs.kind == "fixed" and not lhs.wide and not rhs.wide:
            return on_tensors(tr, e, ins, lhs.power + rhs.power)
    if e.params["batch_group_count"] != 1:
        raise tr.refuse("A convolution with batch groups")
    return [_Convolution(tr, e, lhs, rhs).result()]


@deferred_rule("conv_general_dilated")
def convolution_of_products(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """A convolution with what no line holds, such as the gradient of a filter."""
    reason = next(v.reason for v in ins if isinstance(v, Deferred))
    if e.params["batch_group_count"] != 1:
        raise tr.refuse(f"{reason} by a convolution with batch groups")
    lhs, rhs = map(summands, ins)
    pairs = [(x, y) for x in lhs for y in rhs]
    return [added(tr, [_of_summands(tr, e, x, y, reason) for x, y in pairs])]


def _of_summands(tr: Tracer, e: Equation, x: Any, y: Any, reason: str) -> Any:
    if isinstance(y, Deferred):
        return _Convolution(tr, e, x, y).as_product(reason)

    def f(value: Any, shape: Shape) -> Any:
        outputs = (Var(shape, e.outputs[0].dtype),)
        return convolution(tr, dataclasses.replace(e, outputs=outputs), [value, y])[0]

    if not isinstance(x, Deferred):
        return f(x, e.outputs[0].shape)
    numbers = e.params["dimension_numbers"]
    batch, *axes = numbers.lhs_spec
    places, shape = {batch: numbers.out_spec[0]}, e.outputs[0].shape
    total = on_one_factor(tr, x, axes, shape, places, f)
    if total is None:
        return _Convolution(tr, e, x, y).as_product(reason)
    return finished(tr, total)


class _Convolution:
    def __init__(self, tr: Tracer, e: Equation, lhs: Any, rhs: Any) -> None:
        self.tr, self.e, self.lhs, self.rhs = tr, e, lhs, rhs
        p, numbers = e.params, e.params["dimension_numbers"]
        self.shape = e.outputs[0].shape
        self.lhs_batch, self.lhs_feature, *self.lhs_space = numbers.lhs_spec
        self.rhs_out, self.rhs_in, *self.rhs_space = numbers.rhs_spec
        self.out_batch, self.out_feature, *self.out_space = numbers.out_spec
        self.groups: Extent = p["feature_group_count"]
        self.kernel = tuple(rhs.shape[a] for a in self.rhs_space)
        rank = len(self.shape)
        # Letters: those of the result, then the filter positions, then what is left.
        self.kernel_letters = [rank + i for i in range(len(self.kernel))]
        self.maps = [
            AxisMap(
                (self.out_space[i], self.kernel_letters[i]),
                window(
                    self.shape[self.out_space[i]],
                    k,
                    p["window_strides"][i],
                    p["rhs_dilation"][i],
                    p["padding"][i][0],
                    p["lhs_dilation"][i],
                    lhs.shape[self.lhs_space[i]],
                ),
            )
            for i, k in enumerate(self.kernel)
        ]

    def result(self) -> Any:
        lhs, rhs = self.lhs, self.rhs
        axis = wide_axis(self.shape)
        outputs = [v for v in (lhs, rhs) if v.kind == "output"]
        if outputs:
            return self.as_product(random_multiple(self.tr, outputs[0]))
        if isinstance(lhs, MatrixValue):
            raise self.tr.refuse("A convolution over a matrix with two wide axes")
        if isinstance(rhs, MatrixValue):
            return self._matrix()
        if lhs.wide and rhs.wide:
            places = (lhs.axis, rhs.axis)
            if places == (self.lhs_feature, self.rhs_in):
                return self._readout()
            if places == (self.lhs_batch, self.rhs_out):
                return self.as_product(outer_reason(self.tr))
        if axis is None:
            raise self.tr.refuse("A convolution whose result has no wide axis")
        if lhs.wide and lhs.axis == self.lhs_feature:
            return self._depthwise()
        if lhs.wide:
            return self._fixed_filter(axis)
        return self._of_data(axis)

    def _spatial(self, feature: AxisMap | None) -> list[AxisMap | None]:
        maps: list[AxisMap | None] = [None] * len(self.lhs.shape)
        batch = self.shape[self.out_batch]
        if isinstance(batch, int):
            maps[self.lhs_batch] = AxisMap.identity(self.out_batch, batch)
        for a, m in zip(self.lhs_space, self.maps, strict=True):
            maps[a] = m
        maps[self.lhs_feature] = feature
        return maps

    def as_product(self, reason: str) -> Any:
        """A product of both sides, or a sum over groups of them."""
        groups = self.groups
        if not isinstance(groups, int):
            raise self.tr.refuse(f"{reason} by a convolution with a group a channel")
        if groups == 1:
            return self._product(self.lhs, self.rhs, reason)
        sides = [self._group(number, groups) for number in range(groups)]
        return added(self.tr, [self._product(*both, reason) for both in sides])

    def _group(self, number: int, count: int) -> tuple[Any, Any]:
        """What a group reads, and its filters, with zeros for those of the others."""
        tr, lhs, rhs, at = self.tr, self.lhs, self.rhs, self.rhs_out
        size = finite(lhs.shape[self.lhs_feature]) // count
        shape = tuple(
            size if a == self.lhs_feature else s for a, s in enumerate(lhs.shape)
        )
        start = number * size
        lhs = cut(tr, lhs, self.lhs_feature, shape, start, start + size)
        whole = rhs.shape[at]
        part = whole // count if isinstance(whole, int) else whole / count
        split = (*rhs.shape[:at], count, part, *rhs.shape[at + 1 :])
        one = with_weights(tr, reshaped(tr, rhs, split), at, np.eye(count)[number])
        return lhs, reshaped(tr, one, rhs.shape)

    def _product(self, lhs: Any, rhs: Any, reason: str) -> Any:
        """Both sides, and a table for every axis of positions."""
        free = len(self.shape) + len(self.kernel)
        labels: tuple[dict[int, int], dict[int, int]] = (
            {self.lhs_batch: self.out_batch, self.lhs_feature: free},
            {self.rhs_out: self.out_feature, self.rhs_in: free},
        )
        tables = []
        for i, (here, there) in enumerate(
            zip(self.lhs_space, self.rhs_space, strict=True), 1
        ):
            labels[0][here] = free + i
            labels[1][there] = self.kernel_letters[i - 1]
            m = self.maps[i - 1]
            reads = np.arange(finite(lhs.shape[here]))[:, None, None] == m.table
            value = known(reads.astype(float))
            tables.append(Factor(value, (free + i, *m.letters)))
        sides = [[a[i] for i in range(len(a))] for a in labels]
        total = product(lhs, sides[0], rhs, sides[1], self.shape, reason)
        total = counted(self.tr, total, {free: lhs.shape[self.lhs_feature]})
        terms = tuple((*t, *tables) for t in total.terms)
        return finished(self.tr, dataclasses.replace(total, terms=terms))

    def _readout(self) -> Value:
        """Wide channels to finite ones."""
        if self.groups != 1:
            raise self.tr.refuse("A convolution of wide channels to a few, with groups")
        wide = AxisMap((), np.asarray(0))
        left = [wide if m is None else m for m in self._spatial(None)]
        right: list[AxisMap] = [wide] * len(self.rhs.shape)
        right[self.rhs_out] = AxisMap.identity(
            self.out_feature, finite(self.shape[self.out_feature])
        )
        for a, letter, k in zip(
            self.rhs_space, self.kernel_letters, self.kernel, strict=True
        ):
            right[a] = AxisMap.identity(letter, k)
        letters = Letters(tuple(left), tuple(right), self.shape, self.kernel)
        return inner_product(self.tr, self.lhs, self.rhs, letters, self.shape)

    def _matrix(self) -> Value:
        """Wide channels to wide channels: sum over positions of A[k] @ x[p + k]."""
        tr, lhs, m = self.tr, self.lhs, self.rhs
        if not lhs.wide or lhs.axis != self.lhs_feature:
            raise tr.refuse(
                "A filter with two wide axes is applied to something else than channels"
            )
        if set(m.layouts) != {self.rhs_out, self.rhs_in}:
            raise tr.refuse("The positions of a filter are wide")
        finite = {
            a: AxisMap.identity(letter, k)
            for a, letter, k in zip(
                self.rhs_space, self.kernel_letters, self.kernel, strict=True
            )
        }
        groups = self.groups
        if not isinstance(groups, int):
            raise tr.refuse("A depthwise convolution with a matrix for each channel")
        if groups == 1:
            return matrix_times(
                tr, m, lhs, finite, self._spatial(None), self.rhs_in, self.shape,
                self.out_feature, self.kernel,
            )  # fmt: skip
        return self._grouped(finite, groups)

    def _grouped(self, finite: dict[int, AxisMap], groups: int) -> Value:
        """Channels in groups: a batch index of matrices."""
        tr, lhs, m = self.tr, self.lhs, self.rhs
        assert lhs.layout is not None
        inner = m.layouts[self.rhs_in]
        outer = m.layouts[self.rhs_out]
        size = self.shape[self.out_feature]
        assert isinstance(size, Size)
        part = tr.fresh(size / groups)
        tr.unify(lhs.layout, Major(groups, inner))
        tr.unify(outer, Major(groups, part))
        return matrix_times(
            tr, m, lhs, finite, self._spatial(None), self.rhs_in, self.shape,
            self.out_feature, self.kernel, AxisMap.identity(self.out_feature, groups),
        )  # fmt: skip

    def _depthwise(self) -> Value:
        """One filter for each channel: coordinatewise products, summed over space."""
        tr, rhs = self.tr, self.rhs
        if (
            self.groups != self.lhs.shape[self.lhs_feature]
            or rhs.shape[self.rhs_in] != 1
        ):
            raise tr.refuse(
                "A convolution of wide channels with a filter of finite width"
            )
        if (
            not rhs.wide
            or rhs.axis != self.rhs_out
            or rhs.shape[rhs.axis] != self.groups
        ):
            raise tr.refuse(
                "A depthwise convolution that makes several channels out of each"
            )
        wide = AxisMap((), np.asarray(0))
        left = [wide if m is None else m for m in self._spatial(None)]
        right: list[AxisMap] = [wide] * len(rhs.shape)
        for a, letter, k in zip(
            self.rhs_space, self.kernel_letters, self.kernel, strict=True
        ):
            right[a] = AxisMap.identity(letter, k)
        letters = Letters(tuple(left), tuple(right), (), self.kernel)
        return products(tr, self.lhs, rhs, letters, self.shape, self.out_feature)

    def _of_data(self, axis: int) -> Value:
        """Data to wide channels: a combination of the filter's vectors."""
        tr, rhs, lhs = self.tr, self.rhs, self.lhs
        if axis != self.out_feature or not isinstance(self.groups, int):
            raise tr.refuse("A convolution of data with this filter")
        channels = rhs.shape[self.rhs_in]
        assert isinstance(channels, int)
        sums = (*self.kernel, channels)
        letter = len(self.shape) + len(self.kernel)
        if self.groups == 1:
            feature = AxisMap.identity(letter, channels)
        else:
            size = self.shape[axis]
            assert isinstance(size, Size)
            assert rhs.layout is not None
            tr.unify(rhs.layout, Major(self.groups, tr.fresh(size / self.groups)))
            table = np.arange(self.groups * channels).reshape(self.groups, channels)
            feature = AxisMap((axis, letter), table)
        left = [
            AxisMap((), np.asarray(0)) if m is None else m
            for m in self._spatial(feature)
        ]
        right: list[AxisMap] = [AxisMap((), np.asarray(0))] * len(rhs.shape)
        for a, k_letter, k in zip(
            self.rhs_space, self.kernel_letters, self.kernel, strict=True
        ):
            right[a] = AxisMap.identity(k_letter, k)
        right[self.rhs_in] = AxisMap.identity(letter, channels)
        letters = Letters(tuple(left), tuple(right), (), sums)
        return data_times(tr, lhs, rhs, letters, self.shape, axis)

    def _fixed_filter(self, axis: int) -> Value:
        """A fixed filter over positions of a vector whose width is the batch axis."""
        tr, lhs, rhs = self.tr, self.lhs, self.rhs
        if (
            rhs.kind != "fixed"
            or rhs.wide
            or lhs.axis != self.lhs_batch
            or self.groups != 1
        ):
            raise tr.refuse(
                "A convolution of a vector whose width is not its channel axis"
            )
        channels = rhs.shape[self.rhs_in]
        letter = len(self.shape) + len(self.kernel)
        right = [
            AxisMap((), np.asarray(0)) if m is None else m
            for m in self._spatial(AxisMap.identity(letter, channels))
        ]
        left: list[AxisMap] = [AxisMap((), np.asarray(0))] * len(rhs.shape)
        for a, k_letter, k in zip(
            self.rhs_space, self.kernel_letters, self.kernel, strict=True
        ):
            left[a] = AxisMap.identity(k_letter, k)
        left[self.rhs_in] = AxisMap.identity(letter, channels)
        left[self.rhs_out] = AxisMap.identity(self.out_feature, rhs.shape[self.rhs_out])
        letters = Letters(tuple(left), tuple(right), (), (*self.kernel, channels))
        return data_times(tr, rhs, lhs, letters, self.shape, axis)


@rule("windows summed over positions (average pooling)", "reduce_window_sum")
def window_sum(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Sums over windows of index axes."""
    (x,) = ins
    if x.kind == "fixed" and not x.wide:
        return on_tensors(tr, e, ins, x.power)
    return [_windows(tr, e, x, None)]


@deferred_rule("reduce_window_sum")
def window_sum_of_products(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Sums over windows, one axis after another."""
    (x,) = ins
    for axis, table in enumerate(_tables(e, x.shape)):
        if table is not None and isinstance(x, Deferred):
            reads = np.arange(finite(x.shape[axis]))[:, None, None] == table
            x = with_table(tr, x, axis, reads.sum(-1).astype(float))
    return [x]


@rule(
    "windows reduced by maximum or minimum over positions",
    "reduce_window_max",
    "reduce_window_min",
)
def window_extreme(tr: Tracer, e: Equation, ins: list[Any]) -> list[Any]:
    """Maxima over windows of index axes: one function of all positions of a window."""
    (x,) = ins
    if x.kind == "fixed" and not x.wide:
        return on_tensors(tr, e, ins, x.power)
    return [_windows(tr, e, x, e.name.removeprefix("reduce_window_"))]


def _tables(e: Equation, before: Shape) -> list[np.ndarray | None]:
    """The positions of every window, for every axis that has windows."""
    p, shape = e.params, e.outputs[0].shape
    sizes, strides = p["window_dimensions"], p["window_strides"]
    return [
        None
        if sizes[a] == 1 and strides[a] == 1
        else window(
            shape[a], sizes[a], strides[a], p["window_dilation"][a],
            p["padding"][a][0], p["base_dilation"][a], finite(before[a]),
        )
        for a in range(len(shape))
    ]  # fmt: skip


def _windows(tr: Tracer, e: Equation, x: Value, op: str | None) -> Value:
    shape = e.outputs[0].shape
    if x.axis is not None and e.params["window_dimensions"][x.axis] != 1:
        raise tr.refuse("A window along a wide axis")
    if tr.dry and x.wide:
        return dataclasses.replace(x, shape=shape, leaves=None)
    tables = _tables(e, x.shape)
    rank, sums, maps = len(shape), [t.shape[1] for t in tables if t is not None], []
    assert x.leaves is not None
    leaves: list[Leaf] = []
    for block, leaf in zip(x.blocks(), x.leaves, strict=True):
        before = x.leaf_shape(block)
        out = tuple(before[a] if a == x.axis else s for a, s in enumerate(shape))
        letter, maps = iter(range(rank, rank + len(sums))), []
        for a, t in enumerate(tables):
            maps.append(
                AxisMap.identity(a, before[a])
                if t is None
                else AxisMap((a, next(letter)), t)
            )
        dim = None if block is None else tr.dim(block)
        ref = tr.emit.ref(leaf, before, tr.where, dim)
        if op is None:
            leaves.append(Linear((Term(ref, 1.0, (), tuple(maps), tuple(sums)),), out))
        else:
            if any(t is not None and t.min() < 0 for t in tables):
                raise tr.refuse(
                    "A maximum over windows that leave the array (use VALID padding)"
                )
            leaves.append(_extreme(tr, op, Linear.of(ref, before), maps, sums, out))
    return Value(shape, x.kind, tuple(leaves), x.axis, x.layout, x.power, x.dtype)


def _extreme(
    tr: Tracer,
    op: str,
    leaf: Linear,
    maps: Sequence[AxisMap],
    sums: Sequence[int],
    out: Any,
) -> Leaf:
    rank = len(out)
    rows: list[Leaf] = []
    for position in np.ndindex(*sums):
        at = []
        for m in maps:
            if len(m.letters) == 2 and m.letters[1] >= rank:
                k = position[m.letters[1] - rank]
                at.append(AxisMap(m.letters[:1], m.table[:, k]))
            else:
                at.append(m)
        rows.append(view(tr, leaf, at, out))
    return folded(tr, op, rows, out)
