"""The first-order change of a network along random directions of its parameters.

Where theta moves by eps u, u independent of theta with entries N(0, r), a line x moves
by eps dx, and the output f by eps df. Over u alone, E[df df'] is the tangent kernel

    sum over parameters of r <df/dtheta, df'/dtheta>,

and the lines dx are again a tensor program: dy = A dx + U x for y = A x, U the
direction of A. So the tangent kernel is a covariance like any other, without a
transpose beyond those of the network. For y = A x it is the known recursion: with
K = E[x x'], E[dy dy'] = sigma_A^2 E[dx dx'] + r K, and through a nonlinearity
E[dx dx'] is E[phi'(y) phi'(y')] E[dy dy'].

References:
    Yang (2020), https://arxiv.org/abs/2006.14548, where it is computed backwards.
"""

import dataclasses
from collections.abc import Mapping

from .. import scalar
from ..program import (
    Input,
    LinComb,
    Line,
    Map,
    MatIn,
    MatMul,
    Nonlin,
    Readout,
    Ref,
    TensorArg,
    TensorProgram,
    Term,
    Transpose,
    VecIn,
    Writer,
    canonical,
    identity_maps,
)
from ..scalar import Arg, Const, Expr, call


@dataclasses.dataclass(frozen=True)
class Linearised:
    """A program and the changes of its lines.

    Attributes:
        program: the lines of the old program, at their places, and the new ones.
        changes: for every set of directions: the line of the change, for every line
            that changes.
        beside: for every line that is new, the old line whose change needed it.
    """

    program: TensorProgram
    changes: tuple[Mapping[Ref, Ref], ...]
    beside: Mapping[Ref, Ref]


def linearise(
    program: TensorProgram, *directions: Mapping[Ref, float | str]
) -> Linearised:
    """Append the changes of all lines along random directions of the inputs.

    Args:
        program: any program.
        directions: for every VecIn and MatIn line that moves: the standard deviation of
            its direction, in the units of the line's own, or the key of that input.
            Several sets of directions are independent of each other.

    Scalars do not move: the change of (1/n) sum psi(x) along a random direction is odd
    in it, and vanishes with the width. So values at finite width differ from the
    derivative by that. A function that jumps has there the derivative that JAX gives.

    Raises:
        UnsupportedError: a function has no derivative among the known operations.
    """
    writer, changes, beside = Writer(program), [], {}
    for i, one in enumerate(directions):
        run = _Linearisation(writer, one, f"d{i or ''}_")
        for ref in range(len(program)):
            count = len(writer.lines)
            run.line(ref)
            beside |= dict.fromkeys(range(count, len(writer.lines)), ref)
        changes.append(run.changes)
    whole = TensorProgram(tuple(writer.lines), program.outputs, program.taps)
    return Linearised(whole, tuple(changes), beside)


def deviation(writer: Writer, given: float | str) -> float | TensorArg:
    """A standard deviation: a number, or the input line of a key."""
    if not isinstance(given, str):
        return given
    line = Map(name=given.replace(":", "_"), op=Input(given), args=(), shape=())
    return TensorArg(writer.emit(line), ())


class _Linearisation:
    def __init__(
        self, writer: Writer, directions: Mapping[Ref, float | str], prefix: str
    ) -> None:
        self.writer, self.changes = writer, dict[Ref, Ref]()
        self._directions, self._prefix = directions, prefix

    def line(self, ref: Ref) -> None:
        line = self.writer.lines[ref]
        new = self._change(ref, line)
        if new is not None:
            name = f"{self._prefix}{line.name}"
            self.changes[ref] = self.writer.emit(
                dataclasses.replace(new, name=name, source=line.source)
            )

    def _change(self, ref: Ref, line: Line) -> Line | None:
        d = self.changes
        match line:
            case VecIn() if ref in self._directions:
                std = self._std(ref)
                return dataclasses.replace(line, mean=0.0, std=std, cov=None)
            case MatIn() if ref in self._directions:
                return dataclasses.replace(line, std=self._std(ref))
            case Transpose() if line.matrix in d:
                return Transpose(name="", matrix=d[line.matrix])
            case MatMul():
                parts = [
                    dataclasses.replace(line, matrix=m, x=x)
                    for m, x in (
                        (d.get(line.matrix), line.x),
                        (line.matrix, d.get(line.x)),
                    )
                    if m is not None and x is not None
                ]
                return self._sum(parts, line.shape)
            case Readout():
                parts = [
                    dataclasses.replace(line, v=v, x=x)
                    for v, x in ((d.get(line.v), line.x), (line.v, d.get(line.x)))
                    if v is not None and x is not None
                ]
                return self._sum(parts, line.shape)
            case LinComb():
                terms = tuple(
                    dataclasses.replace(t, x=d[t.x]) for t in line.terms if t.x in d
                )
                return dataclasses.replace(line, terms=terms) if terms else None
            case Nonlin():
                return self._function(line)
        return None  # a tensor, or what depends on no direction

    def _std(self, ref: Ref) -> float | TensorArg:
        return deviation(self.writer, self._directions[ref])

    def _sum(self, parts: list, shape: tuple[int, ...]) -> Line | None:
        """The sum of products; the last one needed is left to be emitted."""
        if len(parts) < 2:
            return parts[0] if parts else None
        refs = [self.writer.emit(dataclasses.replace(p, name="")) for p in parts]
        maps = identity_maps(shape)
        terms = tuple(Term(r, maps=maps) for r in refs)
        return LinComb(name="", terms=terms, shape=shape)

    def _function(self, line: Nonlin) -> Line | None:
        """The change of phi(x..), the sum of phi_x dx."""
        count = len(line.xs)
        total: Expr = Const(0.0)
        moving: list[Ref] = []
        slopes: list[tuple[Expr, Ref]] = []
        for i, x in enumerate(line.xs):
            slope = scalar.differentiate(line.fn, i) if x in self.changes else None
            if slope is not None and slope != Const(0.0):
                slopes.append((slope, self.changes[x]))
                moving.append(self.changes[x])
        if not slopes:
            return None
        shape = self.writer.types[line.xs[0]].shape
        if all(isinstance(s, Const) for s, _ in slopes):
            maps = identity_maps(shape)
            terms = tuple(
                Term(dx, s.value, maps=maps) for s, dx in slopes if isinstance(s, Const)
            )
            return LinComb(name="", terms=terms, shape=shape)
        first = count + len(moving)
        places: list[Expr] = [Arg(i) for i in range(count)]
        places += [Arg(first + j) for j in range(len(line.tensors))]
        for j, (slope, _) in enumerate(slopes):
            part = call("mul", scalar.substitute(slope, places), Arg(count + j))
            total = part if j == 0 else call("add", total, part)
        fn, xs, tensors = canonical(total, [*line.xs, *moving], [*line.tensors])
        return Nonlin(name="", fn=fn, xs=tuple(xs), tensors=tuple(tensors))
