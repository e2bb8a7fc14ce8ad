"""Index maps as text: `2*i + k - 1`, `i // 4`, or a table `[3, 0, 1][i]`."""

import ast
from collections.abc import Mapping, Sequence

import numpy as np

from .._errors import ParseError
from ._lines import AxisMap

_LETTERS = "ijklpqrsuvwabcdefgh"


def letter_names(count: int) -> list[str]:
    """The first `count` index letters: i, j, k, l, p, .., then i1, j1, .."""
    n = len(_LETTERS)
    return [_LETTERS[i % n] + (str(i // n) if i >= n else "") for i in range(count)]


def map_text(m: AxisMap, size: int, names: Sequence[str]) -> str:
    """The text of one index map; `size` is that of the axis it reads."""
    table = m.table
    if not m.letters:
        return str(int(table))
    letters = [names[i] for i in m.letters]
    affine = _fit_affine(table, size)
    if affine is not None:
        return _affine_text(*affine, letters)
    return _fit_division(table, letters) or f"{table.tolist()}[{', '.join(letters)}]"


def _fit_affine(table: np.ndarray, size: int) -> tuple[list[int], int] | None:
    """Coefficients and constant whose values are the table, -1 where they leave."""
    inside = np.argwhere(table >= 0)
    if not len(inside):
        return None
    slopes = [_slope(np.moveaxis(table, a, 0)) for a in range(table.ndim)]
    first = inside[0]
    constant = int(table[tuple(first)]) - int(np.dot(slopes, first))
    grid = _grid(slopes, constant, table.shape)
    grid = np.where((grid < 0) | (grid >= size), -1, grid)
    return (slopes, constant) if np.array_equal(grid, table) else None


def fit_affine(table: np.ndarray, size: int) -> np.ndarray | None:
    """The values that an affine index has where the table says "outside", or None.

    Args:
        table: of an index into an axis.
        size: of the axis.
    """
    found = _fit_affine(table, size)
    return None if found is None else _grid(*found, table.shape)


def _slope(table: np.ndarray) -> int:
    both = (table[1:] >= 0) & (table[:-1] >= 0)
    steps = (table[1:] - table[:-1])[both]
    return int(steps[0]) if steps.size else 1


def _grid(slopes: list[int], constant: int, shape: tuple[int, ...]) -> np.ndarray:
    total = np.full(shape, constant, dtype=np.int64)
    for axis, (slope, size) in enumerate(zip(slopes, shape, strict=True)):
        steps = np.arange(size).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
        total = total + slope * steps
    return total


def _affine_text(slopes: list[int], constant: int, letters: list[str]) -> str:
    parts = []
    for slope, letter in zip(slopes, letters, strict=True):
        sign = "-" if slope < 0 else "+"
        parts.append((sign, letter if abs(slope) == 1 else f"{abs(slope)}*{letter}"))
    if constant:
        parts.append(("-" if constant < 0 else "+", str(abs(constant))))
    (sign, text), *rest = parts
    head = f"-{text}" if sign == "-" else text
    return head + "".join(f" {s} {t}" for s, t in rest)


def _fit_division(table: np.ndarray, letters: list[str]) -> str | None:
    """`i // c`, `i % c` or `i // c % d`, of one letter or of several in row order."""
    flat = table.ravel()
    if not flat.size or flat[0] != 0 or flat.min() < 0:
        return None
    strides = [int(np.prod(table.shape[a + 1 :])) for a in range(table.ndim)]
    inner = _affine_text(strides, 0, letters)
    inner = inner if len(letters) == 1 else f"({inner})"
    steps = np.arange(flat.size)
    changes = np.flatnonzero(flat)
    c = int(changes[0]) if len(changes) else flat.size
    d = int(flat.max()) + 1
    for values, text in (
        (steps // c, f"{inner} // {c}"),
        (steps % d, f"{inner} % {d}"),
        (steps // c % d, f"{inner} // {c} % {d}"),
    ):
        if np.array_equal(values, flat):
            return text
    return None


def parse_map(
    text: str, letters: Mapping[str, int], sizes: Sequence[int], size: int
) -> AxisMap:
    """The index map that `text` spells.

    Args:
        text: an integer expression of letters, or a literal table subscripted by them.
        letters: the number of every letter in scope.
        sizes: the size of every letter.
        size: the size of the axis that is read; values outside it read as zero.

    Raises:
        ParseError: the text is neither.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ParseError(f"`{text.strip()}` is not an index") from None
    used = sorted(
        {_letter(n, letters) for n in ast.walk(node) if isinstance(n, ast.Name)}
    )
    shape = tuple(sizes[i] for i in used)
    if isinstance(node, ast.Subscript):
        return AxisMap(tuple(used), _table(node, letters, used, shape))
    grids = {
        i: np.arange(sizes[i]).reshape([-1 if j == i else 1 for j in used])
        for i in used
    }
    values = np.broadcast_to(_evaluate(node, letters, grids), shape)
    if not used and not -1 <= int(values) < size:
        raise ParseError(f"index {int(values)} leaves an axis of size {size}")
    return AxisMap(tuple(used), np.where((values < 0) | (values >= size), -1, values))


def _letter(node: ast.Name, letters: Mapping[str, int]) -> int:
    if node.id not in letters:
        known = ", ".join(letters) or "none"
        raise ParseError(f"`{node.id}` is not an index letter here; known: {known}")
    return letters[node.id]


def _table(
    node: ast.Subscript,
    letters: Mapping[str, int],
    used: list[int],
    shape: tuple[int, ...],
) -> np.ndarray:
    slices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    order = [_letter(n, letters) for n in slices if isinstance(n, ast.Name)]
    if order != used or len(order) != len(slices):
        raise ParseError(
            f"`{ast.unparse(node)}`: a table is read at letters in their order"
        )
    try:
        table = np.array(ast.literal_eval(node.value), dtype=np.int64)
        return table.reshape(shape)
    except (ValueError, TypeError):
        raise ParseError(
            f"`{ast.unparse(node.value)}` is not a table of {shape}"
        ) from None


def _evaluate(
    node: ast.expr, letters: Mapping[str, int], grids: Mapping[int, np.ndarray]
) -> np.ndarray:
    match node:
        case ast.Constant(value=int() as v) if not isinstance(v, bool):
            return np.array(v, dtype=np.int64)
        case ast.Name(id=name):
            return grids[letters[name]]
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_evaluate(x, letters, grids)
        case ast.BinOp(left=x, op=op, right=y):
            a, b = _evaluate(x, letters, grids), _evaluate(y, letters, grids)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv() if np.all(b > 0):
                    return a // b
                case ast.Mod() if np.all(b > 0):
                    return a % b
    raise ParseError(
        f"`{ast.unparse(node)}` is not an index: write integers and letters with "
        "+ - * // %"
    )
