"""One draw of a program at given widths."""

import math
import zlib
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax, scalar
from .._errors import InvalidProgramError
from ._lines import (
    Array,
    AxisMap,
    Constant,
    Elementwise,
    Input,
    LinComb,
    Line,
    Map,
    MatIn,
    MatMul,
    Matrix,
    Moment,
    Nonlin,
    Primitive,
    Ratio,
    Readout,
    Ref,
    Regression,
    TensorArg,
    Term,
    Transpose,
    Type,
    VecIn,
    Vector,
    common_dim,
)
from ._program import TensorProgram
from ._regression import regress
from ._source import at


def dims(t: Type) -> tuple[Any, ...]:
    match t:
        case Vector():
            return (t.dim,)
        case Matrix():
            return (t.rows, t.cols)
        case _:
            return ()


class Run:
    """One draw of a program at given widths."""

    def __init__(
        self, program: TensorProgram, sizes: dict[str, int], data: dict[str, jax.Array]
    ) -> None:
        self.program = program
        self.types = program.types
        self.sizes = sizes
        self.data = data
        self.dtype = jnp.result_type(float)

    @property
    def bytes(self) -> int:
        """The memory of all values of one draw."""
        entries = sum(
            math.prod(t.shape) * math.prod(d.size(self.sizes) for d in dims(t))
            for line, t in zip(self.program.lines, self.types, strict=True)
            if not isinstance(line, Transpose)
        )
        return entries * self.dtype.itemsize

    def values(self, key: jax.Array) -> dict[Ref, jax.Array]:
        """Every line that is not a matrix."""
        self.key = key
        self.env: dict[Ref, Any] = {}
        for ref, line in enumerate(self.program.lines):
            self.env[ref] = self.value(line, self.types[ref])
        return {
            ref: value
            for ref, value in self.env.items()
            if not isinstance(self.types[ref], Matrix)
        }

    def value(self, line: Line, t: Type) -> Any:
        match line:
            case VecIn():
                return self.vecin(line, t)
            case MatIn():
                rows, cols = line.rows.size(self.sizes), line.cols.size(self.sizes)
                draw = self.normal(line, (*line.shape, rows, cols))
                return draw * (self.std(line.std) / math.sqrt(cols))
            case Transpose():
                return jnp.swapaxes(self.env[line.matrix], -1, -2)
            case MatMul():
                letters = line.shape + line.sums
                x = gather(self.env[line.x], line.maps, letters, 1)
                return self.product(line.matrix, line.letters, x, line, "RC", "C", "R")
            case Readout():
                letters = line.shape + line.sums
                x = gather(self.env[line.x], line.maps, letters, 1)
                total = self.product(line.v, line.letters, x, line, "C", "C", "")
                return total / math.sqrt(x.shape[-1])
            case LinComb():
                return self.lincomb(line, t)
            case Nonlin():
                value = self.function(line.fn, line.xs, line.tensors, t)
                return jnp.broadcast_to(value, self.shape(t))
            case Moment():
                dim = common_dim(d for x in line.xs for d in dims(self.types[x]))
                assert dim is not None
                whole = Vector(t.shape, dim, "H")
                value = self.function(line.fn, line.xs, line.tensors, whole)
                return jnp.mean(jnp.broadcast_to(value, self.shape(whole)), axis=-1)
            case Map():
                return self.map(line)
            case _:
                assert_never(line)

    def shape(self, t: Type) -> tuple[int, ...]:
        return t.shape + tuple(d.size(self.sizes) for d in dims(t))

    def normal(self, line: VecIn | MatIn, shape: tuple[int, ...]) -> jax.Array:
        key = jax.random.fold_in(self.key, zlib.crc32(line.name.encode()))
        return jax.random.normal(key, shape, self.dtype)

    def std(self, std: float | TensorArg) -> Any:
        if isinstance(std, TensorArg):
            return jnp.reshape(self.env[std.ref], ())
        return std

    def vecin(self, line: VecIn, t: Type) -> jax.Array:
        draw = self.normal(line, self.shape(t))
        wide = (slice(None),) * len(line.shape) + (None,) * len(dims(t))
        if line.cov is not None:
            k = math.prod(line.shape)
            root = _root(np.asarray(line.cov.value, float).reshape(k, k))
            flat = jnp.asarray(root, self.dtype) @ draw.reshape(k, -1)
            draw = flat.reshape(draw.shape)
        else:
            draw = draw * self.std(line.std)
        if isinstance(line.mean, Array):
            mean = np.broadcast_to(line.mean.value, line.shape)
            return draw + jnp.asarray(mean, self.dtype)[wide]
        return draw + line.mean

    def product(
        self,
        ref: Ref,
        at: tuple[int, ...],
        x: jax.Array,
        line: MatMul | Readout,
        left: str,
        right: str,
        result: str,
    ) -> jax.Array:
        """Contract a family of matrices or vectors with `x` over the wide axis."""
        letters = len(line.shape) + len(line.sums)
        axes = {"R": letters, "C": letters + 1}
        family, kept = _drop_single(self.env[ref], at)
        return jnp.einsum(
            family,
            [*kept, *(axes[a] for a in left)],
            x,
            [*range(letters), *(axes[a] for a in right)],
            [*range(len(line.shape)), *(axes[a] for a in result)],
            precision="highest",
        )

    def lincomb(self, line: LinComb, t: Type) -> jax.Array:
        total: Any = 0.0
        for term in line.terms:
            value = self.term(term, line.shape, t)
            total = total + (value if term.scale == 1.0 else term.scale * value)
        return total

    def term(self, term: Term, shape: tuple[int, ...], t: Type) -> jax.Array:
        """One term of a linear combination, without its scale."""
        sizes, wide = shape + term.sums, self.shape(t)[len(shape) :]
        if term.x is None:
            x = jnp.ones((*sizes, *wide), self.dtype)
        else:
            x = self.repeated(term.x, t)
            x = gather(x, term.maps, sizes, len(wide))
        if not term.tensors and not term.sums:
            return x
        n = len(sizes)
        tail = list(range(n, n + len(wide)))
        operands: list[Any] = []
        for arg in term.tensors:
            operands += _drop_single(self.env[arg.ref], arg.letters)
        out = [*range(len(shape)), *tail]
        return jnp.einsum(*operands, x, [*range(n), *tail], out, precision="highest")

    def function(
        self,
        fn: scalar.Expr,
        xs: tuple[Ref, ...],
        tensors: tuple[TensorArg, ...],
        t: Type,
    ) -> jax.Array:
        args = [self.repeated(x, t) for x in xs]
        args += [
            spread(self.env[a.ref], a.letters, len(t.shape))[..., None] for a in tensors
        ]
        return jnp.asarray(scalar.evaluate(fn, args), self.dtype)

    def repeated(self, x: Ref, t: Type) -> jax.Array:
        """A vector at every coordinate of a dimension that its own one covers."""
        value, (own, dim) = self.env[x], (dims(self.types[x]), dims(t))
        if own == dim or not dim:
            return value
        rest = dim[0].over(own[0])
        assert rest is not None
        times = rest.size(self.sizes)
        # Coordinates of a product are counted in the order of its names.
        if own[0].terms[0][0] < rest.terms[0][0]:
            return jnp.repeat(value, times, axis=-1)
        return jnp.tile(value, (*(1,) * (value.ndim - 1), times))

    def map(self, line: Map) -> jax.Array:
        match line.op:
            case Input(key):
                return self.data[key]
            case Constant(value):
                return jnp.asarray(value.value)
            case Elementwise(fn, letters):
                args = [
                    spread(self.env[r], at, len(line.shape))
                    for r, at in zip(line.args, letters, strict=True)
                ]
                value = scalar.evaluate(fn, args)
                return jnp.broadcast_to(jnp.asarray(value, self.dtype), line.shape)
            case Ratio(over, under):
                ratio = over.size(self.sizes) / under.size(self.sizes)
                return jnp.asarray(ratio, self.dtype)
            case Primitive():
                return self.primitive(line, line.op)
            case Regression(part, blocks):
                return regress(part, blocks, [self.env[r] for r in line.args])
            case _:
                assert_never(line.op)

    def primitive(self, line: Map, op: Primitive) -> jax.Array:
        if op.equation is None:
            raise InvalidProgramError(
                f"Line `{line.name}` applies the JAX primitive `{op.name}`, but this "
                "program was read from text, which does not hold the primitive itself. "
                f"Simulate the program that was printed.{at(line.source)}"
            )
        results = _jax.bind(op.equation, [self.env[r] for r in line.args])
        if len(results) != 1:
            raise InvalidProgramError(
                f"Line `{line.name}`: the primitive `{op.name}` has {len(results)} "
                f"results, a line has one.{at(line.source)}"
            )
        return results[0]


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _drop_single(array: Any, letters: tuple[int, ...]) -> tuple[Any, list[int]]:
    """Without the axes of size one that follow no letter."""
    single = tuple(i for i, letter in enumerate(letters) if letter < 0)
    kept = [letter for letter in letters if letter >= 0]
    return (jnp.squeeze(array, single) if single else array), kept


