"""Drawn lines: joint samples of Gaussian lines, where an expectation has no formula.

The limit of a program is a recursion over covariances of Gaussian lines. Lines that can
be correlated, by structure, make a *family*. Where an expectation over some families
has no formula they are drawn: joint samples of their lines, with the covariances found
so far. Given the draws a function of drawn lines is a number for every sample, and all
that is independent of them keeps its formula. With all families drawn this is the
recursion of theorem 4 of Yang (2019) with every expectation a mean over samples of Z:
a network of `count` neurons without its weight matrices.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import UnsupportedError
from ..gaussian import safe_divide, safe_sqrt
from ..program import (
    LinComb,
    MatMul,
    Nonlin,
    Output,
    Readout,
    Ref,
    TensorProgram,
    VecIn,
    Vector,
)
from ..transform import Parity
from ._index import Letter

if TYPE_CHECKING:
    from ._engine import Engine

Family = int

MAX_NUMBERS = 2**27
"""The most numbers in one array of samples: 1 GiB in double precision."""

# Entries of a family for which there is room at first.
_ROOM = 32


class NeedsDraws(Exception):
    """Raised where an expectation over these families has no formula.

    Attributes:
        families: which to draw.
    """

    def __init__(self, families: Iterable[Family]) -> None:
        super().__init__("an expectation has no formula")
        self.families = frozenset(families)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """What is drawn, and from which points.

    Attributes:
        count: the number of samples.
        drawn: the families that are drawn.
        points: standard normal numbers, (count, dimension) of a dimension that is at
            least the number of drawn entries; zeros if None, to find that dimension.
        alone: expectations without a formula over at most so many Gaussians are found
            by points of their own, without a known error.
    """

    count: int
    drawn: frozenset[Family] = frozenset()
    points: Any = None
    alone: int = 0


FORMULAS = Sampling(2)
"""Nothing is drawn, and what has no formula is refused."""

PAIRS = Sampling(2, alone=4)
"""Nothing is drawn for a few Gaussians: cheaper, pair by pair, than joint samples."""


class Families:
    """Which Gaussian lines of programs can be correlated, and what depends on them.

    Args:
        programs: those of the sides, which share inputs by name.
        parities: of their lines. Lines of one matrix that are even and odd in the same
            input are independent.
    """

    def __init__(
        self, programs: Sequence[TensorProgram], parities: Sequence[Sequence[Parity]]
    ) -> None:
        self._programs, self._parities = programs, parities
        self._parent: dict[tuple[int, Ref], tuple[int, Ref]] = {}
        self._join_sources()
        self._reach = self._find_reach()
        roots = sorted({self._root(key) for key in self._parent})
        self._number = {root: i for i, root in enumerate(roots)}
        self.reach: list[list[frozenset[Family]]] = [
            [frozenset(self._number[self._root(k)] for k in one) for one in side]
            for side in self._reach
        ]
        """For every side and line the families that it is a function of."""

    @property
    def all(self) -> frozenset[Family]:
        """All families."""
        return frozenset(self._number.values())

    def of(self, side: int, ref: Ref) -> Family:
        """The family of a Gaussian line."""
        return self._number[self._root((side, ref))]

    def changing(self, drawn: frozenset[Family]) -> int:
        """The inputs, as bits, whose sign changes drawn lines."""
        bits = 0
        for side, ref in self._parent:
            if self.of(side, ref) in drawn:
                parity = self._parities[side][ref]
                bits |= parity.odd | parity.neither
        return bits

    def _join_sources(self) -> None:
        """Lines of one vector, or of one matrix, are of one family."""
        sources: dict[str, dict[Parity, tuple[int, Ref]]] = {}
        for side, program in enumerate(self._programs):
            for ref in range(len(program.lines)):
                name = _source(program, ref, side)
                if name is None:
                    continue
                key, parity = (side, ref), self._parities[side][ref]
                self._parent[key] = key
                classes = sources.setdefault(name, {})
                for other, one in classes.items():
                    if not parity.excludes(other):
                        self._join(key, one)
                classes.setdefault(parity, key)

    def _find_reach(self) -> list[list[frozenset[tuple[int, Ref]]]]:
        found = []
        for side, program in enumerate(self._programs):
            reach: list[frozenset[tuple[int, Ref]]] = []
            for ref, line in enumerate(program.lines):
                here: frozenset[tuple[int, Ref]] = frozenset()
                if (side, ref) in self._parent:
                    here = frozenset([(side, ref)])
                elif isinstance(line, LinComb):
                    read = [reach[t.x] for t in line.terms if t.x is not None]
                    here = frozenset().union(*read)
                    if here and is_gaussian(program, ref):
                        # A combination is drawn together with what it combines.
                        self._parent[side, ref] = (side, ref)
                        for key in here:
                            self._join(key, (side, ref))
                        here = frozenset([(side, ref)])
                elif isinstance(line, Nonlin):
                    here = frozenset().union(*(reach[x] for x in line.xs))
                reach.append(here)
            found.append(reach)
        return found

    def _root(self, key: tuple[int, Ref]) -> tuple[int, Ref]:
        while self._parent[key] != key:
            self._parent[key] = key = self._parent[self._parent[key]]
        return key

    def _join(self, x: tuple[int, Ref], y: tuple[int, Ref]) -> None:
        first, second = sorted((self._root(x), self._root(y)))
        self._parent[second] = first


def is_gaussian(program: TensorProgram, ref: Ref) -> bool:
    """Whether a line is Gaussian in the limit: a G-line or a finite output."""
    t = program.types[ref]
    return isinstance(t, Output) or (isinstance(t, Vector) and t.kind == "G")


def _source(program: TensorProgram, ref: Ref, side: int) -> str | None:
    """The name of the randomness of a Gaussian line that is no combination."""
    line = program.lines[ref]
    match line:
        case VecIn():
            if line.cov is None and isinstance(line.std, float | int) and not line.std:
                return None
            return f"{line.name} of {side}" if line.per_example else line.name
        case MatMul():
            return program.lines[line.matrix].name
        case Readout():
            return program.lines[line.v].name
    return None


class Draws:
    """The samples of an engine, drawn line by line as they are asked for.

    Attributes:
        letter: the sample, an index letter like those of positions.
        dimension: how many columns of the points have been used.
    """

    def __init__(self, engine: "Engine", sampling: Sampling) -> None:
        self._engine, self._sampling = engine, sampling
        self.letter: Letter = engine.letters.new(sampling.count)
        self.drawn = sampling.drawn
        self.dimension = 0
        self._samples: dict[tuple[int, Ref], Any] = {}
        self._known: dict[Family, _Known] = {}

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._sampling.count

    @property
    def alone(self) -> int:
        """Up to how many Gaussians an expectation has points of its own."""
        return self._sampling.alone

    def sample(self, side: int, ref: Ref) -> Any:
        """Samples of a drawn line, of its index shape and a last axis of samples."""
        key = (side, ref)
        if key not in self._samples:
            self._samples[key] = self._draw(key)
        return self._samples[key]

    def _draw(self, key: tuple[int, Ref]) -> Any:
        """The next line of a family, given those drawn before: by Cholesky's rows."""
        engine = self._engine
        known = self._known.setdefault(engine.families.of(*key), _Known())
        own = self._covariance(key, key)
        across: list[Any] = []
        while len(across) < len(known.lines):
            # A covariance may draw other lines of the family first.
            across.append(self._covariance(key, known.lines[len(across)]))
        if key in self._samples:
            return self._samples[key]
        check_size(len(own) * self.count, self.count)
        points = self._points(len(own))
        known.reserve(len(own), points)
        rows = solve_rows(known.root, known.row(across, own))
        corner = semidefinite_root(own - rows @ rows.T, jnp.diagonal(own))
        centred = known.points @ rows.T + points @ corner.T
        known.append(key, rows, corner, points)
        shape = engine.shape(*key)
        value = jnp.reshape(centred.T, (*shape, self.count))
        mean = engine.law_mean_array(*key)
        return value if mean is None else value + mean[..., None]

    def _covariance(self, x: tuple[int, Ref], y: tuple[int, Ref]) -> Any:
        """The covariance of two lines, their positions in rows and columns."""
        engine = self._engine
        rows, cols = (math.prod(engine.shape(*key)) for key in (x, y))
        found = engine.covariances(x, y)
        if found is None:
            return jnp.zeros((rows, cols), engine.dtype)
        return jnp.reshape(found, (rows, cols)).astype(engine.dtype)

    def _points(self, dimension: int) -> Any:
        start, points = self.dimension, self._sampling.points
        self.dimension += dimension
        if points is None:
            return jnp.zeros((self.count, dimension), self._engine.dtype)
        # With the start as an argument: eager slices compile once for each.
        found = lax.dynamic_slice_in_dim(points, np.int32(start), dimension, 1)
        return found.astype(self._engine.dtype)


