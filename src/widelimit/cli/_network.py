"""`model.py:function`: find a network, its parameters and a small input."""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import widelimit as wl

from .._errors import WidelimitError
from ._failure import CommandError, in_model
from ._files import read


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network that the command line has found.

    Attributes:
        limit: `wl.limit(function, params)`.
        path: the file with its source.
        declared_x: what the file declares as inputs, or None.
    """

    limit: wl.Limit
    path: Path
    name: str
    declared_x: Any

    @property
    def x(self) -> np.ndarray:
        """The small input declared in the file.

        Raises:
            CommandError: there is none, or it is not an array.
        """
        if self.declared_x is None:
            raise CommandError(
                f"{self.path} declares no input for `{self.name}`: write "
                f"`x_{self.name} = ...` (or `x = ...`), a small batch, or give "
                "`--input file.npy`."
            )
        with self.blame():
            value = self.declared_x() if callable(self.declared_x) else self.declared_x
            return np.asarray(value)

    @contextlib.contextmanager
    def blame(self) -> Iterator[None]:
        """Say which line of the model file raised, if one did."""
        with _blame(self.path):
            yield


def load(target: str, input: Path | None = None) -> Network:
    """The network at an address, with its parameters declared beside it.

    Args:
        target: `model.py:function` or `package.module:function`.
        input: a file to read inputs from, in place of the declared ones.

    Raises:
        CommandError: there is no such file, function or declaration.
        ModelError: the file itself raises when it is loaded.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise CommandError(
            f"`{target}` does not name a network: write `model.py:function`, the file "
            "and a function in it."
        )
    given = None if input is None else read(str(input))
    module, path = _module(place)
    function = _function(module, path, name)
    params = _declared(module, "params", name)
    if params is None:
        raise CommandError(
            f"{path} declares no parameters for `{name}`: write "
            f"`params_{name} = {{...}}` (or `params = {{...}}`) with `wl.normal(...)`."
        )
    with _blame(path):
        limit = wl.limit(function, params)
    x = _declared(module, "x", name) if given is None else given
    return Network(limit, path, name, x)


def _module(place: str) -> tuple[ModuleType, Path]:
    path = Path(place)
    if place.endswith(".py") or path.exists():
        return _from_file(path), path
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise CommandError(
            f"There is no file or module `{place}`. A file is named with its ending: "
            "`model.py:function`."
        )
    origin = Path(spec.origin)
    with _blame(origin):
        return importlib.import_module(place), origin


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise CommandError(f"The model file {path} {what}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CommandError(
            f"{path} is not a Python file; its name should end in `.py`."
        )
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(path.stem)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    # Dataclasses and pickles look their module up by name while it runs.
    sys.modules[path.stem] = module
    try:
        with _blame(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    if function is not None:
        raise CommandError(f"`{name}` in {path} is not a function.")
    there = sorted(
        key
        for key, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", None) == module.__name__
        and not key.startswith(("_", "x_"))
        and key != "x"
    )
    found = f"it has {', '.join(there)}" if there else "it defines none"
    raise CommandError(f"{path} has no function `{name}`; {found}.")


def _declared(module: ModuleType, kind: str, name: str) -> Any:
    own = getattr(module, f"{kind}_{name}", None)
    return getattr(module, kind, None) if own is None else own


@contextlib.contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except WidelimitError:
        raise
    except (Exception, SystemExit) as error:
        told = in_model(error, path)
        if told is None:
            raise
        raise told from error
