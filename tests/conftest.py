"""All tests run in float64."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_code() -> Iterator[None]:
    """The compiled code of all tests together would fill the memory."""
    yield
    jax.clear_caches()
