"""Objects that are numbers inside a widelimit call, and symbols outside one.

JAX sees the number too: such an object is a pytree node with the number as its only
leaf, which is how it may be an argument of `jnp.sqrt`.
"""

import contextlib
import contextvars
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError

_WIDTHS: contextvars.ContextVar[Mapping[str, int] | None] = contextvars.ContextVar(
    "widelimit_widths", default=None
)
# JAX remembers what a jitted function traced to by the shapes of its arguments; a
# function that reads a width has to be traced anew when the width changes.
_JIT_KEY = jax.make_user_context(None) if hasattr(jax, "make_user_context") else None
_last_key: list[Any] = [None]


class Number:
    """A linear form in widths, with the arithmetic of the number it stands for."""

    __slots__ = ()

    def _coefficients(self) -> Mapping[str, Fraction]:
        """The coefficient of every width, by name."""
        raise NotImplementedError

    @property
    def _key(self) -> Any:
        """What makes two of them equal outside a call."""
        raise NotImplementedError

    @staticmethod
    def _symbolic(op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        """`op` outside a call; one of the operands is a `Number`."""
        raise NotImplementedError

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> Any:
        if _WIDTHS.get() is not None:
            return number(self) == number(other)
        return isinstance(other, Number) and self._key == other._key

    def __ne__(self, other: object) -> Any:
        if _WIDTHS.get() is not None:
            return number(self) != number(other)
        return not self == other

    def __add__(self, other: Any) -> Any:
        return _apply(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _apply(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _apply(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _apply(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _apply(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _apply(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return _apply(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _apply(operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _apply(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _apply(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Any:
        return _apply(operator.mod, self, other)

    def __rmod__(self, other: Any) -> Any:
        return _apply(operator.mod, other, self)

    def __divmod__(self, other: Any) -> Any:
        return _apply(divmod, self, other)

    def __rdivmod__(self, other: Any) -> Any:
        return _apply(divmod, other, self)

    def __pow__(self, other: Any) -> Any:
        return _apply(operator.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return _apply(operator.pow, other, self)

    def __lt__(self, other: Any) -> Any:
        return _apply(operator.lt, self, other)

    def __le__(self, other: Any) -> Any:
        return _apply(operator.le, self, other)

    def __gt__(self, other: Any) -> Any:
        return _apply(operator.gt, self, other)

    def __ge__(self, other: Any) -> Any:
        return _apply(operator.ge, self, other)

    def __neg__(self) -> Any:
        return -number(self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return abs(number(self))

    def __round__(self, digits: int | None = None) -> Any:
        return round(number(self), digits)

    def __floor__(self) -> int:
        return math.floor(number(self))

    def __ceil__(self) -> int:
        return math.ceil(number(self))

    def __trunc__(self) -> int:
        return math.trunc(number(self))

    def __int__(self) -> int:
        return int(number(self))

    def __float__(self) -> float:
        return float(number(self))

    def __index__(self) -> int:
        value = number(self)
        if not isinstance(value, int):
            raise InputError(
                f"The dimension {self} is {value} at the widths "
                f"{dict(_WIDTHS.get() or {})}, not a whole number: choose widths that "
                "divide."
            )
        return value

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(number(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(number(self), dtype)

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type of the number, for functions that ask for it."""
        return np.asarray(number(self)).dtype

    def __array_ufunc__(
        self, ufunc: Any, method: str, *args: Any, **kwargs: Any
    ) -> Any:
        if _WIDTHS.get() is None and ufunc in _NUMPY and len(args) == 2:
            return _apply(_NUMPY[ufunc], *args)
        return getattr(ufunc, method)(*(number(a) for a in args), **kwargs)


@contextlib.contextmanager
def widths_are(widths: Mapping[str, int]) -> Iterator[None]:
    """Give the widths values inside the block.

    Raises:
        InputError: a width is not a positive whole number.
    """
    values = dict(widths)
    for name, value in values.items():
        if not whole(value) or value <= 0:
            raise InputError(
                f"Width {name} should be a positive whole number, got {value!r}."
            )
        values[name] = int(value)
    token = _WIDTHS.set(values)
    try:
        with _jit_key(tuple(sorted(values.items()))):
            yield
    finally:
        _WIDTHS.reset(token)


@contextlib.contextmanager
def _jit_key(key: Any) -> Iterator[None]:
    if _JIT_KEY is not None:
        with _JIT_KEY(key):
            yield
        return
    # Older JAX has no key of ours to add: forget what was traced at other widths.
    if _last_key[0] not in (None, key):
        jax.clear_caches()
    _last_key[0] = key
    yield


def number(x: Any) -> Any:
    """`x`, or the number it stands for: an int when whole."""
    if not isinstance(x, Number):
        return x
    widths = _WIDTHS.get()
    if widths is None:
        raise no_value(x)
    coefficients = x._coefficients()
    missing = [name for name in coefficients if name not in widths]
    if missing:
        raise InputError(
            f"The function uses the width {', '.join(missing)}, which has no value "
            f"here; given: {widths}. A width has to be in the shape of a parameter."
        )
    total = sum((c * widths[name] for name, c in coefficients.items()), Fraction(0))
    return int(total) if total.denominator == 1 else float(total)


def no_value(x: Number) -> InputError:
    return InputError(
        f"The width {x} has no value outside a widelimit call. Use it inside the "
        "function given to `wl.limit` (there it is a number), or write `h.shape[-1]` "
        "for the width of an array h; in the shapes of parameters write linear forms: "
        "n, 4 * n, n // 4, n + m."
    )


def _apply(op: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if _WIDTHS.get() is not None:
        return op(number(left), number(right))
    symbol = left if isinstance(left, Number) else right
    return symbol._symbolic(op, left, right)


_NUMPY = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.floor_divide: operator.floordiv,
}


def whole(x: Any) -> bool:
    """Whether `x` is an integer, NumPy's included, and no truth value."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)
