"""Each command on a small network, and on the ones that ship with the package."""

import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import widelimit as wl
from widelimit._progress import progress
from widelimit.cli import main

MODEL = """\
import jax.numpy as jnp
import numpy as np
import widelimit as wl

n = wl.width("n")
params = {"u": wl.normal((3, n)), "v": wl.normal((n, 2))}


def f(params, x):
    h = wl.tap("h", jnp.maximum(x @ params["u"], 0))
    return h @ params["v"] / jnp.sqrt(n)


def x():
    return np.random.default_rng(0).normal(size=(3, 3))
"""


def relu_kernel(x, z):
    """The arc-cosine kernel of degree 1 (Cho & Saul 2009, https://papers.nips.cc)."""
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1)
    angle = np.arccos(np.clip(x @ z.T / norms, -1, 1))
    return norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def output(capsys, *words, code=0):
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_help_lists_the_commands_and_every_help_says_how_to_address(capsys):
    text = output(capsys, "--help")
    for command in ("demo", "show", "formula", "check", "kernel", "coverage"):
        assert re.search(rf"^. {command} ", text, re.MULTILINE)
    for command in ("show", "formula", "check", "kernel"):
        text = output(capsys, command, "--help")
        assert "model.py:function" in text
        assert "params_function" in text


def test_no_command_is_a_request_for_help(capsys):
    assert output(capsys) == output(capsys, "--help")


def test_version(capsys):
    from widelimit._version import __version__

    assert output(capsys, "--version").strip() == __version__


def test_show_prints_a_program_that_parses_back(folder, capsys):
    text = output(capsys, "show", "model.py:f")
    assert str(wl.parse(text)).strip() == text.strip()


def test_show_prints_the_plan_of_the_kernels(folder, capsys):
    text = output(capsys, "show", "model.py:f", "--after", "plan")
    assert text.startswith("nngp and ntk of 3 x 3 inputs in float64")
    assert "144 bytes for the result" in text  # of 2 x 9 numbers
    np.save("x.npy", np.ones((40, 3), np.float32))
    words = ["show", "model.py:f", "--after", "plan", "-i", "x.npy"]
    assert "of 40 x 40 inputs in float32" in output(capsys, *words)


def test_formula_in_text_and_in_latex(folder, capsys):
    text = output(capsys, "formula", "model.py:f")
    latex = output(capsys, "formula", "model.py:f", "--latex")
    assert text.strip()
    assert "\\" in latex
    assert latex != text


def test_check_passes_and_plots(folder, capsys):
    words = ["check", "model.py:f", "--widths", "32,128", "--seeds", "8"]
    text = output(capsys, *words, "--plot", "check.svg")
    assert "128" in text
    assert (folder / "check.svg").read_text().lstrip().startswith("<?xml")


def test_check_says_with_its_exit_code_that_networks_disagree(capsys, monkeypatch):
    verdict = SimpleNamespace(passed=False, table=lambda: "no agreement")
    network = SimpleNamespace(
        x=np.ones((1, 3)),
        blame=nullcontext,
        limit=SimpleNamespace(check=lambda *_, **__: verdict),
    )
    monkeypatch.setattr("widelimit.cli._check.load", lambda *_: network)
    assert output(capsys, "check", "model.py:f", code=1) == "no agreement\n"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernel_reads_and_writes_npy(folder, capsys, dtype):
    x = np.random.default_rng(1).normal(size=(5, 3))
    z = np.random.default_rng(2).normal(size=(4, 3))
    np.save("x.npy", x)
    np.save("z.npy", z)
    words = ["kernel", "model.py:f", "x.npy", "z.npy", "--output", "k.npy"]
    text = output(capsys, *words, "--dtype", dtype)
    k = np.load("k.npy")
    assert k.dtype == dtype
    assert "(5, 4)" in text
    rtol = {"float32": 1e-5, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(k, relu_kernel(x, z), rtol=rtol)


def test_kernel_reads_and_writes_npz(folder, capsys):
    x = np.random.default_rng(1).normal(size=(5, 3))
    np.savez("data.npz", train=x, other=x[:2])
    output(capsys, "kernel", "model.py:f", "data.npz:train", "-o", "k.npz")
    k = np.load("k.npz")["kernel"]
    np.testing.assert_allclose(k, relu_kernel(x, x), rtol=1e-7)
    np.testing.assert_allclose(np.diag(k), (x * x).sum(1) / 2, rtol=1e-14)


def test_a_package_module_and_an_input_file(folder, capsys):
    np.save("x.npy", np.random.default_rng(1).normal(size=(2, 12, 12)))
    declared = output(capsys, "show", "widelimit.examples.digits:cnn")
    given = output(capsys, "show", "widelimit.examples.digits:cnn", "-i", "x.npy")
    assert declared != given  # images of 8 x 8 pixels, and of 12 x 12


def test_a_model_file_may_import_its_neighbours(folder, capsys):
    (folder / "sizes.py").write_text("outputs = 2\n")
    text = MODEL.replace("n, 2", "n, outputs")
    (folder / "other.py").write_text("from sizes import outputs\n" + text)
    assert output(capsys, "show", "other.py:f") == output(capsys, "show", "model.py:f")


def test_coverage_lists_every_rule(capsys):
    from widelimit.trace import RULES

    lines = output(capsys, "coverage").splitlines()
    assert [line.split()[0] for line in lines] == sorted(RULES)
    assert all(len(line.split()) > 1 for line in lines)


def test_bars_are_for_terminals_only(capsys, monkeypatch):
    with progress("work") as report:
        report(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress("work") as report:
        report(1, 2)
    shown = capsys.readouterr()
    assert "work" in shown.err
    assert shown.out == ""
