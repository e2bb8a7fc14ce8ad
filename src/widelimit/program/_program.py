"""The tensor program: lines in order, each with a type; and its verifier."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import assert_never

from ..scalar import Expr, arity
from ._lines import (
    Array,
    Constant,
    Dim,
    Elementwise,
    LinComb,
    Line,
    Map,
    MatIn,
    MatMul,
    Matrix,
    Moment,
    Nonlin,
    Output,
    Ratio,
    Readout,
    Ref,
    Regression,
    Tensor,
    TensorArg,
    Transpose,
    Type,
    VecIn,
    Vector,
    check,
    common_dim,
    prod,
)
from ._regression import block_index

Types = Sequence[Type]


@dataclasses.dataclass(frozen=True)
class TensorProgram:
    """A straight-line program; equal programs have equal lines and outputs.

    Attributes:
        lines: in order; a line refers to earlier ones by position.
        outputs: the lines that the program returns.
        taps: names given by the user to lines.
    """

    lines: tuple[Line, ...]
    outputs: tuple[Ref, ...] = ()
    taps: tuple[tuple[str, Ref], ...] = ()
    types: tuple[Type, ...] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        types: list[Type] = []
        for line in self.lines:
            types.append(type_of(line, types))
        object.__setattr__(self, "types", tuple(types))

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        from ._text import to_text

        return to_text(self)


def operands(line: Line) -> tuple[Ref, ...]:
    """The earlier lines that a line reads."""
    match line:
        case VecIn(std=TensorArg(ref=ref)) | MatIn(std=TensorArg(ref=ref)):
            return (ref,)
        case VecIn() | MatIn():
            return ()
        case Transpose():
            return (line.matrix,)
        case MatMul():
            return (line.matrix, line.x)
        case LinComb():
            return tuple(
                r
                for t in line.terms
                for r in (
                    (() if t.x is None else (t.x,)) + tuple(a.ref for a in t.tensors)
                )
            )
        case Nonlin() | Moment():
            return line.xs + tuple(a.ref for a in line.tensors)
        case Map():
            return line.args
        case Readout():
            return (line.v, line.x)
        case _:
            assert_never(line)


def ancestors(lines: Sequence[Line], *refs: Ref) -> set[Ref]:
    """Lines, and all that they depend on."""
    found: set[Ref] = set()
    todo = [*refs]
    while todo:
        ref = todo.pop()
        if ref not in found:
            found.add(ref)
            todo += operands(lines[ref])
    return found


def coordinatewise(lines: Sequence[Line], ref: Ref) -> set[Ref]:
    """A vector, and all that it is a function of coordinate by coordinate."""
    found: set[Ref] = set()
    todo = [ref]
    while todo:
        ref = todo.pop()
        if ref in found:
            continue
        found.add(ref)
        match lines[ref]:
            case LinComb() as line:
                todo += [t.x for t in line.terms if t.x is not None]
            case Nonlin() as line:
                todo += line.xs
    return found


def matrix_of(lines: Sequence[Line], ref: Ref) -> tuple[Ref, bool]:
    """The MatIn line under a matrix line, and whether that is its transpose."""
    transposed = False
    while isinstance(line := lines[ref], Transpose):
        ref, transposed = line.matrix, not transposed
    return ref, transposed


def type_of(line: Line, types: Types) -> Type:
    """The type of a line, given the types of the earlier ones.

    Raises:
        InvalidProgramError: the operands do not fit.
    """
    for ref in operands(line):
        check(0 <= ref < len(types), line, f"reads line {ref}, which is not earlier")
    match line:
        case VecIn():
            return _vecin_type(line, types)
        case MatIn():
            _check_std(line, line.std, types)
            return Matrix(line.shape, line.rows, line.cols)
        case Transpose():
            m = types[line.matrix]
            check(isinstance(m, Matrix), line, "only a matrix has a transpose")
            assert isinstance(m, Matrix)
            return Matrix(m.shape, m.cols, m.rows)
        case MatMul() | Readout():
            return _product_type(line, types)
        case LinComb():
            return _lincomb_type(line, types)
        case Nonlin():
            shape, dim = _function_type(line, types)
            return Vector(shape, dim, "H")
        case Moment():
            return Tensor(_function_type(line, types)[0])
        case Map():
            return _map_type(line, types)
        case _:
            assert_never(line)


def _product_type(line: MatMul | Readout, types: Types) -> Type:
    left, x = types[line.matrix if isinstance(line, MatMul) else line.v], types[line.x]
    kind, what = (
        (Matrix, "a matrix and a vector")
        if isinstance(line, MatMul)
        else (Vector, "two vectors")
    )
    ok = isinstance(left, kind) and isinstance(x, Vector)
    check(ok, line, f"needs {what}, got {_kind(left)} and {_kind(x)}")
    assert isinstance(left, Matrix | Vector)
    assert isinstance(x, Vector)
    takes = left.cols if isinstance(left, Matrix) else left.dim
    message = f"{_kind(left)} takes width {takes}, the vector has {x.dim}"
    check(takes == x.dim, line, message)
    _check_letters(line, line.letters, left.shape, line.shape + line.sums)
    _check_maps(line, line.maps, x.shape, line.shape + line.sums)
    return (
        Vector(line.shape, left.rows, "G")
        if isinstance(left, Matrix)
        else (Output(line.shape))
    )


def _vecin_type(line: VecIn, types: Types) -> Type:
    _check_std(line, line.std, types)
    if isinstance(line.mean, Array):
        shape = line.mean.value.shape
        check(
            shape == line.shape, line, f"its mean has shape {shape}, not {line.shape}"
        )
    if line.cov is not None:
        shape, twice = line.cov.value.shape, line.shape + line.shape
        check(shape == twice, line, f"its cov has shape {shape}, not {twice}")
    if line.dim is None:
        return Output(line.shape)
    return Vector(line.shape, line.dim, "G")


def _check_std(line: Line, std: float | TensorArg, types: Types) -> None:
    if isinstance(std, TensorArg):
        t = types[std.ref]
        ok = isinstance(t, Tensor) and prod(t.shape) == 1
        check(ok, line, f"its std is a scalar, got {_kind(t)}")


def _function_type(line: Nonlin | Moment, types: Types) -> tuple[tuple[int, ...], Dim]:
    check(bool(line.xs), line, "has no vector")
    dim = _common_dim(line, line.xs, types)
    shapes = {t.shape for r in line.xs if isinstance(t := types[r], Vector)}
    check(len(shapes) == 1, line, f"its vectors have index shapes {shapes}")
    shape = shapes.pop()
    _check_tensors(line, line.tensors, types, shape)
    _check_arity(line, line.fn, len(line.xs) + len(line.tensors))
    return shape, dim


def _map_type(line: Map, types: Types) -> Type:
    for ref in line.args:
        t = types[ref]
        check(isinstance(t, Tensor), line, f"a map takes tensors, got {_kind(t)}")
    match line.op:
        case Ratio():
            check(line.shape == () and not line.args, line, "a ratio is a scalar")
        case Constant(value):
            ok = value.value.shape == line.shape
            check(
                ok, line, f"the array has shape {value.value.shape}, not {line.shape}"
            )
        case Elementwise(fn, letters):
            ok = len(letters) == len(line.args)
            check(ok, line, "needs the letters of every tensor")
            args = tuple(map(TensorArg, line.args, letters))
            _check_tensors(line, args, types, line.shape)
            _check_arity(line, fn, len(args))
        case Regression():
            _check_regression(line, line.op, [types[r].shape for r in line.args])
    return Tensor(line.shape)


def _check_regression(
    line: Map, op: Regression, given: Sequence[tuple[int, ...]]
) -> None:
    count = op.blocks
    needed = count * (count + 1) // 2 + count
    ok = 0 <= op.part < count and len(given) == needed
    check(ok, line, f"{count} blocks need {needed} tensors and a part below {count}")
    squares = [given[block_index(k, k, count)] for k in range(count)]
    shapes = [s[: len(s) // 2] for s in squares]
    tail = given[-count][len(shapes[0]) :]
    for k in range(count):
        for m in range(k, count):
            shape, wanted = given[block_index(k, m, count)], shapes[k] + shapes[m]
            message = f"block ({k}, {m}) has shape {shape}, not {wanted}"
            check(shape == wanted, line, message)
        shape, wanted = given[k - count], shapes[k] + tail
        check(shape == wanted, line, f"block b[{k}] has shape {shape}, not {wanted}")
    wanted = shapes[op.part] + tail
    check(line.shape == wanted, line, f"its shape is {line.shape}, not {wanted}")


def _check_arity(line: Line, fn: Expr, given: int) -> None:
    needed = arity(fn)
    check(needed <= given, line, f"its function reads {needed} arguments, got {given}")


def _lincomb_type(line: LinComb, types: Types) -> Type:
    kinds: list[Vector | Output] = []
    for term in line.terms:
        sizes = line.shape + term.sums
        _check_tensors(line, term.tensors, types, sizes)
        if term.x is None:
            continue
        x = types[term.x]
        check(
            isinstance(x, Vector | Output),
            line,
            f"a linear combination takes vectors, got {_kind(x)}",
        )
        assert isinstance(x, Vector | Output)
        _check_maps(line, term.maps, x.shape, sizes)
        kinds.append(x)
    check(bool(kinds), line, "has no vector")
    if all(isinstance(k, Output) for k in kinds):
        return Output(line.shape)
    vectors = [k for k in kinds if isinstance(k, Vector)]
    check(len(vectors) == len(kinds), line, "mixes wide vectors and finite outputs")
    dim = _dim(line, vectors)
    kind = "G" if all(v.kind == "G" and v.dim == dim for v in vectors) else "H"
    return Vector(line.shape, dim, kind)


def _common_dim(line: Line, refs: tuple[Ref, ...], types: Types) -> Dim:
    for ref in refs:
        check(
            isinstance(types[ref], Vector),
            line,
            f"takes vectors, got {_kind(types[ref])}",
        )
    return _dim(line, [t for r in refs if isinstance(t := types[r], Vector)])


def _dim(line: Line, vectors: Sequence[Vector]) -> Dim:
    dims = dict.fromkeys(v.dim for v in vectors)
    dim = common_dim(dims)
    check(dim is not None, line, f"its vectors have widths {', '.join(map(str, dims))}")
    assert dim is not None
    return dim


def _check_maps(
    line: Line, maps: tuple, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    ok = len(maps) == len(shape)
    check(ok, line, f"needs {len(shape)} index maps, got {len(maps)}")
    for m, size in zip(maps, shape, strict=True):
        ordered = list(m.letters) == sorted(set(m.letters))
        known = all(0 <= i < len(sizes) for i in m.letters)
        check(ordered and known, line, f"an index map has the letters {m.letters}")
        fits = m.table.shape == tuple(sizes[i] for i in m.letters)
        check(fits, line, "an index map does not fit its letters")
        inside = m.table.size == 0 or (m.table.max() < size and m.table.min() >= -1)
        check(inside, line, f"an index leaves the axis of size {size}")


def _check_tensors(
    line: Line,
    tensors: tuple[TensorArg, ...],
    types: Types,
    sizes: tuple[int, ...],
) -> None:
    for arg in tensors:
        t = types[arg.ref]
        check(isinstance(t, Tensor), line, f"a coefficient is a tensor, got {_kind(t)}")
        assert isinstance(t, Tensor)
        _check_letters(line, arg.letters, t.shape, sizes)


def _check_letters(
    line: Line, letters: tuple[int, ...], shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    known = all(-1 <= i < len(sizes) for i in letters)
    check(known, line, f"reads the letters {letters}, but has {len(sizes)}")
    read = tuple(1 if i < 0 else sizes[i] for i in letters)
    check(shape == read, line, f"an index shape {shape} is read as {read}")


def _kind(t: Type) -> str:
    match t:
        case Tensor():
            return f"a tensor of shape {t.shape}"
        case Vector():
            return f"a vector of width {t.dim}"
        case Matrix():
            return f"a matrix of {t.rows} x {t.cols}"
        case Output():
            return "a finite output"
        case _:
            assert_never(t)
