"""The layout of a wide axis: which blocks it is made of, and in which order.

A wide axis is a term: an `Atom`, a row of axes one after another (`Row`), or `count`
copies of an axis with the copy number outermost (`Major`) or innermost (`Minor`).
`x.reshape(N, heads, -1)` says that an axis is `Major(heads, ..)`; adding two vectors
says that their axes are laid out alike. These facts are unified as types are in a
functional language, and reach the parameters, whose axes then fall into independent
blocks.
"""

import dataclasses
import math
from collections.abc import Iterator

from .._errors import UnsupportedError
from ._sizes import Size


@dataclasses.dataclass(eq=False)
class Atom:
    """A block not divided so far; `bound` is what it turned out to be."""

    size: Size
    bound: "Axis | None" = None


@dataclasses.dataclass(eq=False)
class Row:
    """Axes one after another."""

    parts: tuple["Axis", ...]


@dataclasses.dataclass(eq=False)
class Major:
    """`count` copies of an axis, one after another."""

    count: int
    axis: "Axis"


@dataclasses.dataclass(eq=False)
class Minor:
    """`count` copies of an axis, interleaved."""

    axis: "Axis"
    count: int


Axis = Atom | Row | Major | Minor


def resolve(axis: Axis) -> Axis:
    """The axis behind bound atoms; copies of one are no structure."""
    while True:
        if isinstance(axis, Atom) and axis.bound is not None:
            axis = axis.bound
        elif isinstance(axis, Major | Minor) and axis.count == 1:
            axis = axis.axis
        elif isinstance(axis, Row) and len(axis.parts) == 1:
            axis = axis.parts[0]
        else:
            return axis


def size_of(axis: Axis) -> Size:
    """The size of an axis."""
    axis = resolve(axis)
    match axis:
        case Atom():
            return axis.size
        case Row():
            total = size_of(axis.parts[0])
            for part in axis.parts[1:]:
                grown = total + size_of(part)
                assert isinstance(grown, Size)
                total = grown
            return total
        case Major() | Minor():
            return axis.count * size_of(axis.axis)


class Unifier:
    """Makes axes equal, and counts what it had to bind."""

    def __init__(self) -> None:
        self.structured = 0

    def unify(self, x: Axis, y: Axis, where: str) -> None:
        """State that two axes are laid out alike.

        Raises:
            UnsupportedError: the two layouts cannot be one.
        """
        x, y = resolve(x), resolve(y)
        if x is y:
            return
        if size_of(x) != size_of(y):
            raise UnsupportedError(
                f"Wide axes of sizes {size_of(x)} and {size_of(y)} are used as "
                f"one{where}."
            )
        if isinstance(x, Atom):
            self._bind(x, y, where)
        elif isinstance(y, Atom):
            self._bind(y, x, where)
        elif isinstance(x, Row) or isinstance(y, Row):
            self._rows(x, y, where)
        elif isinstance(x, Major) and isinstance(y, Major):
            self._copies(x, y, where)
        elif isinstance(x, Minor) and isinstance(y, Minor):
            self._copies(x, y, where)
        else:
            if isinstance(x, Minor):
                x, y = y, x
            assert isinstance(x, Major)
            assert isinstance(y, Minor)
            if _shuffled(x, y):
                raise _shuffle(where)
            # r * (n/k) + a and a' * g + r' at once: i = (r, b, r').
            inner = Atom(size_of(x) / (x.count * y.count))
            self.unify(x.axis, Minor(inner, y.count), where)
            self.unify(y.axis, Major(x.count, inner), where)

    def _bind(self, atom: Atom, axis: Axis, where: str) -> None:
        if not isinstance(axis, Atom):
            if any(a is atom for a in atoms(axis)):
                raise _shuffle(where)
            self.structured += 1
        atom.bound = axis

    def _copies(self, x: Major | Minor, y: Major | Minor, where: str) -> None:
        if x.count < y.count:
            x, y = y, x
        if x.count == y.count:
            self.unify(x.axis, y.axis, where)
        elif x.count % y.count == 0:
            rest = x.count // y.count
            inner = Major(rest, x.axis) if isinstance(x, Major) else Minor(x.axis, rest)
            self.unify(y.axis, inner, where)
        else:
            raise UnsupportedError(
                f"One wide axis is divided into {x.count} and into {y.count} "
                f"blocks{where}."
            )

    def _rows(self, x: Axis, y: Axis, where: str) -> None:
        a, b = list(_parts(x)), list(_parts(y))
        while a and b:
            p, q = a.pop(0), b.pop(0)
            sp, sq = size_of(p), size_of(q)
            if sp == sq:
                self.unify(p, q, where)
                continue
            if not _smaller(sp, sq):
                p, q, a, b, sp, sq = q, p, b, a, sq, sp
            if not _smaller(sp, sq):
                raise UnsupportedError(
                    f"Wide blocks of sizes {sp} and {sq} meet{where}: which is larger "
                    "depends on the widths."
                )
            q = resolve(q)
            if isinstance(q, Row | Major):
                # It was cut further since the row was listed.
                a.insert(0, p)
                b[:0] = _parts(q)
                continue
            if not isinstance(q, Atom):
                raise UnsupportedError(
                    f"A wide axis is cut inside a block of {sp}{where}."
                )
            rest_size = sq - sp
            assert isinstance(rest_size, Size)
            head, rest = Atom(sp), Atom(rest_size)
            self._bind(q, Row((head, rest)), where)
            self.unify(p, head, where)
            b.insert(0, rest)


