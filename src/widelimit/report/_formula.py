"""The kernel recursion as formulas, from the steps that the engine took."""

import dataclasses
import re
from collections.abc import Callable, Iterable
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
    Term,
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
    writer = _Writer(engine, network.program)
    # From the output back: every line is made of lines before it.
    steps = sorted(engine.steps, key=_last_line, reverse=True)
    seen = dict.fromkeys(e for s in steps if (e := writer.equation(s)) is not None)
    return Formula(tuple(seen), tuple(sorted(engine.routes)))


class _Writer:
    """Equations for the steps of an engine over one program."""

    def __init__(self, engine: Engine, program: TensorProgram) -> None:
        self._engine, self._program = engine, program
        self._known = {
            pair
            for s in engine.steps
            if s.v is not None
            for pair in ((s.u.ref, s.v.ref), (s.v.ref, s.u.ref))
        }

    def equation(self, step: Step) -> tuple[str, str] | None:
        """Left and right side; None for a step inside the expansion of another."""
        lines = self._program.lines
        u, v = step.u.ref, step.u.ref if step.v is None else step.v.ref
        a, b = lines[u], lines[v]
        match step.rule:
            case "matmul" | "readout":
                assert isinstance(a, MatMul | Readout)
                assert isinstance(b, MatMul | Readout)
                w = lines[a.matrix if isinstance(a, MatMul) else a.v]
                total = "sum_k" if a.sums else ""
                parts = (_variance(w), total, self._second(a.x, b.x))
                return self._covariance(u, v), _joined(parts)
            case "nonlin":
                right = f"E[{self._function(a)} {self._function(b, True)}]"
                return self._second(u, v), right
            case "mean" | "moment":
                return f"E[{a.name}]", f"E[{self._function(a)}]"
            case "linear" if isinstance(a, LinComb) and isinstance(b, LinComb):
                gaussian = (
                    self._engine.is_gaussian(0, u),
                    self._engine.is_gaussian(0, v),
                )
                ask = self._covariance if all(gaussian) else self._second
                return ask(u, v), self._bilinear(a, b, ask)
            case _:
                return None

    def _covariance(self, u: int, v: int) -> str:
        lines = self._program.lines
        return f"K[{lines[u].name}, {lines[v].name}']"

    def _second(self, u: int, v: int) -> str:
        """E of a product, which is the covariance where both are centred Gaussians."""
        engine, lines = self._engine, self._program.lines
        if all(
            engine.is_gaussian(0, x) and not engine.mean(engine.view(x)[0])
            for x in (u, v)
        ):
            return self._covariance(u, v)
        return f"E[{lines[u].name} {lines[v].name}']"

    def _function(self, line: Any, primed: bool = False) -> str:
        lines, mark = self._program.lines, "'" if primed else ""
        if not isinstance(line, Nonlin | Moment):
            return f"{line.name}{mark}"
        names = [lines[x].name + mark for x in line.xs]
        names += [lines[t.ref].name + mark for t in line.tensors]
        return scalar.to_text(line.fn, names)

    def _bilinear(self, a: LinComb, b: LinComb, ask: Callable[[int, int], str]) -> str:
        terms = [
            text
            for s in a.terms
            for t in b.terms
            if (text := self._product(s, t, ask)) is not None
        ]
        return " + ".join(terms) or "0"

    def _product(self, s: Term, t: Term, ask: Callable[[int, int], str]) -> str | None:
        """The product of two terms, or None where it is zero by structure."""
        core, one_sum = self._core(s.x, t.x, ask)
        if core is None:
            return None
        sums = ["sum_k"] * bool(s.sums) + ["sum_k'"] * bool(t.sums)
        names = [self._program.lines[c.ref].name for c in s.tensors]
        names += [self._program.lines[c.ref].name + "'" for c in t.tensors]
        scale = s.scale * t.scale
        number = "" if scale == 1.0 else f"{scale:.6g}"
        # Of two independent sums over inputs only equal positions are left.
        parts = (core, *sums[:1], *names) if one_sum else (*sums, *names, core)
        return _joined((number, *parts)) or "1"

    def _core(
        self, x: int | None, y: int | None, ask: Callable[[int, int], str]
    ) -> tuple[str | None, bool]:
        """What two vectors contribute; whether their summed positions are equal."""
        lines = self._program.lines
        if x is None or y is None:
            if ask == self._covariance:
                return None, False
            inside = [] if x is None else [lines[x].name]
            inside += [] if y is None else [f"{lines[y].name}'"]
            return "".join(f"E[{name}]" for name in inside), False
        p, q = lines[x], lines[y]
        if isinstance(p, VecIn) and isinstance(q, VecIn):
            return (_variance(p) if p.name == q.name else None), True
        if (x, y) not in self._known:
            return None, False
        return ask(x, y), False


def _last_line(step: Step) -> int:
    return max(x.ref for x in (step.u, step.v) if x is not None)


def _joined(parts: Iterable[str]) -> str:
    return " ".join(p for p in parts if p)


def _variance(line: Any) -> str:
    assert isinstance(line, MatIn | VecIn)
    if isinstance(line.std, float | int):
        return "" if line.std == 1.0 else f"{float(line.std) ** 2:.6g}"
    return f"std({line.name})**2"


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
