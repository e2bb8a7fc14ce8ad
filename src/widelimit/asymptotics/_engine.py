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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._errors import UnsupportedError
from .._jax import Equation, bind, is_concrete
from ..gaussian import Accuracy
from ..program import (
    Constant,
    Elementwise,
    Input,
    LinComb,
    Map,
    MatIn,
    MatMul,
    Moment,
    Nonlin,
    Primitive,
    Ratio,
    Readout,
    Regression,
    TensorArg,
    TensorProgram,
    Term,
    VecIn,
    appearance,
    compose,
    regress,
)
from ..scalar import Const, Expr
from ..transform import Parities, Parity
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
from ._index import Index, Letter, Letters, View, constant, equality
from ._product import (
    Factor,
    Product,
    Sum,
    aligned,
    as_factor,
    compact,
    is_zero,
    materialise,
    total_of,
)
from ._route import Route

ZERO: Sum = ()

# Every formula beside samples is some operations on as many numbers as there are
# samples, to be compiled: a second for twenty.
MAX_FORMULAS = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """A program and the arrays of its inputs."""

    program: TensorProgram
    inputs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One covariance that was computed, for the printed recursion.

    Attributes:
        rule: what was computed: a nonlinearity, a matrix product, a linear combination.
        u: the two lines, as views at the letters of the step.
        v: the second line, or None for a mean.
        aligned: the numbers of pairs of axes at which both sides agree.
    """

    rule: str
    u: View
    v: View | None
    aligned: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Canonical:
    """A pair of lines up to renaming of letters: the key of the memo."""

    what: str
    side_u: int
    u: int
    side_v: int
    v: int
    axes_u: tuple[tuple[str, int], ...]
    axes_v: tuple[tuple[str, int], ...]


class Engine:
    """Second moments, means and tensors of the lines of one or more sides.

    Args:
        sides: the programs and their inputs.
        accuracy: of numerical routes.
        dtype: of the numbers; JAX's default if None.
        sampling: what is drawn, if something may be.
        is_rough: expectations only have to be of the right size, at no cost.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        accuracy: Accuracy | None = None,
        dtype: Any = None,
        sampling: Sampling | None = None,
        is_rough: bool = False,
    ) -> None:
        self.sides, self.is_rough = tuple(sides), is_rough
        self.accuracy = accuracy or Accuracy()
        self.dtype = jnp.result_type(float) if dtype is None else dtype
        self.letters = Letters()
        self.steps: list[Step] = []
        self.taken: dict[tuple[str, int], Route] = {}
        self.measures = False
        self.opaque: set[tuple[int, int]] = set()
        """Lines, by side, that are no sum of products of others."""
        self._asked = 0
        self._pairs: dict[_Canonical, tuple[Factor | None, tuple[Letter, ...]]] = {}
        self._tensors: dict[tuple[int, int], Any] = {}
        self._means: dict[
            tuple[int, int], tuple[Factor | None, tuple[Letter, ...]]
        ] = {}
        parities, programs = Parities(), [s.program for s in self.sides]
        self._parities = [parities.of(p) for p in programs]
        self.families = Families(programs, self._parities)
        self.draws = None if sampling is None else Draws(self, sampling)
        self._drawn = self.draws.drawn if self.draws else frozenset()
        self._changing = self.families.changing(self._drawn)

    @property
    def routes(self) -> dict[str, bool]:
        """The routes that expectations took, and whether they are exact."""
        return {r.name: r.is_exact for r in self.taken.values()}

    def take(
        self,
        name: str,
        dimension: int,
        is_exact: bool,
        value: Any,
        coarse: Callable[[], Any],
    ) -> None:
        """Note the route of an expectation, and its error where those are measured.

        Raises:
            NeedsDraws: beside samples there are so many formulas that samples of
                everything are cheaper.
            UnsupportedError: there are as many rough ones.
        """
        self._asked += 1
        if self.is_rough and self._asked > MAX_FORMULAS:
            raise UnsupportedError(f"More than {MAX_FORMULAS} expectations are needed.")
        rest = self.families.all - self._drawn
        if self._drawn and rest and self._asked > MAX_FORMULAS:
            raise NeedsDraws(rest)
        error = 0.0 if is_exact else None
        if self.measures and not is_exact and is_concrete(value):
            scale = float(jnp.max(jnp.abs(value), initial=0.0)) or 1.0
            error = float(jnp.max(jnp.abs(value - coarse()), initial=0.0)) / scale
        known = self.taken.get((name, dimension))
        count = 1 if known is None else known.count + 1
        if known is not None and known.error is not None and error is not None:
            error = max(error, known.error)
        self.taken[name, dimension] = Route(name, dimension, is_exact, count, error)

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
        return self._memo("second", u, v, self._second_now)

    def cov(self, u: View, v: View) -> Sum:
        """The covariance of two Gaussian lines, K of theorem 4."""
        if self._parity(u).excludes(self._parity(v)):
            return ZERO
        for x, y in ((u, v), (v, u)):
            line = self.line(x)
            if isinstance(line, LinComb) and self._lazy(line):
                return self._expand(x, line, lambda z, y=y: self.cov(z, y), None)
        a, b = self.line(u), self.line(v)
        match a, b:
            case VecIn(), VecIn():
                return self._cov_inputs(u, a, v, b)
            case MatMul(), MatMul():
                if self._matrix(u, a) is not self._matrix(v, b) and (
                    self._matrix(u, a).name != self._matrix(v, b).name
                ):
                    return ZERO
            case Readout(), Readout():
                if self._vector(u, a).name != self._vector(v, b).name:
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

    def tensor(self, side: int, ref: int) -> Any:
        """The value of a Tensor line; None for a structural zero."""
        key = (side, ref)
        if key not in self._tensors:
            self._tensors[key] = self._tensor_now(side, ref)
        return self._tensors[key]

    def tensor_or_zeros(self, side: int, ref: int) -> Any:
        """The value of a Tensor line as an array of its shape."""
        value = self.tensor(side, ref)
        shape = self.shape(side, ref)
        return (
            jnp.zeros(shape, self.dtype)
            if value is None
            else jnp.broadcast_to(value, shape)
        )

    def _tensor_now(self, side: int, ref: int) -> Any:
        line = self.sides[side].program.lines[ref]
        if isinstance(line, Moment):
            letters = tuple(self.letters.new(s) for s in self.shape(side, ref))
            indices = tuple(self.letters.identity(a) for a in letters)
            self.steps.append(Step("moment", View(side, ref, indices), None))
            total = self.averaged(expectation(self, [(side, line, indices)]))
            return self._full(materialise(total, self.letters, letters), letters)
        assert isinstance(line, Map)
        match line.op:
            case Input(key):
                return self._cast(self.sides[side].inputs[key])
            case Constant(value):
                return self._cast(value.value)
            case Elementwise(fn, letters):
                return self._elementwise(side, line, fn, letters)
            case Ratio():
                raise TypeError("`at_ratios` makes ratios numbers before the limit")
            case Regression(part, blocks):
                if all(self.tensor(side, r) is None for r in line.args[-blocks:]):
                    return None
                args = [self.tensor_or_zeros(side, r) for r in line.args]
                return regress(part, blocks, args)
            case Primitive():
                return self._primitive(side, line, line.op.equation)

    def _primitive(self, side: int, line: Map, equation: Equation) -> Any:
        args = [self.tensor_or_zeros(side, a) for a in line.args]
        # It was traced in double precision; whole numbers too may have half as many
        # bits here.
        params = {
            k: self.dtype if _is_float(kind) else jax.dtypes.canonicalize_dtype(kind)
            for k in ("new_dtype", "dtype", "preferred_element_type", "index_dtype")
            if (kind := equation.params.get(k)) is not None
        }
        kinds = {jnp.result_type(a) for a in args if _is_float(jnp.result_type(a))}
        if len(kinds) > 1:
            args = [self._cast(a) for a in args]
        if "accuracy" in equation.params:
            params["accuracy"] = equation.params["accuracy"]
        return bind(equation, args, **params)[0]

    def _elementwise(
        self, side: int, line: Map, fn: Expr, letters: tuple[tuple[int, ...], ...]
    ) -> Any:
        values: list[Any] = [0.0] * len(line.args)
        structural = True
        for i, ref in enumerate(line.args):
            # What a zero has made irrelevant is not computed.
            if i in appearance(fn):
                value = self.tensor(side, ref)
                if value is None or is_zero(value):
                    structural = structural and value is None
                    args: list[Expr] = [scalar.Arg(j) for j in range(len(values))]
                    args[i] = Const(0.0)
                    fn = drop_zeros(scalar.substitute(fn, args))
                else:
                    values[i] = _at_letters(value, letters[i], len(line.shape))
        if fn == Const(0.0) and structural:
            return None
        if isinstance(fn, Const):
            return jnp.full(line.shape, fn.value, self.dtype)
        value = total_of([scalar.evaluate(t, values) for t in summands(fn)])
        return jnp.broadcast_to(value, line.shape)

    def _cast(self, value: Any) -> Any:
        value = jnp.asarray(value)
        return value.astype(self.dtype) if _is_float(value.dtype) else value

    def tensor_factor(
        self, side: int, arg: TensorArg, indices: Sequence[Index]
    ) -> Factor | None:
        """A tensor coefficient read at the letters of a query; None for zero."""
        value = self.tensor(side, arg.ref)
        if value is None:
            return None
        value = jnp.broadcast_to(value, self.shape(side, arg.ref))
        axes = tuple(i for i, a in enumerate(arg.letters) if a < 0)
        value = jnp.squeeze(value, axes)
        return Factor(value, tuple(indices[a] for a in arg.letters if a >= 0))

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
        product = Product(self._scale(u.side, a.std) + self._scale(v.side, b.std))
        if isinstance(a.std, float | int) and a.std == 0.0:
            return ZERO
        for x, y in zip(u.indices, v.indices, strict=True):
            product = self._delta(product, x, y)
        return (product,)

    def _scale(self, side: int, std: float | TensorArg) -> tuple[Factor, ...]:
        if isinstance(std, TensorArg):
            return (Factor(jnp.reshape(self.tensor_or_zeros(side, std.ref), ()), ()),)
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
                self.steps.append(Step("linear", u, v))
                return self._expand(x, line, lambda z, y=y: self.cov(z, y), None)
        if isinstance(a, MatMul) and isinstance(b, MatMul):
            self.steps.append(Step("matmul", u, v))
            p, q = self._matrix(u, a), self._matrix(v, b)
            weights = self._scale(u.side, p.std) + self._scale(v.side, q.std)
            return self._contract(u, a, v, b, weights)
        assert isinstance(a, Readout)
        assert isinstance(b, Readout)
        self.steps.append(Step("readout", u, v))
        p, q = self._vector(u, a), self._vector(v, b)
        weights = self._scale(u.side, p.std) + self._scale(v.side, q.std)
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
            factor = self.tensor_factor(u.side, arg, full)
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
                self.steps.append(Step("linear", u, v))
                return self._expand(x, line, lambda z, y=y: self.second_given(z, y), y)
            if (found := by_parts(self, x, y)) is not None:
                self.steps.append(Step("nonlin", u, v))
                return found
        self.steps.append(Step("nonlin", u, v))
        pair = [(x.side, x.ref, x.indices) for x in (u, v)]
        return expectation(self, pair)

    def _combination_mean(self, u: View, line: LinComb) -> Sum:
        """Found once for every line: recursions read what is before them twice."""
        key = (u.side, u.ref)
        if key not in self._means:
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
        self.steps.append(Step("mean", u, None))
        return expectation(self, [(u.side, u.ref, u.indices)])

    def _sample(self, u: View) -> Sum:
        assert self.draws is not None
        indices = (*u.indices, self.letters.identity(self.draws.letter))
        return (Product((Factor(self.draws.sample(u.side, u.ref), indices),)),)

    def _known_mean(self, u: View, compute: Callable[[View], Sum]) -> Sum:
        """A mean at all positions, computed once, read at those asked."""
        key = (u.side, u.ref)
        if key not in self._means:
            view, letters = self.view(u.ref, u.side)
            self._means[key] = self._compact(compute(view), letters), letters
        found, letters = self._means[key]
        return self._read(found, letters, u.indices)

    def with_samples(self, letters: Sequence[Letter]) -> tuple[Letter, ...]:
        """The letters that a number given the draws can have."""
        return (*letters, *([] if self.draws is None else [self.draws.letter]))

    def _compact(self, total: Sum, letters: Sequence[Letter]) -> Factor | None:
        """A number at letters and given the draws."""
        found = compact(total, self.letters, self.with_samples(letters))
        if found is not None and self.draws is not None:
            check_size(np.size(found.array), self.draws.count)
        return found

    def _read(
        self, found: Factor | None, letters: Sequence[Letter], at: Sequence[Index]
    ) -> Sum:
        """What was found at letters, read at indices in their place."""
        if found is None:
            return ZERO
        place = dict(zip(letters, at, strict=True))
        read = tuple(place.get(i.letters[0], i) for i in found.indices)
        outside = [
            Factor((index.table >= 0).astype(float), self.plain(index.letters))
            for letter, index in place.items()
            if letter not in found.letters() and not index.is_inside
        ]
        return (Product((Factor(found.array, read), *outside)),)

    # The memo -------------------------------------------------------------------------

    def _memo(
        self, what: str, u: View, v: View, compute: Callable[[View, View], Sum]
    ) -> Sum:
        """The answer at canonical letters, computed once, read at the letters asked."""
        if _disjoint(u, v):
            return ZERO
        if (v.side, v.ref) < (u.side, u.ref):
            u, v = v, u
        key, letters_u, letters_v, read = self._canonical(what, u, v)
        if key not in self._pairs:
            x = View(u.side, u.ref, letters_u)
            y = View(v.side, v.ref, letters_v)
            out = [i.letters[0] for i in letters_u if i.letters]
            out += [
                i.letters[0] for i in letters_v if i.letters and i.letters[0] not in out
            ]
            found = self._compact(compute(x, y), out)
            if what == "second" and found is not None:
                found = self._exact_diagonal(x, y, out, found)
            self._pairs[key] = found, tuple(out)
        return self._read(*self._pairs[key], read)

    def _canonical(
        self, what: str, u: View, v: View
    ) -> tuple[_Canonical, tuple[Index, ...], tuple[Index, ...], list[Index]]:
        """Which axes are aligned, fixed or free; new letters; how to read a result."""
        shape_u, shape_v = self.shape(u.side, u.ref), self.shape(v.side, v.ref)
        axes_u: list[tuple[str, int]] = []
        axes_v: list[tuple[str, int]] = [("free", 0)] * len(shape_v)
        at_u: list[Index] = []
        at_v: list[Index | None] = [None] * len(shape_v)
        read: list[Index] = []
        for i, index in enumerate(u.indices):
            if (place := _place(index, shape_u[i])) is not None:
                axes_u.append(("fixed", place))
                at_u.append(constant(place))
                continue
            letter = self.letters.new(shape_u[i])
            at_u.append(self.letters.identity(letter))
            read.append(index)
            partner = next(
                (
                    j
                    for j, other in enumerate(v.indices)
                    if at_v[j] is None and other == index and shape_v[j] == shape_u[i]
                ),
                None,
            )
            if partner is None:
                axes_u.append(("free", 0))
            else:
                axes_u.append(("aligned", partner))
                axes_v[partner] = ("aligned", i)
                at_v[partner] = self.letters.identity(letter)
        for j, index in enumerate(v.indices):
            if at_v[j] is not None:
                continue
            if (place := _place(index, shape_v[j])) is not None:
                axes_v[j] = ("fixed", place)
                at_v[j] = constant(place)
            else:
                at_v[j] = self.letters.identity(self.letters.new(shape_v[j]))
                read.append(index)
        key = _Canonical(
            what, u.side, u.ref, v.side, v.ref, tuple(axes_u), tuple(axes_v)
        )
        return key, tuple(at_u), tuple(i for i in at_v if i is not None), read

    def _exact_diagonal(
        self, u: View, v: View, out: Sequence[Letter], found: Factor
    ) -> Factor:
        """Equal positions of one line are one variable: no formula at rho = 1."""
        if (u.side, u.ref) != (v.side, v.ref) or u.indices == v.indices:
            return found
        pairs = list(zip(u.indices, v.indices, strict=True))
        if any(i != j and not (i.letters and j.letters) for i, j in pairs):
            return found
        everything = self.with_samples(out)
        exact = self._memo("second", u, u, self._second_now)
        diagonal = materialise(exact, self.letters, everything)
        if diagonal is None:
            return found
        mask = np.ones((1,) * len(everything), bool)
        for i, j in pairs:
            if i != j:
                eye, axes = np.eye(i.table.size, dtype=bool), i.letters + j.letters
                mask = mask & aligned(eye, axes, everything)
        value = materialise((Product((found,)),), self.letters, everything)
        return as_factor(jnp.where(mask, diagonal, value), self.letters, everything)

    # Small questions ------------------------------------------------------------------

    def line(self, u: View) -> Any:
        """The line behind a view."""
        return self.sides[u.side].program.lines[u.ref]

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

    def _vector(self, u: View, line: Readout) -> VecIn:
        vector = self.sides[u.side].program.lines[line.v]
        assert isinstance(vector, VecIn)
        return vector

    def _full(self, value: Any, letters: Sequence[Letter]) -> Any:
        if value is None:
            return None
        return jnp.broadcast_to(value, tuple(self.letters.sizes[a] for a in letters))


