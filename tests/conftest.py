"""All tests run in float64, and most compile fast rather than run fast."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)

AS_USERS_RUN_IT = ("kernels/", "test_reference.py", "test_gp4a.py")
"""Slow tests that see optimised code; the others spend their time on compiling it."""


@pytest.fixture(autouse=True, scope="module")
def _compiled_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """How to compile the code of a module; that of all would fill the memory."""
    slow = request.config.getoption("markexpr") != "not slow"
    optimised = slow and any(name in request.node.nodeid for name in AS_USERS_RUN_IT)
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    jax.clear_caches()
