"""All tests run in float64, and most compile fast rather than run fast."""

import os
from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)

OPTIMISED = (
    "kernels/",
    "test_gp4a.py",
    "test_parameterizations.py",
    "test_random",
    "test_reference.py",
)
"""Slow tests that compute for longer than they compile."""


def pytest_configure() -> None:
    # XLA's other emitter compiles twice as fast, and both cores have work already.
    # An unknown flag would be an error.
    if jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_use_fusion_emitters=false "
            "--xla_cpu_parallel_codegen_split_count=1"
        )


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What modules have in common is compiled once, and found on the disk."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _compiled_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """How to compile the code of a module; that of all would fill the memory."""
    slow = request.config.getoption("markexpr") != "not slow"
    optimised = slow and any(name in request.node.nodeid for name in OPTIMISED)
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    jax.clear_caches()
