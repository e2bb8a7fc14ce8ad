"""The lines of a program that a pass makes."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..program import (
    Array,
    AxisMap,
    Constant,
    LinComb,
    Line,
    Map,
    MatIn,
    Moment,
    Nonlin,
    Ref,
    TensorArg,
    Term,
    Type,
    VecIn,
    canonical,
    identity_maps,
    type_of,
)
from ..scalar import Expr


class Emitter:
    """Lines in order; of the lines that a pass adds, equal ones are made once.

    Args:
        reserved: the names of the lines that come from the old program.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self.lines: list[Line] = []
        self.types: list[Type] = []
        self._names = set(reserved)
        self._known: dict[Line, Ref] = {}

    def copy(self, line: Line) -> Ref:
        """A line of the old program, with its own name."""
        ref = self._append(line)
        if not isinstance(line, VecIn | MatIn):
            self._known.setdefault(dataclasses.replace(line, name=""), ref)
        return ref

    def add(self, line: Line, name: str) -> Ref:
        """A line of the pass: an equal one, or a new one called `name` or like it."""
        key = dataclasses.replace(line, name="")
        if key not in self._known:
            line = dataclasses.replace(line, name=self.free(name))
            self._known[key] = self._append(line)
        return self._known[key]

    def free(self, name: str) -> str:
        """`name`, or with a number behind it where it is taken."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    def _append(self, line: Line) -> Ref:
        self.types.append(type_of(line, self.types))
        self.lines.append(line)
        return len(self.lines) - 1

    def name(self, ref: Ref) -> str:
        """The name of a line."""
        return self.lines[ref].name

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """The index shape of a line."""
        return self.types[ref].shape

    def read(
        self, x: Ref, maps: tuple[AxisMap, ...], shape: tuple[int, ...], name: str
    ) -> Ref:
        """The family y[o] = x[maps(o)]; `x` itself where nothing moves."""
        if maps == identity_maps(self.shape(x)) and self.shape(x) == shape:
            return x
        line = LinComb(name="", terms=(Term(x, maps=maps),), shape=shape)
        return self.add(line, name)

    def nonlin(
        self, fn: Expr, xs: Sequence[Ref], tensors: Sequence[TensorArg], name: str
    ) -> Ref:
        """A coordinatewise function."""
        fn, vectors, args = _canonical(fn, xs, tensors)
        line = Nonlin(name="", fn=fn, xs=vectors, tensors=args)
        return self.add(line, name)

    def moment(
        self, fn: Expr, xs: Sequence[Ref], tensors: Sequence[TensorArg], name: str
    ) -> Ref:
        """The mean of a coordinatewise function."""
        fn, vectors, args = _canonical(fn, xs, tensors)
        line = Moment(name="", fn=fn, xs=vectors, tensors=args)
        return self.add(line, name)

    def constant(self, value: np.ndarray, name: str) -> Ref:
        """A tensor of numbers."""
        op = Constant(Array(value))
        return self.add(Map(name="", op=op, args=(), shape=value.shape), name)


def _canonical(
    fn: Expr, xs: Sequence[Ref], tensors: Sequence[TensorArg]
) -> tuple[Expr, tuple[Ref, ...], tuple[TensorArg, ...]]:
    vectors: list[Any]
    args: list[Any]
    leaves: list[Any] = [*xs]
    fn, vectors, args = canonical(fn, leaves, [*tensors])
    return fn, tuple(vectors), tuple(args)
