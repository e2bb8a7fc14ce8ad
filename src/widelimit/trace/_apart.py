"""Whether the entries of a batch are run without each other, read off the graph.

A function is traced for a batch of N and for one of one. Where the graphs are the same
equations with the same numbers, every value either has one shape in both, and then is
the same for all batches, or has one axis of N where the other has one. That axis is
followed through the equations: through those that treat its entries apart, and in the
same way, so that entry i of the output is what the function makes of entry i alone.
What is not known to be so is not taken to be.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax, scalar
from .._jax import Atom, Equation, Graph, Literal

_CALLS = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
     "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
)  # fmt: skip
_ELEMENTWISE = scalar.PRIMITIVES | frozenset(
    """acos acosh add_any asin asinh atan atan2 atanh ceil clamp convert_element_type
    copy copy_p digamma erf_inv is_finite lgamma nextafter not reduce_precision rem
    round stop_gradient xor""".split()
)
_REDUCTIONS = frozenset(
    """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor""".split()
)
_LOOPS = frozenset(("scan", "while", "cond"))
_CUMULATIVE = frozenset(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"))
_WINDOWS = frozenset(
    """reduce_window reduce_window_max reduce_window_min reduce_window_sum
    select_and_gather_add""".split()
)


def axes_apart(
    batch: Graph, one: Graph, size: int, *, fresh: bool = False
) -> list[int | None] | None:
    """The axis of the batch in every output, where its entries are treated apart.

    Args:
        batch: of a function at a batch of inputs.
        one: of the same function at a batch of one.
        size: of the first batch, more than one.
        fresh: whether random numbers of its own count as the same for every entry.

    Returns:
        An axis for every output, None for those that no entry is in. None if an entry
        may be treated in the light of others, of their number, or of its place.
    """
    walk = _Walk(size, fresh)
    if not walk.same(batch, one):
        return None
    return [walk.axis(*both) for both in zip(batch.outputs, one.outputs, strict=True)]


class _Walk:
    """Follows the axis of the batch through two graphs side by side.

    Args:
        size: of the batch.
        fresh: see `axes_apart`.
    """

    def __init__(self, size: int, fresh: bool) -> None:
        self._size, self._fresh = size, fresh
        self._known: dict[Atom, Atom] = {}

    def same(self, batch: Graph, one: Graph) -> bool:
        """Whether both graphs do the same to every entry of the batch."""
        try:
            self._pair(batch.inputs, one.inputs)
            for (a, value), (b, single) in zip(
                batch.constants, one.constants, strict=True
            ):
                _require(_same_numbers(value, single))
                self._pair([a], [b])
            for e, single in zip(batch.equations, one.equations, strict=True):
                self._equation(e, single)
            self._check(batch.outputs, one.outputs)
        except (ValueError, TypeError):  # also of values that cannot be compared
            return False
        return True

    def axis(self, a: Atom, b: Atom) -> int | None:
        """The axis of the batch in a value of the first graph; None if it has none.

        Raises:
            ValueError: the shapes in both graphs differ otherwise.
        """
        differ = [
            (axis, *sizes)
            for axis, sizes in enumerate(zip(a.shape, b.shape, strict=True))
            if sizes[0] != sizes[1]
        ]
        if not differ:
            return None
        _require(len(differ) == 1 and differ[0][1:] == (self._size, 1))
        return differ[0][0]

    def _pair(self, batch: Sequence[Atom], one: Sequence[Atom]) -> None:
        for a, b in zip(batch, one, strict=True):
            self.axis(a, b)
            _require(a.dtype == b.dtype)
            self._known[a] = b

    def _check(self, batch: Sequence[Atom], one: Sequence[Atom]) -> None:
        """Refuse values that are not made in the same way."""
        for a, b in zip(batch, one, strict=True):
            if isinstance(a, Literal) and isinstance(b, Literal):
                _require(a.dtype == b.dtype and _same_numbers(a.value, b.value))
            else:
                _require(self._known.get(a) is b)

    def _equation(self, e: Equation, single: Equation) -> None:
        _require(e.name == single.name)
        self._check(e.inputs, single.inputs)
        ins = [self.axis(a, b) for a, b in zip(e.inputs, single.inputs, strict=True)]
        self._pair(e.outputs, single.outputs)
        outs = [self.axis(a, b) for a, b in zip(e.outputs, single.outputs, strict=True)]
        if e.name in _CALLS and e.graphs and single.graphs:
            # The rules for derivatives, if any, are not in use.
            inner, other = e.graphs[0], single.graphs[0]
            _require(len(inner.inputs) == len(ins))
            self._pair(inner.inputs, other.inputs)
            _require(self.same(inner, other))
            return
        if e.name == "random_bits":
            _require(self._fresh or outs == [None])
            return
        sizes = _SIZES.get(e.name, ())
        for name, value in e.params.items():
            if name not in sizes:
                self._same_param(value, single.params.get(name))
        # What a loop or a branch does to its values has been compared.
        if e.name not in _LOOPS and any(a is not None for a in (*ins, *outs)):
            _require(all(_keeps(e, ins, out) for out in outs))

    def _same_param(self, a: Any, b: Any) -> None:
        if isinstance(a, Graph) and isinstance(b, Graph):
            _require(self.same(a, b))
        elif isinstance(a, tuple) and isinstance(b, tuple):
            _require(len(a) == len(b))
            for p, q in zip(a, b, strict=True):
                self._same_param(p, q)
        else:
            _require(a is b or bool(np.all(a == b)))


_SIZES = {
    "broadcast_in_dim": ("shape",),
    "iota": ("shape",),
    "reshape": ("new_sizes",),
    "slice": ("limit_indices",),
    "dynamic_slice": ("slice_sizes",),
    "gather": ("slice_sizes",),
}
"""Parameters that are sizes of the result, which has its shape already."""


Axes = Sequence[int | None]
"""The axis of the batch in every operand, None in those that are the same for all."""


def _keeps(e: Equation, ins: Axes, out: int | None) -> bool:
    """Whether an equation treats the entries along an axis apart, each like the others.

    Args:
        e: of the graph of the batch.
        ins: the axis in every operand.
        out: the axis in the result.
    """
    if out is None:
        return False
    if e.name in _OF_ALL:
        return _OF_ALL[e.name](e, ins, out)
    first, *others = ins
    if e.name not in _OF_FIRST or first is None or any(a is not None for a in others):
        return False
    return _OF_FIRST[e.name](e, first, out)


def _elementwise(e: Equation, ins: Axes, out: int) -> bool:
    def fits(shape: Sequence[int], axis: int | None) -> bool:
        one = axis is None and (len(shape) == 0 or shape[out] == 1)
        return axis == out or one

    return all(fits(v.shape, a) for v, a in zip(e.inputs, ins, strict=True))


def _counts(e: Equation, ins: Axes, out: int) -> bool:
    return e.params["dimension"] != out


def _sorts(e: Equation, ins: Axes, out: int) -> bool:
    return e.params["dimension"] != out and all(a in (None, out) for a in ins)


def _looks_up(e: Equation, ins: Axes, out: int) -> bool:
    """Rows of a table, one for every number; or the same of every entry."""
    numbers, (table, index) = e.params["dimension_numbers"], ins
    if numbers.operand_batching_dims:
        return False
    whole = [d for d in range(len(e.outputs[0].shape)) if d in numbers.offset_dims]
    if table is None:
        if index is None or index == len(e.inputs[1].shape) - 1:
            return False
        places = [d for d in range(len(e.outputs[0].shape)) if d not in whole]
        return places[index] == out
    if index is not None or table in numbers.start_index_map:
        return False
    kept = [
        d
        for d in range(len(e.inputs[0].shape))
        if d not in numbers.collapsed_slice_dims
    ]
    return whole[kept.index(table)] == out


def _concatenates(e: Equation, ins: Axes, out: int) -> bool:
    return e.params["dimension"] != out and all(a == out for a in ins)


def _broadcasts(e: Equation, ins: Axes, out: int) -> bool:
    to, axis = list(e.params["broadcast_dimensions"]), ins[0]
    if axis is not None:
        return to[axis] == out
    return out not in to or e.inputs[0].shape[to.index(out)] == 1


def _multiplies(e: Equation, ins: Axes, out: int) -> bool:
    contracted, batched = e.params["dimension_numbers"]
    a, b = ins
    if a is not None and b is not None:
        pairs = list(zip(*batched, strict=True))
        return (a, b) in pairs and pairs.index((a, b)) == out
    free = [
        [i for i in range(len(v.shape)) if i not in (*contracted[k], *batched[k])]
        for k, v in enumerate(e.inputs)
    ]
    side, axis = (0, a) if b is None else (1, b)
    before = len(batched[0]) + (len(free[0]) if side else 0)
    return axis in free[side] and before + free[side].index(axis) == out


def _reduces(e: Equation, axis: int, out: int) -> bool:
    axes = e.params["axes"]
    return axis not in axes and out == axis - sum(a < axis for a in axes)


def _reshapes(e: Equation, axis: int, out: int) -> bool:
    before, after = e.inputs[0].shape[:axis], e.outputs[0].shape[:out]
    plain = e.name == "squeeze" or e.params.get("dimensions") is None
    return plain and math.prod(before) == math.prod(after)


def _transposes(e: Equation, axis: int, out: int) -> bool:
    return e.params["permutation"][out] == axis


def _convolves(e: Equation, axis: int, out: int) -> bool:
    numbers = e.params["dimension_numbers"]
    batch = (numbers.lhs_spec[0], numbers.out_spec[0])
    return batch == (axis, out) and e.params["batch_group_count"] == 1


def _slices(e: Equation, axis: int, out: int) -> bool:
    return axis == out  # all of the axis, or the result would not have it


def _pads(e: Equation, axis: int, out: int) -> bool:
    return axis == out and tuple(e.params["padding_config"][axis]) == (0, 0, 0)


def _reverses(e: Equation, axis: int, out: int) -> bool:
    return axis == out and axis not in e.params["dimensions"]


def _accumulates(e: Equation, axis: int, out: int) -> bool:
    return axis == out != e.params["axis"]


def _moves_windows(e: Equation, ins: Axes, out: int) -> bool:
    names = ("window_dimensions", "window_strides", "window_dilation", "base_dilation")
    ones = all(e.params[n][out] == 1 for n in names if n in e.params)
    return (
        ones and tuple(e.params["padding"][out]) == (0, 0) and _elementwise(e, ins, out)
    )


_OF_ALL: dict[str, Callable[[Equation, Axes, int], bool]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_WINDOWS, _moves_windows),
    "broadcast_in_dim": _broadcasts,
    "concatenate": _concatenates,
    "dot_general": _multiplies,
    "gather": _looks_up,
    "iota": _counts,
    "sort": _sorts,
}
"""Where any operand may have the axis."""

_OF_FIRST: dict[str, Callable[[Equation, int, int], bool]] = {
    **dict.fromkeys(_REDUCTIONS, _reduces),
    **dict.fromkeys(_CUMULATIVE, _accumulates),
    "conv_general_dilated": _convolves,
    "dynamic_slice": _slices,
    "pad": _pads,
    "reshape": _reshapes,
    "rev": _reverses,
    "slice": _slices,
    "split": _accumulates,
    "squeeze": _reshapes,
    "transpose": _transposes,
}
"""Where the first operand has it, and others are the same for all."""


def _same_numbers(a: Any, b: Any) -> bool:
    """Whether a constant is the same for every entry of the batch."""
    if a is b:
        return True
    if not (_jax.is_concrete(a) and _jax.is_concrete(b)):
        return False
    if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return False
    a, b = np.asarray(a), np.asarray(b)
    return bool(np.all((a == b) | ((a != a) & (b != b))))  # also where not a number


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError
