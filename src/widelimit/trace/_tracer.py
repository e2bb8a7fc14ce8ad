"""The interpreter: an aligned graph, equation by equation, into lines of a program.

It runs twice. The first run only unifies the layouts of wide axes; the second, when
every layout is known, writes lines. Rules are looked up by the name of the primitive.
"""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .. import scalar
from .._errors import NoLimitError, UnsupportedError
from .._jax import Equation, Graph, Literal, Var
from ..program import Part, Perturbation, Ref, TensorArg, VecIn
from ..scalar import Expr
from ._align import Constant as Captured
from ._emit import Emitter
from ._fixed import on_tensors
from ._layout import Atom, Axis, Block, Unifier, blocks
from ._sizes import Extent, Scaled, Shape, Size
from ._tap import TAP_PREFIX
from ._values import (
    Key,
    Known,
    Leaf,
    Linear,
    Pending,
    Value,
    known,
    leaf_shape,
)

RuleFn = Callable[["Tracer", Equation, list[Any]], list[Any]]

# A pending function used in several places is written as a line beyond this size.
_SMALL = 24


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one group of primitives becomes lines.

    Attributes:
        apply: the rule.
        summary: what it covers, for the coverage table.
    """

    apply: RuleFn
    summary: str


RULES: dict[str, Rule] = {}
"""JAX primitive -> rule: one of the two open registries of widelimit."""


def rule(summary: str, *names: str) -> Callable[[RuleFn], RuleFn]:
    """Register a function as the rule of primitives."""

    def register(f: RuleFn) -> RuleFn:
        for name in names:
            RULES[name] = Rule(f, summary)
        return f

    return register


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixSource:
    """A matrix parameter: which axes are wide, and its entries' standard deviation."""

    name: str
    shape: Shape
    std: float | TensorArg
    axes: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A tensor whose entries must lie in a range, tested on concrete inputs."""

    ref: Ref
    low: int
    high: int
    what: str


class Tracer:
    """The state of one run.

    Attributes:
        dry: the layout run, which writes no lines.
        moving: whether trained constants are input lines.
        where: the user's line of the equation at work.
    """

    def __init__(
        self,
        layouts: dict[Any, Axis],
        unifier: Unifier,
        ratios: dict[str, float],
        dry: bool,
        per_example: Sequence[bool] = (),
        moving: bool = False,
    ) -> None:
        self.emit = Emitter()
        self.unifier, self.ratios, self.dry = unifier, ratios, dry
        self.where = ""
        self.matrices: dict[str, MatrixSource] = {}
        self.parameters: dict[str, list[Ref]] = {}
        self.orientation: dict[str, tuple[int, int]] = {}
        self.taps: list[tuple[str, Any]] = []
        self.notes: list[str] = []
        self.perturbations: dict[Ref, Perturbation] = {}
        self.checks: list[Check] = []
        self.per_example, self.moving = tuple(per_example), moving
        self.draws = 0
        self._layouts = layouts
        self._anonymous = 0

    def is_parameter(self, name: str, ref: Ref) -> None:
        """State that an input line is (a part of) a parameter."""
        known = self.parameters.setdefault(name, [])
        if ref not in known:
            known.append(ref)

    # Layouts --------------------------------------------------------------------------

    def layout(self, key: Any, size: Size) -> Axis:
        """The layout of a source's wide axis; the same at every run."""
        if key not in self._layouts:
            size.dim  # noqa: B018 - refuses sizes that are no widths
            self._layouts[key] = Atom(size)
        return self._layouts[key]

    def fresh(self, size: Size) -> Axis:
        """A layout for an axis made on the way, such as that of zeros."""
        self._anonymous += 1
        return self.layout(("fresh", self._anonymous), size)

    def unify(self, x: Axis, y: Axis) -> None:
        """State that two axes are laid out alike."""
        self.unifier.unify(x, y, self.at())

    def at(self) -> str:
        """`, at file:line`, or nothing."""
        return f", at {self.where}" if self.where else ""

    def width_ratio(self, size: Size) -> float:
        """The ratio of a wide size to the common scale."""
        return size.dim.ratio(self.ratios)

    def dim(self, block: Block) -> Any:
        """The wide dimension of a block."""
        return block.atom.size.dim

    # Errors ---------------------------------------------------------------------------

    def refuse(self, message: str) -> UnsupportedError:
        """An error that names the user's line and what is covered."""
        where = f" at {self.where}" if self.where else ""
        return UnsupportedError(
            f"{message}{where}.\nCovered primitives: {', '.join(sorted(RULES))}."
        )

    def diverges(self, what: str, power: Fraction) -> NoLimitError:
        """An error for a quantity of positive order that is used nonlinearly."""
        where = f", at {self.where}" if self.where else ""
        return NoLimitError(
            f"{what} grows like n^{power} with the width{where}: it has no limit. "
            f"{_advice(power)}"
        )

    # Running --------------------------------------------------------------------------

    def run(self, graph: Graph, args: Sequence[Any]) -> list[Any]:
        """Interpret a graph on values."""
        uses = _uses(graph)
        env: dict[Var, Any] = {}
        for var, value in zip(graph.inputs, args, strict=True):
            env[var] = self._shared(value, uses.get(var, 0))
        for var, value in graph.constants:
            env[var] = self.captured(value)
        for equation in graph.equations:
            outer, self.where = self.where, equation.source or self.where
            ins = [self._read(a, env) for a in equation.inputs]
            outs = self._apply(equation, ins)
            if self.dry:
                # Orders mean nothing before lines are written.
                outs = [
                    o
                    if isinstance(o, Key)
                    else dataclasses.replace(o, power=Fraction(0))
                    for o in outs
                ]
            for var, value in zip(equation.outputs, outs, strict=True):
                env[var] = self._shared(value, uses.get(var, 0))
            self.where = outer
        return [self._read(a, env) for a in graph.outputs]

    def _apply(self, equation: Equation, ins: list[Any]) -> list[Any]:
        name = equation.name
        if name in scalar.CALLS:
            inner = equation.params[scalar.CALLS[name]]
            label = str(equation.params.get("name", ""))
            if label.startswith(TAP_PREFIX):
                return [self._tap(label.removeprefix(TAP_PREFIX), ins[0])]
            return self.run(inner, ins)
        if name != "random_bits" and any(isinstance(v, Key) for v in ins):
            return [Key(o.shape) for o in equation.outputs]
        if name not in RULES:
            plain = all(
                isinstance(v, Value) and v.kind == "fixed" and not v.wide for v in ins
            )
            if not plain or any(
                isinstance(s, Size) for o in equation.outputs for s in o.shape
            ):
                raise self.refuse(f"The primitive `{name}` has no rule")
            if any(v.power != 0 for v in ins):
                raise self.diverges(
                    f"The argument of `{name}`", max(v.power for v in ins)
                )
            return on_tensors(self, equation, ins, Fraction(0))
        return RULES[name].apply(self, equation, ins)

    def _read(self, atom: Any, env: dict[Var, Any]) -> Any:
        if isinstance(atom, Literal):
            return self.scalar(atom.value, atom.dtype)
        return env[atom]

    def scalar(self, value: Any, dtype: Any) -> Value:
        """A literal, with its order in the widths."""
        if isinstance(value, Scaled):
            power = Fraction(0) if self.dry else value.power
            number = known(np.asarray(value.value), power)
            return dataclasses.replace(number, dtype=np.dtype(dtype))
        return known(np.asarray(value, dtype))

    def captured(self, constant: Captured | Any) -> Value:
        """An array that the function brings along."""
        value, shape = constant.value, constant.shape
        if value.dtype == object:
            return self.scalar(value.item(), np.dtype("float64"))
        wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
        if not wide:
            return known(value)
        return self.constant_vector(value, shape, value.dtype)

    def constant_vector(self, value: np.ndarray, shape: Shape, dtype: Any) -> Value:
        """A fixed array, constant along its wide axis."""
        wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
        if len(wide) > 1:
            raise self.refuse("A fixed array with two wide axes is no tensor program")
        (axis,) = wide
        size = shape[axis]
        assert isinstance(size, Size)
        layout = self.fresh(size)
        leaves = (
            None
            if self.dry
            else tuple(
                Known(np.broadcast_to(value, leaf_shape(shape, axis, b)))
                for b in blocks(layout)
            )
        )
        return Value(shape, "fixed", leaves, axis, layout, dtype=np.dtype(dtype))

    def _shared(self, value: Any, uses: int) -> Any:
        """A value used in several places is written, unless it is small."""
        if uses < 2 or not isinstance(value, Value) or value.leaves is None:
            return value
        if value.kind == "fixed" or not any(_worth_writing(x) for x in value.leaves):
            return value
        leaves: list[Leaf] = []
        for block, leaf in zip(value.blocks(), value.leaves, strict=True):
            if _worth_writing(leaf):
                shape = value.leaf_shape(block)
                dim = None if block is None else self.dim(block)
                leaf = Linear.of(self.emit.ref(leaf, shape, self.where, dim), shape)
            leaves.append(leaf)
        return dataclasses.replace(value, leaves=tuple(leaves))

    def _tap(self, name: str, value: Any) -> Any:
        if (
            isinstance(value, Value)
            and value.leaves is not None
            and value.kind != "bits"
        ):
            value = self.written(value)
            self.taps.append((name, value))
        return value

    def written(self, value: Value) -> Value:
        """The value with every leaf a line of its own."""
        assert value.leaves is not None
        if value.kind == "fixed":
            return value
        leaves: list[Leaf] = []
        for block, leaf in zip(value.blocks(), value.leaves, strict=True):
            shape = value.leaf_shape(block)
            dim = None if block is None else self.dim(block)
            leaves.append(Linear.of(self.emit.ref(leaf, shape, self.where, dim), shape))
        return dataclasses.replace(value, leaves=tuple(leaves))

    # Orders ---------------------------------------------------------------------------

    def perturbation(self, value: Value, power: Fraction) -> Value:
        """A vector of order n^(power - 1/2), as it stands beside one of n^power."""
        assert value.leaves is not None
        leaves = []
        for block, leaf in zip(value.blocks(), value.leaves, strict=True):
            assert block is not None
            shape, dim = value.leaf_shape(block), self.dim(block)
            ref = self.emit.ref(leaf, shape, self.where, dim)
            name = f"perturbation{len(self.perturbations)}"
            at = self.emit.emit(VecIn(name=name, shape=shape, dim=dim, std=0.0))
            self.perturbations[at] = Perturbation(at, (Part(ref),), self.where)
            leaves.append(Linear.of(at, shape))
        return dataclasses.replace(value, leaves=tuple(leaves), power=power)

    # Parameters -----------------------------------------------------------------------

    def source_layout(self, source: MatrixSource, axis: int) -> Axis:
        """The layout of a wide axis of a matrix parameter."""
        size = source.shape[axis]
        assert isinstance(size, Size)
        return self.layout((source.name, axis), size)

    def note(self, message: str) -> None:
        """Record a dropped lower-order term."""
        text = f"{message}{self.at()}"
        if text not in self.notes:
            self.notes.append(text)


def _advice(power: Fraction) -> str:
    if power == Fraction(1, 2):
        return "Divide by sqrt(n)?"
    return f"Divide by n**{float(power):g}?"


def _worth_writing(leaf: Leaf) -> bool:
    match leaf:
        case Pending():
            return _nodes(leaf.fn) > _SMALL
        case Linear():
            return len(leaf.terms) > 1
        case _:
            return False


def _uses(graph: Graph) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for e in graph.equations:
        for a in e.inputs:
            if isinstance(a, Var):
                counts[a] = counts.get(a, 0) + 1
    for a in graph.outputs:
        if isinstance(a, Var):
            counts[a] = counts.get(a, 0) + 1
    return counts


def _nodes(expr: Expr) -> int:
    return 1 + sum(_nodes(a) for a in expr.args) if isinstance(expr, scalar.Call) else 1


def wide_axis(shape: Sequence[Extent]) -> int | None:
    """Which axis of a shape is wide, or None."""
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    return wide[0] if wide else None
