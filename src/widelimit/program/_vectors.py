"""Vectors of a program, and their linear combinations."""

from typing import TYPE_CHECKING, Any, NoReturn

from .._errors import InputError, InvalidProgramError, ShapeMismatchError
from ._lines import (
    Dim,
    LinComb,
    Ref,
    TensorArg,
    Term,
    Vector,
    identity_maps,
)
from ._source import at, caller

if TYPE_CHECKING:
    from ._matrices import MatrixHandle
    from ._store import Store


from ._handles import Handle, number
from ._scalars import ScalarHandle


class VectorHandle(Handle):
    """A wide vector, or a family of them with an index shape."""

    def __init__(
        self, program: "Store", ref: Ref | None, terms: tuple[Term, ...] = ()
    ) -> None:
        self._terms = terms
        super().__init__(program, ref)

    @property
    def _any(self) -> Ref:
        """A line of the same width and index shape."""
        if self._ref is not None:
            return self._ref
        return next(t.x for t in self._terms if t.x is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The index shape; () for a single vector."""
        return self.program._types[self._any].shape

    @property
    def dim(self) -> Dim | None:
        """The wide dimension; None for a finite output."""
        t = self.program._types[self._any]
        return t.dim if isinstance(t, Vector) else None

    def _describe(self) -> str:
        if self._ref is not None:
            return f"`{self.name}`"
        names = (
            self.program._lines[t.x].name if t.x is not None else "1"
            for t in self._terms
        )
        return f"the linear combination of {', '.join(f'`{n}`' for n in names)}"

    def _as_terms(self) -> tuple[Term, ...]:
        if self._ref is None:
            return self._terms
        return (Term(self._ref, maps=identity_maps(self.shape)),)

    def _make(self) -> Ref:
        line = LinComb(name="", terms=self._terms, shape=self.shape, source=self.source)
        return self.program._append(line, "g")

    def _scaled(
        self, scale: float, tensors: tuple[TensorArg, ...] = ()
    ) -> "VectorHandle":
        terms = tuple(
            Term(t.x, scale * t.scale, tensors + t.tensors, t.maps, t.sums)
            for t in self._as_terms()
        )
        return VectorHandle(self.program, None, terms)

    def _times(self, other: Any) -> "VectorHandle":
        if isinstance(other, ScalarHandle):
            self.program._own(other)
            shape = other.shape
            if shape not in ((), self.shape):
                raise ShapeMismatchError(
                    f"The coefficient {other._describe()} has shape {shape}, "
                    f"{self._describe()} has index shape {self.shape}.{at(caller())}"
                )
            return self._scaled(1.0, (TensorArg(other.ref, tuple(range(len(shape)))),))
        if isinstance(other, Handle):
            raise InvalidProgramError(
                f"{self._describe()} * {other._describe()} is not linear: write "
                "p.nonlin(lambda u, v: u * v, x, y) for the product of coordinates, "
                "and "
                f"A @ x for a matrix.{at(caller())}"
            )
        value = number(other, "a coefficient")
        return NotImplemented if value is None else self._scaled(value)

    def __mul__(self, other: Any) -> "VectorHandle":
        return self._times(other)

    def __rmul__(self, other: Any) -> "VectorHandle":
        return self._times(other)

    def __truediv__(self, other: Any) -> "VectorHandle":
        if isinstance(other, ScalarHandle):
            return self._times(1.0 / other)
        if isinstance(other, Handle):
            raise InvalidProgramError(
                f"{self._describe()} / {other._describe()} is not linear: write "
                f"p.nonlin(lambda u, v: u / v, x, y).{at(caller())}"
            )
        value = number(other, "a divisor")
        if value == 0.0:
            raise InputError(f"{self._describe()} is divided by zero.{at(caller())}")
        return NotImplemented if value is None else self._scaled(1.0 / value)

    def __neg__(self) -> "VectorHandle":
        return self._scaled(-1.0)

    def _plus(self, other: Any, sign: float, mine: float = 1.0) -> "VectorHandle":
        if isinstance(other, VectorHandle):
            self.program._own(other)
            self._check_addable(other)
            more = other._scaled(sign)._terms
        elif isinstance(other, ScalarHandle):
            self.program._own(other)
            if other.shape not in ((), self.shape):
                raise ShapeMismatchError(
                    f"{other._describe()} has shape {other.shape}, "
                    f"{self._describe()} has index shape {self.shape}.{at(caller())}"
                )
            letters = tuple(range(len(other.shape)))
            more = (Term(None, sign, (TensorArg(other.ref, letters),)),)
        elif isinstance(other, Handle):
            raise InvalidProgramError(
                f"{self._describe()} is a vector and {other._describe()} a matrix: "
                f"only "
                f"A @ x is a vector that can be added.{at(caller())}"
            )
        else:
            value = number(other, "a number added to a vector")
            if value is None:
                return NotImplemented
            more = () if value == 0.0 else (Term(None, sign * value),)
        if not more and mine == 1.0:
            return self
        terms = (self if mine == 1.0 else self._scaled(mine))._as_terms()
        return VectorHandle(self.program, None, _merge(terms + more))

    def _check_addable(self, other: "VectorHandle") -> None:
        if self.dim != other.dim:
            raise ShapeMismatchError(
                f"{self._describe()} has width {self.dim or '(finite)'}, "
                f"{other._describe()} has width {other.dim or '(finite)'}: only "
                f"vectors "
                f"of one width can be added.{self.program._made(self, other)}"
                f"{at(caller())}"
            )
        if self.shape != other.shape:
            raise ShapeMismatchError(
                f"{self._describe()} has index shape {self.shape}, {other._describe()} "
                f"has {other.shape}: only families of one shape can be added."
                f"{self.program._made(self, other)}{at(caller())}"
            )

    def __add__(self, other: Any) -> "VectorHandle":
        return self._plus(other, 1.0)

    def __radd__(self, other: Any) -> "VectorHandle":
        return self._plus(other, 1.0)

    def __sub__(self, other: Any) -> "VectorHandle":
        return self._plus(other, -1.0)

    def __rsub__(self, other: Any) -> "VectorHandle":
        return self._plus(other, 1.0, -1.0)

    def outer(self, other: "VectorHandle") -> "MatrixHandle":
        """The matrix u w^T / n, n the width of `w`: `u.outer(w) @ z` is u * E[w z].

        Raises:
            InvalidProgramError: `w` is not a vector of this program.
        """
        from ._matrices import outer

        return outer(self, other)

    def __matmul__(self, other: Any) -> NoReturn:
        if isinstance(other, VectorHandle):
            hint = "write p.moment(lambda u, v: u * v, x, y) for (1/n) <x, y>"
        else:
            hint = "write A.T @ x for the transposed matrix applied to x"
        raise InvalidProgramError(
            f"{self._describe()} is a vector used as a matrix: {hint}.{at(caller())}"
        )

    def __pow__(self, other: Any) -> NoReturn:
        raise InvalidProgramError(
            f"A power of {self._describe()} is not linear: write "
            f"p.nonlin(lambda u: u**{other!r}, x).{at(caller())}"
        )


def _merge(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Add the scales of terms that are otherwise equal."""
    scales: dict[tuple[Any, ...], float] = {}
    for t in terms:
        key = (t.x, t.tensors, t.maps, t.sums)
        scales[key] = scales.get(key, 0.0) + t.scale
    return tuple(Term(k[0], s, *k[1:]) for k, s in scales.items())


class Group(tuple[VectorHandle, ...]):
    """Several vectors: unpacks like a tuple, and knows them by name."""

    __slots__ = ()

    def __getitem__(self, item: Any) -> Any:
        if not isinstance(item, str):
            return super().__getitem__(item)
        found = [v for v in self if v.name == item]
        if not found:
            raise InputError(f"No vector `{item}` among {[v.name for v in self]}.")
        return found[0]
