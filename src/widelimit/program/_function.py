"""The arguments of a coordinatewise function in canonical order.

Canonical: every argument is used and read once, vectors come before tensors, and both
stand in the order in which the written function mentions them. Then the function can
be printed with the names of its arguments inside, and read back without a list.
"""

from collections.abc import Sequence
from typing import TypeVar

from ..scalar import Arg, Call, Expr, substitute

V = TypeVar("V")
T = TypeVar("T")


def appearance(fn: Expr) -> list[int]:
    """The argument numbers of `fn`, in the order in which its text mentions them."""
    found: dict[int, None] = {}
    seen: set[int] = set()

    def visit(e: Expr) -> None:
        match e:
            case Arg(i):
                found.setdefault(i)
            case Call(_, args) if id(e) not in seen:
                seen.add(id(e))
                for a in args:
                    visit(a)

    visit(fn)
    return list(found)


def is_canonical(fn: Expr, vectors: int, leaves: Sequence[object]) -> bool:
    """Whether `fn` over `leaves`, the first `vectors` of them vectors, is canonical."""
    order = appearance(fn)
    sorted_order = [i for i in order if i < vectors] + [
        i for i in order if i >= vectors
    ]
    return sorted_order == list(range(len(leaves))) and len(set(leaves)) == len(leaves)


def canonical(
    fn: Expr, vectors: Sequence[V], tensors: Sequence[T]
) -> tuple[Expr, list[V], list[T]]:
    """The same function with canonical arguments.

    Where the function uses no vector at all the first one stays, because it gives the
    result its width.

    Returns:
        The function, its vectors and its tensors.
    """
    order, count = appearance(fn), len(vectors)
    xs = list(dict.fromkeys(vectors[i] for i in order if i < count))
    ts = list(dict.fromkeys(tensors[i - count] for i in order if i >= count))
    if not xs:
        xs = list(vectors[:1])
    leaves: list[V | T] = [*vectors, *tensors]
    kept: list[V | T] = [*xs, *ts]
    args = [Arg(kept.index(v)) if v in kept else Arg(-1) for v in leaves]
    return substitute(fn, args), xs, ts
