"""Numbers asked of an engine, each with its error: by formulas, by samples if need be.

What has to be drawn is found by asking on abstract numbers: where an expectation has no
formula its families are drawn, and the question is asked again.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import UnsupportedError
from ..gaussian import Accuracy, Estimate, sobol_normal
from ..program import TensorProgram
from ._draws import (
    FORMULAS,
    MAX_NUMBERS,
    PAIRS,
    Family,
    NeedsDraws,
    Sampling,
    check_size,
)
from ._engine import Engine, Side
from ._poles import has_pole_at_zero
from ._route import Route

REPEATS = 16
"""Independent randomisations of the points, whose spread is the standard error."""

_SAMPLED = "QMC samples"

# Student's t at 99 % with 15 degrees of freedom.
_STUDENT = 2.947
# Rounding of a recursion, in units of the last place of its scale.
_ROUNDING = 2**-44

Ask = Callable[[Engine], Any]
"""What is wanted of an engine: a pytree of arrays."""
Inputs = Sequence[Mapping[str, Any]]
"""The arrays of every side."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is drawn to answer a question.

    Attributes:
        drawn: the families of lines.
        columns: the families of the numbers of a sample.
    """

    drawn: frozenset[Family] = frozenset()
    columns: tuple[Family, ...] = ()

    @property
    def dimension(self) -> int:
        """How many numbers a sample has."""
        return len(self.columns)

    def sampling(self, points: Any) -> Sampling:
        """Samples from points, (samples, dimension)."""
        return Sampling(len(points), self.drawn, points, self.columns)

    def __str__(self) -> str:
        return f"{_SAMPLED} of {self.dimension} variables"


class Question:
    """A question to the engine of some programs, compiled once for all inputs.

    Args:
        programs: those of the sides.
        ask: what is wanted.
        dtype: of the numbers; JAX's default if None.
    """

    def __init__(
        self, programs: Sequence[TensorProgram], ask: Ask, dtype: Any = None
    ) -> None:
        self._programs, self._ask = tuple(programs), ask
        self._dtype = jnp.result_type(float) if dtype is None else dtype
        self._plans: dict[bool, Plan] = {}
        self._routes: dict[Any, dict[str, bool]] = {}
        self._exists: bool | None = None
        self._compiled = jax.jit(
            jax.vmap(self._run, in_axes=(None, None, None, 0)), static_argnums=(0, 1)
        )

    def engine(
        self,
        inputs: Inputs,
        sampling: Sampling | None,
        accuracy: Accuracy | None = None,
    ) -> Engine:
        """An engine that has not been asked yet."""
        sides = [Side(p, i) for p, i in zip(self._programs, inputs, strict=True)]
        return Engine(sides, accuracy, self._dtype, sampling)

    def formulas(self, inputs: Inputs) -> Any:
        """The answer by formulas, and by points for expectations over few Gaussians.

        Raises:
            NeedsDraws: an expectation is over many, and has no formula.
        """
        return self._ask(self.engine(inputs, PAIRS))

    def check_exists(self, inputs: Inputs) -> None:
        """Refuse what needs an expectation that does not exist, the first time.

        Formulas see that themselves for numbers that are not traced; samples do not.

        Raises:
            NoLimitError: one does not.
        """
        if self._exists is None:
            self._exists = not any(map(has_pole_at_zero, self._programs))
        if self._exists:
            return
        sides = [Side(p, i) for p, i in zip(self._programs, inputs, strict=True)]
        with jax.ensure_compile_time_eval():
            engine = Engine(sides, dtype=self._dtype, is_rough=True)
            # What is too large for formulas is not looked at.
            with contextlib.suppress(UnsupportedError):
                self._ask(engine)
        self._exists = True

    def plan(self, inputs: Inputs, everything: bool = False) -> Plan:
        """What has to be drawn, found on abstract numbers.

        Args:
            inputs: those of every side; only their shapes count.
            everything: draw every family.
        """
        if everything not in self._plans:
            drawn: frozenset[Family] = frozenset()
            if everything:
                drawn = self.engine(inputs, None).families.all
            plan = None
            while plan is None:
                try:
                    plan = self._needed(inputs, drawn)
                except NeedsDraws as found:
                    drawn |= found.families
            self._plans[everything] = plan
        return self._plans[everything]

    def _needed(self, inputs: Inputs, drawn: frozenset[Family]) -> Plan:
        plan = Plan()

        def run(inputs: Inputs) -> Any:
            nonlocal plan
            engine = self.engine(inputs, Sampling(2, drawn))
            found = self._ask(engine)
            assert engine.draws is not None
            plan = Plan(drawn, engine.draws.columns)
            return found

        # A new function, so that nothing is found in a cache.
        jax.eval_shape(run, [dict(one) for one in inputs])
        return plan

    def asked_engine(self, inputs: Inputs, samples: int) -> Engine:
        """The engine after it was asked, with samples if they are needed.

        It has measured the errors of the routes that it took.
        """
        plan, each, sampling = self.plan(inputs), samples // REPEATS, FORMULAS
        if plan.drawn:
            points = self._points(plan, each, (), range(1))[0]
            sampling = plan.sampling(points)
        engine = self.engine(inputs, sampling)
        engine.measures = True
        self._ask(engine)
        if plan.drawn:
            found = jax.tree.leaves(self.answer(inputs, each))
            error = max(relative_error(one) for one in found)
            engine.sampled = Route(_SAMPLED, plan.dimension, False, 1, error)
        return engine

    def sampled(self, inputs: Inputs, plan: Plan, points: Any) -> Any:
        """The answer from these points, (samples, dimension); differentiable."""
        return self._ask(self.engine(inputs, plan.sampling(points)))

    def answer(
        self,
        inputs: Inputs,
        samples: int,
        seed: Sequence[int] = (),
        progress: Callable[[int, int], None] | None = None,
        everything: bool = False,
    ) -> Any:
        """Every array as an `Estimate`.

        Args:
            inputs: those of every side.
            samples: in each of the independent randomisations, if something has to be
                drawn; a power of two.
            seed: of the randomisations.
            progress: called as `progress(done, all)`.
            everything: draw every family.
        """
        plan = self.plan(inputs, everything)
        if not plan.drawn:
            return self._by_formulas(inputs)
        self.check_exists(inputs)
        numbers = samples * plan.dimension
        check_size(numbers, samples)
        at_once = REPEATS
        while at_once > 1 and 4 * at_once * numbers > MAX_NUMBERS:
            at_once //= 2
        values, routes = [], {}
        for start in range(0, REPEATS, at_once):
            points = self._points(plan, samples, seed, range(start, start + at_once))
            found, routes = self._runs(inputs, plan, points)
            values += [jax.tree.map(lambda a, i=i: a[i], found) for i in range(at_once)]
            if progress is not None:
                progress(len(values), REPEATS)
        coarse = values[0]
        if not all(routes.values()):
            points = self._points(plan, samples, seed, range(1))
            found, _ = self._runs(inputs, plan, points, level=0)
            coarse = jax.tree.map(lambda a: a[0], found)
        return self._estimates({**routes, str(plan): False}, coarse, values)

    def _runs(
        self, inputs: Inputs, plan: Plan, points: Any, level: int = 1
    ) -> tuple[Any, Mapping[str, bool]]:
        """The answers from independent points, together, and the routes taken."""
        found = self._compiled(plan, level, [dict(i) for i in inputs], points)
        return _host(found), self._routes[plan, level]

    def _run(self, plan: Plan, level: int, inputs: Inputs, points: Any) -> Any:
        engine = self.engine(inputs, plan.sampling(points), Accuracy(level))
        found = self._ask(engine)
        self._routes[plan, level] = engine.routes
        return found

    def _by_formulas(self, inputs: Inputs) -> Any:
        fine = self.engine(inputs, FORMULAS)
        value = coarse = _host(self._ask(fine))
        if not all(fine.routes.values()):
            coarse = _host(self._ask(self.engine(inputs, FORMULAS, Accuracy(level=0))))
        return self._estimates(fine.routes, coarse, [value])

    def _estimates(self, routes: Mapping[str, bool], coarse: Any, values: Any) -> Any:
        route = "; ".join(routes) or "linear algebra"
        lines = max(len(program) for program in self._programs)
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


def relative_error(found: Estimate) -> float:
    """The largest error beside the largest entry."""
    scale = float(np.max(np.abs(found.value), initial=0.0))
    error = float(np.max(found.error, initial=0.0))
    return error / scale if scale else 0.0


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
