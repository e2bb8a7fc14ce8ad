"""Many networks of one width, and their second moments."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..trace._declare import Constant, Normal, fan_in_root, trial_shape, widths_are
from ._gradients import Gradients
from ._moments import Layout, flat, gram
from ._readout import draws, redrawn
from ._taps import Tapped, graph_of, run_with_taps

MEAN = "output:mean"
_MEMORY = 2**30


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """A network at its widths, before its parameters are drawn.

    Attributes:
        f: the network, `f(params, x)`.
        leaves: its declarations, arrays and other parameters.
        tree: their pytree.
        x: a batch of inputs.
        sizes: the value of every width.
    """

    f: Any
    leaves: tuple[Any, ...]
    tree: Any
    x: Any
    sizes: Mapping[str, int]

    @property
    def dtype(self) -> np.dtype:
        """The floating type of the inputs, or JAX's own for integer ones."""
        for leaf in jax.tree_util.tree_leaves(self.x):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf.dtype
        return jnp.result_type(float)

    def wider(self, factor: int) -> "Ensemble":
        """Every width times `factor`."""
        sizes = {name: factor * size for name, size in self.sizes.items()}
        return dataclasses.replace(self, sizes=sizes)

    def run(
        self,
        arrays: Sequence[Any],
        x: Any,
        bits: Any,
        shifts: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Tapped]]:
        """Output and taps of one network; `arrays` has None for other parameters."""
        theta = self.tree.unflatten(
            leaf if array is None else array
            for leaf, array in zip(self.leaves, arrays, strict=True)
        )
        with widths_are(self.sizes):
            return run_with_taps(self.f, theta, x, bits, shifts)

    def shapes(self, more: int = 0) -> tuple[Any, dict[str, Tapped]]:
        """Shapes of the output and the taps, with some inputs more."""

        def longer(leaf: Any) -> Any:
            shape = (leaf.shape[0] + more, *leaf.shape[1:])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        x = jax.tree_util.tree_map(longer, self.x)
        bits = jax.ShapeDtypeStruct((), jnp.uint32)
        return jax.eval_shape(self.run, self._array_shapes(), x, bits)

    def moments(
        self,
        layouts: Mapping[str, Layout],
        rngs: Sequence[np.random.Generator],
        with_mean: bool,
        gradients: Gradients | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Second moments (and the mean of the output) of one network after another.

        Those of gradients, where they are asked for, have names "gradient:tap".
        """
        place = self.readout() if "output" in layouts else None
        repeats = 1 if place is None else draws(layouts["output"].columns)

        def one(arrays: list[Any], readouts: Any, bits: Any, x: Any) -> dict[str, Any]:
            def run(readout: Any) -> Any:
                mine = list(arrays)
                if place is not None:
                    mine[place] = readout
                return self.run(mine, x, bits)

            outputs, taps = jax.vmap(run)(readouts)
            found = _summary(outputs, taps, layouts, with_mean)
            if gradients is not None:
                mine = list(arrays)
                if place is not None:
                    mine[place] = readouts[0]
                found |= gradients.moments(
                    lambda shifts: self.run(mine, x, bits, shifts)[0],
                    {name: tapped.value[0] for name, tapped in taps.items()},
                    bits,
                )
            return found

        chunk = self._chunk(len(rngs), repeats + (2 if gradients else 0))
        # One network alone is not mapped: convolutions with mapped filters are slow.
        many: Any = one if chunk == 1 else jax.vmap(one, in_axes=(0, 0, 0, None))
        run: Any = jax.jit(many)
        for start in range(0, len(rngs), chunk):
            inputs = [
                self._draw(r, place, repeats) for r in rngs[start : start + chunk]
            ]
            # Of jax.numpy: a parameter may be a key.
            several = jax.tree_util.tree_map(lambda *v: jnp.stack(v), *inputs)
            with jax.default_matmul_precision("highest"):
                found = run(*(inputs[0] if chunk == 1 else several), self.x)
            for i in range(chunk):
                yield {
                    name: np.asarray(v if chunk == 1 else v[i], np.float64)
                    for name, v in found.items()
                }

    def readout(self) -> int | None:
        """The parameter to draw several times for one network."""
        arrays = self._array_shapes()
        places = [i for i, array in enumerate(arrays) if array is not None]
        theta = self.tree.unflatten(
            leaf if array is None else array
            for leaf, array in zip(self.leaves, arrays, strict=True)
        )
        with widths_are(self.sizes):
            graph, _ = graph_of(self.f, theta, self.x)
        found = redrawn(graph, [self.leaves[i] for i in places])
        return None if found is None else places[found]

    def _draw(
        self, rng: np.random.Generator, place: int | None, repeats: int
    ) -> tuple[list[Any], np.ndarray, np.ndarray]:
        arrays = [self._draw_leaf(leaf, rng) for leaf in self.leaves]
        readouts = np.zeros((1, 0))
        if place is not None:
            more = [self._draw_leaf(self.leaves[place], rng) for _ in range(repeats)]
            readouts = np.stack(more)
        return arrays, readouts, rng.integers(2**32, size=(), dtype=np.uint32)

    def _draw_leaf(self, leaf: Any, rng: np.random.Generator) -> Any:
        """NumPy's generator, as nothing has to be compiled for each new shape."""
        if isinstance(leaf, Constant):
            shape = trial_shape(leaf.shape, self.sizes)
            return np.broadcast_to(np.asarray(leaf.value, self.dtype), shape)
        if isinstance(leaf, Normal):
            shape = trial_shape(leaf.shape, self.sizes)
            scale = float(leaf.std) / fan_in_root(leaf, self.sizes)
            kind = np.float64 if self.dtype == np.float64 else np.float32
            return (scale * rng.standard_normal(shape, kind)).astype(self.dtype)
        return leaf if hasattr(leaf, "shape") else None

    def _array_shapes(self) -> list[Any]:
        def of(leaf: Any) -> Any:
            if isinstance(leaf, Normal | Constant):
                shape = trial_shape(leaf.shape, self.sizes)
                return jax.ShapeDtypeStruct(shape, self.dtype)
            return leaf if hasattr(leaf, "shape") else None

        return [of(leaf) for leaf in self.leaves]

    def _chunk(self, seeds: int, repeats: int) -> int:
        """How many networks run at once: a divisor of the number of seeds."""
        if jax.default_backend() == "cpu":
            return 1  # one network already keeps the processor busy
        output, taps = self.shapes()
        entries = sum(a.size for a in self._array_shapes() if a is not None)
        entries += 16 * sum(t.value.size for t in taps.values())
        entries += 16 * repeats * output.size
        fits = max(1, _MEMORY // (entries * self.dtype.itemsize))
        return max(d for d in range(1, seeds + 1) if seeds % d == 0 and d <= fits)


def _summary(
    outputs: Any,
    taps: Mapping[str, Tapped],
    layouts: Mapping[str, Layout],
    with_mean: bool,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, layout in layouts.items():
        if name == "output":
            found[name] = jnp.mean(jax.vmap(lambda y, k=layout: gram(y, k))(outputs), 0)
        else:
            found[name] = gram(taps[name].value[0], layout)
    if with_mean:
        found[MEAN] = flat(jnp.mean(outputs, 0), layouts["output"]).ravel()
    return found
