"""Terms of order n^-1/2 beside terms of order one."""

import dataclasses
from collections.abc import Mapping

from ._lines import Ref


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A vector c[i] = scale sum_k b[letters] u[i, k].

    Attributes:
        vector: the line of u.
        coefficient: a finite Gaussian line b, or None for 1.
        letters: for every axis of b, one of the letters i, k.
        scale: a number.
    """

    vector: Ref
    coefficient: Ref | None = None
    letters: tuple[int, ...] = ()
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Perturbation:
    """A term c of order n^-1/2 beside a vector of order one, x + n^-1/2 c.

    It vanishes with the width, unless the sum over coordinates of a readout brings it
    back, which it does where the readout's weights are in c.

    Attributes:
        at: an input line without mean and noise, which is added to x.
        parts: what c is the sum of.
        source: where the two meet.
    """

    at: Ref
    parts: tuple[Part, ...]
    source: str = ""

    def moved(self, place: Mapping[Ref, Ref]) -> "Perturbation":
        """The same in a rewritten program."""
        parts = tuple(
            dataclasses.replace(
                p,
                vector=place[p.vector],
                coefficient=None if p.coefficient is None else place[p.coefficient],
            )
            for p in self.parts
        )
        return dataclasses.replace(self, at=place[self.at], parts=parts)
