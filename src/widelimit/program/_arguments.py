"""What the user hands to the builder, checked."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import scalar
from .._errors import InputError, InvalidProgramError
from ._matrices import MatrixHandle
from ._source import at, caller
from ._vectors import VectorHandle


def what_it_is(a: Any) -> str:
    """An argument, for a message."""
    if isinstance(a, MatrixHandle):
        return f"{a._describe()}, a matrix (apply it first: A @ x)"
    if isinstance(a, VectorHandle):
        kind = "a vector" if a.dim is not None else "a finite output"
        return f"{a._describe()}, {kind}"
    return repr(a)


def trace(f: Any, count: int) -> scalar.Expr:
    """The expression of a function of `count` scalars, or a helpful error."""
    if isinstance(f, scalar.Arg | scalar.Const | scalar.Call):
        if scalar.arity(f) > count:
            raise InputError(
                f"The expression reads {scalar.arity(f)} arguments, {count} are given."
                f"{at(caller())}"
            )
        return f
    if not callable(f):
        raise InputError(
            f"The first argument is a function, such as jnp.tanh; got {f!r}."
            f"{at(caller())}"
        )
    try:
        inspect.signature(f).bind(*range(count))
    except TypeError as error:
        raise InputError(
            f"`{getattr(f, '__name__', 'f')}` cannot be called with the {count} "
            f"arguments given: {error}.{at(caller())}"
        ) from None
    except ValueError:
        pass  # Some built-in functions have no signature.
    return scalar.from_callable(f, count)


def array(value: Any, what: str) -> np.ndarray:
    """A finite array of floats, or a helpful error."""
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"`{what}` is an array of numbers, got {value!r}.") from None
    if not np.all(np.isfinite(array)):
        raise InputError(f"`{what}` is not finite: {array.tolist()}.{at(caller())}")
    return array


def rows(
    names: Mapping[str, tuple[int, ...] | int | None] | Sequence[str], given: int
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of the family that each name selects, and how many there are."""
    if isinstance(names, str) or not names:
        raise InputError(
            f"`names` lists names, or maps them to index shapes; got "
            f"{names!r}.{at(caller())}"
        )
    if not isinstance(names, Mapping):
        if len(set(names)) != len(names):
            raise InvalidProgramError(
                f"A name is used twice in {list(names)}.{at(caller())}"
            )
        names = dict.fromkeys(names)
    if all(isinstance(v, int) for v in names.values()):
        # Row numbers need not name every row of the `given` ones.
        rows = {name: np.array(v) for name, v in names.items()}
        if any(v < 0 for v in rows.values()):
            raise InputError(f"A row number is negative: {dict(names)}.{at(caller())}")
        return rows, max(given, 1 + max(int(v) for v in rows.values()))
    rows, k = {}, 0
    for name, shape in names.items():
        if not (shape is None or isinstance(shape, tuple)):
            raise InputError(
                f"`{name}` maps to {shape!r}; give every name an index shape (() or "
                f"None "
                f"for a single vector), or every name a row number.{at(caller())}"
            )
        size = math.prod(shape or ())
        rows[name] = np.arange(k, k + size).reshape(shape or ())
        k += size
    return rows, k
