"""The derivative of an output along random directions, from its backward pass.

For a product y = A x with the adjoint dy, and a direction U of A, the output moves by
the sum over coordinates of dy * (U x). Over U, the second moment of that vector is the
part of A of the tangent kernel, E[dy dy'] E[U x (U x)'], whatever else dy depends on.

This is the same kernel as that of `_linearise`, by another way: it also covers outputs
such as sqrt(n) times a mean, which converge to no Gaussian process by theorem 4, and
whose gradients depend on the weights.
"""

import dataclasses
from collections.abc import Mapping

from .._errors import UnsupportedError
from ..program import (
    LinComb,
    MatIn,
    MatMul,
    Nonlin,
    Output,
    Ref,
    Term,
    Transpose,
    VecIn,
    Writer,
    identity_maps,
)
from ..scalar import Arg, call
from ._backprop import Gradients
from ._linearise import deviation


def directional(
    writer: Writer,
    gradients: Gradients,
    directions: Mapping[Ref, float | str],
    prefix: str = "u_",
) -> list[Ref]:
    """Vectors whose second moments, times their dimensions, add up to a tangent kernel.

    Args:
        writer: the program with its backward pass; lines are added.
        gradients: the backward pass.
        directions: for every VecIn and MatIn line that moves: the standard deviation of
            its direction, in the units of the line's own, or the key of that input.
        prefix: begins the names of the directions.

    Returns:
        For every input that reaches the output: a line of the output's index shape O.

    Raises:
        UnsupportedError: a matrix is used with its transpose, or a finite Gaussian
            input is trained.
    """
    found = []
    for ref, given in directions.items():
        line, std = writer.lines[ref], deviation(writer, given)
        terms: list[Term] = []
        if isinstance(line, MatIn) and ref in gradients.uses:
            name = f"{prefix}{line.name}"
            moving = dataclasses.replace(line, name=name, std=std)
            terms = _matrix(writer, gradients, ref, moving)
        elif isinstance(line, VecIn) and ref in gradients.adjoints:
            if isinstance(writer.types[ref], Output):
                raise UnsupportedError(
                    f"The finite Gaussian input `{line.name}` is trained, in a network "
                    "whose output is no readout: declare it with lr=0."
                )
            direction = dataclasses.replace(
                line, name=f"{prefix}{line.name}", mean=0.0, std=std, cov=None
            )
            u = writer.emit(direction)
            terms = [_product(writer, gradients, gradients.adjoints[ref], u)]
        if terms:
            total = LinComb(name="", terms=tuple(terms), shape=gradients.shape)
            found.append(writer.emit(total))
    return found


def _matrix(
    writer: Writer, gradients: Gradients, ref: Ref, direction: MatIn
) -> list[Term]:
    uses = gradients.uses[ref]
    if len({use.transposed for use in uses}) > 1:
        raise UnsupportedError(
            f"The matrix `{direction.name}` is used with its transpose, in a network "
            "whose output is no readout: its tangent kernel is not covered."
        )
    u = writer.emit(direction)
    if uses[0].transposed:
        u = writer.emit(Transpose(name="", matrix=u))
    terms = []
    for use in uses:
        line = writer.lines[use.line]
        assert isinstance(line, MatMul)
        moved = writer.emit(dataclasses.replace(line, name="", matrix=u))
        terms.append(_product(writer, gradients, use.gradient, moved))
    return terms


def _product(writer: Writer, gradients: Gradients, dy: Ref, u: Ref) -> Term:
    """The sum over positions of dy[o, p] u[p]."""
    lead, inner = gradients.shape, writer.types[u].shape
    read = LinComb(
        name="",
        terms=(Term(u, maps=identity_maps(inner, len(lead))),),
        shape=lead + inner,
    )
    both = Nonlin(name="", fn=call("mul", Arg(0), Arg(1)), xs=(dy, writer.emit(read)))
    maps = identity_maps(lead) + identity_maps(inner, len(lead))
    return Term(writer.emit(both), maps=maps, sums=inner)
