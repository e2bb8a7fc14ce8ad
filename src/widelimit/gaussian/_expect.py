"""E of a product of functions of jointly Gaussian leaves: the one entry, `expect`.

The product is taken apart first: factors that are products, groups of leaves that are
independent. Each group then goes to the cheapest route that is exact for it:
Wick's theorem, a closed form, tilted Gaussians where quadratic forms are divided by,
Stein's lemma for a leaf that enters as a polynomial, one-dimensional quadrature, a
Hermite series, quadrature split at kinks, a tensor rule, and randomised quasi-Monte
Carlo last.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import UnsupportedError
from ..scalar import Arg, Call, Const, Expr, evaluate, substitute
from ._closed import (
    closed_dual,
    closed_half_distance,
    closed_mean,
    closed_name,
)
from ._estimate import Accuracy
from ._factors import as_function, merge, multiply, summands, used
from ._gated import gated
from ._given import given_dual
from ._hermite import hermite_dual
from ._piecewise import MANY, Kinks, find_kinks, leaf_kinks, parity
from ._price import derive, with_derivative
from ._qmc import (
    LOG2_POINTS,
    SCRAMBLES,
    all_normal_points,
    normal_points,
    psd_root,
)
from ._quadratic import is_covered, quadratic_mean
from ._quadrature import (
    density_times,
    mean_smooth,
    mean_split,
    pair_split,
    tensor_rule,
    weighted_sum,
)
from ._wick import Polynomial, multiply_polynomials, polynomial, wick_mean

Array = Any

# A pair rule has a panel for every pair of kinks; periodic functions have many.
_FEW_KINKS = 12
_EXACT = ("closed form", "polynomial", "constant")
_MAX_PEELED_DEGREE = 4
_MAX_TERMS = 32
# In the place of the number of a scramble: it is the last parameter instead.
_LAST_PARAMETER = -1

_routes: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
    "routes", default=None
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Law:
    """A Gaussian law, the parameters, and the accuracy wanted."""

    means: tuple[Array | None, ...]
    cov: tuple[tuple[Array | None, ...], ...]
    params: tuple[Array, ...]
    accuracy: Accuracy
    distance: Array | None = None

    @property
    def d(self) -> int:
        return len(self.means)

    def mean(self, i: int) -> Array:
        """The mean of leaf i as an array."""
        m = self.means[i]
        return jnp.zeros((), self.dtype) if m is None else m

    def covariance(self, i: int, j: int) -> Array:
        """An entry of the covariance as an array."""
        c = self.cov[i][j]
        return jnp.zeros((), self.dtype) if c is None else c

    @property
    def dtype(self) -> Any:
        """The common floating type."""
        entries = [c for row in self.cov for c in row]
        known = [z for z in (*self.means, *entries, *self.params) if z is not None]
        return jnp.result_type(float, *known)

    def restrict(self, leaves: Sequence[int]) -> "_Law":
        """The law of some of the leaves."""
        cov = tuple(tuple(self.cov[i][j] for j in leaves) for i in leaves)
        means = tuple(self.means[i] for i in leaves)
        distance = self.distance if len(leaves) == self.d else None
        return dataclasses.replace(self, means=means, cov=cov, distance=distance)


def expect(
    factors: Sequence[Expr],
    means: Sequence[Array | None],
    cov: Sequence[Sequence[Array | None]],
    params: Sequence[Array] = (),
    accuracy: Accuracy = Accuracy(),  # noqa: B008
    distance: Array | None = None,
) -> Array:
    """The expectation of a product of functions of jointly Gaussian variables.

    It can be traced, batched and differentiated. Derivatives are those of Price's
    theorem, right for singular covariances too, except where several leaves meet in
    a function with kinks or in a quadratic form that is divided by; there the rule
    itself is differentiated.

    Args:
        factors: functions whose product is meant. Arguments 0..d-1 are the Gaussian
            leaves, the later ones the parameters.
        means: d means; None is a mean that is 0 by structure.
        cov: d x d covariances, symmetric, possibly singular; None is a covariance
            that is 0 by structure. Rounding below 0 of a variance counts as 0.
        params: the values of the parameters.
        accuracy: how much work the numerical routes do.
        distance: of two leaves u and v, E(u - v)^2 / 2 where it is known better than
            from the covariances: of nearly equal ones.

    Returns:
        An array of the shape that the inputs it depends on broadcast to. All inputs
        broadcast together, and what depends on one leaf is computed in the shape of
        that leaf.
    """
    params = tuple(params)
    if 0 < accuracy.scramble < SCRAMBLES:
        # Which scramble is an argument, so that all but the first compile once.
        params += (accuracy.scramble,)
        accuracy = dataclasses.replace(accuracy, scramble=_LAST_PARAMETER)
    rows = tuple(tuple(row) for row in cov)
    law = _cast(_Law(tuple(means), rows, params, accuracy, distance))
    if _routes.get() is not None:
        # What is recorded must run, not be found in a cache.
        return _product(tuple(factors), law)
    pairs = [(i, j) for i in range(law.d) for j in range(i, law.d)]
    entries = (*law.means, *(law.cov[i][j] for i, j in pairs))
    known = tuple(z is not None for z in entries)
    run = _jitted(tuple(factors), law.d, known, accuracy)
    return run(tuple(z for z in entries if z is not None), law.params, law.distance)


@functools.lru_cache(maxsize=4096)
def _jitted(
    factors: tuple[Expr, ...], d: int, known: tuple[bool, ...], accuracy: Accuracy
) -> Callable[..., Array]:
    """The expectation for one pattern of structural zeros, traced once a shape."""

    @jax.jit
    def run(
        given: tuple[Array, ...], params: tuple[Array, ...], distance: Array | None
    ) -> Array:
        values = iter(given)
        entries = [next(values) if one else None for one in known]
        cov: list[list[Array | None]] = [[None] * d for _ in range(d)]
        rest = iter(entries[d:])
        for i in range(d):
            for j in range(i, d):
                cov[i][j] = cov[j][i] = next(rest)
        rows = tuple(map(tuple, cov))
        law = _Law(tuple(entries[:d]), rows, params, accuracy, distance)
        return _product(factors, law)

    return run


@functools.partial(jax.jit, static_argnums=(0, 1))
def half_distance(
    f: Expr, g: Expr, a: Array, b: Array, d: Array, params: tuple[Array, ...] = ()
) -> Array:
    """E(f(u) - g(v))^2 / 2 for centred u and v, accurate also where they are near.

    Args:
        f: a function of u, written as argument 0; later ones are the parameters.
        g: a function of v, in the same way; one that `knows_distance` from f.
        a: the variance of u.
        b: the variance of v.
        d: E(u - v)^2 / 2.
        params: the values of the parameters.
    """
    return closed_half_distance(f, g, a, b, d, params)


def route(factors: Sequence[Expr], d: int) -> str:
    """The route that `expect` takes when all `d` leaves are correlated."""
    taken = _trace_routes(tuple(factors), d)
    return " * ".join(dict.fromkeys(taken)) if taken else "constant"


def is_exact(factors: Sequence[Expr], d: int) -> bool:
    """Whether `expect` needs nothing but closed forms."""
    return all(r.startswith(_EXACT) for r in _trace_routes(tuple(factors), d))


@functools.lru_cache(maxsize=1024)
def _trace_routes(factors: tuple[Expr, ...], d: int) -> tuple[str, ...]:
    """Follow `expect` on abstract numbers."""
    count = max((max(used(f), default=-1) + 1 for f in factors), default=0)
    number = jax.ShapeDtypeStruct((), jnp.result_type(float))
    with _recorded() as taken:
        jax.eval_shape(
            lambda m, c, p: expect(factors, m, c, p),
            [number] * d,
            [[number] * d for _ in range(d)],
            [number] * max(count - d, 0),
        )
    return tuple(taken)


@contextlib.contextmanager
def _recorded() -> Iterator[list[str]]:
    taken: list[str] = []
    token = _routes.set(taken)
    try:
        yield taken
    finally:
        _routes.reset(token)


def _take(name: str) -> None:
    taken = _routes.get()
    if taken is not None:
        taken.append(name)


def _cast(law: _Law) -> _Law:
    dtype = law.dtype

    def array(z: Array | None) -> Array | None:
        nothing = z is None or (isinstance(z, int | float) and z == 0)
        return None if nothing else jnp.asarray(z, dtype)

    return _Law(
        tuple(array(m) for m in law.means),
        tuple(tuple(array(c) for c in row) for row in law.cov),
        tuple(jnp.asarray(p, dtype) for p in law.params),
        law.accuracy,
        None if law.distance is None else jnp.asarray(law.distance, dtype),
    )


def _product(factors: tuple[Expr, ...], law: _Law) -> Array:
    constants, alone, joint = merge(factors, law.d)
    result = None
    if constants:
        result = evaluate(multiply(constants), [0.0] * law.d + list(law.params))
    for leaves in _groups(alone, joint, law):
        here = [f for i, f in alone.items() if i in leaves]
        here += [f for f in joint if used(f) & leaves]
        order = sorted(leaves)
        value = _group(_renumber(here, order, law), law.restrict(order))
        result = value if result is None else result * value
    return jnp.asarray(1.0 if result is None else result, law.dtype)


def _groups(
    alone: dict[int, Expr], joint: list[Expr], law: _Law
) -> list[frozenset[int]]:
    """Sets of leaves that are independent of each other."""
    leaves = sorted({*alone, *(i for f in joint for i in used(f) if i < law.d)})
    groups = [frozenset((i,)) for i in leaves]
    ties = [used(f) for f in joint]
    ties += [
        frozenset((i, j))
        for i in leaves
        for j in leaves
        if i < j and law.cov[i][j] is not None
    ]
    for tie in ties:
        touched = [g for g in groups if g & tie]
        groups = [g for g in groups if not g & tie] + [frozenset().union(*touched)]
    return sorted(groups, key=min)


def _renumber(factors: list[Expr], leaves: list[int], law: _Law) -> tuple[Expr, ...]:
    names: list[Expr] = [Const(0.0)] * law.d
    for new, old in enumerate(leaves):
        names[old] = Arg(new)
    names += [Arg(len(leaves) + i) for i in range(len(law.params))]
    return tuple(substitute(f, names) for f in factors)


def _group(factors: tuple[Expr, ...], law: _Law) -> Array:
    """The expectation for leaves that all hang together."""
    given = given_dual(factors, law.means, law.cov, law.params)
    if given is not None:
        _take("given by the user")
        return jnp.asarray(given, law.dtype)
    terms = _as_polynomial(factors, law.d)
    if terms is not None:
        _take("polynomial (Wick)")
        return wick_mean(terms, law.means, law.cov, law.params)
    _, alone, joint = merge(factors, law.d)
    if law.d == 1:
        return _one(factors[0], law)
    if law.d == 2 and not joint:
        f, g = (as_function(alone[i], 2, len(law.params)) for i in (0, 1))
        entries = [(law.means[i], law.cov[i][i]) for i in (0, 1)]
        (m1, a), (m2, b) = ((_or_zero(m), _or_zero(v)) for m, v in entries)
        leaves = (m1, a, m2, b, _or_zero(law.cov[0][1]))
        value = closed_dual(f, g, *leaves, law.params, law.distance)
        if value is not None:
            _take(f"closed form: {closed_name(f, g)}")
            return jnp.asarray(value, law.dtype)
    squares = gated(factors, law.d) if joint else None
    if squares is not None and is_covered(squares):
        _take("quadratic forms")
        means, cov, params = law.means, law.cov, law.params
        level = law.accuracy.level
        return quadratic_mean(squares, means, cov, params, law.dtype, level)
    peeled = _peel(alone, joint, law)
    if peeled is not None:
        return peeled
    if law.d == 2 and not joint:
        return _two(factors, law)
    expanded = _expand(factors, joint, law)
    return _several(factors, law) if expanded is None else expanded


def _or_zero(z: Array | None) -> Array | float:
    """A structural zero as closed forms want it."""
    return 0.0 if z is None else z


def _as_polynomial(factors: tuple[Expr, ...], d: int) -> Polynomial | None:
    total: Polynomial | None = {(0,) * d: Const(1.0)}
    for f in factors:
        total = multiply_polynomials(total, polynomial(f, d))
    return total


def _one(factor: Expr, law: _Law) -> Array:
    """One leaf: closed form or quadrature."""
    f = as_function(factor, 1, len(law.params))
    known = (_or_zero(law.means[0]), _or_zero(law.cov[0][0]))
    value = closed_mean(f, *known, law.params)
    if value is not None:
        _take(f"closed form: {closed_name(f)}")
        return jnp.asarray(value, law.dtype)
    found = find_kinks(f)
    if found.smooth and (value := _square(f, *known, law.params)) is not None:
        return jnp.asarray(value, law.dtype)
    if len(found.places) > MANY:
        _take("QMC")
        return _numerical((f,), law, "qmc", False)
    _take("quadrature" if found.smooth else "quadrature split at kinks")
    kind = "mean" if found.places else "mean smooth"
    return _numerical((f,), law, kind, _priced(found))


def _square(
    f: Expr, m: Array | float, a: Array | float, params: Sequence[Array]
) -> Array | float | None:
    """A product of two functions of one leaf: a dual at the correlation 1."""
    match f:
        case Call("mul", (g, h)):
            value = closed_dual(g, h, m, a, m, a, a, params)
            if value is not None:
                _take(f"closed form: {closed_name(g, h)}")
            return value
    return None


def _two(factors: tuple[Expr, ...], law: _Law) -> Array:
    """A function of one leaf times a function of another."""
    found = [find_kinks(as_function(f, 2, len(law.params))) for f in factors]
    if _opposite(factors, law):
        _take("constant")
        return jnp.zeros((), law.dtype)
    if all(k.smooth for k in found):
        _take("Hermite series")
        return _numerical(factors, law, "hermite", True)
    if any(len(k.places) > _FEW_KINKS for k in found):
        _take("QMC")
        return _numerical(factors, law, "qmc", False)
    _take("quadrature split at kinks")
    return _numerical(factors, law, "pair", all(_priced(k) for k in found))


def _parities(factors: tuple[Expr, ...], law: _Law) -> tuple[int, int]:
    """The parities of two functions of one leaf each, 0 where a mean is not 0."""
    first, second = (
        parity(as_function(f, 2, len(law.params))) if law.means[i] is None else 0
        for i, f in enumerate(factors)
    )
    return first, second


def _opposite(factors: tuple[Expr, ...], law: _Law) -> bool:
    """Whether one function is odd and the other even, so that the mean is 0."""
    return -1 == np.prod(_parities(factors, law))


def _priced(found: Kinks) -> bool:
    """Whether Price's theorem has all it needs."""
    return (
        found.complete and found.continuous and len(found.slopes) == len(found.places)
    )


