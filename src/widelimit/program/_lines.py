"""The tensor program as data: types and lines (Yang 2019, section 3, with families).

A *family* of wide vectors is an array of index shape `I` whose every entry is one wide
vector. A line says how one family follows from earlier ones, in index letters as an
einsum does; the wide axis is never written. With letters `o` for the positions of the
result and `k` for positions that are summed,

    LinComb  y[o] = sum over terms of  scale * sum_k T[..] * x[maps(o, k)]
    MatMul   y[o] = sum_k A[..] @ x[maps(o, k)]
    Readout  f[o] = n**-0.5 * sum_k <v[..], x[maps(o, k)]>
    Nonlin   h[o] = phi(x1[o], x2[o], .., t1[..], ..)       for each coordinate
    Moment   t[o] = (1/n) * sum over coordinates of psi(x1[o], .., t1[..], ..)
    Map      t    = a function of tensors

Lines refer to each other by position in the program. Nothing here computes.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .._errors import InvalidProgramError
from ..scalar import Expr

Ref = int
"""The position of an earlier line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dim:
    """A wide dimension: a positive linear form in the widths, such as `n`, `n/4`.

    The channels of many heads are counted by a product of widths, `heads*n`; what has
    one value for each head is a family of the dimension `heads`, which *covers* them.

    Attributes:
        terms: pairs of name and coefficient, sorted by name; the name is that of a
            width or those of several, sorted, with `*` between.
    """

    terms: tuple[tuple[str, Fraction], ...]

    @classmethod
    def of(cls, name: str, coefficient: Fraction | int = 1) -> "Dim":
        """The dimension `coefficient * name`."""
        return cls(((name, Fraction(coefficient)),))

    def size(self, widths: Mapping[str, int]) -> int:
        """The number of coordinates at the given widths.

        Raises:
            InvalidProgramError: a width is missing, or the size is not whole.
        """
        missing = sorted(self.widths - widths.keys())
        if missing:
            raise InvalidProgramError(
                f"No width is given for {', '.join(missing)}; given: {dict(widths)}."
            )
        products = ((math.prod(widths[w] for w in _names(t)), c) for t, c in self.terms)
        total = sum((c * size for size, c in products), Fraction(0))
        if total.denominator != 1 or total <= 0:
            raise InvalidProgramError(
                f"The dimension {self} is {total} at the widths {dict(widths)}, "
                "not a positive whole number: choose widths that divide."
            )
        return int(total)

    def ratio(self, ratios: Mapping[str, float]) -> float:
        """The dimension over the common scale; a width that is missing counts 1.

        A product of widths is measured by the same power of the common scale.
        """
        return sum(
            float(c) * math.prod(ratios.get(w, 1.0) for w in _names(name))
            for name, c in self.terms
        )

    @property
    def widths(self) -> set[str]:
        """The names of the widths in it."""
        return {w for name, _ in self.terms for w in _names(name)}

    @property
    def order(self) -> int:
        """The number of widths in a product; 1 for a single width."""
        return max(len(_names(name)) for name, _ in self.terms)

    def __mul__(self, other: "Dim") -> "Dim":
        terms: dict[str, Fraction] = {}
        for a, c in self.terms:
            for b, d in other.terms:
                name = "*".join(sorted((*_names(a), *_names(b))))
                terms[name] = terms.get(name, Fraction(0)) + c * d
        return Dim(tuple(sorted(terms.items())))

    def over(self, other: "Dim") -> "Dim | None":
        """The dimension that times another one is this one, or None."""
        (a, c), *_ = other.terms
        for name, d in self.terms:
            rest = Counter(_names(name)) - Counter(_names(a))
            if rest:
                found = Dim((("*".join(sorted(rest.elements())), d / c),))
                if found * other == self:
                    return found
        return None

    def __str__(self) -> str:
        return " + ".join(_monomial(name, c) for name, c in self.terms)


def _names(product: str) -> list[str]:
    return product.split("*")


def _monomial(name: str, c: Fraction) -> str:
    text = name if c.numerator == 1 else f"{c.numerator}*{name}"
    return text if c.denominator == 1 else f"{text}/{c.denominator}"


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """Finite, and deterministic in the limit."""

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Vector:
    """A family of wide vectors; `kind` is G (Gaussian) or H (made by a function)."""

    shape: tuple[int, ...]
    dim: Dim
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Matrix:
    """A family of independent wide matrices, `rows` x `cols`."""

    shape: tuple[int, ...]
    rows: Dim
    cols: Dim


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """A finite, jointly Gaussian random tensor."""

    shape: tuple[int, ...]


Type = Tensor | Vector | Matrix | Output


