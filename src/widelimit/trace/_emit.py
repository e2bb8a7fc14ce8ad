"""Writes the values of a trace as lines."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import scalar
from ..program import (
    Elementwise,
    LinComb,
    Map,
    Nonlin,
    Ref,
    TensorArg,
    Term,
    VecIn,
    Vector,
    Writer,
    identity_maps,
)
from ..scalar import Arg, Const, Expr
from ._values import Data, Known, Leaf, Linear, Pending, uniform


class Emitter(Writer):
    """A program under construction, and what values of a trace are in it."""

    def __init__(self) -> None:
        super().__init__()
        self._combinations: dict[Any, list[tuple[Ref, np.ndarray]]] = {}

    def coefficient(self, leaf: Leaf, ndim: int, source: str) -> float | TensorArg:
        """A fixed leaf as a coefficient at the letters of a result, `ndim` of them."""
        value = uniform(leaf)
        if value is not None:
            return value
        if isinstance(leaf, Known):
            squeezed = _squeeze_broadcast(leaf.value)
            leaf = Data(self.constant(squeezed, source), squeezed.shape)
        assert isinstance(leaf, Data)
        first = ndim - len(leaf.shape) if leaf.shape else 0
        letters = tuple(-1 if s == 1 else first + i for i, s in enumerate(leaf.shape))
        return TensorArg(leaf.ref, letters)

    def linear(self, leaf: Leaf, shape: tuple[int, ...], source: str) -> Linear:
        """Any leaf as a linear combination."""
        match leaf:
            case Linear():
                return leaf
            case Pending():
                return Linear.of(self.nonlin(leaf, source), leaf.shape)
            case Known() | Data():
                c = self.coefficient(leaf, len(shape), source)
                if c == 0.0:
                    return Linear((), shape)
                if isinstance(c, TensorArg):
                    return Linear((Term(None, tensors=(c,)),), shape)
                return Linear((Term(None, scale=c),), shape)

    def nonlin(self, leaf: Pending, source: str) -> Ref:
        """Write a pending function as a line."""
        return self.emit(
            Nonlin(name="", fn=leaf.fn, xs=leaf.xs, tensors=leaf.tensors, source=source)
        )

    def ref(
        self, leaf: Leaf, shape: tuple[int, ...], source: str, dim: Any = None
    ) -> Ref:
        """The line of a leaf, written if it was not.

        Args:
            leaf: any leaf.
            shape: its index shape.
            source: the user's line.
            dim: the wide dimension, for a leaf that is a constant vector.
        """
        linear = self.linear(leaf, shape, source)
        found = self.multiple(linear)
        if found is not None:
            line, scale = found
            if scale == 1.0:
                return line
            linear = Linear.of(line, shape, scale)
        terms = linear.terms
        if dim is not None and not any(t.x is not None for t in terms):
            # A combination needs a vector: that of ones, as an input without noise.
            ones = self.emit(VecIn(name="ones", shape=(), dim=dim, mean=1.0, std=0.0))
            terms = tuple(dataclasses.replace(t, x=ones, maps=()) for t in terms) or (
                Term(ones, scale=0.0),
            )
        return self._combination(self._gathered(terms, shape, source), shape, source)

    def _combination(
        self, terms: tuple[Term, ...], shape: tuple[int, ...], source: str
    ) -> Ref:
        ref = self.emit(LinComb(name="", terms=terms, shape=shape, source=source))
        known = self._combinations.setdefault(_direction(terms, shape), [])
        known.append((ref, np.array([t.scale for t in terms])))
        return ref

    def _gathered(
        self, terms: tuple[Term, ...], shape: tuple[int, ...], source: str
    ) -> tuple[Term, ...]:
        """The terms, where several Gaussian ones beside others are one line.

        What is nonlinear in their sum then depends on one Gaussian, not on each.
        """
        gaussian = tuple(t for t in terms if self._is_gaussian(t))
        several = len(gaussian) > 1 or any(t.sums for t in gaussian)
        if not several or len(gaussian) == len(terms):
            return terms
        found = self.multiple(Linear(gaussian, shape))
        if found is None:
            found = self._combination(gaussian, shape, source), 1.0
        rest = tuple(t for t in terms if not self._is_gaussian(t))
        return (*Linear.of(found[0], shape, found[1]).terms, *rest)

    def _is_gaussian(self, term: Term) -> bool:
        kind = None if term.x is None else self.types[term.x]
        return isinstance(kind, Vector) and kind.kind == "G"

    def multiple(self, linear: Linear) -> tuple[Ref, float] | None:
        """A line that was written, and the number that makes the combination of it."""
        if len(linear.terms) == 1:
            (term,) = linear.terms
            plain = not term.tensors and not term.sums and term.x is not None
            if plain and self.is_line(term, linear.shape):
                assert term.x is not None
                return term.x, term.scale
        scales = np.array([t.scale for t in linear.terms])
        key = _direction(linear.terms, linear.shape)
        for ref, others in self._combinations.get(key, []):
            if scales.size and others[0] != 0.0:
                factor = float(scales[0] / others[0])
                if np.allclose(scales, factor * others, rtol=1e-14, atol=0.0):
                    return ref, factor
        return None

    def is_line(self, term: Term, shape: tuple[int, ...]) -> bool:
        """Whether a term reads a whole line of this shape, position by position."""
        whole = (
            term.x is not None and getattr(self.types[term.x], "shape", None) == shape
        )
        return whole and term.maps == identity_maps(shape)

    def data(self, leaf: Leaf, shape: tuple[int, ...], source: str) -> Ref:
        """The Tensor line of a fixed leaf, of the full shape."""
        if isinstance(leaf, Known):
            return self.constant(np.broadcast_to(leaf.value, shape), source)
        assert isinstance(leaf, Data)
        if leaf.shape == shape:
            return leaf.ref
        return self.call(lambda a: jnp.broadcast_to(a, shape), [leaf.ref], source)

    def elementwise(
        self, fn: Expr, leaves: Sequence[Leaf], shape: tuple[int, ...], source: str
    ) -> Leaf:
        """A scalar function of fixed leaves; constants are folded into it."""
        args: list[Expr] = []
        refs: list[Ref] = []
        letters: list[tuple[int, ...]] = []
        for leaf in leaves:
            c = self.coefficient(leaf, len(shape), source)
            if isinstance(c, TensorArg):
                args.append(Arg(len(refs)))
                refs.append(c.ref)
                letters.append(c.letters)
            else:
                args.append(Const(c))
        fn = scalar.substitute(fn, args)
        if isinstance(fn, Const):
            return Known(np.full(shape, fn.value))
        stored = tuple(
            s if any(i in t for t in letters) else 1 for i, s in enumerate(shape)
        )
        op = Elementwise(fn, tuple(letters))
        return Data(
            self.emit(
                Map(name="", op=op, args=tuple(refs), shape=stored, source=source)
            ),
            stored,
        )


def _direction(terms: tuple[Term, ...], shape: tuple[int, ...]) -> Any:
    """What combinations share that differ by numbers alone."""
    return tuple(dataclasses.replace(t, scale=1.0) for t in terms), shape


def _squeeze_broadcast(value: np.ndarray) -> np.ndarray:
    """The array with axes along which it is constant cut to size one."""
    for axis in range(value.ndim):
        if value.shape[axis] > 1:
            head = np.take(value, [0], axis=axis)
            if (value == head).all():
                value = head
    return value