def _shuffled(x: Axis, y: Axis) -> bool:
    """Whether an atom is to stand behind two different numbers of outer copies.

    It would then consist of copies of its own parts, without end.
    """
    outer = {b.atom: math.prod(b.majors) for b in blocks(x)}
    return any(outer.get(b.atom) not in (None, math.prod(b.majors)) for b in blocks(y))


def _shuffle(where: str) -> UnsupportedError:
    return UnsupportedError(
        "A wide axis is divided in major and in minor order at once (a channel "
        f"shuffle): that has no limit in the theory{where}."
    )


def _parts(axis: Axis) -> Iterator[Axis]:
    axis = resolve(axis)
    if isinstance(axis, Row):
        for part in axis.parts:
            yield from _parts(part)
    elif isinstance(axis, Major):
        for _ in range(axis.count):
            yield from _parts(axis.axis)
    else:
        yield axis


def _smaller(x: Size, y: Size) -> bool:
    difference = y - x
    return isinstance(difference, Size) and all(c > 0 for _, c in difference.terms)


def atoms(axis: Axis) -> Iterator[Atom]:
    """The atoms of an axis, in order, one for each place."""
    axis = resolve(axis)
    match axis:
        case Atom():
            yield axis
        case Row():
            for part in axis.parts:
                yield from atoms(part)
        case Major() | Minor():
            yield from atoms(axis.axis)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One leaf of a layout: an atom and the copies it comes in, outermost first."""

    atom: Atom
    majors: tuple[int, ...] = ()
    minors: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of copies."""
        total = 1
        for c in self.majors + self.minors:
            total *= c
        return total


def is_whole(axis: Axis) -> bool:
    """Whether an axis is not divided."""
    return [b.count for b in blocks(axis)] == [1]


def blocks(axis: Axis) -> list[Block]:
    """The leaves of a layout, in order."""
    axis = resolve(axis)
    match axis:
        case Atom():
            return [Block(axis)]
        case Row():
            return [b for part in axis.parts for b in blocks(part)]
        case Major():
            return [
                Block(b.atom, (axis.count, *b.majors), b.minors)
                for b in blocks(axis.axis)
            ]
        case Minor():
            return [
                Block(b.atom, b.majors, (*b.minors, axis.count))
                for b in blocks(axis.axis)
            ]
