"""The programs that a network is, one for each shape of its inputs."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._coupling import Traces, coupled, fresh_draws, traces
from ._derivatives import replaced_derivatives
from ._errors import InputError, NoLimitError, ShapeMismatchError, UnsupportedError
from ._jax import array_of, is_concrete
from ._memory import without_collection
from .kernels import Gradient, Quantities
from .program import (
    Ref,
    TensorProgram,
    Vector,
    Writer,
    width_names,
)
from .report import BackwardPass, backward_pass
from .trace import (
    Constant,
    Network,
    Normal,
    Traced,
    Untied,
    compile_network,
    path_name,
    tangent_variance,
    widths_in,
)
from .transform import (
    Backprop,
    Gradients,
    adjoint_of,
    at_ratios,
    backprop,
    detranspose,
    directional,
    in_order,
    linearise,
    normal_form,
    promote,
    wide,
)


class Networks:
    """A function and its parameters as programs, compiled once for every shape.

    Args:
        f: the network.
        params: its declarations.
        trace_axes: axes of the output over which kernels are averaged.
    """

    def __init__(
        self, f: Callable[..., Any], params: Any, trace_axes: tuple[int, ...]
    ) -> None:
        self._f, self._params, self._trace_axes = f, params, trace_axes
        self._traced: dict[Any, Network] = {}
        self._limits: dict[Any, Network] = {}
        self._asked: dict[Any, Quantities] = {}
        self._traces: dict[Any, Traces] = {}
        self._coupled: dict[Any, bool] = {}
        self._replaced: dict[Any, tuple[str, ...]] = {}
        self._expanded: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def function(self, x: Any) -> tuple[Callable[..., Any], Any]:
        """The function and its declarations, with copies where weights are untied.

        Args:
            x: inputs, or their shapes.
        """
        if not isinstance(self._f, Untied):
            return self._f, self._params
        one = with_rows(struct_of(x), 1)
        key = key_of(one)
        if key not in self._expanded:
            self._expanded[key] = self._f.expanded(self._params, one)
        return self._expanded[key]

    def traced(self, x: Any, batch: bool = False, moving: bool = False) -> Network:
        """The network as traced, for inputs of a shape: of one, or of a whole batch.

        Args:
            x: a pytree of `jax.ShapeDtypeStruct`.
            batch: whether inputs interact.
            moving: whether constants are input lines, which can move.
        """
        constants = self._declared(Constant).values()
        moving = moving and any(p.is_trained for p in constants)
        one = x if batch else with_rows(x, 1)
        key = (key_of(one), batch, moving)
        if key not in self._traced:
            f, params = self.function(x)
            draws = () if batch else self._fresh_draws(x)
            first = None if batch else self._traced_at(x).one
            network = compile_network(f, params, one, draws, moving, first)
            if network.perturbations:
                ratios = self._ratios(network.program)
                step = promote(network.program, network.perturbations, ratios)
                network = network.moved(step.program, step.place)
            done = normal_form(network.program, network.needed)
            network = network.moved(done.program, done.place)
            self._check_output(network, one)
            self._traced[key] = network
        return self._traced[key]

    @without_collection()
    def limit(self, x: Any, batch: bool = False) -> Network:
        """The same without transposes: a program with the same limit."""
        key = (key_of(x if batch else with_rows(x, 1)), batch)
        if key not in self._limits:
            network = self.traced(x, batch)
            ratios = self._ratios(network.program)
            done = detranspose(network.program, ratios, symmetric=True)
            network = network.moved(done.program, done.place)
            step = in_order(network.program)
            self._limits[key] = network.moved(step.program, step.place)
        return self._limits[key]

    @without_collection()
    def asked(self, x: Any, batch: bool, what: frozenset[str]) -> Quantities:
        """The lines of quantities of the network.

        Args:
            x: a pytree of `jax.ShapeDtypeStruct`.
            batch: whether inputs interact.
            what: "nngp", "ntk" or both; "parts" (of the ntk, one a parameter); "taps",
                perhaps with "nngp"; "gradients" (at taps), perhaps with "taps".

        Raises:
            NoLimitError: a quantity diverges.
        """
        key = (key_of(x if batch else with_rows(x, 1)), batch, what)
        if key not in self._asked:
            self._asked[key] = self._ask(x, batch, what)
        return self._asked[key]

    def _ask(self, x: Any, batch: bool, what: frozenset[str]) -> Quantities:
        if "gradients" in what:
            return self._gradients(x, batch, "taps" in what)
        if not what & {"ntk", "parts"}:
            network = self.limit(x, batch)
            outputs = {"nngp": network.output} if "nngp" in what else {}
            taps = network.taps if "taps" in what else {}
            return Quantities(network.program, outputs, taps)
        network = self._moving(x, batch)
        variances = self._variances(network)
        groups = {}
        if "ntk" in what:
            groups["ntk"] = list(variances)
        if "parts" in what:
            groups |= {f"ntk:{name}": [name] for name in variances}
        directions = [
            _directions(network, {name: variances[name] for name in names})
            for names in groups.values()
        ]
        if is_mean(network.output):
            program, changes = self._backwards(network, directions)
            beside = {}
        else:
            done = linearise(network.program, *directions)
            program, beside = done.program, done.beside
            changes = [_changed(network.output, c) for c in done.changes]
        outputs = dict(zip(groups, changes, strict=True))
        if "nngp" in what:
            outputs["nngp"] = network.output
        step = in_order(program, beside)
        outputs = {k: one.moved(step.place) for k, one in outputs.items()}
        program, outputs = self._simplified(step.program, outputs)
        return Quantities(program, outputs)

    def _simplified(
        self, program: TensorProgram, found: dict[Any, Any]
    ) -> tuple[TensorProgram, dict[Any, Any]]:
        """A program of the same limit, without ratios and transposes."""
        ratios = self._ratios(program)
        program = at_ratios(TensorProgram(program.lines), ratios)
        keep = tuple(r for one in found.values() for r, _ in one.refs)
        step = normal_form(program, keep)
        found = {key: one.moved(step.place) for key, one in found.items()}
        ratios = self._ratios(step.program)
        done = detranspose(step.program, ratios, symmetric=True)
        return done.program, {k: one.moved(done.place) for k, one in found.items()}

    def _backwards(
        self, network: Network, groups: Sequence[Mapping[Ref, float | str]]
    ) -> tuple[TensorProgram, list[Traced]]:
        """The derivatives along directions of sqrt(n) times a mean, for every group.

        Such an output is no Gaussian process by theorem 4, and its gradient has a mean:
        its tangent kernel needs the backward pass, with its corrections.
        """
        out, ratios = network.output, self._ratios(network.program)
        back = backprop(network.program, [out.refs[0][0]])
        (g,) = back.gradients
        unit, writer, found = unit_of(g, ratios), Writer(back.program), []
        for i, directions in enumerate(groups):
            lines = directional(writer, g, directions, f"u{i or ''}_")
            found.append([(r, wide(writer, r).dim.ratio(ratios) / unit) for r in lines])
        return TensorProgram(tuple(writer.lines)), [
            dataclasses.replace(out, refs=tuple(refs), power=Fraction(0), kind="vector")
            for refs in found
        ]

    def backward(self, x: Any, batch: bool) -> tuple[Network, Backprop]:
        """The network as traced, and with its backward pass.

        Raises:
            UnsupportedError: it has none, or JAX would take another derivative.
        """
        network = self.traced(x, batch)
        out = network.output
        if len(out.refs) != 1 or (out.kind == "vector" and math.prod(out.shape) > 1):
            raise UnsupportedError(
                "Gradient statistics are for an output of finite size, or one wide "
                f"vector; this one is a {out.kind} of shape {out.shape} in "
                f"{len(out.refs)} parts."
            )
        self._check_derivatives(x, batch)
        return network, backprop(network.program, [out.refs[0][0]])

    def products(self, x: Any, batch: bool) -> tuple[BackwardPass, TensorProgram]:
        """The products with matrices of the network and its backward pass.

        Returns:
            The backward pass, and an equivalent program without transposes, which the
            products refer to.
        """
        network, back = self.backward(x, batch)
        ratios = self._ratios(network.program)
        program = at_ratios(back.program, ratios)
        return backward_pass(
            program, len(network.program), detranspose(program, ratios)
        )

    def _gradients(self, x: Any, batch: bool, with_taps: bool) -> Quantities:
        """The adjoints of the taps, by the backward pass of the program."""
        network, back = self.backward(x, batch)
        ratios, (g,) = self._ratios(network.program), back.gradients
        writer, found = Writer(back.program), {}
        unit = unit_of(g, ratios)
        for name, tap in network.taps.items():
            _check_tap(name, tap, network.program)
            lines = [(adjoint_of(writer, g, r), r) for r, _ in tap.refs]
            if tap.power < 0 and any(line is not None for line, _ in lines):
                raise NoLimitError(
                    f"The gradient at the tap `{name}` diverges like n^{-tap.power} "
                    f"with the width, as the tap vanishes like n^{tap.power}: tap it "
                    "before it is divided."
                )
            refs = tuple(
                (line, _size(writer, r, tap, ratios) / unit)
                for line, r in lines
                if line is not None
            )
            found[name] = Gradient(refs, g.shape, tap.axis, tap.shape)
        program = TensorProgram(tuple(writer.lines))
        forward = network.taps if with_taps else {}
        asked = {("gradient", k): g for k, g in found.items()}
        asked |= {("tap", k): t for k, t in forward.items()}
        program, asked = self._simplified(program, asked)
        return Quantities(
            program,
            taps={k: asked["tap", k] for k in forward},
            gradients={k: asked["gradient", k] for k in found},
        )

    def _moving(self, x: Any, batch: bool) -> Network:
        """The network as traced, where every trained parameter can move."""
        self._check_derivatives(x, batch)
        try:
            return self.traced(x, batch, moving=True)
        except (UnsupportedError, NoLimitError) as error:
            self.traced(x, batch)  # where this fails, the fault is another
            constants = self._declared(Constant).items()
            names = ", ".join(f"`{name}`" for name, p in constants if p.is_trained)
            raise UnsupportedError(
                f"A trained constant ({names}) stands where its part of the tangent "
                "kernel is not known: one of finite shape has to enter linearly at the "
                "output, as its part is random at every width elsewhere. Declare it "
                f"with lr=0 for the kernel of the other parameters. {error}"
            ) from error

    def _check_derivatives(self, x: Any, batch: bool) -> None:
        one = x if batch else with_rows(x, 1)
        key = key_of(one)
        if key not in self._replaced:
            graph = self._traced_at(x).two
            self._replaced[key] = replaced_derivatives(*self.function(x), one, graph)
        if where := self._replaced[key]:
            raise UnsupportedError(
                "The derivative that JAX takes of the network is not that of its "
                f"values: `stop_gradient` or a custom derivative at {', '.join(where)}."
                " Derivatives in the limit are those of the values, and would be "
                "others; those of a finite network (`f, theta = net.at(..)`) are as "
                "JAX takes them."
            )

    def _variances(self, network: Network) -> dict[str, Any]:
        """The variance of the direction of every parameter that moves."""
        found = {}
        for name, p in self._declared(Normal, Constant).items():
            if not network.parameters.get(name) or not p.is_trained:
                continue
            value, power = tangent_variance(p)
            if power > 0:
                raise NoLimitError(
                    f"The tangent kernel diverges like n^{power} with the width: that "
                    f"is the order of the part of `{name}`, whose variable is the "
                    "weight itself, of variance 1/n. Use parameterization='ntk' or "
                    "'standard', or divide by the square root of the width in the "
                    "network."
                )
            found[name] = value
        if not found:
            raise InputError(
                "No parameter that the output depends on is trained: give one lr > 0."
            )
        return found

    @without_collection()
    def is_coupled(self, x: Any) -> bool:
        """Whether inputs of a batch interact."""
        key = key_of(with_rows(struct_of(x), 1))
        if key not in self._coupled:
            self._coupled[key] = coupled(*self.function(x), x, self._traced_at(x))
        return self._coupled[key]

    def _traced_at(self, x: Any) -> Traces:
        """The network at two inputs of a shape and at one, traced once."""
        struct = struct_of(x)
        key = key_of(with_rows(struct, 1))
        if key not in self._traces:
            self._traces[key] = traces(*self.function(x), struct)
        return self._traces[key]

    def _fresh_draws(self, x: Any) -> tuple[bool, ...]:
        return fresh_draws(self._traced_at(x))

    def is_one_batch(self, x: Any) -> bool:
        """Whether running inputs one by one would be another function."""
        return self.is_coupled(x) or any(self._fresh_draws(x))

    def shared(self, dtype: Any, what: Collection[str] = ()) -> dict[str, Any]:
        """What all inputs of the programs share: standard deviations, arrays.

        Args:
            dtype: of the arrays.
            what: the quantities asked for; tangent kernels have directions.
        """
        shared: dict[str, Any] = {}
        tangent = not {"ntk", "parts"}.isdisjoint(what)
        for name, p in self._declared(object).items():
            if isinstance(p, Normal):
                shared[f"std:{name}"] = array_of(p.std, dtype)
            elif isinstance(p, Constant):
                if np.ndim(p.value) == 0 or not is_concrete(p.value):
                    shape = tuple(s if isinstance(s, int) else 1 for s in p.shape)
                    value = array_of(p.value, dtype)
                    shared[f"value:{name}"] = jnp.broadcast_to(value, shape)
            else:
                array = jnp.asarray(p)
                floating = jnp.issubdtype(array.dtype, jnp.floating)
                shared[f"param:{name}"] = array.astype(dtype) if floating else array
            if tangent and isinstance(p, Normal | Constant) and p.is_trained:
                value, _ = tangent_variance(p)
                if not isinstance(value, float):
                    shared[f"direction:{name}"] = jnp.sqrt(jnp.asarray(value, dtype))
        return shared

    def _declared(self, *kinds: type) -> dict[str, Any]:
        """The parameters of some kinds, by name."""
        paths, _ = jax.tree_util.tree_flatten_with_path(
            self._params, is_leaf=lambda p: isinstance(p, Normal | Constant)
        )
        return {path_name(path): p for path, p in paths if isinstance(p, kinds)}

    def _ratios(self, program: TensorProgram) -> dict[str, float]:
        used = width_names(program)
        return {
            name: float(w.ratio)
            for name, w in widths_in(self._params).items()
            if name in used
        }

    def _check_output(self, network: Network, x: Any) -> None:
        rows, shape = jax.tree.leaves(x)[0].shape[0], network.output.shape
        if not shape or shape[0] != rows:
            raise ShapeMismatchError(
                f"The network should return (N, ..) for N inputs; for {rows} it "
                f"returns an array of shape {shape}."
            )
        for axis in self._trace_axes:
            if len(shape) > 1 and not -len(shape) <= axis < len(shape):
                raise InputError(
                    f"trace_axes has {axis}, but the output has {len(shape)} axes: "
                    f"{shape}."
                )
            if axis % max(len(shape), 1) == 0 and len(shape) > 1:
                raise InputError("trace_axes names the batch axis of the output.")


def is_mean(output: Traced) -> bool:
    """Whether an output is sqrt(n) times a mean over a width."""
    mean = output.kind == "fixed" and output.power == Fraction(1, 2)
    return mean and len(output.refs) == 1


def unit_of(gradients: Gradients, ratios: Mapping[str, float]) -> float:
    """What the sum of squares of adjoints is divided by, in the common scale.

    Those of a mean t are n dt/dx, and its output is sqrt(n) t.
    """
    n = gradients.width.ratio(ratios)
    return n**2 if gradients.power == 1 else n


def diverges(what: str, traced: Traced) -> str:
    """The message for a quantity of positive order."""
    power = traced.power
    divisor = "sqrt(n)" if power == Fraction(1, 2) else f"n**{float(power):g}"
    where = f", at {traced.source}" if traced.source else ""
    return f"{what} diverges like n^{power} with the width{where}: divide by {divisor}?"


def _directions(
    network: Network, variances: Mapping[str, Any]
) -> dict[Ref, float | str]:
    """The standard deviation of the direction of every input line, or its key."""
    return {
        ref: value**0.5 if isinstance(value, float) else f"direction:{name}"
        for name, value in variances.items()
        for ref in network.parameters[name]
    }


def _changed(output: Traced, changes: Mapping[Ref, Ref]) -> Traced:
    """The change of an output; without a line where it does not change."""
    refs = tuple((changes[r], w) for r, w in output.refs if r in changes)
    return dataclasses.replace(output, refs=refs)


def _check_tap(name: str, tap: Traced, program: TensorProgram) -> None:
    if not all(isinstance(program.types[r], Vector) for r, _ in tap.refs):
        raise UnsupportedError(
            f"The tap `{name}` is no wide vector: the gradient there has no limit, as "
            "it is random at every width. Take the tap away for the statistics of the "
            "others."
        )


def _size(writer: Writer, ref: Ref, tap: Traced, ratios: Mapping[str, float]) -> float:
    """The size of a block of a wide axis, with all its copies."""
    kind = wide(writer, ref)
    copies = 1 if tap.axis is None else kind.shape[tap.axis]
    return copies * kind.dim.ratio(ratios)


def struct_of(x: Any) -> Any:
    """The shapes of inputs, as they are traced."""

    def one(a: Any) -> Any:
        dtype = (
            np.dtype("float64") if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        )
        return jax.ShapeDtypeStruct(a.shape, dtype)

    return jax.tree.map(one, x)


def with_rows(x: Any, rows: int) -> Any:
    """The shapes of another number of inputs."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), x
    )


def key_of(x: Any) -> Any:
    """A key for inputs of one structure, shape and type."""
    leaves, tree = jax.tree.flatten(x)
    return (str(tree), tuple((tuple(a.shape), str(a.dtype)) for a in leaves))


def named_inputs(x: Any, whole: bool = False) -> dict[str, Any]:
    """The inputs of a program from one input, or from a whole batch."""
    paths, _ = jax.tree_util.tree_flatten_with_path(x)
    return {
        "x" if not path else f"x.{path_name(path)}": a if whole else a[None]
        for path, a in paths
    }
