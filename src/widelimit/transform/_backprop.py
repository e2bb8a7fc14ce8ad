"""Reverse-mode differentiation of tensor programs, program to program."""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from .._errors import InvalidProgramError
from ..program import (
    AxisMap,
    Dim,
    LinComb,
    Map,
    MatMul,
    Matrix,
    Moment,
    Nonlin,
    Output,
    Ref,
    Tensor,
    TensorProgram,
    Term,
    VecIn,
    Vector,
    Writer,
    ancestors,
    at,
    identity_maps,
    matrix_of,
    operands,
    verify,
)
from ._adjoints import Adjoints, identity, wide
from ._transpose_lines import lincomb, matmul, moment, nonlin
from ._transpose_outputs import output, readouts
from ._transpose_tensors import tensor_map


@dataclasses.dataclass(frozen=True)
class MatrixUse:
    """One product with a matrix, and the adjoint of its result.

    The line is y[p] = sum_k M[letters(p, k)] @ x[maps(p, k)], M the matrix A or its
    transpose. The gradient of A[a] with respect to f[o] is the sum, over all p, k with
    letters(p, k) = a and over all uses, of dy[o, p] x[maps(p, k)]^T (of its transpose
    where M is A^T), over the scale of `Gradients`.

    Attributes:
        line: the MatMul line.
        gradient: the line of dy.
        transposed: whether M is the transpose of A.
    """

    line: Ref
    gradient: Ref
    transposed: bool


@dataclasses.dataclass(frozen=True)
class Gradients:
    """The backward pass of one output f, of index shape O.

    With n the dimension `width` and s = n ** power, the adjoint dx of a vector x of
    index shape I has index shape O + I, and for every o, i and coordinate

        dx[o, i] = s * df[o] / dx[i]                       (of order 1)

    and the adjoint of a tensor t is s / n * df[o] / dt; that of a finite Gaussian input
    b is df[o] / db. Every width is measured by this
    one n, so that g = W h has the adjoint dh = W^T dg without a factor; for adjoints in
    units of the width n_h of h, sqrt(n_h) df/dh, multiply by sqrt(n_h / n).

    A line that f does not depend on has no adjoint: the mapping does not name it.

    Attributes:
        output: the line of f.
        width: n, the dimension of the first readout of f, of its last moment, or of f
            itself.
        power: 1/2 for an output that is read out, 1 for a tensor, 0 for a vector.
        shape: O; () for a vector f, which is contracted with `cotangent`.
        cotangent: for a vector f: an input line N(0, 1) of its shape; what is
            differentiated is the inner product of the two.
        adjoints: for every vector, tensor and finite Gaussian input that f depends on
            through wide vectors, or linearly: the line of its adjoint.
        uses: for every MatIn line, its products.
    """

    output: Ref
    width: Dim
    power: Fraction
    shape: tuple[int, ...]
    cotangent: Ref | None
    adjoints: Mapping[Ref, Ref]
    uses: Mapping[Ref, tuple[MatrixUse, ...]]


@dataclasses.dataclass(frozen=True)
class Backprop:
    """A program with the backward passes of some of its outputs.

    Attributes:
        program: the lines of the program, at their places, and the new lines.
        gradients: one for each output, in order.
    """

    program: TensorProgram
    gradients: tuple[Gradients, ...]

    @property
    def gradient(self) -> Mapping[Ref, Ref]:
        """The adjoints, where there is one output.

        Raises:
            InvalidProgramError: there are several.
        """
        if len(self.gradients) != 1:
            raise InvalidProgramError(
                f"The program was differentiated from {len(self.gradients)} outputs: "
                "take the adjoints of one, `gradients[0].adjoints`."
            )
        return self.gradients[0].adjoints


def backprop(program: TensorProgram, outputs: Sequence[Ref] | None = None) -> Backprop:
    """Append the lines of the backward pass of every output.

    Every line is transposed: a product with A becomes one with A^T, index maps are
    turned around, a nonlinearity multiplies with its derivative, and the adjoint of a
    scalar (1/n) sum psi(x) is itself such a scalar. The new lines equal the gradients
    at every finite width, not only in the limit. See `Gradients` for their
    normalisation.

    Args:
        program: any program.
        outputs: lines to differentiate: finite outputs, tensors or vectors; those that
            the program returns when missing.

    Returns:
        The program with the new lines, and where to find them.

    Raises:
        InvalidProgramError: there is no output, or one depends on no wide vector.
        UnsupportedError: a scalar of the program stands outside the readout, or a
            function has no derivative among the known operations.

    References:
        Yang (2019), https://arxiv.org/abs/1902.04760, section 5 and appendix B.
    """
    verify(program)
    chosen = tuple(program.outputs if outputs is None else outputs)
    if not chosen:
        raise InvalidProgramError(
            "There is no output to differentiate: the program returns none. Name "
            "lines: backprop(program, outputs)."
        )
    writer = Writer(program)
    found = []
    for ref in chosen:
        name = "" if len(chosen) == 1 else f"{program.lines[ref].name}_"
        found.append(_backward(writer, program, ref, f"d_{name}"))
    lines = tuple(writer.lines)
    extended = TensorProgram(lines, program.outputs, program.taps)
    return Backprop(verify(extended), tuple(found))


