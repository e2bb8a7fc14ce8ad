"""Numbers asked of an engine, each with its error: by formulas, by samples if need be.

What has to be drawn is found by asking on abstract numbers: where an expectation has no
formula its families are drawn, and the question is asked again.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..gaussian import Accuracy, Estimate, sobol_normal
from ._draws import FORMULAS, Family, NeedsDraws, Sampling
from ._engine import Engine, Side

REPEATS = 16
"""Independent randomisations of the points, whose spread is the standard error."""

# Student's t at 99 % with 15 degrees of freedom.
_STUDENT = 2.947
# Rounding of a recursion, in units of the last place of its scale.
_ROUNDING = 2**-44

# Samples of several randomisations that are computed together.
_AT_ONCE = 2**20

Ask = Callable[[Engine], Any]
"""What is wanted of an engine: a pytree of arrays."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is drawn to answer a question.

    Attributes:
        drawn: the families of lines.
        dimension: how many numbers a sample has.
    """

    drawn: frozenset[Family] = frozenset()
    dimension: int = 0

    def __str__(self) -> str:
        return f"samples (QMC, {self.dimension} dimensions)"


class Question:
    """A question to the engine of some sides.

    Args:
        sides: the programs and their inputs, which may be traced.
        ask: what is wanted.
        dtype: of the numbers; JAX's default if None.
    """

    def __init__(self, sides: Sequence[Side], ask: Ask, dtype: Any = None) -> None:
        self._sides, self._ask = tuple(sides), ask
        self._dtype = jnp.result_type(float) if dtype is None else dtype
        self._formulas: dict[int, Engine] = {}

    def on(self, ask: Ask) -> "Question":
        """Another question to the same sides, which knows what was found already."""
        other = Question(self._sides, ask, self._dtype)
        other._formulas = self._formulas
        return other

    def plan(self, samples: int, everything: bool = False) -> Plan:
        """What has to be drawn, found on abstract numbers.

        Args:
            samples: the number of samples, for the check of their size.
            everything: draw every family.
        """
        plan = Plan(self.engine(None).families.all if everything else frozenset())
        while True:
            sampling = Sampling(samples, plan.drawn)
            try:
                return dataclasses.replace(plan, dimension=self._dimension(sampling))
            except NeedsDraws as found:
                plan = Plan(plan.drawn | found.families)

    def _dimension(self, sampling: Sampling) -> int:
        used = 0

        def run(inputs: Any) -> Any:
            nonlocal used
            sides = [
                dataclasses.replace(side, inputs=given)
                for side, given in zip(self._sides, inputs, strict=True)
            ]
            engine = Engine(sides, None, self._dtype, sampling)
            found = self._ask(engine)
            assert engine.draws is not None
            used = engine.draws.dimension
            return found

        # New functions, so that nothing is found in a cache.
        jax.eval_shape(run, [dict(side.inputs) for side in self._sides])
        return used

    def engine(
        self, sampling: Sampling | None, accuracy: Accuracy | None = None
    ) -> Engine:
        """An engine that has not been asked yet."""
        return Engine(self._sides, accuracy, self._dtype, sampling)

    def formulas(self) -> Any:
        """The answer by formulas.

        Raises:
            NeedsDraws: an expectation has none.
        """
        return self._ask(self.engine(FORMULAS))

    def asked_engine(self, samples: int) -> Engine:
        """The engine after it was asked, with samples if they are needed."""
        engine = self.engine(FORMULAS)
        try:
            self._ask(engine)
        except NeedsDraws:
            plan = self.plan(samples)
            points = self._points(plan, samples, (), range(1))[0]
            engine = self.engine(Sampling(samples, plan.drawn, points))
            self._ask(engine)
            engine.routes[str(plan)] = False
        return engine

    def sampled(self, plan: Plan, points: Any) -> Any:
        """The answer from these points, (samples, dimension); differentiable."""
        return self._ask(self.engine(Sampling(len(points), plan.drawn, points)))

    def answer(
        self,
        samples: int,
        seed: Sequence[int] = (),
        progress: Callable[[int, int], None] | None = None,
        everything: bool = False,
    ) -> Any:
        """Every array as an `Estimate`.

        Args:
            samples: in each of the independent randomisations, if something has to be
                drawn; a power of two.
            seed: of the randomisations.
            progress: called as `progress(done, all)`.
            everything: draw every family.
        """
        if not everything:
            try:
                return self._by_formulas()
            except NeedsDraws:
                pass
        plan = self.plan(samples, everything)
        at_once = max(1, min(REPEATS, _AT_ONCE // samples))
        values, routes = [], {}
        for start in range(0, REPEATS, at_once):
            points = self._points(plan, samples, seed, range(start, start + at_once))
            found, routes = self._runs(plan, points)
            values += [jax.tree.map(lambda a, i=i: a[i], found) for i in range(at_once)]
            if progress is not None:
                progress(len(values), REPEATS)
        coarse = values[0]
        if not all(routes.values()):
            points = self._points(plan, samples, seed, range(1))
            found, _ = self._runs(plan, points, Accuracy(level=0))
            coarse = jax.tree.map(lambda a: a[0], found)
        return self._estimates({**routes, str(plan): False}, coarse, values)

    def _runs(
        self, plan: Plan, points: Any, accuracy: Accuracy | None = None
    ) -> tuple[Any, Mapping[str, bool]]:
        """The answers from independent points, together, and the routes taken."""
        routes: dict[str, bool] = {}

        def one(points: Any) -> Any:
            sampling = Sampling(len(points), plan.drawn, points)
            engine = self.engine(sampling, accuracy)
            found = self._ask(engine)
            routes.update(engine.routes)
            return found

        # Not compiled: a recursion is many lines that run once.
        return _host(jax.vmap(one)(points)), routes

    def _by_formulas(self) -> Any:
        fine, coarse = self._formula_engine(1), None
        value = _host(self._ask(fine))
        if not all(fine.routes.values()):
            coarse = _host(self._ask(self._formula_engine(0)))
        return self._estimates(
            fine.routes, value if coarse is None else coarse, [value]
        )

    def _formula_engine(self, level: int) -> Engine:
        """An engine of some accuracy that draws nothing, and refuses what needs it."""
        if level not in self._formulas:
            self._formulas[level] = self.engine(FORMULAS, Accuracy(level))
        return self._formulas[level]

    def _estimates(self, routes: Mapping[str, bool], coarse: Any, values: Any) -> Any:
        route = "; ".join(routes) or "linear algebra"
        lines = max(len(side.program) for side in self._sides)
        make = functools.partial(_estimate, route, lines)
        return jax.tree.map(
            lambda *leaves: make(leaves[0], leaves[1:]), coarse, *values
        )

    def _points(
        self, plan: Plan, samples: int, seed: Sequence[int], repeats: Sequence[int]
    ) -> Any:
        log2 = int(samples).bit_length() - 1
        each = [sobol_normal(plan.dimension, log2, [*seed, r]) for r in repeats]
        return jnp.asarray(np.stack(each), self._dtype)


def _host(found: Any) -> Any:
    return jax.tree.map(np.asarray, found)


def _estimate(
    route: str, lines: int, coarse: np.ndarray, values: Sequence[np.ndarray]
) -> Estimate:
    """The mean of what the randomisations gave, and how sure it is."""
    mean = np.mean(values, axis=0)
    stderr = np.zeros(mean.shape)
    if len(values) > 1:
        stderr = np.std(values, axis=0, ddof=1) / len(values) ** 0.5
    scale = max(float(np.max(np.abs(mean), initial=0.0)), 1e-300)
    rounding = _ROUNDING * scale * lines
    error = _STUDENT * stderr + np.abs(values[0] - coarse) + rounding
    # Subscripting with () turns an array of no axes into a number, and no other.
    return Estimate(mean[()], error[()], stderr[()], route)
