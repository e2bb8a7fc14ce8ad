"""`widelimit check`."""

from pathlib import Path

from .._progress import progress
from ._failure import CommandError
from ._files import writable
from ._network import load


def check(
    target: str, input: Path | None, widths: str, seeds: int, plot: Path | None
) -> int:
    """Compare a network with its limit; 0 if they agree, 1 if not."""
    if plot is not None:
        writable(plot, (".png", ".svg", ".pdf"))
    sizes = parse_widths(widths)
    if seeds < 2:
        raise CommandError(f"`--seeds {seeds}`: a standard error needs at least 2.")
    network = load(target, input)
    with network.blame(), progress("real networks") as report:
        result = network.limit.check(
            network.x, widths=sizes, seeds=seeds, progress=report
        )
    print(result.table())
    if plot is not None:
        result.plot(plot)
    return 0 if result.passed else 1


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths from `128,512,2048`.

    Raises:
        CommandError: they are not whole numbers above zero.
    """
    parts = text.split(",")
    if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise CommandError(
            f"`--widths {text}` should be whole numbers with commas between, such as "
            "`--widths 128,512,2048`."
        )
    return tuple(int(p) for p in parts)
