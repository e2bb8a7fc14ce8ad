"""One layer as a map of covariances, for standard deviations that are traced.

The state h of index shape I is a Gaussian of mean zero: `P = prod(I)` positions, whose
covariances are given. The compiler sees a network, which begins with h = x U for rows
U of iid entries, one for every position, and for the identity x, and ends with a
readout; the engine is then told that the rows of U have other covariances.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import (
    NoLimitError,
    ShapeMismatchError,
    UnsupportedError,
)
from .._networks import Networks, diverges, struct_of
from ..asymptotics import Engine, Factor, Product, Side
from ..gaussian import Accuracy
from ..kernels import PairKernel
from ..program import TensorProgram, VecIn
from ..trace import Constant, Normal, Width, normal, path_name, tap

_STATE = "state"


@dataclasses.dataclass(frozen=True, slots=True)
class Repeated:
    """A layer, repeated with new weights.

    Attributes:
        f: the layer, `f(params, h)`.
        params: the declarations of one layer.
        shape: the index shape I of its state.
        width: the wide axis of its state.
        scanned: the numbers of the leaves of `params` that have the first standard
            deviation of the grid, and of those that have the second.
    """

    f: Callable[..., Any]
    params: Any
    shape: tuple[int, ...]
    width: Width
    scanned: tuple[tuple[int, ...], tuple[int, ...]]


class LayerMap:
    """What some repetitions of a layer do to covariances and to gradients.

    Args:
        layer: the layer.
        depth: how often it is repeated.

    Raises:
        UnsupportedError: inputs of a batch interact.
        NoLimitError: the output of the layer is not of order 1.
    """

    def __init__(self, layer: Repeated, depth: int = 1) -> None:
        self._layer, self._depth = layer, depth
        self.positions = math.prod(layer.shape)
        self.is_exact = True  # until a gradient is asked for, and is not
        self._networks = Networks(self._f, self._params(), ())
        eye = np.eye(self.positions).reshape(1, *layer.shape, self.positions)
        self._x = eye
        if self._networks.is_coupled(np.concatenate([eye, eye])):
            raise UnsupportedError(
                "The layer couples the inputs of a batch (batch normalisation?): a "
                "phase diagram is about a pair of inputs, one layer at a time."
            )
        struct = struct_of(eye)
        output = self._networks.limit(struct).output
        if output.power > 0:
            raise NoLimitError(diverges("The output of the layer", output))
        if output.power < 0:
            raise NoLimitError(
                f"The output of the layer vanishes like n^{output.power} with the "
                "width: is it divided by the width once too often?"
            )
        self._forward = self._networks.asked(struct, False, frozenset({"nngp"}))

    def own(self, stds: Any, state: Any) -> Any:
        """The covariance of one input with itself, (P, P), after the layers."""
        engine = self._engine(stds, [[state]], self._forward.program)
        kernels = PairKernel(self._forward, self._forward, (), False)
        found = self._square(kernels.of(engine, (0, 0))["nngp"])
        return 0.5 * (found + found.T)

    def cross(self, stds: Any, state: Any, across: Any) -> Any:
        """That of two inputs with the same own covariance."""
        covariances = [[state, across], [across.T, state]]
        engine = self._engine(stds, covariances, self._forward.program)
        kernels = PairKernel(self._forward, self._forward, (), False)
        return self._square(kernels.of(engine, (0, 1))["nngp"])

    def gradient(self, stds: Any, state: Any, level: int = 1) -> Any:
        """E[dh_o[p] dh_o'[p']] at the state, dh_o by backprop from position o.

        Args:
            stds: the two standard deviations.
            state: the covariance of the state, (P, P).
            level: of accuracy, where expectations are numerical.

        Returns:
            Shape (P, P, P, P) for o, o', p, p': covariances of gradients above the
            layers are contracted with the first two.
        """
        asked = self._networks.asked(
            struct_of(self._x), False, frozenset({"gradients"})
        )
        engine = self._engine(stds, [[state]], asked.program, Accuracy(level))
        kernels = PairKernel(asked, asked, (), False)
        found = kernels.of(engine, (0, 0))[f"gradient:{_STATE}"]
        self.is_exact &= all(engine.routes.values())
        square = jnp.reshape(found, (self.positions,) * 4)
        return jnp.transpose(square, (0, 2, 1, 3))

    # The network ----------------------------------------------------------------------

    def _f(self, params: Any, x: Any) -> Any:
        h = tap(_STATE, jnp.tensordot(x, params[_STATE], 1))
        for one in params["layers"]:
            out = self._layer.f(one, h)
            shape = getattr(out, "shape", None)
            if shape != h.shape:
                raise ShapeMismatchError(
                    f"A layer that is repeated returns the shape that it takes: given h"
                    f" of shape {h.shape} it returns "
                    f"{type(out).__name__ if shape is None else shape}, in a trial at "
                    f"the width {h.shape[-1]}. Give the shape of the state, as in "
                    "`shape=(8, n)`, if it is another."
                )
            h = out
        return h @ params["readout"] / jnp.sqrt(h.shape[-1])

    def _params(self) -> Any:
        leaves, tree = jax.tree.flatten(self._layer.params, is_leaf=_declared)
        for i in (i for part in self._layer.scanned for i in part):
            # An array, so that it is an input of the program.
            leaves[i] = dataclasses.replace(leaves[i], std=jnp.asarray(1.0))
        layer = self._layer
        return {
            "layers": [tree.unflatten(leaves)] * self._depth,
            _STATE: normal((self.positions, layer.width)),
            "readout": normal((layer.width,)),
        }

    def _engine(
        self,
        stds: Any,
        covariances: Sequence[Sequence[Any]],
        program: TensorProgram,
        accuracy: Accuracy | None = None,
    ) -> Engine:
        dtype = jnp.result_type(float)
        inputs = self._networks.shared(dtype) | self._stds(stds)
        side = Side(program, inputs | {"x": jnp.asarray(self._x, dtype)})
        return _StateEngine([side] * len(covariances), covariances, accuracy)

    def _stds(self, stds: Any) -> dict[str, Any]:
        paths, _ = jax.tree_util.tree_flatten_with_path(
            {"layers": [self._layer.params] * self._depth}, is_leaf=_declared
        )
        names = [path_name(path) for path, _ in paths]
        count = len(names) // self._depth
        return {
            f"std:{names[layer * count + i]}": std
            for std, part in zip(stds, self._layer.scanned, strict=True)
            for layer in range(self._depth)
            for i in part
        }

    def _square(self, found: Any) -> Any:
        return jnp.reshape(found, (self.positions, self.positions))


class _StateEngine(Engine):
    """An engine that is told the covariances of the state, of any two sides."""

    def __init__(
        self,
        sides: Sequence[Side],
        covariances: Sequence[Sequence[Any]],
        accuracy: Accuracy | None,
    ) -> None:
        super().__init__(sides, accuracy)
        self._covariances = covariances
        # They know nothing of what is given.
        self.distances.matter = False

    def _cov_inputs(self, u: Any, a: VecIn, v: Any, b: VecIn) -> Any:
        found = super()._cov_inputs(u, a, v, b)
        if not found or a.name.partition("_")[0] != _STATE:
            return found
        given = self._covariances[u.side][v.side]
        product = Product((Factor(given, (u.indices[0], v.indices[0])),))
        # The wide axis may be cut into parts, which are independent of each other.
        for x, y in zip(u.indices[1:], v.indices[1:], strict=True):
            product = self._delta(product, x, y)
        return (product,)


def _declared(p: Any) -> bool:
    return isinstance(p, Normal | Constant)
