"""The only file that touches JAX's jaxpr objects.

Everything else sees a `Graph` of plain `Equation`s. Only names that JAX has kept for
years are used: `jax.make_jaxpr`, `.eqns`, `.invars`, `.outvars`, `.params`,
`.primitive.name`, `.primitive.bind`. Newer JAX has merged closed and open jaxprs, so
nothing here asks which of the two it holds.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax.core import ShapedArray as ShapedArray
from jax.extend.core import Primitive as Primitive

_HERE = os.path.dirname(os.path.abspath(__file__))
_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_AT = "widelimit_at:"
_SOURCE = re.compile(rf"{_AT}(.*?:\d+ \([^)]*\))")


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
    """A value inside a graph; compared by identity.

    Attributes:
        shape: whole numbers; after alignment sizes in the widths stand among them.
        dtype: its NumPy or JAX type.
    """

    shape: tuple[Any, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A constant scalar written into an equation."""

    value: Any
    shape: tuple[int, ...]
    dtype: Any


Atom = Var | Literal


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One application of a primitive; nested jaxprs in `params` are `Graph`s.

    `raw` holds what JAX gave for these, to run the primitive again.
    """

    name: str
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[Var, ...]
    source: str
    primitive: Any
    raw: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def graphs(self) -> "list[Graph]":
        """The graphs among its parameters."""
        found = []
        for p in self.params.values():
            parts = p if isinstance(p, tuple) else (p,)
            found += [q for q in parts if isinstance(q, Graph)]
        return found

    @property
    def is_of_jax(self) -> bool:
        """Whether the function that it calls is one of JAX's own."""
        for value in self.raw.values():
            info = getattr(getattr(value, "jaxpr", value), "debug_info", None)
            name = getattr(info, "func_filename", None)
            if isinstance(name, str) and name.startswith(_JAX):
                return True
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A traced function: equations in order, captured constants, inputs, outputs."""

    inputs: tuple[Var, ...]
    constants: tuple[tuple[Var, Any], ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Atom, ...]


def trace(
    f: Callable[..., Any], *args: Any, x64: bool = True, sources: bool = True
) -> tuple[Graph, Any]:
    """Trace `f` on abstract arguments.

    Args:
        f: a function of arrays.
        *args: pytrees of `jax.ShapeDtypeStruct`.
        x64: trace in double precision whatever the user's setting.
        sources: note the user's line behind every equation, which takes time.

    Returns:
        The graph over the flattened arguments, and the pytree of output shapes.
    """
    with enable_x64(x64):
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    return _graph(closed, sources), shape


@contextlib.contextmanager
def enable_x64(on: bool = True) -> Iterator[None]:
    """Double precision on or off inside the block, on every supported JAX."""
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(on)
    else:
        from jax import experimental

        older: Any = experimental
        context = older.enable_x64(on)
    with context:
        yield


@contextlib.contextmanager
def any_rank() -> Iterator[None]:
    """Arrays of any ranks broadcast, whatever the user's setting; also a decorator."""
    with jax.numpy_rank_promotion("allow"):
        yield


def x64_enabled() -> bool:
    """Whether JAX makes float64 arrays at this point of the program."""
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


