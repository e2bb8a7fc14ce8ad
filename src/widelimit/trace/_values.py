"""What the tracer knows of a value: its shape in widths, its layout, and its leaves."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np

from ..program import Ref, TensorArg, Term, identity_maps
from ..scalar import Expr
from ._layout import Axis, Block, blocks
from ._sizes import Extent, Shape, Size

_FLOAT = np.dtype("float64")


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Numbers known while tracing."""

    value: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A Tensor line; an axis of size one may stand for a longer one."""

    ref: Ref
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A linear combination of vector (or output) lines that was not written yet."""

    terms: tuple[Term, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, ref: Ref, shape: tuple[int, ...], scale: float = 1.0) -> "Linear":
        """The line itself, or a number times it."""
        return cls((Term(ref, scale, maps=identity_maps(shape)),), shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Pending:
    """A coordinatewise function of lines that was not written yet."""

    fn: Expr
    xs: tuple[Ref, ...]
    tensors: tuple[TensorArg, ...]
    shape: tuple[int, ...]


Leaf = Known | Data | Linear | Pending


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the traced function.

    Attributes:
        shape: its shape, in widths.
        kind: "fixed" (deterministic), "vector" (a wide axis), "output" (finite and
            Gaussian), "bits" (random bits).
        leaves: one for each block of the wide axis; None in a layout run.
        axis: which axis is wide, or None.
        layout: what the wide axis is made of.
        power: its order in the common scale of the widths.
        dtype: the traced dtype.
    """

    shape: Shape
    kind: str
    leaves: tuple[Leaf, ...] | None
    axis: int | None = None
    layout: Axis | None = None
    power: Fraction = Fraction(0)
    dtype: Any = _FLOAT

    @property
    def leaf(self) -> Leaf:
        """The only leaf of a value without a wide axis."""
        assert self.leaves is not None
        return self.leaves[0]

    @property
    def wide(self) -> bool:
        """Whether one of its axes is wide."""
        return self.axis is not None

    @property
    def is_zero(self) -> bool:
        """Whether it is zero by structure; False in a layout run."""
        return self.leaves is not None and all(is_zero(x) for x in self.leaves)

    def blocks(self) -> list[Block | None]:
        """The blocks of the wide axis, or one None."""
        return [None] if self.layout is None else list(blocks(self.layout))

    def leaf_shape(self, block: Block | None) -> tuple[int, ...]:
        """The index shape of a leaf: copies of its block stand for the wide axis."""
        return leaf_shape(self.shape, self.axis, block)


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixTerm:
    """scale * (a matrix parameter, perhaps with its finite axes rearranged).

    Attributes:
        name: the parameter.
        axes: for every axis of the value: the axis of the parameter it comes from and
            the positions read there (None: all, in order), or -1 for a new axis of
            size 1.
        fixed: axes of the parameter that no axis of the value reads, each with the
            position that is read.
        scale: a number.
    """

    name: str
    axes: tuple[tuple[int, tuple[int, ...] | None], ...]
    fixed: tuple[tuple[int, int], ...] = ()
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixValue:
    """A value with two wide axes, or three with that of heads: a sum of parameters.

    Attributes:
        shape: its shape, in widths.
        terms: what it is a sum of.
        layouts: the layouts of its wide axes, by axis.
        power: its order.
    """

    shape: Shape
    terms: tuple[MatrixTerm, ...]
    layouts: dict[int, Axis]
    power: Fraction = Fraction(0)
    dtype: Any = _FLOAT

    @property
    def kind(self) -> str:
        """For error messages."""
        return "matrix"


@dataclasses.dataclass(frozen=True, eq=False)
class Headed:
    """A value with two wide axes, heads and channels, one vector over both.

    Attributes:
        shape: its shape, in widths.
        value: the same with an axis of size one in the place of heads; the number of
            its channels is the product of both.
        axis: the axis of heads.
        layout: the layout of that axis.
    """

    shape: Shape
    value: Value
    axis: int
    layout: Axis

    @property
    def kind(self) -> str:
        """That of the vector."""
        return self.value.kind

    @property
    def power(self) -> Fraction:
        """Its order in the common scale of the widths."""
        return self.value.power

    @property
    def dtype(self) -> Any:
        """The traced dtype."""
        return self.value.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """One value of a product.

    Attributes:
        value: a `Value` or a `MatrixValue`.
        labels: one for every axis, as in `einsum`.
    """

    value: Any
    labels: tuple[int, ...]

    @property
    def wide(self) -> list[int]:
        """The labels of the wide axes."""
        pairs = zip(self.labels, self.value.shape, strict=True)
        return [a for a, s in pairs if isinstance(s, Size)]


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred:
    """A sum of products of values that no line holds.

    Attributes:
        shape: its shape, in widths.
        terms: the factors of every product. Labels below the number of axes are those
            axes; a product is summed over the others, and constant along an axis that
            none of its factors has.
        reason: what is wrong with it where a line is needed, and where it was made.
    """

    shape: Shape
    terms: tuple[tuple[Factor, ...], ...]
    reason: str
    dtype: Any = _FLOAT

    @property
    def kind(self) -> str:
        """For error messages."""
        return "product that is not contracted"


@dataclasses.dataclass(frozen=True, eq=False)
class Key:
    """A random key; its numbers never matter."""

    shape: Shape
    kind: str = "key"


def leaf_shape(
    shape: tuple[Extent, ...], axis: int | None, block: Block | None
) -> tuple[int, ...]:
    """The shape of a leaf: the wide axis has the size of the block's copies."""
    out = []
    for i, s in enumerate(shape):
        if i == axis:
            out.append(1 if block is None else block.count)
        else:
            assert isinstance(s, int)
            out.append(s)
    return tuple(out)


def known(value: Any, power: Fraction = Fraction(0)) -> Value:
    """A constant."""
    array = np.asarray(value)
    return Value(array.shape, "fixed", (Known(array),), power=power, dtype=array.dtype)


def is_zero(leaf: Leaf) -> bool:
    """Whether the leaf is zero by structure."""
    return isinstance(leaf, Known) and not leaf.value.any()


def uniform(leaf: Leaf) -> float | None:
    """The number that a leaf is everywhere, or None."""
    if isinstance(leaf, Known) and leaf.value.size and leaf.value.dtype != object:
        first = leaf.value.reshape(-1)[0]
        if np.all(leaf.value == first):
            return float(first)
    return None
