"""What `check` returns: numbers, a table, a plot."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One quantity at one width.

    Attributes:
        quantity: the name of the tap, "output" or "output:mean".
        width: the common scale.
        deviation: RMS deviation of single networks from the limit, relative.
        largest_t: largest |t| of all entries, across seeds.
        entries: the number of distinct entries.
        concentrates: whether the moment of a single network tends to the limit.
    """

    quantity: str
    width: int
    deviation: float
    largest_t: float
    entries: int
    concentrates: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The limit beside finite networks.

    Attributes:
        rows: one for every quantity and width, the widths in increasing order.
        widths: the common scales, increasing.
        seeds: networks at each width.
        critical_t: the bound on |t| that all entries together exceed by chance in 1 %
            of checks, if the limit is right.
        slopes: fitted power of the width in the deviation of single networks (-1/2 is
            expected), for quantities that concentrate.
        notes: what was left out, and why.
    """

    rows: tuple[Row, ...]
    widths: tuple[int, ...]
    seeds: int
    critical_t: float
    slopes: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of what was compared, in the order of the network."""
        return tuple(dict.fromkeys(row.quantity for row in self.rows))

    @property
    def verdicts(self) -> dict[str, bool]:
        """Whether each quantity agrees with its limit at the largest width."""
        return {
            row.quantity: row.largest_t <= self.critical_t
            for row in self.rows
            if row.width == self.widths[-1]
        }

    @property
    def passed(self) -> bool:
        """Whether every quantity agrees."""
        return all(self.verdicts.values())

    def table(self) -> str:
        """A plain text table, and the verdict under it."""
        head = ("quantity", "width", "deviation", "slope", "max |t|", "bound", "")
        lines = _columns([head, *(self._cells(row) for row in self.rows)])
        entries = sum(r.entries for r in self.rows if r.width == self.widths[-1])
        verdict = "agrees with" if self.passed else "DIFFERS from"
        lines += [
            f"The limit {verdict} {self.seeds} networks at width {self.widths[-1]} "
            f"(t-test across seeds, level 1 % over {entries} entries).",
            *(f"Note: {note}." for note in self.notes),
        ]
        return "\n".join(lines)

    def plot(self, path: Any) -> None:
        """Write a picture of the deviation of single networks against the width.

        Both axes are logarithmic; the dashed line falls like width**-0.5.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xscale="log", yscale="log")
        for name in self.quantities:
            rows = [r for r in self.rows if r.quantity == name and r.deviation > 0]
            style = "o-" if all(r.concentrates for r in rows) else "s:"
            axes.plot(
                [r.width for r in rows],
                [r.deviation for r in rows],
                style,
                label=name,
            )
        axes.plot(self.widths, self._guide(), "k--", lw=1, label="width$^{-1/2}$")
        axes.set_xlabel("width")
        axes.set_ylabel("RMS deviation of single networks (relative)")
        axes.legend()
        figure.savefig(path)

    def _guide(self) -> list[float]:
        """Parallel to the expected decay, from the largest deviation."""
        first = [r for r in self.rows if r.width == self.widths[0]]
        start = max((r.deviation for r in first if r.concentrates), default=0.0) or 1.0
        return [start * (w / self.widths[0]) ** -0.5 for w in self.widths]

    def _cells(self, row: Row) -> tuple[str, ...]:
        cells = (row.quantity, str(row.width), f"{row.deviation:.2e}")
        t = f"{row.largest_t:.1f}" if math.isfinite(row.largest_t) else "inf"
        if row.width != self.widths[-1]:
            return (*cells, "", t, "", "")
        slope = self.slopes.get(row.quantity)
        return (
            *cells,
            "-" if slope is None else f"{slope:.2f}",
            t,
            f"{self.critical_t:.1f}",
            "agrees" if self.verdicts[row.quantity] else "DIFFERS",
        )

    def __str__(self) -> str:
        return self.table()


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    sizes = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(sizes[0])]
        cells += [c.rjust(s) for c, s in zip(row[1:-1], sizes[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines
