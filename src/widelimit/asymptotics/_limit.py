"""The limit of a hand-written program, every number with its error."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import scalar
from .._errors import InputError, InvalidProgramError
from .._jax import enable_x64
from ..gaussian import Accuracy, Estimate
from ..program import (
    Moment,
    Output,
    Tensor,
    TensorArg,
    TensorProgram,
    Vector,
    check_ratios,
)
from ..scalar import Expr
from ..transform import at_ratios, detranspose
from ._engine import Engine, Side

# Independent scrambles, where a number needs random points.
_SCRAMBLES = 8
# Rounding of a recursion, in units of the last place of its scale.
_ROUNDING = 2**-44


class ProgramLimit:
    """Means, covariances and expectations of the lines of a program in the limit.

    Args:
        program: any program; transposes are removed by `detranspose` first.
        ratios: widths over their common scale.
        inputs: the arrays of its Input lines.
    """

    def __init__(
        self,
        program: TensorProgram,
        ratios: Mapping[str, float] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self._program, self._inputs = program, dict(inputs or {})
        self.ratios = dict(ratios or {})
        done = detranspose(program, self.ratios)
        self._solved, self._place = done.program, done.place
        self._engines: dict[Accuracy, Engine] = {}

    def mean(self, line: int) -> Estimate:
        """E Z of a line, of its index shape."""
        self._vector(line)
        return self._estimate(
            lambda e: e.mean_array(self._place[line]), self._shape(line)
        )

    def cov(self, x: int, y: int) -> Estimate:
        """The covariance of two lines, of shape I + I'."""
        self._vector(x)
        self._vector(y)
        shape = self._shape(x) + self._shape(y)
        if not self._meets(x, y):
            return Estimate(
                np.zeros(shape)[()],
                0.0,
                0.0,
                "independent: different dimension classes",
            )
        a, b = self._place[x], self._place[y]
        return self._estimate(lambda e: e.pair_array(a, b, (0, 0)), shape)

    def expect(self, f: Callable[..., Any] | Expr, *lines: int) -> Estimate:
        """E f(Z of the lines); scalars of the program may be arguments too."""
        if not lines:
            raise InputError("`expect(f, x, ..)` needs at least one line.")
        fn = scalar.from_callable(f, len(lines))
        types = self._program.types
        xs = tuple(r for r in lines if isinstance(types[r], Vector))
        scalars = tuple(r for r in lines if isinstance(types[r], Tensor))
        if len(xs) + len(scalars) != len(lines) or not xs:
            raise InvalidProgramError(
                "`expect` takes vectors, and scalars beside them; got "
                + ", ".join(type(types[r]).__name__ for r in lines)
                + "."
            )
        order = {r: i for i, r in enumerate((*xs, *scalars))}
        places = [scalar.Arg(order[r]) for r in lines]
        shape = self._shape(xs[0])
        place = self._place
        args = tuple(
            TensorArg(place[r], tuple(range(len(self._shape(r))))) for r in scalars
        )
        moment = Moment(
            name="expectation_",
            fn=scalar.substitute(fn, places),
            xs=tuple(place[r] for r in xs),
            tensors=args,
        )
        extended = TensorProgram((*self._solved.lines, moment))
        ref = len(self._solved.lines)
        return self._estimate(lambda e: e.tensor(0, ref), shape, extended)

    def value(self, line: int) -> Estimate:
        """The constant that a scalar (or tensor) line converges to."""
        if not isinstance(self._program.types[line], Tensor):
            raise InvalidProgramError(
                f"Line `{self._program.lines[line].name}` is not a scalar: ask for its "
                "mean, covariance or an expectation."
            )
        return self._estimate(
            lambda e: e.tensor(0, self._place[line]), self._shape(line)
        )

    def _vector(self, line: int) -> None:
        t = self._program.types[line]
        if not isinstance(t, Vector | Output):
            raise InvalidProgramError(
                f"Line `{self._program.lines[line].name}` is not a vector: it has no "
                "mean or covariance in the limit."
            )

    def _meets(self, x: int, y: int) -> bool:
        a, b = self._program.types[x], self._program.types[y]
        if isinstance(a, Vector) and isinstance(b, Vector):
            return a.dim == b.dim
        return isinstance(a, Output) and isinstance(b, Output)

    def _shape(self, line: int) -> tuple[int, ...]:
        t = self._program.types[line]
        return getattr(t, "shape", ())

    def _estimate(
        self,
        ask: Callable[[Engine], Any],
        shape: tuple[int, ...],
        program: TensorProgram | None = None,
    ) -> Estimate:
        with enable_x64():
            engine = self._engine(Accuracy(), program)
            value = _array(ask(engine), shape)
            routes = dict(engine.routes)
            if any("QMC" in r for r in routes):
                draws = [value]
                for s in range(1, _SCRAMBLES):
                    accuracy = Accuracy(scramble=s)
                    draws.append(_array(ask(self._engine(accuracy, program)), shape))
                mean = np.mean(draws, axis=0)
                stderr = np.std(draws, axis=0, ddof=1) / len(draws) ** 0.5
                # Student's t at 99 % with 7 degrees of freedom is 3.50.
                return _result(mean, 3.5 * stderr, stderr, _route(routes))
            coarse = value
            if not all(routes.values()):
                coarse = _array(ask(self._engine(Accuracy(level=0), program)), shape)
        scale = max(float(np.max(np.abs(value), initial=0.0)), 1e-300)
        error = np.abs(value - coarse) + _ROUNDING * scale * len(self._solved.lines)
        return _result(value, error, np.zeros(shape), _route(routes))

    def _engine(self, accuracy: Accuracy, program: TensorProgram | None) -> Engine:
        if program is not None:
            return Engine((Side(program, self._inputs),), accuracy)
        if accuracy not in self._engines:
            self._engines[accuracy] = Engine(
                (Side(self._solved, self._inputs),), accuracy
            )
        return self._engines[accuracy]


def limit(
    program: TensorProgram,
    ratios: Mapping[str, float] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> ProgramLimit:
    """The limit of a program (Yang 2019, theorem 4; with transposes theorem 6).

    Raises:
        InputError: a ratio is not positive, or names no width of the program.
    """
    check_ratios(program, ratios)
    return ProgramLimit(at_ratios(program, ratios), ratios, inputs)


def _array(value: Any, shape: Sequence[int]) -> np.ndarray:
    return (
        np.zeros(shape) if value is None else np.broadcast_to(np.asarray(value), shape)
    )


def _route(routes: Mapping[str, bool]) -> str:
    return "; ".join(dict.fromkeys(routes)) or "linear algebra"


def _result(value: Any, error: Any, stderr: Any, route: str) -> Estimate:
    # Subscripting with () turns an array of no axes into a number, and no other.
    value, error, stderr = (np.asarray(a)[()] for a in (value, error, stderr))
    return Estimate(value, error, stderr, route)
