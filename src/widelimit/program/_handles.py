"""What the builder hands out: vectors, scalars and matrices of one program.

A linear combination such as `2.0 * y - w`, or arithmetic on scalars, is kept as an
expression until it is named, used or printed; then it becomes one line.
"""

import numbers
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from .._errors import InputError
from .._jax import is_concrete
from ._lines import (
    Ref,
    Type,
)
from ._source import at, caller

if TYPE_CHECKING:
    from ._store import Store


def number(value: Any, what: str) -> float | None:
    """A finite real number, or None when `value` is not a number at all.

    Raises:
        InputError: it is a number that is not finite.
    """
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0:
        if not is_concrete(value):
            raise InputError(f"{what} is a number, not a traced value.{at(caller())}")
        value = np.asarray(value)[()]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    if not np.isfinite(float(value)):
        raise InputError(f"{what} must be finite, got {value}.{at(caller())}")
    return float(value)


class Handle:
    """One line of a program, or an expression that becomes one."""

    # numpy scalars on the left leave the operator to the handle.
    __array_ufunc__ = None

    def __init__(self, program: "Store", ref: Ref | None) -> None:
        self.program = program
        self.source = caller()
        self._ref = ref
        if ref is None:
            program._hold(self)

    @property
    def ref(self) -> Ref:
        """The position of the line, which is made now if it is not yet."""
        if self._ref is None:
            self._ref = self._make()
        return self._ref

    @property
    def type(self) -> Type:
        """The type of the line."""
        return self.program._types[self.ref]

    @property
    def name(self) -> str:
        """The name of the line."""
        return self.program._lines[self.ref].name

    def named(self, name: str) -> Self:
        """Give the line a name, by which results and printing know it.

        Raises:
            InputError: the name is not an identifier.
            InvalidProgramError: another line has this name.
        """
        self.program._rename(self.ref, name)
        return self

    def _make(self) -> Ref:
        raise NotImplementedError

    def _describe(self) -> str:
        return f"`{self.name}`"

    def __repr__(self) -> str:
        return self.program._line_text(self.ref)
