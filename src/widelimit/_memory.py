"""How much memory is free, numbers of bytes to read, and rest for the collector."""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def free_bytes(device: Any | None) -> int | None:
    """The free memory of an accelerator, or of the host; None if it is not known."""
    if device is not None:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        # What the system could free counts too: most memory is a cache of files.
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def size_text(count: int) -> str:
    """A number of bytes in three digits."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} bytes" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Make many objects that live, without the collector looking at them meanwhile.

    It takes a seventh of the time of compiling a deep network. Not for long
    computations: what their cycles hold is not given back.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
