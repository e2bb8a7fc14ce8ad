"""All tests run in float64; the fast ones compile fast rather than run fast."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)


def pytest_configure(config: pytest.Config) -> None:
    """Spend no time on optimising code that runs once, except in the slow tests.

    The slow tests see the code that users run.
    """
    if config.getoption("markexpr") == "not slow":
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_code() -> Iterator[None]:
    """The compiled code of all tests together would fill the memory."""
    yield
    jax.clear_caches()
