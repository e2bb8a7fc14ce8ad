"""Gaussians under the weight exp(-t1 q1 - t2 q2 ..), q positive quadratic forms.

With q_b = |w_b|^2 + c_b, w_b = mu_b + L_b xi and xi ~ N(0, I), the weight leaves xi
Gaussian, of precision M = I + 2 sum_b t_b L_b^T L_b. A linear form is m + G xi + rest,
where the rest is independent of xi and keeps its law. No covariance is inverted, and
none is the difference of nearly equal numbers: singular ones are no special case, and
the tails at large t, where the variances go down like 1 / t, keep their digits.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from ..scalar import Const, Expr, evaluate
from ._gated import Form, Quadratic
from ._joint import Joint, Value, add
from ._quadrature import safe_sqrt

Array = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Leaves:
    """The law of the leaves and the parameters, as arrays of one rank.

    Attributes:
        means: d means; None is a structural zero.
        cov: d x d covariances that broadcast; None is a structural zero.
        params: the values of the parameters.
        dtype: of the arrays.
    """

    means: Sequence[Array | None]
    cov: Sequence[Sequence[Array | None]]
    params: Sequence[Array]
    dtype: Any

    @functools.cached_property
    def rank(self) -> int:
        """The number of axes that the entries broadcast to."""
        entries = (*self.means, *(c for row in self.cov for c in row), *self.params)
        return max((jnp.ndim(z) for z in entries if z is not None), default=0)

    def full(self, z: Array | None) -> Array:
        """An entry with all axes; None is 0."""
        z = jnp.asarray(0.0 if z is None else z, self.dtype)
        return z.reshape((1,) * (self.rank - z.ndim) + z.shape)

    def number(self, e: Expr) -> Array:
        """The value of an expression of the parameters."""
        if isinstance(e, Const):
            return self.full(e.value)
        return self.full(evaluate(e, [0.0] * len(self.means) + list(self.params)))

    def stack(self, entries: Sequence[Array | None]) -> Array:
        """Entries along a new last axis."""
        return jnp.stack(jnp.broadcast_arrays(*map(self.full, entries)), axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Square:
    """A quadratic form |w|^2 + constant of a Gaussian vector w.

    Attributes:
        size: the number of entries of w.
        mean: of w, along the last axis; None is a structural zero.
        constant: what is added.
    """

    size: int
    mean: Array | None
    constant: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """Linear forms m + G xi + rest beside quadratic forms, where xi ~ N(0, I).

    Attributes:
        means: m of every form; 0.0 is a structural zero.
        slopes: G of every form, along the last axis; none without quadratic forms.
        rest: the covariances of the rests, which are independent of xi.
        squares: the quadratic forms; the vectors w are parts of mean + L xi.
        factor: L, lower triangular.
        log_mass: the logarithm of the expectation of the weights so far.
    """

    means: list[Value]
    slopes: list[Array]
    rest: list[list[Value]]
    squares: tuple[Square, ...] = ()
    factor: Array | None = None
    log_mass: Value = 0.0

    @property
    def joint(self) -> Joint:
        """The law of the forms, when there are no quadratic forms left."""
        return Joint(self.means, self.rest)

    @property
    def scales(self) -> list[Array]:
        """The expectations of the quadratic forms."""
        scales, start = [], 0
        for s in self.squares:
            assert self.factor is not None
            rows = self.factor[..., start : start + s.size, :]
            start += s.size
            scale = jnp.sum(rows**2, axis=(-2, -1)) + s.constant
            mean = 0.0 if s.mean is None else jnp.sum(s.mean**2, axis=-1)
            scales.append(scale + mean)
        return scales

    def tilted(self, t: Array) -> "Law":
        """The law under the weight exp(-t q) of the first quadratic form q.

        Args:
            t: an axis of nodes, which the result has first, then those of the law.
        """
        assert self.factor is not None
        first, own = self.squares[0], self.squares[0].size
        inverse, log_det = _tilt(self.factor[..., :own, :own], t)
        log_mass = self.log_mass - t * first.constant - 0.5 * log_det
        rows = _rotated(inverse, self.factor[..., own:, :], "ij,rj->ri")
        slopes = [_rotated(inverse, g, "ij,j->i") for g in self.slopes]
        means, squares = self.means, self.squares[1:]
        if first.mean is not None:
            beta, off = _least_squares(self.factor[..., :own, :own], first.mean)
            left = _contract("ij,j->i", inverse, beta[None])
            drop = jnp.sum(beta**2, axis=-1) - jnp.sum(left**2, axis=-1)
            log_mass -= 0.5 * drop + t * jnp.sum(off**2, axis=-1)
            means = [
                m + _shift(g, beta, x, left, "i,i->")
                for m, g, x in zip(means, self.slopes, slopes, strict=True)
            ]
            further = self.factor[..., own:, :]
            squares = _moved(squares, _shift(further, beta, rows, left, "ri,i->r"))
        cov = [
            [add(_contract("i,i->", x, y), c) for y, c in zip(slopes, row, strict=True)]
            for x, row in zip(slopes, self.rest, strict=True)
        ]
        if not squares:
            return Law(means, [], cov, log_mass=log_mass)
        across = [_contract("ri,i->r", rows, g) for g in slopes]
        w = _contract("ri,si->rs", rows, rows)
        sizes = jnp.diagonal(w, axis1=-2, axis2=-1)
        return _law(means, cov, across, squares, w, sizes, log_mass)


def _shift(
    before: Array, beta: Array, after: Array, left: Array, subscripts: str
) -> Array:
    """What slopes on the first entries of xi make of their new mean instead of 0.

    Not the mean of xi but that of xi + beta goes to 0 at large t: the slopes before the
    tilt take beta away, and those after it meet what is left of it.
    """
    own = beta.shape[-1]
    moved = _contract(subscripts, after[..., :own], left)
    return moved - _contract(subscripts, before[..., :own], beta)


def _moved(squares: Sequence[Square], shift: Array) -> tuple[Square, ...]:
    """Quadratic forms whose vectors w, one after the other, are shifted."""
    moved, start = [], 0
    for s in squares:
        part = shift[..., start : start + s.size]
        start += s.size
        assert s.mean is not None
        moved.append(dataclasses.replace(s, mean=s.mean + part))
    return tuple(moved)


def _least_squares(factor: Array, mean: Array) -> tuple[Array, Array]:
    """The beta that L beta is closest to the mean with, and what is left of it."""
    gram = jnp.swapaxes(factor, -1, -2) @ factor
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    unit = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    gram = gram + unit * (diagonal == 0)[..., None, :]
    right = _contract("ri,r->i", factor, mean)
    beta = jnp.linalg.solve(gram, right[..., None])[..., 0]
    return beta, mean - _contract("ri,i->r", factor, beta)


def _tilt(rows: Array, t: Array) -> tuple[Array, Array]:
    """X with X^T X = M^-1 and log det M, for M = I + 2 t L^T L."""
    gram = jnp.swapaxes(rows, -1, -2) @ rows
    unit = jnp.eye(rows.shape[-1], dtype=rows.dtype)
    root = jnp.linalg.cholesky(unit + 2.0 * t[..., None, None] * gram)
    # One inverse for all linear forms: it has none of the axes that only they have.
    inverse = solve_triangular(root, jnp.broadcast_to(unit, root.shape), lower=True)
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)
    return inverse, 2.0 * jnp.sum(jnp.log(diagonal), axis=-1)


def _rotated(inverse: Array, slopes: Array, subscripts: str) -> Array:
    """Slopes on the first entries of xi after these were made standard again."""
    own = inverse.shape[-1]
    first = _contract(subscripts, inverse, slopes[None, ..., :own])
    others = slopes[None, ..., own:]
    others = jnp.broadcast_to(others, (*first.shape[:-1], others.shape[-1]))
    return jnp.concatenate([first, others], axis=-1)


def _law(
    means: list[Value],
    cov: list[list[Value]],
    across: Sequence[Array],
    squares: tuple[Square, ...],
    w: Array,
    sizes: Array,
    log_mass: Value = 0.0,
) -> Law:
    """The law of forms and of the vectors w of quadratic forms, by their covariances.

    Args:
        means: of the forms.
        cov: of the forms.
        across: the covariances of every form with all w, along the last axis.
        squares: the quadratic forms.
        w: the covariance matrix of all w, possibly singular.
        sizes: variances that rounding in `w` is relative to.
        log_mass: of the weights so far.
    """
    factor, slopes = _factorise(w, sizes, across)
    return Law(means, slopes, _remainders(cov, slopes), squares, factor, log_mass)


def law_of(
    leaves: Leaves, forms: Sequence[Form], quadratics: Sequence[Quadratic]
) -> Law:
    """The law of linear forms and of quadratic forms of Gaussian leaves."""
    read = sorted({i for q in quadratics for i in q.leaves})
    heads = [_Head(leaves, f, read) for f in forms]
    cov: list[list[Value]] = [[x.cov(y) for y in heads] for x in heads]
    centred = all(m is None for m in leaves.means)
    means = [0.0 if centred and h.is_linear else h.mean() for h in heads]
    if not quadratics:
        return Law(means, [], cov)
    roots = [_placed(q, read) for q in quadratics]
    root = jnp.asarray(np.concatenate(roots, axis=1), leaves.dtype)
    k = _matrix(leaves, read)
    deviation = safe_sqrt(jnp.diagonal(k, axis1=-2, axis2=-1))
    # Before what cancels in them has cancelled.
    sizes = (deviation @ jnp.abs(root)) ** 2
    squares = []
    for q, own in zip(quadratics, roots, strict=True):
        mean = None
        if not centred:
            mean = leaves.stack([leaves.means[i] for i in read]) @ own
        squares.append(Square(own.shape[1], mean, leaves.number(q.constant)))
    across = [h.row() @ root for h in heads]
    return _law(means, cov, across, tuple(squares), root.T @ k @ root, sizes)


def _placed(q: Quadratic, read: Sequence[int]) -> np.ndarray:
    """The root of a quadratic form, with a row for each of the leaves `read`."""
    root = q.root()
    out = np.zeros((len(read), root.shape[1]))
    out[[read.index(i) for i in q.leaves]] = root
    return out


def _matrix(leaves: Leaves, read: Sequence[int]) -> Array:
    """The covariance matrix of some leaves, in the last two axes."""
    # Row by row: XLA takes long to compile one stack of thousands of entries.
    rows = [leaves.stack([leaves.cov[i][j] for j in read]) for i in read]
    return jnp.stack(jnp.broadcast_arrays(*rows), axis=-2)


class _Head:
    """A form, as a combination of leaves that are read and of other ones."""

    def __init__(self, leaves: Leaves, form: Form, read: Sequence[int]) -> None:
        self._leaves, self._form, self._read = leaves, form, read
        inside = {i: c for i, c in form.terms if i in read}
        self._outside = [(i, c) for i, c in form.terms if i not in read]
        self._inside = None
        if inside:
            entries = [inside.get(i, Const(0.0)) for i in read]
            self._inside = leaves.stack([leaves.number(c) for c in entries])

    @property
    def is_linear(self) -> bool:
        return self._form.shift == Const(0.0)

    def mean(self) -> Array:
        leaves = self._leaves
        total = leaves.number(self._form.shift)
        for i, c in self._form.terms:
            if leaves.means[i] is not None:
                total = total + leaves.number(c) * leaves.full(leaves.means[i])
        return total

    @functools.cached_property
    def _row_outside(self) -> Array:
        leaves = self._leaves
        total = jnp.zeros((1,) * leaves.rank + (len(self._read),), leaves.dtype)
        for i, c in self._outside:
            row = leaves.stack([leaves.cov[i][j] for j in self._read])
            total = total + leaves.number(c)[..., None] * row
        return total

    def row(self) -> Array:
        """The covariances with the leaves that are read, along the last axis."""
        if self._inside is None:
            return self._row_outside
        k = _matrix(self._leaves, self._read)
        return self._row_outside + jnp.einsum("...j,...jk->...k", self._inside, k)

    def cov(self, other: "_Head") -> Array:
        """The covariance with another form."""
        leaves = self._leaves
        total = leaves.full(None)
        for i, a in self._outside:
            for j, b in other._outside:
                if leaves.cov[i][j] is not None:
                    scale = leaves.number(a) * leaves.number(b)
                    total = total + scale * leaves.full(leaves.cov[i][j])
        if other._inside is not None:
            total = total + _contract("i,i->", self._row_outside, other._inside)
        if self._inside is not None:
            total = total + _contract("i,i->", other.row(), self._inside)
        return total


def _tolerance(dtype: Any, count: int) -> float:
    """Relative variances below this are rounding."""
    return 16.0 * max(count, 1) ** 0.5 * float(jnp.finfo(dtype).eps)


def _factorise(
    w: Array, sizes: Array, rows: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """L with L L^T = w, and G with G L^T = row for every row, for a singular w.

    A pivot that is zero up to rounding makes a zero column, through which there is no
    derivative.

    Args:
        w: a covariance matrix in the last two axes.
        sizes: variances against which pivots count as zero.
        rows: covariances of other variables with those of `w`.
    """
    count = w.shape[-1]
    lowest = _tolerance(w.dtype, count) * sizes

    def step(carry: Any, j: Array) -> tuple[Any, Any]:
        left, others = carry
        column = jnp.take(left, j, axis=-1)
        pivot = jnp.take(column, j, axis=-1)
        used = pivot > jnp.take(lowest, j, axis=-1)
        scale = jnp.where(used, 1.0 / jnp.sqrt(jnp.where(used, pivot, 1.0)), 0.0)
        column = jnp.where(jnp.arange(count) >= j, column * scale[..., None], 0.0)
        left = left - column[..., :, None] * column[..., None, :]
        slopes = [jnp.take(h, j, axis=-1) * scale for h in others]
        others = [
            h - g[..., None] * column for h, g in zip(others, slopes, strict=True)
        ]
        return (left, others), (column, slopes)

    outer = jnp.broadcast_shapes(w.shape[:-2], sizes.shape[:-1])
    w = jnp.broadcast_to(w, (*outer, count, count))
    start = [
        jnp.broadcast_to(h, (*jnp.broadcast_shapes(outer, h.shape[:-1]), count))
        for h in rows
    ]
    _, (columns, slopes) = lax.scan(step, (w, start), jnp.arange(count))
    return jnp.moveaxis(columns, 0, -1), [jnp.moveaxis(g, 0, -1) for g in slopes]


def _remainders(rest: list[list[Array]], slopes: Sequence[Array]) -> list[list[Array]]:
    """The covariances that the slopes leave; none beside a variance of zero."""
    left = [
        [c - _contract("i,i->", x, y) for y, c in zip(slopes, row, strict=True)]
        for x, row in zip(slopes, rest, strict=True)
    ]
    positive = []
    for k, x in enumerate(slopes):
        tolerance = _tolerance(x.dtype, x.shape[-1])
        positive.append(left[k][k] > tolerance * rest[k][k])
    return [
        [jnp.where(p & q, c, 0.0) for q, c in zip(positive, row, strict=True)]
        for p, row in zip(positive, left, strict=True)
    ]


def _contract(subscripts: str, x: Array, y: Array) -> Array:
    """An einsum over the last axes; the ones before broadcast.

    Axes that only one array has become the free axes of a matrix product.
    """
    inputs, result = subscripts.split("->")
    first, second = inputs.split(",")
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: x.ndim - len(first)]
    outer = jnp.broadcast_shapes(x.shape[: len(names)], y.shape[: len(names)])

    def free(z: Array) -> tuple[str, Array]:
        wide = [i for i in range(len(names)) if z.shape[i] > 1]
        narrow = tuple(i for i in range(len(names)) if z.shape[i] == 1)
        return "".join(names[i] for i in wide), jnp.squeeze(z, narrow)

    (a, x), (b, y) = free(x), free(y)
    kept = "".join(n for n in names if n in a or n in b)
    value = jnp.einsum(
        f"{a}{first},{b}{second}->{kept}{result}", x, y, precision="highest"
    )
    return value.reshape(*outer, *value.shape[len(kept) :])
