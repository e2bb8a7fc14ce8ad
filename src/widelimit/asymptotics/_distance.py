"""Half the mean squared difference of two lines, d = E(Z^u - Z^v)^2 / 2.

A kink makes the tangent kernel of two near inputs a function of the square root of
1 - c / sqrt(a b), in which the covariance c has lost its digits. d is that small number
itself. It follows from the data like c does: for one line u, v of two inputs

    g = A h:              d = sigma_A^2 sum_k d(h_k, h_k')
    sum_i a_i g_i:        d = sum_i a_i^2 d(g_i, g_i') for independent g_i
    sum_k x_k U_k:        d = sigma_U^2 sum_k (x_k - x_k')^2 / 2
    phi(g):               a formula of d(g, g'), if phi is linear on both sides of zero

and with coefficients that differ from input to input

    d(s u, t v) = s t d(u, v) + (s - t) (s E u^2 - t E v^2) / 2.

In all of these nothing cancels. For other lines (a mean over positions, say) nothing is
known but (E u^2 + E v^2) / 2 - E u v.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .. import gaussian, scalar
from ..program import (
    AxisMap,
    LinComb,
    MatMul,
    Nonlin,
    Readout,
    TensorProgram,
    Term,
    VecIn,
    compose,
    fit_affine,
)
from ..scalar import Arg, Expr
from ._answers import Answer, Key
from ._index import Index, Letter, View, constant
from ._nearby import half_squares
from ._product import (
    Factor,
    Product,
    Sum,
    aligned,
    as_factor,
    materialise,
    windows_apart,
)

if TYPE_CHECKING:
    from ._engine import Canonical, Engine

_ZERO: Sum = ()

UNKNOWN = "known as a difference only"
"""In the place of an answer."""


class Distances:
    """Half distances of the lines of an engine, each computed once.

    Attributes:
        matter: whether a function has a kink, so that they make a difference.
    """

    def __init__(self, engine: "Engine", programs: Sequence[TensorProgram]) -> None:
        self._engine = engine
        self.matter = not engine.is_rough and any(map(_has_kinks, programs))

    def of(self, u: View, v: View) -> Sum | None:
        """D of two views of one line; None where it is only known as a difference."""
        if u == v:
            return _ZERO
        if u.ref != v.ref or type(self._line(u)) is not type(self._line(v)):
            return None
        if not all(i.is_inside for x in (u, v) for i in x.indices):
            return self._with_outside(u, v)
        asked = self._engine.canonical("distance", u, v)
        return self._once(asked, asked.key, self._now)

    def _line(self, u: View) -> Any:
        return self._engine.line(u)

    def _once(
        self,
        asked: "Canonical",
        key: Key,
        compute: Callable[[View, View], Sum | None],
    ) -> Sum | None:
        """An answer at canonical letters, computed once, read at those asked."""
        engine = self._engine

        is_function = isinstance(self._line(asked.u), Nonlin)

        def now() -> Any:
            total = compute(asked.u, asked.v)
            if total is None:
                return UNKNOWN
            found = engine.compact(total, asked.letters)
            # Sums over windows, and functions, are read more than once.
            whole = is_function or key.kind == "sum"
            return engine.kept(key, found) if whole else found

        found = engine.remembered(key, now)
        return None if found is UNKNOWN else engine.read(found, asked.at)

    def _now(self, u: View, v: View) -> Sum | None:
        found = self._by_line(u, v)
        if found is not None:
            self._engine.note("distance", u, v)
        return found

    def _by_line(self, u: View, v: View) -> Sum | None:
        match self._line(u), self._line(v):
            case VecIn() as a, VecIn():
                again = a.per_example and u.side != v.side
                return _ZERO if u.indices == v.indices and not again else None
            case (MatMul() as a, MatMul() as b) | (Readout() as a, Readout() as b):
                return self._product(u, a, v, b)
            case LinComb() as a, LinComb() as b:
                return self._combination(u, a, v, b)
            case Nonlin() as a, Nonlin() as b:
                return self._function(u, a, v, b)
        return None

    # Products with a matrix -----------------------------------------------------------

    def _product(
        self, u: View, a: MatMul | Readout, v: View, b: MatMul | Readout
    ) -> Sum | None:
        engine, count = self._engine, len(a.shape)
        p, q = engine.weights(u, a), engine.weights(v, b)
        if p.name != q.name or a.letters != b.letters or a.sums != b.sums:
            return None
        # Every term of the sum has weights of its own, the same on both sides.
        if {i - count for i in a.letters if i >= count} != set(range(len(a.sums))):
            return None
        if any(0 <= i < count and u.indices[i] != v.indices[i] for i in a.letters):
            return None
        if isinstance(p, VecIn) and (p.cov is not None or p.per_example):
            return None

        def summed(x: View, y: View) -> Sum | None:
            sums = tuple(engine.letters.new(s) for s in a.sums)
            read = engine.plain(sums)
            total = self.of(_read(x, a, read), _read(y, b, read))
            return None if total is None else _each(total, sums=sums)

        # Other matrices that multiply the same have the same sum.
        asked = engine.canonical("sum", u, v)
        what = (a.maps, b.maps, a.letters, a.sums)
        read = (u.side, a.x), (v.side, b.x)
        key = Key("sum", read, (what, asked.key.rest))
        total = self._once(asked, key, summed)
        if total is None:
            return None
        return _each(total, *engine.scale(u.side, p.std), *engine.scale(v.side, q.std))

    # Combinations ---------------------------------------------------------------------

    def _combination(self, u: View, a: LinComb, v: View, b: LinComb) -> Sum | None:
        """The sum over terms that are independent of each other, and constants."""
        if len(a.terms) != len(b.terms) or not self._are_independent(u, a, v, b):
            return None
        total: Sum = _ZERO
        for s, t in zip(a.terms, b.terms, strict=True):
            if s.x is None and t.x is None:
                continue
            part = self._term(u, s, v, t)
            if part is None:
                return None
            total += part
        if any(t.x is None for t in a.terms):
            return total + self._constants(u, a, v, b)
        return total

    def _are_independent(self, u: View, a: LinComb, v: View, b: LinComb) -> bool:
        """Whether the products of different terms have mean zero, by structure."""
        engine = self._engine
        both = zip(a.terms, b.terms, strict=True)
        if any((s.x is None) != (t.x is None) for s, t in both):
            return False
        first, second = (
            [_view_of(engine, w, t) for t in line.terms if t.x is not None]
            for w, line in ((u, a), (v, b))
        )
        sides = ((first, first), (first, second), (second, second))
        return not any(
            engine.second(x[i], y[j])
            for x, y in sides
            for i, j in itertools.permutations(range(len(first)), 2)
        )

    def _term(self, u: View, s: Term, v: View, t: Term) -> Sum | None:
        """The part of one term of a combination."""
        engine = self._engine
        assert s.x is not None
        if isinstance(engine.line_at(u.side, s.x), VecIn) and s.tensors:
            return self._data(u, s, v, t)
        if s.sums or t.sums:
            return None
        x, y = _view_of(engine, u, s), _view_of(engine, v, t)
        inner = self.of(x, y)
        if inner is None:
            return None
        if not (s.tensors or t.tensors) and s.scale == t.scale:
            return _each(inner, Factor(np.asarray(s.scale**2), ()))
        letters = self._letters(u, v)
        first, second = (
            () if c is None else (Product(c),)
            for c in (
                engine.coefficients(u, s, u.indices),
                engine.coefficients(v, t, v.indices),
            )
        )
        scale1, scale2, var1, var2, d = (
            self._array(total, letters)
            for total in (
                first,
                second,
                engine.second(x, x),
                engine.second(y, y),
                inner,
            )
        )
        value = gaussian.scaled_distance(scale1, scale2, var1, var2, d)
        return self._of_array(value, letters)

    def _constants(self, u: View, a: LinComb, v: View, b: LinComb) -> Sum:
        """What the terms without a vector add: they meet the means of the others."""
        engine, letters = self._engine, self._letters(u, v)
        (c1, m1), (c2, m2) = (
            [
                self._array(engine.combination(w, line, only), letters)
                for only in (_is_constant, _is_vector)
            ]
            for w, line in ((u, a), (v, b))
        )
        value = (c1 - c2) * (m1 - m2) + 0.5 * (c1 - c2) ** 2
        return self._of_array(value, letters)

    def _data(self, u: View, s: Term, v: View, t: Term) -> Sum | None:
        """D of sums of independent inputs, with data for coefficients."""
        engine = self._engine
        count = len(u.indices)
        if (s.maps, s.sums, s.scale) != (t.maps, t.sums, t.scale) or len(
            u.indices
        ) != len(v.indices):
            return None
        assert s.x is not None
        assert t.x is not None
        p, q = engine.line_at(u.side, s.x), engine.line_at(v.side, t.x)
        if p.name != q.name or p.cov is not None or p.mean != 0.0 or p.per_example:
            return None
        scale = s.scale
        # Entry by entry with an input of its own, the same on both sides.
        summed = [
            m.letters[0] for m in s.maps if m.is_identity and m.letters[0] >= count
        ]
        if sorted(summed) != list(range(count, count + len(s.sums))):
            return None
        others = {i for m in s.maps for i in m.letters if i < count}
        if any(u.indices[i] != v.indices[i] for i in others):
            return None

        # A number before all data is one before the result.
        s, t = (dataclasses.replace(one, scale=1.0) for one in (s, t))

        def squares(x: View, y: View) -> Sum | None:
            return self._squares(x, s, y, t)

        asked = engine.canonical("data", u, v)
        what = (u.side, s.tensors, v.side, t.tensors, s.maps, s.sums)
        key = Key("data", (), (what, asked.key.rest))
        total = self._once(asked, key, squares)
        if total is None:
            return None
        weights = engine.scale(u.side, p.std) + engine.scale(v.side, q.std)
        return _each(total, Factor(np.asarray(scale**2), ()), *weights)

    def _squares(self, x: View, s: Term, y: View, t: Term) -> Sum | None:
        """Half the sum of the squared differences of two rows of coefficients."""
        engine = self._engine
        sums = tuple(engine.letters.new(n) for n in s.sums)
        rows = [
            engine.coefficients(w, term, (*w.indices, *engine.plain(sums)))
            for w, term in ((x, s), (y, t))
        ]
        known = [c for c in rows if c is not None]
        if len(known) < 2:
            return None
        letters, apart = self._letters(x, y), None
        if x.side != y.side and all(len(c) == 1 for c in known):
            factors = [f for (f,) in known]
            apart = windows_apart(factors, sums, engine.letters)
        if apart is not None:
            known, sums = [(f,) for f in apart.factors], apart.sums
            letters = apart.letters
        letters = engine.given(letters)
        one, two = (
            materialise((Product(c),), engine.letters, (*letters, *sums)) for c in known
        )
        same = engine.equal_inputs(x, y, letters)
        value = half_squares(one, two, len(sums), same)
        found = as_factor(value, engine.letters, letters)
        if apart is None:
            return (Product((found,)),)
        return (Product((apart.read(found),), (), apart.windows),)

    # Functions ------------------------------------------------------------------------

    def _function(self, u: View, a: Nonlin, v: View, b: Nonlin) -> Sum | None:
        engine = self._engine
        if len(a.xs) != 1 or len(b.xs) != 1 or a.fn != b.fn:
            return None
        x, y = View(u.side, a.xs[0], u.indices), View(v.side, b.xs[0], v.indices)
        if not all(
            engine.is_leaf(w.side, w.ref) and not engine.mean(w) for w in (x, y)
        ):
            return None
        count = len(a.tensors)
        places: list[list[Expr]] = [
            [Arg(0), *(Arg(1 + side * count + i) for i in range(count))]
            for side in (0, 1)
        ]
        f, g = (scalar.substitute(a.fn, p) for p in places)
        if not gaussian.knows_distance(f, g):
            return None
        inner = self.of(x, y)
        if inner is None:
            return None
        letters = self._letters(u, v)
        params = []
        for w, line in ((u, a), (v, b)):
            for arg in line.tensors:
                factor = engine.tensors.factor(w.side, arg, w.indices)
                known = None if factor is None else (Product((factor,)),)
                params.append(self._array(known or (), letters))
        variances = [self._array(engine.cov(w, w), letters) for w in (x, y)]
        d = self._array(inner, letters)
        value = gaussian.half_distance(f, g, *variances, d, tuple(params))
        return self._of_array(value, letters)

    # Outside --------------------------------------------------------------------------

    def _with_outside(self, u: View, v: View) -> Sum | None:
        """D where a view reads zero at some positions: half the square of the other.

        The line is extended by the positions outside that are read, so that a window is
        a sum of slices.
        """
        engine = self._engine
        axes: dict[Letter, _Axis] = {}
        x = self._at_whole_axes(u, axes, shared=())
        y = self._at_whole_axes(v, axes, shared=tuple(axes))
        inner = self.of(x, y)
        if inner is None:
            return None
        letters = self._letters(x, y)

        array = self._array(inner, letters)
        sizes = [
            axes[a].size if a in axes else n
            for a, n in zip(letters, array.shape, strict=True)
        ]
        pads = [axes[a].pads if a in axes else (0, 0) for a in letters]
        array = jnp.pad(jnp.broadcast_to(array, sizes), pads)
        # Numbers of one side, added to what is padded before: of a padding among other
        # operations XLA makes a loop with a branch.
        value, apart = engine.letters.once(array), x.indices != y.indices
        for one, other in ((x, y), (y, x)) if apart else ():
            outside = self._outside(other, axes, letters)
            value = value + self._extended_square(one, axes, letters) * outside
        value = engine.letters.once(value)
        found = as_factor(value, engine.letters, letters)
        read = tuple(
            axes[a].index if (a := i.letters[0]) in axes else i for i in found.indices
        )
        return (Product((Factor(found.array, read),)),)

    def _outside(
        self, u: View, axes: dict[Letter, "_Axis"], letters: Sequence[Letter]
    ) -> Any:
        """One where a line is outside of its axes."""
        mask = np.ones((1,) * len(letters), bool)
        for a in (i.letters[0] for i in u.indices if i.letters):
            mask = mask & aligned(axes[a].inside, [a], letters)
        return jnp.asarray(~mask, self._engine.dtype)

    def _extended_square(
        self, u: View, axes: dict[Letter, "_Axis"], letters: Sequence[Letter]
    ) -> Any:
        """E u^2 / 2 at the positions of a line, and zero outside."""
        how = tuple(
            axes[i.letters[0]].pads if i.letters else int(i.table) for i in u.indices
        )
        found = self.padded_square(u.side, u.ref, how)
        own = [i.letters[0] for i in u.indices if i.letters]
        at = [own[p] if p >= 0 else ~p for p in found.places]
        return aligned(found.array, at, letters)

    def padded_square(
        self, side: int, ref: int, how: tuple[tuple[int, int] | int, ...]
    ) -> Answer:
        """E u^2 / 2 of a line, with zeros around it: a number of one side.

        Args:
            side: the side.
            ref: the line.
            how: for every axis its position, or how many zeros stand before and after.
        """
        engine = self._engine

        def now() -> Answer:
            view, letters = engine.view(ref, side)
            at = tuple(
                constant(h) if isinstance(h, int) else i
                for h, i in zip(how, view.indices, strict=True)
            )
            view = View(side, ref, at)
            free = [
                a for a, h in zip(letters, how, strict=True) if not isinstance(h, int)
            ]
            pads = [h for h in how if not isinstance(h, int)]
            order = engine.given(free)
            array = 0.5 * self._array(engine.second(view, view), order)
            shape = [
                engine.letters.sizes[a] if a in free else n
                for a, n in zip(order, array.shape, strict=True)
            ]
            array = jnp.pad(
                jnp.broadcast_to(array, shape),
                [pads[free.index(a)] if a in free else (0, 0) for a in order],
            )
            kept = [k for k, a in enumerate(order) if a in free or array.shape[k] > 1]
            array = jnp.squeeze(array, [k for k in range(array.ndim) if k not in kept])
            places = (
                free.index(order[k]) if order[k] in free else ~order[k] for k in kept
            )
            return Answer(array, tuple(places))

        return engine.remembered(Key("extended", ((side, ref),), how), now)

    def _at_whole_axes(
        self, u: View, axes: dict[Letter, "_Axis"], shared: Sequence[Letter]
    ) -> View:
        """The line with a letter for every axis, of `shared` where it is read alike."""
        engine, own = self._engine, []
        free = list(shared)
        for index, size in zip(u.indices, engine.shape(u.side, u.ref), strict=True):
            if not index.letters and index.is_inside:
                own.append(index)
                continue
            alike = [a for a in free if axes[a].asked == index and axes[a].size == size]
            letter = alike[0] if alike else engine.letters.new(size)
            if alike:
                free.remove(letter)
            else:
                axes[letter] = _Axis(index, size)
            own.append(engine.letters.identity(letter))
        return View(u.side, u.ref, tuple(own))

    # Arrays ---------------------------------------------------------------------------

    def _letters(self, u: View, v: View) -> tuple[Letter, ...]:
        """The letters of two views, and of their inputs."""
        engine = self._engine
        own = {a for w in (u, v) for i in w.indices for a in i.letters}
        return tuple(sorted(own.union(engine.batches(u.side, v.side))))

    def _array(self, total: Sum, letters: Sequence[Letter]) -> Any:
        """A sum at letters, of size 1 along those it does not depend on."""
        found = materialise(total, self._engine.letters, letters)
        shape = (1,) * len(letters)
        return jnp.zeros(shape, self._engine.dtype) if found is None else found

    def _of_array(self, value: Any, letters: Sequence[Letter]) -> Sum:
        return (Product((as_factor(value, self._engine.letters, letters),)),)


class _Axis:
    """An axis of a line, extended as far as it is read outside.

    Attributes:
        asked: the index that reads it.
        size: how many positions it has.
        index: the index that reads the extended axis.
        inside: which of its positions are those of the line.
    """

    def __init__(self, asked: Index, size: int) -> None:
        self.asked, self.size = asked, size
        before, after, table = 0, 0, asked.table
        if not asked.is_inside:
            grid = fit_affine(asked.table, size)
            if grid is None:
                after, table = 1, np.where(asked.table < 0, size, asked.table)
            else:
                before = max(0, -int(grid.min()))
                after = max(0, int(grid.max()) + 1 - size)
                table = grid + before
        self.pads = before, after
        self.index = AxisMap(asked.letters, table)
        self.inside = np.pad(np.ones(size, bool), self.pads)


def _has_kinks(program: TensorProgram) -> bool:
    """Whether a function of one vector has a kink at zero."""
    return any(
        isinstance(line, Nonlin) and len(line.xs) == 1 and gaussian.has_kink(line.fn)
        for line in program.lines
    )


def _each(total: Sum, *factors: Factor, sums: Sequence[Letter] = ()) -> Sum:
    return tuple(p.times(*factors, sums=sums) for p in total)


def _read(u: View, line: MatMul | Readout, sums: Sequence[Index]) -> View:
    """What a product reads, at letters for its sum."""
    maps = tuple(compose(m, (*u.indices, *sums)) for m in line.maps)
    return View(u.side, line.x, maps)


def _view_of(engine: "Engine", u: View, term: Term) -> View:
    """What a term reads, at new letters for its sum."""
    sums = engine.plain([engine.letters.new(n) for n in term.sums])
    assert term.x is not None
    return View(
        u.side, term.x, tuple(compose(m, (*u.indices, *sums)) for m in term.maps)
    )


def _is_constant(term: Term) -> bool:
    return term.x is None


def _is_vector(term: Term) -> bool:
    return term.x is not None
