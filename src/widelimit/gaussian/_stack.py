"""Pairs of atoms that differ by numbers alone, to be computed as one.

A function with many breaks has many atoms, and a pair of such functions has the square
of that many pairs. Nearly all of them have one structure: the same gate, the same
powers. Written out one by one they would compile for minutes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._form import Atom, Form

_FIELDS = ("alpha", "beta", "p", "q", "t", "w")


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Atoms of one structure.

    Attributes:
        structure: the atom if it is the only one; else one in which the numbers that
            the atoms may have are one, and those that none has are zero.
        numbers: shape (atoms, numbers that they may have), in the order of `atom`.
    """

    structure: Atom
    numbers: np.ndarray

    @property
    def count(self) -> int:
        """How many atoms there are."""
        return len(self.numbers)

    def atom(self, numbers: Any) -> Atom:
        """The atom with these numbers: a row of `numbers`, which may be traced."""
        one = self.structure
        if self.count == 1:
            return one
        values = iter([numbers[i] for i in range(self.numbers.shape[1])])
        fields = {k: next(values) if getattr(one, k) else 0.0 for k in _FIELDS}
        poly = tuple(next(values) if c else 0.0 for c in one.poly)
        return dataclasses.replace(one, poly=poly, **fields)


def alike(f: Form, g: Form) -> Iterator[tuple[Stack, Stack]]:
    """All pairs of an atom of `f` and one of `g`, in groups of one structure."""
    groups: dict[Any, list[tuple[Atom, Atom]]] = {}
    for x in f:
        for y in g:
            groups.setdefault(_structure(x, y), []).append((x, y))
    for pairs in groups.values():
        left, right = [x for x, _ in pairs], [y for _, y in pairs]
        moved = any(x.t for x in (*left, *right))
        yield _stack(left, moved), _stack(right, moved)


def _structure(x: Atom, y: Atom) -> Any:
    """What decides which formulas are used for a pair, whatever the numbers."""
    if x.omega or y.omega:
        # What oscillates is computed with complex numbers: one pair at a time.
        return x, y
    # Two gates at zero have formulas of their own: exact, and cheaper.
    return bool(x.t or y.t), *(
        (atom.gate, *(bool(getattr(atom, k)) for k in ("alpha", "beta", "p", "q")))
        for atom in (x, y)
    )


def _stack(atoms: Sequence[Atom], moved: bool) -> Stack:
    if len(atoms) == 1:
        return Stack(atoms[0], np.zeros((1, 0)))
    fields = {k: float(bool(getattr(atoms[0], k))) for k in _FIELDS}
    length = max(len(x.poly) for x in atoms)
    padded = [[*x.poly, *(0.0,) * (length - len(x.poly))] for x in atoms]
    rows = np.asarray(np.real(padded))
    filled = np.flatnonzero(np.any(rows, axis=0))
    structure = dataclasses.replace(
        atoms[0],
        poly=tuple(float(k in filled) for k in range(length)),
        **{**fields, "t": float(moved)},
    )
    numbers = np.array([[getattr(x, k) for k in _FIELDS] for x in atoms])
    used = [bool(getattr(structure, k)) for k in _FIELDS]
    return Stack(structure, np.hstack([numbers[:, used], rows[:, filled]]))
