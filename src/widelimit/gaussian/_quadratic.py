"""Negative powers of quadratic forms, beside signs and polynomials.

    q^-s = 1 / Gamma(s) * integral of t^(s-1) exp(-t q) dt,  t from 0 to infinity.

Under the weight exp(-t q) the leaves are Gaussian again, and signs of two linear forms
times any polynomial have closed moments. What is left is an integral over one t for each
quadratic form: in log t the integrand is analytic in a strip and decays exponentially,
so that the trapezoidal rule converges geometrically.

References:
    Yang et al. (2019), "A mean field theory of batch normalization",
    https://arxiv.org/abs/1902.08129: such integrals for batch normalisation.
    Takahasi and Mori (1974), "Double exponential formulas for numerical integration".
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..scalar import Const, Expr
from ._gated import Gated, Term
from ._joint import Joint, Value, is_zero
from ._quadrature import accumulate
from ._tilted import Leaves, Regression, regress

Array = Any

_MAX_VARIABLES = 6
_MAX_DEGREE = 8
_STEPS = (0.5, 0.35, 0.25)
"""Step of the trapezoidal rule at each level of accuracy."""

_BEND = 5.0
"""Where u = log t begins to grow exponentially with the variable of the rule."""

_DIVERGED = 1e-4


def is_covered(product: Gated) -> bool:
    """Whether `quadratic_mean` has the moments, and at most two integrals."""
    return all(
        len(term.signs) <= 2
        and len(term.powers) <= 2
        and all(p < 0 for _, p in term.powers)
        and len({*term.forms, *term.signs}) <= _MAX_VARIABLES
        and len(term.forms) <= _MAX_DEGREE
        for term in product.terms
    )


def quadratic_mean(
    product: Gated,
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array],
    dtype: Any,
    level: int,
) -> Array:
    """The expectation of a sum of products that is covered.

    It is NaN where it does not exist, as that of 1/|z|. Matrices are computed once for
    all entries that only leaves outside the quadratic forms vary with.

    Args:
        product: the sum.
        means: d means; None is a structural zero.
        cov: d x d covariances that broadcast, possibly singular; None is a structural
            zero.
        params: the values of the parameters.
        dtype: of the result.
        level: of accuracy.
    """
    leaves = Leaves(means, cov, params, dtype)
    groups: dict[tuple[int, ...], dict[Term, Expr]] = {}
    for term, c in product.terms.items():
        below = tuple(q for q, _ in term.powers)
        groups.setdefault(below, {})[term] = c
    total = jnp.zeros((1,) * leaves.rank, dtype)
    for below, terms in groups.items():
        total = total + _Integral(leaves, product, below, terms).value(level)
    return total


class _Integral:
    """The terms with the same quadratic forms."""

    def __init__(
        self,
        leaves: Leaves,
        product: Gated,
        below: tuple[int, ...],
        terms: dict[Term, Expr],
    ) -> None:
        self._leaves, self._terms, self._count = leaves, terms, len(below)
        numbers = sorted({i for t in terms for i in (*t.forms, *t.signs)})
        self._places = {number: k for k, number in enumerate(numbers)}
        forms = [product.forms[i] for i in numbers]
        self._law = regress(leaves, forms, [product.quadratics[q] for q in below])
        self._scales = self._law.scales

    def value(self, level: int) -> Array:
        """The integral over all t."""
        dtype = self._leaves.dtype
        if not self._count:
            return self._integrand(jnp.zeros((1, 0), dtype))[0]
        lowest = min(-p for term in self._terms for _, p in term.powers)
        nodes = _nodes(self._count, level, lowest, float(jnp.finfo(dtype).eps))
        sizes = [s.rows.shape for s in self._law.squares]
        matrices = math.prod(sizes[0][:-2]) * sizes[0][-1] ** 2
        block = jax.checkpoint(self._block)
        size = 4 * (matrices + math.prod(self._law.shape))
        total, absolute, edge = accumulate(nodes, size, block, dtype)
        # Without decay in every t there is no expectation.
        exists = jnp.abs(edge) <= _DIVERGED * absolute
        for scale in self._scales:
            exists &= scale > 0
        return jnp.where(exists, total, jnp.nan)

    def _block(self, rows: Array) -> Array:
        """Sums over nodes: of all parts, of their moduli, and of those at the edge."""
        u, weights = rows[:, : self._count], rows[:, self._count :]
        values = self._integrand(u)
        sums = jnp.tensordot(weights.T, values, 1)
        absolute = jnp.tensordot(weights[:, 0], jnp.abs(values), 1)
        return jnp.stack([sums[0], absolute, sums[1]])

    def _integrand(self, u: Array) -> Array:
        """The integrand in u = log(t * scale), along the first axis."""
        shape = (u.shape[0], *[1] * self._leaves.rank)
        t = [
            jnp.exp(u[:, k].reshape(shape)) / jnp.where(scale > 0, scale, 1)
            for k, scale in enumerate(self._scales)
        ]
        joint, log_mass = self._law.tilted(t)
        total = jnp.zeros(shape, u.dtype)
        for term, c in self._terms.items():
            moment = self._moment(joint, term)
            if is_zero(moment):
                continue
            log: Value = log_mass
            for (_, p), one in zip(term.powers, t, strict=True):
                log = log - p * jnp.log(one) - math.lgamma(-p)
            total = total + self._leaves.number(c) * jnp.exp(log) * moment
        return total

    def _moment(self, joint: Joint, term: Term) -> Value:
        odd = (len(term.forms) + len(term.signs)) % 2
        if odd and all(is_zero(m) for m in joint.mean):
            return 0.0
        powers = [0] * len(self._places)
        for i in term.forms:
            powers[self._places[i]] += 1
        gates = tuple((self._places[i], "sign") for i in sorted(term.signs))
        return joint.moment(tuple(powers), gates)


@functools.lru_cache(maxsize=32)
def _nodes(count: int, level: int, lowest: float, eps: float) -> np.ndarray:
    """Nodes of the rule for integrals over `count` logarithms u.

    u = v - exp(-v) + exp(v - 5): the integrand goes down like exp(lowest u) on the left
    and at least like exp(-u/2) on the right.

    Returns:
        Rows of nodes u, their weight, and the weight again at the right edge.
    """
    digits = -math.log(eps)
    left, right = -math.log(digits / lowest), _BEND + math.log(2.0 * digits)
    v = np.arange(left, right + _STEPS[level], _STEPS[level])
    u = v - np.exp(-v) + np.exp(v - _BEND)
    w = _STEPS[level] * (1.0 + np.exp(-v) + np.exp(v - _BEND))
    edge = np.arange(len(v)) == len(v) - 1
    grids = np.meshgrid(*[np.arange(len(v))] * count, indexing="ij")
    at = [g.ravel() for g in grids]
    weight = np.prod([w[i] for i in at], axis=0)
    far = np.any([edge[i] for i in at], axis=0)
    return np.stack([*(u[i] for i in at), weight, weight * far], axis=1)
