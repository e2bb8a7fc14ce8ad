"""Expressions as sums of products of linear forms, their signs, and powers of squares.

Every term is a coefficient times affine forms l(z) of the Gaussian leaves, signs
sign(l(z)), and powers q(z)^p of positive quadratic forms q(z) = z^T Q z + c. Rectifiers
are such terms, relu(x) = (x + |x|) / 2 and |x| = x sign(x), and because q > 0 what they
rectify may be divided by its root: sign(l q^p) = sign(l). So is what batch
normalisation makes of its batch, and its derivatives.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..scalar import Arg, Call, Const, Expr, call
from ._factors import used

ZERO, ONE, HALF = Const(0.0), Const(1.0), Const(0.5)

# The sum of squares of a batch has a term for every element of it.
_MAX_TERMS = 512
_MAX_PRODUCTS = 8 * _MAX_TERMS
_MAX_POWER = 8
_COMPARISONS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}
_DIGITS = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The affine form `shift` + sum of coefficient * leaf; not a constant."""

    terms: tuple[tuple[int, Expr], ...]
    shift: Expr = ZERO


@dataclasses.dataclass(frozen=True, slots=True)
class Quadratic:
    """The quadratic form z^T Q z + constant of some leaves, with trace(Q) = 1.

    Attributes:
        leaves: the leaves z that it reads.
        matrix: the entries of Q, row by row; Q has no negative eigenvalue.
        constant: an expression in the parameters.
    """

    leaves: tuple[int, ...]
    matrix: tuple[float, ...]
    constant: Expr

    def root(self) -> np.ndarray:
        """F with Q = F F^T, of full column rank: shape (leaves, rank)."""
        m = len(self.leaves)
        q = np.reshape(self.matrix, (m, m))
        if not np.any(q - np.diag(np.diag(q))):
            # No eigenvector of a degenerate eigenvalue mixes what is apart.
            return np.sqrt(q)[:, np.diag(q) > 0]
        values, vectors = np.linalg.eigh(q)
        kept = values > 64 * m * np.finfo(float).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """A product, without its coefficient.

    Attributes:
        forms: the affine forms, each as often as it is a factor; sorted numbers.
        signs: the forms whose signs are factors.
        powers: quadratic forms with their exponents, sorted.
    """

    forms: tuple[int, ...] = ()
    signs: frozenset[int] = frozenset()
    powers: tuple[tuple[int, float], ...] = ()


Sum = dict[Term, Expr]
"""Terms with their coefficients, expressions in the parameters."""


@dataclasses.dataclass(frozen=True, eq=False)
class Gated:
    """A sum of terms, with the forms that they number."""

    forms: tuple[Form, ...]
    quadratics: tuple[Quadratic, ...]
    terms: Sum


@functools.lru_cache(maxsize=256)
def gated(factors: tuple[Expr, ...], d: int) -> Gated | None:
    """The product of expressions of `d` leaves as such a sum; None where it is none."""
    reader = _Reader(d)
    total: Sum | None = {Term(): ONE}
    for f in factors:
        total = reader.product(total, reader.read(f))
    if total is None:
        return None
    return Gated(tuple(reader.forms), tuple(reader.quadratics), total)


@functools.lru_cache(maxsize=1024)
def inverse_of(e: Expr, d: int) -> tuple[Quadratic, ...]:
    """The quadratic forms in 1 / e, where that is a sum of terms."""
    reader = _Reader(d)
    found = reader.inverse(e) or {}
    forms = list(reader.quadratics)
    numbers = {q for term in found for q, p in term.powers if p < 0}
    return tuple(forms[q] for q in sorted(numbers))