def jit_for_cpu(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit`, as elementwise programs are fast on a CPU where XLA lets us say how.

    Only calls from outside of any trace may say so.
    """
    if jax.default_backend() != "cpu":
        return jax.jit(f, **options)
    return jax.jit(f, compiler_options=_cpu_options(), **options)


@functools.cache
def _cpu_options() -> dict[str, Any]:
    """The options that this XLA knows, none of which it promises to keep."""
    wanted = {
        # By default vectors are half as wide as those of AVX-512.
        "xla_cpu_prefer_vector_width": 512,
        # Operations are parallel inside. Beside each other they hold more memory,
        # which is slower, and from 32 MB on new in every call.
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    }
    return {key: value for key, value in wanted.items() if _is_known(key, value)}


def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={option: value})(np.float32(0))
    except Exception:
        return False
    return True


def is_concrete(x: Any) -> bool:
    """Whether `x` holds numbers now, rather than being traced."""
    return not isinstance(x, jax.core.Tracer)


def array_of(value: Any, dtype: Any) -> Any:
    """`jax.numpy.asarray`, for which a number of Python needs no program."""
    asarray = np.asarray if isinstance(value, int | float) else jax.numpy.asarray
    return asarray(value, dtype)


_SMALL = 2**18


def small_as_numpy(a: Any) -> Any:
    """A concrete array as one of NumPy, if it is small and on the host.

    There nothing is copied, and what is asked of it needs no program of its own; large
    arrays are worth one.
    """
    if isinstance(a, np.ndarray) or a.size > _SMALL:
        return a
    return np.asarray(a) if is_on_host(a) else a


def is_on_host(a: Any) -> bool:
    """Whether NumPy can read a concrete array of JAX where it is."""
    plain = not jax.numpy.issubdtype(a.dtype, jax.dtypes.extended)
    return plain and all(d.platform == "cpu" for d in a.devices())


def _graph(jaxpr: Any, sources: bool = True) -> Graph:
    consts = tuple(getattr(jaxpr, "consts", ()))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, Var] = {}

    def var(v: Any) -> Var:
        if v not in known:
            known[v] = Var(tuple(v.aval.shape), v.aval.dtype)
        return known[v]

    def atom(v: Any) -> Atom:
        if hasattr(v, "val"):
            return Literal(v.val, tuple(np.shape(v.val)), v.aval.dtype)
        return var(v)

    constants = tuple((var(v), c) for v, c in zip(inner.constvars, consts, strict=True))
    inputs = tuple(var(v) for v in inner.invars)
    equations = []
    for e in inner.eqns:
        ins = tuple(atom(v) for v in e.invars)
        outs = tuple(
            var(v) if hasattr(v, "count") or not _dropped(v) else _drop(v)
            for v in e.outvars
        )
        params = {k: _param(v, sources) for k, v in e.params.items()}
        raw = {k: v for k, v in e.params.items() if params[k] is not v}
        source = _source(e) if sources else ""
        equations.append(
            Equation(e.primitive.name, params, ins, outs, source, e.primitive, raw)
        )
    return Graph(
        inputs, constants, tuple(equations), tuple(atom(v) for v in inner.outvars)
    )


def _dropped(v: Any) -> bool:
    return type(v).__name__ == "DropVar"


def _drop(v: Any) -> Var:
    return Var(tuple(v.aval.shape), v.aval.dtype)


def _param(value: Any, sources: bool) -> Any:
    if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        return _graph(value, sources)
    if isinstance(value, tuple | list) and any(
        hasattr(v, "eqns") or hasattr(getattr(v, "jaxpr", None), "eqns") for v in value
    ):
        return tuple(_graph(v, sources) for v in value)
    return value


def inlined(graph: Graph, calls: Collection[str]) -> Graph:
    """A graph with what some equations call in their place.

    Args:
        graph: a traced function.
        calls: the names of equations that do nothing but call.
    """
    equations: list[Equation] = []
    constants: list[tuple[Var, Any]] = []

    def visit(graph: Graph, known: dict[Atom, Atom]) -> tuple[Atom, ...]:
        constants.extend(graph.constants)
        for e in graph.equations:
            ins = tuple(known.get(a, a) for a in e.inputs)
            inner = next((p for p in e.params.values() if isinstance(p, Graph)), None)
            if e.name in calls and inner is not None:
                # One function called twice has other values at either place.
                outs = visit(inner, dict(zip(inner.inputs, ins, strict=True)))
                known.update(zip(e.outputs, outs, strict=True))
                continue
            outputs = tuple(Var(v.shape, v.dtype) for v in e.outputs)
            known.update(zip(e.outputs, outputs, strict=True))
            equations.append(dataclasses.replace(e, inputs=ins, outputs=outputs))
        return tuple(known.get(a, a) for a in graph.outputs)

    outputs = visit(graph, {})
    return Graph(graph.inputs, tuple(constants), tuple(equations), outputs)


def bytes_of(atoms: Iterable[Atom]) -> int:
    """The size of some values."""
    sizes = ((math.prod(a.shape), getattr(a.dtype, "itemsize", 8)) for a in atoms)
    return sum(count * item for count, item in sizes)


def live_bytes(equations: Sequence[Equation], outputs: Sequence[Atom]) -> int:
    """The size of what is held at once, at the most, if nothing is fused.

    Args:
        equations: in order.
        outputs: what is held to the end.
    """
    last = {a: k for k, e in enumerate(equations) for a in e.inputs}
    last.update(dict.fromkeys(outputs, len(equations)))
    live = peak = 0
    held: set[Atom] = set()
    for k, e in enumerate(equations):
        made = bytes_of(e.outputs)
        inside = max((live_bytes(g.equations, g.outputs) for g in e.graphs), default=0)
        peak = max(peak, live + max(made, inside))
        held.update(v for v in e.outputs if last.get(v, k) > k)
        over = {a for a in e.inputs if a in held and last[a] == k}
        held -= over
        live = live + bytes_of(v for v in e.outputs if v in held) - bytes_of(over)
    return peak


def standing_at(source: str) -> contextlib.AbstractContextManager[Any]:
    """Give equations that are run again, and traced, the user's line they came from."""
    return jax.named_scope(_AT + source) if source else contextlib.nullcontext()


def _source(equation: Any) -> str:
    """`file:line (function)` of the user's own code, or an empty string."""
    info = getattr(equation, "source_info", None)
    if again := _SOURCE.findall(str(getattr(info, "name_stack", ""))):
        return again[-1]
    traceback = getattr(info, "traceback", None)
    for frame in getattr(traceback, "frames", ()) or ():
        name = frame.file_name
        if name.startswith("<") or name.startswith((_JAX, _HERE + os.sep)):
            continue
        return f"{name}:{frame.line_num} ({frame.function_name})"
    return ""


def pick(equation: Equation, result: int) -> Equation:
    """An equation of several results, as one of a single result."""
    return dataclasses.replace(
        equation,
        outputs=(equation.outputs[result],),
        primitive=_Pick(equation.primitive, result),
    )


class _Pick:
    multiple_results = False

    def __init__(self, primitive: Any, result: int) -> None:
        self._primitive, self._result = primitive, result

    def bind(self, *args: Any, **params: Any) -> Any:
        return self._primitive.bind(*args, **params)[self._result]


def evaluate(equation: Equation, args: Sequence[Any]) -> tuple[Any, ...]:
    """Run one equation as it was traced, whatever it calls.

    Unlike `bind` it takes the equations with functions inside (custom derivatives).
    """
    params = {**equation.params, **equation.raw}
    found = equation.primitive.get_bind_params(params)
    # Older JAX gives the functions apart from the parameters.
    functions, params = found if isinstance(found, tuple) else ((), found)
    out = equation.primitive.bind(*functions, *args, **params)
    return tuple(out) if equation.primitive.multiple_results else (out,)


def bind(equation: Equation, args: Sequence[Any], **changed: Any) -> Any:
    """Run one primitive on arrays, with some parameters replaced."""
    out = equation.primitive.bind(
        *args, **{**equation.params, **equation.raw, **changed}
    )
    return tuple(out) if equation.primitive.multiple_results else (out,)


def fold(equation: Equation, args: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Run a primitive on numbers now, in double precision, even under a trace."""
    with jax.ensure_compile_time_eval(), enable_x64():
        arrays = [jax.numpy.asarray(a) for a in args]
        return tuple(np.asarray(x) for x in bind(equation, arrays))
