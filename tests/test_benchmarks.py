"""The command that measures speed: what it compares is equal, and it always ends."""

import importlib
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    # As the script runs, with its own folder on the path.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("fully_connected", (7,), {"depth": 3}),
        ("fully_connected", (7,), {"depth": 2, "act": "Erf", "std": 1.1}),
        ("convolutional", (6, 6, 3), {"depth": 3, "strides": (2, 2)}),
        ("convolutional", (5, 5, 3), {"depth": 2, "end": "Flatten", "window": (5, 5)}),
        ("residual", (4, 4, 3), {}),
        pytest.param("myrtle", (32, 32, 3), {}, marks=pytest.mark.slow),
    ],
)
def test_layers_and_functions_spell_one_network(
    speed: Any, name: str, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    network = getattr(importlib.import_module("workloads"), name)
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    layers, function = (
        speed.library(spelling).kernel_fn(network, shape, **settings)
        for spelling in (speed.LAYERS, speed.FUNCTIONS)
    )
    for get in ("nngp", "ntk"):
        expected = layers(x1, x2, get)
        np.testing.assert_allclose(function(x1, x2, get), expected, rtol=1e-12)


def test_a_call_beyond_the_limit_ends_and_has_failed(speed: Any) -> None:
    workload = "first call, fc 100"
    found = speed.compared(workload, None, runs=1, limit=1)
    assert found == {speed.LAYERS: None, speed.FUNCTIONS: None}
    assert speed._row(workload, found).count("failed") == 4


def test_memory_is_that_of_the_call(speed: Any) -> None:
    workload = "fc relu 5, N=2000, d=50"
    process = speed.Process(sys.executable, speed.PRODUCT, workload, "", "60")
    try:
        assert process.call()
        assert process.call()
    finally:
        process.stop()
    result = 2000**2 * 4 / 1e6
    for answer in process.answers:
        assert result - 1 < answer["peak_mb"] < result + 8
