"""What holds for the whole package: floors, names, documentation, the README."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import widelimit as wl

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "widelimit"
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(SOURCE))


def imported(path):
    """Every module that a file imports, with relative ones left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def test_imports_only_go_down():
    from importlinter.cli import lint_imports

    assert (
        lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_private_jax_is_touched_in_one_file_only(path):
    private = [m for m in imported(path) if re.match(r"jax\.(_src|extend|core)\b", m)]
    assert not private or path == SOURCE / "_jax.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_heavy_or_foreign_is_imported(path):
    roots = {module.partition(".")[0] for module in imported(path)}
    assert not roots & {"tensorflow", "torch", "flax", "equinox", "haiku"}


def test_import_leaves_out_what_only_commands_need():
    heavy = ("matplotlib", "sklearn", "cyclopts", "rich", "diffrax")
    script = "import sys, widelimit.predict; "
    script += f"print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_help_comes_without_jax():
    script = (
        "import sys; from widelimit.cli import main; code = main(['--help']); "
        "print(); print(code, 'jax' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "0 False"


def public_names():
    things = {name: getattr(wl, name) for name in dir(wl) if not name.startswith("_")}
    return [name for name, thing in things.items() if not inspect.ismodule(thing)]


def test_the_names_of_the_front_page_are_there():
    wanted = {"Program", "constant", "gp_posterior", "limit", "normal", "parse", "tap"}
    assert wanted | {"width", "Estimate", "WidelimitError"} <= set(public_names())


@pytest.mark.parametrize("name", public_names())
def test_public_names_are_documented(name):
    thing = getattr(wl, name)
    assert (inspect.getdoc(thing) or "").strip(), f"wl.{name} has no docstring"
    if not inspect.isclass(thing):
        return
    for key, value in vars(thing).items():
        if not key.startswith("_") and (callable(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"wl.{name}.{key} has no docstring"


def test_every_module_imports_and_says_what_it_is_for():
    for module in pkgutil.walk_packages([str(SOURCE)], "widelimit."):
        assert importlib.import_module(module.name).__doc__, module.name


def test_every_folder_has_its_tests():
    folders = [p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()]
    without = [f for f in folders if not list((ROOT / "tests" / f).glob("test_*.py"))]
    assert without == []


def test_modules_inside_folders_are_private():
    inside = [p for p in FILES if p.parent != SOURCE and p.parent.name != "examples"]
    assert [name_of(p) for p in inside if not p.name.startswith("_")] == []


def test_the_readme_gives_the_two_commands():
    install = 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && '
    text = (ROOT / "README.md").read_text()
    for command in (".venv/bin/widelimit demo", ".venv/bin/pytest"):
        assert f"\n```bash\n{install}{command}\n```\n" in text


@pytest.mark.slow
def test_the_readme_code_runs_as_it_stands(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["k"].shape == (20, 5)
    assert namespace["outputs"].shape == (3, 10)
    assert namespace["posterior"].mean.shape == (5,)
    assert capsys.readouterr().out


def test_no_registry_host_is_written_down():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org"]))
    for name in listed:
        path = ROOT / name
        if path.suffix in {".toml", ".md", ".py", ".txt", ""} and path.is_file():
            assert not hosts.search(path.read_text(errors="ignore")), name