class _Known:
    """The lines of a family that are drawn, their Cholesky factor and their points.

    Both have room for more lines than there are, where they are zero: an eager
    operation is compiled for every new shape.

    Attributes:
        lines: the lines.
        root: the lower triangular factor of all of them.
        points: the points of all of them, (count, entries).
    """

    def __init__(self) -> None:
        self.lines: list[tuple[int, Ref]] = []
        self.root: Any = None
        self.points: Any = None
        self._used = 0

    def reserve(self, entries: int, points: Any) -> None:
        """Make room for more entries, with points like these."""
        size, more = 0 if self.root is None else len(self.root), 0
        while size + more < self._used + entries:
            more += _ROOM if size + more < 4 * _ROOM else 4 * _ROOM
        if self.root is None:
            self.root = jnp.zeros((more, more), points.dtype)
            self.points = jnp.zeros((len(points), more), points.dtype)
        elif more:
            self.root = jnp.pad(self.root, (0, more))
            self.points = jnp.pad(self.points, ((0, 0), (0, more)))

    def row(self, across: Sequence[Any], own: Any) -> Any:
        """The covariances of a new line with all lines, side by side."""
        found, start = jnp.zeros((len(own), len(self.root)), own.dtype), 0
        for block in across:
            found = _written(found, block, 0, start)
            start += block.shape[1]
        return found

    def append(self, key: tuple[int, Ref], rows: Any, corner: Any, points: Any) -> None:
        """Add a line: its rows of the factor, and its points."""
        start = self._used
        self.root = _written(self.root, rows, start, 0)
        self.root = _written(self.root, corner, start, start)
        self.points = _written(self.points, points, 0, start)
        self.lines.append(key)
        self._used += len(corner)