class _Reader:
    """Reads expressions of `d` leaves; forms and quadratic forms are numbered."""

    def __init__(self, d: int) -> None:
        self._d = d
        self.forms: dict[Form, int] = {}
        self.quadratics: dict[Quadratic, int] = {}
        self._known: dict[Expr, Sum | None] = {}

    def read(self, e: Expr) -> Sum | None:
        """The sum that `e` is, or None."""
        if e not in self._known:
            value = self._read(e)
            many = value is not None and len(value) > _MAX_TERMS
            self._known[e] = None if many else value
        return self._known[e]

    def _read(self, e: Expr) -> Sum | None:
        if not any(i < self._d for i in used(e)):
            return _constant(e)
        match e:
            case Arg(i):
                return {Term((self._number(Form(((i, ONE),))),)): ONE}
            case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
                # A guard that lets NaN through; elsewhere it is `value`.
                return self.read(value)
            case Call("select", (which, no, yes)):
                on = self._indicator(which)
                change = self._added(self.read(yes), _scaled(self.read(no), -1.0))
                return self._added(self.read(no), self.product(on, change))
            case Call("pow", (x, Const(n))):
                return self._power(self.read(x), n)
            case Call("div", (x, y)):
                return self.product(self.read(x), self.inverse(y))
            case Call(op, (x,)):
                return self._unary(op, self.read(x))
            case Call(op, (x, y)):
                return self._binary(op, self.read(x), self.read(y))
        return None

    def _unary(self, op: str, x: Sum | None) -> Sum | None:
        match op:
            case "neg":
                return _scaled(x, -1.0)
            case "sqrt":
                return self._power(x, 0.5)
            case "rsqrt":
                return self._power(x, -0.5)
            case "abs":
                return self._absolute(x)
            case "sign":
                return self._sign(x)
            case "not":
                return self._added(_constant(ONE), _scaled(x, -1.0))
        return None

    def _binary(self, op: str, x: Sum | None, y: Sum | None) -> Sum | None:
        match op:
            case "add":
                return self._added(x, y)
            case "sub":
                return self._added(x, _scaled(y, -1.0))
            case "mul" | "and":
                return self.product(x, y)
            case "or":
                both = _scaled(self.product(x, y), -1.0)
                return self._added(self._added(x, y), both)
            case "max" | "min":
                apart = self._absolute(self._added(x, _scaled(y, -1.0)))
                apart = apart if op == "max" else _scaled(apart, -1.0)
                return _scaled(self._added(self._added(x, y), apart), 0.5)
        if op in _COMPARISONS:
            side = self._sign(self._added(x, _scaled(y, -1.0)))
            side = _scaled(side, 0.5 * _COMPARISONS[op])
            return self._added(_constant(HALF), side)
        return None

    def inverse(self, e: Expr) -> Sum | None:
        """1 / e, with products and powers kept apart rather than multiplied out."""
        match e:
            case Call("mul", (x, y)):
                return self.product(self.inverse(x), self.inverse(y))
            case Call("pow", (x, Const(n))):
                return self._power(self.read(x), -n)
        return self._power(self.read(e), -1.0)

    def _indicator(self, which: Expr) -> Sum | None:
        """A condition as a sum that is 0 or 1."""
        match which:
            case Call("ne", (x, Const(0.0))):
                return self._indicator(x)
            case Call(op, args) if op in _COMPARISONS:
                return self.read(which)
            case Call("not" | "and" | "or", args):
                known = all(self._indicator(a) is not None for a in args)
                return self.read(which) if known else None
        return None

    def _number(self, form: Form) -> int:
        return self.forms.setdefault(form, len(self.forms))

    def _added(self, x: Sum | None, y: Sum | None) -> Sum | None:
        """The sum, in which linear forms that stand beside the same are one form."""
        if x is None or y is None:
            return None
        total = dict(x)
        for term, c in y.items():
            total[term] = _plus(total.get(term, ZERO), c)
        linear: dict[Term, list[tuple[int, Expr]]] = {}
        for term, c in total.items():
            if len(term.forms) == 1:
                beside = dataclasses.replace(term, forms=())
                linear.setdefault(beside, []).append((term.forms[0], c))
        for beside, parts in linear.items():
            if len(parts) > 1:
                for number, _ in parts:
                    del total[dataclasses.replace(beside, forms=(number,))]
                scale, form = self._combined(parts)
                if form.terms:
                    numbers = (self._number(form),)
                    total[dataclasses.replace(beside, forms=numbers)] = scale
        return {t: c for t, c in total.items() if c != ZERO}

    def _combined(
        self, parts: Sequence[tuple[int, Expr]], shift: Expr = ZERO
    ) -> tuple[Expr, Form]:
        """A combination of forms: a scale times a form that starts with 1 * leaf."""
        forms = list(self.forms)
        sums: dict[int, Expr] = {}
        for number, c in parts:
            shift = _plus(shift, _times(c, forms[number].shift))
            for leaf, own in forms[number].terms:
                sums[leaf] = _plus(sums.get(leaf, ZERO), _times(c, own))
        terms = sorted((i, c) for i, c in sums.items() if c != ZERO)
        if not terms or not isinstance(terms[0][1], Const):
            return ONE, Form(tuple(terms), shift)
        scale = terms[0][1]
        inverse = Const(1.0 / scale.value)
        scaled = ((i, _times(c, inverse)) for i, c in terms[1:])
        return scale, Form(((terms[0][0], ONE), *scaled), _times(shift, inverse))

    def product(self, x: Sum | None, y: Sum | None) -> Sum | None:
        """The product, multiplied out."""
        if x is None or y is None or len(x) * len(y) > _MAX_PRODUCTS:
            return None
        total: Sum = {}
        for one, c in x.items():
            for two, e in y.items():
                term = Term(
                    tuple(sorted(one.forms + two.forms)),
                    one.signs ^ two.signs,
                    _powers(one.powers + two.powers),
                )
                total[term] = _plus(total.get(term, ZERO), _times(c, e))
        return self._added(total, {})

    def _single(self, x: Sum | None) -> tuple[Term, Expr] | None:
        """One product; an affine function counts as one."""
        if not x:
            return None
        if len(x) == 1:
            return next(iter(x.items()))
        first = next(iter(x))
        if any(t.signs or len(t.forms) > 1 or t.powers != first.powers for t in x):
            return None
        shift = next((c for t, c in x.items() if not t.forms), ZERO)
        parts = [(t.forms[0], c) for t, c in x.items() if t.forms]
        scale, form = self._combined(parts, shift)
        return Term((self._number(form),), powers=first.powers), scale

    def _absolute(self, x: Sum | None) -> Sum | None:
        found = self._single(x)
        if found is None:
            return None
        term, c = found
        return {dataclasses.replace(term, signs=_odd(term.forms)): call("abs", c)}

    def _sign(self, x: Sum | None) -> Sum | None:
        found = self._single(x)
        if found is None:
            return None
        term, c = found
        return {Term(signs=term.signs ^ _odd(term.forms)): call("sign", c)}

    def _power(self, x: Sum | None, p: float) -> Sum | None:
        if x is None:
            return None
        if p in range(_MAX_POWER + 1):
            total: Sum | None = {Term(): ONE}
            for _ in range(int(p)):
                total = self.product(total, x)
            return total
        if len(x) == 1:
            ((term, c),) = x.items()
            if not term.forms and not term.signs:
                powers = tuple((q, s * p) for q, s in term.powers)
                return {Term(powers=powers): _raised(c, p)}
        found = self._quadratic(x)
        if found is None:
            return None
        scale, form, outer = found
        number = self.quadratics.setdefault(form, len(self.quadratics))
        powers = _powers(((number, p), *((q, s * p) for q, s in outer)))
        return {Term(powers=powers): Const(scale**p)}

    def _quadratic(
        self, x: Sum
    ) -> tuple[float, Quadratic, tuple[tuple[int, float], ...]] | None:
        """A sum that is a positive number times a quadratic form times old powers."""
        if not x:
            return None
        outer = next(iter(x)).powers
        if any(t.signs or t.powers != outer or len(t.forms) not in (0, 2) for t in x):
            return None
        forms = list(self.forms)
        read = {i for t in x for f in t.forms for i, _ in forms[f].terms}
        leaves = tuple(sorted(read))
        constant, q = ZERO, np.zeros((len(leaves), len(leaves)))
        for term, c in x.items():
            if not term.forms:
                constant = c
                continue
            rows = [_numbers(forms[f], leaves) for f in term.forms]
            if not isinstance(c, Const) or rows[0] is None or rows[1] is None:
                return None
            q += c.value * np.outer(rows[0], rows[1])
        q, scale = (q + q.T) / 2.0, float(np.trace(q))
        negative = isinstance(constant, Const) and constant.value < 0.0
        if scale <= 0.0 or negative or np.linalg.eigvalsh(q)[0] < -1e-12 * scale:
            return None
        # The same form spelled in two ways differs in its last digits.
        entries = tuple(float(v) for v in np.round(q / scale, _DIGITS).ravel())
        constant = _times(Const(1.0 / scale), constant)
        return scale, Quadratic(leaves, entries, constant), outer