def summands(expr: Expr) -> list[Expr]:
    """Terms whose sum is `expr`."""
    match expr:
        case scalar.Call("add", (x, y)):
            return summands(x) + summands(y)
        case scalar.Call("sub", (x, y)):
            return summands(x) + [scalar.call("neg", t) for t in summands(y)]
    return [expr]


def drop_zeros(expr: Expr) -> Expr:
    """`expr` with structural zeros carried through: 0 * x is 0, x + 0 is x."""
    if not isinstance(expr, scalar.Call):
        return expr
    args = tuple(drop_zeros(a) for a in expr.args)
    zero = Const(0.0)
    match expr.op, args:
        case ("mul", (a, b)) if zero in (a, b):
            return zero
        case ("div", (a, _)) if a == zero:
            return zero
        case ("sub", (a, b)) if a == zero:
            return scalar.call("neg", b)
    return scalar.call(expr.op, *args)


def _times(x: Sum, y: Sum) -> Sum:
    return tuple(p.with_product(q) for p in x for q in y)


def _scaled(x: Sum, scale: float) -> Sum:
    return tuple(p.times(Factor(np.asarray(scale), ())) for p in x)


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


def _at_letters(value: Any, letters: tuple[int, ...], ndim: int) -> Any:
    """A tensor with its axes moved to the letters of a result of `ndim` letters."""
    value = jnp.squeeze(value, tuple(i for i, a in enumerate(letters) if a < 0))
    return aligned(value, [a for a in letters if a >= 0], range(ndim))


def _is_float(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