def _several(factors: tuple[Expr, ...], law: _Law) -> Array:
    """Functions that do not come apart."""
    whole = multiply(factors)
    found = [leaf_kinks(whole, i, law.d) for i in range(law.d)]
    smooth = all(k.smooth for k in found)
    if law.d == 2 and not smooth and all(k.complete for k in found):
        _take("quadrature split at kinks")
        return _numerical(factors, law, "pair", False)
    if law.d <= 3 and smooth:
        _take("tensor quadrature")
        return _numerical(factors, law, "tensor", True)
    _take("QMC")
    return _numerical(factors, law, "qmc", smooth)


def _peel(alone: dict[int, Expr], joint: list[Expr], law: _Law) -> Array | None:
    """Integrate out a leaf v that enters as a polynomial, by Stein's lemma.

    E[v P] = m E[P] + sum_j Cov(v, z_j) E[dP/dz_j], v among the z_j.
    """
    for v, f in alone.items():
        if any(v in used(g) for g in joint):
            continue
        terms = polynomial(f, law.d)
        degree = 0 if terms is None else max((p[v] for p in terms), default=0)
        rest = (*(g for i, g in alone.items() if i != v), *joint)
        if (
            terms
            and 0 < degree <= _MAX_PEELED_DEGREE
            and _smooth_enough(rest, degree, law)
        ):
            parts = [_stein(v, p[v], (c, *rest), law) for p, c in terms.items()]
            return sum(parts[1:], parts[0])
    return None


