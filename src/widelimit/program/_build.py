"""Write a tensor program by hand."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import scalar
from .._errors import InputError, InvalidProgramError, ShapeMismatchError
from ._arguments import array, rows, trace, what_it_is
from ._classes import classes
from ._function import canonical
from ._handles import Handle, number
from ._lines import (
    Array,
    AxisMap,
    Dim,
    LinComb,
    Line,
    MatIn,
    Moment,
    Nonlin,
    Ref,
    TensorArg,
    Term,
    VecIn,
)
from ._literal import parse_dim
from ._matrices import MatrixHandle, handle_of
from ._scalars import ScalarHandle
from ._simulate import Simulation, simulate
from ._source import at, caller
from ._store import Store
from ._vectors import Group, VectorHandle
from ._verify import check_covariance


class ProgramBuilder(Store):
    """A tensor program in the making.

    ```python
    p = ProgramBuilder()
    x = p.vector("x", "n")
    A = p.matrix("A", ("n", "n"), std=1.3)
    y = (A @ x).named("y")
    z = p.nonlin(jnp.tanh, y, name="z")
    t = p.moment(lambda u: u * u, z)
    w = (A.T @ z - t * x).named("w")
    values = p.simulate({"n": 1000}, jax.random.key(0), seeds=8)
    values["w"]  # (8, 1000)
    ```

    A linear combination or scalar arithmetic becomes one line when it is named, used,
    or when the program is read while a variable still holds it.
    """

    def vector(
        self, name: str, width: str | Dim, mean: float = 0.0, var: float = 1.0
    ) -> VectorHandle:
        """An input vector with coordinates iid N(mean, var).

        Raises:
            InputError: a bad name or width, or a negative variance.
        """
        mean = self._number(mean, f"the mean of `{name}`")
        var = self._number(var, f"the variance of `{name}`")
        if var < 0:
            raise InputError(
                f"The variance of `{name}` is {var}; a variance is at least 0 "
                f"(`var` is the square of the standard deviation).{at(caller())}"
            )
        line = VecIn(
            name=self._free(name),
            shape=(),
            dim=self._dim(width),
            mean=mean,
            std=math.sqrt(var),
            source=caller(),
        )
        return VectorHandle(self, self._append(line))

    def vectors(
        self,
        names: Mapping[str, tuple[int, ...] | int | None] | Sequence[str],
        width: str | Dim,
        mean: Any = 0.0,
        cov: Any = None,
    ) -> Group:
        """Jointly Gaussian input vectors, coordinates iid N(mean, cov).

        Args:
            names: the names in the order of `cov`; or a mapping from names to index
                shapes (() or None for a single vector), or to row numbers of `cov`.
            width: their common width.
            mean: a number, or one number per row.
            cov: the covariance, rows x rows; the identity when missing.

        Returns:
            The vectors: `x, y = p.vectors(..)`, or by name, `p.vectors(..)["x"]`.

        Raises:
            InputError: `cov` is not symmetric and positive semidefinite, a bad name.
            ShapeMismatchError: `mean` or `cov` does not fit the names.
        """
        cov = None if cov is None else array(cov, "cov")
        tables, k = rows(names, 0 if cov is None else len(np.atleast_1d(cov)))
        cov = np.eye(k) if cov is None else cov
        mean = array(mean, "mean")
        if cov.shape != (k, k) or mean.shape not in ((), (k,)):
            raise ShapeMismatchError(
                f"{len(tables)} names with {k} rows in all need `mean` of shape () or "
                f"({k},) and `cov` of shape ({k}, {k}), got {mean.shape} and "
                f"{cov.shape}."
                f"{at(caller())}"
            )
        check_covariance(cov, "`cov`", caller())
        for name in tables:
            self._free(name)
        family = VecIn(
            name="",
            shape=(k,),
            dim=self._dim(width),
            mean=Array(np.broadcast_to(mean, (k,))),
            cov=Array(cov),
            source=caller(),
        )
        ref = self._append(family, "v")
        return Group(self._select(ref, name, table) for name, table in tables.items())

    def _select(self, family: Ref, name: str, table: np.ndarray) -> VectorHandle:
        row = AxisMap(tuple(range(table.ndim)), table)
        line = LinComb(
            name=self._free(name),
            terms=(Term(family, maps=(row,)),),
            shape=table.shape,
            source=caller(),
        )
        return VectorHandle(self, self._append(line))

    def matrix(
        self, name: str, widths: tuple[str | Dim, str | Dim], std: float = 1.0
    ) -> MatrixHandle:
        """A random matrix, rows x columns, with entries iid N(0, std**2 / columns).

        Raises:
            InputError: a bad name or width, or a negative `std`.
        """
        if isinstance(widths, str) or len(widths) != 2:
            raise InputError(
                f"A matrix has two widths, (rows, columns) such as ('m', 'n'); "
                f"got {widths!r}.{at(caller())}"
            )
        std = self._number(std, f"the standard deviation of `{name}`")
        if std < 0:
            raise InputError(
                f"The standard deviation of `{name}` is {std}; it is at least 0."
                f"{at(caller())}"
            )
        line = MatIn(
            name=self._free(name),
            shape=(),
            rows=self._dim(widths[0]),
            cols=self._dim(widths[1]),
            std=std,
            source=caller(),
        )
        return MatrixHandle.of_line(self, self._append(line))

    def nonlin(
        self,
        f: Callable[..., Any] | scalar.Expr,
        *args: VectorHandle | ScalarHandle,
        name: str | None = None,
    ) -> VectorHandle:
        """H = f(x, y, .., t, ..), coordinate by coordinate.

        Args:
            f: a function of scalars, written with `jax.numpy`.
            *args: vectors of one width, and scalars, in the order of f's arguments.
            name: the name of the line; generated when missing.

        Raises:
            ShapeMismatchError: the vectors have different widths or index shapes.
            InvalidProgramError: an argument is a matrix, or none is a vector.
            UnsupportedError: `f` uses something that is not elementwise.
        """
        fn, xs, tensors = self._function(f, args, "nonlin")
        label = getattr(f, "__name__", "")
        line = Nonlin(
            name="" if name is None else self._free(name),
            fn=fn,
            xs=xs,
            tensors=tensors,
            label="" if label == "<lambda>" else label,
            source=caller(),
        )
        return VectorHandle(self, self._append(line, "h"))

    def moment(
        self,
        f: Callable[..., Any] | scalar.Expr,
        *args: VectorHandle | ScalarHandle,
        name: str | None = None,
    ) -> ScalarHandle:
        """T = (1/n) sum over coordinates of f(x, y, .., s, ..).

        Arguments and errors as for `nonlin`.
        """
        fn, xs, tensors = self._function(f, args, "moment")
        line = Moment(
            name="" if name is None else self._free(name),
            fn=fn,
            xs=xs,
            tensors=tensors,
            source=caller(),
        )
        return ScalarHandle(self, self._append(line, "t"))

    def map(
        self,
        f: Callable[..., Any] | scalar.Expr,
        *args: ScalarHandle,
        name: str | None = None,
    ) -> ScalarHandle:
        """A function of scalars: `p.map(jnp.sqrt, t)`.

        Raises:
            InvalidProgramError: an argument is not a scalar of this program.
            ShapeMismatchError: tensors of different shapes.
        """
        for a in args:
            if not isinstance(a, ScalarHandle):
                raise InvalidProgramError(
                    f"p.map takes scalars, got {what_it_is(a)}; vectors go into "
                    f"p.nonlin or p.moment.{at(caller())}"
                )
            self._own(a)
            self._same_shape(args[0], a)
        if not args:
            raise InvalidProgramError(f"p.map needs a scalar.{at(caller())}")
        result = ScalarHandle(
            self, None, trace(f, len(args)), tuple(a.ref for a in args)
        )
        return result if name is None else result.named(name)

    def append(self, line: Line) -> Handle:
        """Add a line as it is; an empty name is replaced by a generated one.

        Raises:
            InvalidProgramError: the line does not fit the program.
        """
        if line.name:
            self._free(line.name)
        return handle_of(self, self._append(line, "l"))

    def classes(
        self, together: Iterable[Sequence[Handle]] = ()
    ) -> list[frozenset[str]]:
        """The common dimension classes, as names of vectors; see `program.classes`.

        Args:
            together: groups of vectors that are to share a class as well.
        """
        refs = [[h.ref for h in group] for group in together]
        return classes(self.tensor_program, refs)

    def simulate(
        self,
        widths: Mapping[str, int],
        key: jax.Array,
        seeds: int = 1,
        inputs: Mapping[str, Any] | None = None,
    ) -> Simulation:
        """Run the program at finite widths; see `program.simulate`."""
        return simulate(self.tensor_program, widths, key, seeds, inputs)

    def __getitem__(self, name: str) -> Any:
        _ = self.tensor_program
        if name not in self._names:
            known = ", ".join(self._names) or "none"
            raise InputError(f"The program has no line `{name}`; its lines: {known}.")
        return handle_of(self, self._names[name])

    def __iter__(self) -> Iterator[Handle]:
        return iter([handle_of(self, ref) for ref in range(len(self))])

    def _dim(self, width: Any) -> Dim:
        if isinstance(width, Dim):
            return width
        if not isinstance(width, str):
            raise InputError(
                f"A width is named by a string, such as 'n' or 'n/4'; got {width!r}. "
                f"Numbers are given to `simulate`.{at(caller())}"
            )
        try:
            return parse_dim(width)
        except ValueError as error:
            raise InputError(f"{error}.{at(caller())}") from None

    def _number(self, value: Any, what: str) -> float:
        found = number(value, what)
        if found is None:
            raise InputError(f"{what} is a number, got {value!r}.{at(caller())}")
        return found

    def _function(
        self, f: Any, args: Sequence[Any], what: str
    ) -> tuple[scalar.Expr, tuple[Ref, ...], tuple[TensorArg, ...]]:
        """A traced function with its arguments in canonical order."""
        vectors: dict[int, VectorHandle] = {}
        scalars: dict[int, ScalarHandle] = {}
        for i, a in enumerate(args):
            if isinstance(a, VectorHandle) and a.dim is not None:
                vectors[i] = a
            elif isinstance(a, ScalarHandle):
                scalars[i] = a
            else:
                raise InvalidProgramError(
                    f"p.{what} takes vectors and scalars of the program, got "
                    f"{what_it_is(a)}."
                    f"{at(caller())}"
                )
            self._own(a)
        if not vectors:
            raise InvalidProgramError(
                f"p.{what} needs a vector; a function of scalars alone is p.map(f, t)."
                f"{at(caller())}"
            )
        first = next(iter(vectors.values()))
        for v in vectors.values():
            self._check_together(first, v, what)
        for t in scalars.values():
            if t.shape not in ((), first.shape):
                raise ShapeMismatchError(
                    f"{t._describe()} has shape {t.shape}, {first._describe()} "
                    f"has "
                    f"index shape {first.shape}.{at(caller())}"
                )
        order = [*vectors, *scalars]
        fn = scalar.substitute(
            trace(f, len(args)), [scalar.Arg(order.index(i)) for i in range(len(args))]
        )
        leaves = [
            TensorArg(t.ref, tuple(range(len(t.shape)))) for t in scalars.values()
        ]
        refs: list[Any] = [v.ref for v in vectors.values()]
        fn, xs, tensors = canonical(fn, refs, leaves)
        return fn, tuple(xs), tuple(tensors)

    def _check_together(self, a: VectorHandle, b: VectorHandle, what: str) -> None:
        if a.dim != b.dim or a.shape != b.shape:
            raise ShapeMismatchError(
                f"p.{what} acts coordinate by coordinate on vectors of one width: "
                f"{a._describe()} has width {a.dim} and index shape {a.shape}, "
                f"{b._describe()} has {b.dim} and {b.shape}."
                f"{self._made(a, b)}{at(caller())}"
            )
