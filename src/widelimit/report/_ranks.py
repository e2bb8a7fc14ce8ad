"""Almost sure rank convergence: the ranks of the Gram matrices in the limit."""

import dataclasses
from typing import Any

import numpy as np

from ..asymptotics import Engine
from ..program import MatIn, MatMul, TensorProgram


@dataclasses.dataclass(frozen=True)
class Rank:
    """The Gram matrix of the vectors that one matrix is applied to.

    Attributes:
        matrix: its name.
        vectors: how many vectors meet it, for the inputs at hand.
        rank: the numerical rank of E[Z^h Z^h'].
    """

    matrix: str
    vectors: int
    rank: int

    @property
    def full(self) -> bool:
        """Whether the vectors are independent in the limit."""
        return self.rank == self.vectors


def ranks(engine: Engine, program: TensorProgram, most: int = 2048) -> tuple[Rank, ...]:
    """The ranks for the matrices of a program.

    Args:
        engine: of the program, at one input or more.
        program: has no transposes.
        most: matrices that meet more vectors are left out.
    """
    found = []
    for ref, matrix in enumerate(program.lines):
        if not isinstance(matrix, MatIn):
            continue
        uses = {m.x for m in program.lines if isinstance(m, MatMul) and m.matrix == ref}
        vectors = [(s, x) for s in range(len(engine.sides)) for x in sorted(uses)]
        gram = _gram(engine, vectors, most)
        if gram is None:
            continue
        # A vector that is zero at every width does not change the rank at any.
        there = np.diag(gram) > 0.0
        gram = gram[np.ix_(there, there)]
        scale = np.sqrt(np.diag(gram))
        eigenvalues = np.linalg.eigvalsh(gram / scale / scale[:, None])
        tolerance = (
            len(gram)
            * max(np.finfo(engine.dtype).eps, 1e-10)
            * max(eigenvalues.max(initial=0.0), 0.0)
        )
        found.append(Rank(matrix.name, len(gram), int((eigenvalues > tolerance).sum())))
    return tuple(found)


def _gram(engine: Engine, vectors: list[tuple[int, int]], most: int) -> Any:
    """E[Z Z'] between all positions of some lines; None if they are very many."""
    sizes = [int(np.prod(engine.sides[s].program.types[x].shape)) for s, x in vectors]
    if not vectors or sum(sizes) > most:
        return None
    ends = np.cumsum([0, *sizes])
    gram = np.zeros((ends[-1], ends[-1]))
    for i, (s, x) in enumerate(vectors):
        for j, (t, y) in enumerate(vectors[: i + 1]):
            k = engine.pair_array(x, y, (s, t), centred=False)
            if k is not None:
                block = np.asarray(k, float).reshape(sizes[i], sizes[j])
                gram[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = block
                gram[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = block.T
    return gram