def _stein(v: int, power: int, rest: tuple[Expr, ...], law: _Law) -> Array:
    if power == 0:
        return _product(rest, law)
    total = None
    lower = (*rest, *[Arg(v)] * (power - 1))
    if law.means[v] is not None:
        total = law.means[v] * _product(lower, law)
    for j in range(law.d):
        c = law.cov[v][j]
        for term in [] if c is None else derive(lower, j):
            value = c * _product(term, law)
            total = value if total is None else total + value
    return jnp.zeros((), law.dtype) if total is None else total


def _smooth_enough(rest: tuple[Expr, ...], times: int, law: _Law) -> bool:
    """Whether the factors may be differentiated that often without delta functions."""
    for f in rest:
        leaves = [i for i in used(f) if i < law.d]
        found = [leaf_kinks(f, i, law.d) for i in leaves]
        ok = all(k.smooth for k in found)
        if not ok and times == 1 and len(leaves) == 1:
            ok = all(k.continuous and k.complete for k in found)
        try:
            for i in leaves if ok else ():
                derive((f,), i)
        except UnsupportedError:
            return False
        if not ok:
            return False
    return True


def _expand(factors: tuple[Expr, ...], joint: list[Expr], law: _Law) -> Array | None:
    """Multiply a sum out, when that takes functions of several leaves apart."""
    for f in joint:
        terms = summands(f)
        apart = [merge((t,), law.d)[2] for t in terms]
        if 1 < len(terms) <= _MAX_TERMS and all(f not in left for left in apart):
            rest = tuple(g for g in factors if g is not f)
            parts = [_product((t, *rest), law) for t in terms]
            return sum(parts[1:], parts[0])
    return None


