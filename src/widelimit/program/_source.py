"""Where in the user's own code a line was written."""

import linecache
import os
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def caller() -> str:
    """`file:line (function)` of the innermost frame outside widelimit, or ''."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((_PACKAGE, "<frozen")):
            return f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
        frame = frame.f_back
    return ""


def quote(source: str) -> str:
    """A source with the text of its line: `demo.py:3 (main): y = A @ x`."""
    place = source.rpartition(" (")[0]
    file, _, number = place.rpartition(":")
    if not number.isdigit():
        return source
    text = linecache.getline(file, int(number)).strip()
    return f"{source}: `{text}`" if text else source


def at(source: str) -> str:
    """The end of an error message that shows the user's line, or ''."""
    return f"\n  at {quote(source)}" if source else ""
