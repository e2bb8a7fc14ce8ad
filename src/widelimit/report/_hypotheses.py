"""The hypotheses of the theorems on gradients, and whether a network meets them."""

import dataclasses
from collections.abc import Collection, Sequence

from ..asymptotics import Engine
from ..program import Line, MatMul, TensorProgram, Transpose
from ._backward import BackwardPass
from ._growth import Growth, growths
from ._independence import Correction, corrections
from ._parity import ODD, ZERO
from ._ranks import Rank, ranks

# Gram matrices of more gradients than this cost more than what they tell.
_MOST_VECTORS = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a theorem of Yang (2019) asks of a network and its backward pass.

    Attributes:
        theorems: the numbers of the theorems.
        name: what it is.
        holds: None where it is assumed.
        why: the reason, in a line.
    """

    theorems: tuple[int, ...]
    name: str
    holds: bool | None
    why: str

    def __str__(self) -> str:
        state = {True: "holds", False: "fails", None: "assumed"}[self.holds]
        numbers = " and ".join(map(str, self.theorems))
        return f"{self.name} (theorem {numbers}): {state}, {self.why}".replace(
            "theorem 5 and", "theorems 5 and"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class GradientReport:
    """What holds for the gradients of a network.

    Attributes:
        corrections: what dependence does to every product.
        growth: the growth classes of the nonlinear lines of the backward pass.
        hypotheses: of theorems 5 and 6.
    """

    corrections: tuple[Correction, ...]
    growth: tuple[Growth, ...]
    hypotheses: tuple[Hypothesis, ...]


def gradient_report(
    engine: Engine, back: BackwardPass, program: TensorProgram
) -> GradientReport:
    """The corrections and the hypotheses of a backward pass.

    Args:
        engine: of the program without transposes that `back` refers to.
        back: a network and its backward pass.
        program: the program of the engine.
    """
    found, names = growths(back.program), {x.name for x in _backward_lines(back)}
    changes = corrections(engine, list(back.products))
    vanish = all(c.structural for c in changes if c.product.backward)
    hypotheses = (
        _no_transposes(back),
        _zero_mean(back),
        _odd(back, vanish),
        _polynomial(found, names),
        _rank_convergence(ranks(engine, program, _MOST_VECTORS), program),
    )
    return GradientReport(
        changes,
        tuple(g for g in found if g.line in names),
        hypotheses,
    )


def _backward_lines(back: BackwardPass) -> Sequence[Line]:
    return back.program.lines[back.forward :]


def _no_transposes(back: BackwardPass) -> Hypothesis:
    lines = back.program.lines
    names = [
        lines[line.matrix].name
        for line in lines[: back.forward]
        if isinstance(line, Transpose)
    ]
    why = "the network multiplies by no matrix and its transpose"
    if names:
        why = f"the network itself uses the transpose of {', '.join(names)}"
    return Hypothesis((5,), "no transposes in the network", not names, why)


def _zero_mean(back: BackwardPass) -> Hypothesis:
    names = [back.program.lines[r].name for r in back.gradients]
    why = "the output has no vector of mean zero that it alone reads"
    if names:
        why = f"{', '.join(names)} has mean zero, and only the readout uses it"
    return Hypothesis((5,), "zero-mean output gradients", bool(names), why)


def _odd(back: BackwardPass, vanish: bool) -> Hypothesis:
    lines = back.program.lines
    products = [x for x in _backward_lines(back) if isinstance(x, MatMul)]
    bad = [
        f"{lines[x.x].name} (in {x.name})"
        for x in products
        if back.parities[x.x] not in (ODD, ZERO)
    ]
    name, why = "odd in the output gradients", "as all that a matrix multiplies"
    if not products:
        why = "the backward pass has no product with a matrix"
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        why = f"{bad[0]}{more} is not"
    if bad and back.gradients and vanish:
        # What is needed of oddness holds: all mean derivatives are zero by symmetry.
        return Hypothesis((5,), name, None, f"{why} known to be, yet no term is left")
    return Hypothesis((5,), name, not bad, why)


def _polynomial(found: Sequence[Growth], backward: Collection[str]) -> Hypothesis:
    bad = [g for g in found if not g.polynomial]
    why = "all functions are, and their derivatives"
    if bad:
        # A singular derivative says most, as that of batch normalisation.
        worst = max(bad, key=lambda g: (g.kind == "singular", g.line in backward))
        what = {
            "singular": "is singular where what it divides by is 0",
            "controlled": "grows faster, as theorem 4 allows",
            "beyond": "grows faster, as far as is known",
        }[worst.kind]
        kind = "the derivative" if worst.line in backward else "the function"
        where = f" ({worst.source})" if worst.source else ""
        why = f"{kind} {worst.line} = {worst.function}{where} {what}"
    return Hypothesis((5, 6), "polynomially bounded", not bad, why)


def _rank_convergence(found: Sequence[Rank], program: TensorProgram) -> Hypothesis:
    name, both = "rank convergence", (5, 6)
    used = {x.matrix for x in program.lines if isinstance(x, MatMul)}
    singular = [r for r in found if not r.full]
    if singular:
        r = singular[0]
        why = (
            f"{r.matrix} meets vectors of rank {r.rank} of {r.vectors}, whose linear "
            "dependence should be exact at finite width"
        )
        return Hypothesis(both, name, None, why)
    if len(found) < len(used):
        why = f"not looked at where over {_MOST_VECTORS} vectors meet a matrix"
        return Hypothesis(both, name, None, why)
    why = "all Gram matrices have full rank in the limit, gradients included"
    return Hypothesis(both, name, True, why)
