"""Factors and summands of coordinatewise functions as lines of their own."""

import dataclasses

from ..program import Nonlin, Ref, TensorProgram, appearance, canonical, renumber
from ..scalar import Arg, Call, Expr, substitute
from ._emitter import Emitter
from ._rewritten import Rewritten

_SUMS = ("add", "sub", "neg", "mul")


def take_apart(program: TensorProgram) -> Rewritten:
    """Make every function in a sum of products of several vectors a line of its own.

    Of h = (1 - sigmoid(a)) x + sigmoid(a) tanh(b) only the sum of products is left, of
    x and three new lines. Questions about those are remembered, as those about all
    lines are, and a recursion over h is then one question a pair of steps.

    Keeps: the value of every line, at every finite width.
    """
    out = Emitter(line.name for line in program.lines)
    place: dict[Ref, Ref] = {}
    for ref, line in enumerate(program.lines):
        moved = renumber(line, place)
        if isinstance(moved, Nonlin):
            moved = _Parts(out, moved).line()
        place[ref] = out.copy(moved)
    rewritten = TensorProgram(
        tuple(out.lines),
        tuple(place[r] for r in program.outputs),
        tuple((name, place[r]) for name, r in program.taps),
    )
    return Rewritten(rewritten, place)


class _Parts:
    """The parts of a function of several vectors."""

    def __init__(self, out: Emitter, line: Nonlin) -> None:
        self._out, self._line = out, line
        self._new: list[Ref] = []

    def line(self) -> Nonlin:
        """The line with its parts as lines before it."""
        line, count = self._line, len(self._line.xs)
        left = self._visit(line.fn)
        if not self._new or isinstance(left, Arg):
            return line
        # New vectors were numbered behind the tensors: vectors come first.
        tensors = range(count + len(self._new), count + len(self._new) + self._tensors)
        new = range(count, count + len(self._new))
        order = [*range(count), *tensors, *new]
        fn, xs, args = canonical(
            substitute(left, [Arg(i) for i in order]),
            [*line.xs, *self._new],
            list(line.tensors),
        )
        return dataclasses.replace(line, fn=fn, xs=tuple(xs), tensors=tuple(args))

    @property
    def _tensors(self) -> int:
        return len(self._line.tensors)

    def _visit(self, e: Expr) -> Expr:
        """The expression with its parts replaced by new arguments."""
        vectors = {i for i in appearance(e) if i < len(self._line.xs)}
        match e:
            case Call(op, args) if len(vectors) > 1 and op in _SUMS:
                return Call(op, tuple(self._visit(a) for a in args))
            case Call() if vectors:
                return self._part(e)
        return e

    def _part(self, e: Expr) -> Expr:
        line = self._line
        ref = self._out.nonlin(e, line.xs, line.tensors, f"{line.name}_part")
        if ref not in self._new:
            self._new.append(ref)
        return Arg(len(line.xs) + self._tensors + self._new.index(ref))
