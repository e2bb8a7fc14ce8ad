"""Gradient independence, product by product.

The backward pass multiplies by the transposes of matrices that the forward pass used.
Theorem 5 of Yang (2019) treats them as fresh matrices. Theorem 6 gives each product
g = M z a second part, g = hatZ + dotZ, where hatZ is what a fresh matrix gives. So what
independence would change is known: E[(Z^g)^2] less E[(hatZ)^2].
"""

import dataclasses

import numpy as np

from ..asymptotics import Engine
from ..program import Ref


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """A product with a matrix or its transpose.

    Attributes:
        line: the name of its result.
        matrix: the name of the matrix.
        transposed: whether it is the transpose that multiplies.
        backward: whether it belongs to the backward pass.
        ref: the result, in a program without transposes.
        hat: the same with an independent matrix; None if that is the same line.
        source: the user's line, if known.
    """

    line: str
    matrix: str
    transposed: bool
    backward: bool
    ref: Ref
    hat: Ref | None
    source: str


@dataclasses.dataclass(frozen=True, slots=True)
class Correction:
    """What the dependence of a matrix and its transpose does to one product.

    Attributes:
        product: the product.
        second: the mean over positions of E[(Z^g)^2], for the first input.
        independent: the same if the matrix and its transpose were independent.
        structural: whether the two are one by symmetry, whatever the numbers.
    """

    product: Product
    second: float
    independent: float
    structural: bool

    @property
    def size(self) -> float:
        """The correction over the larger of the two second moments."""
        largest = max(abs(self.second), abs(self.independent))
        return abs(self.second - self.independent) / largest if largest else 0.0

    def __str__(self) -> str:
        p = self.product
        factor = f"{p.matrix}^T" if p.transposed else p.matrix
        where = f" ({p.source})" if p.source and not p.backward else ""
        head = f"{p.line} = {factor} ..{where}"
        if self.structural:
            return f"{head}: independent of the uses of the other one"
        return (
            f"{head}: theorem 6, E[Z^2] = {self.second:.6g}, and "
            f"{self.independent:.6g} with an independent matrix "
            f"({100 * self.size:.2g} % apart)"
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
        if p.hat is None or _same(engine, p.ref, p.hat):
            found.append(Correction(p, second, second, True))
        else:
            found.append(Correction(p, second, _second(engine, p.hat), False))
    return tuple(found)


def _second(engine: Engine, ref: Ref) -> float:
    """The mean over positions of E[Z^2], on the first side."""
    rank = len(engine.sides[0].program.types[ref].shape)
    k = engine.pair_array(ref, ref, (0, 0), tuple(range(rank)), centred=False)
    return 0.0 if k is None else float(np.mean(np.asarray(k)))


def _same(engine: Engine, ref: Ref, hat: Ref) -> bool:
    """Whether every term but hatZ is a structural zero."""
    line = engine.sides[0].program.lines[ref]
    others = [t for t in getattr(line, "terms", ()) if t.x != hat]
    return all(any(engine.tensor(0, a.ref) is None for a in t.tensors) for t in others)
