"""What the user did wrong, in one line; a fault of widelimit itself is not hidden."""

import traceback
from pathlib import Path

import cyclopts

from .._errors import WidelimitError


class CommandError(WidelimitError, ValueError):
    """Something the user typed on the command line cannot be used."""


class ModelError(WidelimitError, ValueError):
    """The user's own code raised, while it was loaded or while it was traced."""


def explain(error: Exception) -> str | None:
    """One line for a mistake of the user; None for anything else."""
    match error:
        case cyclopts.UnusedCliTokensError():
            words = " ".join(error.unused_tokens or ())
            return _line(f"`{words}` is more than the command takes; see its `--help`.")
        case cyclopts.CycloptsError():
            return _line(f"{error} `widelimit --help` lists what there is.")
        case WidelimitError():
            return _line(str(error))
        case MemoryError():
            return _line(f"Not enough memory: {error}. Give fewer inputs at once.")
        case _:
            return None


def in_model(error: BaseException, path: Path) -> ModelError | None:
    """The user's line that raised, if any frame of the traceback is in the model file.

    Args:
        error: what was caught.
        path: the model file.
    """
    if isinstance(error, SyntaxError) and _same(error.filename, path):
        text = (error.text or "").strip()
        return ModelError(f"{path}, line {error.lineno}: {error.msg}: `{text}`")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _same(frame.filename, path)]
    if not own:
        return None
    reason = str(error).strip().partition("\n")[0]
    return ModelError(
        f"{path}, line {own[-1].lineno}, `{own[-1].line}`: "
        f"{type(error).__name__}: {reason}"
    )


def _same(name: str | None, path: Path) -> bool:
    return name is not None and Path(name).resolve() == path.resolve()


def _line(text: str) -> str:
    return " ".join(text.split())