def spread(array: Any, letters: tuple[int, ...], rank: int) -> Any:
    """A tensor read at letters, as an array that broadcasts over `rank` letters."""
    array, kept = _drop_single(array, letters)
    distinct = sorted(set(kept))
    array = jnp.einsum(array, kept, distinct)
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if i in distinct else 1 for i in range(rank)])


def gather(
    x: Any, maps: tuple[AxisMap, ...], sizes: tuple[int, ...], wide: int
) -> jax.Array:
    """`x` read at index maps: one axis per letter, then `wide` wide axes."""
    tail = x.shape[len(maps) :]
    identity = len(maps) == len(sizes) and all(
        m.letters == (i,) and m.is_identity for i, m in enumerate(maps)
    )
    if identity and x.shape[: len(maps)] == sizes:
        return x
    if not maps:
        return jnp.broadcast_to(x, sizes + tail)
    tables = np.broadcast_arrays(
        np.zeros(sizes, np.int64),
        *(
            m.table.reshape(
                [sizes[i] if i in m.letters else 1 for i in range(len(sizes))]
            )
            for m in maps
        ),
    )[1:]
    outside = np.any([t < 0 for t in tables], axis=0)
    values = x[tuple(np.maximum(t, 0) for t in tables)]
    if not outside.any():
        return values
    return jnp.where(outside.reshape(sizes + (1,) * wide), 0, values)
