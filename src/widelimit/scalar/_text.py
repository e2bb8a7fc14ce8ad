"""Expressions as Python text: `0.5 * u * (1.0 + erf(0.7 * u))`, and back."""

import ast
import math
from collections.abc import Mapping, Sequence

from .._errors import ParseError
from ._expr import OPS, Arg, Call, Const, Expr

_BINARY = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}
_AST_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
}
# Names that are Python keywords as operations.
_SPELLED = {"and": "and_", "or": "or_", "not": "not_"}
_OPERATION = {v: k for k, v in _SPELLED.items()}


def to_text(expr: Expr, names: Sequence[str]) -> str:
    """`expr` as a Python expression in `names`; `parse` reads it back equal."""
    return _text(expr, names, 0)


def _text(expr: Expr, names: Sequence[str], level: int) -> str:
    match expr:
        case Arg(i):
            return names[i]
        case Const(value):
            text = number_text(value)
            return f"({text})" if text.startswith("-") and level > 0 else text
        case Call(op, (x, y)) if op in _BINARY:
            symbol, own = _BINARY[op]
            text = f"{_text(x, names, own)} {symbol} {_text(y, names, own + 1)}"
            return f"({text})" if own < level else text
        case Call("neg", (x,)):
            text = f"-{_text(x, names, 3)}"
            return f"({text})" if level > 0 else text
        case Call("pow", (x, y)):
            text = f"{_text(x, names, 4)}**{_text(y, names, 4)}"
            return f"({text})" if level > 3 else text
        case Call(op, args):
            inner = ", ".join(_text(a, names, 0) for a in args)
            return f"{_SPELLED.get(op, op)}({inner})"


def number_text(value: float) -> str:
    """The shortest text that reads back as the same float."""
    return repr(float(value)) if math.isfinite(value) else f"float('{value}')"


def parse(text: str, names: Mapping[str, int]) -> Expr:
    """The expression that `text` spells; `names` gives each argument its number.

    Raises:
        ParseError: the text is not an expression of known operations and names.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ParseError(f"`{text}` is not an expression: {error.msg}.") from None
    return from_ast(tree, names)


def from_ast(node: ast.expr, names: Mapping[str, int]) -> Expr:
    """The expression of a Python syntax tree."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return Const(float(value))
        case ast.Name(id=name) if name in names:
            return Arg(names[name])
        case ast.Name(id=name):
            raise ParseError(f"`{name}` is not defined before this line.")
        case ast.UnaryOp(
            op=ast.USub(), operand=ast.Constant(value=int() | float() as v)
        ):
            return Const(-float(v))
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return Call("neg", (from_ast(x, names),))
        case ast.BinOp(left=x, op=op, right=y) if type(op) in _AST_BINARY:
            return Call(_AST_BINARY[type(op)], (from_ast(x, names), from_ast(y, names)))
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as v)]):
            return Const(float(v))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return Call(
                _operation(name, len(args)), tuple(from_ast(a, names) for a in args)
            )
    raise ParseError(f"`{ast.unparse(node)}` is not part of the language of programs.")


def _operation(name: str, count: int) -> str:
    """The operation that the text calls `name`, of `count` arguments."""
    op = _OPERATION.get(name, name)
    if op not in OPS:
        raise ParseError(f"`{name}` is not an operation; known: {', '.join(OPS)}.")
    if count != OPS[op][0]:
        raise ParseError(f"`{name}` takes {OPS[op][0]} arguments, got {count}.")
    return op
