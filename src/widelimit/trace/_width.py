"""Widths: dimensions that go to infinity, and linear forms in them."""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from numbers import Rational
from typing import Any

import jax
import numpy as np

from .._errors import InputError
from ..program._lines import Dim
from ._number import Number, no_value, number, whole
from ._number import widths_are as widths_are

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Form(Number):
    """What `Width` and `WidthForm` share: a linear form with rational coefficients."""

    __slots__ = ()

    @property
    def terms(self) -> "tuple[tuple[Width, Fraction], ...]":
        """The widths with their coefficients, by name."""
        raise NotImplementedError

    @property
    def dim(self) -> Dim:
        """The linear form as the tensor program knows it."""
        return Dim(tuple((w.name, c) for w, c in self.terms))

    def _coefficients(self) -> Mapping[str, Fraction]:
        return {w.name: c for w, c in self.terms}

    @property
    def _key(self) -> Any:
        return tuple((w.name, w.ratio, w.base, c) for w, c in self.terms)

    @staticmethod
    def _symbolic(op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        return _combine(op, left, right)

    def __str__(self) -> str:
        return str(self.dim)


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Width(_Form):
    """A dimension that goes to infinity; made by `width`.

    Attributes:
        name: its name.
        ratio: the width over the common scale.
        base: the width at which the standard parameterisation equals the usual one.
    """

    name: str
    ratio: float = 1.0
    base: int | None = None

    @property
    def terms(self) -> "tuple[tuple[Width, Fraction], ...]":
        """The width itself, once."""
        return ((self, Fraction(1)),)

    def __repr__(self) -> str:
        return f"width({self.name!r}, ratio={self.ratio!r}, base={self.base!r})"


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class WidthForm(_Form):
    """A positive linear form in widths, such as `4 * n` or `n + m // 2`."""

    pairs: tuple[tuple[Width, Fraction], ...]

    @property
    def terms(self) -> tuple[tuple[Width, Fraction], ...]:
        """The widths with their coefficients, by name."""
        return self.pairs

    def __repr__(self) -> str:
        return f"<{self}>"


def width(name: str, ratio: float = 1.0, base: int | None = None) -> Width:
    """Name a width, a dimension that goes to infinity.

    In the shapes of parameters write `n`, `4 * n`, `n // 4`, `n + m`. Inside a function
    that widelimit runs the width is a number: `jnp.sqrt(n)`, `n ** -0.5`,
    `jnp.zeros((3, n))`.

    Args:
        name: an identifier, such as "n".
        ratio: the width over the common scale that goes to infinity.
        base: the width at which the standard parameterisation is as it stands.

    Raises:
        InputError: the name is no identifier, or `ratio` or `base` is not positive.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"The name of a width should be an identifier such as 'n', got {name!r}."
        )
    if (
        not isinstance(ratio, int | float | np.integer | np.floating)
        or isinstance(ratio, bool)
        or not (math.isfinite(ratio) and ratio > 0)
    ):
        raise InputError(
            f"The ratio of width {name} should be a positive number (its size over the "
            f"common scale), got {ratio!r}."
        )
    if base is not None and (not whole(base) or base <= 0):
        raise InputError(
            f"The base of width {name} should be a positive whole number, or None, "
            f"got {base!r}."
        )
    return Width(name, float(ratio), None if base is None else int(base))


def _combine(op: Callable[[Any, Any], Any], left: Any, right: Any) -> WidthForm:
    a, b = _terms(left), _terms(right)
    if a is None or b is None or op not in (*_LINEAR, *_DIVISION):
        raise no_value(left if isinstance(left, Number) else right)
    constant_a, constant_b = _constant(a), _constant(b)
    if op in _LINEAR[:2]:
        terms = _sum(a, b, 1 if op is operator.add else -1)
    elif op is operator.mul and constant_a is not None:
        terms = {w: c * constant_a for w, c in b.items()}
    elif op is operator.mul and constant_b is not None:
        terms = {w: c * constant_b for w, c in a.items()}
    elif op in _DIVISION and constant_b:
        terms = {w: c / constant_b for w, c in a.items()}
    else:
        terms = {}
    return _form(terms, left, right)


_LINEAR = (operator.add, operator.sub, operator.mul)
_DIVISION = (operator.truediv, operator.floordiv)


def _terms(x: Any) -> dict[Width | None, Fraction] | None:
    """Coefficients by width, a plain number under None; None if `x` is neither."""
    if isinstance(x, _Form):
        return dict(x.terms)
    if isinstance(x, Rational) and not isinstance(x, bool):
        return {None: Fraction(x)} if x else {}
    if isinstance(x, np.integer):
        return {None: Fraction(int(x))} if x else {}
    return None


def _constant(terms: Mapping[Width | None, Fraction]) -> Fraction | None:
    if not terms:
        return Fraction(0)
    return terms[None] if set(terms) == {None} else None


def _sum(
    a: Mapping[Width | None, Fraction], b: Mapping[Width | None, Fraction], sign: int
) -> dict[Width | None, Fraction]:
    total = dict(a)
    for w, c in b.items():
        total[w] = total.get(w, Fraction(0)) + sign * c
    return {w: c for w, c in total.items() if c}


def _form(terms: Mapping[Width | None, Fraction], left: Any, right: Any) -> WidthForm:
    pairs = [(w, c) for w, c in terms.items() if w is not None]
    if not pairs or len(pairs) < len(terms) or any(c <= 0 for _, c in pairs):
        raise InputError(
            f"{left} and {right} do not combine to a wide dimension, a sum of widths "
            "with positive factors: write n, 4 * n, n // 4 or n + m. (Inside the "
            "function given to `wl.limit` a width is a plain number.)"
        )
    by_name: dict[str, Width] = {}
    for w, _ in pairs:
        same_width(by_name.setdefault(w.name, w), w)
    return WidthForm(tuple(sorted(pairs, key=lambda pair: pair[0].name)))


def same_width(a: Width, b: Width) -> None:
    """Refuse two widths of one name that differ.

    Raises:
        InputError: they have another ratio or base.
    """
    if (a.name, a.ratio, a.base) != (b.name, b.ratio, b.base):
        raise InputError(
            f"Two different widths are called {a.name}: {a!r} and {b!r}. Declare it "
            "once, or give them different names."
        )


for _class in (Width, WidthForm):
    # The leaf takes the place of the width: inside a jitted function it is the array.
    jax.tree_util.register_pytree_node(
        _class, lambda x: ((number(x),), None), lambda _, leaves: leaves[0]
    )
