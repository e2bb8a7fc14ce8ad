"""The kernels of a network of layers: the compiler's, in the form of this API."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._api import Limit, limit
from .._errors import InputError, ShapeMismatchError
from .._jax import any_rank
from .._kernel import Kernel, check_names, returned, wanted
from ..trace import Normal, Width, WidthForm, normal
from ._masks import MaskedArray, is_constant, parts, unmask, zeroed
from ._signal import Signal, Signals, Widths
from ._spec import Axes, Scope, Serial, Spec
from ._weights import declared

_COVARIANCES = ("nngp", "ntk", "cov1", "cov2")


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a kernel was made, so that more layers can be applied to it. A pytree.

    Attributes:
        spec: the layers.
        x1: the first batch.
        x2: the second, or None.
        pattern: the graphs of both.
        mask_constant: see `KernelFn`.
        options: the other arguments of the kernel function.
    """

    spec: Spec
    x1: Any
    x2: Any
    pattern: Any
    mask_constant: Any
    options: tuple[tuple[str, Any], ...]


jax.tree_util.register_dataclass(
    Origin,
    data_fields=["x1", "x2", "pattern", "mask_constant"],
    meta_fields=["spec", "options"],
)


class KernelFn:
    """The kernels of a network in the limit of infinitely many channels.

    Attributes:
        spec: the layers.
        functions: the `init_fn` and `apply_fn` of the same network.
    """

    def __init__(
        self, spec: Spec, functions: tuple[Callable[..., Any], Callable[..., Any]]
    ) -> None:
        self.spec, self.functions = spec, functions
        self._networks: dict[Any, _Network] = {}

    @any_rank()
    def __call__(
        self,
        x1: Any,
        x2: Any | None = None,
        get: str | Iterable[str] | None = None,
        *,
        pattern: tuple[Any, Any] | None = None,
        mask_constant: float | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        batch_axis: int | None = None,
        channel_axis: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The kernels of two batches of inputs.

        Args:
            x1: N1 inputs, with the axes that the first layer names; a list of arrays
                for a network that begins with parallel branches; or the `Kernel` of
                other layers, on which these are then applied.
            x2: N2 inputs; None for `x1`.
            get: "nngp", "ntk", "cov1", "cov2" or another attribute of `Kernel`; a tuple
                of such names; or None.
            pattern: the graphs of both batches, for `Aggregate`.
            mask_constant: inputs do not count where they are equal to it; may be NaN.
            diagonal_batch: whether `cov1` and `cov2` are of each input with itself
                (the default), or of all pairs of a batch.
            diagonal_spatial: whether only pairs of equal positions are given.
            batch_axis: the axis of inputs, where no layer names it.
            channel_axis: the axis of channels, where no layer names it.
            **kwargs: passed to the layers; a random key `rng` is not needed.

        Returns:
            One array, a named tuple, or a `Kernel`; a list of them for a network that
            ends in branches. Positions come in pairs: (N1, N2, H, H', W, W').

        Raises:
            NoLimitError: the output diverges with the width.
            UnsupportedError: a layer without a limit, or that is not covered.
            ShapeMismatchError: the inputs do not fit the layers.
            InputError: data that are not finite; a name that is not known.
        """
        names = wanted(get)
        kwargs.pop("rng", None)
        options = dict(
            diagonal_batch=diagonal_batch,
            diagonal_spatial=diagonal_spatial,
            batch_axis=batch_axis,
            channel_axis=channel_axis,
            **kwargs,
        )
        options = {k: v for k, v in options.items() if v is not None}
        if _all(Kernel, x1):
            return self._on(x1, x2, get, pattern, mask_constant, options)
        if x2 is not None and all(a is None for a in jax.tree.leaves(x2, is_leaf=_no)):
            x2 = None
        pattern = (None, None) if pattern is None else tuple(pattern)
        known = tuple(sorted(options.items()))
        network = self._network(x1, pattern[0] is not None, known)
        one = network.data(x1, pattern[0], mask_constant)
        two = None if x2 is None else network.data(x2, pattern[1], mask_constant)
        origin = Origin(self.spec, x1, x2, pattern, mask_constant, known)

        def result(output: _Output) -> Any:
            values = output.values(one, two, names)
            if get is None:
                return Kernel(**values, origin=origin)
            return returned(values, get, "AnalyticKernel")

        return network.each(one, result)

    def coupled(self, x: Any) -> bool:
        """Whether inputs of a batch interact, as where one is normalised by the others.

        Their kernel is then not that of tiles: `widelimit.batch` refuses it.

        Args:
            x: inputs, as for the kernels.
        """
        # Entries that are masked may be NaN, and do not matter here.
        x = jax.tree.map(lambda a: jnp.nan_to_num(jnp.asarray(a)), x)
        network = self._network(x, False, ())
        data = network.data(x, None, None)
        found = network.each(data, lambda output: output.limit.coupled(data))
        return any(jax.tree.leaves(found))

    def _on(
        self,
        kernel: Any,
        x2: Any,
        get: Any,
        pattern: Any,
        mask_constant: Any,
        options: dict[str, Any],
    ) -> Any:
        """The layers applied to the kernel of others."""
        origin = jax.tree.leaves(kernel, is_leaf=lambda k: isinstance(k, Kernel))[0]
        origin = origin.origin
        if x2 is not None or origin is None:
            raise InputError(
                "Layers are applied to a Kernel by compiling them together with those "
                "that made it, so it should be what a `kernel_fn` returned, unchanged, "
                "and alone: call the `kernel_fn` of the whole network otherwise."
            )
        whole = KernelFn(Serial((origin.spec, self.spec)), self.functions)
        pattern = origin.pattern if pattern is None else pattern
        return whole(
            origin.x1,
            origin.x2,
            get,
            pattern=pattern,
            mask_constant=(
                origin.mask_constant if mask_constant is None else mask_constant
            ),
            **{**dict(origin.options), **options},
        )

    def _network(
        self, x: Any, patterned: bool, options: tuple[tuple[str, Any], ...]
    ) -> "_Network":
        """The network for inputs of one shape; compiled once."""
        leaves, tree = jax.tree.flatten(x)
        key = (str(tree), *(np.shape(a)[1:] for a in leaves), patterned, options)
        if key not in self._networks:
            self._networks[key] = _Network(self.spec, x, patterned, dict(options))
        return self._networks[key]


def _batch_first(a: jax.Array, axis: int) -> jax.Array:
    return a if axis == 0 else jnp.moveaxis(a, axis, 0)


def _no(a: Any) -> bool:
    return a is None


def _all(kind: type, x: Any) -> bool:
    leaves = jax.tree.leaves(x, is_leaf=lambda a: isinstance(a, kind))
    return bool(leaves) and all(isinstance(a, kind) for a in leaves)


class _Network:
    """A network of layers as a function of data, for inputs of one shape."""

    def __init__(
        self, spec: Spec, x: Any, patterned: bool, options: dict[str, Any]
    ) -> None:
        self.spec, self.patterned = spec, patterned
        self.diagonal_batch = options.pop("diagonal_batch", True)
        self.diagonal_spatial = options.pop("diagonal_spatial", None)
        default = options.pop("batch_axis", None), options.pop("channel_axis", None)
        self.options = options
        leaves, self.tree = jax.tree.flatten(x)
        self.axes = _axes(spec.axes, leaves, default)
        self._outputs: Any = None
        self._masks = jax.jit(self._masks_now)

    def data(self, x: Any, pattern: Any, mask_constant: Any) -> dict[str, Any]:
        """Inputs as the compiler takes them: arrays with the inputs along axis 0."""
        leaves, tree = jax.tree.flatten(x)
        if tree != self.tree:
            raise ShapeMismatchError(
                f"Both batches should have one structure, got {self.tree} and {tree}."
            )
        # Of any type: in JAX's own precision, as the layers take them.
        arrays = [
            _batch_first(jnp.asarray(a, jnp.result_type(float)), b)
            for a, (b, _) in zip(leaves, self.axes, strict=True)
        ]
        found: dict[str, Any] = {"inputs": arrays}
        if mask_constant is not None:
            masks = [is_constant(a, mask_constant) for a in arrays]
            found["inputs"] = list(map(zeroed, arrays, masks))
            found["masked"] = [m.astype(arrays[0].dtype) for m in masks]
        if (pattern is not None) != self.patterned:
            raise InputError("Give a `pattern` for both batches, or for none.")
        if pattern is not None:
            found["pattern"] = jnp.asarray(pattern)
        held = self.spec.arrays()
        for array in held.values():
            if len(array) != len(arrays[0]):
                raise ShapeMismatchError(
                    f"A layer holds an array with {len(array)} entries, one an input, "
                    f"and there are {len(arrays[0])} inputs."
                )
        if held:
            found["held"] = list(held.values())
        return found

    def inputs(self, data: dict[str, Any]) -> Any:
        """The inputs as the layers take them, from the data."""

        def at_home(arrays: Any) -> list[Any]:
            axes = [b for b, _ in self.axes]
            return [jnp.moveaxis(a, 0, b) for a, b in zip(arrays, axes, strict=True)]

        x = at_home(data["inputs"])
        if "masked" in data:
            masks = [m == 1 for m in at_home(data["masked"])]
            x = list(map(MaskedArray, x, masks))
        return self.tree.unflatten(x)

    def signals(self, data: dict[str, Any]) -> Signals:
        """Those of the inputs."""

        def one(a: Any, axes: tuple[int, int]) -> Signal:
            size, *rest = a.shape
            rest.insert(axes[0], size)
            return Signal(tuple(rest)).at(*axes)

        return self.tree.unflatten(map(one, data["inputs"], self.axes))

    def declared(self, data: dict[str, Any]) -> tuple[Signals, Any]:
        """The signals after the infinite network, and its weights."""
        finite = Widths()
        self.spec.declare(self.signals(data), finite, Scope())
        infinite = Widths(max(finite.seen, default=1))
        return self.spec.declare(self.signals(data), infinite, Scope())

    def finite_shape(self, data: dict[str, Any]) -> Signals:
        """The signals after the finite network."""
        return self.spec.declare(self.signals(data), Widths(), Scope())[0]

    def forward(self, weights: Any, data: dict[str, Any]) -> Any:
        """The output of the network, with the axes of its layers, perhaps masked."""
        return self.spec.forward(
            weights,
            self.inputs(data),
            Scope(),
            rng=jax.random.key(0),
            is_infinite=True,
            pattern=data.get("pattern"),
            held=dict(zip(self.spec.arrays(), data.get("held", ()), strict=True)),
            **self.options,
        )

    def each(self, data: dict[str, Any], result: Callable[["_Output"], Any]) -> Any:
        """The result for every output of the network: one, or a list."""
        if self._outputs is None:
            signals, weights = self.declared(data)

            def output(signal: Any, path: tuple[int, ...]) -> Any:
                if isinstance(signal, Signal):
                    return _Output(self, path, signal, weights)
                return type(signal)(output(s, (*path, i)) for i, s in enumerate(signal))

            self._outputs = output(signals, ())
        return _mapped(result, self._outputs)

    def masks(self, data: dict[str, Any]) -> Any:
        """Where the outputs are masked: their values are not computed."""
        return self._masks(data) if "masked" in data else None

    def _masks_now(self, data: dict[str, Any]) -> Any:
        _, weights = self.spec.declare(self.signals(data), Widths(), Scope())
        drawn = jax.eval_shape(lambda k: self.spec.draw(weights, k), jax.random.key(0))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), drawn)
        return parts(self.forward(zeros, data))[1]


def _mapped(result: Callable[[Any], Any], outputs: Any) -> Any:
    if isinstance(outputs, _Output):
        return result(outputs)
    return type(outputs)(_mapped(result, o) for o in outputs)


def _at(tree: Any, path: tuple[int, ...]) -> Any:
    for i in path:
        tree = None if tree is None else tree[i]
    return tree


def _axes(axes: Axes, leaves: list[Any], default: Any) -> list[tuple[int, int]]:
    """The axes of inputs and of channels of every input array."""
    for a in leaves:
        if np.ndim(a) < 2:
            raise ShapeMismatchError(
                "Inputs should be arrays with an axis of inputs and one of channels, "
                f"got {f'shape {np.shape(a)}' if hasattr(a, 'shape') else repr(a)}."
            )
    each = axes if isinstance(axes, list) and len(axes) == len(leaves) > 1 else None
    named = each if each is not None else [axes] * len(leaves)
    found = []
    for a, given in zip(leaves, named, strict=True):
        first = _first(given)
        pair = (0, -1) if first is None else first
        batch, channel = (
            p if d is None else d for p, d in zip(pair, default, strict=True)
        )
        found.append((batch % np.ndim(a), channel % np.ndim(a)))
    return found


def _first(axes: Axes) -> tuple[int, int] | None:
    if isinstance(axes, list):
        return next((a for a in map(_first, axes) if a is not None), None)
    return axes


class _Output:
    """One output of a network, and its limit."""

    def __init__(
        self, network: _Network, path: tuple[int, ...], signal: Signal, weights: Any
    ) -> None:
        self._network, self._path, self._signal = network, path, signal
        params = {"network": declared(weights)}
        if not isinstance(signal.channels, Width | WidthForm):
            # Of finitely many channels the kernel is that of an untrained readout.
            params["readout"] = normal((signal.channels, 1), lr=0.0)
        self.limit: Limit = limit(self._function, params)
        self._is_trained = bool(jax.tree.leaves(params["network"], is_leaf=_is_random))
        # In the limit the axis of inputs is there to the end.
        batch, channel = signal.axes
        if signal.has_no_inputs:
            batch, channel = signal.batch_axis, channel + (channel >= signal.batch_axis)
        self._home = batch, channel
        wanted = network.diagonal_spatial
        self._is_diagonal = bool(
            signal.spatial_axes and (signal.is_local if wanted is None else wanted)
        )

    def _function(self, params: Any, data: Any) -> Any:
        y = unmask(self._network.forward(params["network"], data))
        y = jnp.moveaxis(_at(y, self._path), self._home, (0, -1))
        if "readout" in params:
            y = y @ params["readout"] / jnp.sqrt(y.shape[-1])
        return y

    def values(
        self, one: Any, two: Any, names: tuple[str, ...] | None
    ) -> dict[str, Any]:
        """What is asked for, by name."""
        # What is not asked for is not computed.
        facts: dict[str, Callable[[], Any]] = dict(
            x1_is_x2=lambda: two is None or _same(one, two),
            is_gaussian=lambda: self._signal.is_gaussian,
            is_reversed=lambda: False,
            is_input=lambda: self._signal.is_input,
            diagonal_batch=lambda: self._network.diagonal_batch,
            diagonal_spatial=lambda: self._is_diagonal,
            shape1=lambda: self._shape(one),
            shape2=lambda: self._shape(one if two is None else two),
            batch_axis=lambda: self._signal.axes[0],
            channel_axis=lambda: self._signal.axes[1],
            mask1=lambda: self._mask(one),
            mask2=lambda: None if two is None else self._mask(two),
        )
        check_names(names, (*_COVARIANCES, *facts))
        found = {
            name: fact()
            for name, fact in facts.items()
            if names is None or name in names
        }
        needed = {n for n in _COVARIANCES if names is None or n in names}
        net, positions = self.limit, self._ordered
        # Of a rule that is not symmetric both halves are wanted.
        other = one if two is None and not self._signal.is_symmetric else two
        if not self._is_trained and "ntk" in needed:
            found["nngp"] = positions(net.nngp(one, other))
            found["ntk"] = jnp.zeros_like(found["nngp"])
        elif {"nngp", "ntk"} <= needed:
            both = net.kernels(one, other)
            found["nngp"], found["ntk"] = positions(both.nngp), positions(both.ntk)
        elif "ntk" in needed:
            found["ntk"] = positions(net.ntk(one, other))
        elif "nngp" in needed:
            found["nngp"] = positions(net.nngp(one, other))
        if "cov1" in needed:
            found["cov1"] = self._covariance(one)
        if "cov2" in needed:
            found["cov2"] = None if two is None else self._covariance(two)
        return found

    def _covariance(self, data: Any) -> Any:
        """Of a batch with itself."""
        if self._network.diagonal_batch:
            return self._ordered(self.limit.nngp(data, diagonal=True), first=1)
        return self._ordered(self.limit.nngp(data))

    def _mask(self, data: Any) -> Any:
        return _at(self._network.masks(data), self._path)

    def _shape(self, data: Any) -> tuple[int, ...]:
        found: Any = _at(self._network.finite_shape(data), self._path)
        return tuple(found.shape)

    def _ordered(self, k: jax.Array, first: int = 2) -> jax.Array:
        """Positions in pairs, or only equal ones, from (N1, N2, *I, *I')."""
        for rows in self._signal.rows:
            if isinstance(rows, slice):
                k = k[(rows,) * first]
            else:
                k, first = k[(rows,) * first], 0
        count = (k.ndim - first) // 2
        if self._is_diagonal:
            for left in range(count, 0, -1):
                # It comes last: after all pairs they are in their order again.
                k = jnp.diagonal(k, axis1=first, axis2=first + left)
            return k
        order = [first + a + b * count for a in range(count) for b in (0, 1)]
        return jnp.transpose(k, (*range(first), *order))


def _is_random(w: Any) -> bool:
    return isinstance(w, Normal)


def _same(one: Any, two: Any) -> Any:
    a, b = jax.tree.leaves(one), jax.tree.leaves(two)
    if any(p.shape != q.shape for p, q in zip(a, b, strict=True)):
        return False
    return jnp.all(
        jnp.array([jnp.allclose(p, q, 0, 1e-12) for p, q in zip(a, b, strict=True)])
    )
