"""Untied weights: an independent copy of a parameter for every use of it.

Copies of a parameter stand along a new first axis of its array. The network is traced,
and its graph is run again with the next copy wherever an equation uses the parameter.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError, UnsupportedError
from .._jax import (
    Atom,
    Equation,
    Graph,
    Literal,
    Var,
    enable_x64,
    evaluate,
    standing_at,
    trace,
    x64_enabled,
)
from ..scalar import CALLS
from ._compile import path_name, trace_at
from ._declare import Constant, Normal, widths_in
from ._sizes import trials
from ._tap import TAP_PREFIX

# What gives a weight again, from weights and perhaps positions to read.
_REARRANGED = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy dynamic_slice expand_dims "
    "gather neg reshape rev slice squeeze transpose".split()
)
_SUMS = frozenset(("add", "add_any", "sub"))
_SCALINGS = frozenset(("mul", "div"))
_BRANCHES = frozenset(("cond", "while"))


class Untied:
    """A network whose weights are untied; made by `untie`, for `wl.limit`.

    Attributes:
        f: the network with tied weights.
        names: the parameters that are untied, or None for all random matrices.
    """

    def __init__(
        self, f: Callable[..., Any], names: Collection[str] | None = None
    ) -> None:
        functools.update_wrapper(self, f, updated=())
        self.f = f
        self.names = None if names is None else tuple(names)

    def __call__(self, params: Any, x: Any) -> Any:
        """Refused: how many copies there are depends on the inputs."""
        raise InputError(
            "A network with untied weights has other parameters than `params`: one "
            "copy for every use. Draw them by `net = wl.limit(wl.untie(f), params); "
            "g, theta = net.at(x, key=key, n=1024)`, and call g(theta, x)."
        )

    def expanded(self, params: Any, x: Any) -> tuple["Copied", Any]:
        """The network with copies among its parameters, for inputs of a shape.

        Args:
            params: the declarations of the network with tied weights.
            x: a pytree of `jax.ShapeDtypeStruct`.

        Returns:
            A function of parameters and inputs, and its declarations: those given,
            with a first axis of copies where weights are untied.

        Raises:
            InputError: there is no random matrix, or `names` has another name than
                those of random parameters.
            UnsupportedError: a loop or branch reads a weight in a way that is not
                covered.
        """
        paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
        names = [path_name(path) for path, _ in paths]
        leaves = [leaf for _, leaf in paths]
        places = self._places(names, leaves)
        ratios = {n: float(w.ratio) for n, w in widths_in(params).items()}
        graph = trace_at(self.f, params, x, trials(ratios)[0])
        counts = _counted(graph, places)
        for i in places:
            leaves[i] = _copies(leaves[i], max(1, counts[i]))
        labels = {i: names[i] for i in places}
        return Copied(self.f, labels), tree.unflatten(leaves)

    def _places(self, names: Sequence[str], leaves: Sequence[Any]) -> tuple[int, ...]:
        """The leaves of the parameters that are untied."""
        random = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Normal)]
        if self.names is None:
            found = [i for i in random if _wide_axes(leaves[i]) > 1]
            if not found:
                raise InputError(
                    "`wl.untie` makes copies of random matrices with two wide axes, "
                    "and no parameter is one. Name the parameters to untie: "
                    f"wl.untie(f, names=...), of {', '.join(names)}."
                )
            return tuple(found)
        known = {names[i]: i for i in random}
        unknown = sorted(set(self.names) - set(known))
        if unknown or not self.names:
            raise InputError(
                f"`names` of `wl.untie` should be of random parameters "
                f"({', '.join(known)}), got {', '.join(unknown) or 'none'}."
            )
        return tuple(known[name] for name in self.names)


def untie(
    f: Callable[..., Any], *, names: str | Collection[str] | None = None
) -> Untied:
    """A network with an independent copy of a weight for every use of it.

    The network that a recurrent one is compared with in section 2.2 of Yang (2019):
    every product with a random matrix, at every time step, has a matrix of its own,
    of the same distribution. Other parameters stay as they are: biases, input weights
    and readouts are shared by all steps. The same holds of the finite networks, whose
    copies stand along a new first axis of the matrix.

    A use is an operation on a weight and something else. Transposes, slices, multiples
    and sums of weights are weights, so that a product with `(W + W.T) / 2` is one use;
    so is a product of two weights. Products in a derivative that `f` takes itself are
    uses of their own.

    Args:
        f: a network, `f(params, x)`, for `wl.limit`. It may use a weight in Python
            loops and in the body of a `jax.lax.scan` that is inside no other.
        names: the parameters that are untied, by the names that `net.ntk(x,
            by_param=True)` has; all random matrices with two wide axes if None.

    Returns:
        A network for `wl.limit`. As the number of copies depends on the inputs, finite
        networks are drawn for their shape: `net.at(x, key=key, n=1024)`.

    Raises:
        InputError: `f` is not a function.

    References:
        Yang (2019), https://arxiv.org/abs/1902.04760, section 2.2.

    Example:
        ```python
        tied, untied = wl.limit(rnn, params), wl.limit(wl.untie(rnn), params)
        tied.nngp(x) - untied.nngp(x)
        ```
    """
    if not callable(f):
        raise InputError(f"`wl.untie(f)` takes a function f(params, x), got {f!r}.")
    return Untied(f, (names,) if isinstance(names, str) else names)


class Copied:
    """A network that reads a copy of a parameter at every use of it.

    Attributes:
        f: the network with tied weights.
        labels: the names of the parameters with copies, by their place among the
            leaves.
    """

    def __init__(self, f: Callable[..., Any], labels: Mapping[int, str]) -> None:
        functools.update_wrapper(self, f, updated=())
        self.f, self.labels = f, dict(labels)

    def __call__(self, params: Any, x: Any) -> Any:
        """The output of the network.

        Args:
            params: its parameters, some with copies along their first axis.
            x: a batch of inputs.
        """
        leaves, tree = jax.tree_util.tree_flatten((params, x))
        places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

        def network(*arrays: Any) -> Any:
            mine = list(leaves)
            for i, array in zip(places, arrays, strict=True):
                mine[i] = array
            return self.f(*tree.unflatten(mine))

        shapes = [
            leaves[i].shape[1:] if i in self.labels else leaves[i].shape for i in places
        ]
        structs = [
            jax.ShapeDtypeStruct(shape, leaves[i].dtype)
            for i, shape in zip(places, shapes, strict=True)
        ]
        graph, out = trace(network, *structs, x64=x64_enabled())
        stacks = _Stacks({i: leaves[i] for i in self.labels}, self.labels)
        args = [_Weight(i) if i in self.labels else leaves[i] for i in places]
        found = _Run(stacks).graph(graph, args)
        return jax.tree_util.tree_structure(out).unflatten(found)


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def _wide_axes(declaration: Normal) -> int:
    return sum(not isinstance(size, int) for size in declaration.shape)


def _copies(declaration: Normal, count: int) -> Normal:
    """Independent copies along a first axis, which is in no fan-in."""
    fan_in = tuple(axis + 1 for axis in declaration.fan_in_axes) or None
    return dataclasses.replace(
        declaration, shape=(count, *declaration.shape), fan_in=fan_in
    )


def _counted(graph: Graph, places: Sequence[int]) -> Counter[int]:
    """How many copies of every parameter the network uses."""
    structs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in graph.inputs]
    count = _Count({i: structs[i] for i in places})

    def run(*arrays: Any) -> Any:
        args = [_Weight(i) if i in places else a for i, a in enumerate(arrays)]
        return _Run(count).graph(graph, args)

    with enable_x64():
        jax.eval_shape(run, *structs)
    return count.uses


# Where copies come from ---------------------------------------------------------------


class _Source(Protocol):
    """Gives the copies of parameters, one after another.

    Attributes:
        shapes: those of one copy, by the place of the parameter.
    """

    shapes: Mapping[int, jax.ShapeDtypeStruct]

    def one(self, place: int) -> Any:
        """The next copy of a parameter."""
        ...

    def several(self, place: int, count: int) -> Any:
        """The next copies, along a first axis."""
        ...


class _Count:
    """Counts uses; all copies are zero."""

    def __init__(self, shapes: Mapping[int, jax.ShapeDtypeStruct]) -> None:
        self.shapes = shapes
        self.uses: Counter[int] = Counter()

    def one(self, place: int) -> Any:
        self.uses[place] += 1
        return jnp.zeros(self.shapes[place].shape, self.shapes[place].dtype)

    def several(self, place: int, count: int) -> Any:
        self.uses[place] += count
        one = self.shapes[place]
        return jnp.zeros((count, *one.shape), one.dtype)


class _Stacks:
    """Copies along the first axis of arrays."""

    def __init__(self, arrays: Mapping[int, Any], labels: Mapping[int, str]) -> None:
        self._arrays, self._labels = arrays, labels
        self.shapes: Mapping[int, jax.ShapeDtypeStruct] = {
            place: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
            for place, a in arrays.items()
        }
        self._used: Counter[int] = Counter()

    def one(self, place: int) -> Any:
        return self._arrays[place][self._advance(place, 1)]

    def several(self, place: int, count: int) -> Any:
        start = self._advance(place, count)
        return self._arrays[place][start : start + count]

    def _advance(self, place: int, count: int) -> int:
        start, there = self._used[place], self._arrays[place].shape[0]
        self._used[place] += count
        if start + count > there:
            raise InputError(
                f"The network uses `{self._labels[place]}` more than {there} times, "
                "and has as many copies of it: they were drawn for other inputs. Give "
                "net.at(x, ..) inputs of the shape that the network is called with."
            )
        return start


class _Step:
    """The copies of one step of a scan."""

    def __init__(
        self,
        shapes: Mapping[int, jax.ShapeDtypeStruct],
        arrays: Mapping[int, Sequence[Any]],
    ) -> None:
        self.shapes = shapes
        self._next = {place: iter(found) for place, found in arrays.items()}

    def one(self, place: int) -> Any:
        return next(self._next[place])

    def several(self, place: int, count: int) -> Any:
        raise UnsupportedError(
            "A scan inside a scan uses a weight that is untied: write the outer one as "
            "a Python loop."
        )


# The network again --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Weight:
    """A value made of parameters with copies, which every use makes anew.

    Attributes:
        place: the parameter, or None.
        equation: what makes the value, if no parameter is it.
        inputs: what the equation reads, weights or arrays.
    """

    place: int | None
    equation: Equation | None = None
    inputs: tuple[Any, ...] = ()


class _Run:
    """Runs graphs, with the next copies of weights at every use."""

    def __init__(self, source: _Source) -> None:
        self._source = source

    def graph(self, graph: Graph, args: Sequence[Any]) -> list[Any]:
        """The outputs, all of them arrays."""
        return [self._used([value])[0] for value in self._values(graph, args)]

    def _values(self, graph: Graph, args: Sequence[Any]) -> list[Any]:
        """The outputs, arrays and weights."""
        values: dict[Var, Any] = dict(graph.constants)
        values.update(zip(graph.inputs, args, strict=True))

        def read(atom: Atom) -> Any:
            if isinstance(atom, Literal):
                return np.asarray(atom.value, atom.dtype)
            return values[atom]

        for equation in graph.equations:
            inputs = [read(a) for a in equation.inputs]
            with standing_at(equation.source):
                outputs = self._equation(equation, inputs)
            values.update(zip(equation.outputs, outputs, strict=True))
        return [read(a) for a in graph.outputs]

    def _equation(self, equation: Equation, args: list[Any]) -> Sequence[Any]:
        if not any(isinstance(a, _Weight) for a in args):
            return evaluate(equation, args)
        if _is_weight(equation, args):
            return [_Weight(None, equation, tuple(args))]
        name = equation.name
        if name == "scan":
            return self._scan(equation, args)
        if name in _BRANCHES:
            raise UnsupportedError(
                f"A weight that is untied is used inside a `{name}`, whose number of "
                f"uses is not known ({equation.source or '?'}). Use a Python loop, or "
                "a `scan`."
            )
        called = str(equation.params.get("name", ""))
        plain = name in CALLS and not name.startswith("custom_")
        if plain and not called.startswith(TAP_PREFIX):
            return self._values(equation.params[CALLS[name]], args)
        return evaluate(equation, self._used(args))

    def _used(self, args: Sequence[Any]) -> list[Any]:
        """The arrays that one use reads, with one copy of every parameter in it."""
        copies: dict[int, Any] = {}
        made: dict[_Weight, Any] = {}

        def array(value: Any) -> Any:
            if not isinstance(value, _Weight):
                return value
            if value.place is not None:
                if value.place not in copies:
                    copies[value.place] = self._source.one(value.place)
                return copies[value.place]
            if value not in made:
                assert value.equation is not None
                inputs = [array(a) for a in value.inputs]
                (made[value],) = evaluate(value.equation, inputs)
            return made[value]

        return [array(a) for a in args]

    def _scan(self, equation: Equation, args: list[Any]) -> list[Any]:
        """A scan, to whose steps copies are given as further inputs."""
        params = equation.params
        body, length = params["jaxpr"], params["length"]
        consts, carried = params["num_consts"], params["num_carry"]
        fixed, carry = args[:consts], args[consts : consts + carried]
        if any(isinstance(a, _Weight) for a in carry):
            raise UnsupportedError(
                "A weight that is untied is carried through a scan "
                f"({equation.source or '?'}): use it in the body without passing it on."
            )
        xs = self._used(args[consts + carried :])
        count = self._uses_of_step(body, fixed, carry, xs)
        copies = {
            place: [self._source.several(place, length) for _ in range(uses)]
            for place, uses in count.items()
        }

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            x, mine = now
            outs = _Run(_Step(self._source.shapes, mine)).graph(
                body, [*fixed, *carry, *x]
            )
            return outs[:carried], outs[carried:]

        carry, stacked = jax.lax.scan(
            step, carry, (xs, copies), length=length, reverse=params["reverse"]
        )
        return [*carry, *stacked]

    def _uses_of_step(
        self, body: Graph, fixed: list[Any], carry: list[Any], xs: list[Any]
    ) -> Counter[int]:
        """How many copies of every parameter one step of a scan uses."""
        count = _Count(self._source.shapes)

        def run() -> Any:
            now = [x[0] for x in xs]
            return _Run(count).graph(body, [*fixed, *carry, *now])

        jax.eval_shape(run)
        return count.uses


def _is_weight(equation: Equation, args: Sequence[Any]) -> bool:
    """Whether an equation that reads weights gives one, rather than using them."""
    name, (first, *rest) = equation.name, args
    weights = [isinstance(a, _Weight) for a in args]
    if name in (*_SUMS, "dot_general"):
        return all(weights)
    if name in _SCALINGS:
        other = rest[0] if weights[0] else first
        by_weight = name == "div" and not weights[0]
        return not all(weights) and np.shape(other) == () and not by_weight
    positions = (a for a, weight in zip(args, weights, strict=True) if not weight)
    return name in _REARRANGED and all(
        np.issubdtype(a.dtype, np.integer) for a in positions
    )
