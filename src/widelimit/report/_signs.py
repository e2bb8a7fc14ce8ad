"""Which lines of a program have no negative value, and which stay away from zero."""

import numpy as np

from .. import scalar
from ..gaussian import Signs, is_positive
from ..program import (
    Constant,
    LinComb,
    Map,
    Moment,
    Nonlin,
    Ref,
    TensorArg,
    TensorProgram,
    Term,
)


class LineSigns:
    """The signs of the lines of a program, as far as they follow from its text.

    Args:
        program: any program.

    Attributes:
        nonnegative: lines whose values are at least 0.
        positive: lines whose values stay above a positive constant.
    """

    def __init__(self, program: TensorProgram) -> None:
        self._program = program
        self.nonnegative: set[Ref] = set()
        self.positive: set[Ref] = set()
        for ref, line in enumerate(program.lines):
            match line:
                case LinComb():
                    self._combination(ref, line)
                case Nonlin() | Moment():
                    self._function(ref, line)
                case Map(op=Constant(value)) if value.value.dtype != object:
                    least = np.min(value.value, initial=np.inf)
                    self._set(ref, bool(least >= 0), bool(least > 0))

    def of(self, line: Nonlin | Moment) -> Signs:
        """What is known of the arguments of a function."""
        refs = [*line.xs, *(t.ref for t in line.tensors)]
        return Signs(
            frozenset(i for i, r in enumerate(refs) if r in self.nonnegative),
            frozenset(i for i, r in enumerate(refs) if r in self.positive),
        )

    def _set(self, ref: Ref, nonnegative: bool, positive: bool) -> None:
        if nonnegative:
            self.nonnegative.add(ref)
        if nonnegative and positive:
            self.positive.add(ref)

    def _combination(self, ref: Ref, line: LinComb) -> None:
        at_least_zero = all(
            t.scale >= 0.0
            and (t.x is None or t.x in self.nonnegative)
            and all(a.ref in self.nonnegative for a in t.tensors)
            for t in line.terms
        )
        self._set(ref, at_least_zero, any(self._is_positive(t) for t in line.terms))

    def _is_positive(self, term: Term) -> bool:
        """Whether a term without negative values stays above a constant."""
        everywhere = all(m.is_inside for m in term.maps)
        tensors = all(t.ref in self.positive for t in term.tensors)
        vector = term.x is None or term.x in self.positive
        return term.scale > 0.0 and everywhere and tensors and vector

    def _function(self, ref: Ref, line: Nonlin | Moment) -> None:
        known = self.of(line)
        tensors: tuple[TensorArg, ...] = line.tensors
        count = len(line.xs) + len(tensors)
        flags = [i in known.nonnegative for i in range(count)]
        positive = is_positive(line.fn, frozenset(range(count)), known)
        self._set(ref, positive or scalar.is_nonnegative(line.fn, flags), positive)
