"""Which lines of a backward pass are odd in the output's gradients.

Theorem 5 of Yang (2019, https://arxiv.org/abs/1902.04760) has new input vectors v of
mean zero, independent of the network, and asks that the arguments of all products in
the backward pass are odd in v and in the products that come from it. The derivative of
such a line along a product of the network is odd, too, and its mean is zero.
"""

import enum
from collections.abc import Iterable, Sequence

import numpy as np

from ..program import (
    Constant,
    Elementwise,
    LinComb,
    Map,
    MatMul,
    Moment,
    Nonlin,
    Primitive,
    Readout,
    Ref,
    TensorProgram,
    VecIn,
    operands,
)
from ..scalar import Arg, Call, Const, Expr

_ODD = frozenset(
    "sin sinh tan tanh asin asinh atan atanh erf erf_inv sign cbrt".split()
)
_EVEN = frozenset("abs cos cosh".split())
_LINEAR = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy cumsum expand_dims neg "
    "reduce_sum reshape rev slice squeeze transpose".split()
)
_SUM = frozenset(("add", "add_any", "sub"))
_PRODUCT = frozenset(("div", "dot_general", "mul"))


class Parity(enum.Enum):
    """What a line does when the output's gradients change their sign."""

    EVEN = 0
    ODD = 1
    ZERO = 2  # both
    NEITHER = 3  # as far as is known


EVEN, ODD, ZERO, NEITHER = Parity.EVEN, Parity.ODD, Parity.ZERO, Parity.NEITHER
_STEADY = frozenset((EVEN, ZERO))


def output_gradients(program: TensorProgram, forward: int) -> tuple[Ref, ...]:
    """The vectors v: of mean zero, and used by nothing but the readout.

    Args:
        program: a network and its backward pass.
        forward: how many of the lines are the network.
    """
    lines = program.lines
    elsewhere = {
        r
        for line in lines[:forward]
        for r in ((line.x,) if isinstance(line, Readout) else operands(line))
    }
    read = {line.v for line in lines[:forward] if isinstance(line, Readout)}
    made = {
        r
        for r, line in enumerate(lines)
        if r >= forward and isinstance(line, VecIn) and line.mean == 0.0
    }
    return tuple(sorted((read - elsewhere) | made))


def parities(program: TensorProgram, odd: Sequence[Ref]) -> tuple[Parity, ...]:
    """The parity of every line in the input lines `odd`."""
    found: list[Parity] = []
    for ref, line in enumerate(program.lines):
        match line:
            case _ if ref in odd:
                parity = ODD
            case LinComb():
                parity = _sum(
                    _product(
                        [
                            *(found[a.ref] for a in t.tensors),
                            EVEN if t.x is None else found[t.x],
                        ]
                    )
                    for t in line.terms
                    if t.scale != 0.0
                )
            case MatMul():
                parity = found[line.x]
            case Readout():
                parity = _product([found[line.v], found[line.x]])
            case Nonlin() | Moment():
                refs = [*line.xs, *(t.ref for t in line.tensors)]
                parity = of_function(line.fn, [found[r] for r in refs])
            case Map():
                parity = _map(line, [found[r] for r in line.args])
            case _:
                parity = EVEN
        found.append(parity)
    return tuple(found)


def of_function(f: Expr, arguments: Sequence[Parity]) -> Parity:  # noqa: C901
    """The parity of a function of arguments of known parity, by its structure."""
    match f:
        case Arg(i):
            return arguments[i]
        case Const(value):
            return ZERO if value == 0.0 else EVEN
        case Call(op, args):
            inner = [of_function(a, arguments) for a in args]
            if op in _SUM:
                return _sum(inner)
            if op in _PRODUCT:
                return _product(inner)
            if op == "select" and inner[0] in _STEADY:
                return _sum(inner[1:])
            if _STEADY.issuperset(inner):
                return EVEN
            if op == "neg" or op in _ODD:
                return inner[0]
            if op in _EVEN:
                return EVEN if inner[0] is ODD else NEITHER
            if op == "pow" and isinstance(args[1], Const) and inner[0] is ODD:
                power = args[1].value
                whole = float(power).is_integer()
                return (ODD if power % 2 else EVEN) if whole else NEITHER
            return NEITHER


def _map(line: Map, arguments: Sequence[Parity]) -> Parity:
    match line.op:
        case Constant(value):
            return EVEN if np.any(value.value) else ZERO
        case Elementwise(fn):
            return of_function(fn, arguments)
        case Primitive("gather" | "pad" | "read"):
            return arguments[0]
        case Primitive(name) if name in _LINEAR or name in _SUM:
            return _sum(arguments)
        case Primitive(name) if name in _PRODUCT:
            return _product(arguments)
        case Primitive("select_n") if arguments[0] in _STEADY:
            return _sum(arguments[1:])
    return EVEN if _STEADY.issuperset(arguments) else NEITHER


def _sum(parities: Iterable[Parity]) -> Parity:
    kinds = set(parities) - {ZERO}
    return NEITHER if len(kinds) > 1 else kinds.pop() if kinds else ZERO


def _product(parities: Sequence[Parity]) -> Parity:
    if ZERO in parities:
        return ZERO
    if NEITHER in parities:
        return NEITHER
    return ODD if sum(p is ODD for p in parities) % 2 else EVEN