def _numerical(factors: tuple[Expr, ...], law: _Law, kind: str, price: bool) -> Array:
    """Run a numerical rule, with Price's derivative where it holds."""
    d = law.d
    pairs = tuple(
        (i, j) for i in range(d) for j in range(i, d) if law.cov[i][j] is not None
    )
    centred = tuple(m is None for m in law.means)
    function = _compiled(factors, centred, pairs, kind, price, law.accuracy)
    entries = [law.cov[i][j] for i, j in pairs]
    return function(*(law.mean(i) for i in range(d)), *entries, *law.params)


@functools.lru_cache(maxsize=4096)
def _compiled(
    factors: tuple[Expr, ...],
    centred: tuple[bool, ...],
    pairs: tuple[tuple[int, int], ...],
    kind: str,
    price: bool,
    accuracy: Accuracy,
) -> Callable[..., Array]:
    d = len(centred)

    def law_of(means: Sequence[Array], cov: Any, params: Sequence[Array]) -> _Law:
        rows = tuple(tuple(row) for row in cov)
        known = (None if zero else m for m, zero in zip(means, centred, strict=True))
        return _Law(tuple(known), rows, tuple(params), accuracy)

    def value(means: Sequence[Array], cov: Any, params: Sequence[Array]) -> Array:
        return _RULES[kind](factors, law_of(means, cov, params))

    def expectation(
        other: tuple[Expr, ...],
        means: Sequence[Array],
        cov: Any,
        params: Sequence[Array],
    ) -> Array:
        return _product(other, law_of(means, cov, params))

    def kinks(
        leaf: int, means: Sequence[Array], cov: Any, params: Sequence[Array]
    ) -> Array | None:
        return _kink_terms(factors, leaf, law_of(means, cov, params))

    usable = price and _differentiable(factors, d, pairs)
    if usable:
        run = jax.jit(value)
        return with_derivative(run, expectation, factors, d, pairs, kinks)
    return jax.jit(lambda *flat: value(*_unpack(flat, d, pairs)))


