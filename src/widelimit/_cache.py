"""Compiled programs, kept on disk for the processes to come."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from ._errors import InputError


def compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keep what is compiled from now on, and use what was kept before.

    The first call of a kernel compiles it, and the first call in a later process then
    only traces it. This is the persistent cache of JAX, told to keep small programs
    too; it holds those of all of JAX, not of widelimit alone. To clear it, delete the
    folder.

    Args:
        folder: where; made if it does not exist. `widelimit` in the folder that the
            system has for caches if None.

    Returns:
        The folder.

    Raises:
        InputError: the folder cannot be made, or written to.

    Example:
        ```python
        wl.compilation_cache()
        net.nngp(x)
        ```
    """
    path = _default() if folder is None else Path(folder).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made: {error}.") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"The folder {path} cannot be written to: give another.")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # What was compiled before may have settled that there is no such folder.
    reset_cache()
    return path


def _default() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "widelimit"
