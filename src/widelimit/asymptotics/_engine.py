"""Theorem 4 of Yang (2019) as one memoised question: the second moment of two lines.

For a program without transposes, Z = (Z^g) over the G-lines of one dimension class is
Gaussian with mean mu and covariance K, by recursion over the lines:

    mu(g)    = mu_in(g) for inputs; linear through LinComb; 0 for MatMul
    K(g, g') = K_in(g, g') for inputs; bilinear through LinComb;
               sigma_A^2 E[Z^h Z^h'] for g = A h, g' = A h' with the same A; else 0

and scalars (1/n) sum psi(h..) converge to E psi(Z^h..). Here g is a family, so the
question carries indices: which positions on either side. Positions that are asked for
only where both sides agree are computed only there ("aligned"): a flattened readout
needs the diagonal in positions, a pooled one needs all pairs, and nobody has to say so.

A *side* is a program with its input data. Two sides share their weights by name.

Some lines may be *drawn* (`_draws`): they are then constants with one more letter, the
sample. `second_given` and `mean` are given the draws, `second` and `cov` are averages
over them.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import gaussian
from .._errors import UnsupportedError
from .._jax import is_concrete
from ..gaussian import Accuracy
from ..program import (
    LinComb,
    MatIn,
    MatMul,
    Nonlin,
    Readout,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    compose,
)
from ..scalar import Expr
from ..transform import Parities, Parity
from ._answers import Answer, Answers, Key
from ._distance import Distances
from ._draws import (
    Draws,
    Families,
    Family,
    NeedsDraws,
    Sampling,
    check_size,
    is_gaussian,
)
from ._expectation import by_parts, expectation
from ._folding import Folding, States
from ._index import Index, Letter, Letters, View, constant, equality
from ._loops import Loop
from ._product import (
    Factor,
    Product,
    Sum,
    aligned,
    as_factor,
    compact,
    is_zero,
    materialise,
)
from ._route import Route, largest
from ._tensors import Tensors

ZERO: Sum = ()

# A sum of so many inputs is multiplied out wherever it is asked for.
_FEW = 8

# Every formula beside samples is some operations on as many numbers as there are
# samples, to be compiled: a second for twenty.
MAX_FORMULAS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """A program and the arrays of its inputs.

    It may stand for many inputs of the network at once, which do not interact.

    Attributes:
        program: that of one input.
        inputs: the arrays that all inputs share, by key.
        rows: the arrays that every input has its own of, along axis 0.
        count: how many inputs there are; None for one, without such an axis.
        ids: whole numbers, equal for equal inputs, or None.
    """

    program: TensorProgram
    inputs: Mapping[str, Any]
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    count: int | None = None
    ids: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One covariance that was computed, for the printed recursion.

    Attributes:
        rule: what was computed: a nonlinearity, a matrix product, a linear combination;
            or the half distance of two lines, which stands for their covariance.
        u: the two lines, as views at the letters of the step.
        v: the second line, or None for a mean.
    """

    rule: str
    u: View
    v: View | None


class Canonical(NamedTuple):
    """A question about a pair of lines, up to renaming of letters.

    Attributes:
        key: equal for questions that have one answer.
        u: the first line at letters of the question.
        v: the second.
        letters: these, in order.
        at: the index that was asked for in the place of each.
    """

    key: Key
    u: View
    v: View
    letters: tuple[Letter, ...]
    at: tuple[Index, ...]


