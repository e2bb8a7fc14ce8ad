"""The example scripts run, and show what they say."""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SHOWN: dict[str, Callable[[dict[str, Any]], bool]] = {
    "five_minutes": lambda found: max(found.values()) < 0.1,
    "infinite_fcn": lambda found: min(found.values()) > 0.93,
    "weight_space": lambda found: (
        abs(found["network"] - found["linear"]) < 0.1 * found["linear"]
        and found["linear"] < 0.03
    ),
    "function_space": lambda found: found["apart"] < 0.1,
    "elementwise": lambda found: (
        found["any function"] < 1e-12
        and found["kernel by hand"] < 1e-12
        and found["quadrature"] > 1e-9
    ),
    "myrtle": lambda found: found["accuracy"] > 0.8,
    "lstm_gradients": lambda found: (
        found["neurons"] < 1.5
        and found["simple RNN"] < 1.5
        and min(found["residual"], found["LSTM"]) > 5
    ),
}


def test_every_script_is_run() -> None:
    assert {p.stem for p in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_scripts_show_what_they_say(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)  # a script may write a picture
    # As a script runs, with its own folder on the path.
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = importlib.import_module(name).main()
    assert SHOWN[name](found), found
