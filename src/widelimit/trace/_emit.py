"""Writes lines: names them, merges equal ones, and keeps the first source line."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._errors import UnsupportedError
from .._jax import Equation, Literal, pick, trace
from ..program import (
    Array,
    Constant,
    Elementwise,
    LinComb,
    Line,
    Map,
    Moment,
    Nonlin,
    Primitive,
    Ref,
    Tensor,
    TensorArg,
    Term,
    Type,
    VecIn,
    Vector,
    identity_maps,
    type_of,
)
from ..scalar import Arg, Const, Expr
from ._fixed import dtype_of, fold
from ._values import Data, Known, Leaf, Linear, Pending, uniform

# Unrolled loops and deep networks may write this many lines.
LINE_BUDGET = 20_000

_PREFIX: dict[type, str] = {Map: "t", Moment: "t", Nonlin: "h"}


class Emitter:
    """A program under construction."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.types: list[Type] = []
        self._equal: dict[Any, Ref] = {}
        self._names: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._combinations: dict[Any, list[tuple[Ref, np.ndarray]]] = {}
        self.input_dtypes: dict[str, Any] = {}

    def emit(self, line: Line) -> Ref:
        """Add a line, or find the equal one; the name is made unique.

        Raises:
            UnsupportedError: the program has too many lines.
        """
        key = line if line.name else dataclasses.replace(line, source="")
        if key in self._equal:
            return self._equal[key]
        if len(self.lines) >= LINE_BUDGET:
            raise UnsupportedError(
                f"The program has more than {LINE_BUDGET} lines (loops are unrolled): "
                "use fewer steps or layers. The last one is from "
                f"{line.source or 'the function'}."
            )
        kind = type_of(line, self.types)
        name = self._unique(line.name) if line.name else self._generated(line, kind)
        self.lines.append(dataclasses.replace(line, name=name))
        self.types.append(kind)
        self._equal[key] = len(self.lines) - 1
        return len(self.lines) - 1

    def _generated(self, line: Line, kind: Type) -> str:
        prefix = _PREFIX.get(type(line), "f")
        if isinstance(kind, Vector):
            prefix = kind.kind.lower()
        while True:
            self._counts[prefix] = self._counts.get(prefix, 0) + 1
            name = f"{prefix}{self._counts[prefix]}"
            if name not in self._names:
                self._names[name] = 1
                return name

    def _unique(self, name: str) -> str:
        self._names[name] = self._names.get(name, 0) + 1
        count = self._names[name]
        return name if count == 1 else self._unique(f"{name}_{count}")

    # Leaves ---------------------------------------------------------------------------

    def constant(self, value: np.ndarray, source: str) -> Ref:
        """A Tensor line that holds an array."""
        array = np.array(value)
        return self.emit(
            Map(
                name="",
                op=Constant(Array(array)),
                args=(),
                shape=array.shape,
                source=source,
            )
        )

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

    def call(self, f: Callable[..., Any], args: Sequence[Ref], source: str) -> Ref:
        """Write a JAX function of tensors as Map lines, one a primitive."""
        specs = []
        for a in args:
            kind = self.types[a]
            assert isinstance(kind, Tensor)
            specs.append(jax.ShapeDtypeStruct(kind.shape, dtype_of(self, a)))
        graph, _ = trace(f, *specs)
        env: dict[Any, Ref] = dict(zip(graph.inputs, args, strict=True))
        for var, value in graph.constants:
            env[var] = self.constant(np.asarray(value), source)
        self._graph(graph.equations, env, source)
        (out,) = graph.outputs
        return env[out]

    def _graph(
        self, equations: Sequence[Equation], env: dict[Any, Ref], source: str
    ) -> None:
        for e in equations:
            if e.name in scalar.CALLS:
                inner = e.params[scalar.CALLS[e.name]]
                local = dict(
                    zip(
                        inner.inputs,
                        [self._atom(a, env, source) for a in e.inputs],
                        strict=True,
                    )
                )
                for var, value in inner.constants:
                    local[var] = self.constant(np.asarray(value), source)
                self._graph(inner.equations, local, source)
                outs = [self._atom(a, local, source) for a in inner.outputs]
                env.update(zip(e.outputs, outs, strict=True))
                continue
            refs = tuple(self._atom(a, env, source) for a in e.inputs)
            for i, out in enumerate(e.outputs):
                one = e if len(e.outputs) == 1 else pick(e, i)
                env[out] = self.primitive(one, refs, out.shape, source, i)

    def _atom(self, atom: Any, env: dict[Any, Ref], source: str) -> Ref:
        if isinstance(atom, Literal):
            return self.constant(np.asarray(atom.value, atom.dtype), source)
        return env[atom]

    def primitive(
        self,
        equation: Equation,
        refs: tuple[Ref, ...],
        shape: tuple[int, ...],
        source: str,
        result: int = 0,
    ) -> Ref:
        """Write one JAX primitive on tensors; one of constants is run now."""
        ops = [line.op for r in refs if isinstance(line := self.lines[r], Map)]
        arrays = [op.value.value for op in ops if isinstance(op, Constant)]
        if len(arrays) == len(refs):
            return self.constant(fold(equation, arrays)[0].reshape(shape), source)
        params = tuple(
            sorted((k, v) for k, v in equation.params.items() if _printable(v))
        ) + ((("result", result),) if result else ())
        op = Primitive(equation.name, params, equation)
        return self.emit(Map(name="", op=op, args=refs, shape=shape, source=source))

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


def _printable(value: Any) -> bool:
    return isinstance(value, int | float | str | tuple) or value is None
