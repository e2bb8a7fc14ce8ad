"""Gradient independence, product by product.

The backward pass multiplies by the transposes of matrices that the forward pass used.
Theorem 5 of Yang (2019) treats them as fresh matrices. Theorem 6 gives each product
g = M z a second part, g = hatZ + dotZ, where hatZ is what a fresh matrix gives. So what
independence would change is known: E[(Z^g)^2] less E[(hatZ)^2]. dotZ is a sum over the
products M^T u, of Z^u times the mean derivative of z along M^T u, and what each of them
does is known as well.
"""

import dataclasses

import numpy as np

from ..asymptotics import Engine
from ..program import Ref


@dataclasses.dataclass(frozen=True, slots=True)
class Dot:
    """The part of dotZ^{M z} that comes from one product M^T u.

    Attributes:
        root: the name of M^T u.
        vector: the name of u.
        backward: whether M^T u belongs to the backward pass.
        coefficients: for each of its terms, the tensors it is multiplied with.
        without: M z without this part, in a program without transposes.
    """

    root: str
    vector: str
    backward: bool
    coefficients: tuple[tuple[Ref, ...], ...]
    without: Ref


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A product with a matrix or its transpose.

    Attributes:
        line: the name of its result.
        argument: the name of what is multiplied.
        matrix: the name of the matrix.
        transposed: whether it is the transpose that multiplies.
        backward: whether it belongs to the backward pass.
        ref: the result, in a program without transposes.
        hat: the same with an independent matrix; None if that is the same line.
        source: the user's line, if known.
        odd: whether the argument is odd in the output's gradients.
        dots: the parts of its dotZ.
    """

    line: str
    argument: str
    matrix: str
    transposed: bool
    backward: bool
    ref: Ref
    hat: Ref | None
    source: str
    odd: bool
    dots: tuple[Dot, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DotTerm:
    """One part of dotZ: the mean derivative of z along M^T u, times u.

    Attributes:
        derivative: the mean derivative, as text.
        vector: u.
        structural: whether the mean is zero by symmetry, whatever the numbers.
        second: the mean over positions of E[(Z^{M z})^2], for the first input.
        without: the same without this part.
        why: why it is there.
    """

    derivative: str
    vector: str
    structural: bool
    second: float
    without: float
    why: str

    @property
    def size(self) -> float:
        """What it adds to the second moment: the difference made by zeroing it."""
        return self.second - self.without

    def __str__(self) -> str:
        return (
            f"{self.derivative} {self.vector} adds {self.size:.6g} to E[Z^2]: "
            f"{self.why}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Correction:
    """What the dependence of a matrix and its transpose does to one product.

    Attributes:
        product: the product.
        second: the mean over positions of E[(Z^g)^2], for the first input.
        independent: the same if the matrix and its transpose were independent.
        structural: whether the two are one by symmetry, whatever the numbers.
        terms: the parts of dotZ, those that are zero by symmetry included.
    """

    product: Product
    second: float
    independent: float
    structural: bool
    terms: tuple[DotTerm, ...] = ()

    @property
    def theorem(self) -> int:
        """The theorem of Yang (2019) that gives the law of the product."""
        if not self.structural:
            return 6
        return 5 if self.product.backward else 4

    @property
    def failing(self) -> tuple[DotTerm, ...]:
        """The parts of dotZ that are not zero by symmetry."""
        return tuple(t for t in self.terms if not t.structural)

    @property
    def size(self) -> float:
        """The correction over the larger of the two second moments."""
        largest = max(abs(self.second), abs(self.independent))
        return abs(self.second - self.independent) / largest if largest else 0.0

    def __str__(self) -> str:
        p = self.product
        factor = f"{p.matrix}^T" if p.transposed else p.matrix
        where = f" ({p.source})" if p.source and not p.backward else ""
        head = f"{p.line} = {factor} {p.argument}{where}: theorem {self.theorem}"
        if self.structural:
            return f"{head}, independent of the uses of the other one"
        return "\n    ".join(
            (
                f"{head}, E[Z^2] = {self.second:.6g}, and {self.independent:.6g} with "
                f"an independent matrix ({100 * self.size:.2g} % apart)",
                *map(str, self.failing),
            )
        )


def corrections(engine: Engine, products: list[Product]) -> tuple[Correction, ...]:
    """What dependence does to every product.

    Args:
        engine: of the program that the products are in.
        products: those of a network and its backward pass.
    """
    found = []
    for p in products:
        second = _second(engine, p.ref)
        terms = tuple(_term(engine, p, dot, second) for dot in p.dots)
        if p.hat is None or all(t.structural for t in terms):
            found.append(Correction(p, second, second, True, terms))
        else:
            hat = _second(engine, p.hat)
            found.append(Correction(p, second, hat, False, terms))
    return tuple(found)


def _term(engine: Engine, product: Product, dot: Dot, second: float) -> DotTerm:
    structural = all(
        any(engine.tensor(0, r) is None for r in refs) for refs in dot.coefficients
    )
    return DotTerm(
        derivative=f"E[d {product.argument} / d {dot.root}]",
        vector=dot.vector,
        structural=structural,
        second=second,
        without=second if structural else _second(engine, dot.without),
        why="it is 0 by symmetry" if structural else _why(product, dot),
    )


def _why(product: Product, dot: Dot) -> str:
    """Why a mean derivative is not zero by symmetry."""
    if not product.backward:
        return "the network itself uses the matrix and its transpose"
    if not product.odd:
        return f"{product.argument} is not odd in the output's gradients"
    if dot.backward:
        return (
            f"{product.argument} and {dot.root} are both odd in the output's "
            "gradients, and so the derivative is even"
        )
    return "no symmetry makes it 0"


def _second(engine: Engine, ref: Ref) -> float:
    """The mean over positions of E[Z^2], on the first side."""
    rank = len(engine.sides[0].program.types[ref].shape)
    k = engine.pair_array(ref, ref, (0, 0), tuple(range(rank)), centred=False)
    return 0.0 if k is None else float(np.mean(np.asarray(k)))