def _unpack(flat: Sequence[Array], d: int, pairs: tuple[tuple[int, int], ...]) -> Any:
    cov: list[list[Array | None]] = [[None] * d for _ in range(d)]
    for (i, j), entry in zip(pairs, flat[d:], strict=False):
        cov[i][j] = cov[j][i] = entry
    return list(flat[:d]), cov, list(flat[d + len(pairs) :])


def _differentiable(
    factors: tuple[Expr, ...], d: int, pairs: tuple[tuple[int, int], ...]
) -> bool:
    """Whether the symbolic derivatives of Price's theorem exist."""
    try:
        for i in range(d):
            derive(factors, i)
        for i, j in pairs:
            for product in derive(factors, i):
                derive(product, j)
    except UnsupportedError:
        return False
    return True


def _kink_terms(factors: tuple[Expr, ...], leaf: int, law: _Law) -> Array | None:
    """The sum of delta N(t; m, a) E[rest | t] over the kinks t of one leaf."""
    if law.d > 2 or len(factors) != law.d:
        return None
    f, *others = [
        as_function(factors[i], law.d, len(law.params))
        for i in (leaf, *(k for k in range(law.d) if k != leaf))
    ]
    found = find_kinks(f)
    mean, variance = law.mean(leaf), law.covariance(leaf, leaf)
    other = 1 - leaf

    def rest(m: Array, a: Array) -> Array:
        if not others:
            return jnp.ones((), law.dtype)
        one = dataclasses.replace(law, means=(m,), cov=((a,),))
        return _product((others[0],), one)

    v = (mean, variance, jnp.zeros((), law.dtype))
    if others:
        v = (law.mean(other), law.covariance(other, other), law.covariance(0, 1))
    terms = [
        jump * density_times(rest, t.value, mean, variance, v)
        for t, jump in zip(found.places, found.slopes, strict=False)
        if isinstance(t, Const) and jump != 0.0
    ]
    return sum(terms[1:], terms[0]) if terms else None


