"""All tests run in float64, and most compile fast rather than run fast."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)

AS_USERS_RUN_IT = ("kernels/", "test_reference.py", "test_gp4a.py")
"""Slow tests that see optimised code; the others spend their time on compiling it."""

ENOUGH = 4 * 2**30
"""Bytes of one worker, beyond which compiled code is forgotten."""


@pytest.fixture(autouse=True, scope="module")
def _compiled_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """How to compile the code of a module, and to forget it before memory is full."""
    slow = request.config.getoption("markexpr") != "not slow"
    optimised = slow and any(name in request.node.nodeid for name in AS_USERS_RUN_IT)
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    if optimised or _pages() * 4096 > ENOUGH:
        jax.clear_caches()


def _pages() -> int:
    """Pages of memory that this process holds; on another system than Linux, many."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) if status.exists() else ENOUGH
