"""Whether a function jumps along one of its arguments.

A function without jumps has a derivative that is a function; that of one with jumps
has delta functions too, which `differentiate` leaves out.
"""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from .._jax import enable_x64
from ..scalar import Arg, Call, Const, Expr, arity, call, evaluate
from ._factors import used

_STEPS = frozenset(
    "lt le gt ge eq ne and or xor not is_finite sign floor ceil round rem".split()
)
_SETTINGS = 24
_TOLERANCE = 1e-9
_PARTS = np.linspace(0.0, 1.0, 65)
_ROUNDS = 11


@functools.lru_cache(maxsize=4096)
def may_jump(f: Expr, index: int, nonnegative: frozenset[int] = frozenset()) -> bool:
    """Whether `f` jumps along argument `index`, for some values of the others.

    Every comparison, sign and the like that reads the argument is followed along it,
    at random values of the others; where it changes, the limits of `f` on both sides
    are compared.

    What is assumed: a jump is met at one of 24 settings of the other arguments and
    within 10^4 of zero, and two changes of one comparison are not closer than 1/16.

    Args:
        f: the function.
        index: the argument along which it is followed.
        nonnegative: other arguments that are known to be at least 0.
    """
    found = list(dict.fromkeys(s for s in _steps(f) if index in used(s)))
    if not found:
        return False
    rng = np.random.default_rng(0)
    others = rng.standard_normal((arity(f), _SETTINGS, 1)) * 1.3
    for i in nonnegative:
        others[i] = np.abs(others[i])
    return any(_jumps_at(f, step, index, others) for step in found)


def _jumps_at(f: Expr, step: Expr, index: int, others: np.ndarray) -> bool:
    grid = _grid()[None, :]
    x = np.broadcast_to(grid, (others.shape[1], grid.size))
    with np.errstate(all="ignore"):
        values = _values(step, index, x, others)
        row, at = np.nonzero(values[:, :-1] != values[:, 1:])
        if not row.size:
            return False
        # Few lengths of arrays: JAX compiles every operation once a length.
        length = 1 << max(6, int(row.size - 1).bit_length())
        row, at = np.resize(row, length), np.resize(at, length)
        low, high = x[row, at], x[row, at + 1]
        left, rest = values[row, at, None], others[:, row]
        for _ in range(_ROUNDS):
            # Each round keeps the first of equal parts in which the step changes.
            points = low[:, None] + (high - low)[:, None] * _PARTS
            points[:, -1] = high
            changed = _values(step, index, points, rest) != left
            first = np.maximum(np.argmax(changed, axis=1), 1)
            low = np.take_along_axis(points, first[:, None] - 1, 1)[:, 0]
            high = np.take_along_axis(points, first[:, None], 1)[:, 0]
        ends = _values(f, index, np.stack([low, high], axis=1), rest)
        a, b = ends.T
        small = np.abs(a - b) <= _TOLERANCE * (1.0 + np.abs(a) + np.abs(b))
    # A value that is not finite on a side is no limit: NaN compares as a jump.
    return not bool(np.all(small))


def _values(e: Expr, index: int, x: np.ndarray, others: np.ndarray) -> np.ndarray:
    args: list[np.ndarray] = list(others)
    args[index] = x
    with jax.ensure_compile_time_eval(), enable_x64():
        value = np.asarray(evaluate(e, args), np.float64)
    return np.broadcast_to(value, np.broadcast_shapes(x.shape, value.shape))


def _grid() -> np.ndarray:
    far = 12.0 * 1.03 ** np.arange(1, 228)
    # The offset keeps the usual places (0, 1, 6, ..) off the points of the grid.
    near = np.arange(-192, 193) / 16.0 + 1.7e-3
    return np.concatenate([-far[::-1], near, far])


def _steps(e: Expr) -> Iterator[Expr]:
    """The parts of an expression that take finitely many values between jumps."""
    match e:
        case Call("select", (Call("ne", (p, q)), value, _)) if p == q:
            # A guard that lets NaN through; elsewhere it is `value`.
            yield from _steps(value)
        case Call("rem", (x, y)):
            yield call("floor", call("div", x, y))
            yield from _steps(x)
            yield from _steps(y)
        case Call(op, args):
            if op in _STEPS:
                yield e
            if op == "select":
                yield call("ne", args[0], Const(0.0))
            for a in args:
                yield from _steps(a)
        case Arg() | Const():
            pass
