"""Programs that divide by what may be zero."""

import math

from .. import scalar
from ..program import LinComb, Nonlin, TensorProgram


def has_pole_at_zero(program: TensorProgram) -> bool:
    """Whether a line is not finite where all Gaussian vectors are zero.

    There a sum of squares is zero, and what is divided by it is not defined. Tensors
    are taken to be 1.
    """
    values = [0.0] * len(program.lines)
    for ref, line in enumerate(program.lines):
        if isinstance(line, Nonlin):
            args = [values[x] for x in line.xs] + [1.0] * len(line.tensors)
            values[ref] = float(scalar.evaluate_now(line.fn, args))
            if not math.isfinite(values[ref]):
                return True
        elif isinstance(line, LinComb):
            values[ref] = sum(
                t.scale * math.prod(t.sums) * (1.0 if t.x is None else values[t.x])
                for t in line.terms
            )
    return False
