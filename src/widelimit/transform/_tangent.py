"""Derivatives of lines in a product of a matrix, as lines (forward mode).

The derivative of the family z in the family r is D[p, q] = dZ^{z[p]} / dhatZ^{r[q]}. It
is sparse: z[p] reads few positions of r. So it is kept as a sum of branches

    D[p, q] = sum_s  d[p, s] * [q == root(p, s)],

d a family of vectors (or of tensors, where the derivative is deterministic). A branch
of a pixelwise function has no letter s and the root at its own position; a convolution
adds one letter for its window.

Scalars (Moment lines) are constants in the limit, and have no derivative here.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence

import numpy as np

from .. import scalar
from .._errors import UnsupportedError
from ..gaussian import may_jump
from ..program import (
    AxisMap,
    Constant,
    Elementwise,
    LinComb,
    Map,
    Moment,
    Nonlin,
    Ref,
    TensorArg,
    Term,
    Vector,
    ancestors,
    appearance,
    at,
    compose,
    identity_maps,
    operands,
)
from ..scalar import Arg, Const, Expr, call
from ._emitter import Emitter


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """Part of a derivative: the sum over s of term(p, s) [q == root(p, s)].

    Attributes:
        root: the position of the root, over the letters p then s.
        term: the value, over the same letters; its summed letters are s.
    """

    root: tuple[AxisMap, ...]
    term: Term


class NoFunction:
    """Stands for a derivative that is no function: one of a jump."""


Derivative = tuple[Branch, ...] | NoFunction


class Tangents:
    """Derivatives of the lines of a program in the making, each made once."""

    def __init__(self, emitter: Emitter) -> None:
        self._emit = emitter
        self._known: dict[tuple[Ref, Ref], Derivative] = {}

    def of(self, ref: Ref, root: Ref) -> Derivative:
        """The derivative of a line in the MatMul line `root`; () for zero."""
        for line in self._between(root, ref):
            self._known[line, root] = self._now(line, root)
        return self._known.get((ref, root), ())

    def _between(self, root: Ref, ref: Ref) -> list[Ref]:
        """The lines from root to ref that are not differentiated yet, in order."""
        needed, stack = set(), [ref]
        while stack:
            r = stack.pop()
            if r >= root and r not in needed and (r, root) not in self._known:
                needed.add(r)
                if isinstance(self._emit.lines[r], LinComb | Nonlin):
                    stack += operands(self._emit.lines[r])
        return sorted(needed)

    def _now(self, ref: Ref, root: Ref) -> Derivative:
        line, shape = self._emit.lines[ref], self._emit.shape(ref)
        if ref == root:
            return (Branch(identity_maps(shape), Term(None)),)
        if not isinstance(line, LinComb | Nonlin):
            return ()
        self._check_repeated(ref, root)
        if isinstance(line, LinComb):
            return self._combination(line, root)
        return self._function(line, root)

    def _check_repeated(self, ref: Ref, root: Ref) -> None:
        """Refuse a vector repeated over the channels that it was a sum over.

        Every channel then changes all of its head by a little, and the head what is
        a sum over its channels: a derivative that no coordinate shows.
        """
        line, types = self._emit.lines[ref], self._emit.types
        for x in operands(line):
            x_type, own = types[x], types[ref]
            if not (isinstance(x_type, Vector) and isinstance(own, Vector)):
                continue
            if x_type.dim != own.dim and root in ancestors(self._emit.lines, x):
                raise UnsupportedError(
                    f"A matrix and its transpose, and between them "
                    f"`{self._emit.name(x)}`, which sums over {own.dim} and is "
                    f"repeated over it, as attention weights that multiply their own "
                    f"keys: that is not covered.{at(line.source)}"
                )

    def _combination(self, line: LinComb, root: Ref) -> Derivative:
        found: list[Branch] = []
        for term in line.terms:
            inner = () if term.x is None else self._known.get((term.x, root), ())
            if isinstance(inner, NoFunction):
                return inner
            found += [self.through(line.shape, term, b) for b in inner]
        return self._compact(
            found, line.shape, f"d{line.name}_d{self._emit.name(root)}"
        )

    def through(self, shape: tuple[int, ...], term: Term, branch: Branch) -> Branch:
        """The derivative of one term of a combination of index shape `shape`.

        Args:
            shape: the index shape of the combination.
            term: the term.
            branch: a branch of the derivative of what the term reads.
        """
        assert term.x is not None
        axes = self._emit.shape(term.x)
        count = len(shape) + len(term.sums)
        sums = branch.term.sums
        inner = (*term.maps, *identity_maps(sums, count))
        sizes = axes + sums
        moved = [_letter(m, s) for m, s in zip(inner, sizes, strict=True)]
        if any(
            i >= 0 and moved[i] is None for a in branch.term.tensors for i in a.letters
        ):
            branch = self._as_line(term.x, branch)
        value = branch.term
        tensors = tuple(
            TensorArg(
                a.ref, tuple(-1 if i < 0 else _known(moved[i]) for i in a.letters)
            )
            for a in value.tensors
        )
        read = {i for m in (*branch.root, *value.maps) for i in m.letters}
        masks = [
            self._mask(m.table >= 0, m.letters)
            for i, m in enumerate(term.maps)
            if i not in read and not m.is_inside
        ]
        return Branch(
            tuple(compose(m, inner) for m in branch.root),
            _term(
                value.x,
                term.scale * value.scale,
                (*term.tensors, *tensors, *masks),
                tuple(compose(m, inner) for m in value.maps),
                term.sums + sums,
            ),
        )

    def _mask(self, inside: np.ndarray, letters: tuple[int, ...]) -> TensorArg:
        return TensorArg(self._emit.constant(inside.astype(float), "inside"), letters)

    def _as_line(self, x: Ref, branch: Branch) -> Branch:
        """The same branch with its value a family of its own, that maps can read."""
        term, shape = branch.term, self._emit.shape(x)
        whole = shape + term.sums
        value = dataclasses.replace(term, sums=())
        # A combination takes its width from a vector that it reads.
        width = Term(x, 0.0, maps=identity_maps(shape))
        line = LinComb(name="", terms=(value, width), shape=whole)
        ref = self._emit.add(line, f"d{self._emit.name(x)}")
        return Branch(branch.root, Term(ref, 1.0, (), identity_maps(whole), term.sums))

    def _compact(
        self, branches: Sequence[Branch], shape: tuple[int, ...], name: str
    ) -> tuple[Branch, ...]:
        """Branches of one root position as one tensor and one vector at most.

        Otherwise their number would double with every line of a long recursion.
        """
        groups: dict[tuple, list[Term]] = {}
        for b in _merged(branches):
            key = (b.root, b.term.sums, b.term.x is None)
            groups.setdefault(key, []).append(b.term)
        found = []
        for (root, sums, flat), terms in groups.items():
            term = terms[0]
            if len(terms) > 1:
                make = self._tensor if flat else self._vector
                term = make(terms, shape + sums, sums, name)
            found.append(Branch(root, term))
        return tuple(found)

    def _tensor(
        self,
        terms: Sequence[Term],
        whole: tuple[int, ...],
        sums: tuple[int, ...],
        name: str,
    ) -> Term:
        """The sum of terms without vectors."""
        args = list(dict.fromkeys(a for t in terms for a in t.tensors))
        total: Expr = Const(0.0)
        for t in terms:
            part: Expr = Const(t.scale)
            for a in t.tensors:
                part = _times(part, Arg(args.index(a)))
            total = call("add", total, part)
        return self._map(total, args, whole, sums, name)

    def _map(
        self,
        fn: Expr,
        args: Sequence[TensorArg],
        whole: tuple[int, ...],
        sums: tuple[int, ...],
        name: str,
    ) -> Term:
        """A function of tensors as a term, a tensor over the letters that it reads."""
        letters = sorted({i for a in args for i in a.letters if i >= 0})
        read = [
            tuple(letters.index(i) if i >= 0 else -1 for i in a.letters) for a in args
        ]
        line = Map(
            name="",
            op=Elementwise(fn, tuple(read)),
            args=tuple(a.ref for a in args),
            shape=tuple(whole[i] for i in letters),
        )
        ref = self._emit.add(line, name)
        return Term(None, 1.0, (TensorArg(ref, tuple(letters)),), (), sums)

    def _vector(
        self,
        terms: Sequence[Term],
        whole: tuple[int, ...],
        sums: tuple[int, ...],
        name: str,
    ) -> Term:
        """The sum of terms with vectors."""
        parts = tuple(dataclasses.replace(t, sums=()) for t in terms)
        ref = self._emit.add(LinComb(name="", terms=parts, shape=whole), name)
        return Term(ref, 1.0, (), identity_maps(whole), sums)

    def _function(self, line: Nonlin, root: Ref) -> Derivative:
        found: list[Branch] = []
        groups: dict[tuple, list[tuple[Expr, Term]]] = {}
        for i, x in enumerate(line.xs):
            inner = self._known.get((x, root), ())
            if isinstance(inner, NoFunction):
                return inner
            slope = self._slope(line, i) if inner else Const(0.0)
            if isinstance(slope, NoFunction):
                return slope
            if isinstance(slope, Const):
                found += [_scaled(b, slope.value) for b in inner]
                continue
            for b in inner:
                groups.setdefault((b.root, b.term.sums), []).append((slope, b.term))
        name = f"d{line.name}_d{self._emit.name(root)}"
        for (place, sums), parts in groups.items():
            if len(parts) == 1:
                # Alone, its coefficients may stay outside: fewer letters inside.
                ((slope, term),) = parts
                inside = dataclasses.replace(term, scale=1.0, tensors=())
                value = self._product(line, [(slope, inside)], sums, name)
                value = _term(
                    value.x, term.scale, value.tensors + term.tensors, value.maps, sums
                )
            else:
                value = self._product(line, parts, sums, name)
            found.append(Branch(place, value))
        return self._compact(found, self._emit.shape(line.xs[0]), name)

    def _slope(self, line: Nonlin, i: int) -> Expr | NoFunction:
        """The partial derivative of the function in its vector `i`."""
        positive = frozenset(
            len(line.xs) + j
            for j, t in enumerate(line.tensors)
            if self._nonnegative(t.ref)
        )
        if may_jump(line.fn, i, positive):
            return NoFunction()
        try:
            return scalar.differentiate(line.fn, i)
        except UnsupportedError:
            return NoFunction()

    def _nonnegative(self, ref: Ref) -> bool:
        """Whether a tensor is known to have no negative entry."""
        match self._emit.lines[ref]:
            case Moment(fn=fn, xs=xs, tensors=tensors):
                known = [self._nonnegative(t.ref) for t in tensors]
                return scalar.is_nonnegative(fn, [*[False] * len(xs), *known])
            case Map(op=Elementwise(fn), args=args):
                known = [self._nonnegative(r) for r in args]
                return scalar.is_nonnegative(fn, known)
            case Map(op=Constant(value)):
                return bool(np.all(value.value >= 0))
        return False

    def _product(
        self,
        line: Nonlin,
        parts: Sequence[tuple[Expr, Term]],
        sums: tuple[int, ...],
        name: str,
    ) -> Term:
        """The sum of slopes times derivatives, a value over the letters p, s."""
        shape = self._emit.shape(line.xs[0])
        whole, count = shape + sums, len(line.xs)
        tensors = [*line.tensors, *(a for _, t in parts for a in t.tensors)]
        inner = [t for _, t in parts if t.x is not None]
        first = count + len(inner)
        own: list[Expr] = [Arg(i) for i in range(count)]
        own += [Arg(first + i) for i in range(len(line.tensors))]
        x, a = count, first + len(line.tensors)
        total: Expr = Const(0.0)
        for slope, t in parts:
            part = _times(scalar.substitute(slope, own), Const(t.scale))
            for _ in t.tensors:
                part, a = _times(part, Arg(a)), a + 1
            if t.x is not None:
                part, x = _times(part, Arg(x)), x + 1
            total = call("add", total, part)
        if all(i >= first for i in appearance(total)):
            shifted = [Const(0.0)] * first + [Arg(i) for i in range(len(tensors))]
            return self._map(
                scalar.substitute(total, shifted), tensors, whole, sums, name
            )
        # The letters s that nothing reads are left to the term.
        read = {i for t in inner for m in t.maps for i in m.letters}
        read |= {i for arg in tensors for i in arg.letters if i >= 0}
        letters = [i for i in range(len(whole)) if i < len(shape) or i in read]
        axes = tuple(whole[i] for i in letters)
        vectors = [
            self._emit.read(v, identity_maps(shape), axes, self._emit.name(v))
            for v in line.xs
        ]
        for t in inner:
            assert t.x is not None
            maps = tuple(
                AxisMap(tuple(letters.index(i) for i in m.letters), m.table)
                for m in t.maps
            )
            vectors.append(self._emit.read(t.x, maps, axes, self._emit.name(t.x)))
        args = [
            TensorArg(
                g.ref, tuple(letters.index(i) if i >= 0 else -1 for i in g.letters)
            )
            for g in tensors
        ]
        ref = self._emit.nonlin(total, vectors, args, name)
        maps = tuple(AxisMap.identity(i, whole[i]) for i in letters)
        return Term(ref, 1.0, (), maps, sums)


def _times(x: Expr, y: Expr) -> Expr:
    return y if x == Const(1.0) else call("mul", x, y)


def _letter(m: AxisMap, size: int) -> int | None:
    """The letter that a map over an axis of this size is, or None."""
    return m.letters[0] if m.is_identity and m.table.size == size else None


def _known(letter: int | None) -> int:
    assert letter is not None
    return letter


def _term(
    x: Ref | None,
    scale: float,
    tensors: Sequence[TensorArg],
    maps: tuple[AxisMap, ...],
    sums: tuple[int, ...],
) -> Term:
    """A term whose tensors stand in one order, so that equal ones compare equal."""
    order = sorted(tensors, key=lambda a: (a.ref, a.letters))
    return Term(x, scale, tuple(order), maps, sums)


def _scaled(branch: Branch, scale: float) -> Branch:
    term = dataclasses.replace(branch.term, scale=scale * branch.term.scale)
    return Branch(branch.root, term)


def _merged(branches: Sequence[Branch]) -> list[Branch]:
    """Branches that differ in their scales alone are added."""
    found: dict[Branch, list[float]] = {}
    for b in branches:
        key = Branch(b.root, dataclasses.replace(b.term, scale=1.0))
        found.setdefault(key, []).append(b.term.scale)
    totals = {b: total_scale(scales) for b, scales in found.items()}
    return [_scaled(b, scale) for b, scale in totals.items() if scale != 0.0]


def total_scale(scales: Sequence[float]) -> float:
    """The sum of numbers, 0 where they cancel up to rounding.

    The square of a standard deviation is seldom exact, and what is left of its
    cancelling would be a vector that is not there.
    """
    total = math.fsum(scales)
    small = 64 * sys.float_info.epsilon * math.fsum(abs(s) for s in scales)
    return 0.0 if len(scales) > 1 and abs(total) <= small else total
