"""Run a network and keep what it taps.

The network is traced, and its graph is evaluated equation by equation, so that a value
tapped inside a loop comes out of the loop properly. Random bits that the network draws
with a key of its own are made fresh for every seed on the way.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from .._errors import InputError, UnsupportedError
from ..trace._declare import TAP_PREFIX

# `bind` has no graph to give these, so they go through their public functions.
_SCATTER: dict[str, Callable[..., Any]] = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter-mul": jax.lax.scatter_mul,
    "scatter_mul": jax.lax.scatter_mul,
    "scatter-min": jax.lax.scatter_min,
    "scatter_min": jax.lax.scatter_min,
    "scatter-max": jax.lax.scatter_max,
    "scatter_max": jax.lax.scatter_max,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Tapped:
    """A tapped value.

    Attributes:
        value: the array.
        loops: how many leading axes are steps of the scans around the tap.
        order: its place among the taps of the network.
    """

    value: Any
    loops: int
    order: int = 0


jax.tree_util.register_dataclass(
    Tapped, data_fields=["value"], meta_fields=["loops", "order"]
)


def run_with_taps(
    f: Callable[..., Any],
    theta: Any,
    x: Any,
    seed: Any,
    shifts: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, Tapped]]:
    """The output of `f(theta, x)` and every tapped value, by name.

    Args:
        f: the network at its widths.
        theta: its arrays.
        x: a batch of inputs.
        seed: a uint32 mixed into the keys of random bits drawn inside `f`.
        shifts: what is added to tapped values, by name, of their shapes (those of
            loops first). The derivative at zero is the gradient at the tap: of all
            uses of the tapped value, also where the result of the tap is not used.

    Raises:
        InputError: two taps have one name, or `f` does not return one array.
        UnsupportedError: a tap inside a `while_loop` or `cond`.
    """
    graph, arrays = graph_of(f, theta, x)
    run = _Run(seed, shifts or {})
    (output,) = run.graph(graph, [jnp.asarray(a) for a in arrays])
    return output, run.taps


def graph_of(f: Callable[..., Any], theta: Any, x: Any) -> tuple[_jax.Graph, list[Any]]:
    """The traced network, and its inputs: the arrays (or shapes) among the leaves."""
    leaves, tree = jax.tree_util.tree_flatten((theta, x))
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def network(*arrays: Any) -> Any:
        mine = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            mine[i] = array
        return f(*jax.tree_util.tree_unflatten(tree, mine))

    arrays = [leaves[i] for i in places]
    shapes = [
        jax.ShapeDtypeStruct(
            a.shape, jax.dtypes.canonicalize_dtype(a.dtype, allow_extended_dtype=True)
        )
        for a in arrays
    ]
    graph, shape = _jax.trace(network, *shapes, x64=_jax.x64_enabled())
    if not hasattr(shape, "shape"):
        raise InputError(
            "The network should return one array, got "
            f"{jax.tree_util.tree_structure(shape)}."
        )
    return graph, arrays


def called(equation: _jax.Equation) -> _jax.Graph | None:
    """The graph of a call that does nothing but call: jit, remat, custom rules."""
    if equation.name in ("scan", "while", "cond"):
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = equation.params.get(key)
        if isinstance(inner, _jax.Graph) and len(inner.inputs) == len(equation.inputs):
            return inner
    return None


class _Run:
    """Evaluates graphs, collecting taps and shifting their values."""

    def __init__(self, seed: Any, shifts: Mapping[str, Any]) -> None:
        self.seed, self.shifts = seed, shifts
        self.taps: dict[str, Tapped] = {}

    def graph(
        self,
        graph: _jax.Graph,
        args: Sequence[Any],
        caller: str = "",
        nested: bool = False,
    ) -> list[Any]:
        values: dict[_jax.Var, Any] = dict(graph.constants)
        values.update(zip(graph.inputs, args, strict=True))
        moved = _tapped_in(graph) if self.shifts else {}
        # What a graph is called with is moved by its caller, who may use it as well.
        for v, names in moved.items():
            if v in values and not (nested and v in graph.inputs):
                values[v] = self.moved(values[v], names)

        def read(atom: _jax.Atom) -> Any:
            if isinstance(atom, _jax.Var):
                return values[atom]
            return np.asarray(atom.value, atom.dtype)

        for equation in graph.equations:
            inputs = [read(v) for v in equation.inputs]
            outputs = self.equation(equation, inputs, caller)
            for v, value in zip(equation.outputs, outputs, strict=True):
                values[v] = self.moved(value, moved.get(v, ()))
        return [read(v) for v in graph.outputs]

    def moved(self, value: Any, names: Sequence[str]) -> Any:
        """A value with the shifts of its taps."""
        for name in names:
            if name in self.shifts:
                value = value + self.shifts[name]
        return value

    def equation(
        self, equation: _jax.Equation, args: list[Any], caller: str
    ) -> Sequence[Any]:
        name = equation.name
        if tapped := _tap_of(equation):
            # JAX traces a tap of one name and shape once, and keeps that source.
            self.record(tapped, Tapped(args[0], 0), caller or equation.source)
            return args[: len(equation.outputs)]
        if name == "random_bits":
            return _jax.bind(equation, [_mix(args[0], self.seed)])
        if name in _SCATTER:
            return [_scatter(equation, args)]
        if name == "scan":
            return self.scan(equation, args)
        if name in ("while", "cond"):
            return self.branches(equation, args)
        inner = called(equation)
        if inner is None:
            return _jax.bind(equation, args)
        return self.graph(inner, args, equation.source or caller, nested=True)

    def record(self, name: str, value: Tapped, source: str) -> None:
        if name in self.taps:
            raise InputError(
                f"Two taps are called {name!r} (the second at {source or '?'}): names "
                "of taps are unique in a network."
            )
        order = len(self.taps)  # JAX sorts a dict of arrays by name
        self.taps[name] = dataclasses.replace(value, order=order)

    def scan(self, equation: _jax.Equation, args: list[Any]) -> list[Any]:
        params = equation.params
        n_const, n_carry = params["num_consts"], params["num_carry"]
        consts, carry = args[:n_const], args[n_const : n_const + n_carry]
        loops: dict[str, int] = {}
        inside = _names_in(params["jaxpr"])
        shifts = {k: v for k, v in self.shifts.items() if k in inside}

        def body(carry: Any, step: Any) -> Any:
            xs, shift = step
            inner = _Run(self.seed, shift)
            outs = inner.graph(params["jaxpr"], [*consts, *carry, *xs])
            loops.update({k: t.loops + 1 for k, t in inner.taps.items()})
            taps = {k: t.value for k, t in inner.taps.items()}
            return outs[:n_carry], (outs[n_carry:], taps)

        start = [jnp.asarray(c) for c in carry]
        carry, (ys, taps) = jax.lax.scan(
            body,
            start,
            (args[n_const + n_carry :], shifts),
            length=params["length"],
            reverse=params["reverse"],
        )
        for name, count in loops.items():
            self.record(name, Tapped(taps[name], count), equation.source)
        return [*carry, *ys]

    def branches(self, equation: _jax.Equation, args: list[Any]) -> Sequence[Any]:
        """A `while_loop` or `cond`, whose taps have no well-defined values."""

        def run(graph: _jax.Graph, args: Sequence[Any]) -> list[Any]:
            inner = _Run(self.seed, {})
            outs = inner.graph(graph, args)
            if inner.taps:
                raise UnsupportedError(
                    f"The tap {next(iter(inner.taps))!r} is inside a {equation.name} "
                    f"({equation.source or '?'}), where it has no value of fixed "
                    "shape. Move it out, or use a loop of fixed length."
                )
            return outs

        params = equation.params
        if equation.name == "cond":
            options = [lambda *a, g=g: run(g, a) for g in params["branches"]]
            return jax.lax.switch(args[0], options, *args[1:])
        n_test, n_body = params["cond_nconsts"], params["body_nconsts"]
        test, body = args[:n_test], args[n_test : n_test + n_body]
        return jax.lax.while_loop(
            lambda c: run(params["cond_jaxpr"], [*test, *c])[0],
            lambda c: run(params["body_jaxpr"], [*body, *c]),
            [jnp.asarray(c) for c in args[n_test + n_body :]],
        )


def _tap_of(equation: _jax.Equation) -> str | None:
    """The name of the tap that a call is."""
    name = str(equation.params.get("name", ""))
    return name.removeprefix(TAP_PREFIX) if name.startswith(TAP_PREFIX) else None


def _names_in(graph: _jax.Graph) -> set[str]:
    """The names of the taps in a graph, and in what it calls."""
    names: set[str] = set()
    for equation in graph.equations:
        if name := _tap_of(equation):
            names.add(name)
        elif equation.name == "scan":
            names |= _names_in(equation.params["jaxpr"])
        elif inner := called(equation):
            names |= _names_in(inner)
    return names


def _tapped_in(graph: _jax.Graph) -> dict[_jax.Var, list[str]]:
    """The variables of a graph that are tapped, in it or in what it calls."""
    found: dict[_jax.Var, list[str]] = {}
    for equation in graph.equations:
        if name := _tap_of(equation):
            pairs = [(equation.inputs[0], [name])]
        elif inner := called(equation):
            inside = _tapped_in(inner)
            pairs = [
                (outer, inside.get(v, []))
                for outer, v in zip(equation.inputs, inner.inputs, strict=True)
            ]
        else:
            continue
        for v, names in pairs:
            if isinstance(v, _jax.Var) and names:
                found.setdefault(v, []).extend(names)
    return found


def _scatter(equation: _jax.Equation, args: list[Any]) -> Any:
    p = equation.params
    return _SCATTER[equation.name](
        jnp.asarray(args[0]),
        *args[1:],
        p["dimension_numbers"],
        indices_are_sorted=p["indices_are_sorted"],
        unique_indices=p["unique_indices"],
        mode=p["mode"],
    )


def _mix(keys: Any, seed: Any) -> Any:
    """Other keys for every seed; equal keys stay equal."""
    fold = jax.random.fold_in
    for _ in range(jnp.ndim(keys)):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(keys, seed)
