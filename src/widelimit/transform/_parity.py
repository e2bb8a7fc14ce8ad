"""Which lines change sign with which inputs: expectations that vanish by symmetry.

The law of a program stays the same when a zero-mean Gaussian input is multiplied by -1.
A line that then changes its sign is odd in this input, one that does not change is
even, and E[Z^u Z^v] = 0 for an odd and an even one. That is how the change of a network
along a random direction is independent of the network, and a gradient of its forward
pass, without a covariance being computed.

Scalars (Moment lines) are constants in the limit, and even.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from ..program import (
    LinComb,
    MatIn,
    MatMul,
    Nonlin,
    Readout,
    TensorProgram,
    Transpose,
    VecIn,
    is_channel_sum,
)
from ..scalar import Arg, Call, Const, Expr

_ODD = {"neg", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "erf"}
_ODD |= {"erf_inv", "cbrt", "sign", "round"}
_EVEN = {"abs", "cos", "cosh", "square"}


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """Sets of inputs, as the bits of whole numbers.

    Attributes:
        odd: the line changes its sign with these.
        neither: it changes in another way with these.
    """

    odd: int = 0
    neither: int = 0

    def times(self, other: "Parity") -> "Parity":
        """The parity of a product."""
        neither = self.neither | other.neither
        return Parity((self.odd ^ other.odd) & ~neither, neither)

    def plus(self, other: "Parity") -> "Parity":
        """The parity of a sum."""
        neither = self.neither | other.neither | (self.odd ^ other.odd)
        return Parity(self.odd & ~neither, neither)

    def given(self, fixed: int) -> "Parity":
        """The parity where the signs of these inputs are not free."""
        return Parity(self.odd & ~fixed, self.neither & ~fixed)

    def excludes(self, other: "Parity") -> bool:
        """Whether the mean of the product is zero."""
        return bool((self.odd ^ other.odd) & ~(self.neither | other.neither))


EVEN = Parity()


class Parities:
    """The parities of the lines of programs that share inputs by name."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}

    def of(self, program: TensorProgram) -> list[Parity]:
        """The parity of every line."""
        found: list[Parity] = []
        for line in program.lines:
            match line:
                case VecIn(name=name, mean=mean):
                    bit = self._bit(name)
                    centred = isinstance(mean, float | int) and mean == 0.0
                    parity = Parity(bit, 0) if centred else Parity(0, bit)
                case MatIn() if is_channel_sum(line):
                    parity = EVEN  # a sum has no sign that could be another
                case MatIn(name=name):
                    parity = Parity(self._bit(name), 0)
                case Transpose(matrix=matrix):
                    parity = found[matrix]
                case MatMul(matrix=a, x=x) | Readout(v=a, x=x):
                    parity = found[a].times(found[x])
                case LinComb(terms=terms):
                    parity = _sum(EVEN if t.x is None else found[t.x] for t in terms)
                case Nonlin(fn=fn, xs=xs, tensors=tensors):
                    args = [found[x] for x in xs] + [EVEN] * len(tensors)
                    parity = of_function(fn, args)
                case _:
                    parity = EVEN
            found.append(parity)
        return found

    def _bit(self, name: str) -> int:
        return self._bits.setdefault(name, 1 << len(self._bits))


def _sum(parities: Iterable[Parity]) -> Parity:
    first, *rest = parities
    for p in rest:
        first = first.plus(p)
    return first


def of_function(fn: Expr, args: Sequence[Parity]) -> Parity:
    """The parity of a function of arguments with these."""
    match fn:
        case Arg(index):
            return args[index]
        case Const():
            return EVEN
        case Call(op, inner):
            parts = [of_function(a, args) for a in inner]
    return _of_operation(op, inner, parts)


def _of_operation(op: str, args: Sequence[Expr], parts: Sequence[Parity]) -> Parity:
    first = parts[0]
    if op in ("mul", "div"):
        return first.times(parts[1])
    if op in ("add", "sub"):
        return first.plus(parts[1])
    if op == "pow" and isinstance(args[1], Const) and args[1].value % 1 == 0:
        return first if args[1].value % 2 else _even(first)
    if op == "select":
        return _unknown(first).plus(parts[1].plus(parts[2]))
    if op in _ODD:
        return first
    return _even(first) if op in _EVEN else _unknown(*parts)


def _even(x: Parity) -> Parity:
    return Parity(0, x.neither)


def _unknown(*parts: Parity) -> Parity:
    neither = 0
    for p in parts:
        neither |= p.odd | p.neither
    return Parity(0, neither)
