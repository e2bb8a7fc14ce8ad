"""Arrays in `.npy` and `.npz` files."""

from pathlib import Path

import numpy as np

from ._failure import CommandError

ENDINGS = (".npy", ".npz")


def read(address: str) -> np.ndarray:
    """The array in `file.npy`, in `file.npz` with one array, or `file.npz:name`.

    Raises:
        CommandError: the file is missing, is no such file, or holds no such array.
    """
    path, name = Path(address), None
    if not path.exists() and ".npz:" in address:
        file, _, name = address.rpartition(":")
        path = Path(file)
    if not path.is_file():
        raise CommandError(f"There is no file {path}.")
    if path.suffix not in ENDINGS:
        raise CommandError(f"{path} should be a .npy or .npz file.")
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return content[_choose(path, content.files, name)]
    except CommandError:
        raise
    except Exception as error:  # numpy raises a dozen kinds for a broken file
        raise CommandError(f"{path} cannot be read as an array: {error}") from error


def _choose(path: Path, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        assert name is not None
        return name
    wanted = "Choose one of its arrays" if name is None else f"It has no `{name}`"
    listed = ", ".join(f"{path}:{other}" for other in names) or "none at all"
    raise CommandError(f"{path} holds {len(names)} arrays. {wanted}: {listed}.")


def writable(path: Path, endings: tuple[str, ...] = ENDINGS) -> None:
    """Find out before a long computation that its result could not be written.

    Raises:
        CommandError: the folder does not exist, or the ending is unknown.
    """
    if path.suffix not in endings:
        choice = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise CommandError(f"The output {path} should end in {choice}.")
    if not path.parent.is_dir():
        raise CommandError(f"The folder {path.parent} of the output does not exist.")
    if path.is_dir():
        raise CommandError(f"The output {path} is a directory.")


def write(path: Path, kernel: np.ndarray) -> None:
    """Write one array.

    Raises:
        CommandError: the file system refuses.
    """
    try:
        if path.suffix == ".npz":
            np.savez(path, kernel=kernel)
        else:
            np.save(path, kernel)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error
