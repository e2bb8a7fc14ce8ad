"""The result of a pass."""

import dataclasses
from collections.abc import Mapping

from ..program import Ref, TensorProgram


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A program after a pass.

    Attributes:
        program: the new program.
        place: for every old line that is left, the new one with the same value.
    """

    program: TensorProgram
    place: Mapping[Ref, Ref]
