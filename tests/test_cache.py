"""Compiled programs on disk: one process writes them, the next one reads them."""

import os
import subprocess
import sys

import jax
import pytest

import widelimit as wl
from widelimit import InputError

SCRIPT = """
import sys
import jax, numpy as np
import widelimit as wl

# What is compiled before does not settle where programs are kept.
print(float(jax.jit(lambda x: x + 1)(1.0)))
assert str(wl.compilation_cache(sys.argv[1])) == sys.argv[1]
n = wl.width("n")
params = {"u": wl.normal((3, n)), "v": wl.normal((n, 1))}
f = lambda p, x: jax.nn.relu(x @ p["u"]) @ p["v"] / n**0.5
print(np.asarray(wl.limit(f, params).nngp(np.ones((2, 3)))).tolist())
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    folder = tmp_path / "deep" / "cache"

    def run():
        # No other folder than the one that is asked for.
        env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        kept = {p.name for p in folder.iterdir() if not p.name.endswith("-atime")}
        return done.stdout, kept

    first, kept = run()
    again, found = run()
    assert any("blocks" in name or "pairs" in name for name in kept)
    assert found == kept
    assert again == first


@pytest.fixture
def settings():
    """Of JAX, which are put back."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_that_of_the_system_for_caches(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wl.compilation_cache() == tmp_path / "widelimit"
    assert (tmp_path / "widelimit").is_dir()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "widelimit")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, settings):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        wl.compilation_cache(tmp_path / "file" / "inside")
    assert jax.config.jax_compilation_cache_dir == before
