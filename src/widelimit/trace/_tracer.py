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
from ._given import GIVEN_PREFIX
from ._layout import Atom, Axis, Block, Unifier, blocks, size_of
from ._sizes import Extent, Scaled, Shape, Size
from ._tap import TAP_PREFIX
from ._values import (
    Deferred,
    Headed,
    Key,
    Known,
    Leaf,
    Linear,
    MatrixValue,
    Pending,
    Value,
    known,
    leaf_shape,
)

RuleFn = Callable[["Tracer", Equation, list[Any]], list[Any]]

LOOPS = ("scan", "cond")
"""Primitives that run graphs on whatever they are given."""

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

DEFERRED: dict[str, RuleFn] = {}
"""The rules for operands that no line holds; see `_product`."""

HEADED: dict[str, RuleFn] = {}
"""The rules for operands that are vectors over many heads; see `_heads`."""

PER_HEAD = "per head"
"""The rule of all primitives that have none in `HEADED`."""


def rule(summary: str, *names: str) -> Callable[[RuleFn], RuleFn]:
    """Register a function as the rule of primitives."""

    def register(f: RuleFn) -> RuleFn:
        for name in names:
            RULES[name] = Rule(f, summary)
        return f

    return register


def deferred_rule(*names: str) -> Callable[[RuleFn], RuleFn]:
    """Register a function as the rule of primitives for operands that no line holds."""

    def register(f: RuleFn) -> RuleFn:
        DEFERRED.update(dict.fromkeys(names, f))
        return f

    return register


def headed_rule(*names: str) -> Callable[[RuleFn], RuleFn]:
    """Register a function as the rule of primitives for vectors over many heads."""

    def register(f: RuleFn) -> RuleFn:
        HEADED.update(dict.fromkeys(names, f))
        return f

    return register


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixSource:
    """A matrix parameter: which axes are wide, and its entries' standard deviation.

    Of one with an axis of heads: see `_heads`, where that axis is taken off.
    """

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
        # Where a layout is made names it: what is deferred differs between the runs.
        self._place: tuple[int, ...] = ()
        self._anonymous = 0
        self._entered: dict[tuple[int, ...], int] = {}

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
        return self.layout(("fresh", self._place, self._anonymous), size)

    def unify(self, x: Axis, y: Axis) -> None:
        """State that two axes are laid out alike."""
        self.unifier.unify(x, y, self.at())

    def at(self) -> str:
        """`, at file:line`, or nothing."""
        return f", at {self.where}" if self.where else ""

    def width_ratio(self, size: Size) -> float:
        """The ratio of a wide size to the common scale."""
        return size.dim.ratio(self.ratios)

    def order(self, layout: Axis) -> int:
        """The order of a wide size in the common scale; 2 for channels of heads."""
        return size_of(layout).dim.order

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

    def run(
        self, graph: Graph, args: Sequence[Any], wanted: Sequence[bool] | None = None
    ) -> list[Any]:
        """Interpret a graph on values.

        Args:
            graph: the graph.
            args: the values of its inputs.
            wanted: which outputs are asked for, all if None; others are None.
        """
        uses = _uses(graph)
        env: dict[Var, Any] = {}
        for var, value in zip(graph.inputs, args, strict=True):
            env[var] = self._shared(value, uses.get(var, 0))
        around, count = self._place, self._anonymous
        self._entered[around] = self._entered.get(around, 0) + 1
        self._place, self._anonymous = (*around, self._entered[around]), 0
        here = self._place
        for var, value in graph.constants:
            env[var] = self.captured(value)
        live, needed = _live(graph, wanted)
        for number, equation in enumerate(graph.equations):
            if equation not in live:
                continue
            self._place, self._anonymous = (*here, number), 0
            outer, self.where = self.where, equation.source or self.where
            ins = [self._read(a, env) for a in equation.inputs]
            outs = self.apply(equation, ins, [v in needed for v in equation.outputs])
            if self.dry:
                # Orders mean nothing before lines are written.
                outs = [_without_order(o) for o in outs]
            for var, value in zip(equation.outputs, outs, strict=True):
                env[var] = self._shared(value, uses.get(var, 0))
            self.where = outer
        self._place, self._anonymous = around, count
        return [
            self._read(a, env) if wanted is None or wanted[i] else None
            for i, a in enumerate(graph.outputs)
        ]

    def apply(
        self, equation: Equation, ins: list[Any], wanted: Sequence[bool] | None = None
    ) -> list[Any]:
        """The results of one equation on values; None for some that are not wanted."""
        name = equation.name
        if name in scalar.CALLS:
            inner = equation.params[scalar.CALLS[name]]
            label = str(equation.params.get("name", ""))
            if label.startswith(TAP_PREFIX):
                # Where JAX differentiates it leaves taps whose value nothing reads.
                name = label.removeprefix(TAP_PREFIX)
                return [self._tap(name, x) for x in ins[: len(equation.outputs)]]
            if label.startswith(GIVEN_PREFIX):
                op = dataclasses.replace(
                    equation, name=label.removeprefix(GIVEN_PREFIX), params={}
                )
                return RULES["tanh"].apply(self, op, ins)
            return self.run(inner, ins, wanted)
        if name != "random_bits" and any(isinstance(v, Key) for v in ins):
            return [Key(o.shape) for o in equation.outputs]
        if name not in LOOPS and any(has_heads(v) for v in ins):
            return HEADED.get(name, HEADED[PER_HEAD])(self, equation, ins)
        deferred = [v for v in ins if isinstance(v, Deferred)]
        if deferred and name not in LOOPS:
            if name not in DEFERRED:
                raise self.refuse(f"{deferred[0].reason} by `{name}`")
            return DEFERRED[name](self, equation, ins)
        if name in RULES:
            return RULES[name].apply(self, equation, ins)
        return self._without_rule(equation, ins)

    def _without_rule(self, equation: Equation, ins: list[Any]) -> list[Any]:
        """Any primitive of fixed tensors."""
        name = equation.name
        plain = all(
            isinstance(v, Value) and v.kind == "fixed" and not v.wide for v in ins
        )
        if not plain or any(
            isinstance(s, Size) for o in equation.outputs for s in o.shape
        ):
            raise self.refuse(f"The primitive `{name}` has no rule")
        if any(v.power != 0 for v in ins):
            raise self.diverges(f"The argument of `{name}`", max(v.power for v in ins))
        return on_tensors(self, equation, ins, Fraction(0))

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
        if isinstance(value, Headed):
            inner = self._shared(value.value, uses)
            return dataclasses.replace(value, value=inner)
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
        if isinstance(value, Deferred):
            raise self.refuse(value.reason)
        if isinstance(value, Headed):
            raise self.refuse("A tap of vectors over both heads and channels")
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
        parts = []
        for block, leaf in zip(value.blocks(), value.leaves, strict=True):
            assert block is not None
            shape, dim = value.leaf_shape(block), self.dim(block)
            parts.append((Part(self.emit.ref(leaf, shape, self.where, dim)),))
        return dataclasses.replace(self.perturbed(value, parts), power=power)

    def perturbed(self, value: Value, parts: Sequence[tuple[Part, ...]]) -> Value:
        """What stands for a perturbation of a vector, given for every block of it."""
        leaves = []
        for block, sums in zip(value.blocks(), parts, strict=True):
            assert block is not None
            shape, name = value.leaf_shape(block), f"perturbation{len(self.emit.lines)}"
            line = VecIn(name=name, shape=shape, dim=self.dim(block), std=0.0)
            at = self.emit.emit(line)
            self.perturbations[at] = Perturbation(at, sums, self.where)
            leaves.append(Linear.of(at, shape))
        return dataclasses.replace(value, kind="vector", leaves=tuple(leaves))

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


