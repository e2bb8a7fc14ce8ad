"""How expectations were computed, for whoever asks."""

import dataclasses
from collections.abc import Sequence

from ..gaussian import Accuracy

COARSE = Accuracy(level=0)
"""What a numerical route is compared with to know its error."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """The expectations that took one route.

    Attributes:
        name: the route.
        dimension: how many Gaussian variables each of them has.
        is_exact: whether it needs nothing but formulas.
        count: how many there were.
        error: the largest error relative to the largest entry, 0 for formulas; None
            where it was not measured. It is the difference to a coarser rule; of
            samples, the 99 % half-width of the kernels.
    """

    name: str
    dimension: int
    is_exact: bool
    count: int = 1
    error: float | None = None

    def __str__(self) -> str:
        unit = "variable" if self.dimension == 1 else "variables"
        text = f"{self.name} ({'exact' if self.is_exact else 'numerical'}), "
        text += f"{self.dimension} {unit}, {self.count} times"
        if self.error:
            text += f", relative error {self.error:.0e}"
        return text


def largest(errors: Sequence[float | None]) -> float | None:
    """The largest error; None if one was not measured."""
    known = [e for e in errors if e is not None]
    return max(known) if len(known) == len(errors) else None
