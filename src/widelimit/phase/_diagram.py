"""What `phase_diagram` returns: arrays over a grid, a summary, a plot."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PhaseDiagram:
    r"""Signal propagation through infinitely many layers, over a grid (A, B).

    A NaN is an answer: the quantity does not exist, or could not be found. It is
    counted by `str`. Arrays have the first standard deviation along their first axis.

    Attributes:
        names: the parameters that the two standard deviations belong to.
        stds: their values, of shapes (A,) and (B,).
        variance: $q^*$, the mean over positions of the variance of the state, where
            it comes to rest; 0 where it decays and infinite where it grows for ever
            (in practice, beyond 10^6 times the start).
            NaN where every variance is kept, or it does not come to rest.
        correlation: $c^*$ of two different inputs, the mean over positions. NaN where
            every correlation is kept, it does not come to rest, or the variance grows
            such that it is not known.
        chi: $\chi_1$, the factor per layer of the squared distance of two inputs that
            are almost equal. Above 1 the layers are chaotic, below 1 ordered.
        gradient: the factor per layer of squared gradients, by backprop from
            independent weights; equal to `chi` where both passes see the same
            randomness (they differ under dropout).
        variance_length: $\xi_q$ in layers, $-1/\log$ of the factor by which a change
            of the covariance of one input with itself decays. Infinite where it
            decays slower than exponentially, or grows.
        correlation_length: $\xi_c$, the same for the covariance of two inputs: how
            deep correlations between inputs can be told apart.
    """

    names: tuple[str, str]
    stds: tuple[np.ndarray, np.ndarray]
    variance: np.ndarray
    correlation: np.ndarray
    chi: np.ndarray
    gradient: np.ndarray
    variance_length: np.ndarray
    correlation_length: np.ndarray

    @property
    def gradient_exponent(self) -> np.ndarray:
        """The logarithm of `gradient`: squared gradients are exp(exponent * depth)."""
        with np.errstate(divide="ignore"):
            return np.log(self.gradient)

    @property
    def chaotic(self) -> np.ndarray:
        """Where chi > 1: inputs that are almost equal become different."""
        return self.chi > 1

    @property
    def edge(self) -> np.ndarray:
        """The edge of chaos: the points (M, 2) at which chi = 1 on lines of the grid.

        Between neighbours of the grid log chi is interpolated; ordered by the first
        standard deviation, then the second.
        """
        with np.errstate(divide="ignore"):
            level = np.log(self.chi)
        a, b = self.stds
        found = [(r, y) for y, column in zip(b, level.T, strict=True)
                 for r in _roots(a, column)]  # fmt: skip
        found += [(x, r) for x, row in zip(a, level, strict=True)
                  for r in _roots(b, row)]  # fmt: skip
        points = np.unique(np.array(found, float).reshape(-1, 2), axis=0)
        return points[np.lexsort(points.T[::-1])]

    def __str__(self) -> str:
        (a, b), count = self.stds, self.chi.size
        lines = [
            f"Phases over {len(a)} x {len(b)} standard deviations, "
            f"{_range(self.names[0], a)} and {_range(self.names[1], b)}:",
            f"  ordered (chi < 1)   {np.sum(self.chi < 1):6d} of {count}",
            f"  chaotic (chi > 1)   {np.sum(self.chaotic):6d}",
        ]
        for what, where in self._exceptions().items():
            if where.any():
                lines.append(f"  {what:<18}  {where.sum():6d}")
        lines.append(self._edge_text())
        lines.append(f"Gradient exponent per layer: {_span(self.gradient_exponent)}.")
        lines.append(f"Correlation length in layers: {_span(self.correlation_length)}.")
        return "\n".join(lines)

    def _exceptions(self) -> dict[str, np.ndarray]:
        return {
            "critical (chi = 1)": self.chi == 1,
            "unknown (NaN)": np.isnan(self.chi),
            "variance grows": np.isinf(self.variance),
            "variance decays": self.variance == 0,
            "correlation NaN": np.isnan(self.correlation),
        }

    def _edge_text(self) -> str:
        (a, b), points = self.names, self.edge
        if not len(points):
            return "No edge of chaos on this grid."
        rows = points[np.isin(points[:, 1], self.stds[1])]
        rows = rows[np.argsort(rows[:, 1], kind="stable")]
        if not len(rows):
            rows = points
        picks = np.unique(np.linspace(0, len(rows) - 1, 5).round().astype(int))
        shown = ", ".join(f"({rows[i, 0]:.4g}, {rows[i, 1]:.4g})" for i in picks)
        return f"Edge of chaos (chi = 1) at ({a}, {b}) = {shown}."

    def plot(self, path: Any) -> None:
        """Write a picture: the gradient exponent, and the correlation length.

        The edge of chaos is the black line. Points are grey where the quantity is
        infinite, zero or unknown.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LogNorm, TwoSlopeNorm
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        exponent = _finite(self.gradient_exponent)
        most = float(np.ma.abs(exponent).max()) if exponent.count() else 1.0
        norm = TwoSlopeNorm(0.0, -(most or 1.0), most or 1.0)
        self._panel(left, exponent, norm, "RdBu_r", "gradient exponent per layer")
        length = _finite(self.correlation_length)
        length = np.ma.masked_less_equal(length, 0.0)
        low, high = (
            (float(length.min()), float(length.max())) if length.count() else (1.0, 1.0)
        )
        norm = LogNorm(low, high if high > low else 10 * low)
        self._panel(right, length, norm, "viridis", "correlation length (layers)")
        figure.savefig(path)

    def _panel(
        self, axes: Any, values: Any, norm: Any, colours: str, title: str
    ) -> None:
        a, b = self.stds
        axes.set_facecolor("0.85")
        image = axes.pcolormesh(
            a, b, values.T, norm=norm, cmap=colours, shading="nearest", rasterized=True
        )
        axes.figure.colorbar(image, ax=axes, label=title)
        with np.errstate(divide="ignore"):
            level = _finite(np.log(self.chi))
        if min(level.shape) > 1 and level.count() and level.min() < 0 < level.max():
            axes.contour(a, b, level.T, levels=[0.0], colors="black", linewidths=1.5)
        axes.set_xlabel(f"std of {self.names[0]}")
        axes.set_ylabel(f"std of {self.names[1]}")


def _finite(values: np.ndarray) -> Any:
    return np.ma.masked_invalid(values)


def _roots(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Where the piecewise linear function through (x, y) is 0."""
    found = [
        float(p)
        for p, u, v, w in zip(x[1:-1], y[:-2], y[1:-1], y[2:], strict=True)
        if v == 0 and u * w < 0
    ]
    for p, q, u, v in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        if np.isfinite(u) and np.isfinite(v) and u * v < 0:
            found.append(float(p + (q - p) * u / (u - v)))
    return found


def _range(name: str, values: np.ndarray) -> str:
    return f"{name} from {values[0]:g} to {values[-1]:g}"


def _span(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    infinite = int(np.sum(np.isposinf(values)))
    text = f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "none"
    return f"{text}, and infinite at {infinite} points" if infinite else text