def adjoint_of(writer: Writer, gradients: Gradients, ref: Ref) -> Ref | None:
    """The adjoint of a line; of one that only gathers others, theirs gathered.

    Args:
        writer: the program with the backward pass; a gathering line may be added.
        gradients: the adjoints of one output.
        ref: a vector of the program before the pass.

    Returns:
        A line of index shape O + I, or None where the output does not depend on it.
    """
    if ref in gradients.adjoints:
        return gradients.adjoints[ref]
    line, lead = writer.lines[ref], gradients.shape
    if not isinstance(line, LinComb) or any(
        t.scale != 1.0 or t.tensors or t.sums for t in line.terms
    ):
        return None
    own = identity_maps(lead)
    terms = []
    for t in line.terms:
        if t.x is not None and t.x in gradients.adjoints:
            maps = tuple(
                AxisMap(tuple(a + len(lead) for a in m.letters), m.table)
                for m in t.maps
            )
            terms.append(Term(gradients.adjoints[t.x], maps=own + maps))
    if not terms:
        return None
    gathered = LinComb(name="", terms=tuple(terms), shape=lead + line.shape)
    return writer.emit(gathered)


def _backward(
    writer: Writer, program: TensorProgram, ref: Ref, prefix: str
) -> Gradients:
    kind, shape = program.types[ref], program.types[ref].shape
    if isinstance(kind, Matrix):
        raise InvalidProgramError(
            f"Line `{program.lines[ref].name}` is a matrix: differentiate vectors, "
            f"tensors or outputs.{at(program.lines[ref].source)}"
        )
    lead = () if isinstance(kind, Vector) else shape
    adj = Adjoints(writer, program, lead, _width(program, ref), prefix)
    cotangent = None
    match kind:
        case Vector():
            line = VecIn(
                name=f"{prefix}{program.lines[ref].name}", shape=shape, dim=kind.dim
            )
            cotangent = adj.emit(line)
            adj.start(ref, cotangent)
        case Tensor():
            adj.add_tensor(ref, writer.constant(identity(shape), ""))
        case Output():
            output(adj, ref)
    uses: dict[Ref, list[MatrixUse]] = {}
    for r in range(ref, -1, -1):
        dy = adj.finish(r)
        if dy is not None:
            _transpose(adj, r, dy, uses)
    power = {Vector: Fraction(0), Tensor: Fraction(1), Output: Fraction(1, 2)}
    return Gradients(
        ref,
        adj.width,
        power[type(kind)],
        lead,
        cotangent,
        dict(sorted(adj.finished.items())),
        {matrix: tuple(reversed(found)) for matrix, found in uses.items()},
    )


def _transpose(
    adj: Adjoints, ref: Ref, dy: Ref, uses: dict[Ref, list[MatrixUse]]
) -> None:
    """Hand the adjoint of one line on to its operands."""
    adj.source = adj.lines[ref].source
    match adj.lines[ref]:
        case MatMul() as line:
            matmul(adj, line, dy)
            matrix, transposed = matrix_of(adj.lines, line.matrix)
            uses.setdefault(matrix, []).append(MatrixUse(ref, dy, transposed))
        case LinComb() as line:
            lincomb(adj, line, dy)
        case Nonlin() as line:
            nonlin(adj, line, dy)
        case Moment() as line:
            moment(adj, line, dy)
        case Map() as line:
            tensor_map(adj, line, dy)


def _width(program: TensorProgram, ref: Ref) -> Dim:
    """The dimension that normalises the adjoints of an output."""
    kind = program.types[ref]
    if isinstance(kind, Vector):
        return kind.dim
    if isinstance(kind, Output):
        for r in readouts(program, ref):
            line = program.lines[r]
            return wide(program, operands(line)[0]).dim
    for r in sorted(ancestors(program.lines, ref), reverse=True):
        line = program.lines[r]
        if isinstance(line, Moment):
            return wide(program, line.xs[0]).dim
    raise InvalidProgramError(
        f"`{program.lines[ref].name}` depends on no wide vector: there is nothing to "
        f"differentiate.{at(program.lines[ref].source)}"
    )
