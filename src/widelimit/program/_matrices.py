"""Matrix expressions: sums of products of matrices, their transposes and outers.

An expression is lazy. Only applied to a vector does it become lines: a product applies
its factors from the right, a sum is a linear combination of the results.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from .._errors import InvalidProgramError, ShapeMismatchError, UnsupportedError
from ..scalar import Arg, call
from ._handles import Handle, number
from ._lines import (
    AxisMap,
    Dim,
    MatMul,
    Matrix,
    Moment,
    Output,
    Ref,
    Tensor,
    TensorArg,
    Vector,
    identity_maps,
)
from ._scalars import ScalarHandle
from ._source import at, caller
from ._vectors import VectorHandle

if TYPE_CHECKING:
    from ._store import Store


@dataclasses.dataclass(frozen=True, slots=True)
class Single:
    """A matrix line, or its transpose."""

    ref: Ref
    transposed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
    """The matrix u w^T / n, n the width of `w`."""

    u: Ref
    w: Ref


@dataclasses.dataclass(frozen=True, slots=True)
class Summand:
    """A number times scalars times a product of factors, the leftmost first."""

    scale: float
    scalars: tuple[Ref, ...]
    factors: tuple[Single | Outer, ...]


class MatrixHandle(Handle):
    """A wide matrix, or a lazy expression of wide matrices."""

    def __init__(
        self,
        program: "Store",
        summands: tuple[Summand, ...],
        rows: Dim,
        cols: Dim,
    ) -> None:
        self.summands = summands
        self.rows = rows
        self.cols = cols
        line = self._line(summands)
        super().__init__(program, line if line is not None else -1)

    @staticmethod
    def _line(summands: tuple[Summand, ...]) -> Ref | None:
        match summands:
            case (Summand(1.0, (), (Single(ref, False),)),):
                return ref
        return None

    @classmethod
    def of_line(cls, program: "Store", ref: Ref) -> "MatrixHandle":
        """The handle of an existing line."""
        t = program._types[ref]
        if not isinstance(t, Matrix):
            raise InvalidProgramError(
                f"Line `{program._lines[ref].name}` is no matrix."
            )
        return cls(program, (Summand(1.0, (), (Single(ref),)),), t.rows, t.cols)

    @property
    def ref(self) -> Ref:
        """The position of the line; a transpose becomes a line now."""
        match self.summands:
            case (Summand(1.0, (), (Single(ref, transposed),)),):
                return self.program._transpose(ref) if transposed else ref
        raise InvalidProgramError(
            f"A matrix expression is not a line and has no name; name what it is "
            f"applied "
            f"to: ((A + A.T) @ x).named(..).{at(caller())}"
        )

    def _describe(self) -> str:
        match self.summands:
            case (Summand(1.0, (), (Single(ref, transposed),)),):
                return f"`{self.program._lines[ref].name}{'.T' if transposed else ''}`"
        return "the matrix expression"

    def __repr__(self) -> str:
        return f"{self._describe()} : A[{self.rows}, {self.cols}]"

    def _new(
        self, summands: tuple[Summand, ...], rows: Dim, cols: Dim
    ) -> "MatrixHandle":
        return MatrixHandle(self.program, summands, rows, cols)

    @property
    def T(self) -> "MatrixHandle":
        """The transpose."""
        summands = tuple(_transpose(self.program, s) for s in self.summands)
        return self._new(summands, self.cols, self.rows)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, MatrixHandle):
            self.program._own(other)
            self._check_fits(other, other.rows)
            summands = tuple(
                Summand(a.scale * b.scale, a.scalars + b.scalars, a.factors + b.factors)
                for a in self.summands
                for b in other.summands
            )
            return self._new(summands, self.rows, other.cols)
        if isinstance(other, VectorHandle):
            self.program._own(other)
            self._check_fits(other, other.dim)
            return self._apply(other)
        raise InvalidProgramError(
            f"{self._describe()} is a matrix and multiplies vectors and matrices of "
            f"its "
            f"program, got {type(other).__name__}.{at(caller())}"
        )

    def _check_fits(self, other: Handle, dim: Dim | None) -> None:
        if dim != self.cols:
            raise ShapeMismatchError(
                f"{self._describe()} is {self.rows} x {self.cols} and takes width "
                f"{self.cols}; {other._describe()} has width {dim or '(finite)'}."
                f"{self.program._made(self, other)}{at(caller())}"
            )

    def _apply(self, x: VectorHandle) -> VectorHandle:
        total: VectorHandle | None = None
        for s in self.summands:
            value = x
            for factor in reversed(s.factors):
                value = _apply_factor(self.program, factor, value)
            if s.scale != 1.0 or s.scalars:
                tensors = tuple(TensorArg(r, ()) for r in s.scalars)
                value = value._scaled(s.scale, tensors)
            total = value if total is None else total + value
        if total is None:
            raise InvalidProgramError(f"An empty matrix expression.{at(caller())}")
        return total

    def _times(self, other: Any) -> "MatrixHandle":
        scale, scalars = 1.0, ()
        if isinstance(other, ScalarHandle) and not other.shape:
            self.program._own(other)
            scalars = (other.ref,)
        elif isinstance(other, Handle):
            raise InvalidProgramError(
                f"{self._describe()} * {other._describe()} is not a matrix expression: "
                f"products are written with @.{at(caller())}"
            )
        else:
            value = number(other, "a coefficient")
            if value is None:
                return NotImplemented
            scale = value
        summands = tuple(
            Summand(scale * s.scale, scalars + s.scalars, s.factors)
            for s in self.summands
        )
        return self._new(summands, self.rows, self.cols)

    def __mul__(self, other: Any) -> "MatrixHandle":
        return self._times(other)

    def __rmul__(self, other: Any) -> "MatrixHandle":
        return self._times(other)

    def __truediv__(self, other: Any) -> "MatrixHandle":
        if isinstance(other, ScalarHandle):
            return self._times(1.0 / other)
        value = number(other, "a divisor")
        if value is None:
            return NotImplemented
        if value == 0.0:
            raise InvalidProgramError(
                f"{self._describe()} is divided by zero.{at(caller())}"
            )
        return self._times(1.0 / value)

    def __neg__(self) -> "MatrixHandle":
        return self._times(-1.0)

    def __add__(self, other: Any) -> "MatrixHandle":
        if not isinstance(other, MatrixHandle):
            what = other._describe() if isinstance(other, Handle) else repr(other)
            raise InvalidProgramError(
                f"{self._describe()} is a matrix; {what} cannot be added to it. Apply "
                f"the matrix first: A @ x + y.{at(caller())}"
            )
        self.program._own(other)
        if (self.rows, self.cols) != (other.rows, other.cols):
            raise ShapeMismatchError(
                f"{self._describe()} is {self.rows} x {self.cols}, {other._describe()} "
                f"is {other.rows} x {other.cols}: only matrices of one shape can be "
                f"added.{self.program._made(self, other)}{at(caller())}"
            )
        return self._new(self.summands + other.summands, self.rows, self.cols)

    def __radd__(self, other: Any) -> "MatrixHandle":
        return self.__add__(other)

    def __sub__(self, other: Any) -> "MatrixHandle":
        return self + (-other if isinstance(other, Handle) else other)  # type: ignore


def outer(u: VectorHandle, w: VectorHandle) -> MatrixHandle:
    """The matrix u w^T / n, n the width of `w`."""
    if not isinstance(w, VectorHandle):
        raise InvalidProgramError(f"`outer` takes a vector, got {w!r}.{at(caller())}")
    u.program._own(w)
    for v in (u, w):
        if v.dim is None or v.shape:
            raise InvalidProgramError(
                f"`outer` takes two single wide vectors; {v._describe()} has index "
                f"shape "
                f"{v.shape} and width {v.dim or '(finite)'}.{at(caller())}"
            )
    assert u.dim is not None
    assert w.dim is not None
    summand = Summand(1.0, (), (Outer(u.ref, w.ref),))
    return MatrixHandle(u.program, (summand,), u.dim, w.dim)


def _transpose(program: "Store", s: Summand) -> Summand:
    scale, factors = s.scale, []
    for f in reversed(s.factors):
        match f:
            case Single(ref, transposed):
                factors.append(Single(ref, not transposed))
            case Outer(u, w):
                factors.append(Outer(w, u))
                scale *= _ratio(program, u, w)
    return Summand(scale, s.scalars, tuple(factors))


def _ratio(program: "Store", u: Ref, w: Ref) -> float:
    """The width of u over that of w: (u w^T / n_w)^T = (n_u / n_w) w u^T / n_u."""
    a, b = (dict(program._types[r].dim.terms) for r in (u, w))  # type: ignore
    quotients = {a[name] / b[name] for name in a if name in b}
    if a.keys() != b.keys() or len(quotients) != 1:
        raise UnsupportedError(
            "The transpose of an outer product of two different widths has a factor "
            "that "
            f"depends on their ratio: write w.outer(u) and your own "
            f"factor.{at(caller())}"
        )
    return float(quotients.pop())


def _apply_factor(
    program: "Store", factor: Single | Outer, x: VectorHandle
) -> VectorHandle:
    source = caller()
    if isinstance(factor, Outer):
        inner = VectorHandle(program, factor.w)
        if x.shape:
            raise UnsupportedError(
                f"An outer product is applied to single vectors; {x._describe()} has "
                f"index shape {x.shape}.{at(source)}"
            )
        square = factor.w == x.ref
        fn = call("mul", Arg(0), Arg(0 if square else 1))
        xs = (factor.w,) if square else (inner.ref, x.ref)
        t = program._append(Moment(name="", fn=fn, xs=xs, source=source), "t")
        return VectorHandle(program, factor.u)._times(ScalarHandle(program, t))
    matrix = program._transpose(factor.ref) if factor.transposed else factor.ref
    shape = program._types[matrix].shape
    if shape:
        raise UnsupportedError(
            f"`{program._lines[matrix].name}` is a family of matrices of index shape "
            f"{shape}; @ applies a single matrix. Write the line in the text form, "
            f"with "
            f"its letters.{at(source)}"
        )
    maps: tuple[AxisMap, ...] = identity_maps(x.shape)
    line = MatMul(
        name="",
        matrix=matrix,
        letters=(),
        x=x.ref,
        maps=maps,
        shape=x.shape,
        source=source,
    )
    return VectorHandle(program, program._append(line, "g"))


def handle_of(program: "Store", ref: Ref) -> Handle:
    """The handle of an existing line."""
    match program._types[ref]:
        case Tensor():
            return ScalarHandle(program, ref)
        case Vector() | Output():
            return VectorHandle(program, ref)
        case _:
            return MatrixHandle.of_line(program, ref)
