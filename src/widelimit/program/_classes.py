"""Common dimension classes (Yang 2019, appendix A)."""

from collections.abc import Iterable, Sequence

from ._lines import (
    LinComb,
    MatMul,
    Moment,
    Nonlin,
    Readout,
    Ref,
    Vector,
)
from ._program import TensorProgram, matrix_of

_Node = tuple[str, Ref]


def classes(
    program: TensorProgram, together: Iterable[Sequence[Ref]] = ()
) -> list[frozenset[str]]:
    """The vectors whose widths must be equal, whatever the widths are called.

    The smallest equivalence in which the vectors of one LinComb, Nonlin, Moment or
    Readout are together, all results of one matrix are together, and so are all its
    operands; the transpose of a matrix exchanges the two. Two declared widths of one
    name need not be one class.

    Args:
        program: the program.
        together: further lines to be put into one class, a constraint of the user.

    Returns:
        The classes as names of lines, in the order of their first lines.

    References:
        Yang (2019), https://arxiv.org/abs/1902.04760, appendix A.
    """
    parent: dict[_Node, _Node] = {}

    def root(node: _Node) -> _Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            node = parent[node]
        return node

    def join(nodes: Sequence[_Node]) -> None:
        for node in nodes[1:]:
            parent[root(node)] = root(nodes[0])

    for ref in range(len(program)):
        for group in _together(program, ref):
            join(group)
    for refs in together:
        join([("line", r) for r in refs])
    groups: dict[_Node, list[str]] = {}
    for ref, line in enumerate(program.lines):
        if isinstance(program.types[ref], Vector):
            groups.setdefault(root(("line", ref)), []).append(line.name)
    return [frozenset(names) for names in groups.values()]


def _together(program: TensorProgram, ref: Ref) -> list[list[_Node]]:
    """The vectors, and the sides of matrices, that one line puts together."""
    line, me = program.lines[ref], ("line", ref)
    match line:
        case MatMul():
            matrix, transposed = matrix_of(program.lines, line.matrix)
            rows, cols = ("cols", "rows") if transposed else ("rows", "cols")
            return [[me, (rows, matrix)], [("line", line.x), (cols, matrix)]]
        case LinComb() if isinstance(program.types[ref], Vector):
            return [[me, *(("line", t.x) for t in line.terms if t.x is not None)]]
        case Nonlin():
            return [[me, *(("line", x) for x in line.xs)]]
        case Moment():
            return [[("line", x) for x in line.xs]]
        case Readout():
            return [[("line", line.v), ("line", line.x)]]
        case _:
            return []
