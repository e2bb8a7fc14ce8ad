"""Bad input on the command line: one clear line on standard error, exit code 2."""

import numpy as np
import pytest

from widelimit.cli import main

MODEL = """\
import jax.numpy as jnp
import widelimit as wl

n = wl.width("n")
params = {"u": wl.normal((3, n)), "v": wl.normal((n, 2))}
x = jnp.ones((2, 3))
number = 3


def f(params, x):
    h = jnp.tanh(x @ params["u"])
    return h @ params["v"] / jnp.sqrt(h.shape[-1])


def raises(params, x):
    return undefined_name


def leaves(params, x):
    raise SystemExit(3)


x_one = jnp.ones((2, 5))
params_one = params


def one(params, x):
    return f(params, x)


def x_late():
    raise OSError("no such data")


late = one
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "syntax.py").write_text("def f(params, x:\n    return x\n")
    (tmp_path / "crash.py").write_text("import numpy\n1 / 0\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(5)\n")
    (tmp_path / "bare.py").write_text("def f(params, x):\n    return x\n")
    (tmp_path / "noinput.py").write_text(MODEL.replace("x = jnp.ones((2, 3))", ""))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.npy").write_text("not an array")
    np.save("x.npy", np.ones((2, 3)))
    np.save("words.npy", np.array(["a", "b"]))
    np.save("nan.npy", np.array([[1.0, np.nan, 2.0]]))
    np.save("wide.npy", np.ones((2, 7)))
    np.savez("two.npz", a=np.ones((2, 3)), b=np.ones((1, 3)))
    return tmp_path


def failure(capsys, *words):
    """The one line that a command prints when it refuses."""
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("widelimit: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["shwo", "model.py:f"], 'Did you mean "show"'),
        (["--nothing"], "--nothing"),
        (["show"], "TARGET"),
        (["show", "model.py:f", "more"], "`more` is more than the command takes"),
        (["show", "model.py:f", "--nothing"], "--nothing"),
        (["show", "model.py"], "write `model.py:function`"),
        (["show", ":f"], "write `model.py:function`"),
        (["show", "model.py:"], "write `model.py:function`"),
        (["show", "model.py:f g"], "write `model.py:function`"),
        (["show", "missing.py:f"], "missing.py does not exist"),
        (["show", "missing:f"], "no file or module `missing`"),
        (["show", ".:f"], ". is a directory"),
        (["show", "notes.txt:f"], "should end in `.py`"),
        (["show", "syntax.py:f"], "syntax.py, line 1"),
        (["show", "crash.py:f"], "crash.py, line 2, `1 / 0`: ZeroDivisionError"),
        (["show", "exits.py:f"], "exits.py, line 1"),
        (["show", "bare.py:f"], "params_f = {...}"),
        (
            ["show", "model.py:g"],
            "no function `g`; it has f, late, leaves, one, raises.",
        ),
        (["show", "model.py:_f"], "no function `_f`"),
        (["show", "model.py:number"], "`number` in model.py is not a function"),
        (["show", "noinput.py:f"], "x_f = ..."),
        (["show", "model.py:raises"], "`return undefined_name`: NameError"),
        (["show", "model.py:leaves"], "`raise SystemExit(3)`"),
        (["show", "model.py:one"], '`h = jnp.tanh(x @ params["u"])`'),
        (["show", "model.py:f", "--input", "missing.npy"], "no file missing.npy"),
        (["show", "model.py:f", "-i", "wide.npy"], '`h = jnp.tanh(x @ params["u"])`'),
        (["formula", "model.py:f", "--input", "nan.npy"], "finite"),
        (["check", "model.py:f", "--widths", "8,big"], "`--widths 8,big`"),
        (["check", "model.py:f", "--widths", "8,-1"], "whole numbers"),
        (["check", "model.py:f", "--widths", ""], "whole numbers"),
        (["check", "model.py:f", "--seeds", "many"], "seeds"),
        (["check", "model.py:f", "--seeds", "1"], "at least 2"),
        (["check", "model.py:f", "--plot", "a.txt"], ".png"),
        (["check", "model.py:f", "--plot", "no/a.png"], "folder no "),
        (["kernel", "model.py:f"], "X1"),
        (["kernel", "model.py:f", "x.npy"], "output"),
        (["kernel", "model.py:f", "x.npy", "-o", "k.txt"], ".npy or .npz"),
        (["kernel", "model.py:f", "x.npy", "-o", "no/k.npy"], "folder no "),
        (["kernel", "model.py:f", "none.npy", "-o", "k.npy"], "no file none.npy"),
        (["kernel", "model.py:f", "notes.txt", "-o", "k.npy"], "notes.txt should be"),
        (["kernel", "model.py:f", "broken.npy", "-o", "k.npy"], "broken.npy cannot"),
        (["kernel", "model.py:f", "words.npy", "-o", "k.npy"], "words.npy has type"),
        (["kernel", "model.py:f", "nan.npy", "-o", "k.npy"], "finite"),
        (["kernel", "model.py:f", "wide.npy", "-o", "k.npy"], "jnp.tanh"),
        (["kernel", "model.py:f", "two.npz", "-o", "k.npy"], "two.npz:a, two.npz:b"),
        (["kernel", "model.py:f", "two.npz:c", "-o", "k.npy"], "It has no `c`"),
        (["kernel", "model.py:f", "x.npy", "wide.npy", "-o", "k.npy"], "(2, 7)"),
        (["kernel", "model.py:f", "x.npy", "-o", "k.npy", "--dtype", "int"], "float32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_code_2(folder, capsys, words, told):
    assert told in failure(capsys, *words)
    assert not (folder / "k.npy").exists()


def test_a_function_that_gives_the_input_may_fail(folder, capsys):
    line = failure(capsys, "show", "model.py:late")
    assert "model.py, line " in line
    assert "OSError: no such data" in line


def test_a_fault_of_widelimit_is_not_hidden(folder, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("widelimit.cli._network.load", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["show", "model.py:f"])
