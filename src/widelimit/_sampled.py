"""Limits of whole data sets from joint samples, where an expectation has no formula."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._jax import is_concrete
from ._networks import Networks, key_of, named_inputs, struct_of
from .asymptotics import (
    REPEATS,
    Engine,
    Inputs,
    Question,
    has_pole_at_zero,
    relative_error,
)
from .gaussian import Estimate, sobol_normal
from .kernels import PairKernel, Quantities, mean_of, swapped
from .transform import take_apart

SAMPLES = 2**13
"""How many samples kernels take when no number is asked for."""
MAX_SAMPLES = 2**18
"""The most samples that a wanted accuracy takes."""

# Inputs are drawn together while a sample has no more numbers than this.
_DIMENSION = 2048


class SampledLimit:
    """Kernels and means of a network with all inputs as one program.

    Args:
        networks: the network, compiled for every shape.
        trace_axes: axes of the output that kernels are averaged over.
    """

    def __init__(self, networks: Networks, trace_axes: tuple[int, ...]) -> None:
        self._networks, self._trace_axes = networks, trace_axes
        self._apart: dict[Any, Quantities] = {}
        self._questions: dict[Any, Question] = {}
        self._poles: dict[Any, bool] = {}
        self._compiled: dict[Question, Callable[..., Any]] = {}

    def kernels(
        self, x1: Any, x2: Any | None, dtype: Any, what: Collection[str]
    ) -> Any:
        """Kernels by name, (N1, N2, *I, *I'), from one randomisation; differentiable.

        Large data sets are cut into blocks, each pair of them with samples of its own.
        """
        question, inputs = self.question(x1, x2, dtype, what)
        plan = question.plan(inputs)
        n1, n2 = _count(x1), 0 if x2 is None else _count(x2)
        if plan.dimension <= _DIMENSION or self._networks.is_coupled(x1):
            return self._block(x1, x2, dtype, what)
        rows = max(1, _DIMENSION * (n1 + n2) // (2 * plan.dimension))
        parts = [_rows(x1, i, rows) for i in range(0, n1, rows)]
        if x2 is not None:
            others = [_rows(x2, j, rows) for j in range(0, n2, rows)]
            tiles = [[self._block(a, b, dtype, what) for b in others] for a in parts]
            return _joined(tiles)
        grid: list[list[Any]] = [[None] * len(parts) for _ in parts]
        for i, a in enumerate(parts):
            grid[i][i] = self._block(a, None, dtype, what)
            for j, b in enumerate(parts[:i]):
                grid[j][i] = self._block(b, a, dtype, what)
                grid[i][j] = jax.tree.map(lambda k: swapped(k, True), grid[j][i])
        return _joined(grid)

    def means(
        self, x1: Any, x2: Any | None, dtype: Any, what: Collection[str]
    ) -> dict[str, Any]:
        """Kernels by name, the means of independent randomisations."""
        question, inputs = self.question(x1, x2, dtype, what)
        found = question.answer(inputs, SAMPLES)
        return {name: jnp.asarray(k.value, dtype) for name, k in found.items()}

    def _block(self, x1: Any, x2: Any | None, dtype: Any, what: Collection[str]) -> Any:
        return self._once(*self.question(x1, x2, dtype, what), dtype)

    def _once(self, question: Question, inputs: Inputs, dtype: Any) -> Any:
        """The answer from one randomisation, compiled once for every question."""
        plan = question.plan(inputs)
        if question not in self._compiled:
            self._compiled[question] = jax.jit(question.sampled, static_argnums=(1,))
        points = sobol_normal(plan.dimension, SAMPLES.bit_length() - 1, 0)
        return self._compiled[question](inputs, plan, jnp.asarray(points, dtype))

    def check_exists(
        self, x1: Any, x2: Any | None, dtype: Any, what: Collection[str]
    ) -> None:
        """Refuse kernels that need an expectation that does not exist.

        Only networks that divide by what may be zero are looked at. For numbers that
        are traced some others stand, which shows what follows from their shapes.

        Raises:
            NoLimitError: one does not.
        """
        batch = self._networks.is_coupled(x1)
        program = self._networks.asked(struct_of(x1), batch, frozenset(what)).program
        key = (key_of(struct_of(x1)), frozenset(what))
        if key not in self._poles:
            self._poles[key] = has_pole_at_zero(program)
        if not self._poles[key]:
            return
        if not batch:
            # A pair of inputs is like any other.
            x1, x2 = _rows(x1, 0, 2), None if x2 is None else _rows(x2, 0, 1)
        question, inputs = self.question(x1, x2, dtype, what)
        numbers = [_numbers(one) for one in inputs]
        if all(one is not None for one in numbers):
            question.check_exists([one for one in numbers if one is not None])

    def question(
        self, x1: Any, x2: Any | None, dtype: Any, what: Collection[str]
    ) -> tuple[Question, Inputs]:
        """The kernels of two data sets, or of one with itself, and their inputs."""
        data = [x1] if x2 is None else [x1, x2]
        key = (*(key_of(struct_of(x)) for x in data), str(dtype), frozenset(what))
        if key not in self._questions:
            asked = [self._asked(struct_of(x), frozenset(what)) for x in data]
            kernel = PairKernel(asked[0], asked[-1], self._trace_axes, True)
            programs = [one.program for one in asked]
            self._questions[key] = Question(programs, kernel.on, dtype)
        shared = self._networks.shared(dtype, what)
        inputs = [{**shared, **named_inputs(x, whole=True)} for x in data]
        return self._questions[key], inputs

    def _asked(self, x: Any, what: frozenset[str]) -> Quantities:
        """What is asked of a whole batch, its functions taken apart."""
        key = (key_of(x), what)
        if key not in self._apart:
            found = self._networks.asked(x, True, what)
            done = take_apart(found.program)
            self._apart[key] = found.moved(done.program, done.place)
        return self._apart[key]

    def mean(self, x: Any, dtype: Any) -> Any:
        """The mean of the output from one randomisation, of its traced shape."""
        key = ("mean", key_of(struct_of(x)), str(dtype))
        if key not in self._questions:
            network = self._networks.limit(struct_of(x), True)

            def ask(engine: Engine) -> Any:
                return mean_of(engine, network.output)

            self._questions[key] = Question([network.program], ask, dtype)
        inputs = {**self._networks.shared(dtype), **named_inputs(x, whole=True)}
        return self._once(self._questions[key], [inputs], dtype)


def estimates(
    question: Question,
    inputs: Inputs,
    samples: int,
    rtol: float | None,
    seed: Sequence[int],
    progress: Callable[[int, int], None] | None,
    route: str,
) -> dict[str, Estimate]:
    """Every kernel with its error; samples are doubled until it is small enough."""
    while True:
        found = question.answer(inputs, samples, seed, progress, route == "samples")
        reached = max(relative_error(k) for k in found.values())
        if rtol is None or reached <= rtol:
            return found
        sampled = any(np.any(k.stderr) for k in found.values())
        if not sampled or samples >= MAX_SAMPLES:
            why = "no samples are involved, so that more would not help"
            if sampled:
                why = f"{samples} samples in {REPEATS} randomisations are the most"
            warnings.warn(
                f"The relative error is {reached:.1e}, and {rtol:.1e} was asked for: "
                f"{why}.",
                stacklevel=3,
            )
            return found
        # The error falls like 1 / samples at best, like its root at worst.
        more = 2 ** max(1, round(np.log2(min(reached / rtol, MAX_SAMPLES))))
        samples = min(samples * more, MAX_SAMPLES)


def _numbers(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Inputs with random numbers for those that are traced; None if these are whole."""
    rng, found = np.random.default_rng(0), {}
    for name, a in inputs.items():
        if not is_concrete(a):
            if not jnp.issubdtype(a.dtype, jnp.floating):
                return None
            a = np.asarray(rng.standard_normal(a.shape), a.dtype)
        found[name] = a
    return found


def _count(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _rows(x: Any, start: int, count: int) -> Any:
    return jax.tree.map(lambda a: a[start : start + count], x)


def _joined(tiles: Sequence[Sequence[Any]]) -> Any:
    lines = [jax.tree.map(lambda *k: jnp.concatenate(k, 1), *line) for line in tiles]
    return jax.tree.map(lambda *k: jnp.concatenate(k, 0), *lines)
