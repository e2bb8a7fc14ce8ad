"""Whether a result fits in memory, said before it is computed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._errors import InputError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def check_memory(
    whole: int, tile: int, devices: Sequence[Any], on_host: bool, shapes: str
) -> None:
    """Refuse a result that does not fit.

    Args:
        whole: bytes of the result.
        tile: bytes of the result for one tile, of which each device holds two; 0 if the
            result is one tile.
        devices: where tiles are computed; the result is kept on the first.
        on_host: the result is kept in the memory of the host instead.
        shapes: the arrays of the result, for the message.

    Raises:
        InputError: more bytes are needed than are free.
    """
    # Devices of the kind "cpu" share the memory of the host.
    places = [None if d.platform == "cpu" else d for d in devices]
    home = None if on_host else places[0]
    for place in {home, *places}:
        needed = 2 * tile * places.count(place) + (whole if place == home else 0)
        free = free_bytes(place)
        if free is None or needed <= free:
            continue
        advice = "Give fewer inputs, or of a lower precision"
        if home is not None and place == home:
            advice += ", or keep the result on the host: `store_on_device=False`"
        if needed - (whole if place == home else 0) > free:
            advice = "Lower `batch_size`"
        tiles = ""
        if tile:
            tiles = f", and a tile {_text(tile)}: {_text(needed)} with two under way"
        raise InputError(
            f"The result ({shapes}) takes {_text(whole)}{tiles}. "
            f"{'The host' if place is None else place} has {_text(free)} free. "
            f"{advice}."
        )


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


def _text(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} bytes" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"
