"""The front door: networks and their limits."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import finite
from ._coupling import coupled, fresh_draws
from ._errors import InputError, NoLimitError, ShapeMismatchError
from ._jax import is_concrete
from .asymptotics import Engine, Side
from .kernels import BlockKernel, PairKernel
from .program import TensorProgram, width_names
from .report import Explanation, Formula, explain, formula
from .trace import (
    Constant,
    Network,
    Normal,
    Traced,
    compile_network,
    path_name,
    widths_in,
)
from .transform import detranspose, normal_form


def limit(
    f: Callable[..., Any],
    params: Any,
    *,
    trace_axes: Sequence[int] = (-1,),
    parameterization: str | None = None,
) -> "Limit":
    """Take the infinite-width limit of a network.

    Args:
        f: the network, `f(params, x)`: an ordinary JAX function, batched over axis 0 of
            `x`, that returns one array (N, *I, O) or (N,).
        params: a pytree of `wl.normal` and `wl.constant` declarations; other arrays in
            it are passed to `f` as they are.
        trace_axes: axes of the output over which the kernel is averaged.
        parameterization: sets that of all parameters that have none; see `wl.normal`.

    Returns:
        The limit; nothing is computed before it is asked.

    Raises:
        InputError: `f` is not a function, or `params` declares nothing random.

    Example:
        ```python
        n = wl.width("n")
        params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
        net = wl.limit(lambda p, x: jnp.tanh(x @ p["U"]) @ p["v"] / jnp.sqrt(n), params)
        net.nngp(jnp.ones((2, 3)))
        ```
    """
    if not callable(f):
        raise InputError(
            f"`wl.limit(f, params)` takes a function f(params, x), got {f!r}."
        )
    if parameterization is not None:
        params = jax.tree.map(
            lambda p: (
                dataclasses.replace(p, parameterization=parameterization)
                if isinstance(p, Normal) and p.parameterization is None
                else p
            ),
            params,
            is_leaf=_declared,
        )
    _check_params(params)
    if isinstance(trace_axes, int):
        trace_axes = (trace_axes,)
    return Limit(f, params, tuple(trace_axes))


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)


def _check_params(params: Any) -> None:
    paths, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_declared)
    for path, p in paths:
        if (
            not _declared(p)
            and not isinstance(p, int | float)
            and not hasattr(p, "dtype")
        ):
            raise InputError(
                f"The parameter `{path_name(path)}` is {p!r}: declare it with "
                "`wl.normal` or `wl.constant`, or give an array."
            )
    if not any(isinstance(p, Normal) for _, p in paths):
        raise InputError(
            "No parameter is random: declare them with `wl.normal` and `wl.width`, as "
            "in `n = wl.width('n'); params = {'W': wl.normal((784, n))}`."
        )


class Limit:
    """A network and its infinite-width limit. Made by `wl.limit`."""

    def __init__(
        self, f: Callable[..., Any], params: Any, trace_axes: tuple[int, ...]
    ) -> None:
        self.f, self.params, self.trace_axes = f, params, trace_axes
        self._programs: dict[Any, Network] = {}
        self._networks: dict[Any, Network] = {}
        self._kernels: dict[Any, BlockKernel] = {}
        self._coupling: dict[Any, bool] = {}

    # Kernels --------------------------------------------------------------------------

    def nngp(
        self, x1: Any, x2: Any | None = None, *, progress: Any = None
    ) -> jax.Array:
        """The covariance of the outputs in the limit.

        Differentiable in `x1`, `x2` and in every array of the parameters. Work that
        depends on one input is done once for it; half the pairs when `x2` is None.

        Args:
            x1: N1 inputs (an array, or a pytree of arrays with one leading axis).
            x2: N2 inputs, perhaps of other lengths; `x1` when None. A network whose
                inputs interact takes each of `x1` and `x2` as one batch.
            progress: called as `progress(done, all)` after each tile.

        Returns:
            Shape (N1, N2, *I, *I'), averaged over the output axis: see `trace_axes`.
            Zeros, with a warning, when the output vanishes in the limit.

        Raises:
            NoLimitError: the output diverges; the message has its power of n.
            InputError: data that are not finite, empty, or out of range.
            ShapeMismatchError: `f` cannot take inputs of this shape.
        """
        x1 = self._inputs(x1, "x1")
        other = None
        if x2 is not None:
            _check_axes(x1, x2)
            other = self._inputs(x2, "x2")
        if self._is_coupled(x1) or (other is not None and self._is_coupled(other)):
            return self._coupled_kernel(x1, other)
        return self._blocks(x1, other, progress)

    def _blocks(
        self, x1: Any, x2: Any | None, progress: Any = None, taps: bool = False
    ) -> Any:
        """The kernel of independent inputs, with those at the taps if asked."""
        one, two = _struct(x1), _struct(x1 if x2 is None else x2)
        first, second = self._network(one), self._second_network(one, two)
        self._check_order(first)
        self._check_data(first, x1)
        if x2 is not None:
            self._check_data(second, x2)
        dtype = _dtype(x1)
        shapes = (_key(_with_rows(one, 1)), _key(_with_rows(two, 1)))
        key = (*shapes, str(dtype), taps)
        if key not in self._kernels:
            self._kernels[key] = self._kernel(first, second, dtype, taps)
        other = None if x2 is None else _cast(x2, dtype)
        return self._kernels[key](
            self._shared(dtype), _cast(x1, dtype), other, progress
        )

    def _kernel(
        self, first: Network, second: Network, dtype: Any, taps: bool
    ) -> BlockKernel:
        pairs = PairKernel(first, second, self.trace_axes, coupled=False)

        def of(*sides: Side) -> Any:
            engine, both = Engine(sides, dtype=dtype), (0, len(sides) - 1)
            kernel = pairs.of(engine, both)
            if not taps:
                return kernel
            found = {
                name: _squeezed(_second(engine, tap, both))
                for name, tap in first.taps.items()
            }
            return {"output": kernel, **found}

        def pair(shared: Any, a: Any, b: Any) -> Any:
            return of(
                Side(first.program, {**shared, **_named(a)}),
                Side(second.program, {**shared, **_named(b)}),
            )

        def same(shared: Any, a: Any) -> Any:
            return of(Side(first.program, {**shared, **_named(a)}))

        def swap(kernels: Any) -> Any:
            def one(k: Any) -> Any:
                half = k.ndim // 2
                return jnp.transpose(k, (*range(half, k.ndim), *range(half)))

            return jax.tree.map(one, kernels)

        return BlockKernel(pair, same, swap)

    def _coupled_kernel(self, x1: Any, x2: Any | None) -> jax.Array:
        """Each data set is one batch: one pair of whole batches."""
        dtype = _dtype(x1)
        first = self._network(_struct(x1), batch=True)
        self._check_order(first)
        shared = self._shared(dtype)
        a = {**shared, **_named(_cast(x1, dtype), whole=True)}
        if x2 is None:
            return PairKernel(first, first, self.trace_axes, coupled=True).same(
                a, dtype
            )
        second = self._network(_struct(x2), batch=True)
        b = {**shared, **_named(_cast(x2, dtype), whole=True)}
        return PairKernel(first, second, self.trace_axes, coupled=True).pair(
            a, b, dtype
        )

    def coupled(self, x: Any) -> bool:
        """Whether inputs of a batch interact; each data set is then one batch."""
        return self._is_coupled(self._inputs(x, "x"))

    def forward(self, x: Any) -> dict[str, jax.Array]:
        """E[Z^h Z^h'] at every tap, and the kernel under "output".

        Returns:
            Arrays of shape (N, N, *I, *I'), by name.
        """
        x = self._inputs(x, "x")
        batch = self._is_coupled(x)
        network, dtype = self._network(_struct(x), batch), _dtype(x)
        for name, tap in network.taps.items():
            if tap.power > 0:
                raise NoLimitError(_diverges(f"The tap `{name}`", tap))
        if not batch:
            return self._blocks(x, None, taps=True)
        results = {"output": self._coupled_kernel(x, None)}
        inputs = {**self._shared(dtype), **_named(_cast(x, dtype), whole=True)}
        engine = Engine((Side(network.program, inputs),), dtype=dtype)
        for name, tap in network.taps.items():
            k = _second(engine, tap, (0, 0))
            results[name] = jnp.moveaxis(k, k.ndim // 2, 1)
        return results

    # What it is -----------------------------------------------------------------------

    def program(self, x: Any) -> TensorProgram:
        """The tensor program for inputs of the shape of `x`; print it.

        It is that of one input, unless inputs of a batch interact.
        """
        x = self._inputs(x, "x")
        return self._traced(_struct(x), self._is_coupled(x)).program

    def formula(self, x: Any) -> Formula:
        """The kernel recursion that the program became: text, or `.latex()`."""
        x = self._inputs(x, "x")
        return formula(self._engine(x), self._network(_struct(x), self._is_coupled(x)))

    def explain(self, x: Any) -> Explanation:
        """Which theorem holds and why: orders, hypotheses, routes, dropped terms."""
        x = self._inputs(x, "x")
        batch = self._is_coupled(x)
        network, traced = (
            self._network(_struct(x), batch),
            self._traced(_struct(x), batch),
        )
        return explain(self._engine(x), network, traced.program)

    def _engine(self, x: Any) -> Engine:
        """The engine after the kernel of the first two inputs was asked of it."""
        batch, dtype = self._is_coupled(x), _dtype(x)
        network, shared = self._network(_struct(x), batch), self._shared(dtype)
        x = _cast(x, dtype)
        if batch:
            rows = [_named(x, whole=True)]
        else:
            count = jax.tree.leaves(x)[0].shape[0]
            picks = [
                jax.tree.map(lambda a, i=i: a[i], x) for i in (0, min(1, count - 1))
            ]
            rows = [_named(p) for p in picks]
        sides = [Side(network.program, {**shared, **r}) for r in rows]
        engine = Engine(sides, dtype=dtype)
        if network.output.power <= 0:
            pairs = PairKernel(network, network, self.trace_axes, batch)
            pairs.of(engine, (0, len(sides) - 1))
        return engine

    def order(self, x: Any) -> dict[str, Fraction]:
        """The power of n of the output and of every tap, by name; 0 has a limit."""
        x = self._inputs(x, "x")
        network = self._network(_struct(x), self._is_coupled(x))
        return {
            "output": network.output.power,
            **{k: t.power for k, t in network.taps.items()},
        }

    # The finite network ---------------------------------------------------------------

    def at(
        self, *, key: Any, dtype: Any = None, **widths: int
    ) -> tuple[finite.FiniteNetwork, Any]:
        """Draw the network at finite width.

        Gradients by `theta` are those of training: where a parameter has a
        parameterisation, `theta` holds the variable that is trained underneath.

        Args:
            key: a JAX random key.
            dtype: of the drawn arrays; JAX's default if None.
            **widths: the value of every width, such as `n=1024`.

        Returns:
            (f, theta), to call as `f(theta, x)`; `f.ntk(theta, x)` is its empirical
            tangent kernel, and `f.train` trains it.

        Raises:
            InputError: a width is missing, unknown or does not fit; the standard
                parameterisation is asked of a width without a base.
        """
        return finite.at(
            self.f, self.params, key, widths, dtype,
            trace_axes=self.trace_axes, one_batch=self._is_one_batch,
        )  # fmt: skip

    def check(
        self,
        x: Any,
        widths: Sequence[int] = (128, 512, 2048),
        seeds: int = 16,
        key: Any = None,
        progress: Any = None,
    ) -> finite.Check:
        """Compare the limit with real networks of several widths.

        Args:
            x: inputs.
            widths: common scales; every width is its ratio times the scale.
            seeds: networks drawn at each width.
            key: a JAX random key; fixed if None.
            progress: called as `progress(done, all)`.

        Returns:
            The comparison: `.passed`, `.table()`, `.plot(path)`, printed by `str`.
        """
        x = self._inputs(x, "x")
        predicted = self.forward(x)
        return finite.check(
            self.f, self.params, x, predicted, widths, seeds, key,
            trace_axes=self.trace_axes, progress=progress,
        )  # fmt: skip

    # Compiling ------------------------------------------------------------------------

    def _network(self, x: Any, batch: bool = False) -> Network:
        """The compiled network, whose program uses no matrix and its transpose."""
        one = x if batch else _with_rows(x, 1)
        key = (_key(one), batch)
        if key not in self._networks:
            traced = self._traced(x, batch)
            used = width_names(traced.program)
            ratios = {
                name: float(w.ratio)
                for name, w in widths_in(self.params).items()
                if name in used
            }
            done = detranspose(traced.program, ratios)
            self._networks[key] = traced.moved(done.program, done.place)
        return self._networks[key]

    def _traced(self, x: Any, batch: bool) -> Network:
        """The network as traced, for inputs of a shape: of one, or of a whole batch."""
        one = x if batch else _with_rows(x, 1)
        key = (_key(one), batch)
        if key not in self._programs:
            draws = () if batch else fresh_draws(self.f, self.params, x)
            network = compile_network(self.f, self.params, one, draws)
            done = normal_form(network.program, network.needed)
            network = network.moved(done.program, done.place)
            self._check_output(network, one)
            self._programs[key] = network
        return self._programs[key]

    def _second_network(self, one: Any, two: Any) -> Network:
        try:
            return self._network(two)
        except ShapeMismatchError as error:
            raise ShapeMismatchError(
                f"`x2` has shape {_shapes(two)}, which the network cannot take; `x1` "
                f"has shape {_shapes(one)}. {error}"
            ) from error

    def _check_output(self, network: Network, x: Any) -> None:
        rows, shape = jax.tree.leaves(x)[0].shape[0], network.output.shape
        if not shape or shape[0] != rows:
            raise ShapeMismatchError(
                f"The network should return (N, ..) for N inputs; for {rows} it "
                f"returns an array of shape {shape}."
            )
        for axis in self.trace_axes:
            if len(shape) > 1 and not -len(shape) <= axis < len(shape):
                raise InputError(
                    f"trace_axes has {axis}, but the output has {len(shape)} axes: "
                    f"{shape}."
                )
            if axis % max(len(shape), 1) == 0 and len(shape) > 1:
                raise InputError("trace_axes names the batch axis of the output.")

    def _is_coupled(self, x: Any) -> bool:
        key = _key(_with_rows(_struct(x), 1))
        if key not in self._coupling:
            self._coupling[key] = coupled(self.f, self.params, x)
        return self._coupling[key]

    def _is_one_batch(self, x: Any) -> bool:
        """Whether running inputs one by one would be another function."""
        return self._is_coupled(x) or any(fresh_draws(self.f, self.params, x))

    def _check_order(self, network: Network) -> None:
        out = network.output
        if out.power > 0:
            raise NoLimitError(_diverges("The output", out))
        if out.power < 0:
            warnings.warn(
                f"The output vanishes like n^{out.power} with the width: its kernel is "
                "zero. Is it divided by the width once too often?",
                stacklevel=3,
            )
        elif out.kind == "fixed":
            warnings.warn(
                "The output converges to a constant: it has no readout with random "
                "weights, and its kernel is zero.",
                stacklevel=3,
            )

    def _check_data(self, network: Network, x: Any) -> None:
        if not network.checks or not all(is_concrete(a) for a in jax.tree.leaves(x)):
            return
        shared = self._shared(_dtype(x))
        count = jax.tree.leaves(x)[0].shape[0]
        for i in range(count):
            row = jax.tree.map(lambda a, i=i: a[i], x)
            engine = Engine((Side(network.program, {**shared, **_named(row)}),))
            for c in network.checks:
                value = np.asarray(engine.tensor_or_zeros(0, c.ref))
                if value.size and (value.min() < c.low or value.max() > c.high):
                    raise InputError(
                        f"{c.what} is {value.min()} to {value.max()} for input {i}; it "
                        f"should be in {c.low}..{c.high}."
                    )

    # Data -----------------------------------------------------------------------------

    def _inputs(self, x: Any, name: str) -> Any:
        leaves = jax.tree.leaves(x)
        if not leaves:
            raise InputError(f"`{name}` holds no array.")
        x = jax.tree.map(lambda a: a if hasattr(a, "dtype") else np.asarray(a), x)
        leaves = jax.tree.leaves(x)
        for a in leaves:
            if a.dtype == object or np.ndim(a) == 0:
                raise InputError(
                    f"`{name}` should be an array with one input a row, got "
                    f"{'a scalar' if np.ndim(a) == 0 else 'an array of objects'}."
                )
        rows = {a.shape[0] for a in leaves}
        if len(rows) > 1:
            raise ShapeMismatchError(
                f"The arrays of `{name}` have {sorted(rows)} rows; give one."
            )
        if 0 in rows:
            raise InputError(
                f"`{name}` is empty: shape {leaves[0].shape}. Give at least one input."
            )
        for a in leaves:
            if jnp.issubdtype(a.dtype, jnp.floating) and is_concrete(a):
                bad = np.argwhere(~np.isfinite(np.asarray(a)))
                if len(bad):
                    raise InputError(
                        f"`{name}` has {len(bad)} entries that are not finite, the "
                        f"first at {tuple(int(i) for i in bad[0])}: clean the data "
                        "first."
                    )
        return x

    def _shared(self, dtype: Any) -> dict[str, Any]:
        """What every input of the program shares: standard deviations, arrays."""
        shared: dict[str, Any] = {}
        paths, _ = jax.tree_util.tree_flatten_with_path(self.params, is_leaf=_declared)
        for path, p in paths:
            name = path_name(path)
            if isinstance(p, Normal):
                shared[f"std:{name}"] = jnp.asarray(p.std, dtype)
            elif isinstance(p, Constant):
                if np.ndim(p.value) == 0 or not is_concrete(p.value):
                    shape = tuple(s if isinstance(s, int) else 1 for s in p.shape)
                    shared[f"value:{name}"] = jnp.broadcast_to(
                        jnp.asarray(p.value, dtype), shape
                    )
            else:
                array = jnp.asarray(p)
                floating = jnp.issubdtype(array.dtype, jnp.floating)
                shared[f"param:{name}"] = array.astype(dtype) if floating else array
        return shared


def _check_axes(x1: Any, x2: Any) -> None:
    """Refuse two data sets whose inputs do not have the same axes."""
    a, b = jax.tree.leaves(x1), jax.tree.leaves(x2)
    if len(a) != len(b) or any(
        np.ndim(p) != np.ndim(q) for p, q in zip(a, b, strict=True)
    ):
        raise ShapeMismatchError(
            f"`x2` has shape {_shapes(x2)} and `x1` has shape {_shapes(x1)}: both hold "
            "inputs along the first axis, with the same axes after it."
        )


def _shapes(x: Any) -> str:
    return ", ".join(str(np.shape(a)) for a in jax.tree.leaves(x))


def _second(engine: Engine, tap: Traced, sides: tuple[int, int]) -> Any:
    """E[Z Z'] of a tap, averaged over its wide axis; zero if it vanishes."""
    same = () if tap.axis is None else (tap.axis,)
    shape = [s for a, s in enumerate(tap.shape) if a != tap.axis] * 2
    total = jnp.zeros(shape, engine.dtype)
    if tap.power < 0:
        return total
    if tap.kind == "fixed":
        values = [engine.tensor_or_zeros(s, tap.refs[0][0]) for s in sides]
        if tap.axis is not None:
            values = [jnp.mean(v, axis=tap.axis) for v in values]
        return jnp.tensordot(values[0], values[1], axes=0)
    for ref, weight in tap.refs:
        k = engine.pair_array(ref, ref, sides, same, centred=False)
        if k is not None:
            total = total + weight * (jnp.mean(k, axis=0) if same else k)
    return total


def _squeezed(k: Any) -> Any:
    """Without the batch axes of one entry on both sides."""
    return jnp.squeeze(k, (0, k.ndim // 2))


def _diverges(what: str, traced: Traced) -> str:
    power = traced.power
    divisor = "sqrt(n)" if power == Fraction(1, 2) else f"n**{float(power):g}"
    where = f", at {traced.source}" if traced.source else ""
    return f"{what} diverges like n^{power} with the width{where}: divide by {divisor}?"


def _struct(x: Any) -> Any:
    def one(a: Any) -> Any:
        dtype = (
            np.dtype("float64") if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        )
        return jax.ShapeDtypeStruct(a.shape, dtype)

    return jax.tree.map(one, x)


def _with_rows(x: Any, rows: int) -> Any:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), x
    )


def _key(x: Any) -> Any:
    leaves, tree = jax.tree.flatten(x)
    return (str(tree), tuple((tuple(a.shape), str(a.dtype)) for a in leaves))


def _dtype(x: Any) -> Any:
    floats = [
        a.dtype for a in jax.tree.leaves(x) if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    default = jnp.result_type(float)
    if not floats:
        return default
    return jax.dtypes.canonicalize_dtype(functools.reduce(jnp.promote_types, floats))


def _cast(x: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda a: jnp.asarray(
            a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else None
        ),
        x,
    )


def _named(x: Any, whole: bool = False) -> dict[str, Any]:
    """The inputs of a program from one input, or from a whole batch."""
    paths, _ = jax.tree_util.tree_flatten_with_path(x)
    return {
        "x" if not path else f"x.{path_name(path)}": a if whole else a[None]
        for path, a in paths
    }