class Array:
    """A constant array inside a line; compared and hashed by its numbers."""

    __slots__ = ("_key", "value")

    def __init__(self, value: Any) -> None:
        array = np.array(value)
        array.setflags(write=False)
        self.value = array
        self._key = (array.shape, array.dtype.str, array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Array({self.value.tolist()})"


class AxisMap:
    """Where one index of an operand comes from: an integer table over letters.

    Attributes:
        letters: the numbers of the letters it depends on, increasing.
        table: the index for each value of these letters, in their order; -1 reads as
            zero ("outside").
    """

    __slots__ = ("_key", "is_identity", "is_inside", "letters", "table")

    is_identity: bool
    """Whether it is one letter, unchanged and from zero."""
    is_inside: bool
    """Whether it never reads outside."""

    def __init__(self, letters: tuple[int, ...], table: Any) -> None:
        array = np.array(table, dtype=np.int64, order="C")
        array.setflags(write=False)
        self.letters = tuple(letters)
        self.table = array
        self._key = (self.letters, array.shape, array.tobytes())
        # Recursions ask a line's maps many times.
        self.is_inside = array.size == 0 or bool(array.min() >= 0)
        straight = array.ndim == 1 and (array == np.arange(array.size)).all()
        self.is_identity = bool(straight)

    @classmethod
    def identity(cls, letter: int, size: int) -> "AxisMap":
        """The index is the letter itself."""
        return cls((letter,), np.arange(size))

    def spread(self, letters: Sequence[int]) -> np.ndarray:
        """The table with one axis for each of `letters`, of size one where not used.

        Args:
            letters: increasing; those of the map are among them.
        """
        shape = iter(self.table.shape)
        return self.table.reshape(
            [next(shape) if a in self.letters else 1 for a in letters]
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AxisMap) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"AxisMap({self.letters}, {self.table.tolist()})"


def compose(outer: AxisMap, inner: Sequence[AxisMap]) -> AxisMap:
    """`outer` over letters that are themselves maps over new letters."""
    used = [inner[a] for a in outer.letters]
    letters = tuple(sorted({a for m in used for a in m.letters}))
    sizes = tuple(m.table.size for m in used)
    plain = all(m.is_identity for m in used) and sizes == outer.table.shape
    if plain and len(letters) == len(used):
        order = np.argsort([m.letters[0] for m in used])
        return AxisMap(letters, outer.table.transpose(order))
    values = outer.table
    tables = [m.spread(letters) for m in used]
    if tables:
        values = values[tuple(np.maximum(t, 0) for t in tables)]
    for t in tables:
        values = np.where(t < 0, -1, values)
    return AxisMap(letters, values)


def unravel(positions: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The index of every flat position, along each axis of an array of this shape.

    NumPy 2.3 to 2.4.6 is wrong for more than 8192 positions in an array whose last axis
    has size 1 (numpy/numpy#31980), and right for a flat one.
    """
    if not shape:
        return ()
    found = np.unravel_index(positions.ravel(), tuple(shape))
    return tuple(part.reshape(positions.shape) for part in found)


def identity_maps(shape: Sequence[int], first: int = 0) -> tuple[AxisMap, ...]:
    """The maps that read position `o` at position `o`, of the letters from `first`."""
    return tuple(AxisMap.identity(first + i, s) for i, s in enumerate(shape))


@dataclasses.dataclass(frozen=True, slots=True)
class TensorArg:
    """A tensor read at letters: axis `i` of the tensor follows `letters[i]`.

    A letter -1 stands for an axis of size one.
    """

    ref: Ref
    letters: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """One term of a `LinComb`: scale * sum_k (product of tensors) * x[maps].

    Attributes:
        x: the vector (or output), or None for the vector of ones.
        scale: a number.
        tensors: tensor coefficients, read at letters.
        maps: one map for every index of `x`, over the letters `o` then `k`.
        sums: the sizes of the summed letters `k`.
    """

    x: Ref | None
    scale: float = 1.0
    tensors: tuple[TensorArg, ...] = ()
    maps: tuple[AxisMap, ...] = ()
    sums: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    name: str
    source: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VecIn(_Line):
    """A family of Gaussian input vectors, coordinates iid N(mean, cov).

    Attributes:
        shape: index shape.
        dim: the wide dimension, or None for a finite Gaussian tensor (`Output`).
        mean: a number, or an array of the index shape.
        std: the standard deviation of every entry, all entries independent: a number,
            or the tensor that holds it (a scalar). Ignored when `cov` is given.
        cov: the covariance between entries of the index shape, shape + shape.
        per_example: a fresh draw for every input of the network (dropout).
    """

    shape: tuple[int, ...]
    dim: Dim | None
    mean: float | Array = 0.0
    std: float | TensorArg = 1.0
    cov: Array | None = None
    per_example: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MatIn(_Line):
    """A family of independent matrices with entries N(0, std**2 / cols)."""

    shape: tuple[int, ...]
    rows: Dim
    cols: Dim
    std: float | TensorArg = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transpose(_Line):
    """The transpose of a matrix family."""

    matrix: Ref


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MatMul(_Line):
    """y[o] = sum_k A[letters] @ x[maps(o, k)].

    Attributes:
        matrix: a MatIn or Transpose line.
        letters: for every index of the matrix family, the letter it follows
            (-1 for an index of size one).
        x: the vector.
        maps: one map for every index of `x`, over the letters `o` then `k`.
        shape: index shape of the result.
        sums: the sizes of the summed letters.
    """

    matrix: Ref
    letters: tuple[int, ...]
    x: Ref
    maps: tuple[AxisMap, ...]
    shape: tuple[int, ...]
    sums: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinComb(_Line):
    """A linear combination of vectors, or of outputs, and of the vector of ones."""

    terms: tuple[Term, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Nonlin(_Line):
    """h[o] = fn(xs[0][o], .., tensors[0][..], ..), coordinate by coordinate.

    Every vector has the index shape of the result. `label` is the user's name of the
    function, for printing only.
    """

    fn: Expr
    xs: tuple[Ref, ...]
    tensors: tuple[TensorArg, ...] = ()
    label: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moment(_Line):
    """t[o] = E fn(xs[0][o], .., tensors[0][..], ..), the mean over coordinates."""

    fn: Expr
    xs: tuple[Ref, ...]
    tensors: tuple[TensorArg, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Readout(_Line):
    """f[o] = n**-0.5 * sum_k <v[letters], x[maps(o, k)]>, jointly Gaussian.

    `v` is a VecIn of mean zero that nothing in `x` depends on; attributes as MatMul.
    """

    v: Ref
    letters: tuple[int, ...]
    x: Ref
    maps: tuple[AxisMap, ...]
    shape: tuple[int, ...]
    sums: tuple[int, ...] = ()


# What a Map line does to its tensors.


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An input of the program: data, or a hyperparameter; `key` names it."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """A fixed array."""

    value: Array


@dataclasses.dataclass(frozen=True, slots=True)
class Elementwise:
    """A scalar function of tensors, each read at the letters of the result."""

    fn: Expr
    letters: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two wide dimensions, a scalar; see `at_ratios` for its limit."""

    over: Dim
    under: Dim


@dataclasses.dataclass(frozen=True, slots=True)
class Primitive:
    """One JAX primitive at these parameters."""

    name: str
    params: tuple[tuple[str, Any], ...]
    equation: Any = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Regression:
    """Block `part` of C^+ b, the coefficients of a linear regression.

    The arguments are the blocks C[k, l] for k <= l < blocks in the order of rows, of
    shape I_k + I_l, and then the blocks b[k], of shape I_k + P; the result has the
    shape I_part + P. C is symmetric and may be singular: C^+ is its pseudo-inverse.
    """

    part: int
    blocks: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Map(_Line):
    """Tensors to a tensor."""

    op: Input | Constant | Elementwise | Ratio | Primitive | Regression
    args: tuple[Ref, ...]
    shape: tuple[int, ...]


Line = VecIn | MatIn | Transpose | MatMul | LinComb | Nonlin | Moment | Map | Readout


def common_dim(dims: Iterable[Dim]) -> Dim | None:
    """The dimension of a function of vectors: that which all others cover, or None."""
    different = list(dict.fromkeys(dims))
    finest = max(different, key=lambda d: d.order)
    others = (d for d in different if d != finest)
    return finest if all(finest.over(d) is not None for d in others) else None


def channel_sum(covering: Dim, dim: Dim) -> MatIn:
    """The matrix in whose product a sum over the channels of every head is written.

    The sum over the m coordinates that share one of `covering`, of vectors that are
    independent and centred there, is Gaussian by the central limit theorem, of the
    covariances m E[h h']: those of sqrt(m) A h, A a matrix that is nothing else's.
    """
    name = re.sub(r"\W+", "_", f"sum_{dim}_to_{covering}")
    return MatIn(name=name, shape=(), rows=covering, cols=dim)


def is_channel_sum(line: Line) -> bool:
    """Whether a line stands for sums over channels: its law alone is that of one."""
    return isinstance(line, MatIn) and line == channel_sum(line.rows, line.cols)


def prod(shape: tuple[int, ...]) -> int:
    """The number of positions of an index shape."""
    return math.prod(shape)


def check(condition: bool, line: Line, message: str) -> None:
    """Refuse a line that breaks a rule of the language."""
    if not condition:
        where = f" (from {line.source})" if line.source else ""
        raise InvalidProgramError(f"Line `{line.name}`{where}: {message}.")
