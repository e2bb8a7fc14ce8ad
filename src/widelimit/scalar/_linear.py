"""Expressions that are linear in an argument."""

from ._expr import Arg, Call, Const, Expr, call


def linear_factor(expr: Expr, index: int) -> Expr | None:
    """What an expression multiplies argument `index` with; None if it is not linear."""
    match expr:
        case Arg(i) if i == index:
            return Const(1.0)
        case Call("neg", (x,)):
            g = linear_factor(x, index)
            return None if g is None else call("neg", g)
        case Call("add" | "sub" as op, (x, y)):
            f, g = linear_factor(x, index), linear_factor(y, index)
            return None if f is None or g is None else call(op, f, g)
        case Call("mul", (x, y)):
            f, g = linear_factor(x, index), linear_factor(y, index)
            if f is not None and not _reads(y, index):
                return call("mul", f, y)
            return call("mul", x, g) if g is not None and not _reads(x, index) else None
        case Call("div", (x, y)):
            f = linear_factor(x, index)
            return None if f is None or _reads(y, index) else call("div", f, y)
    return None


def _reads(expr: Expr, index: int) -> bool:
    match expr:
        case Arg(i):
            return i == index
        case Call(_, args):
            return any(_reads(a, index) for a in args)
    return False
