"""Products of functions of Gaussian leaves, taken apart."""

import functools
from collections.abc import Iterable, Sequence

from ..scalar import Arg, Call, Const, Expr, call, substitute

ZERO = Const(0.0)


@functools.lru_cache(maxsize=8192)
def used(expr: Expr) -> frozenset[int]:
    """The argument numbers that `expr` reads."""
    match expr:
        case Arg(i):
            return frozenset((i,))
        case Const():
            return frozenset()
        case Call(_, args):
            return frozenset().union(*(used(a) for a in args))


def product_factors(expr: Expr) -> list[Expr]:
    """Factors whose product is `expr`."""
    match expr:
        case Call("mul", (x, y)):
            return product_factors(x) + product_factors(y)
        case Call("neg", (x,)):
            return [Const(-1.0), *product_factors(x)]
        case Call("div", (x, y)):
            inverse = [_inverse(f) for f in product_factors(y)]
            return [f for f in product_factors(x) if f != Const(1.0)] + inverse
        case Call("pow", (x, Const(n) as power)) if float(n).is_integer():
            parts = product_factors(x)
            return [expr] if len(parts) == 1 else [call("pow", f, power) for f in parts]
    return [expr]


def _inverse(factor: Expr) -> Expr:
    if isinstance(factor, Const) and factor.value != 0.0:
        return Const(1.0 / factor.value)
    return call("div", Const(1.0), factor)


def multiply(factors: Iterable[Expr]) -> Expr:
    """The product as one expression; its constants are collected."""
    number, rest = 1.0, []
    for f in factors:
        if isinstance(f, Const):
            number *= f.value
        else:
            rest.append(f)
    result: Expr | None = None
    for f in rest:
        result = f if result is None else call("mul", result, f)
    if result is None:
        return Const(number)
    return result if number == 1.0 else call("mul", Const(number), result)


def merge(
    factors: Sequence[Expr], d: int
) -> tuple[list[Expr], dict[int, Expr], list[Expr]]:
    """Sort a product of functions of `d` leaves by what they read.

    Returns:
        Factors of parameters only; one function of each leaf that enters alone; and
        the factors of several leaves.
    """
    constants: list[Expr] = []
    single: dict[int, list[Expr]] = {}
    joint: list[Expr] = []
    for f in (part for factor in factors for part in product_factors(factor)):
        leaves = [i for i in used(f) if i < d]
        if not leaves:
            constants.append(f)
        elif len(leaves) == 1:
            single.setdefault(leaves[0], []).append(f)
        else:
            joint.append(f)
    alone = {i: multiply(parts) for i, parts in sorted(single.items())}
    return constants, alone, joint


def as_function(f: Expr, d: int, params: int) -> Expr:
    """A function of one of `d` leaves, with that leaf as argument 0."""
    names: list[Expr] = [*[Arg(0)] * d, *(Arg(1 + i) for i in range(params))]
    return substitute(f, names)


def summands(expr: Expr) -> list[Expr]:
    """Terms whose sum is `expr`."""
    match expr:
        case Call("add", (x, y)):
            return summands(x) + summands(y)
        case Call("sub", (x, y)):
            return summands(x) + [call("neg", t) for t in summands(y)]
        case Call("neg", (x,)) if len(terms := summands(x)) > 1:
            return [call("neg", t) for t in terms]
    return [expr]