def _numbers(form: Form, leaves: Sequence[int]) -> np.ndarray | None:
    """The coefficients of a linear form, where they are numbers."""
    row = np.zeros(len(leaves))
    for leaf, c in form.terms:
        if not isinstance(c, Const):
            return None
        row[leaves.index(leaf)] = c.value
    return row if form.shift == ZERO else None


def _constant(e: Expr) -> Sum:
    return {} if e == ZERO else {Term(): e}


def _scaled(x: Sum | None, factor: float) -> Sum | None:
    if x is None:
        return None
    return {t: _times(Const(factor), c) for t, c in x.items()}


def _odd(numbers: Iterable[int]) -> frozenset[int]:
    return frozenset(i for i, k in Counter(numbers).items() if k % 2)


def _powers(parts: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    total: dict[int, float] = {}
    for number, p in parts:
        total[number] = total.get(number, 0.0) + p
    return tuple(sorted((q, p) for q, p in total.items() if p))


def _times(x: Expr, y: Expr) -> Expr:
    if isinstance(x, Const) and isinstance(y, Const):
        return Const(x.value * y.value)
    return ZERO if ZERO in (x, y) else call("mul", x, y)


def _plus(x: Expr, y: Expr) -> Expr:
    if isinstance(x, Const) and isinstance(y, Const):
        return Const(x.value + y.value)
    return call("add", x, y)


def _raised(c: Expr, p: float) -> Expr:
    return call("div", ONE, c) if p == -1.0 else call("pow", c, Const(p))
