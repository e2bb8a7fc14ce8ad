"""Expectations of products of lines, as expectations over groups of Gaussian leaves.

Every line is a sum of products of *atoms*: functions of Gaussian lines, its leaves. For
a product of lines, atoms that share or correlate leaves form a group; groups are
independent and their expectations multiply. A group that is one centred Gaussian to an
odd power is a structural zero, and so is the whole term: this is how gradient
independence, and the vanishing of cross terms, come out by themselves.

Lines inside a product are not taken apart before it is needed: the expectation of one
or two that are independent of the rest is a question of its own, which is remembered.
So a recursion over gates (h' = (1 - z) h + z g) costs a question a pair of steps, and
not the expansion of a polynomial. Everything here is given the draws, if there are any.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .. import gaussian, scalar
from .._errors import UnsupportedError
from ..program import LinComb, Moment, Nonlin, appearance, compose
from ..scalar import Arg, Call, Const, Expr
from ._draws import Family, NeedsDraws
from ._index import Index, Letter, View, clipped, constant
from ._product import (
    Factor,
    Product,
    Sum,
    as_factor,
    compact,
    is_zero,
    materialise,
    total_of,
)
from ._route import COARSE

if TYPE_CHECKING:
    from ._engine import Engine

# Beyond these sizes a product of sums is kept whole, as one function of its leaves.
_MAX_PIECES = 32
_MAX_LEAVES = 256

# From so many leaves at fixed positions on, covariances are taken from whole families.
_MANY_POINTS = 8

Asked = tuple[int, "int | Moment", tuple[Index, ...]]
"""A side, a line of it (or a Moment's function), and the indices it is read at."""


@dataclasses.dataclass(frozen=True, eq=False)
class Atom:
    """A function of Gaussian leaves: Arg(0..) are the leaves, the rest parameters."""

    fn: Expr
    leaves: tuple[View, ...]
    params: tuple[Factor, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A product of atoms, whole lines and coefficients, summed over letters."""

    atoms: tuple[Atom, ...] = ()
    factors: tuple[Factor, ...] = ()
    sums: tuple[Letter, ...] = ()
    whole: tuple[View, ...] = ()

    def __mul__(self, other: "Piece") -> "Piece":
        return Piece(
            self.atoms + other.atoms,
            self.factors + other.factors,
            self.sums + other.sums,
            self.whole + other.whole,
        )


def expectation(engine: "Engine", asked: Sequence[Asked]) -> Sum:
    """E of the product of the lines asked for, over the letters of their indices."""
    pieces = [Piece()]
    for one in asked:
        pieces = [p * q for p in pieces for q in _Expansion(engine).asked(one)]
    return _total(engine, pieces)


def by_parts(engine: "Engine", u: View, v: View) -> Sum | None:
    """E[Z^u Z^v] with only u taken apart; None if it is no sum of products of lines.

    What is asked of its parts and v is remembered: a recursion costs a step a pair.
    """
    parts = _parts(engine, u)
    if parts is None:
        return None
    whole = _Expansion(engine).view(v)
    return _total(engine, [p * q for p in parts for q in whole])


def _parts(engine: "Engine", view: View) -> list[Piece] | None:
    """A line as a sum of products of whole lines, None where it is none."""
    key = (view.side, view.ref)
    if key in engine.opaque:
        return None
    pieces = _Expansion(engine).opened(view)
    if all(a.fn == Arg(0) for p in pieces for a in p.atoms):
        return pieces
    engine.opaque.add(key)
    return None


def _total(engine: "Engine", pieces: Sequence[Piece]) -> Sum:
    total: Sum = ()
    for piece in pieces:
        total += _settled(engine, piece)
    return total


def _settled(engine: "Engine", piece: Piece) -> Sum:
    """The mean of a piece: whole lines are asked for, or taken apart if need be."""
    found: Sum = (Product(piece.factors, (), piece.sums),)
    left: list[Atom] = []
    for atoms, whole in _apart(engine, piece):
        views = [*whole, *(a.leaves[0] for a in atoms if a.fn == Arg(0))]
        if not whole:
            left += atoms
        elif len(views) == len(atoms) + len(whole) <= 2:
            one = engine.second_given(*views) if views[1:] else engine.mean(*views)
            found = tuple(p.with_product(q) for p in found for q in one)
        else:
            view, parts = _latest(engine, whole)
            rest = list(piece.whole)
            rest.remove(view)
            piece = dataclasses.replace(piece, whole=tuple(rest))
            return _total(engine, [piece * one for one in parts])
        if not found:
            return ()
    if not left:
        return found
    factors = _atoms(engine, left)
    return () if factors is None else tuple(p.times(*factors) for p in found)


def _latest(engine: "Engine", whole: Sequence[View]) -> tuple[View, list[Piece]]:
    """The latest line that is a sum of products, or the latest at all, taken apart."""
    ordered = sorted(whole, key=lambda view: (view.ref, view.side), reverse=True)
    for view in ordered:
        if (parts := _parts(engine, view)) is not None:
            return view, parts
    return ordered[0], _Expansion(engine).opened(ordered[0])


_Apart = tuple[list[Atom], list[View]]


def _apart(engine: "Engine", piece: Piece) -> list[_Apart]:
    """The atoms and whole lines of a piece, in parts that are independent."""
    if not piece.whole:
        return [(list(piece.atoms), [])]
    groups: list[tuple[frozenset[Family], _Apart]] = []
    items: list[tuple[Sequence[View], _Apart]] = [
        *((a.leaves, ([a], [])) for a in piece.atoms),
        *(((w,), ([], [w])) for w in piece.whole),
    ]
    for views, one in items:
        reach = frozenset().union(*(engine.reach(v.side, v.ref) for v in views))
        joined = [g for g in groups if g[0] & reach]
        groups = [g for g in groups if not g[0] & reach]
        atoms, whole = one
        for more, (some, others) in joined:
            reach, atoms, whole = reach | more, some + atoms, others + whole
        groups.append((reach, (atoms, whole)))
    return [one for _, one in groups]


def _atoms(engine: "Engine", atoms: Sequence[Atom]) -> tuple[Factor, ...] | None:
    """The mean of a product of atoms, a factor a group; None for zero."""
    leaves: dict[tuple[Any, ...], int] = {}
    views: list[View] = []
    placed: list[tuple[Atom, tuple[int, ...]]] = []
    for atom in atoms:
        numbers = []
        for view in atom.leaves:
            key = (view.side, view.ref, view.indices)
            if key not in leaves:
                leaves[key] = len(views)
                views.append(view)
            numbers.append(leaves[key])
        placed.append((atom, tuple(numbers)))
    read = {a for view in views for i in view.indices for a in i.letters}
    read.update(a for atom in atoms for f in atom.params for a in f.letters())
    read.update(engine.batches(*(view.side for view in views)))
    letters = tuple(sorted(read))
    moments = _Moments(engine, views, letters)
    factors: list[Factor] = []
    for group in _groups(placed, moments):
        value = _group(engine, group, moments, letters)
        if value is None:
            return None
        factors.append(_as_factor(engine, value, letters))
    return tuple(factors)


_Line = tuple[int, int]
"""A side and a line of it."""


class _Moments:
    """Means and covariances of the leaves, at the letters of the piece."""

    def __init__(
        self, engine: "Engine", views: Sequence[View], letters: tuple[Letter, ...]
    ) -> None:
        self._engine, self._views, self._letters = engine, views, letters
        self._cov: dict[tuple[int, int], Any] = {}
        self._families: dict[tuple[_Line, _Line], Any] = {}
        self._sizes: dict[_Line, Any] = {}
        self._points: dict[int, tuple[int, ...]] = {}
        places: dict[_Line, dict[int, tuple[int, ...]]] = {}
        for i, view in enumerate(views):
            if not any(index.letters for index in view.indices):
                at = tuple(int(index.table) for index in view.indices)
                places.setdefault((view.side, view.ref), {})[i] = at
        for (side, ref), found in places.items():
            size = math.prod(engine.shape(side, ref))
            if len(found) >= max(_MANY_POINTS, size / 2):
                self._points |= found

    def families(self, numbers: Sequence[int]) -> frozenset[Family]:
        """The families of leaves."""
        views = [self._views[i] for i in numbers]
        reach = (self._engine.reach(view.side, view.ref) for view in views)
        return frozenset().union(*reach)

    def mean(self, i: int) -> Any:
        """The mean of leaf i; the Python number 0.0 for a structural zero."""
        value = materialise(
            self._engine.mean(self._views[i]), self._engine.letters, self._letters
        )
        return 0.0 if value is None else value

    def cov(self, i: int, j: int) -> Any:
        """The covariance of leaves i and j; None for a structural zero."""
        key = (min(i, j), max(i, j))
        if key not in self._cov:
            if i in self._points and j in self._points:
                self._cov[key] = self._at_points(*key)
            else:
                total = self._engine.cov(self._views[key[0]], self._views[key[1]])
                self._cov[key] = materialise(total, self._engine.letters, self._letters)
        return self._cov[key]

    def distance(self, i: int, j: int) -> Any:
        """E(u - v)^2 / 2 of leaves i and j, where that is known and matters."""
        distances = self._engine.distances
        if not distances.matter:
            return None
        total = distances.of(self._views[i], self._views[j])
        if total is None:
            return None
        found = materialise(total, self._engine.letters, self._letters)
        return jnp.zeros((), self._engine.dtype) if found is None else found

    def check_exists(
        self,
        functions: Sequence[Expr],
        numbers: Sequence[int],
        means: Sequence[Any],
        cov: Sequence[Sequence[Any]],
        params: Sequence[Any],
    ) -> None:
        """Refuse an expectation of functions of some leaves that does not exist."""

        def where(i: int) -> str:
            line = self._engine.line(self._views[numbers[i]])
            return f"line `{line.name}`{_at(line.source)}"

        gaussian.check_exists(
            functions,
            means,
            cov,
            params,
            lambda i: self._size(numbers[i]),
            where,
        )

    def _size(self, i: int) -> Any:
        """The variance of leaf i before what cancels in it has cancelled.

        Only the order of it matters: positions of one line have that of the first.
        """
        key = (self._views[i].side, self._views[i].ref)
        if key not in self._sizes:
            self._sizes[key] = self._size_now(i)
        return self._sizes[key]

    def _size_now(self, i: int) -> Any:
        engine, view, total = self._engine, self._views[i], 0.0
        line = engine.line(view)
        if not isinstance(line, LinComb):
            return self.cov(i, i)
        for coefficients, sums, inner in engine.terms(view, line):
            if inner is not None:
                out = (*self._letters, *sums)
                variance, scale = (
                    materialise(one, engine.letters, out)
                    for one in (engine.cov(inner, inner), (Product(coefficients),))
                )
                if variance is not None:
                    # Not traced, and NumPy compiles nothing.
                    size = np.sqrt(np.maximum(np.asarray(variance), 0.0))
                    part = np.abs(np.asarray(scale)) * size
                    sizes = (engine.letters.sizes[a] for a in sums)
                    own = part.shape[: len(self._letters)]
                    part = np.broadcast_to(part, (*own, *sizes))
                    total = total + part.sum(axis=tuple(range(len(own), part.ndim)))
        return total**2

    def _at_points(self, i: int, j: int) -> Any:
        """A covariance that is an entry of that of two whole families of lines."""
        u, v = self._views[i], self._views[j]
        key = ((u.side, u.ref), (v.side, v.ref))
        if key not in self._families:
            self._families[key] = self._engine.covariances(*key)
        whole = self._families[key]
        if whole is None:
            return None
        entry = whole[self._points[i] + self._points[j]]
        # A zero that is known is one by structure: it keeps groups apart.
        return None if is_zero(entry) else entry.reshape((1,) * len(self._letters))


_Placed = tuple[Atom, tuple[int, ...]]


def _groups(placed: Sequence[_Placed], moments: _Moments) -> list[list[_Placed]]:
    """Atoms joined when they share a leaf or have correlated leaves."""
    groups: list[list[_Placed]] = []
    for item in placed:
        joined = [
            g for g in groups if any(_connected(item, other, moments) for other in g)
        ]
        groups = [g for g in groups if g not in joined]
        groups.append([x for g in joined for x in g] + [item])
    return groups


def _connected(x: _Placed, y: _Placed, moments: _Moments) -> bool:
    return any(i == j or moments.cov(i, j) is not None for i in x[1] for j in y[1])


def _group(
    engine: "Engine",
    group: Sequence[_Placed],
    moments: _Moments,
    letters: tuple[Letter, ...],
) -> Any:
    numbers = sorted({i for _, ns in group for i in ns})
    if engine.draws is not None and len(numbers) > _MAX_LEAVES:
        raise NeedsDraws(moments.families(numbers))
    means = [moments.mean(i) for i in numbers]
    linear = all(atom.fn == Arg(0) and len(ns) == 1 for atom, ns in group)
    centred = all(isinstance(m, float) and m == 0.0 for m in means)
    if linear and centred and len(group) % 2:
        return None
    if linear and len(group) == 1:
        return means[0]
    distance = moments.distance(*numbers) if len(numbers) == 2 and centred else None
    cov = [[moments.cov(i, j) for j in numbers] for i in numbers]
    if distance is not None:
        (a, _), (_, b) = cov
        cov[0][1] = cov[1][0] = 0.5 * (a + b) - distance
    params: list[Any] = []
    sampled = False
    functions: list[Expr] = []
    for atom, ns in group:
        at: list[Expr] = [Arg(numbers.index(i)) for i in ns]
        for factor in atom.params:
            at.append(Arg(len(numbers) + len(params)))
            params.append(materialise((Product((factor,)),), engine.letters, letters))
            sampled = sampled or engine.is_sampled(factor)
        functions.append(scalar.substitute(atom.fn, at))
    # A leaf of structurally zero variance is its mean.
    zero = jnp.zeros((1,) * len(letters), engine.dtype)
    for i in range(len(numbers)):
        cov[i][i] = zero if cov[i][i] is None else cov[i][i]
    moments.check_exists(functions, numbers, means, cov, params)
    families = functools.partial(moments.families, numbers)
    law = means, cov, params, distance
    return _value(engine, functions, law, families, sampled)


def _value(
    engine: "Engine",
    functions: Sequence[Expr],
    law: tuple[Sequence[Any], Sequence[Sequence[Any]], Sequence[Any], Any],
    families: Callable[[], frozenset[Family]],
    sampled: bool,
) -> Any:
    """The expectation of a product of functions, whose parameters may be samples."""
    (means, cov, params, distance), count = law, len(law[0])
    if engine.is_rough:
        value = gaussian.rough_mean(functions, means, cov, params)
        engine.take(functions, count, value, lambda: value)
        return value
    # One number for every sample is no better found than by a sample of it.
    many = engine.draws is not None and count > engine.draws.alone
    if (sampled or many) and not gaussian.is_exact(functions, count):
        if sampled or "QMC" in gaussian.route(functions, count):
            raise NeedsDraws(families())
    value = gaussian.expect(functions, means, cov, params, engine.accuracy, distance)

    def coarse() -> Any:
        return gaussian.expect(functions, means, cov, params, COARSE, distance)

    engine.take(functions, count, value, coarse)
    return value


def _mean(engine: "Engine", view: View) -> Factor | None:
    """The mean of a line; None for a structural zero."""
    letters = sorted({a for i in view.indices for a in i.letters})
    return compact(engine.mean(view), engine.letters, engine.given(letters))


def _as_factor(engine: "Engine", value: Any, letters: Sequence[Letter]) -> Factor:
    return as_factor(jnp.asarray(value, engine.dtype), engine.letters, letters)


class _Expansion:
    """The lines asked for, as sums of products of atoms."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def asked(self, one: Asked) -> list[Piece]:
        side, what, indices = one
        if isinstance(what, Moment):
            return self._function(what.fn, side, what, indices)
        return self.opened(View(side, what, indices))

    def view(self, view: View) -> list[Piece]:
        """A line inside a product; a function or a combination stays whole."""
        engine = self._engine
        mask, view = self.unmask(view)
        if engine.is_still(view.side, view.ref):
            value = _mean(engine, view)
            return [] if value is None else [Piece((), (*mask, value))]
        if engine.is_gaussian(view.side, view.ref):
            return [Piece((Atom(Arg(0), (view,)),), mask)]
        return [Piece((), mask, (), (view,))]

    def opened(self, view: View) -> list[Piece]:
        """A function or a combination taken apart."""
        engine = self._engine
        mask, inside = self.unmask(view)
        line = engine.line(inside)
        if isinstance(line, Nonlin):
            pieces = self._function(line.fn, inside.side, line, inside.indices)
            return [Piece((), mask) * p for p in pieces]
        if not engine.is_mixed(inside):
            return self.view(view)
        pieces = []
        for (inner, sums), found in self._terms(inside, line).items():
            coefficients = _added(engine, found)
            if coefficients is not None:
                piece = Piece((), mask + coefficients, sums)
                read = [Piece()] if inner is None else self.view(inner)
                pieces += [piece * p for p in read]
        return pieces

    def _terms(
        self, view: View, line: LinComb
    ) -> dict[tuple[View | None, tuple[Letter, ...]], list[tuple[Factor, ...]]]:
        """The terms of a combination, those of combinations in it among them.

        Terms that read one vector stand together, so that they can cancel.
        """
        engine, found = self._engine, {}
        for coefficients, sums, inner in engine.terms(view, line):
            below: dict = {(inner, ()): [()]}
            if inner is not None and engine.is_mixed(inner):
                below = self._terms(inner, engine.line(inner))
            for (read, more), rest in below.items():
                known = found.setdefault((read, sums + more), [])
                known += [coefficients + r for r in rest]
        return found

    def unmask(self, view: View) -> tuple[tuple[Factor, ...], View]:
        """A view that reads nothing outside, and the factor that makes up for it."""
        masks = tuple(
            Factor(np.asarray(i.table >= 0, float), self._engine.plain(i.letters))
            for i in view.indices
            if not i.is_inside
        )
        return masks, View(view.side, view.ref, tuple(clipped(i) for i in view.indices))

    def _function(
        self, fn: Expr, side: int, line: Nonlin | Moment, indices: tuple[Index, ...]
    ) -> list[Piece]:
        return _Function(self._engine, self, side, line, indices).pieces(fn)


class _Function:
    """A function line read at indices, as a sum of products where it splits."""

    def __init__(
        self,
        engine: "Engine",
        expansion: _Expansion,
        side: int,
        line: Nonlin | Moment,
        indices: tuple[Index, ...],
    ) -> None:
        self._engine, self._expansion = engine, expansion
        self._side, self._line, self._indices = side, line, indices

    def pieces(self, e: Expr) -> list[Piece]:
        """An expression of the arguments of the line."""
        if not self._vectors(e):
            factor = self._coefficient(e)
            return [] if factor is None else [Piece((), (factor,))]
        split = None if self._is_of_one_gaussian(e) else self._split(e)
        return [self._opaque(e)] if split is None else split

    def _split(self, e: Expr) -> list[Piece] | None:
        """The pieces of an operation that is linear in some argument, or None."""
        match e:
            case Arg(i):
                view = View(self._side, self._line.xs[i], self._indices)
                return self._expansion.view(view)
            case Call("neg", (x,)):
                return _negated(self.pieces(x))
            case Call("add", (x, y)) if self._vectors(x) != self._vectors(y):
                return self.pieces(x) + self.pieces(y)
            case Call("sub", (x, y)) if self._vectors(x) != self._vectors(y):
                return self.pieces(x) + _negated(self.pieces(y))
            case Call("mul", (x, y)):
                a, b = self.pieces(x), self.pieces(y)
                if len(a) * len(b) <= _MAX_PIECES:
                    return [p * q for p in a for q in b]
            case Call("select", (c, no, yes)) if self._vectors(c) != self._vectors(e):
                # A gate: on * yes + (1 - on) * no, with `on` zero or one.
                on = scalar.call("ne", c, Const(0.0))
                off = scalar.call("eq", c, Const(0.0))
                chosen = self.pieces(Call("mul", (on, yes)))
                return chosen + self.pieces(Call("mul", (off, no)))
            case Call("div", (x, y)) if not self._vectors(y):
                inverse = self._coefficient(Call("div", (Const(1.0), y)))
                assert inverse is not None
                return [Piece((), (inverse,)) * p for p in self.pieces(x)]
        return None

    def _vectors(self, e: Expr) -> frozenset[int]:
        """The wide random lines that an expression depends on."""
        match e:
            case Arg(i):
                used = self._line.xs[i : i + 1]
                return frozenset(
                    x for x in used if not self._engine.is_still(self._side, x)
                )
            case Const():
                return frozenset()
            case Call(_, args):
                return frozenset().union(*(self._vectors(a) for a in args))

    def _is_of_one_gaussian(self, e: Expr) -> bool:
        """Whether it is a function of one Gaussian line: nothing to split.

        What was drawn is split off, so that the function has no parameters a sample.
        """
        if isinstance(e, Arg):
            return False
        used, xs = self._vectors(e), self._line.xs
        read = {xs[i] for i in appearance(e) if i < len(xs)}
        if any(self._engine.reads_draws(self._side, x) for x in read):
            return False
        return len(used) == 1 and self._engine.is_leaf(self._side, *used)

    def _coefficient(self, e: Expr) -> Factor | None:
        """An expression of constants, as an array at the letters it depends on."""
        engine, side = self._engine, self._side
        if isinstance(e, Const):
            return None if e.value == 0.0 else Factor(np.asarray(e.value), ())
        used, args = frozenset(appearance(e)), []
        for x in self._line.xs:
            read = len(args) in used
            view = View(side, x, self._indices)
            args.append(_mean(engine, view) if read else None)
        for t in self._line.tensors:
            args.append(engine.tensors.factor(side, t, self._indices))
        letters = tuple(sorted({a for f in args if f is not None for a in f.letters()}))
        values: list[Any] = []
        for f in args:
            values.append(
                0.0
                if f is None
                else materialise((Product((f,)),), engine.letters, letters)
            )
        factor = _as_factor(engine, scalar.evaluate(e, values), letters)
        return None if is_zero(factor.array) else factor

    def _opaque(self, e: Expr) -> Piece:
        """A function that does not split: one atom of all its leaves."""
        whole = _Composite(self._engine, self._expansion)
        fn = whole.function(e, self._side, self._line, self._indices)
        return Piece((whole.atom(fn),))


def _negated(pieces: list[Piece]) -> list[Piece]:
    minus = Piece((), (Factor(np.asarray(-1.0), ()),))
    return [minus * p for p in pieces]


class _Composite:
    """One function of Gaussian leaves, built through the lines between."""

    def __init__(self, engine: "Engine", expansion: _Expansion) -> None:
        self._engine, self._expansion = engine, expansion
        self._leaves: list[View] = []
        self._params: list[Factor] = []

    def atom(self, fn: Expr) -> Atom:
        """Leaves were numbered 0, 2, 4.. and parameters 1, 3, 5..: put leaves first."""
        count = len(self._leaves)
        places: list[Expr] = [Const(0.0)] * (2 * max(count, len(self._params), 1))
        for i in range(count):
            places[2 * i] = Arg(i)
        for i in range(len(self._params)):
            places[2 * i + 1] = Arg(count + i)
        return Atom(
            scalar.substitute(fn, places), tuple(self._leaves), tuple(self._params)
        )

    def function(
        self, fn: Expr, side: int, line: Nonlin | Moment, indices: tuple[Index, ...]
    ) -> Expr:
        # What a part of the function does not read would tie it to other parts.
        used = frozenset(appearance(fn))
        args: list[Expr] = []
        for x in line.xs:
            read = len(args) in used
            args.append(self._view(View(side, x, indices)) if read else Const(0.0))
        for t in line.tensors:
            factor = None
            if len(args) in used:
                factor = self._engine.tensors.factor(side, t, indices)
            args.append(self._param(factor))
        return scalar.substitute(fn, args)

    def _param(self, factor: Factor | None) -> Expr:
        if factor is None:
            return Const(0.0)
        if isinstance(factor.array, np.ndarray) and factor.array.ndim == 0:
            return Const(float(factor.array))
        self._params.append(factor)
        return Arg(2 * len(self._params) - 1)

    def _leaf(self, view: View) -> Expr:
        if view not in self._leaves:
            self._leaves.append(view)
            if len(self._leaves) > _MAX_LEAVES and self._engine.draws is not None:
                read = (self._engine.reach(v.side, v.ref) for v in self._leaves)
                raise NeedsDraws(frozenset().union(*read))
            if len(self._leaves) > _MAX_LEAVES:
                line = self._engine.line(view)
                raise UnsupportedError(
                    f"A nonlinearity of more than {_MAX_LEAVES} Gaussian vectors at "
                    f"once (through line `{line.name}`{_at(line.source)}) is not "
                    "covered."
                )
        return Arg(2 * self._leaves.index(view))

    def _view(self, view: View) -> Expr:
        engine = self._engine
        masks, view = self._expansion.unmask(view)
        if engine.is_still(view.side, view.ref):
            inner = self._param(_mean(engine, view))
        elif engine.is_gaussian(view.side, view.ref):
            inner = self._leaf(view)
        else:
            line = engine.line(view)
            if isinstance(line, Nonlin):
                inner = self.function(line.fn, view.side, line, view.indices)
            else:
                inner = self._combination(view, line)
        for mask in masks:
            inner = scalar.call("mul", self._param(mask), inner)
        return inner

    def _combination(self, view: View, line: LinComb) -> Expr:
        found: dict[View | None, list[tuple[Factor, ...]]] = {}
        self._collect(view, line, (), found)
        total: Expr = Const(0.0)
        for inner, many in found.items():
            coefficients = _added(self._engine, many)
            if coefficients is None:
                continue
            value: Expr = Const(1.0)
            for factor in coefficients:
                value = scalar.call("mul", value, self._param(factor))
            if inner is not None:
                value = scalar.call("mul", value, self._view(inner))
            total = scalar.call("add", total, value)
        return total

    def _collect(
        self,
        view: View,
        line: LinComb,
        before: tuple[Factor, ...],
        found: dict[View | None, list[tuple[Factor, ...]]],
    ) -> None:
        """The coefficients of every vector, through combinations of combinations."""
        engine = self._engine
        for term in line.terms:
            for position in np.ndindex(*term.sums):
                # Every summed position is a leaf of its own here.
                at = tuple(constant(k) for k in position)
                full = (*view.indices, *at)
                coefficients = engine.coefficients(view, term, full)
                if coefficients is None:
                    continue
                inner = None
                if term.x is not None:
                    maps = tuple(compose(m, full) for m in term.maps)
                    inner = View(view.side, term.x, maps)
                if inner is not None and engine.is_mixed(inner):
                    below = engine.line(inner)
                    self._collect(inner, below, before + coefficients, found)
                else:
                    found.setdefault(inner, []).append(before + coefficients)


def _added(
    engine: "Engine", many: Sequence[tuple[Factor, ...]]
) -> tuple[Factor, ...] | None:
    """The sum of coefficients, each a product; None where it cancels to rounding."""
    if len(many) == 1:
        return None if any(is_zero(f.array) for f in many[0]) else many[0]
    letters = tuple(sorted({a for c in many for f in c for a in f.letters()}))
    arrays = [materialise((Product(c),), engine.letters, letters) for c in many]
    total = total_of(arrays)
    return None if is_zero(total) else (_as_factor(engine, total, letters),)


def _at(source: str) -> str:
    return f", {source}" if source else ""
