"""Programs without transposes (Yang 2019, theorem 6, in the form of Yang 2020).

A vector has Z^g = hatZ^g + dotZ^g. For g = M z, M a matrix A or its transpose, hatZ^g
is Gaussian as if M were independent of M^T, and

    dotZ^{M z} = sigma_M^2 sum_k Z^{u_k} E[dZ^z / dhatZ^{M^T u_k}]

over the earlier products M^T u_k. The derivative is the total one: through the dotZ of
the lines between, with scalars held constant. So the pass replaces the transpose of A
by a fresh matrix, and g by that product plus a linear combination of the u_k, whose
coefficients are moments of derivatives. Its result is a program in the extended syntax.

Where Z^z jumps along hatZ^{M^T u_k} the derivative is no function, and Stein's lemma
gives its mean: a = C^+ b, C_kl = E[hatZ_k hatZ_l], b_k = E[hatZ_k Z^z].

References:
    Yang (2019), https://arxiv.org/abs/1902.04760, theorem 6 and its detransposition.
    Yang (2020), https://arxiv.org/abs/2009.10685, hatZ and dotZ.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .._errors import UnsupportedError
from ..program import (
    AxisMap,
    Elementwise,
    LinComb,
    Map,
    MatIn,
    MatMul,
    Matrix,
    Nonlin,
    Ref,
    Regression,
    TensorArg,
    TensorProgram,
    Term,
    Transpose,
    Vector,
    at,
    check_ratios,
    compose,
    coordinatewise,
    identity_maps,
    is_channel_sum,
    matrix_of,
    operands,
    renumber,
)
from ..scalar import Arg, Const, call
from ._adjoints import wide
from ._drop_dead import drop_dead
from ._emitter import Emitter
from ._parity import Parities
from ._rewritten import Rewritten
from ._tangent import Branch, NoFunction, Tangents, total_scale


@dataclasses.dataclass(frozen=True)
class Detransposed(Rewritten):
    """A program without transposes.

    Attributes:
        hats: for every old product M z that has a term dotZ: the line of hatZ in the
            new program, with the same law as if M were independent of its transpose.
        dots: for these products, the terms of dotZ in the new program, by the old
            product M^T u whose derivative they hold.
    """

    hats: Mapping[Ref, Ref] = dataclasses.field(default_factory=dict)
    dots: Mapping[Ref, Mapping[Ref, tuple[Term, ...]]] = dataclasses.field(
        default_factory=dict
    )


def detranspose(
    program: TensorProgram,
    ratios: Mapping[str, float] | None = None,
    *,
    symmetric: bool = False,
) -> Detransposed:
    """An equivalent program without Transpose lines.

    Args:
        program: any program.
        ratios: widths over their common scale; 1 where missing. They enter the
            standard deviation of the fresh matrices.
        symmetric: leave out the terms of dotZ whose coefficient is zero by symmetry,
            as all those of a backward pass are whose output gradient is independent
            of the network: without it their number is cubic in its depth.

    Keeps: the limit of every line. Not its value at finite width.
    Gives: no Transpose line. A program without transposes is returned as it is.

    Raises:
        InputError: a ratio is not positive, or names no width of the program.
    """
    known = check_ratios(program, ratios)
    if not any(isinstance(line, Transpose) for line in program.lines):
        return Detransposed(program, {r: r for r in range(len(program))})
    return _Detransposition(program, known, symmetric).run()


class _Detransposition:
    def __init__(
        self, program: TensorProgram, ratios: Mapping[str, float], symmetric: bool
    ) -> None:
        self._old, self._ratios = program, ratios
        self._parities = Parities().of(program) if symmetric else None
        self._emit = Emitter(line.name for line in program.lines)
        self._tangents = Tangents(self._emit)
        self._place: dict[Ref, Ref] = {}
        self._fresh: dict[Ref, Ref] = {}
        self._hats: dict[Ref, Ref] = {}
        self._products: dict[tuple[Ref, bool], list[Ref]] = {}
        self._origin: dict[Ref, Ref] = {}
        self._dots: dict[Ref, dict[Ref, list[Term]]] = {}

    def run(self) -> Detransposed:
        for ref in range(len(self._old)):
            self._place[ref] = self._line(ref)
        place, old = self._place, self._old
        whole = TensorProgram(
            tuple(self._emit.lines),
            tuple(place[r] for r in old.outputs),
            tuple((name, place[r]) for name, r in old.taps),
        )
        # Derivatives whose mean was all that was needed are not.
        read = [
            r
            for dots in self._dots.values()
            for terms in dots.values()
            for r in operands(LinComb(name="", terms=tuple(terms), shape=()))
        ]
        done = drop_dead(whole, (*place.values(), *read))

        def moved(terms: Sequence[Term]) -> tuple[Term, ...]:
            line = LinComb(name="", terms=tuple(terms), shape=())
            line = renumber(line, done.place)
            assert isinstance(line, LinComb)
            return line.terms

        return Detransposed(
            done.program,
            {r: done.place[place[r]] for r in place},
            {r: done.place[hat] for r, hat in self._hats.items()},
            {
                r: {root: moved(terms) for root, terms in dots.items()}
                for r, dots in self._dots.items()
            },
        )

    def _line(self, ref: Ref) -> Ref:
        line = self._old.lines[ref]
        if isinstance(line, Transpose):
            base, transposed = matrix_of(self._old.lines, ref)
            return self._transpose(base) if transposed else self._place[base]
        if isinstance(line, MatMul):
            return self._matmul(ref, line)
        return self._emit.copy(renumber(line, self._place))

    def _transpose(self, base: Ref) -> Ref:
        """The fresh matrix in the place of the transpose.

        An entry of A has variance std^2 / cols; seen from A^T that is std'^2 / rows.
        """
        if base not in self._fresh:
            a = self._emit.lines[self._place[base]]
            assert isinstance(a, MatIn)
            scale = 1.0
            if a.rows != a.cols:
                rows, cols = a.rows.ratio(self._ratios), a.cols.ratio(self._ratios)
                scale = math.sqrt(rows / cols)
            std = a.std
            if isinstance(std, TensorArg):
                single = (-1,) * len(self._emit.shape(std.ref))
                op = Elementwise(call("mul", Const(scale), Arg(0)), (single,))
                line = Map(name="", op=op, args=(std.ref,), shape=())
                if scale != 1.0:
                    std = TensorArg(self._emit.add(line, f"{a.name}^T_std"), ())
            else:
                std = std * scale
            name = self._emit.free(f"{a.name}^T")
            line = dataclasses.replace(
                a, name=name, rows=a.cols, cols=a.rows, std=std, source=""
            )
            self._fresh[base] = self._emit.copy(line)
        return self._fresh[base]

    def _matmul(self, old: Ref, line: MatMul) -> Ref:
        base, transposed = matrix_of(self._old.lines, line.matrix)
        product = renumber(line, self._place)
        assert isinstance(product, MatMul)
        roots = self._products.get((base, not transposed), [])
        self._check_heads(line, [self._origin[r] for r in roots])
        roots = [r for r in roots if not self._is_independent(line.x, r)]
        dots = self._dot(product, roots)
        terms = _merged([t for found in dots.values() for t in found])
        if terms and not self._is_smaller(line):
            self._dots[old] = {self._origin[r]: found for r, found in dots.items()}
            hat = self._hats[old] = self._emit.add(product, f"{line.name}_hat")
            own = Term(hat, maps=identity_maps(line.shape))
            terms = self._gaussian_first([own, *terms], line)
            ref = self._emit.copy(
                LinComb(
                    name=line.name, terms=terms, shape=line.shape, source=line.source
                )
            )
        else:
            hat = ref = self._emit.copy(product)
        known = self._products.setdefault((base, transposed), [])
        if hat not in known:
            known.append(hat)
            self._origin[hat] = old
        return ref

    def _check_heads(self, line: MatMul, roots: Sequence[Ref]) -> None:
        """Refuse derivatives that differ from head to head, multiplied by channels.

        Their mean over heads is random by 1 / sqrt(heads), which the number of
        channels makes no small part of the product.
        """
        lines, own = self._old.lines, wide(self._old, line.x).dim
        if own.order == 1:
            return
        reads = coordinatewise(lines, line.x)
        if reads.isdisjoint(roots):
            return
        for r in reads:
            if wide(self._old, r).dim != own or self._is_spread(r):
                raise UnsupportedError(
                    f"The matrix of `{line.name}` and its transpose are used around "
                    f"`{lines[r].name}`, which differs from head to head, as attention "
                    f"weights do: that is not covered.{at(line.source)}"
                )

    def _is_smaller(self, line: MatMul) -> bool:
        """Whether all of dotZ is of a lower order than hatZ, by sqrt(cols / rows).

        Raises:
            UnsupportedError: it is of a higher order.
        """
        matrix = self._old.types[line.matrix]
        assert isinstance(matrix, Matrix)
        if matrix.rows.order < matrix.cols.order:
            base, _ = matrix_of(self._old.lines, line.matrix)
            raise UnsupportedError(
                f"`{self._old.lines[base].name}` is used with its transpose, and the "
                f"two uses are not independent: `{line.name}` grows with the number of "
                f"heads.{at(line.source)}"
            )
        return matrix.rows.order > matrix.cols.order

    def _is_spread(self, ref: Ref) -> bool:
        """Whether it stands for a vector over heads, repeated over their channels."""
        line = self._old.lines[ref]
        if not isinstance(line, MatMul):
            return False
        base, transposed = matrix_of(self._old.lines, line.matrix)
        return transposed and is_channel_sum(self._old.lines[base])

    def _is_independent(self, x: Ref, root: Ref) -> bool:
        """Whether the mean derivative of an old line along a root is zero by symmetry.

        Where the law stays the same as one input changes its sign, the derivative is
        multiplied by the signs of both.
        """
        if self._parities is None:
            return False
        return self._parities[x].excludes(self._parities[self._origin[root]])

    def _gaussian_first(self, terms: Sequence[Term], line: MatMul) -> tuple[Term, ...]:
        """The terms, where several Gaussian ones beside others are one line.

        A function of their sum then depends on one Gaussian, not on each.
        """
        gaussian: list[Term] = []
        rest: list[Term] = []
        for t in terms:
            kind = None if t.x is None else self._emit.types[t.x]
            is_g = isinstance(kind, Vector) and kind.kind == "G"
            (gaussian if is_g else rest).append(t)
        if len(gaussian) < 2 or not rest:
            return tuple(terms)
        sum_ = LinComb(name="", terms=tuple(gaussian), shape=line.shape)
        ref = self._emit.add(sum_, f"{line.name}_gaussian")
        return (Term(ref, maps=identity_maps(line.shape)), *rest)

    def _dot(self, product: MatMul, roots: Sequence[Ref]) -> dict[Ref, list[Term]]:
        """The terms of dotZ^{M z} for every root M^T u that has some."""
        derivatives = {r: self._tangents.of(product.x, r) for r in roots}
        derivatives = {r: d for r, d in derivatives.items() if d != ()}
        read = Term(product.x, 1.0, (), product.maps, product.sums)
        terms: dict[Ref, list[Term]] = {}
        means: list[tuple[Ref, Branch]] = []
        if any(isinstance(d, NoFunction) for d in derivatives.values()):
            means = self._regression(product, list(derivatives))
        else:
            for root, found in derivatives.items():
                assert not isinstance(found, NoFunction)
                for one in found:
                    branch = self._tangents.through(product.shape, read, one)
                    means.append((root, self._mean(product, root, branch)))
        for root, branch in means:
            terms.setdefault(root, []).append(self._term(product, root, branch))
        found = {root: _merged(of) for root, of in terms.items()}
        return {root: of for root, of in found.items() if of}

    def _mean(self, product: MatMul, root: Ref, branch: Branch) -> Branch:
        """The branch with the mean of its value, a tensor, in the place of it."""
        term = branch.term
        if term.x is None:
            return branch
        sizes = product.shape + term.sums
        x, letters = self._gathered(term.x, term.maps, sizes)
        name = f"E_{self._emit.name(x)}"
        line = self._emit.lines[x]
        if isinstance(line, Nonlin):
            mean = self._emit.moment(line.fn, line.xs, line.tensors, name)
        else:
            mean = self._emit.moment(Arg(0), (x,), (), name)
        tensors = (*term.tensors, TensorArg(mean, letters))
        return Branch(branch.root, Term(None, term.scale, tensors, (), term.sums))

    def _gathered(
        self, x: Ref, maps: tuple[AxisMap, ...], sizes: tuple[int, ...]
    ) -> tuple[Ref, tuple[int, ...]]:
        """A family read at maps as a family of its own, and the letters of its axes."""
        plain = [m.letters[0] for m in maps if m.is_identity]
        full = tuple(sizes[i] for i in plain) == self._emit.shape(x)
        if len(plain) == len(maps) == len(set(plain)) and full:
            return x, tuple(plain)
        letters = sorted({i for m in maps for i in m.letters})
        moved = tuple(
            AxisMap(tuple(letters.index(i) for i in m.letters), m.table) for m in maps
        )
        shape = tuple(sizes[i] for i in letters)
        name = self._emit.name(x)
        return self._emit.read(x, moved, shape, name), tuple(letters)

    def _regression(
        self, product: MatMul, roots: Sequence[Ref]
    ) -> list[tuple[Ref, Branch]]:
        """The mean derivatives in all roots by Stein's lemma, a = C^+ b.

        Positions of the roots are variables of one regression, which is made for
        every position that the product reads.
        """
        sizes = product.shape + product.sums
        z, letters = self._gathered(product.x, product.maps, sizes)
        count = len(roots)
        pairs = [(r, s) for i, r in enumerate(roots) for s in roots[i:]]
        args = [self._second(r, s) for r, s in pairs]
        args += [self._second(r, z) for r in roots]
        found = []
        for part, root in enumerate(roots):
            axes = self._emit.shape(root)
            shape = axes + self._emit.shape(z)
            line = Map(
                name="", op=Regression(part, count), args=tuple(args), shape=shape
            )
            name = f"E_d{self._emit.name(z)}_d{self._emit.name(root)}"
            ref = self._emit.add(line, name)
            at = tuple(range(len(sizes), len(sizes) + len(axes)))
            here = tuple(AxisMap.identity(i, s) for i, s in zip(at, axes, strict=True))
            value = Term(
                None, 1.0, (TensorArg(ref, at + letters),), (), product.sums + axes
            )
            found.append((root, Branch(here, value)))
        return found

    def _second(self, x: Ref, y: Ref) -> Ref:
        """E[x[i] y[j]], of shape I + J."""
        first, second = self._emit.shape(x), self._emit.shape(y)
        whole, emit = first + second, self._emit
        axes = identity_maps(whole)
        u = emit.read(x, axes[: len(first)], whole, emit.name(x))
        v = emit.read(y, axes[len(first) :], whole, emit.name(y))
        name = f"E_{emit.name(x)}_{emit.name(y)}"
        return emit.moment(call("mul", Arg(0), Arg(1)), (u, v), (), name)

    def _term(self, product: MatMul, root: Ref, branch: Branch) -> Term:
        """sigma^2 sum over the root's positions that meet the same matrix.

        The letters are those of the product, o and k, then s of the branch, then
        those that the root sums over; these are replaced where the matrix ties them.
        """
        other = self._emit.lines[root]
        assert isinstance(other, MatMul)
        first = product.shape + branch.term.sums
        tied: dict[int, AxisMap] = {}
        checks: list[tuple[AxisMap, AxisMap]] = []
        positions = len(other.shape)
        for i, j in zip(product.letters, other.letters, strict=True):
            if i < 0 or j < 0:
                continue
            mine = AxisMap.identity(i, first[i])
            if j < positions:
                checks.append((branch.root[j], mine))
            elif j in tied:
                checks.append((tied[j], mine))
            else:
                tied[j] = mine
        left = [
            j for j in range(positions, positions + len(other.sums)) if j not in tied
        ]
        for n, j in enumerate(left):
            tied[j] = AxisMap.identity(len(first) + n, other.sums[j - positions])
        inner = (*branch.root, *(tied[positions + n] for n in range(len(other.sums))))
        maps = tuple(compose(m, inner) for m in other.maps)
        masks = [_equal(x, y) for x, y in checks]
        read = {i for m in other.maps for i in m.letters} | {
            j for j in other.letters if j < positions
        }
        masks += [
            (m.table >= 0, m.letters)
            for i, m in enumerate(branch.root)
            if i not in read and not m.is_inside
        ]
        tensors = [*branch.term.tensors, *self._masks(masks)]
        scale, deviation = self._variance(product.matrix)
        return Term(
            other.x,
            scale * branch.term.scale,
            tuple(tensors) + deviation,
            maps,
            branch.term.sums + tuple(other.sums[j - positions] for j in left),
        )

    def _masks(
        self, masks: Sequence[tuple[np.ndarray, tuple[int, ...]]]
    ) -> list[TensorArg]:
        return [
            TensorArg(self._emit.constant(inside.astype(float), "same"), letters)
            for inside, letters in masks
            if not inside.all()
        ]

    def _variance(self, matrix: Ref) -> tuple[float, tuple[TensorArg, ...]]:
        """sigma_M^2: a number, and the tensors that multiply it."""
        line = self._emit.lines[matrix]
        assert isinstance(line, MatIn)
        if not isinstance(line.std, TensorArg):
            return line.std**2, ()
        single = TensorArg(line.std.ref, (-1,) * len(self._emit.shape(line.std.ref)))
        return 1.0, (single, single)


def _equal(x: AxisMap, y: AxisMap) -> tuple[np.ndarray, tuple[int, ...]]:
    """Where two maps name the same position, and its letters."""
    letters = tuple(sorted({*x.letters, *y.letters}))
    a, b = x.spread(letters), y.spread(letters)
    return (a == b) & (a >= 0), letters


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Terms that differ in their scales alone are added; those of scale 0 dropped."""
    found: dict[Term, list[float]] = {}
    for t in terms:
        order = tuple(sorted(t.tensors, key=lambda a: (a.ref, a.letters)))
        key = dataclasses.replace(t, scale=1.0, tensors=order)
        found.setdefault(key, []).append(t.scale)
    totals = {t: total_scale(scales) for t, scales in found.items()}
    return [dataclasses.replace(t, scale=s) for t, s in totals.items() if s != 0.0]
