"""A network as an ordinary JAX function, compiled to a tensor program."""

import dataclasses
import os
import re
import traceback
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, ShapeMismatchError, UnsupportedError, WidelimitError
from .._jax import Graph, is_concrete, trace
from ..program import Input, Map, Perturbation, Ref, TensorArg, TensorProgram, VecIn
from . import (  # noqa: F401 - rules
    _control,
    _conv,
    _dot,
    _elementwise,
    _heads,
    _move,
    _reduce,
)
from ._align import align
from ._declare import Constant, Normal, dims_of, trial_shape, widths_are, widths_in
from ._layout import Axis, Unifier, blocks
from ._sizes import Shape, Size, Solver, trials
from ._tracer import Check, MatrixSource, Tracer
from ._values import (
    Data,
    Deferred,
    Headed,
    Known,
    Leaf,
    Linear,
    MatrixTerm,
    MatrixValue,
    Value,
    leaf_shape,
)
from ._views import combined

_MAX_LAYOUT_RUNS = 64
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass(frozen=True)
class Traced:
    """A quantity of the network in its program.

    Attributes:
        refs: its lines, one for each block of its wide axis, with the fraction of the
            width that the block is.
        shape: its traced shape, with 1 for the wide axis.
        axis: the wide axis, or None.
        power: its order in the widths.
        kind: "vector", "output" or "fixed".
        source: the user's line, if known.
    """

    refs: tuple[tuple[Ref, float], ...]
    shape: tuple[int, ...]
    axis: int | None
    power: Fraction
    kind: str
    source: str = ""

    def moved(self, place: Mapping[Ref, Ref]) -> "Traced":
        """The quantity in a rewritten program."""
        return dataclasses.replace(
            self, refs=tuple((place[r], w) for r, w in self.refs)
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """A compiled network, for one shape of input.

    Attributes:
        program: its tensor program; inputs are keyed "x..", "param:..", "std:..".
        output: what the function returns.
        taps: the tapped quantities, by name.
        notes: lower-order terms that were dropped.
        checks: ranges that data must keep.
        parameters: the input lines that a parameter is, by name; one for each pair of
            blocks of its wide axes.
        perturbations: the terms of order n^-1/2 that may count in the output.
    """

    program: TensorProgram
    output: Traced
    taps: dict[str, Traced]
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    parameters: Mapping[str, tuple[Ref, ...]]
    perturbations: tuple[Perturbation, ...] = ()

    @property
    def needed(self) -> tuple[Ref, ...]:
        """The lines that anything asks for."""
        traced = (self.output, *self.taps.values())
        return tuple(r for t in traced for r, _ in t.refs) + tuple(
            c.ref for c in self.checks
        )

    def moved(self, program: TensorProgram, place: Mapping[Ref, Ref]) -> "Network":
        """The network in a rewritten program, where line `r` is line `place[r]`."""
        return Network(
            program,
            self.output.moved(place),
            {name: t.moved(place) for name, t in self.taps.items()},
            self.notes,
            tuple(dataclasses.replace(c, ref=place[c.ref]) for c in self.checks),
            {
                name: tuple(place[r] for r in refs if r in place)
                for name, refs in self.parameters.items()
            },
        )


def compile_network(
    f: Callable[..., Any],
    params: Any,
    x: Any,
    per_example: tuple[bool, ...] = (),
    moving: bool = False,
    first: Graph | None = None,
) -> Network:
    """Compile `f(params, x)` for inputs of one shape.

    Args:
        f: the network.
        params: a pytree of declarations and arrays.
        x: a pytree of `jax.ShapeDtypeStruct`.
        per_example: for every draw of random bits, whether it is fresh for each input.
        moving: whether constants that are trained are input lines of the program, of
            standard deviation 0.
        first: the network at the first of the `trial_widths`, where that is known.

    Raises:
        UnsupportedError: a primitive or pattern that is not covered.
        NoLimitError: a quantity that diverges is used nonlinearly.
        ShapeMismatchError: the function fails on these shapes.
    """
    graph, ratios = traced_graph(f, params, x, first)
    try:
        return _compiled(graph, ratios, params, x, per_example, moving)
    except UnsupportedError as error:
        if ratios:
            raise
        raise InputError(
            "No parameter has a width: declare one with `wl.width`, as in `n = "
            "wl.width('n'); params = {'W': wl.normal((784, n))}`. Without one only "
            f"networks linear in their parameters are covered. {error}"
        ) from error


def _compiled(
    graph: Graph,
    ratios: dict[str, float],
    params: Any,
    x: Any,
    per_example: tuple[bool, ...],
    moving: bool,
) -> Network:
    unifier, layouts = Unifier(), {}
    for _ in range(_MAX_LAYOUT_RUNS):
        before = unifier.structured
        dry = Tracer(layouts, unifier, ratios, dry=True, moving=moving)
        _interpret(graph, params, x, dry)
        if unifier.structured == before:
            break
    tracer = Tracer(layouts, unifier, ratios, False, per_example, moving)
    (out,) = _interpret(graph, params, x, tracer)
    return _network(tracer, out)


def traced_graph(
    f: Callable[..., Any], params: Any, x: Any, first: Graph | None = None
) -> tuple[Graph, dict[str, float]]:
    """The aligned graph of several concrete traces, and the ratios of the widths.

    Args:
        f: the network.
        params: a pytree of declarations and arrays.
        x: a pytree of `jax.ShapeDtypeStruct`.
        first: the first of the traces, where that is known.
    """
    ratios = _ratios(params)
    assignments = trials(ratios)
    left = assignments if first is None else assignments[1:]
    # Off the ray first: there widths differ, and a mismatch is told by their names.
    graphs = [trace_at(f, params, x, a) for a in reversed(left)]
    graphs += [] if first is None else [first]
    return align(graphs[::-1], Solver(ratios, assignments)), ratios


def trial_widths(params: Any) -> list[dict[str, int]]:
    """The widths, all of them large, at which a network is traced."""
    return trials(_ratios(params))


def _ratios(params: Any) -> dict[str, float]:
    widths = widths_in(params)
    return {n: float(widths[n].ratio) for n in sorted(widths)}


def trace_at(
    f: Callable[..., Any], params: Any, x: Any, widths: Mapping[str, int]
) -> Graph:
    """The graph of the network at concrete widths, traced abstractly.

    Raises:
        ShapeMismatchError: the function fails on these shapes.
        InputError: it does not return one array.
    """

    def struct(p: Any) -> Any:
        if isinstance(p, Normal | Constant):
            return jax.ShapeDtypeStruct(trial_shape(p.shape, widths), np.float64)
        array = p if hasattr(p, "dtype") else np.asarray(p)
        return jax.ShapeDtypeStruct(np.shape(array), _double(array.dtype))

    structs = jax.tree.map(struct, params, is_leaf=_declared)
    try:
        with widths_are(widths):
            graph, out = trace(f, structs, x)
    except (TypeError, ValueError) as error:
        if isinstance(error, WidelimitError) or raised_by_user(error):
            raise
        where = user_line(error)
        raise ShapeMismatchError(
            f"The network fails while it is traced{where}, with inputs of shape "
            f"{_shapes(x)}: {type(error).__name__}: {_in_widths(str(error), widths)}"
        ) from error
    if not hasattr(out, "shape"):
        raise InputError(
            f"The output of the network should be one array, got {type(out).__name__}. "
            "Name inner quantities with `wl.tap` instead of returning them."
        )
    return graph


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def _double(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype("float64")
    return dtype


def _shapes(x: Any) -> str:
    return ", ".join(str(tuple(a.shape)) for a in jax.tree.leaves(x))


def _in_widths(message: str, widths: Mapping[str, int]) -> str:
    """An error of JAX with the trial widths written as the user's names."""
    text = message.split("\n\n")[0]
    names = {str(value): name for name, value in widths.items()}
    for k in range(2, 17):
        for name, value in widths.items():
            names.setdefault(str(k * value), f"{k}*{name}")
            if value % k == 0:
                names.setdefault(str(value // k), f"{name}/{k}")
    return re.sub(r"\b\d+\b", lambda m: names.get(m.group(), m.group()), text)


def raised_by_user(error: BaseException) -> bool:
    """Whether the user's own code raised an exception, rather than JAX below it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_user(frames[-1].filename)


def _is_user(filename: str) -> bool:
    name = os.path.abspath(filename) if filename[0] != "<" else "<"
    if name.startswith(os.path.join(_HERE, "examples") + os.sep):
        return True
    skipped = (_HERE + os.sep, os.path.dirname(jax.__file__) + os.sep, "<")
    return not name.startswith(skipped) and f"{os.sep}numpy{os.sep}" not in name


def user_line(error: BaseException) -> str:
    """` at file:line (function)` of the innermost frame that is the user's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_user(frame.filename):
            return f" at {frame.filename}:{frame.lineno} ({frame.name}): `{frame.line}`"
    return ""


# Sources ------------------------------------------------------------------------------


def _interpret(graph: Graph, params: Any, x: Any, tracer: Tracer) -> list[Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    values = [_parameter(tracer, path_name(path), p) for path, p in paths]
    inputs, _ = jax.tree_util.tree_flatten_with_path(x)
    for path, leaf in inputs:
        key = "x" if not path else f"x.{path_name(path)}"
        values.append(_input(tracer, key, leaf.shape, leaf.dtype))
    return tracer.run(graph, values)


def path_name(path: Any) -> str:
    """A pytree path as a name: layers[0]["W"] is layers_0_W."""
    parts = [
        str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path
    ]
    name = re.sub(r"\W", "_", "_".join(parts)) or "params"
    return f"p{name}" if name[0].isdigit() else name


def _input(tracer: Tracer, key: str, shape: tuple[int, ...], dtype: Any) -> Value:
    # A typed key has a type that NumPy does not know.
    dtype = dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype)
    tracer.emit.input_dtypes[key] = dtype
    name = re.sub(r"\W", "_", key)
    ref = tracer.emit.emit(Map(name=name, op=Input(key), args=(), shape=tuple(shape)))
    return Value(tuple(shape), "fixed", (Data(ref, tuple(shape)),), dtype=dtype)


def _parameter(tracer: Tracer, name: str, p: Any) -> Any:
    match p:
        case Normal():
            return _normal(tracer, name, p)
        case Constant():
            return _constant(tracer, name, p)
        case _:
            array = p if hasattr(p, "dtype") else np.asarray(p)
            floating = jnp.issubdtype(array.dtype, jnp.floating)
            if (
                not floating
                and is_concrete(array)
                and not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
            ):
                value = np.asarray(array)
                return Value(value.shape, "fixed", (Known(value),), dtype=value.dtype)
            return _input(
                tracer, f"param:{name}", np.shape(array), _double(array.dtype)
            )


def _sizes(shape: Any) -> Shape:
    return tuple(s if isinstance(s, int) else Size(s.terms) for s in dims_of(shape))


def _std(tracer: Tracer, name: str, std: Any) -> float | TensorArg:
    if isinstance(std, int | float):
        return float(std)
    if is_concrete(std) and isinstance(std, np.ndarray | np.generic):
        return float(std)
    key = f"std:{name}"
    ref = tracer.emit.emit(Map(name=f"std_{name}", op=Input(key), args=(), shape=()))
    return TensorArg(ref, ())


def _fan_in(
    tracer: Tracer, shape: Shape, axes: tuple[int, ...]
) -> tuple[float, Fraction]:
    """The scale that a fan-in stands for, and its order."""
    scale, power = 1.0, Fraction(0)
    for axis in axes:
        s = shape[axis]
        if isinstance(s, Size):
            scale, power = scale / tracer.width_ratio(s) ** 0.5, power - Fraction(1, 2)
        else:
            scale /= s**0.5
    return scale, Fraction(0) if tracer.dry else power


def _normal(tracer: Tracer, name: str, p: Normal) -> Value | MatrixValue:
    shape = _sizes(p.shape)
    std = _std(tracer, name, p.std)
    scale, power = _fan_in(tracer, shape, p.fan_in_axes)
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    if len(wide) > 3:
        raise UnsupportedError(
            f"The parameter `{name}` has {len(wide)} wide axes; vectors have one, "
            "matrices two, and those of many heads three."
        )
    if len(wide) > 1:
        tracer.matrices[name] = MatrixSource(name, shape, std, (wide[0], wide[1]))
        layouts: dict[int, Axis] = {}
        for i in wide:
            size = shape[i]
            assert isinstance(size, Size)
            # Without its axis of heads a matrix has other layouts, of other sizes.
            key = (name, i) if len(wide) == 2 else (name, i, "with heads")
            layouts[i] = tracer.layout(key, size)
        term = MatrixTerm(
            name, tuple((i, None) for i in range(len(shape))), scale=scale
        )
        return MatrixValue(shape, (term,), layouts, power)
    value = dataclasses.replace(_input_lines(tracer, name, shape, std), power=power)
    return _scaled(value, scale)


def _input_lines(
    tracer: Tracer, name: str, shape: Shape, std: float | TensorArg
) -> Value:
    """A parameter that is Gaussian input lines, one for each block of its wide axis."""
    axis, layout, kind = None, None, "output"
    for i, size in enumerate(shape):
        if isinstance(size, Size):
            axis, layout, kind = i, tracer.layout((name, i), size), "vector"
    value = Value(shape, kind, None, axis, layout)
    if value.wide and tracer.dry:
        return value
    parts, leaves = value.blocks(), []
    for i, block in enumerate(parts):
        line = VecIn(
            name=name if len(parts) == 1 else f"{name}_{i}",
            shape=value.leaf_shape(block),
            dim=None if block is None else tracer.dim(block),
            std=std,
        )
        ref = tracer.emit.emit(line)
        tracer.is_parameter(name, ref)
        leaves.append(Linear.of(ref, line.shape))
    return dataclasses.replace(value, leaves=tuple(leaves))


def _scaled(value: Value, scale: float) -> Value:
    if scale == 1.0 or value.leaves is None:
        return value
    leaves = tuple(
        Linear(
            tuple(dataclasses.replace(t, scale=scale) for t in leaf.terms), leaf.shape
        )
        for leaf in value.leaves
        if isinstance(leaf, Linear)
    )
    return dataclasses.replace(value, leaves=leaves)


def _constant(tracer: Tracer, name: str, p: Constant) -> Value:
    shape = _sizes(p.shape)
    small = tuple(1 if isinstance(s, Size) else s for s in shape)
    wide = [i for i, s in enumerate(shape) if isinstance(s, Size)]
    if len(wide) > 1:
        raise UnsupportedError(
            f"The constant parameter `{name}` has {len(wide)} wide axes: a fixed "
            "matrix has no limit here. Use `wl.normal`."
        )
    if tracer.moving and p.is_trained:
        return _moving(tracer, name, p, shape, small)
    if is_concrete(p.value):
        value = np.broadcast_to(np.asarray(p.value, np.float64), small)
        if wide:
            return tracer.constant_vector(value, shape, np.float64)
        return Value(shape, "fixed", (Known(value),))
    given = _input(tracer, f"value:{name}", small, np.float64)
    if not wide:
        return given
    size = shape[wide[0]]
    assert isinstance(size, Size)
    layout = tracer.fresh(size)
    leaves = None if tracer.dry else tuple(given.leaf for _ in blocks(layout))
    return Value(shape, "fixed", leaves, wide[0], layout)


def _moving(
    tracer: Tracer, name: str, p: Constant, shape: Shape, small: tuple[int, ...]
) -> Value:
    """A constant as input lines without variance, plus its value."""
    given: Leaf = (
        Known(np.broadcast_to(np.asarray(p.value, np.float64), small))
        if is_concrete(p.value)
        else _input(tracer, f"value:{name}", small, np.float64).leaf
    )
    still = _input_lines(tracer, name, shape, 0.0)
    leaves = still.leaves
    if leaves is not None:
        leaves = tuple(
            combined([leaf, tracer.emit.linear(given, leaf.shape, "")], leaf.shape)
            for leaf in leaves
            if isinstance(leaf, Linear)
        )
    return dataclasses.replace(still, leaves=leaves)


# Results ------------------------------------------------------------------------------


def _network(tracer: Tracer, out: Any) -> Network:
    if isinstance(out, Deferred):
        raise UnsupportedError(f"{out.reason} as the output.")
    if isinstance(out, Headed):
        raise UnsupportedError(
            "The network returns vectors over heads and channels: read them out."
        )
    if not isinstance(out, Value):
        raise UnsupportedError(f"The network returns a {out.kind}, which has no limit.")
    tracer.where = ""
    pending_taps = [(name, v) for name, v in tracer.taps]
    names = [name for name, _ in pending_taps]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise InputError(
            f"The tap `{repeated[0]}` is used {names.count(repeated[0])} times; names "
            "of taps are unique."
        )
    everything = [out, *(v for _, v in pending_taps)]
    traced = [_traced(tracer, v) for v in everything]
    taps = dict(zip(names, traced[1:], strict=True))
    program = TensorProgram(
        tuple(tracer.emit.lines),
        tuple(r for r, _ in traced[0].refs),
        tuple((name, r) for name, t in taps.items() for r, _ in t.refs),
    )
    notes, checks = tuple(tracer.notes), tuple(tracer.checks)
    parameters = {name: tuple(refs) for name, refs in tracer.parameters.items()}
    perturbations = tuple(tracer.perturbations.values())
    return Network(program, traced[0], taps, notes, checks, parameters, perturbations)


def _traced(tracer: Tracer, v: Value) -> Traced:
    if v.kind in ("bits", "mantissa"):
        raise UnsupportedError("Random bits are returned or tapped.")
    assert v.leaves is not None
    shape = leaf_shape(v.shape, v.axis, None)
    if v.kind == "fixed":
        refs = []
        for block, leaf in zip(v.blocks(), v.leaves, strict=True):
            refs.append((tracer.emit.data(leaf, v.leaf_shape(block), ""), 1.0))
        source = tracer.emit.lines[refs[0][0]].source
        return Traced(tuple(refs), shape, v.axis, v.power, "fixed", source)
    refs = []
    sizes = [
        1.0 if b is None else b.count * tracer.dim(b).ratio(tracer.ratios)
        for b in v.blocks()
    ]
    for block, leaf, size in zip(v.blocks(), v.leaves, sizes, strict=True):
        dim = None if block is None else tracer.dim(block)
        ref = tracer.emit.ref(leaf, v.leaf_shape(block), "", dim)
        refs.append((ref, size / sum(sizes)))
    source = tracer.emit.lines[refs[0][0]].source
    return Traced(tuple(refs), shape, v.axis, v.power, v.kind, source)
