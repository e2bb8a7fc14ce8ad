"""A number together with what is known about its error."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A value, or an array of values, with its error.

    Attributes:
        value: the estimate.
        error: 99% half-width: a bound on the error of a deterministic route, three
            standard errors of a random one.
        stderr: the standard error; 0 for deterministic routes.
        route: how the value was found, for example "closed form: relu".
    """

    value: Any
    error: Any = 0.0
    stderr: Any = 0.0
    route: str = ""

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.value, dtype=dtype)

    def __repr__(self) -> str:
        if np.ndim(self.value) == 0:
            number = f"{float(self.value):.12g} +- {float(self.error):.1e}"
        else:
            worst = float(np.max(self.error, initial=0.0))
            number = f"array of shape {np.shape(self.value)} +- {worst:.1e}"
        return f"Estimate({number}, {self.route})"


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """How much work a numerical route does; static, so that it may steer tracing.

    Attributes:
        level: 0 is coarse, 1 the default, 2 fine. The difference of two levels
            estimates the error of the coarser one.
        scramble: the number of the random shift of the quasi-Monte Carlo points;
            different numbers give independent errors.
    """

    level: int = 1
    scramble: int = 0
