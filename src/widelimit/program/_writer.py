"""Writes lines: names them, merges equal ones, and spells JAX functions of tensors."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .. import scalar
from .._errors import UnsupportedError
from .._jax import Equation, Literal, fold, pick, trace
from ._lines import (
    Array,
    Constant,
    Dim,
    Elementwise,
    Input,
    Line,
    Map,
    MatIn,
    Moment,
    Nonlin,
    Primitive,
    Ratio,
    Ref,
    Tensor,
    Type,
    VecIn,
    Vector,
    channel_sum,
)
from ._program import TensorProgram, type_of

# Unrolled loops and deep networks may write this many lines.
LINE_BUDGET = 20_000

_PREFIX: dict[type, str] = {Map: "t", Moment: "t", Nonlin: "h"}
_DOUBLE = np.dtype("float64")


class Writer:
    """A program under construction.

    Args:
        program: the lines to go on from; none when missing.
    """

    def __init__(self, program: TensorProgram | None = None) -> None:
        self.lines: list[Line] = list(program.lines) if program else []
        self.types: list[Type] = list(program.types) if program else []
        self._names = dict.fromkeys((line.name for line in self.lines), 1)
        self._equal: dict[Line, Ref] = {
            dataclasses.replace(line, name=""): ref
            for ref, line in enumerate(self.lines)
            if not isinstance(line, VecIn | MatIn)
        }
        self._counts: dict[str, int] = {}
        self.input_dtypes: dict[str, Any] = {}

    def emit(self, line: Line) -> Ref:
        """Add a line, or find the equal one; the name is made unique.

        Raises:
            UnsupportedError: the program has too many lines.
        """
        if line in self._equal:
            return self._equal[line]
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
        self._equal[line] = len(self.lines) - 1
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

    def channel_sum(self, covering: Dim, dim: Dim) -> Ref:
        """The one matrix of sums over the channels of every head."""
        line = channel_sum(covering, dim)
        return self.lines.index(line) if line in self.lines else self.emit(line)

    # Tensors --------------------------------------------------------------------------

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

    def call(
        self,
        f: Callable[..., Any],
        args: Sequence[Ref],
        source: str,
        dtypes: Sequence[Any] | None = None,
    ) -> Ref:
        """Write a JAX function of tensors as Map lines, one a primitive.

        Args:
            f: a function of as many arrays as there are `args`.
            args: Tensor lines.
            source: the user's line.
            dtypes: of the arguments; as far as their lines tell when missing.
        """
        specs = []
        for i, a in enumerate(args):
            kind = self.types[a]
            assert isinstance(kind, Tensor)
            dtype = self._dtype(a) if dtypes is None else dtypes[i]
            specs.append(jax.ShapeDtypeStruct(kind.shape, dtype))
        graph, _ = trace(f, *specs)
        env: dict[Any, Ref] = dict(zip(graph.inputs, args, strict=True))
        for var, value in graph.constants:
            env[var] = self.constant(np.asarray(value), source)
        self._graph(_needed(graph.equations, graph.outputs), env, source)
        (out,) = graph.outputs
        return self._atom(out, env, source)

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
            sorted((k, _plain(v)) for k, v in equation.params.items() if _printable(v))
        ) + ((("result", result),) if result else ())
        op = Primitive(equation.name, params, equation)
        return self.emit(Map(name="", op=op, args=refs, shape=shape, source=source))

    def _dtype(self, ref: Ref) -> Any:
        line = self.lines[ref]
        if isinstance(line, Moment):
            return _DOUBLE
        assert isinstance(line, Map)
        match line.op:
            case Constant(value):
                return value.value.dtype
            case Input(key):
                return self.input_dtypes.get(key, _DOUBLE)
            case Elementwise() | Ratio():
                return _DOUBLE
            case Primitive():
                return np.dtype(line.op.equation.outputs[0].dtype)


def _needed(equations: Sequence[Equation], outputs: Sequence[Any]) -> list[Equation]:
    """The equations that the outputs depend on."""
    needed, kept = set(outputs), []
    for e in reversed(equations):
        if needed.intersection(e.outputs):
            needed.update(e.inputs)
            kept.append(e)
    return kept[::-1]


def _plain(value: Any) -> Any:
    """A tuple with Python's own whole numbers, which print as they are read."""
    if type(value) is tuple:
        return tuple(_plain(v) for v in value)
    return int(value) if isinstance(value, np.integer) else value


def _printable(value: Any) -> bool:
    return isinstance(value, int | float | str | tuple) or value is None
