"""Arguments that name one of a few things."""

import enum
from typing import Any, TypeVar

from .._errors import InputError

Kind = TypeVar("Kind", bound=enum.Enum)


def chosen(kind: type[Kind], argument: str, name: Any) -> Kind:
    """The member of an enumeration, itself or by its name in any case.

    Args:
        kind: the enumeration, whose values are names in capitals.
        argument: that of the user, for the error.
        name: what was given.

    Raises:
        InputError: there is no such member.
    """
    try:
        return kind(name.upper() if isinstance(name, str) else name)
    except ValueError:
        names = ", ".join(k.name for k in kind)
        raise InputError(f"`{argument}` should be one of {names}, got {name!r}.") from (
            None
        )
