"""Which theorem applies to a network, and whether its hypotheses hold."""

import dataclasses
from typing import Any

import numpy as np

from .. import scalar
from ..asymptotics import Engine
from ..gaussian import growth
from ..program import MatIn, MatMul, Moment, Nonlin, TensorProgram, Transpose
from ..trace import Network
from ._independence import Correction


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


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The theorem behind a limit and the state of its hypotheses.

    Attributes:
        theorem: which theorem of Yang (2019) gives the limit.
        orders: the powers of n of the output and the taps.
        growth: for every nonlinear line, its growth class.
        ranks: for every matrix, the rank of its arguments' Gram matrix.
        routes: how expectations are computed, and whether that is exact.
        dropped: lower-order terms that were dropped.
        corrections: for every product with a matrix, in the network and in its backward
            pass, what the dependence of the matrix and its transpose does.
        no_gradient: why there are none, if there are none.
    """

    theorem: str
    orders: dict[str, str]
    growth: dict[str, tuple[str, str]]
    ranks: tuple[Rank, ...]
    routes: dict[str, bool]
    dropped: tuple[str, ...]
    corrections: tuple[Correction, ...]
    no_gradient: str

    @property
    def gradient_independence(self) -> bool:
        """Whether the backward pass is as if its matrices were fresh (theorem 5)."""
        backward = [c for c in self.corrections if c.product.backward]
        return not self.no_gradient and all(c.structural for c in backward)

    @property
    def controlled(self) -> bool:
        """Whether every nonlinearity is controlled, as theorem 4 needs."""
        return all(g != "beyond" for g, _ in self.growth.values())

    def __str__(self) -> str:
        lines = [self.theorem, "", "Orders in n:"]
        lines += [f"  {name}: n^{p}" for name, p in self.orders.items()]
        lines += ["", "Growth of the nonlinearities (theorem 4 needs controlled):"]
        lines += [
            f"  {name} = {text}: {g}" for name, (g, text) in self.growth.items()
        ] or ["  none"]
        lines += ["", "Rank of the Gram matrices (almost sure rank convergence):"]
        for r in self.ranks:
            state = (
                "full"
                if r.full
                else "singular: linear dependence, assumed to be exact at finite width"
            )
            lines.append(f"  {r.matrix}: rank {r.rank} of {r.vectors}, {state}")
        lines += [] if self.ranks else ["  no matrix"]
        lines += ["", "Expectations:"]
        lines += [
            f"  {r} ({'exact' if e else 'numerical'})" for r, e in self.routes.items()
        ]
        lines += [] if self.routes else ["  none"]
        lines += ["", "Gradient independence, product by product:"]
        lines += [f"  {c}" for c in self.corrections] or ["  no matrix"]
        if self.no_gradient:
            lines[-1] = f"  unknown: {self.no_gradient}"
        elif self.gradient_independence:
            lines.append("  The backward pass is that of theorem 5.")
        else:
            lines.append("  The backward pass needs theorem 6.")
        if self.dropped:
            lines += ["", "Dropped terms of lower order:"]
            lines += [f"  {d}" for d in self.dropped]
        return "\n".join(lines)


def explain(
    engine: Engine,
    network: Network,
    program: TensorProgram,
    found: tuple[Correction, ...] = (),
    no_gradient: str = "",
) -> Explanation:
    """What holds for a network at the inputs of an engine.

    Args:
        engine: after its kernel was computed.
        network: what was computed, without transposes.
        program: the program as traced.
        found: the corrections of its products, backward pass included.
        no_gradient: why there are none.
    """
    orders = {"output": network.output, **network.taps}
    return Explanation(
        _theorem(program),
        {name: str(t.power) for name, t in orders.items()},
        _growth(network),
        tuple(_ranks(engine, network)),
        dict(engine.routes),
        network.notes,
        found,
        no_gradient,
    )


def _theorem(program: TensorProgram) -> str:
    transposed = [line for line in program.lines if isinstance(line, Transpose)]
    if not transposed:
        return "Theorem 4 of Yang (2019): the program has no transposes."
    names = ", ".join(
        dict.fromkeys(program.lines[line.matrix].name for line in transposed)
    )
    return (
        "Theorem 6 of Yang (2019): the program uses the transpose of "
        f"{names}, and what the matrix and its transpose have in common is kept."
    )


def _growth(network: Network) -> dict[str, tuple[str, str]]:
    classes = {}
    lines = network.program.lines
    for line in lines:
        if isinstance(line, Nonlin | Moment):
            names = [lines[x].name for x in line.xs] + [
                lines[t.ref].name for t in line.tensors
            ]
            worst = max(
                (growth(line.fn, i) for i in range(len(line.xs))),
                key=["bounded", "polynomial", "controlled", "beyond"].index,
            )
            classes[line.name] = (worst, scalar.to_text(line.fn, names))
    return classes


def _ranks(engine: Engine, network: Network) -> list[Rank]:
    program = network.program
    found = []
    for ref, matrix in enumerate(program.lines):
        if not isinstance(matrix, MatIn):
            continue
        uses = {m.x for m in program.lines if isinstance(m, MatMul) and m.matrix == ref}
        vectors = [(s, x) for s in range(len(engine.sides)) for x in sorted(uses)]
        gram = _gram(engine, vectors)
        if gram is None:
            continue
        scale = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        eigenvalues = np.linalg.eigvalsh(gram / scale / scale[:, None])
        tolerance = (
            len(gram)
            * max(np.finfo(engine.dtype).eps, 1e-10)
            * max(eigenvalues[-1], 0.0)
        )
        found.append(Rank(matrix.name, len(gram), int((eigenvalues > tolerance).sum())))
    return found


def _gram(engine: Engine, vectors: list[tuple[int, int]]) -> Any:
    """E[Z Z'] between all positions of some lines; None if they are very many."""
    sizes = [int(np.prod(engine.sides[s].program.types[x].shape)) for s, x in vectors]
    if not vectors or sum(sizes) > 2048:
        return None
    rows = []
    for (s, x), m in zip(vectors, sizes, strict=True):
        row = []
        for (t, y), n in zip(vectors, sizes, strict=True):
            k = engine.pair_array(x, y, (s, t), centred=False)
            row.append(
                np.zeros((m, n)) if k is None else np.asarray(k, float).reshape(m, n)
            )
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)
