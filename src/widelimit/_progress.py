"""Progress bars on standard error; none when it is not a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ._errors import InputError

Progress = Callable[[int, int], None]
"""Called with the number of steps done, and of all."""


def check_progress(progress: Any) -> None:
    """Refuse what is neither a flag nor a function.

    Raises:
        InputError: `progress` is neither.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise InputError(
            "`progress` should be True, False or a function of the steps done and all; "
            f"got {progress!r}."
        )


@contextlib.contextmanager
def reported(wanted: bool | Progress | None, description: str) -> Iterator[Progress]:
    """Where progress is told: to a bar, to a function, or to nobody."""
    if callable(wanted):
        yield wanted
    elif wanted:
        with progress(description) as report:
            yield report
    else:
        yield lambda done, total: None


@contextlib.contextmanager
def progress(description: str) -> Iterator[Progress]:
    """A bar that is told how many steps are done, and of how many; gone at the end."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
