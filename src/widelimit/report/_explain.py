"""Which theorem applies to a network, and whether its hypotheses hold."""

import dataclasses

from ..asymptotics import Engine, Route
from ..program import TensorProgram, Transpose
from ..trace import Network
from ._growth import Growth, growths
from ._hypotheses import GradientReport, Hypothesis
from ._independence import Correction
from ._ranks import Rank, ranks


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The theorem behind a limit and the state of its hypotheses.

    Attributes:
        theorem: which theorem of Yang (2019) gives the limit.
        orders: the powers of n of the output and the taps.
        growth: for every nonlinear line, its growth class.
        ranks: for every matrix, the rank of its arguments' Gram matrix.
        routes: how expectations are computed, and whether that is exact.
        expectations: the same with the number of variables and the error.
        dropped: lower-order terms that were dropped.
        corrections: for every product with a matrix, in the network and in its backward
            pass, what the dependence of the matrix and its transpose does.
        gradient_growth: the growth classes of the nonlinear lines of the backward pass.
        hypotheses: those of theorems 5 and 6, on gradients.
        no_gradient: why there are none, if there are none.
    """

    theorem: str
    orders: dict[str, str]
    growth: dict[str, tuple[str, str]]
    ranks: tuple[Rank, ...]
    routes: dict[str, bool]
    expectations: tuple[Route, ...]
    dropped: tuple[str, ...]
    corrections: tuple[Correction, ...]
    gradient_growth: tuple[Growth, ...]
    hypotheses: tuple[Hypothesis, ...]
    no_gradient: str

    @property
    def gradient_independence(self) -> bool:
        """Whether the backward pass is as if its matrices were fresh (theorem 5)."""
        backward = [c for c in self.corrections if c.product.backward]
        return not self.no_gradient and all(c.structural for c in backward)

    @property
    def controlled(self) -> bool:
        """Whether every nonlinearity is controlled, as theorem 4 needs."""
        return all(g not in ("beyond", "singular") for g, _ in self.growth.values())

    def fails(self, theorem: int) -> tuple[Hypothesis, ...]:
        """The hypotheses of theorem 5 or 6, on gradients, that do not hold."""
        return tuple(
            h for h in self.hypotheses if theorem in h.theorems and h.holds is False
        )

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
        lines += [f"  {route}" for route in self.expectations] or ["  none"]
        lines += ["", "Gradient independence, product by product:"]
        lines += [f"  {c}" for c in self.corrections] or ["  no matrix"]
        if self.no_gradient:
            lines[-1] = f"  unknown: {self.no_gradient}"
        else:
            lines.append(f"  {self._verdict()}")
            lines += ["", "Hypotheses on the gradients:"]
            lines += [f"  {h}" for h in self.hypotheses]
        if self.dropped:
            lines += ["", "Dropped terms of lower order:"]
            lines += [f"  {d}" for d in self.dropped]
        return "\n".join(lines)

    def _verdict(self) -> str:
        theorem = 5 if self.gradient_independence else 6
        outside = [h.name for h in self.fails(theorem) if 6 in h.theorems]
        verb = "is that of" if theorem == 5 else "needs"
        if not outside:
            return f"The backward pass {verb} theorem {theorem}."
        return (
            f"The backward pass {verb} theorem {theorem}, but is outside its "
            f"hypotheses: not {', '.join(outside)}."
        )


def explain(
    engine: Engine,
    network: Network,
    program: TensorProgram,
    gradients: GradientReport | None = None,
    no_gradient: str = "",
) -> Explanation:
    """What holds for a network at the inputs of an engine.

    Args:
        engine: after its kernel was computed.
        network: what was computed, without transposes.
        program: the program as traced.
        gradients: what holds for its backward pass.
        no_gradient: why that is not known.
    """
    gradients = gradients or GradientReport((), (), ())
    orders = {"output": network.output, **network.taps}
    return Explanation(
        _theorem(program),
        {name: str(t.power) for name, t in orders.items()},
        {g.line: (g.kind, g.function) for g in growths(network.program)},
        ranks(engine, network.program),
        dict(engine.routes),
        tuple(engine.taken),
        network.notes,
        gradients.corrections,
        gradients.growth,
        gradients.hypotheses,
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
