"""A tensor program as text, near the notation of Yang 2019; `parse` reads it back.

    x                : G[n]     := vecin(mean=0.0, std=1.0)
    A                : A[m, n]  := matin(std=1.3)
    y                : G[m]     := A @ x
    z                : H[m]     := nonlin(max(y, 0.0))
    t                : scalar   := E[z * z]
    w                : H[m]     := 0.5 * t * y - z
    c[i<8, j<8]      : G[n]     := sum_{k<3} W[k] @ p[i + k - 1, j]
    f                : output   := <v, z> / sqrt(m)
    return f

Letters in brackets on the left are the positions of the family, letters of `sum_` are
summed. An index outside its axis reads as zero. `1` is the vector of ones. Inside
`nonlin(..)`, `E[..]` and `map(..)` stand the operations of `widelimit.scalar`; a
function whose arguments are not read once each, in order, lists them after a
semicolon: `nonlin(u0 * u1; u0=y, u1=y)`. `regression(part; C..; b..)` is a block of
C^+ b. What follows `#` carries nothing.
"""

from collections.abc import Sequence
from typing import assert_never

from .. import scalar
from .._errors import InvalidProgramError
from ._function import is_canonical
from ._index import letter_names, map_text
from ._lines import (
    Array,
    AxisMap,
    Constant,
    Elementwise,
    Input,
    LinComb,
    Line,
    Map,
    MatIn,
    MatMul,
    Matrix,
    Moment,
    Nonlin,
    Output,
    Primitive,
    Ratio,
    Readout,
    Ref,
    Regression,
    Tensor,
    TensorArg,
    Term,
    Transpose,
    Type,
    VecIn,
    Vector,
)
from ._literal import array_text, param_text
from ._program import TensorProgram


def to_text(program: TensorProgram, sources: bool = False) -> str:
    """The program as text that `parse` reads back equal.

    Args:
        program: the program.
        sources: end each line with the user's own place in a comment.

    Raises:
        InvalidProgramError: two lines share a name, so that a text would be ambiguous.
    """
    names: set[str] = set()
    for line in program.lines:
        if line.name in names or not line.name or set(line.name) & set("`\n"):
            raise InvalidProgramError(
                f"A program is printed by the names of its lines: `{line.name}` is "
                "used twice, or is no name. Give each line a name of its own."
            )
        names.add(line.name)
    writer = _Writer(program)
    rows = [writer.row(i) for i in range(len(program.lines))]
    wide = [min(max((len(r[c]) for r in rows), default=0), 28) for c in (0, 1)]
    lines = []
    for (head, kind, body), line in zip(rows, program.lines, strict=True):
        text = f"{head:<{wide[0]}} : {kind:<{wide[1]}} := {body}"
        lines.append(f"{text}  # {line.source}" if sources and line.source else text)
    lines += [f"tap {name!r} = {writer.name(ref)}" for name, ref in program.taps]
    if program.outputs:
        lines.append("return " + ", ".join(writer.name(r) for r in program.outputs))
    return "\n".join(lines)


def line_text(program: TensorProgram, ref: Ref) -> str:
    """One line of the program as text."""
    head, kind, body = _Writer(program).row(ref)
    return f"{head} : {kind} := {body}"


def type_text(t: Type) -> str:
    """A type without its index shape: `G[n]`, `A[m, n]`, `scalar`, `output`."""
    match t:
        case Tensor():
            return "tensor" if t.shape else "scalar"
        case Vector():
            return f"{t.kind}[{t.dim}]"
        case Matrix():
            return f"A[{t.rows}, {t.cols}]"
        case Output():
            return "output"
        case _:
            assert_never(t)


