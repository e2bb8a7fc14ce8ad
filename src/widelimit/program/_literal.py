"""Arrays, dimensions and parameters of primitives as text, and back."""

import ast
import re
from fractions import Fraction
from typing import Any

import numpy as np

from .._errors import ParseError
from ._lines import Array, Dim

_NAME = r"[^\W\d]\w*"
_MONOMIAL = re.compile(rf"(?:(-?\d+)\s*\*\s*)?({_NAME}(?:\*{_NAME})*)(?:\s*/\s*(\d+))?")


def array_text(array: Array) -> str:
    """Nested lists; with the type and shape where a list would not show them."""
    value = array.value
    text = str(value.tolist())
    if value.dtype == np.float64 and value.ndim and value.size:
        return text
    shape = "" if value.size else f", shape={value.shape}"
    return f"{value.dtype.name}({text}{shape})"


def parse_array(text: str) -> float | Array:
    """A number, or what `array_text` printed.

    Raises:
        ParseError: the text is neither.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        match node:
            case ast.List():
                return Array(np.array(_value(node), dtype=np.float64))
            case ast.Call(func=ast.Name(id=dtype), args=[data], keywords=keywords):
                array = np.array(_value(data), dtype=np.dtype(dtype))
                shapes = [
                    ast.literal_eval(k.value) for k in keywords if k.arg == "shape"
                ]
                return Array(array.reshape(shapes[0]) if shapes else array)
            case _:
                return float(_value(node))
    except (SyntaxError, ValueError, TypeError):
        raise ParseError(f"`{text.strip()}` is not a number or an array") from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items):
            return [_value(i) for i in items]
        case ast.Name(id="nan" | "inf" as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_value(x)
        case ast.Constant(value=int() | float() as v):
            return v
    raise ValueError(ast.unparse(node))


def parse_dim(text: str) -> Dim:
    """A dimension such as `n`, `3*n/4` or `m + n`.

    Raises:
        ParseError: the text is not a linear form in the names of widths.
    """
    terms: dict[str, Fraction] = {}
    for part in text.split("+"):
        found = _MONOMIAL.fullmatch(part.strip())
        if found is None:
            raise ParseError(
                f"`{text.strip()}` is not a width: write `n`, `n/4`, `2*n + m`"
            )
        times, name, over = found.groups()
        c = Fraction(int(times or 1), int(over or 1))
        terms[name] = terms.get(name, Fraction(0)) + c
    return Dim(tuple(sorted(terms.items())))


def param_text(value: Any) -> str:
    """The text of a parameter of a primitive; `<type>` where it has none."""
    if isinstance(value, np.dtype):
        return f"dtype({value.name!r})"
    try:
        text = repr(value)
        back = ast.literal_eval(text)
        if type(back) is type(value) and back == value and "\n" not in text:
            return text
    except (SyntaxError, ValueError, TypeError):
        pass
    return f"<{type(value).__name__}>"


def parse_param(text: str) -> Any:
    """What `param_text` printed.

    Raises:
        ParseError: the parameter has no text form, or the text is none.
    """
    text = text.strip()
    if text.startswith("<"):
        raise ParseError(
            f"a parameter {text} has no text form, so this program cannot be read back"
        )
    try:
        node = ast.parse(text, mode="eval").body
        match node:
            case ast.Call(
                func=ast.Name(id="dtype"), args=[ast.Constant(value=str(name))]
            ):
                return np.dtype(name)
        return ast.literal_eval(node)
    except (SyntaxError, ValueError, TypeError):
        raise ParseError(f"`{text}` is not a literal") from None
