"""Programs written by hand: their limits, their gradients, their text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._errors import InputError
from .asymptotics import ProgramLimit
from .asymptotics import limit as limit_of_program
from .gaussian import Estimate
from .program import Handle, ProgramBuilder, TensorProgram
from .program import parse as parse_program
from .transform import Gradients, detranspose
from .transform import backprop as backprop_of_program


class Program(ProgramBuilder):
    """A tensor program written by hand; see `ProgramBuilder` for its lines."""

    def limit(self, ratios: Mapping[str, float] | None = None) -> "LimitOfProgram":
        """The limit of the program as its widths grow together.

        Args:
            ratios: widths over a common scale; 1 where missing.

        Raises:
            InputError: a ratio is not positive or names no width.

        References:
            Yang (2019), https://arxiv.org/abs/1902.04760, theorem 4; theorem 6 for
            programs with transposes.
        """
        return LimitOfProgram(self, limit_of_program(self.tensor_program, ratios))

    def detranspose(self, ratios: Mapping[str, float] | None = None) -> "Program":
        """An equivalent program without transposed matrices: the same limit.

        The transpose of a matrix `A` becomes a fresh matrix `A^T`, and every product
        that meets an earlier one by the transposed matrix gains a linear combination
        of the vectors there. Lines keep their names; at finite width they have other
        values.

        Args:
            ratios: widths over a common scale; 1 where missing.

        Raises:
            InputError: a ratio is not positive or names no width.

        References:
            Yang (2019), https://arxiv.org/abs/1902.04760, theorem 6; in the form of
            https://arxiv.org/abs/2009.10685.
        """
        done = detranspose(self.tensor_program, ratios)
        return Program.from_program(done.program)


class LimitOfProgram:
    """Numbers of a program in the limit; lines are given as handles or by name."""

    def __init__(self, program: Program, limit: ProgramLimit) -> None:
        self._program, self._limit = program, limit

    def mean(self, x: Handle | str) -> Estimate:
        """The mean of every coordinate of a vector."""
        return self._limit.mean(self._ref(x))

    def cov(self, x: Handle | str, y: Handle | str) -> Estimate:
        """The covariance of two vectors, coordinate by coordinate."""
        return self._limit.cov(self._ref(x), self._ref(y))

    def expect(self, f: Callable[..., Any], *lines: Handle | str) -> Estimate:
        """E f of the coordinates of vectors (and of scalars) of the program.

        Args:
            f: a scalar function written with `jax.numpy`.
            *lines: its arguments.
        """
        return self._limit.expect(f, *(self._ref(x) for x in lines))

    def value(self, t: Handle | str) -> Estimate:
        """The constant that a scalar converges to."""
        return self._limit.value(self._ref(t))

    def _ref(self, x: Handle | str) -> int:
        known = len(self._program.tensor_program)
        ref = (self._program[x] if isinstance(x, str) else x).ref
        if not isinstance(x, str) and x.program is not self._program:
            raise InputError(
                f"The line `{x.name}` belongs to another program: ask that program's "
                "limit."
            )
        if ref >= len(self._limit._program.lines):
            raise InputError(
                f"The line `{self._program.tensor_program.lines[ref].name}` was "
                f"written after `limit()` was called (the program has {known} lines "
                "now): call it again."
            )
        return ref


class ProgramGradients:
    """A program with the backward passes of some of its outputs.

    Attributes:
        program: the lines of the program that was differentiated, at their places, and
            those of the backward passes; print it, simulate it.
        passes: one for each output, with the normalisation, the line of every adjoint
            and the uses of every matrix; lines are given by their positions.
    """

    def __init__(
        self, program: Program, passes: tuple[Gradients, ...], source: ProgramBuilder
    ) -> None:
        self.program, self.passes, self._source = program, passes, source

    def gradient(
        self, line: Handle | str, output: Handle | str | None = None
    ) -> Handle | None:
        """The adjoint of a line, normalised as `transform.Gradients` says.

        Args:
            line: a vector, a scalar or a finite Gaussian input, by handle or name.
            output: which output, when several were differentiated.

        Returns:
            Its adjoint, of index shape O + I; None when it is zero.

        Raises:
            InputError: no such line, or no such output.
        """
        g = self._pass(output)
        ref = g.adjoints.get(self._ref(line))
        return None if ref is None else list(self.program)[ref]

    def _pass(self, output: Handle | str | None) -> Gradients:
        if output is None and len(self.passes) == 1:
            return self.passes[0]
        ref = None if output is None else self._ref(output)
        for g in self.passes:
            if g.output == ref:
                return g
        lines = self.program.tensor_program.lines
        names = ", ".join(f"`{lines[g.output].name}`" for g in self.passes)
        raise InputError(f"Name one of the outputs {names} that were differentiated.")

    def _ref(self, line: Handle | str) -> int:
        if not isinstance(line, str) and line.program is self._source:
            return line.ref
        return _ref_in(self.program, line)


def _ref_in(program: ProgramBuilder, line: Handle | str | int) -> int:
    if isinstance(line, int):
        return line
    handle = program[line] if isinstance(line, str) else line
    if handle.program is not program:
        raise InputError(
            f"The line `{handle.name}` belongs to another program: give one of this, "
            "by handle or by name."
        )
    return handle.ref


def backprop(
    program: ProgramBuilder | TensorProgram,
    outputs: Sequence[Handle | str | int] | Handle | str | None = None,
) -> ProgramGradients:
    """Differentiate a tensor program in reverse, by transposing its lines.

    The result is again a program, whose new lines are the gradients at every finite
    width; see `widelimit.transform.backprop` and `Gradients` there.

    Args:
        program: written by hand, or `net.program(x)`.
        outputs: readouts, scalars or vectors of it, as handles, names or positions;
            those that the program returns when missing.

    Raises:
        InvalidProgramError: there is no output, or one depends on no wide vector.
        InputError: a name is not known.
        UnsupportedError: a scalar of the program stands outside the readout, or a
            function has no derivative among the known operations.

    Example:
        ```python
        p = wl.Program()
        x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
        t = p.moment(lambda u: jnp.tanh(u) ** 2, A @ x, name="t")
        back = wl.backprop(p, t)
        back.gradient("x")  # n dt/dx
        ```
    """
    if isinstance(program, TensorProgram):
        program = Program.from_program(program)
    if isinstance(outputs, Handle | str):
        outputs = (outputs,)
    refs = None if outputs is None else [_ref_in(program, o) for o in outputs]
    done = backprop_of_program(program.tensor_program, refs)
    extended = Program.from_program(done.program)
    return ProgramGradients(extended, done.gradients, program)


def parse(text: str) -> Program:
    """Read a program from its printed text.

    Raises:
        ParseError: the text is not a program; the message shows the line.
    """
    return Program.from_program(parse_program(text))
