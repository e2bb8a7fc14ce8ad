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
from jax.scipy.linalg import solve_triangular

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
        points: standard normal numbers, (count, dimension); samples are zeros if None,
            to find how many numbers are needed.
        columns: the family that every column of the points is for.
        alone: expectations without a formula over at most so many Gaussians are found
            by points of their own, without a known error.
    """

    count: int
    drawn: frozenset[Family] = frozenset()
    points: Any = None
    columns: tuple[Family, ...] = ()
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
        drawn: the families that are drawn.
        columns: the families of the numbers of a sample, in the order of their use:
            the first Sobol numbers are the best.
    """

    def __init__(self, engine: "Engine", sampling: Sampling) -> None:
        self._engine, self._sampling = engine, sampling
        self.letter: Letter = engine.letters.new(sampling.count, last=True)
        self.drawn = sampling.drawn
        self.columns: tuple[Family, ...] = ()
        self._samples: dict[tuple[int, Ref], Any] = {}
        self._lines: dict[Family, list[tuple[int, Ref]]] = {f: [] for f in self.drawn}
        self._factors: dict[Family, _Factor] = {}
        if sampling.points is not None:
            points, columns = sampling.points.T, np.array(sampling.columns)
            self._factors = {
                family: _Factor(points[columns == family].astype(engine.dtype))
                for family in set(sampling.columns)
            }

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
        family = engine.families.of(*key)
        lines = self._lines[family]
        own = self._covariance(key, key)
        across: list[Any] = []
        while len(across) < len(lines):
            # A covariance may draw other lines of the family first.
            across.append(self._covariance(key, lines[len(across)]))
        if key in self._samples:
            return self._samples[key]
        check_size(len(own) * self.count, self.count)
        lines.append(key)
        self.columns += (family,) * len(own)
        shape = (*engine.shape(*key), self.count)
        if family not in self._factors:
            return jnp.zeros(shape, engine.dtype)
        value = jnp.reshape(self._factors[family].draw(across, own), shape)
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


class _Factor:
    """The Cholesky factor of the lines of a family, row by row.

    It has room for all of them, with ones on the diagonal where there is nothing yet.

    Args:
        points: standard normal numbers, (entries, count).
    """

    def __init__(self, points: Any) -> None:
        self._points, self._start = points, 0
        self._root = jnp.eye(len(points), dtype=points.dtype)
        self._live = jnp.ones(len(points), points.dtype)

    def draw(self, across: Sequence[Any], own: Any) -> Any:
        """Samples of a line, (its entries, count).

        Args:
            across: its covariances with the lines before it.
            own: its covariance.
        """
        start, size = self._start, len(own)
        rows = jnp.zeros((size, len(self._root)), own.dtype)
        if across:
            rest = jnp.zeros((size, len(self._root) - start), own.dtype)
            known = jnp.concatenate([*across, rest], axis=1)
            rows = solve_triangular(self._root, known.T, lower=True).T * self._live
        corner = semidefinite_root(own - _dot(rows, rows.T), _diagonal(own))
        rows = _written(rows, corner, 0, start)
        # What is a function of the lines before has no point of its own.
        live = (_diagonal(corner) > 0).astype(own.dtype)
        self._root = _written(self._root, rows, start, 0)
        self._root = _written(
            self._root, corner + (1 - live) * np.eye(size), start, start
        )
        self._live = lax.dynamic_update_slice(self._live, live, (np.int32(start),))
        self._start += size
        return _dot(rows, self._points)


def _diagonal(matrix: Any) -> Any:
    """As a slice, which XLA compiles faster than a gather."""
    return jnp.reshape(matrix, -1)[:: len(matrix) + 1]


def _dot(x: Any, y: Any) -> Any:
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def _written(whole: Any, block: Any, row: int, column: int) -> Any:
    """A matrix with a block in the place of what it had there."""
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
    if size == 0:
        return matrix
    noise = 16 * max(size, 8) * float(jnp.finfo(matrix.dtype).eps)
    tolerance = noise * (_diagonal(matrix) if scale is None else scale)
    if size == 1:
        return safe_sqrt(jnp.where(matrix > tolerance, matrix, 0))

    def column(rest: Any, i: Any) -> tuple[Any, Any]:
        pivot = rest[i, i]
        pivot = jnp.where(pivot > tolerance[i], pivot, 0)
        below = jnp.where(jnp.arange(size) >= i, rest[:, i], 0)
        found = safe_divide(below, safe_sqrt(pivot))
        return rest - found[:, None] * found[None, :], found

    _, columns = lax.scan(column, matrix, np.arange(size))
    return columns.T
