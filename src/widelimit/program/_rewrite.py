"""Moving lines: the one tool that passes need."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ._lines import Line, Map, Ref, TensorArg


def renumber(line: Line, place: Mapping[Ref, Ref]) -> Line:
    """A line with its references moved."""

    def args(tensors: tuple[TensorArg, ...]) -> tuple[TensorArg, ...]:
        return tuple(dataclasses.replace(t, ref=place[t.ref]) for t in tensors)

    change: dict[str, Any] = {}
    for field in dataclasses.fields(line):
        value = getattr(line, field.name)
        if field.name in ("matrix", "x", "v"):
            change[field.name] = place[value]
        elif field.name == "xs" or (field.name == "args" and isinstance(line, Map)):
            change[field.name] = tuple(place[r] for r in value)
        elif field.name == "tensors":
            change[field.name] = args(value)
        elif field.name == "std" and isinstance(value, TensorArg):
            change[field.name] = args((value,))[0]
        elif field.name == "terms":
            change[field.name] = tuple(
                dataclasses.replace(
                    t, x=None if t.x is None else place[t.x], tensors=args(t.tensors)
                )
                for t in value
            )
    return dataclasses.replace(line, **change)