def _written(whole: Any, block: Any, row: int, column: int) -> Any:
    """A matrix with a block in the place of what it had there."""
    block = block.astype(whole.dtype)
    return lax.dynamic_update_slice(whole, block, (np.int32(row), np.int32(column)))


def check_size(numbers: int, count: int) -> None:
    """Refuse arrays of samples that would not fit into memory."""
    if numbers > MAX_NUMBERS:
        raise UnsupportedError(
            f"{count} samples of what has to be sampled are an array of {numbers:.2g} "
            f"numbers, and the limit is {MAX_NUMBERS:.2g}. Give fewer inputs at a "
            "time, or ask `net.estimate` for fewer `samples`."
        )


@jax.jit
def semidefinite_root(matrix: Any, scale: Any | None = None) -> Any:
    """A lower triangular L with L L^T = matrix, positive semidefinite, (n, n).

    A pivot that is zero up to rounding, relative to `scale` (the diagonal, if None),
    makes a zero column. The derivative through such a pivot is zero, never NaN.
    """
    size = len(matrix)
    noise = 16 * max(size, 8) * float(jnp.finfo(matrix.dtype).eps)
    tolerance = noise * (jnp.diagonal(matrix) if scale is None else scale)
    if size == 0:
        return matrix

    def column(rest: Any, i: Any) -> tuple[Any, Any]:
        pivot = rest[i, i]
        pivot = jnp.where(pivot > tolerance[i], pivot, 0)
        below = jnp.where(jnp.arange(size) >= i, rest[:, i], 0)
        found = safe_divide(below, safe_sqrt(pivot))
        return rest - found[:, None] * found[None, :], found

    _, columns = lax.scan(column, matrix, np.arange(size))
    return columns.T


def solve_rows(root: Any, cov: Any) -> Any:
    """The rows X with X root^T = cov; zero where the root has a zero column."""
    if root.shape[0] == 0:
        return cov
    pivots = jnp.diagonal(root)
    safe = root + jnp.diag(jnp.where(pivots == 0, 1.0, 0.0).astype(root.dtype))
    found = jax.scipy.linalg.solve_triangular(safe, cov.T, lower=True).T
    return jnp.where(pivots == 0, 0.0, found)
