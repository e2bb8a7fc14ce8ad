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
from ._joint import Joint, Value
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
class _Square:
    """A quadratic form |mu + L xi|^2 + constant."""

    rows: Array
    mu: Array | None
    constant: Array

    @property
    def mean(self) -> Array:
        total = jnp.sum(self.rows**2, axis=(-2, -1)) + self.constant
        return total if self.mu is None else total + jnp.sum(self.mu**2, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """Linear forms m + G xi + rest, beside quadratic forms of xi.

    Attributes:
        means: m of every form; 0.0 where all means are structural zeros.
        slopes: G of every form, along the last axis.
        rest: the covariances of the rests.
        squares: the quadratic forms.
    """

    means: list[Value]
    slopes: list[Array]
    rest: list[list[Array]]
    squares: list[_Square]

    @property
    def scales(self) -> list[Array]:
        """The expectations of the quadratic forms."""
        return [s.mean for s in self.squares]

    @property
    def shape(self) -> tuple[int, ...]:
        """What the moments of the forms broadcast to."""
        entries = [c for row in self.rest for c in row] + self.scales
        return jnp.broadcast_shapes(*(e.shape for e in entries))

    def tilted(self, t: Sequence[Array]) -> tuple[Joint, Value]:
        """The law of the forms under the weight, and the logarithm of its mass.

        Args:
            t: the parameter of every quadratic form: an axis of nodes first, then the
                axes of the leaves.
        """
        if not self.squares:
            return Joint(list(self.means), self.rest), 0.0
        count = self.squares[0].rows.shape[-1]
        precision = jnp.eye(count, dtype=t[0].dtype)
        log_mass: Value = 0.0
        for s, one in zip(self.squares, t, strict=True):
            gram = jnp.swapaxes(s.rows, -1, -2) @ s.rows
            precision = precision + 2.0 * one[..., None, None] * gram
            log_mass = log_mass - one * s.constant
        root = jnp.linalg.cholesky(precision)
        log_mass -= jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
        # One inverse for all linear forms: it has no axes that only they have.
        unit = jnp.broadcast_to(jnp.eye(count, dtype=root.dtype), root.shape)
        inverse = solve_triangular(root, unit, lower=True)
        slopes = [_contract("ij,j->i", inverse, g[None]) for g in self.slopes]
        cov: list[list[Value]] = [
            [_contract("i,i->", x, y) + c for y, c in zip(slopes, row, strict=True)]
            for x, row in zip(slopes, self.rest, strict=True)
        ]
        if all(s.mu is None for s in self.squares):
            return Joint(list(self.means), cov), log_mass
        pull: Value = 0.0
        for s, one in zip(self.squares, t, strict=True):
            assert s.mu is not None
            pull = pull + 2.0 * one[..., None] * jnp.einsum(
                "...ri,...r->...i", s.rows, s.mu
            )
            log_mass -= one * jnp.sum(s.mu**2, axis=-1)
        shift = _contract("ij,j->i", inverse, pull)
        log_mass += 0.5 * jnp.sum(shift**2, axis=-1)
        means = [
            m - _contract("i,i->", x, shift)
            for m, x in zip(self.means, slopes, strict=True)
        ]
        return Joint(means, cov), log_mass


def regress(
    leaves: Leaves, forms: Sequence[Form], quadratics: Sequence[Quadratic]
) -> Regression:
    """Regress linear forms of Gaussian leaves on what quadratic forms read of them."""
    read = sorted({i for q in quadratics for i in q.leaves})
    roots = [_placed(q, read) for q in quadratics]
    heads = [_Head(leaves, f, read) for f in forms]
    rest = [[x.cov(y) for y in heads] for x in heads]
    centred = all(m is None for m in leaves.means)
    means = [0.0 if centred and h.is_linear else h.mean() for h in heads]
    if not quadratics:
        return Regression(means, [], rest, [])
    root = jnp.asarray(np.concatenate(roots, axis=1), leaves.dtype)
    k = _matrix(leaves, read)
    deviation = safe_sqrt(jnp.diagonal(k, axis1=-2, axis2=-1))
    # Before what cancels in them has cancelled.
    sizes = (deviation @ jnp.abs(root)) ** 2
    rows = [h.row() @ root for h in heads]
    factor, slopes = _factorise(root.T @ k @ root, sizes, rows)
    mu = None if centred else leaves.stack([leaves.means[i] for i in read]) @ root
    squares, start = [], 0
    for q, own in zip(quadratics, roots, strict=True):
        at = slice(start, start + own.shape[1])
        start = at.stop
        part = None if mu is None else mu[..., at]
        squares.append(_Square(factor[..., at, :], part, leaves.number(q.constant)))
    return Regression(means, slopes, _remainders(rest, slopes), squares)


def _placed(q: Quadratic, read: Sequence[int]) -> np.ndarray:
    """The root of a quadratic form, with a row for each of the leaves `read`."""
    root = q.root()
    out = np.zeros((len(read), root.shape[1]))
    out[[read.index(i) for i in q.leaves]] = root
    return out


def _matrix(leaves: Leaves, read: Sequence[int]) -> Array:
    """The covariance matrix of some leaves, in the last two axes."""
    m = len(read)
    flat = leaves.stack([leaves.cov[i][j] for i in read for j in read])
    return flat.reshape(*flat.shape[:-1], m, m)


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
        jnp.broadcast_to(
            h, (*jnp.broadcast_shapes(outer, h.shape[:-1]), count)
        )
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
