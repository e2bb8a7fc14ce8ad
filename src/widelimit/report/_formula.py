"""The kernel recursion as formulas, from the steps that the engine took."""

import dataclasses
import re
from typing import Any

from .. import scalar
from ..asymptotics import Engine, Step
from ..program import (
    LinComb,
    MatIn,
    MatMul,
    Moment,
    Nonlin,
    Readout,
    TensorProgram,
    VecIn,
)
from ..trace import Network


@dataclasses.dataclass(frozen=True)
class Formula:
    """The kernel recursion of a network.

    `K[a, b]` is the covariance of two lines for two inputs, `E[a b]` a second moment. A
    diagonal `K[a, b](o, o)` is needed only at equal positions.

    Attributes:
        equations: pairs of left and right side, in order.
        routes: how the expectations are computed.
    """

    equations: tuple[tuple[str, str], ...]
    routes: tuple[str, ...]

    def __str__(self) -> str:
        width = max((len(left) for left, _ in self.equations), default=0)
        lines = [f"{left:<{width}} = {right}" for left, right in self.equations]
        return "\n".join(lines + [f"# {r}" for r in self.routes])

    def latex(self) -> str:
        """The recursion as a LaTeX `align*` environment."""
        rows = [f"{_latex(a)} &= {_latex(b)}" for a, b in self.equations]
        return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"


def formula(engine: Engine, network: Network) -> Formula:
    """The recursion behind the steps that an engine took.

    Args:
        engine: after its kernel was computed.
        network: what it computed.
    """
    program = network.program
    seen: dict[tuple[str, str], None] = {}
    for step in engine.steps:
        seen.setdefault(_equation(step, program), None)
    return Formula(tuple(seen), tuple(sorted(engine.routes)))


def _equation(step: Step, program: TensorProgram) -> tuple[str, str]:
    a = program.lines[step.u.ref]
    b = a if step.v is None else program.lines[step.v.ref]
    second = "E" if step.rule in ("nonlin",) else "K"
    if step.rule == "linear" and "H" in (
        _kind(program, step.u.ref),
        _kind(program, step.v.ref if step.v else step.u.ref),
    ):
        second = "E"
    left = f"{second}[{a.name}, {b.name}']"
    match step.rule:
        case "matmul" | "readout":
            assert isinstance(a, MatMul | Readout)
            assert isinstance(b, MatMul | Readout)
            w = program.lines[a.matrix if isinstance(a, MatMul) else a.v]
            xs = f"E[{program.lines[a.x].name}, {program.lines[b.x].name}']"
            total = " sum_k " if a.sums else " "
            return left, f"{_variance(w)}{total}{xs}".strip()
        case "nonlin":
            return (
                left,
                f"E[{_function(a, program, '')} {_function(b, program, chr(39))}]",
            )
        case "mean" | "moment":
            return f"E[{a.name}]", f"E[{_function(a, program, '')}]"
        case _:
            return left, _bilinear(a, b, program, second)


def _kind(program: TensorProgram, ref: int) -> str:
    return str(getattr(program.types[ref], "kind", ""))


def _variance(line: Any) -> str:
    assert isinstance(line, MatIn | VecIn)
    if isinstance(line.std, float | int):
        return "" if line.std == 1.0 else f"{float(line.std) ** 2:.6g}"
    return f"std({line.name})**2"


def _function(line: Any, program: TensorProgram, mark: str) -> str:
    if not isinstance(line, Nonlin | Moment):
        return f"{line.name}{mark}"
    names = [program.lines[x].name + mark for x in line.xs]
    names += [program.lines[t.ref].name + mark for t in line.tensors]
    return scalar.to_text(line.fn, names)


def _bilinear(a: Any, b: Any, program: TensorProgram, what: str) -> str:
    def terms(line: Any) -> list[tuple[float, str]]:
        if not isinstance(line, LinComb):
            return [(1.0, line.name)]
        out = []
        for t in line.terms:
            name = "1" if t.x is None else program.lines[t.x].name
            coefficients = "".join(f"{program.lines[c.ref].name} " for c in t.tensors)
            out.append((t.scale, ("sum_k " if t.sums else "") + coefficients + name))
        return out

    def side(parts: list[tuple[float, str]], mark: str) -> str:
        texts = [("" if s == 1.0 else f"{s:.6g} ") + n + mark for s, n in parts]
        return " + ".join(texts)

    left, right = terms(a), terms(b)
    if len(left) == len(right) == 1 and left[0][0] == right[0][0] == 1.0:
        return f"{what}[{left[0][1]}, {right[0][1]}']"
    return f"{what}[{side(left, '')}, {side(right, chr(39))}]"


def _latex(text: str) -> str:
    text = re.sub(r"\b([a-zA-Z]+)_?(\d+)\b", r"\1_{\2}", text)
    text = re.sub(r"std\((\w+)\)\*\*2", r"\\sigma_{\1}^2", text)
    text = text.replace("sum_k", r"\sum_k ").replace("**", "^")
    text = re.sub(r"\b(tanh|sin|cos|exp|log|max|min)\b", r"\\\1", text)
    text = re.sub(
        r"\b(erf|erfc|logistic|sign|select|sqrt|expm1|log1p)\b", r"\\mathrm{\1}", text
    )
    text = text.replace(" * ", r" \, ")
    return re.sub(r"\bE\[", r"\\mathbb{E}[", text)
