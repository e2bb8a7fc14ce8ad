"""The limit of a hand-written program, every number with its error."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import scalar
from .._errors import InputError, InvalidProgramError
from .._jax import enable_x64
from ..gaussian import Estimate
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
from ._engine import Engine
from ._estimated import Question

# In each randomisation, where something has to be drawn.
_SAMPLES = 2**13


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
        def array(engine: Engine) -> Any:
            value = ask(engine)
            return jnp.broadcast_to(0.0 if value is None else value, shape)

        with enable_x64():
            question = Question((program or self._solved,), array)
            return question.answer((self._inputs,), _SAMPLES)


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
