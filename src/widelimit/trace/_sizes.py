"""Sizes and scalars as functions of the widths, solved from several concrete traces."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from .._errors import UnsupportedError
from ..program import Dim

# Highly composite, so that heads and groups divide; the primes keep sizes apart.
_BASE = 20160
RAY = 3
_PRIMES = (
    11,
    13,
    17,
    19,
    23,
    29,
    31,
    37,
    41,
    43,
    47,
    53,
    59,
    61,
    67,
    71,
    73,
    79,
    83,
    89,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """A size that grows with the widths: a linear form and a constant."""

    terms: tuple[tuple[str, Fraction], ...]
    constant: Fraction = Fraction(0)

    @property
    def dim(self) -> Dim:
        """The size as a wide dimension.

        Raises:
            UnsupportedError: it is not a positive homogeneous form.
        """
        if self.constant or any(c <= 0 for _, c in self.terms):
            raise UnsupportedError(
                f"A wide axis has the size {self}; sizes must be positive multiples of "
                "widths."
            )
        return Dim(self.terms)

    def __add__(self, other: "Size | int") -> "Size | int":
        terms = dict(self.terms)
        if isinstance(other, Size):
            for name, c in other.terms:
                terms[name] = terms.get(name, Fraction(0)) + c
            constant = self.constant + other.constant
        else:
            constant = self.constant + other
        left = tuple(sorted((k, c) for k, c in terms.items() if c))
        return Size(left, constant) if left else int(constant)

    __radd__ = __add__

    def __mul__(self, k: Fraction | int) -> "Size":
        return Size(tuple((name, c * k) for name, c in self.terms), self.constant * k)

    __rmul__ = __mul__

    def __sub__(self, other: "Size | int") -> "Size | int":
        return self + (-1 * other)

    def __truediv__(self, k: int) -> "Size":
        return self * Fraction(1, k)

    def times(self, other: "Size") -> "Size":
        """The number of channels of as many heads as the other says."""
        return Size((self.dim * other.dim).terms)

    def __str__(self) -> str:
        text = str(Dim(self.terms))
        if self.constant:
            text += f" {'+' if self.constant > 0 else '-'} {abs(self.constant)}"
        return text


Extent = int | Size
Shape = tuple[Extent, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """A scalar c * n^p: a number, and its power of the common scale of the widths."""

    value: float
    power: Fraction


def trials(ratios: Mapping[str, float]) -> list[dict[str, int]]:
    """Assignments of large widths: first some on the ray of the ratios, then others.

    On the ray the widths grow together, which is the limit that is taken; the others
    tell all linear forms apart.
    """
    exact = {n: Fraction(r).limit_denominator(10**6) for n, r in ratios.items()}
    whole = math.lcm(*(r.denominator for r in exact.values())) if exact else 1
    ray = [
        {n: int(r * whole) * _BASE * p for n, r in exact.items()} for p in _PRIMES[:RAY]
    ]
    count = len(exact)
    others = [
        {
            n: int(r * whole)
            * _BASE
            * _PRIMES[(RAY + t * (count + 1) + i) % len(_PRIMES)]
            for i, (n, r) in enumerate(exact.items())
        }
        for t in range(count if count > 1 else 0)
    ]
    return ray + others


class Solver:
    """Finds how numbers seen at the trial widths depend on the widths.

    Args:
        ratios: widths over the common scale.
        assignments: those of `trials`.
    """

    def __init__(
        self, ratios: Mapping[str, float], assignments: Sequence[Mapping[str, int]]
    ) -> None:
        self._names = tuple(ratios)
        self._solutions: dict[tuple[Fraction, ...], list[Fraction] | None] = {}
        self._exact = [[Fraction(a[n]) for n in self._names] for a in assignments]
        # The common scale on the ray.
        self._scale = [
            float(a[n]) / r
            for a in assignments[:RAY]
            for n, r in list(ratios.items())[:1]
        ]

    def extent(self, values: Sequence[int], where: str) -> Extent:
        """A size, exactly.

        Raises:
            UnsupportedError: it is not a linear form in the widths.
        """
        if all(v == values[0] for v in values):
            return int(values[0])
        solved = self._linear([Fraction(int(v)) for v in values])
        if solved is None:
            raise UnsupportedError(
                f"A size is {list(map(int, values))} at the widths {self._shown()}: it "
                f"is not a linear form in the widths{where}."
            )
        coefficients, constant = solved
        terms = tuple(
            sorted((n, c) for n, c in zip(self._names, coefficients, strict=True) if c)
        )
        return Size(terms, constant)

    def scalar(self, values: Sequence[float], where: str) -> Scaled:
        """A scalar, as its leading order c * n^p in the common scale.

        Raises:
            UnsupportedError: it follows no power law in the widths.
        """
        v = np.array([float(x) for x in values[:RAY]])
        found = self._monomial(v)
        if found is None and all(float(x).is_integer() for x in values):
            found = self._leading([Fraction(int(x)) for x in values])
        if found is None:
            raise UnsupportedError(
                f"A number is {v.tolist()} at the widths {self._shown()[:RAY]}: it is "
                f"not of the form c * n^p{where}."
            )
        return found

    def _monomial(self, v: np.ndarray) -> Scaled | None:
        if not np.isfinite(v).all() or (v == 0).any() or len(set(np.sign(v))) > 1:
            return None
        scale = np.array(self._scale)
        slope = np.log(v[-1] / v[0]) / np.log(scale[-1] / scale[0])
        power = Fraction(float(slope)).limit_denominator(12)
        constants = v / scale ** float(power)
        if not np.allclose(constants, constants[0], rtol=1e-9, atol=0.0):
            return None
        value = float(constants[0])
        rounded = float(f"{value:.14g}")
        return Scaled(
            rounded if abs(rounded - value) < 4e-15 * abs(value) else value, power
        )

    def _leading(self, v: list[Fraction]) -> Scaled | None:
        """The leading order of a linear form in the widths, such as n - 1."""
        solved = self._linear(v)
        if solved is None:
            return None
        total = sum(
            (c * w for c, w in zip(solved[0], self._exact[0], strict=True)), Fraction(0)
        )
        return Scaled(float(total) / self._scale[0], Fraction(1)) if total else None

    def _linear(self, v: list[Fraction]) -> tuple[list[Fraction], Fraction] | None:
        # The same few sizes stand everywhere.
        key = tuple(v)
        if key not in self._solutions:
            rows = [
                [*row, Fraction(1), value]
                for row, value in zip(self._exact, v, strict=True)
            ]
            self._solutions[key] = _solve(rows, len(self._names) + 1)
        solution = self._solutions[key]
        return (solution[:-1], solution[-1]) if solution else None

    def _shown(self) -> list[dict[str, int]]:
        return [
            {n: int(x) for n, x in zip(self._names, row, strict=True)}
            for row in self._exact
        ]


def _solve(rows: list[list[Fraction]], unknowns: int) -> list[Fraction] | None:
    """Gauss-Jordan in fractions; None unless all equations hold."""
    rows = [list(r) for r in rows]
    for column in range(unknowns):
        pivot = next((r for r in range(column, len(rows)) if rows[r][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        head = rows[column][column]
        rows[column] = [x / head for x in rows[column]]
        for r, row in enumerate(rows):
            if r != column and row[column]:
                rows[r] = [
                    x - row[column] * y for x, y in zip(row, rows[column], strict=True)
                ]
    if any(row[-1] for row in rows[unknowns:]):
        return None
    return [row[-1] for row in rows[:unknowns]]


def finite(extent: Extent, problem: str = "A finite axis is expected here.") -> int:
    """The size of an axis that does not grow.

    Raises:
        UnsupportedError: it grows with the widths; the message is `problem`.
    """
    if isinstance(extent, Size):
        raise UnsupportedError(problem)
    return extent


def shape_text(shape: Sequence[Extent]) -> str:
    """A shape as an error shows it: `(3, n)`."""
    return "(" + ", ".join(str(s) for s in shape) + ")"


def finite_shape(
    shape: Sequence[Extent], problem: str = "Finite axes are expected here."
) -> tuple[int, ...]:
    """The shape of an array of which no axis grows.

    Raises:
        UnsupportedError: an axis grows with the widths; the message is `problem`.
    """
    return tuple(finite(s, problem) for s in shape)


# Reshapes -----------------------------------------------------------------------------

MERGED = "Two wide axes are merged by a reshape."

Run = tuple[int, int]
"""The first axis of a run, and the first one after it."""


def runs(old: Shape, new: Shape) -> list[tuple[Run, Run]] | None:
    """The shortest runs of axes that hold the same entries before and after a reshape.

    None if there are none. A run has at least one axis on the side that has any left.
    """
    found: list[tuple[Run, Run]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start, p, q = (i, j), _Count(1), _Count(1)
        if i < len(old):
            p, i = p.times(old[i]), i + 1
        if j < len(new):
            q, j = q.times(new[j]), j + 1
        while p != q:
            if p.less(q) and i < len(old):
                p, i = p.times(old[i]), i + 1
            elif j < len(new):
                q, j = q.times(new[j]), j + 1
            else:
                return None
        # Axes of size one go with whatever stands before them.
        while i < len(old) and old[i] == 1 and (j >= len(new) or new[j] != 1):
            i += 1
        while j < len(new) and new[j] == 1 and (i >= len(old) or old[i] != 1):
            j += 1
        found.append(((start[0], i), (start[1], j)))
    return found


@dataclasses.dataclass(frozen=True)
class _Count:
    """A product of extents: a count, times at most one wide size."""

    count: int
    wide: Size | None = None

    def times(self, extent: Extent) -> "_Count":
        """The product with one more extent."""
        if isinstance(extent, Size):
            if self.wide is not None:
                raise UnsupportedError(MERGED)
            return _Count(self.count, extent)
        return _Count(self.count * extent, self.wide)

    def total(self) -> Extent:
        """The number of entries."""
        return self.count if self.wide is None else self.count * self.wide

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Count) and self.total() == other.total()

    def __hash__(self) -> int:
        return hash(self.total())

    def less(self, other: "_Count") -> bool:
        """Whether this has fewer entries."""
        a, b = self.total(), other.total()
        if isinstance(a, int) and isinstance(b, int):
            return a < b
        if isinstance(a, Size) and isinstance(b, Size):
            difference = b - a
            return isinstance(difference, Size) and all(
                c > 0 for _, c in difference.terms
            )
        return isinstance(a, int)