def _mean_rule(factors: tuple[Expr, ...], law: _Law) -> Array:
    places = find_kinks(factors[0]).places
    args = (law.mean(0), law.covariance(0, 0), law.params, law.accuracy.level)
    if places:
        return mean_split(factors[0], places, *args)
    return mean_smooth(factors[0], *args)


def _pair_law(
    law: _Law,
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array], tuple[Array, ...], int]:
    means = (law.mean(0), law.mean(1))
    cov = (law.covariance(0, 0), law.covariance(1, 1), law.covariance(0, 1))
    return means, cov, law.params, law.accuracy.level


def _hermite_rule(factors: tuple[Expr, ...], law: _Law) -> Array:
    f, g = (as_function(h, 2, len(law.params)) for h in factors)
    first, second = _parities(factors, law)
    return hermite_dual(f, g, *_pair_law(law), first if first == second else 0)


def _pair_rule(factors: tuple[Expr, ...], law: _Law) -> Array:
    whole = multiply(factors)
    apart = len(factors) == 2 and all(len(used(f) & {0, 1}) == 1 for f in factors)
    owners = factors if apart else (whole, whole)
    first, second = (leaf_kinks(f, i, 2).places for i, f in enumerate(owners))
    return pair_split(whole, (first, second), *_pair_law(law))


def _tensor_rule(factors: tuple[Expr, ...], law: _Law) -> Array:
    points, weights = tensor_rule(law.d, law.accuracy.level)
    return _points_rule(factors, law, points, weights)


def _qmc_rule(factors: tuple[Expr, ...], law: _Law) -> Array:
    log2_count = LOG2_POINTS[law.accuracy.level]
    if law.accuracy.scramble == _LAST_PARAMETER:
        scramble = law.params[-1].astype(int)
        table = jnp.asarray(all_normal_points(law.d, log2_count), law.dtype)
        points = table[scramble]
    else:
        points = normal_points(law.d, log2_count, law.accuracy.scramble)
    weights = points[:, 0] * 0.0 + 2.0**-log2_count
    return _points_rule(factors, law, points, weights)


def _points_rule(
    factors: tuple[Expr, ...], law: _Law, points: Any, weights: Any
) -> Array:
    means = [law.mean(i) for i in range(law.d)]
    root = psd_root(law.cov)
    return weighted_sum(multiply(factors), points, weights, means, root, law.params)


_RULES: dict[str, Callable[[tuple[Expr, ...], _Law], Array]] = {
    "mean": _mean_rule,
    "mean smooth": _mean_rule,
    "hermite": _hermite_rule,
    "pair": _pair_rule,
    "tensor": _tensor_rule,
    "qmc": _qmc_rule,
}