def has_heads(value: Any) -> bool:
    """Whether a value has an axis of heads beside that of channels."""
    return isinstance(value, Headed) or (
        isinstance(value, MatrixValue) and len(value.layouts) > 2
    )


def _without_order(value: Any) -> Any:
    if isinstance(value, Headed):
        return dataclasses.replace(value, value=_without_order(value.value))
    if isinstance(value, Value | MatrixValue):
        return dataclasses.replace(value, power=Fraction(0))
    return value


def _advice(power: Fraction) -> str:
    if power == Fraction(1, 2):
        return (
            "Divide by sqrt(n)? (Logits q.k / sqrt(n) of attention are random; they "
            "are covered where the number of heads is a width, too: weights of shape "
            "(heads, n, d) with heads = wl.width('heads').)"
        )
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


def _live(graph: Graph, wanted: Sequence[bool] | None) -> tuple[set[Any], set[Any]]:
    """The equations that something asks for, and the variables that they need."""
    needed = {a for i, a in enumerate(graph.outputs) if wanted is None or wanted[i]}
    live = set()
    for e in reversed(graph.equations):
        if not needed.isdisjoint(e.outputs) or _leaves_a_mark(e):
            live.add(e)
            needed.update(e.inputs)
    return live, needed


def _leaves_a_mark(e: Equation) -> bool:
    """Whether it taps a value, or draws random numbers, which are counted."""
    if str(e.params.get("name", "")).startswith(TAP_PREFIX) or e.name == "random_bits":
        return True
    return any(_leaves_a_mark(inner) for graph in e.graphs for inner in graph.equations)


def _nodes(expr: Expr) -> int:
    return 1 + sum(_nodes(a) for a in expr.args) if isinstance(expr, scalar.Call) else 1


def wide_axis(shape: Sequence[Extent]) -> int | None:
    """Which axis of a shape is wide, or None."""
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    return wide[0] if wide else None
