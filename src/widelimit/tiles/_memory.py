"""Whether a result fits in memory, said before it is computed."""

from collections.abc import Sequence
from typing import Any

from .._errors import InputError
from .._memory import free_bytes, size_text


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
            both = size_text(needed)
            tiles = f", and a tile {size_text(tile)}: {both} with two under way"
        raise InputError(
            f"The result ({shapes}) takes {size_text(whole)}{tiles}. "
            f"{'The host' if place is None else place} has {size_text(free)} free. "
            f"{advice}."
        )