class Engine:
    """Second moments, means and tensors of the lines of one or more sides.

    Args:
        sides: the programs and their inputs.
        accuracy: of numerical routes.
        dtype: of the numbers; JAX's default if None.
        sampling: what is drawn, if something may be.
        is_rough: expectations only have to be of the right size, at no cost.
        true: a truth that is known at run time only; see `Letters.once`.
        inputs_last: the axes of inputs stand behind those of positions, not before.
        loops: the loops of the programs, if answers are to be loops, and the states
            that are asked for; see `Folding`.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        accuracy: Accuracy | None = None,
        dtype: Any = None,
        sampling: Sampling | None = None,
        is_rough: bool = False,
        true: Any = None,
        inputs_last: bool = False,
        loops: tuple[Sequence[Loop], States | None] | None = None,
    ) -> None:
        self.sides, self.is_rough = tuple(sides), is_rough
        self.accuracy = accuracy or Accuracy()
        self.dtype = jnp.result_type(float) if dtype is None else dtype
        self.letters = Letters(true)
        self._batches = {
            i: self.letters.new(side.count, last=inputs_last)
            for i, side in enumerate(self.sides)
            if side.count is not None
        }
        self.steps: list[Step] = []
        self._expectations: list[tuple[tuple[Expr, ...], int, float | None]] = []
        self.sampled: Route | None = None
        """The route of what was not computed here, but by samples."""
        self.measures = False
        self.opaque: set[tuple[int, int]] = set()
        """Lines, by side, that are no sum of products of others."""
        self.answers = Answers()
        self._input_counts: dict[tuple[int, int], float] = {}
        self.tensors = Tensors(self)
        parities, programs = Parities(), [s.program for s in self.sides]
        self._parities = [parities.of(p) for p in programs]
        self.families = Families(programs, self._parities)
        self.draws = None if sampling is None else Draws(self, sampling)
        self._drawn = self.draws.drawn if self.draws else frozenset()
        self._changing = self.families.changing(self._drawn)
        self.distances = Distances(self, programs)
        self.folding = None if loops is None else Folding(self, *loops)

    @property
    def routes(self) -> dict[str, bool]:
        """The routes that expectations took, and whether they are exact."""
        return {r.name: r.is_exact for r in self.taken}

    @property
    def taken(self) -> list[Route]:
        """The routes that expectations took; found when asked, as that takes time."""
        found: dict[tuple[str, int, bool], list[float | None]] = {}
        for functions, count, error in self._expectations:
            name = "rough" if self.is_rough else gaussian.route(functions, count)
            is_exact = self._is_exact(functions, count)
            errors = found.setdefault((name, count, is_exact), [])
            errors.append(0.0 if is_exact else error)
        routes = [Route(*key, len(e), largest(e)) for key, e in found.items()]
        return routes if self.sampled is None else [*routes, self.sampled]

    def _is_exact(self, functions: Sequence[Expr], count: int) -> bool:
        return self.is_rough or gaussian.is_exact(functions, count)

    def take(
        self,
        functions: Sequence[Expr],
        count: int,
        value: Any,
        coarse: Callable[[], Any],
    ) -> None:
        """Note an expectation, and its error where those are measured.

        Args:
            functions: those whose product it is the mean of.
            count: how many Gaussian variables there are.
            value: what was found.
            coarse: the same by a coarser rule.

        Raises:
            NeedsDraws: beside samples there are so many formulas that samples of
                everything are cheaper.
            UnsupportedError: there are as many rough ones.
        """
        asked = len(self._expectations) + 1
        if self.is_rough and asked > MAX_FORMULAS:
            raise UnsupportedError(f"More than {MAX_FORMULAS} expectations are needed.")
        rest = self.families.all - self._drawn
        if self._drawn and rest and asked > MAX_FORMULAS:
            raise NeedsDraws(rest)
        error = None
        measured = self.measures and is_concrete(value)
        if measured and not self._is_exact(functions, count):
            scale = float(jnp.max(jnp.abs(value), initial=0.0)) or 1.0
            error = float(jnp.max(jnp.abs(value - coarse()), initial=0.0)) / scale
        self._expectations.append((tuple(functions), count, error))

    def note(self, rule: str, u: View, v: View | None = None) -> None:
        """Write down a step of the recursion."""
        self.steps.append(Step(rule, u, v))

    # Public questions -----------------------------------------------------------------

    def view(self, ref: int, side: int = 0) -> tuple[View, tuple[Letter, ...]]:
        """A line at fresh letters, one for every index."""
        letters = tuple(self.letters.new(s) for s in self.shape(side, ref))
        return View(
            side, ref, tuple(self.letters.identity(a) for a in letters)
        ), letters

    def mean_array(self, ref: int, side: int = 0) -> Any:
        """E Z of a line, of its index shape; None for a structural zero."""
        view, letters = self.view(ref, side)
        with self._deep():
            total = self.averaged(self.mean(view))
        return self._full(materialise(total, self.letters, letters), letters)

    def batches(self, *sides: int) -> tuple[Letter, ...]:
        """The letters of the inputs of some sides."""
        found = (self._batches[s] for s in sides if s in self._batches)
        return tuple(dict.fromkeys(found))

    def count(self, side: int) -> int:
        """The number of inputs that a side stands for."""
        return self.sides[side].count or 1

    def law_mean_array(self, side: int, ref: int) -> Any:
        """The mean of a Gaussian line; None for a structural zero."""
        view, letters = self.view(ref, side)
        total = self._law_mean(view)
        return self._full(materialise(total, self.letters, letters), letters)

    def pair_array(
        self,
        u: int,
        v: int,
        sides: tuple[int, int],
        same: Sequence[int] = (),
        centred: bool = True,
    ) -> Any:
        """E Z^u Z^v (or their covariance), of shape same + rest of u + rest of v.

        The axes of the inputs of either side stand before these, if there are any.

        Args:
            u: a line of the first side.
            v: a line of the second side.
            sides: the two sides.
            same: axes at which only equal positions are wanted.
            centred: the covariance instead of the second moment.
        """
        first, a = self.view(u, sides[0])
        b = tuple(
            a[i] if i in same else self.letters.new(s)
            for i, s in enumerate(self.shape(sides[1], v))
        )
        second = View(sides[1], v, tuple(self.letters.identity(x) for x in b))
        with self._deep():
            ask = self.covariance if centred else self.second
            total = ask(first, second)
        out = (
            *self.batches(*sides),
            *(a[i] for i in same),
            *(x for i, x in enumerate(a) if i not in same),
            *(x for i, x in enumerate(b) if i not in same),
        )
        return self._full(materialise(total, self.letters, out), out)

    def covariances(self, u: tuple[int, int], v: tuple[int, int]) -> Any:
        """The covariances of two families of Gaussian lines, at all their positions.

        Args:
            u: a side and a line of it.
            v: the same.

        Returns:
            An array of the shape of u and of that of v, in NumPy where it is not
            traced; None for a structural zero.
        """
        (first, a), (second, b) = self.view(u[1], u[0]), self.view(v[1], v[0])
        value = materialise(self.cov(first, second), self.letters, a + b)
        value = self._full(value, a + b)
        return np.asarray(value) if value is not None and is_concrete(value) else value

    def covariance(self, u: View, v: View) -> Sum:
        """Cov(Z^u, Z^v) for lines of any kind."""
        if self.is_gaussian(u.side, u.ref) and self.is_gaussian(v.side, v.ref):
            return self.cov(u, v)
        total = self.second(u, v)
        means = _times(self.averaged(self.mean(u)), self.averaged(self.mean(v)))
        return total + _scaled(means, -1.0)

    def second(self, u: View, v: View) -> Sum:
        """E[Z^u Z^v] over the letters of both views."""
        if self._parity(u).excludes(self._parity(v)):
            return ZERO
        if not (self.reads_draws(u.side, u.ref) or self.reads_draws(v.side, v.ref)):
            return self.second_given(u, v)
        return self._memo(
            "average", u, v, lambda x, y: self.averaged(self.second_given(x, y))
        )

    def averaged(self, total: Sum) -> Sum:
        """The mean over the samples of what is given them."""
        return total if self.draws is None else tuple(map(self._averaged, total))

    def is_sampled(self, factor: Factor) -> bool:
        """Whether a factor is a number for every sample."""
        return self.draws is not None and self.draws.letter in factor.letters()

    def _averaged(self, product: Product) -> Product:
        assert self.draws is not None
        letter, count = self.draws.letter, self.draws.count
        if not any(map(self.is_sampled, product.factors)):
            return product
        summed = self.letters.new(count)
        one = Factor(np.asarray(1.0 / count), ())
        return product.renamed(letter, summed, self.letters).times(one, sums=(summed,))

    def second_given(self, u: View, v: View) -> Sum:
        """E[Z^u Z^v] over the letters of both views, given the draws."""
        if self._parity_given(u).excludes(self._parity_given(v)):
            return ZERO
        if self.is_still(u.side, u.ref) or self.is_still(v.side, v.ref):
            return _times(self.mean(u), self.mean(v))
        if self.is_leaf(u.side, u.ref) and self.is_leaf(v.side, v.ref):
            return self.cov(u, v) + _times(self.mean(u), self.mean(v))
        for x, y in ((u, v), (v, u)):
            line = self.line(x)
            if (
                isinstance(line, LinComb)
                and not self.is_leaf(x.side, x.ref)
                and self._lazy(line)
            ):
                return self._expand(x, line, lambda z, y=y: self.second_given(z, y), y)
        near = self._by_distance(u, v, self.second_given)
        return self._memo("second", u, v, self._second_now) if near is None else near

    def _is_coefficient(self, u: View, v: View) -> bool:
        """Whether a sum of few inputs stands beside one: E u v is its coefficient."""
        return isinstance(self.line(v), VecIn) and self._inputs_in(u) <= _FEW

    def _inputs_in(self, u: View) -> float:
        """How many inputs a sum of sums of inputs is made of; infinity for others."""
        key = u.side, u.ref
        if key not in self._input_counts:
            line = self.line(u)
            count = 1.0 if isinstance(line, VecIn) else math.inf
            if isinstance(line, LinComb):
                read = [View(u.side, t.x, ()) for t in line.terms if t.x is not None]
                count = sum(map(self._inputs_in, read))
            self._input_counts[key] = count
        return self._input_counts[key]

    def _by_distance(
        self, u: View, v: View, square: Callable[[View, View], Sum]
    ) -> Sum | None:
        """E u v from half distances, where these are known; see `Distances`."""
        inside = all(i.is_inside for x in (u, v) for i in x.indices)
        if not (self.distances.matter and inside) or u == v:
            return None
        if not isinstance(self.line(u), MatMul | Readout | Nonlin):
            return None
        found = self.distances.of(u, v)
        if found is None:
            return None
        return _scaled(square(u, u) + square(v, v), 0.5) + _scaled(found, -1.0)

    def cov(self, u: View, v: View) -> Sum:
        """The covariance of two Gaussian lines, K of theorem 4."""
        if self._parity(u).excludes(self._parity(v)):
            return ZERO
        for x, y in ((u, v), (v, u)):
            line = self.line(x)
            if isinstance(line, LinComb) and (
                self._lazy(line) or self._is_coefficient(x, y)
            ):
                return self._expand(x, line, lambda z, y=y: self.cov(z, y), None)
        if (near := self._by_distance(u, v, self.cov)) is not None:
            return near
        a, b = self.line(u), self.line(v)
        match a, b:
            case VecIn(), VecIn():
                return self._cov_inputs(u, a, v, b)
            case (MatMul() as p, MatMul() as q) | (Readout() as p, Readout() as q):
                if self.weights(u, p).name != self.weights(v, q).name:
                    return ZERO
            case (LinComb(), _) | (_, LinComb()):
                pass
            case _:
                return ZERO
        return self._memo("cov", u, v, self._cov_now)

    def mean(self, u: View) -> Sum:
        """E Z^u over the letters of the view, given the draws."""
        if self.is_drawn(u.side, u.ref):
            return self._known_mean(u, self._sample)
        if self._parity_given(u).odd:
            return ZERO
        line = self.line(u)
        match line:
            case VecIn() | MatMul() | Readout():
                return self._law_mean(u)
            case LinComb():
                return self._combination_mean(u, line)
            case Nonlin():
                return self._nonlin_mean(u)
            case _:
                raise TypeError(f"line `{line.name}` is not a vector")

    def _law_mean(self, u: View) -> Sum:
        """The mean of a Gaussian line, drawn or not."""
        line = self.line(u)
        match line:
            case VecIn():
                return self._input_mean(u, line)
            case MatMul() | Readout():
                return ZERO
        return self._expand(u, line, self._law_mean, None, constants=True)

    def _parity(self, u: View) -> Parity:
        return self._parities[u.side][u.ref]

    def _parity_given(self, u: View) -> Parity:
        """Given the draws, only signs that leave them alone are free."""
        return self._parity(u).given(self._changing)

    @contextlib.contextmanager
    def _deep(self) -> Iterator[None]:
        """Let questions ask as many others as the programs are deep."""
        before = sys.getrecursionlimit()
        lines = sum(len(s.program) for s in self.sides)
        sys.setrecursionlimit(max(before, 1000 + 50 * lines))
        try:
            yield
        finally:
            sys.setrecursionlimit(before)

    # Tensors --------------------------------------------------------------------------

    def cast(self, value: Any) -> Any:
        """An array in the precision of the engine, if of floating numbers."""
        value = jnp.asarray(value)
        floating = jnp.issubdtype(value.dtype, jnp.floating)
        return value.astype(self.dtype) if floating else value

    def tensor(self, side: int, ref: int) -> Any:
        """The value of a Tensor line; None for a structural zero."""
        return self.tensors.value(side, ref).array

    def tensor_or_zeros(self, side: int, ref: int) -> Any:
        """The value of a Tensor line as an array of its shape."""
        return self.tensors.rows(side, ref)[0]

    # Rules ----------------------------------------------------------------------------

    def _cov_inputs(self, u: View, a: VecIn, v: View, b: VecIn) -> Sum:
        if a.name != b.name or (a.per_example and u.side != v.side):
            return ZERO
        if a.cov is not None:
            return (
                Product(
                    (Factor(a.cov.value.astype(self.dtype), u.indices + v.indices),)
                ),
            )
        product = Product(self.scale(u.side, a.std) + self.scale(v.side, b.std))
        if isinstance(a.std, float | int) and a.std == 0.0:
            return ZERO
        for x, y in zip(u.indices, v.indices, strict=True):
            product = self._delta(product, x, y)
        return (product,)

    def scale(self, side: int, std: float | TensorArg) -> tuple[Factor, ...]:
        """A standard deviation, as factors."""
        if isinstance(std, TensorArg):
            return (Factor(self.tensors.scalar(side, std.ref), ()),)
        return () if std == 1.0 else (Factor(np.asarray(float(std)), ()),)

    def _delta(self, product: Product, x: Index, y: Index) -> Product:
        """`product`, where x and y name the same position."""
        if x == y:
            if not x.is_inside:
                return product.times(
                    Factor(np.asarray(x.table >= 0, float), self.plain(x.letters))
                )
            return product
        if x.is_identity and y.is_identity and x.table.size == y.table.size:
            deltas = (*product.deltas, (x.letters[0], y.letters[0]))
            return Product(product.factors, deltas, product.sums)
        mask, letters = equality(x, y)
        return product.times(Factor(mask.astype(float), self.plain(letters)))

    def plain(self, letters: Sequence[Letter]) -> tuple[Index, ...]:
        """The indices that are these letters."""
        return tuple(self.letters.identity(a) for a in letters)

    def _cov_now(self, u: View, v: View) -> Sum:
        a, b = self.line(u), self.line(v)
        for x, y, line in ((u, v, a), (v, u, b)):
            if isinstance(line, LinComb):
                self.note("linear", u, v)
                return self._expand(x, line, lambda z, y=y: self.cov(z, y), None)
        if isinstance(a, MatMul) and isinstance(b, MatMul):
            self.note("matmul", u, v)
            p, q = self._matrix(u, a), self._matrix(v, b)
            weights = self.scale(u.side, p.std) + self.scale(v.side, q.std)
            return self._contract(u, a, v, b, weights)
        assert isinstance(a, Readout)
        assert isinstance(b, Readout)
        self.note("readout", u, v)
        p, q = self._vector(u, a), self._vector(v, b)
        weights = self.scale(u.side, p.std) + self.scale(v.side, q.std)
        return self._contract(u, a, v, b, weights)

    def _contract(
        self,
        u: View,
        a: MatMul | Readout,
        v: View,
        b: MatMul | Readout,
        weights: tuple[Factor, ...],
    ) -> Sum:
        """sigma^2 sum_k E[Z^x Z^x'], for equal indices of the matrix on both sides."""
        sums_u = [self.letters.new(s) for s in a.sums]
        sums_v = [self.letters.new(s) for s in b.sums]
        shared: set[int] = set()
        # A summed index of the matrix is one letter for both sides from the start: the
        # pair of sides then reads a stencil, not all pairs of window positions.
        for i, j in zip(a.letters, b.letters, strict=True):
            p, q = i - len(a.shape), j - len(b.shape)
            if p >= 0 and q >= 0 and q not in shared and sums_u[p] not in sums_v:
                sums_v[q] = sums_u[p]
                shared.add(q)
        full_u = (*u.indices, *self.plain(sums_u))
        full_v = (*v.indices, *self.plain(sums_v))
        x = View(u.side, a.x, tuple(compose(m, full_u) for m in a.maps))
        y = View(v.side, b.x, tuple(compose(m, full_v) for m in b.maps))
        inner = self.second(x, y)
        if not inner:
            return ZERO
        outer = Product(weights, (), tuple(dict.fromkeys(sums_u + sums_v)))
        outer = outer.times(*self._masks(u, a), *self._masks(v, b))
        for i, j in zip(a.letters, b.letters, strict=True):
            if i >= 0:
                outer = self._delta(outer, full_u[i], full_v[j])
        return _times((outer,), inner)

    def _masks(self, u: View, line: MatMul | Readout) -> list[Factor]:
        """Zero outside, at indices that neither the matrix nor the vector follows."""
        read = {a for m in line.maps for a in m.letters} | set(line.letters)
        return [
            Factor(np.asarray(index.table >= 0, float), self.plain(index.letters))
            for i, index in enumerate(u.indices)
            if i not in read and not index.is_inside
        ]

    def combination(self, u: View, line: LinComb, only: Callable[[Term], bool]) -> Sum:
        """The mean of some terms of a combination."""
        some = dataclasses.replace(line, terms=tuple(filter(only, line.terms)))
        return self._expand(u, some, self.mean, None, constants=True)

    def equal_inputs(self, u: View, v: View, letters: Sequence[Letter]) -> Any:
        """Where two views are known to be of one entry or input; None for nowhere."""
        one, two = (self.sides[w.side].ids for w in (u, v))
        if u.side == v.side:
            return self._equal_entries(u, v, letters)
        if one is None or two is None:
            return None
        first, second = (self._batches[w.side] for w in (u, v))
        equal = one[:, None] == two[None, :]
        return aligned(equal, [first, second], letters)

    def _equal_entries(self, u: View, v: View, letters: Sequence[Letter]) -> Any:
        """Where two views of a line of one side name the same entry."""
        found: Any = True
        for x, y in zip(u.indices, v.indices, strict=True):
            if x != y:
                mask, own = equality(x, y)
                found = found & aligned(mask, own, letters)
        return found

    def _expand(
        self,
        u: View,
        line: LinComb,
        ask: Callable[[View], Sum],
        other: View | None,
        constants: bool = False,
    ) -> Sum:
        """A linear question about a linear combination: one answer a term.

        Args:
            u: the view of the combination.
            line: the combination.
            ask: the question, to be asked of every term.
            other: the other side of a second moment, whose mean meets the constants.
            constants: the question is the mean itself.
        """
        total: Sum = ZERO
        for coefficients, sums, x in self.terms(u, line):
            if x is not None:
                inner = ask(x)
            elif constants:
                inner = (Product(),)
            else:
                inner = ZERO if other is None else self.mean(other)
            total += tuple(p.times(*coefficients, sums=sums) for p in inner)
        return total

    def terms(
        self, u: View, line: LinComb
    ) -> Iterator[tuple[tuple[Factor, ...], tuple[Letter, ...], View | None]]:
        """The terms of a combination: coefficients, summed letters, what is read.

        Nothing is read of the vector of ones. Terms that are zero are left out.
        """
        for term in line.terms:
            sums = tuple(self.letters.new(s) for s in term.sums)
            full = (*u.indices, *self.plain(sums))
            coefficients = self.coefficients(u, term, full)
            if coefficients is not None:
                maps = tuple(compose(m, full) for m in term.maps)
                read = None if term.x is None else View(u.side, term.x, maps)
                yield coefficients, sums, read

    def coefficients(
        self, u: View, term: Term, full: Sequence[Index]
    ) -> tuple[Factor, ...] | None:
        """The coefficients of a term at the letters of a query; None for zero."""
        if term.scale == 0.0:
            return None
        factors = [] if term.scale == 1.0 else [Factor(np.asarray(term.scale), ())]
        for arg in term.tensors:
            factor = self.tensors.factor(u.side, arg, full)
            if factor is None or is_zero(factor.array):
                return None
            factors.append(factor)
        read = {a for m in term.maps for a in m.letters}
        for i, index in enumerate(u.indices):
            # Outside the result there is nothing, whatever the term reads there.
            if i not in read and not index.is_inside:
                mask = np.asarray(index.table >= 0, float)
                factors.append(Factor(mask, self.plain(index.letters)))
        return tuple(factors)

    def _input_mean(self, u: View, line: VecIn) -> Sum:
        if isinstance(line.mean, float | int):
            if line.mean == 0.0:
                return ZERO
            return (Product((Factor(np.asarray(float(line.mean)), ()),)),)
        if not line.mean.value.any():
            return ZERO
        return (Product((Factor(line.mean.value.astype(self.dtype), u.indices),)),)

    def _second_now(self, u: View, v: View) -> Sum:
        # The later line first: all that it is made of is asked beside the other one.
        ordered = sorted((v, u), key=lambda x: x.ref, reverse=True)
        for x, y in (ordered, ordered[::-1]):
            if self.is_leaf(x.side, x.ref):
                continue
            line = self.line(x)
            if isinstance(line, LinComb):
                self.note("linear", u, v)
                return self._expand(x, line, lambda z, y=y: self.second_given(z, y), y)
            if (found := by_parts(self, x, y)) is not None:
                self.note("nonlin", u, v)
                return found
        self.note("nonlin", u, v)
        pair = [(x.side, x.ref, x.indices) for x in (u, v)]
        return expectation(self, pair)

    def _combination_mean(self, u: View, line: LinComb) -> Sum:
        """Found once for every line: recursions read what is before them twice."""
        if _mean_key(u) not in self.answers:
            total = self._expand(u, line, self.mean, None, constants=True)
            if total and (
                self._lazy(line) or not any(f.indices for p in total for f in p.factors)
            ):
                return total
        return self._known_mean(
            u, lambda x: self._expand(x, line, self.mean, None, constants=True)
        )

    def _nonlin_mean(self, u: View) -> Sum:
        return self._known_mean(u, self._nonlin_mean_now)

    def _nonlin_mean_now(self, u: View) -> Sum:
        self.note("mean", u)
        return expectation(self, [(u.side, u.ref, u.indices)])

    def _sample(self, u: View) -> Sum:
        assert self.draws is not None
        indices = (*u.indices, self.letters.identity(self.draws.letter))
        return (Product((Factor(self.draws.sample(u.side, u.ref), indices),)),)

    def _known_mean(self, u: View, compute: Callable[[View], Sum]) -> Sum:
        """A mean at all positions, computed once, read at those asked."""

        def now() -> Answer | None:
            view, letters = self.view(u.ref, u.side)
            return self.compact(compute(view), letters)

        return self.read(self.remembered(_mean_key(u), now), u.indices)

    def given(self, letters: Iterable[Letter]) -> tuple[Letter, ...]:
        """The letters that a number at some has: also inputs, and samples."""
        sample = () if self.draws is None else (self.draws.letter,)
        return tuple(sorted({*letters, *self._batches.values(), *sample}))

    def compact(self, total: Sum, letters: Sequence[Letter]) -> Answer | None:
        """A sum at letters as an answer; None for a structural zero."""
        found = compact(total, self.letters, self.given(letters))
        if found is None:
            return None
        if self.is_sampled(found):
            assert self.draws is not None
            check_size(np.size(found.array), self.draws.count)
        axes = (i.letters[0] for i in found.indices)
        place = {a: k for k, a in enumerate(letters)}
        return Answer(found.array, tuple(place.get(a, ~a) for a in axes))

    def read(self, found: Answer | None, at: Sequence[Index]) -> Sum:
        """An answer, read at indices in the place of its letters."""
        if found is None:
            return ZERO
        outside = [
            Factor((index.table >= 0).astype(float), self.plain(index.letters))
            for place, index in enumerate(at)
            if place not in found.places and not index.is_inside
        ]
        read = tuple(
            at[p] if p >= 0 else self.letters.identity(~p) for p in found.places
        )
        return (Product((Factor(found.array, read), *outside)),)

    # The memo -------------------------------------------------------------------------

    def remembered(self, key: Key, compute: Callable[[], Any]) -> Any:
        """An answer, computed once, or by a loop over equal layers."""
        if self.folding is None:
            if key not in self.answers:
                self.answers[key] = compute()
            return self.answers[key]
        self.folding.asked(key)
        if key not in self.answers:
            with self.folding.computing(key):
                self.answers[key] = compute()
        return self.answers[key]

    def kept(self, key: Key, found: Answer | None) -> Answer | None:
        """An answer that XLA computes once; one that a loop carries on is so anyway."""
        if found is None or (self.folding is not None and self.folding.carries(key)):
            return found
        return found._replace(array=self.letters.once(found.array))

    def _memo(
        self, what: str, u: View, v: View, compute: Callable[[View, View], Sum]
    ) -> Sum:
        """The answer at canonical letters, computed once, read at the letters asked."""
        if _disjoint(u, v):
            return ZERO
        asked = self.canonical(what, u, v)

        def now() -> Answer | None:
            found = self.compact(compute(asked.u, asked.v), asked.letters)
            if what == "second" and found is not None:
                found = self._exact_diagonal(asked, found)
                return self.kept(asked.key, found)
            return found

        return self.read(self.remembered(asked.key, now), asked.at)

    def ask(self, key: Key) -> None:
        """Ask a question by its key."""
        (side, ref), *_ = key.lines
        match key.kind:
            case "tensor":
                self.tensors.value(side, ref)
            case "mean":
                self.mean(self.view(ref, side)[0])
            case "distance":
                self.distances.of(*self._views(key))
            case "extended":
                self.distances.padded_square(side, ref, key.rest)
            case "cov":
                self._memo("cov", *self._views(key), self._cov_now)
            case _:
                self._memo("second", *self._views(key), self._second_now)

    def _views(self, key: Key) -> tuple[View, View]:
        """Views that ask the question of a key."""
        places_u, places_v, partners = key.rest
        (s, u), (t, v) = key.lines
        first, _ = self.view(u, s)
        second, _ = self.view(v, t)
        at_u = [
            i if p is None else constant(p)
            for i, p in zip(first.indices, places_u, strict=True)
        ]
        at_v = [
            i if p is None else constant(p)
            for i, p in zip(second.indices, places_v, strict=True)
        ]
        for i, j in partners:
            at_v[j] = at_u[i]
        return View(s, u, tuple(at_u)), View(t, v, tuple(at_v))

    def canonical(self, what: str, u: View, v: View) -> Canonical:
        """A question with its axes aligned, fixed or free, at letters of its own."""
        # Of one line twice, so that what answers is not transposed.
        u, v = sorted((u, v), key=_by_place)
        shape_u, shape_v = self.shape(u.side, u.ref), self.shape(v.side, v.ref)
        places_u = [_place(i, n) for i, n in zip(u.indices, shape_u, strict=True)]
        places_v = [_place(i, n) for i, n in zip(v.indices, shape_v, strict=True)]
        partners: dict[int, int] = {}
        for i, index in enumerate(u.indices):
            for j, other in enumerate(v.indices):
                free = places_u[i] is None and j not in partners.values()
                if free and other == index and shape_v[j] == shape_u[i]:
                    partners[i] = j
                    break
        at: dict[Letter, Index] = {}
        new_u: list[Index] = [constant(p or 0) for p in places_u]
        new_v: list[Index] = [constant(p or 0) for p in places_v]
        for i, index in enumerate(u.indices):
            if places_u[i] is None:
                letter = self.letters.new(shape_u[i])
                at[letter], new_u[i] = index, self.letters.identity(letter)
                if i in partners:
                    new_v[partners[i]] = new_u[i]
        for j, index in enumerate(v.indices):
            if places_v[j] is None and j not in partners.values():
                letter = self.letters.new(shape_v[j])
                at[letter], new_v[j] = index, self.letters.identity(letter)
        lines = (u.side, u.ref), (v.side, v.ref)
        rest = tuple(places_u), tuple(places_v), tuple(partners.items())
        key = Key(what, lines, rest)
        x, y = View(u.side, u.ref, tuple(new_u)), View(v.side, v.ref, tuple(new_v))
        return Canonical(key, x, y, tuple(at), tuple(at.values()))

    def _exact_diagonal(self, asked: Canonical, found: Answer) -> Answer:
        """Equal positions of one line are one variable: no formula at rho = 1."""
        u, v = asked.u, asked.v
        if (u.side, u.ref) != (v.side, v.ref) or u.indices == v.indices:
            return found
        pairs = list(zip(u.indices, v.indices, strict=True))
        if any(i != j and not (i.letters and j.letters) for i, j in pairs):
            return found
        everything = self.given(asked.letters)
        exact = self._memo("second", u, u, self._second_now)
        diagonal = materialise(exact, self.letters, everything)
        if diagonal is None:
            return found
        mask = np.ones((1,) * len(everything), bool)
        for i, j in pairs:
            if i != j:
                eye, axes = np.eye(i.table.size, dtype=bool), i.letters + j.letters
                mask = mask & aligned(eye, axes, everything)
        at = self.plain(asked.letters)
        value = materialise(self.read(found, at), self.letters, everything)
        value = jnp.where(mask, diagonal, value)
        exact = (Product((as_factor(value, self.letters, everything),)),)
        corrected = self.compact(exact, asked.letters)
        assert corrected is not None
        return corrected

    # Small questions ------------------------------------------------------------------

    def line(self, u: View) -> Any:
        """The line behind a view."""
        return self.line_at(u.side, u.ref)

    def line_at(self, side: int, ref: int) -> Any:
        """A line of a side."""
        return self.sides[side].program.lines[ref]

    def shape(self, side: int, ref: int) -> tuple[int, ...]:
        """The index shape of a line."""
        return self.sides[side].program.types[ref].shape

    def is_gaussian(self, side: int, ref: int) -> bool:
        """Whether a line is Gaussian in the limit: a G-line or a finite output."""
        return is_gaussian(self.sides[side].program, ref)

    def reach(self, side: int, ref: int) -> frozenset[Family]:
        """The families that a line is a function of and that are not drawn."""
        return self.families.reach[side][ref] - self._drawn

    def is_still(self, side: int, ref: int) -> bool:
        """Whether a vector is its mean, by structure and given the draws."""
        return not self.reach(side, ref)

    def is_drawn(self, side: int, ref: int) -> bool:
        """Whether a line is Gaussian and drawn."""
        drawn = self.families.reach[side][ref] & self._drawn
        return bool(drawn) and self.is_gaussian(side, ref)

    def is_leaf(self, side: int, ref: int) -> bool:
        """Whether a line is Gaussian, given the draws too."""
        return self.is_gaussian(side, ref) and not self.is_drawn(side, ref)

    def reads_draws(self, side: int, ref: int) -> bool:
        """Whether a line is a function of drawn lines, perhaps among others."""
        return not self._drawn.isdisjoint(self.families.reach[side][ref])

    def is_mixed(self, u: View) -> bool:
        """Whether a view is a combination that is not Gaussian, nowhere outside."""
        combines = isinstance(self.line(u), LinComb)
        inside = all(i.is_inside for i in u.indices)
        return (
            combines
            and inside
            and not self.is_gaussian(u.side, u.ref)
            and not self.is_still(u.side, u.ref)
        )

    def _lazy(self, line: LinComb) -> bool:
        """A single term that only moves positions stays symbolic."""
        return (
            len(line.terms) == 1
            and not line.terms[0].tensors
            and not line.terms[0].sums
        )

    def _matrix(self, u: View, line: MatMul) -> MatIn:
        matrix = self.sides[u.side].program.lines[line.matrix]
        if not isinstance(matrix, MatIn):
            raise UnsupportedError(
                f"Line `{line.name}` multiplies by the transpose `{matrix.name}`, and "
                "the recursion is for programs without transposes: detranspose the "
                "program first, as `Program.limit` and `wl.limit` do."
            )
        return matrix

    def weights(self, u: View, line: MatMul | Readout) -> MatIn | VecIn:
        """The line of the weights that a product has."""
        if isinstance(line, MatMul):
            return self._matrix(u, line)
        return self._vector(u, line)

    def _vector(self, u: View, line: Readout) -> VecIn:
        vector = self.sides[u.side].program.lines[line.v]
        assert isinstance(vector, VecIn)
        return vector

    def _full(self, value: Any, letters: Sequence[Letter]) -> Any:
        if value is None:
            return None
        return jnp.broadcast_to(value, tuple(self.letters.sizes[a] for a in letters))


def _mean_key(u: View) -> Key:
    return Key("mean", ((u.side, u.ref),))


def _times(x: Sum, y: Sum) -> Sum:
    return tuple(p.with_product(q) for p in x for q in y)


def _scaled(x: Sum, scale: float) -> Sum:
    return tuple(p.times(Factor(np.asarray(scale), ())) for p in x)


def _by_place(u: View) -> Any:
    return u.side, u.ref, [i.letters for i in u.indices]


def _place(index: Index, size: int) -> int | None:
    """The only position that an index of an axis reads, None if there is none."""
    if (index.letters and size > 1) or not index.table.size:
        return None
    return int(index.table.flat[0]) if index.is_inside else None


def _disjoint(u: View, v: View) -> bool:
    """Whether at no value of the shared letters both sides are inside."""
    shared = {a for i in u.indices for a in i.letters} & {
        a for i in v.indices for a in i.letters
    }
    if not shared or all(i.is_inside for x in (u, v) for i in x.indices):
        return False
    both = np.ones((1,) * len(shared), bool)
    for index in (*u.indices, *v.indices):
        letters = sorted(shared.union(index.letters))
        private = tuple(n for n, a in enumerate(letters) if a not in shared)
        both = both & (index.spread(letters) >= 0).any(axis=private)
    return not both.any()
