"""The backward pass of a network, product by product."""

import dataclasses

from ..program import (
    LinComb,
    MatMul,
    Ref,
    TensorProgram,
    Term,
    Writer,
    identity_maps,
    matrix_of,
)
from ..transform import Detransposed
from ._independence import Dot, Product
from ._parity import ODD, Parity, output_gradients, parities


@dataclasses.dataclass(frozen=True)
class BackwardPass:
    """A network and its backward pass.

    Attributes:
        program: both, with transposes.
        forward: how many of the lines are the network.
        gradients: the input vectors v of mean zero that only the readout uses.
        parities: of all lines, in v.
        products: the products with matrices.
    """

    program: TensorProgram
    forward: int
    gradients: tuple[Ref, ...]
    parities: tuple[Parity, ...]
    products: tuple[Product, ...]


def backward_pass(
    program: TensorProgram, forward: int, done: Detransposed
) -> tuple[BackwardPass, TensorProgram]:
    """The backward pass and what its products are without transposes.

    Args:
        program: a network and its backward pass.
        forward: how many of the lines are the network.
        done: the same without transposes.

    Returns:
        The backward pass, and the program that its products refer to: `done`, and
        every product without each part of its dotZ.
    """
    writer, lines = Writer(done.program), program.lines
    gradients = output_gradients(program, forward)
    parity = parities(program, gradients)
    found = []
    for ref, line in enumerate(lines):
        if not isinstance(line, MatMul):
            continue
        matrix, transposed = matrix_of(lines, line.matrix)
        dots = done.dots.get(ref, {})
        one = Product(
            line=line.name,
            argument=lines[line.x].name,
            matrix=lines[matrix].name,
            transposed=transposed,
            backward=ref >= forward,
            ref=done.place[ref],
            hat=done.hats.get(ref),
            source=line.source,
            odd=parity[line.x] is ODD,
            dots=tuple(_dot(writer, program, forward, done, ref, r) for r in dots),
        )
        found.append(one)
    back = BackwardPass(program, forward, gradients, parity, tuple(found))
    return back, TensorProgram(tuple(writer.lines))


def _dot(
    writer: Writer,
    program: TensorProgram,
    forward: int,
    done: Detransposed,
    ref: Ref,
    root: Ref,
) -> Dot:
    product, other = program.lines[ref], program.lines[root]
    assert isinstance(product, MatMul)
    assert isinstance(other, MatMul)
    dots = done.dots[ref]
    hat = done.hats[ref]
    rest = tuple(t for r, terms in dots.items() if r != root for t in terms)
    without = hat
    if rest:
        own = Term(hat, maps=identity_maps(product.shape))
        line = LinComb(
            name=f"{product.name}_without_{other.name}",
            terms=(own, *rest),
            shape=product.shape,
        )
        without = writer.emit(line)
    return Dot(
        root=other.name,
        vector=program.lines[other.x].name,
        backward=root >= forward,
        coefficients=tuple(tuple(a.ref for a in t.tensors) for t in dots[root]),
        without=without,
    )
