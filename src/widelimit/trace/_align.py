"""Several concrete traces, aligned into one graph with symbolic sizes and scalars."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._errors import UnsupportedError
from .._jax import Atom, Equation, Graph, Literal, Var
from ._sizes import Extent, Scaled, Size, Solver, shape_text


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A captured array, with its wide axes (along which it is constant) at size one."""

    value: np.ndarray
    shape: tuple[Extent, ...]


def align(graphs: Sequence[Graph], solver: Solver) -> Graph:
    """One graph whose shapes, parameters and literals are functions of the widths.

    Sizes become `int` or `Size`; scalars that vary become `Scaled`; captured arrays
    become `Constant`.

    Raises:
        UnsupportedError: the program's structure depends on the width, with the first
            difference shown.
    """
    return _Aligner(solver).graph(graphs)


class _Aligner:
    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self._vars: dict[Var, Var] = {}

    def graph(self, graphs: Sequence[Graph]) -> Graph:
        counts = [len(g.equations) for g in graphs]
        if len(set(counts)) > 1:
            raise UnsupportedError(
                "The program's structure depends on the width: the traces at several "
                f"widths have {counts} equations. A loop or a condition in Python "
                f"reads the width; the first difference is {_difference(graphs)}."
            )
        inputs = tuple(
            self._var(vs, "") for vs in zip(*(g.inputs for g in graphs), strict=True)
        )
        constants = tuple(
            (
                self._var([v for v, _ in pairs], ""),
                self._array([c for _, c in pairs], ""),
            )
            for pairs in zip(*(g.constants for g in graphs), strict=True)
        )
        equations = tuple(
            self._equation(es)
            for es in zip(*(g.equations for g in graphs), strict=True)
        )
        outputs = tuple(
            self._atom(atoms, "")
            for atoms in zip(*(g.outputs for g in graphs), strict=True)
        )
        return Graph(inputs, constants, equations, outputs)

    def _equation(self, equations: Sequence[Equation]) -> Equation:
        first = equations[0]
        where = f", at {first.source}" if first.source else ""
        if len({e.name for e in equations}) > 1:
            raise UnsupportedError(
                "The program's structure depends on the width: the same step is "
                f"{' and '.join(dict.fromkeys(e.name for e in equations))} at "
                f"different widths{where}."
            )
        inputs = tuple(
            self._atom(a, where)
            for a in zip(*(e.inputs for e in equations), strict=True)
        )
        outputs = tuple(
            self._var(v, where)
            for v in zip(*(e.outputs for e in equations), strict=True)
        )
        params = {
            k: self._param([e.params[k] for e in equations], where)
            for k in first.params
        }
        return dataclasses.replace(first, inputs=inputs, outputs=outputs, params=params)

    def _var(self, variables: Sequence[Var], where: str) -> Var:
        first = variables[0]
        if first not in self._vars:
            self._vars[first] = Var(
                self._shape([v.shape for v in variables], where), first.dtype
            )
        return self._vars[first]

    def _atom(self, atoms: Sequence[Atom], where: str) -> Atom:
        if isinstance(atoms[0], Var):
            return self._vars[atoms[0]]
        values = [a.value for a in atoms if isinstance(a, Literal)]
        value = self._scalar(values, where)
        return Literal(value, (), atoms[0].dtype)

    def _scalar(self, values: Sequence[Any], where: str) -> Any:
        arrays = [np.asarray(v) for v in values]
        if all(
            np.array_equal(a, arrays[0], equal_nan=a.dtype.kind == "f") for a in arrays
        ):
            return values[0]
        return self._solver.scalar([float(a) for a in arrays], where)

    def _shape(
        self, shapes: Sequence[tuple[int, ...]], where: str
    ) -> tuple[Extent, ...]:
        if len({len(s) for s in shapes}) > 1:
            raise UnsupportedError(
                "The number of axes depends on the width: shapes "
                f"{list(shapes)}{where}."
            )
        return tuple(self._solver.extent(v, where) for v in zip(*shapes, strict=True))

    def _param(self, values: Sequence[Any], where: str) -> Any:
        first = values[0]
        if isinstance(first, Graph):
            return self.graph(values)
        if isinstance(first, bool) or first is None or isinstance(first, str):
            return first
        if isinstance(first, int | np.integer):
            return self._solver.extent([int(v) for v in values], where)
        if isinstance(first, tuple) and hasattr(first, "_fields"):
            return type(first)(
                *(self._param(v, where) for v in zip(*values, strict=True))
            )
        if isinstance(first, tuple | list):
            if len({len(v) for v in values}) > 1:
                raise UnsupportedError(
                    f"A parameter's length depends on the width{where}."
                )
            return tuple(self._param(v, where) for v in zip(*values, strict=True))
        if isinstance(first, np.ndarray):
            return self._array(values, where)
        return first

    def _array(self, values: Sequence[Any], where: str) -> Any:
        if not all(hasattr(v, "shape") for v in values):
            return values[0]
        if np.shape(values[0]) == ():
            return Constant(np.asarray(self._scalar_or_array(values, where)), ())
        shape = self._shape([tuple(np.shape(v)) for v in values], where)
        arrays = [np.asarray(v) for v in values]
        if any(isinstance(s, Size) for s in shape):
            arrays = [self._collapse(a, shape, where) for a in arrays]
        if not all(
            np.array_equal(a, arrays[0], equal_nan=a.dtype.kind == "f") for a in arrays
        ):
            raise UnsupportedError(
                f"An array of shape {shape_text(shape)} made by the function has "
                f"entries that change with the width{where}: only scalars may. "
                "Multiply by a scalar function of the width outside the array."
            )
        return Constant(arrays[0], shape)

    def _scalar_or_array(self, values: Sequence[Any], where: str) -> Any:
        value = self._scalar(values, where)
        return np.asarray(value, dtype=object) if isinstance(value, Scaled) else value

    def _collapse(
        self, array: np.ndarray, shape: tuple[Extent, ...], where: str
    ) -> np.ndarray:
        for axis, extent in enumerate(shape):
            if isinstance(extent, Size):
                head = np.take(array, [0], axis=axis)
                if not (array == head).all():
                    raise UnsupportedError(
                        f"A fixed array of shape {shape_text(shape)} varies along a "
                        f"wide axis{where}: in the limit its coordinates have no "
                        "meaning. Declare it as a parameter (`wl.normal`), or make it "
                        "constant along that axis."
                    )
                array = head
        return array


def _difference(graphs: Sequence[Graph]) -> str:
    for step, equations in enumerate(zip(*(g.equations for g in graphs), strict=False)):
        names = [e.name for e in equations]
        if len(set(names)) > 1:
            return f"at step {step}, {' against '.join(names)} ({equations[0].source})"
    shortest = min(graphs, key=lambda g: len(g.equations))
    longest = max(graphs, key=lambda g: len(g.equations))
    extra = longest.equations[len(shortest.equations)]
    return f"a further `{extra.name}` ({extra.source})"
