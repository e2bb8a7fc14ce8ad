"""The adjoints of one output, as they gather during a backward pass."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from .. import scalar
from ..program import (
    AxisMap,
    Dim,
    Elementwise,
    LinComb,
    Line,
    Map,
    MatMul,
    Moment,
    Nonlin,
    Ratio,
    Ref,
    Tensor,
    TensorArg,
    TensorProgram,
    Term,
    Transpose,
    Vector,
    Writer,
    canonical,
    identity_maps,
    operands,
)
from ..scalar import Arg, Const, Expr
from ._invert import masked

Part = Term | Line
"""A summand of the adjoint of a vector; a line has no name yet."""

Factor = float | TensorArg
"""A number, or a scalar line that holds it."""


class Adjoints:
    """Adjoints of the lines of a program, summand by summand.

    Args:
        writer: the program, going on.
        program: the forward program.
        lead: the index shape of the output, which leads that of every adjoint.
        width: the wide dimension that normalises the adjoints.
        prefix: of the names of the adjoints.
    """

    def __init__(
        self,
        writer: Writer,
        program: TensorProgram,
        lead: tuple[int, ...],
        width: Dim,
        prefix: str,
    ) -> None:
        self.writer, self.program = writer, program
        self.lines, self.types = program.lines, program.types
        self.lead, self.width, self.prefix = lead, width, prefix
        self.active = _active(program)
        self.source = ""
        self.finished: dict[Ref, Ref] = {}
        self._parts: dict[Ref, list[Part]] = {}
        self._tensor_parts: dict[Ref, list[Ref]] = {}
        self._transposes = {
            line.matrix: ref
            for ref, line in enumerate(writer.lines)
            if isinstance(line, Transpose)
        }

    # Summands -------------------------------------------------------------------------

    def add(self, ref: Ref, part: Part | None) -> None:
        """A summand of the adjoint of a vector; None is a structural zero."""
        if part is not None:
            self._parts.setdefault(ref, []).append(part)

    def add_tensor(self, ref: Ref, part: Ref) -> None:
        """A summand of the adjoint of a tensor: a Tensor line of shape lead + its."""
        self._tensor_parts.setdefault(ref, []).append(part)

    def add_along(self, dim: Dim, ref: Ref, part: Part | None) -> None:
        """A summand along a dimension: summed where that of the vector covers it."""
        own = wide(self.program, ref).dim
        if part is None or own == dim:
            self.add(ref, part)
            return
        shape = self.lead + self.types[ref].shape
        maps = identity_maps(shape)
        if isinstance(part, Term):
            part = LinComb(name="", terms=(part,), shape=shape)
        matrix, x = self.writer.channel_sum(own, dim), self.emit(part)
        total = self.emit(
            MatMul(name="", matrix=matrix, letters=(), x=x, maps=maps, shape=shape)
        )
        match self.ratio(dim, own, root=True):
            case TensorArg() as factor:
                self.add(ref, Term(total, tensors=(factor,), maps=maps))
            case scale:
                self.add(ref, Term(total, scale, maps=maps))

    def start(self, ref: Ref, adjoint: Ref) -> None:
        """Set the adjoint of a line that nothing reads."""
        self.finished[ref] = adjoint

    def finish(self, ref: Ref) -> Ref | None:
        """The adjoint of a line whose summands are all there; None for zero."""
        if ref in self._parts:
            self.finished[ref] = self._sum(ref, self._parts.pop(ref))
        if ref in self._tensor_parts:
            self.finished[ref] = self._tensor_sum(ref, self._tensor_parts.pop(ref))
        return self.finished.get(ref)

    def _sum(self, ref: Ref, parts: Sequence[Part]) -> Ref:
        name, source = self.prefix + self.lines[ref].name, self.lines[ref].source
        shape = self.lead + self.types[ref].shape
        if len(parts) == 1 and not isinstance(parts[0], Term):
            return self.emit(dataclasses.replace(parts[0], name=name, source=source))
        terms = tuple(
            p if isinstance(p, Term) else Term(self.emit(p), maps=identity_maps(shape))
            for p in parts
        )
        whole = len(terms) == 1 and terms[0] == Term(
            terms[0].x, maps=identity_maps(shape)
        )
        if whole and terms[0].x is not None:
            return terms[0].x
        return self.emit(LinComb(name=name, terms=terms, shape=shape, source=source))

    def _tensor_sum(self, ref: Ref, parts: Sequence[Ref]) -> Ref:
        if len(parts) == 1:
            return parts[0]
        total: Expr = Arg(0)
        for i in range(1, len(parts)):
            total = scalar.call("add", total, Arg(i))
        shape = self.lead + self.types[ref].shape
        args = [(p, tuple(range(len(shape)))) for p in parts]
        return self.map(total, args, shape, self.prefix + self.lines[ref].name)

    # Lines ----------------------------------------------------------------------------

    def emit(self, line: Line) -> Ref:
        """Write a line, made where the line that is being transposed was made."""
        if not line.source:
            line = dataclasses.replace(line, source=self.source)
        return self.writer.emit(line)

    def transpose(self, matrix: Ref) -> Ref:
        """The transpose of a matrix line; that of a transpose is the matrix."""
        line = self.lines[matrix]
        if isinstance(line, Transpose):
            return line.matrix
        if matrix not in self._transposes:
            made = Transpose(name=f"{line.name}_T", matrix=matrix)
            self._transposes[matrix] = self.emit(made)
        return self._transposes[matrix]

    def lift(self, x: Ref) -> Ref:
        """A vector of the forward program at every position of the output."""
        shape = self.types[x].shape
        return self.reread(x, identity_maps(shape), shape)

    def reread(self, x: Ref, maps: Iterable[AxisMap], sizes: tuple[int, ...]) -> Ref:
        """A forward vector at every position of the output and at maps.

        Args:
            x: the vector.
            maps: over the letters of a forward line.
            sizes: of these letters.
        """
        moved = tuple(self._shifted_map(m) for m in maps)
        shape = self.lead + sizes
        if shape == self.types[x].shape and moved == identity_maps(shape):
            return x
        return self.emit(LinComb(name="", terms=(Term(x, maps=moved),), shape=shape))

    def _shifted_map(self, m: AxisMap) -> AxisMap:
        """A map of the forward program behind the leading letters."""
        return AxisMap(tuple(a + len(self.lead) for a in m.letters), m.table)

    def shifted(self, arg: TensorArg) -> TensorArg:
        """A tensor of the forward program read behind the leading letters."""
        return TensorArg(arg.ref, self.behind(arg.letters))

    def behind(self, letters: Iterable[int]) -> tuple[int, ...]:
        """Letters of a forward line behind the leading ones; -1 stays."""
        return tuple(a if a < 0 else a + len(self.lead) for a in letters)

    def lead_maps(self) -> tuple[AxisMap, ...]:
        """The leading letters as they are."""
        return identity_maps(self.lead)

    def whole(self, ref: Ref) -> TensorArg:
        """A tensor line read at all its letters."""
        return TensorArg(ref, tuple(range(len(self.writer.types[ref].shape))))

    def nonlin(
        self,
        fn: Expr,
        forward: Sequence[Ref],
        backward: Sequence[Ref],
        tensors: Sequence[TensorArg],
    ) -> Nonlin:
        """A function of forward vectors, of adjoints and of tensors, in this order."""
        fn, xs, args = self._canonical(fn, forward, backward, tensors)
        return Nonlin(name="", fn=fn, xs=xs, tensors=args)

    def moment(
        self,
        fn: Expr,
        forward: Sequence[Ref],
        backward: Sequence[Ref],
        tensors: Sequence[TensorArg],
    ) -> Ref:
        """As `nonlin`, the mean over coordinates."""
        fn, xs, args = self._canonical(fn, forward, backward, tensors)
        return self.emit(Moment(name="", fn=fn, xs=xs, tensors=args))

    def _canonical(
        self,
        fn: Expr,
        forward: Sequence[Ref],
        backward: Sequence[Ref],
        tensors: Sequence[TensorArg],
    ) -> tuple[Expr, tuple[Ref, ...], tuple[TensorArg, ...]]:
        # Only what the function reads is lifted.
        vectors = [(x, True) for x in forward] + [(x, False) for x in backward]
        fn, xs, args = canonical(fn, vectors, tensors)
        refs = tuple(self.lift(x) if lifted else x for x, lifted in xs)
        return fn, refs, tuple(args)

    def map(
        self,
        fn: Expr,
        args: Sequence[tuple[Ref, tuple[int, ...]]],
        shape: tuple[int, ...],
        name: str = "",
    ) -> Ref:
        """A scalar function of tensors read at letters."""
        fn, _, used = canonical(fn, (), list(args))
        if fn == Arg(0) and used[0][1] == tuple(range(len(shape))):
            return used[0][0]
        op = Elementwise(fn, tuple(letters for _, letters in used))
        refs = tuple(ref for ref, _ in used)
        return self.emit(Map(name=name, op=op, args=refs, shape=shape))

    # Factors --------------------------------------------------------------------------

    def ratio(self, over: Dim, under: Dim, root: bool = False) -> Factor:
        """The ratio of two dimensions, or its square root."""
        number = _proportion(over, under)
        if number is not None:
            return math.sqrt(number) if root else number
        ref = self.emit(Map(name="", op=Ratio(over, under), args=(), shape=()))
        if root:
            ref = self.map(scalar.call("sqrt", Arg(0)), [(ref, ())], ())
        return TensorArg(ref, ())

    def confined(
        self, mask: AxisMap | None, maps: tuple[AxisMap, ...]
    ) -> tuple[tuple[AxisMap, ...], tuple[TensorArg, ...]]:
        """Index maps that read nothing where the mask is -1.

        Returns:
            The maps, and a tensor to multiply with where there is no map to say so.
        """
        if mask is None:
            return maps, ()
        if not maps:
            inside = (mask.table >= 0).astype(float)
            return maps, (TensorArg(self.writer.constant(inside, ""), mask.letters),)
        choices = [masked(m, mask) for m in maps]
        best = min(range(len(maps)), key=lambda a: choices[a].table.size)
        return (*maps[:best], choices[best], *maps[best + 1 :]), ()


def times(fn: Expr, factor: Factor, at: int) -> tuple[Expr, tuple[TensorArg, ...]]:
    """A function times a factor, which is argument `at` when it is a tensor."""
    if isinstance(factor, TensorArg):
        return scalar.call("mul", fn, Arg(at)), (factor,)
    return (fn if factor == 1.0 else scalar.call("mul", Const(factor), fn)), ()


def _proportion(over: Dim, under: Dim) -> float | None:
    """The ratio of two dimensions when it is the same at all widths."""
    a, b = dict(over.terms), dict(under.terms)
    if a.keys() != b.keys():
        return None
    ratios = {a[name] / b[name] for name in a}
    return float(ratios.pop()) if len(ratios) == 1 else None


def _active(program: TensorProgram) -> frozenset[Ref]:
    """The tensors that depend on wide vectors."""
    found: set[Ref] = set()
    for ref, line in enumerate(program.lines):
        if isinstance(program.types[ref], Tensor) and (
            isinstance(line, Moment) or found.intersection(operands(line))
        ):
            found.add(ref)
    return frozenset(found)


def wide(program: TensorProgram | Writer, ref: Ref) -> Vector:
    """The type of a wide vector."""
    t = program.types[ref]
    assert isinstance(t, Vector)
    return t


def identity(shape: Sequence[int]) -> np.ndarray:
    """The identity from an index shape to itself, of shape `shape + shape`."""
    size = math.prod(shape)
    return np.eye(size).reshape(tuple(shape) * 2)
