"""Whether an expectation exists where a quadratic form is divided by.

Where q = |w|^2 depends on r independent Gaussian variables, the density of |w| goes to
zero like |w|^(r - 1). A function that grows like |w|^-a there has an expectation if and
only if a < r. That of what batch normalisation divides by has r = batch - 1 different
inputs, and its derivative, squared, has a = 2.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import NoLimitError
from .._jax import enable_x64, is_concrete
from ..scalar import Call, Const, Expr, evaluate
from ._factors import multiply
from ._gated import ZERO, Quadratic, inverse_of

Array = Any

_ENTRIES = 8
"""How many entries of an array of expectations are looked at."""
_FORMS = 4
"""While there are no more forms, pairs of them are looked at too."""
_DIRECTIONS = 32
_ROUGH = 64
_SMALL, _SMALLER = 2.0**-6, 2.0**-14
_ROUNDING = 1e-9
"""Functions that cancel to this are zero."""
_UNSURE = 0.1
"""Of an exponent that is measured; those that occur are multiples of 1/2 or so."""


@functools.lru_cache(maxsize=4096)
def divided_by(factors: tuple[Expr, ...], d: int) -> tuple[Quadratic, ...]:
    """The quadratic forms of `d` leaves, zero somewhere, that the factors divide by."""
    found: dict[Quadratic, None] = {}
    seen: set[Expr] = set()
    for f in factors:
        for below in _divisors(f, seen):
            found |= dict.fromkeys(inverse_of(below, d))
    return tuple(q for q in found if q.constant == ZERO)


def _divisors(e: Expr, seen: set[Expr]) -> Iterator[Expr]:
    """What is divided by anywhere in an expression."""
    if not isinstance(e, Call) or e in seen:
        return
    seen.add(e)
    match e:
        case Call("div", (_, y)):
            yield y
        case Call("rsqrt", (x,)):
            yield x
        case Call("pow", (x, Const(n))) if n < 0:
            yield x
    for a in e.args:
        yield from _divisors(a, seen)


def check_exists(
    factors: Sequence[Expr],
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
    sizes: Callable[[int], Array],
    where: Callable[[int], str],
) -> None:
    """Refuse the expectation of a product of functions if it does not exist.

    Traced numbers are not known here, and pass. Some entries are looked at.

    Args:
        factors: as for `expect`.
        means: the same.
        cov: the same.
        params: the same.
        sizes: of a leaf, the variance before what cancels in it has cancelled.
        where: of a leaf, how to call it in a message.

    Raises:
        NoLimitError: it does not exist.
    """
    d = len(means)
    forms = divided_by(tuple(factors), d)
    entries = (*means, *(c for row in cov for c in row), *params)
    known = [z for z in entries if z is not None]
    if not forms or not all(map(is_concrete, known)):
        return
    picked = _picker(known)
    kinds = {z.dtype for z in known if hasattr(z, "dtype")}
    eps = max((float(jnp.finfo(t).eps) for t in kinds if _is_float(t)), default=2**-52)
    m = np.stack([picked(z) for z in means], axis=-1)
    k = np.stack([np.stack([picked(c) for c in row], -1) for row in cov], axis=-2)
    p = [picked(z) for z in params]
    size = np.stack([picked(sizes(i)) for i in range(d)], axis=-1)
    # Two batches may be zero together at one place.
    pairs = itertools.combinations(forms, 2) if len(forms) <= _FORMS else ()
    whole = multiply(factors)
    for together in (*((q,) for q in forms), *pairs):
        root = np.concatenate([_placed(q, d) for q in together], axis=1)
        laws = [
            _Degenerate(*of_entry, root, 16.0 * eps * math.sqrt(d))
            for of_entry in zip(m, k, size, strict=True)
        ]
        # All entries at once: there is an operation for every leaf at least.
        points = np.stack([law.points() for law in laws], axis=1)
        at = [np.broadcast_to(z[:, None], points.shape[1:3]) for z in p]
        values = _on_host(whole, [*np.moveaxis(points, -1, 0), *at])
        values = np.abs(np.broadcast_to(values, points.shape[:-1]))
        for i, law in enumerate(laws):
            grows = law.exponent(*values[:, i])
            if grows is not None and grows > law.rank - _UNSURE:
                leaf = together[0].leaves[0]
                raise NoLimitError(_message(where(leaf), root, law.rank, grows))


def _message(where: str, root: np.ndarray, rank: int, grows: float) -> str:
    count = np.count_nonzero(np.any(root, axis=1))
    what = (
        f"The network divides by the size of {count} Gaussian variables, {where}, of "
        f"which {rank} {'is' if rank == 1 else 'are'} independent"
    )
    if rank == 0:
        return (
            f"{what}: it is zero. Is it a batch of one input, or of equal ones? Give "
            "more different inputs, or add a positive number to what is divided by."
        )
    least = math.floor(grows + _UNSURE) + 1
    return (
        f"{what}, and an expectation of its power {-grows:.2g} does not exist: there "
        f"should be at least {least}. Give a larger batch, of more different inputs, "
        "or add a positive number to what is divided by."
    )


class _Degenerate:
    """A Gaussian law near the place where w = F^T z is zero.

    Args:
        mean: of z.
        cov: of z.
        size: the variances of z before what cancels in them has cancelled.
        root: F.
        tolerance: variances below this part of their size are rounding.
    """

    def __init__(
        self,
        mean: np.ndarray,
        cov: np.ndarray,
        size: np.ndarray,
        root: np.ndarray,
        tolerance: float,
    ) -> None:
        lowest = tolerance * float(np.max(size, initial=0.0))
        values, vectors = np.linalg.eigh(cov)
        self._mean = mean
        self._factor = vectors * np.sqrt(np.where(values > lowest, values, 0.0))
        a = root.T @ self._factor
        left, s, right = np.linalg.svd(a)
        self.rank = int(np.sum(s**2 > lowest * np.sum(root**2)))
        self._right = right[: self.rank].T
        shift = root.T @ mean
        self._start = -self._right @ (left[:, : self.rank].T @ shift / s[: self.rank])
        off = shift + a @ self._start
        self._meets = float(off @ off) <= lowest * float(np.sum(root**2))

    def points(self) -> np.ndarray:
        """Points z near w = 0 and nearer: shape (2, directions, leaves)."""
        rng = np.random.default_rng(0)
        along = rng.standard_normal((_DIRECTIONS, self.rank)) @ self._right.T
        rest = rng.standard_normal((_DIRECTIONS, len(self._mean)))
        rest -= rest @ self._right @ self._right.T
        xi = self._start + rest + np.stack([_SMALL * along, _SMALLER * along])
        return self._mean + xi @ self._factor.T

    def exponent(self, near: np.ndarray, nearer: np.ndarray) -> float | None:
        """The a that |f| grows with like |w|^-a; None where w is never zero.

        Args:
            near: |f| at the first of the points.
            nearer: |f| at the others.
        """
        if not self._meets:
            return None
        if self.rank == 0:
            return math.inf
        both = np.isfinite(near) & np.isfinite(nearer)
        one, two = float(np.sum(near[both])), float(np.sum(nearer[both]))
        if not two:
            return -math.inf
        grows = math.log(two / one, _SMALL / _SMALLER) if one else math.inf
        # What cancels leaves rounding, which grows too.
        lost = two * _SMALLER ** max(grows, 0.0) < _ROUNDING
        return -math.inf if lost else grows


def _placed(q: Quadratic, d: int) -> np.ndarray:
    root = q.root()
    out = np.zeros((d, root.shape[1]))
    out[list(q.leaves)] = root
    return out


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _picker(known: Sequence[Array]) -> Callable[[Array | None], np.ndarray]:
    """What takes the entries that are looked at out of an array."""
    shape = np.broadcast_shapes((1,), *(np.shape(z) for z in known))
    count = math.prod(shape)
    flat = np.unique(np.linspace(0, count - 1, min(count, _ENTRIES)).astype(int))
    at = np.unravel_index(flat, shape)

    def picked(z: Array | None) -> np.ndarray:
        if z is None:
            return np.zeros(len(flat))
        return np.broadcast_to(np.asarray(z, np.float64), shape)[at]

    return picked


def rough_mean(
    factors: Sequence[Expr],
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
) -> np.ndarray:
    """The expectation to a few digits, of numbers that are concrete, at once.

    What it is used for are the ranks of covariances that are computed from it.
    """
    d = len(means)
    known = (*means, *(c for row in cov for c in row), *params)
    shape = np.broadcast_shapes(*(np.shape(z) for z in known if z is not None))

    def full(z: Array | None) -> np.ndarray:
        return np.broadcast_to(np.asarray(0.0 if z is None else z, np.float64), shape)

    m = np.stack([full(z) for z in means], axis=-1)
    k = np.stack([np.stack([full(c) for c in row], -1) for row in cov], axis=-2)
    values, vectors = np.linalg.eigh(k)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    points = np.random.default_rng(1).standard_normal((_ROUGH, d))
    z = m[..., None, :] + points @ np.swapaxes(factor, -1, -2)
    given = [full(p)[..., None] for p in params]
    found = _on_host(multiply(factors), [*np.moveaxis(z, -1, 0), *given])
    return np.mean(np.broadcast_to(found, z.shape[:-1]), axis=-1)


def _on_host(f: Expr, args: Sequence[Any]) -> np.ndarray:
    with jax.ensure_compile_time_eval(), enable_x64(), np.errstate(all="ignore"):
        return np.asarray(evaluate(f, list(args)), np.float64)