class _Writer:
    def __init__(self, program: TensorProgram) -> None:
        self.program = program
        self.types = program.types

    def name(self, ref: Ref) -> str:
        name = self.program.lines[ref].name
        return name if name.isidentifier() else f"`{name}`"

    def row(self, ref: Ref) -> tuple[str, str, str]:
        line, shape = self.program.lines[ref], self.types[ref].shape
        letters = letter_names(len(shape))
        bounds = ", ".join(f"{a}<{s}" for a, s in zip(letters, shape, strict=True))
        head = self.name(ref) + (f"[{bounds}]" if shape else "")
        return head, type_text(self.types[ref]), self.body(line)

    def body(self, line: Line) -> str:
        match line:
            case VecIn():
                return self.vecin(line)
            case MatIn():
                return f"matin(std={self.std(line.std)})"
            case Transpose():
                return f"{self.name(line.matrix)}.T"
            case MatMul():
                names = letter_names(len(line.shape) + len(line.sums))
                matrix = self.name(line.matrix) + _subscript(_at(line.letters, names))
                x = self.read(line.x, line.maps, names)
                return f"{_sum(line.shape, line.sums)}{matrix} @ {x}"
            case Readout():
                names = letter_names(len(line.shape) + len(line.sums))
                v = self.name(line.v) + _subscript(_at(line.letters, names))
                x = self.read(line.x, line.maps, names)
                t = self.types[line.v]
                dim = t.dim if isinstance(t, Vector) else ""
                return f"{_sum(line.shape, line.sums)}<{v}, {x}> / sqrt({dim})"
            case LinComb():
                return self.lincomb(line)
            case Nonlin():
                return f"nonlin({self.function(line.fn, line.xs, line.tensors)})"
            case Moment():
                return f"E[{self.function(line.fn, line.xs, line.tensors)}]"
            case Map():
                return self.map(line)
            case _:
                assert_never(line)

    def vecin(self, line: VecIn) -> str:
        mean = (
            array_text(line.mean)
            if isinstance(line.mean, Array)
            else _number(line.mean)
        )
        parts = [f"mean={mean}"]
        if line.cov is None or line.std != 1.0:
            parts.append(f"std={self.std(line.std)}")
        if line.cov is not None:
            parts.append(f"cov={array_text(line.cov)}")
        if line.per_example:
            parts.append("per_example=True")
        return f"vecin({', '.join(parts)})"

    def std(self, std: float | TensorArg) -> str:
        if isinstance(std, TensorArg):
            return self.tensor(std, letter_names(8))
        return _number(std)

    def map(self, line: Map) -> str:
        match line.op:
            case Input(key):
                return f"input({key!r})"
            case Constant(value):
                return f"constant({array_text(value)})"
            case Elementwise(fn, letters):
                args = tuple(map(TensorArg, line.args, letters))
                return f"map({self.function(fn, (), args)})"
            case Ratio(over, under):
                return f"ratio({over}, {under})"
            case Primitive(name, params):
                args = "".join(f", {self.name(r)}" for r in line.args)
                pairs = ", ".join(f"{k}={param_text(v)}" for k, v in params)
                return f"primitive({name!r}{args}{'; ' if pairs else ''}{pairs})"
            case Regression(part, blocks):
                names = [self.name(r) for r in line.args]
                left, right = ", ".join(names[:-blocks]), ", ".join(names[-blocks:])
                return f"regression({part}; {left}; {right})"
            case _:
                assert_never(line.op)

    def lincomb(self, line: LinComb) -> str:
        parts = []
        for term in line.terms:
            text = self.term(term, line.shape)
            minus = term.scale < 0
            if not parts:
                parts.append(f"-{text}" if minus else text)
            else:
                parts.append(f" - {text}" if minus else f" + {text}")
        return "".join(parts)

    def term(self, term: Term, shape: tuple[int, ...]) -> str:
        names = letter_names(len(shape) + len(term.sums))
        factors = [] if abs(term.scale) == 1.0 else [_number(abs(term.scale))]
        factors += [self.tensor(a, names) for a in term.tensors]
        factors.append("1" if term.x is None else self.read(term.x, term.maps, names))
        return _sum(shape, term.sums) + " * ".join(factors)

    def read(self, ref: Ref, maps: tuple[AxisMap, ...], names: Sequence[str]) -> str:
        shape = self.types[ref].shape
        texts = [map_text(m, s, names) for m, s in zip(maps, shape, strict=True)]
        return self.name(ref) + _subscript(texts)

    def tensor(self, arg: TensorArg, names: Sequence[str]) -> str:
        return self.name(arg.ref) + _subscript(_at(arg.letters, names))

    def function(
        self, fn: scalar.Expr, xs: tuple[Ref, ...], tensors: tuple[TensorArg, ...]
    ) -> str:
        rank = len(self.types[xs[0]].shape) if xs else 0
        rank = max([rank, *(1 + i for t in tensors for i in t.letters)])
        names = letter_names(rank)
        leaves = [self.name(x) for x in xs] + [self.tensor(t, names) for t in tensors]
        if is_canonical(fn, len(xs), leaves):
            return scalar.to_text(fn, leaves)
        locals_ = [f"u{i}" for i in range(len(leaves))]
        bound = ", ".join(
            f"{u}={leaf}" for u, leaf in zip(locals_, leaves, strict=True)
        )
        return f"{scalar.to_text(fn, locals_)}; {bound}"


def _number(value: float) -> str:
    return repr(float(value))


def _at(letters: tuple[int, ...], names: Sequence[str]) -> list[str]:
    return ["0" if i < 0 else names[i] for i in letters]


def _subscript(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]" if texts else ""


def _sum(shape: tuple[int, ...], sums: tuple[int, ...]) -> str:
    if not sums:
        return ""
    names = letter_names(len(shape) + len(sums))[len(shape) :]
    bounds = ", ".join(f"{a}<{s}" for a, s in zip(names, sums, strict=True))
    return f"sum_{{{bounds}}} "
