"""Whether every row of an output is made of the same row of the inputs, by structure.

Most networks treat the inputs of a batch one by one in a way that shows in their trace:
the axis of inputs goes through every operation. Nothing has to be run to see it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import scalar
from ._jax import Equation, Graph, Literal

_NONE: Final = -1
"""In the place of an axis: no row matters."""
_MIXED: Final = -2
"""Rows may be mixed."""

Axes = list[int]
Rule = Callable[[Equation, Axes], int]


def rows_are_apart(graph: Graph, inputs: int) -> bool:
    """Whether row i of the output is seen to depend on row i of the inputs alone.

    Args:
        graph: of a network at a batch of inputs.
        inputs: how many of its last arguments have an axis of inputs, their first.

    Returns:
        Whether it is so; False also where that is not seen.
    """
    axes = [_NONE] * (len(graph.inputs) - inputs) + [0] * inputs
    return all(a in (0, _NONE) for a in _through(graph, axes))


def _through(graph: Graph, axes: Axes) -> Axes:
    """The axis of rows of every output, from those of the inputs."""
    known: dict[Any, int] = dict(zip(graph.inputs, axes, strict=True))

    def axis(atom: Any) -> int:
        return _NONE if isinstance(atom, Literal) else known.get(atom, _NONE)

    for e in graph.equations:
        ins = [axis(a) for a in e.inputs]
        known.update(zip(e.outputs, _after(e, ins), strict=True))
    return [axis(a) for a in graph.outputs]


def _after(e: Equation, ins: Axes) -> Axes:
    count = len(e.outputs)
    if all(a == _NONE for a in ins):
        return [_NONE] * count
    if _MIXED in ins:
        return [_MIXED] * count
    if e.name in scalar.CALLS:
        return _through(e.params[scalar.CALLS[e.name]], ins)
    if e.name == "scan":
        return _scan(e, ins)
    if e.name in scalar.PRIMITIVES:
        return [_only(ins)] * count
    rule = _RULES.get(e.name)
    return [_MIXED if rule is None else rule(e, ins)] * count


def _only(ins: Axes) -> int:
    """The axis of those that have one, if it is the same."""
    found = {a for a in ins if a != _NONE}
    return found.pop() if len(found) == 1 else _MIXED


def _scan(e: Equation, ins: Axes) -> Axes:
    body, fixed, carried = (e.params[k] for k in ("jaxpr", "num_consts", "num_carry"))
    constants, state = ins[:fixed], ins[fixed : fixed + carried]
    # Steps stand along the first axis.
    given = [_without([0], a) if a >= 0 else a for a in ins[fixed + carried :]]
    out: Axes = []
    for _ in range(len(state) + 1):
        out = _through(body, [*constants, *state, *given])
        both = zip(state, out[:carried], strict=True)
        after = [a if a == b else _only([a, b]) for a, b in both]
        if after == state:
            break
        state = after
    return state + [a + 1 if a >= 0 else a for a in out[carried:]]


def _broadcast(e: Equation, ins: Axes) -> int:
    return e.params["broadcast_dimensions"][ins[0]]


def _reshape(e: Equation, ins: Axes) -> int:
    before, after, a = e.inputs[0].shape, e.outputs[0].shape, ins[0]
    if e.params.get("dimensions") is not None:
        return _MIXED
    for b, size in enumerate(after):
        if size == before[a] and math.prod(after[:b]) == math.prod(before[:a]):
            return b
    return _MIXED


def _transpose(e: Equation, ins: Axes) -> int:
    return list(e.params["permutation"]).index(ins[0])


def _without(axes: Sequence[int], a: int) -> int:
    return _MIXED if a in axes else a - sum(b < a for b in axes)


def _reduce(e: Equation, ins: Axes) -> int:
    return _without(e.params["axes"], ins[0])


def _squeeze(e: Equation, ins: Axes) -> int:
    return _without(e.params["dimensions"], ins[0])


def _dot(e: Equation, ins: Axes) -> int:
    (lhs, rhs), (batch1, batch2) = e.params["dimension_numbers"]
    a, b = ins
    sides = ((a, lhs, batch1), (b, rhs, batch2))
    if any(x in contracted for x, contracted, _ in sides):
        return _MIXED
    places = {
        batch.index(x) if x in batch else _NONE for x, _, batch in sides if x != _NONE
    }
    if places != {_NONE}:
        # An axis of pairs: the same one on both sides, or there are no rows on one.
        return places.pop() if len(places) == 1 else _MIXED
    if _NONE not in (a, b):
        return _MIXED
    if a != _NONE:
        return len(batch1) + _without([*lhs, *batch1], a)
    # After the axes of pairs stand the free ones of the left side, then the others.
    return len(e.inputs[0].shape) - len(lhs) + _without([*rhs, *batch2], b)


def _convolution(e: Equation, ins: Axes) -> int:
    spec = e.params["dimension_numbers"]
    plain = e.params["batch_group_count"] == 1 and ins[1] == _NONE
    return spec.out_spec[0] if plain and spec.lhs_spec[0] == ins[0] else _MIXED


def _along(name: str) -> Rule:
    """An operation along one axis, or some."""

    def rule(e: Equation, ins: Axes) -> int:
        found, axes = _only(ins), e.params[name]
        mixed = found in axes if isinstance(axes, tuple) else found == axes
        return _MIXED if mixed else found

    return rule


def _pad(e: Equation, ins: Axes) -> int:
    untouched = ins[1] == _NONE and e.params["padding_config"][ins[0]] == (0, 0, 0)
    return ins[0] if untouched else _MIXED


def _slice(e: Equation, ins: Axes) -> int:
    a = ins[0]
    same = e.inputs[0].shape[a] == e.outputs[0].shape[a]
    return a if same else _MIXED


def _dynamic_slice(e: Equation, ins: Axes) -> int:
    return _slice(e, ins) if all(a == _NONE for a in ins[1:]) else _MIXED


def _gather(e: Equation, ins: Axes) -> int:
    """Rows of a table, one for every number."""
    table, a = ins
    if table != _NONE or a == len(e.inputs[1].shape) - 1:
        return _MIXED
    numbers = e.params["dimension_numbers"]
    if numbers.operand_batching_dims:
        return _MIXED
    rank = len(e.outputs[0].shape)
    return [d for d in range(rank) if d not in numbers.offset_dims][a]


def _window(e: Equation, ins: Axes) -> int:
    a, p = ins[0], e.params
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    one = all(p.get(name) is None or p[name][a] == 1 for name in names)
    plain = one and p["padding"][a] == (0, 0) and len(ins) == 1
    return a if plain else _MIXED


_REDUCED = ("sum", "max", "min", "prod", "and", "or", "xor")
_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "concatenate": _along("dimension"),
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "split": _along("axis"),
    "argmax": _reduce,
    "argmin": _reduce,
    **{f"reduce_{name}": _reduce for name in _REDUCED},
    **{f"cum{name}": _along("axis") for name in ("sum", "prod", "max", "min")},
    "cumlogsumexp": _along("axis"),
    **{f"reduce_window_{name}": _window for name in ("sum", "max", "min")},
}
