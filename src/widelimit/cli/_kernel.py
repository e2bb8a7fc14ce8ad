"""`widelimit kernel`."""

from pathlib import Path

import numpy as np

from .._errors import InputError
from .._jax import enable_x64
from .._progress import progress
from ._files import read, writable, write
from ._network import load


def kernel(target: str, x1: str, x2: str | None, output: Path, dtype: str) -> int:
    """Compute a kernel from files to a file."""
    writable(output)
    a = _real(x1, read(x1), dtype)
    b = None if x2 is None else _real(x2, read(x2), dtype)
    network = load(target)
    with (
        network.blame(),
        enable_x64(dtype == "float64"),
        progress("kernel") as report,
    ):
        result = np.asarray(network.limit.nngp(a, b, progress=report))
    write(output, result)
    print(f"{output}: {dtype} kernel of shape {result.shape}")
    return 0


def _real(name: str, x: np.ndarray, dtype: str) -> np.ndarray:
    if x.dtype.kind not in "fiub":
        raise InputError(f"{name} has type {x.dtype}; real numbers were expected.")
    # Token indices and masks keep their type; the network may index with them.
    return x.astype(dtype) if x.dtype.kind == "f" else x
