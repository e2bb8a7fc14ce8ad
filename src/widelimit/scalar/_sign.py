"""Which expressions are at least zero wherever they are defined."""

from collections.abc import Sequence

from ._expr import Arg, Call, Const, Expr

_ALWAYS = frozenset(
    "abs exp exp2 sqrt rsqrt cosh acos acosh logistic erfc is_finite "
    "lt le gt ge eq ne and or xor not".split()
)
# The branches of a select are its last two arguments.
_IF_ALL = frozenset(
    "add mul div min select cbrt sign floor ceil round asin atan sinh tanh asinh atanh "
    "erf erf_inv expm1 log1p".split()
)


def is_nonnegative(expr: Expr, arguments: Sequence[bool]) -> bool:
    """Whether `expr` is known to have no negative value.

    Args:
        expr: the expression.
        arguments: for every argument whether it is known to be at least 0.
    """

    def known(e: Expr) -> bool:
        return is_nonnegative(e, arguments)

    match expr:
        case Arg(i):
            return arguments[i]
        case Const(value):
            return value >= 0.0
        case Call("pow", (x, Const(n))):
            return known(x) or (float(n).is_integer() and n % 2 == 0)
        case Call("mul" | "div", (x, y)) if x == y:
            return True
        case Call(op, args):
            if op in _IF_ALL:
                return all(known(a) for a in args[-2:])
            return op in _ALWAYS or (op == "max" and any(known(a) for a in args))
