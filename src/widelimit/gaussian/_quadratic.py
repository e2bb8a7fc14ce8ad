"""Negative powers of quadratic forms, beside signs and polynomials.

    q^-s = 1 / Gamma(s) * integral of t^(s-1) exp(-t q) dt,  t from 0 to infinity.

Under the weight exp(-t q) the leaves are Gaussian again, and signs of two linear forms
times any polynomial have closed moments. What is left is an integral over one t for
each quadratic form: in log t the integrand is analytic in a strip and decays
exponentially, so that the trapezoidal rule converges geometrically.

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

from ..scalar import Expr
from ._gated import Gated, Term
from ._joint import Joint, Value, is_zero
from ._quadrature import accumulate
from ._tilted import Law, Leaves, law_of

Array = Any

_MAX_TERMS = 64
_MAX_FORMS = 8
_MAX_VARIABLES = 6
_MAX_DEGREE = 8
_STEPS = (0.5, 0.35, 0.25)
"""Step of the trapezoidal rule at each level of accuracy."""

_BENDS = (8.0, 12.0, 24.0)
"""Where u = log t begins to grow exponentially with the variable of the rule, by level:
structure of slow tails beyond is not resolved."""

_DIVERGED = 1e-4


def is_covered(product: Gated) -> bool:
    """Whether `quadratic_mean` has the moments, and at most two integrals."""
    read = {i for term in product.terms for i in (*term.forms, *term.signs)}
    few = len(read) <= _MAX_FORMS and len(product.terms) <= _MAX_TERMS
    return few and all(
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
    all entries that only leaves outside the quadratic forms vary with. At a singular
    covariance its derivatives are those along covariances of the same rank, as they are
    where inputs move; to others there is no derivative from within.

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
        self._leaves, self._terms = leaves, terms
        numbers = sorted({i for t in terms for i in (*t.forms, *t.signs)})
        self._places = {number: k for k, number in enumerate(numbers)}
        forms = [product.forms[i] for i in numbers]
        self._law = law_of(leaves, forms, [product.quadratics[q] for q in below])
        self._scales = self._law.scales
        entries = [leaves.full(None), *self._scales]
        entries += [c for row in self._law.rest for c in row if not is_zero(c)]
        self._size = math.prod(jnp.broadcast_shapes(*(e.shape for e in entries)))

    def value(self, level: int) -> Array:
        """The integral over all t."""
        if not self._scales:
            return self._integrand(self._law, ())
        total, absolute, edge = self._integral(self._law, (), level)
        # Without decay in every t there is no expectation.
        exists = jnp.abs(edge) <= _DIVERGED * absolute
        for scale in self._scales:
            exists &= scale > 0
        return jnp.where(exists, total, jnp.nan)

    def _integral(self, law: Law, logs: tuple[Array, ...], level: int) -> Array:
        """The integrals over the t of all quadratic forms that `law` has left.

        Args:
            law: with the quadratic forms before tilted.
            logs: log t of these.
            level: of accuracy.

        Returns:
            The integral, that of the modulus, and the part of it at the last nodes.
        """
        if not law.squares:
            value = self._integrand(law, logs)
            return jnp.stack([value, jnp.abs(value), jnp.zeros_like(value)])
        k, dtype = len(logs), self._leaves.dtype
        power = min(-term.powers[k][1] for term in self._terms)
        nodes = _nodes(level, power, float(jnp.finfo(dtype).eps))
        scale = self._scales[k]
        safe = jnp.where(scale > 0, scale, 1.0)

        def block(rows: Array) -> Array:
            u, weight, last = (
                rows[:, i].reshape(-1, *[1] * (self._leaves.rank + k)) for i in range(3)
            )
            log_t = u - jnp.log(safe)
            further = law.tilted(jnp.exp(log_t))
            parts = self._integral(further, (*logs, log_t), level)
            total, absolute, edge = jnp.sum(weight * parts, axis=1)
            return jnp.stack([total, absolute, edge + jnp.sum(last * parts[0], 0)])

        assert law.factor is not None
        size = 4 * (
            law.factor.size + self._size * math.prod(logs[0].shape[:1] if logs else ())
        )
        return accumulate(nodes, size, jax.checkpoint(block), dtype)

    def _integrand(self, law: Law, logs: tuple[Array, ...]) -> Array:
        """The integrand in all log t."""
        joint, total = law.joint, self._leaves.full(None)
        for term, c in self._terms.items():
            moment = self._moment(joint, term)
            if is_zero(moment):
                continue
            log = law.log_mass
            for (_, p), log_t in zip(term.powers, logs, strict=True):
                log = log - p * log_t - math.lgamma(-p)
            total = total + self._leaves.number(c) * jnp.exp(log) * moment
        return jnp.broadcast_to(
            total, jnp.broadcast_shapes(total.shape, jnp.shape(law.log_mass))
        )

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
def _nodes(level: int, power: float, eps: float) -> np.ndarray:
    """Nodes of the rule for an integral over u = log t.

    u = v - exp(-v) + exp(v - bend): the integrand goes down like exp(power u) on the
    left and at least like exp(-u / 2) on the right.

    Returns:
        Rows of a node u, its weight, and this again at the last node.
    """
    digits = -math.log(eps)
    bend = _BENDS[level]
    left, right = -math.log(digits / power), bend + math.log(2.0 * digits)
    v = np.arange(left, right + _STEPS[level], _STEPS[level])
    u = v - np.exp(-v) + np.exp(v - bend)
    w = _STEPS[level] * (1.0 + np.exp(-v) + np.exp(v - bend))
    return np.stack([u, w, w * (u == u[-1])], axis=1)
