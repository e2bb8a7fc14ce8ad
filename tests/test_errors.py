"""What a user is told who makes a mistake: what, where, and what to do.

An error about a line of the network shows that line: `test_errors.py:LINE`.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

import widelimit as wl

n = wl.width("n")
m = wl.width("m", ratio=2.0)
X = np.random.default_rng(0).normal(size=(3, 4))
Params = Mapping[str, Any]
Function = Callable[[Params, Array], Array]
SIMPLE = {"U": wl.normal((4, n)), "W": wl.normal((n, n)), "v": wl.normal((n, 1))}
HERE = r"test_errors\.py:\d+"


def simple(p: Params, x: Array) -> Array:
    h = jnp.tanh(x @ p["U"] / 2.0)
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


@contextlib.contextmanager
def refused(
    error: type[Exception], *content: str, line: bool = False
) -> Iterator[None]:
    """The block raises `error`, whose message matches each of `content`.

    With `line` it also shows a line of this file.
    """
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    for pattern in (*content, HERE) if line else content:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"
    assert "Traceback" not in message


def nngp(f: Function, x: Any = X, **params: Any) -> Array:
    return wl.limit(f, {**SIMPLE, **params}).nngp(jnp.asarray(x))


# ------------------------------------------------------------------------- widths
def test_a_matrix_of_another_width() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["U"])
        return h @ p["Q"] / jnp.sqrt(h.shape[-1])

    with refused(wl.ShapeMismatchError, r"\bn\b", r"\bm\b", line=True):
        nngp(f, Q=wl.normal((m, 1)))


def test_a_sum_of_two_widths() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["U"]) + jnp.tanh(x @ p["Q"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.ShapeMismatchError, r"\bn\b", r"\bm\b", line=True):
        nngp(f, Q=wl.normal((4, m)))


def test_one_name_for_two_widths() -> None:
    with refused(wl.InputError, r"\bn\b", "ratio"):
        nngp(simple, v=wl.normal((wl.width("n", ratio=3.0), 1)))


def test_no_width_at_all() -> None:
    params = {"U": wl.normal((4, 8)), "v": wl.normal((8, 1))}
    with refused(wl.InputError, r"wl\.width"):
        wl.limit(simple, params).nngp(X)


def test_a_structure_that_depends_on_the_width() -> None:
    def f(p: Params, x: Array) -> Array:
        h = x @ p["U"]
        for _ in range(int(math.log2(h.shape[-1]))):
            h = jnp.tanh(h)
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.UnsupportedError, "depends on the width"):
        nngp(f)


# ----------------------------------------------------------------- matrices, vectors
def test_a_nonlinearity_of_a_matrix() -> None:
    def f(p: Params, x: Array) -> Array:
        h = x @ p["U"] @ jnp.tanh(p["W"])
        return h @ p["v"] / h.shape[-1]

    with refused(wl.UnsupportedError, "matrix", line=True):
        nngp(f)


def test_a_matrix_as_a_vector_in_a_written_program() -> None:
    p = wl.Program()
    A = p.matrix("A", ("n", "n"))
    with refused(wl.InvalidProgramError, "A", "vector", "matrix", line=True):
        p.nonlin(jnp.tanh, A)


def test_a_matrix_times_a_vector_of_another_width_in_a_written_program() -> None:
    p = wl.Program()
    x, A = p.vector("x", "m"), p.matrix("A", ("n", "n"))
    with refused(wl.ShapeMismatchError, "A", "x", r"\bn\b", r"\bm\b", line=True):
        A @ x


def test_the_inverse_of_a_matrix() -> None:
    def f(p: Params, x: Array) -> Array:
        h = x @ p["U"] @ jnp.linalg.inv(p["W"])
        return h @ p["v"]

    with refused(wl.UnsupportedError, "lu|solve|inv", "overed primitives", line=True):
        nngp(f)


def test_a_finite_matrix_before_a_nonlinearity() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["mix"] @ p["U"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.UnsupportedError, "mix", "finite", line=True):
        nngp(f, mix=wl.normal((4, 4)))


def test_a_nonlinearity_of_the_output() -> None:
    def f(p: Params, x: Array) -> Array:
        return jnp.tanh(simple(p, x))

    with refused(wl.UnsupportedError, "linear", line=True):
        nngp(f)


# -------------------------------------------------------------------------- scales
def test_a_missing_scale() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["U"] / 2.0)
        h = jnp.tanh(h @ p["W"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.NoLimitError, r"n\^\(?1/2", "sqrt", line=True):
        nngp(f)


def test_a_missing_scale_at_the_output() -> None:
    def f(p: Params, x: Array) -> Array:
        return jnp.tanh(x @ p["U"] / 2.0) @ p["v"]

    with refused(wl.NoLimitError, r"n\^\(?1/2", "sqrt", line=True):
        nngp(f)


def test_a_sum_over_the_width() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(x @ p["U"] / 2.0)
        h = h * jnp.cos((h**2).sum(axis=-1, keepdims=True))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.NoLimitError, r"n\^1|like n\b", line=True):
        nngp(f)


def test_attention_with_the_square_root_of_the_width() -> None:
    def f(p: Params, x: Array) -> Array:
        h = x.reshape(-1, 2, 2) @ p["Q"]
        logits = jnp.einsum("nti,nsi->nts", h, h) / jnp.sqrt(h.shape[-1])
        h = jax.nn.softmax(logits, axis=-1) @ h
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    with refused(wl.NoLimitError, r"n\^\(?1/2", line=True):
        nngp(f, Q=wl.normal((2, n)))


def test_an_output_that_vanishes_is_zero_and_a_warning() -> None:
    def f(p: Params, x: Array) -> Array:
        return jnp.tanh(x @ p["U"] / 2.0) @ p["v"] / n

    with pytest.warns(UserWarning, match=r"n\^\(?-1/2"):
        kernel = nngp(f)
    assert not np.asarray(kernel).any()


# ----------------------------------------------------------------------------- data
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", ["x1", "x2"])
def test_data_that_are_not_finite(bad: float, block: str) -> None:
    broken = X.copy()
    broken[1, 2] = bad
    blocks = {"x1": X, "x2": X, block: broken}
    with refused(wl.InputError, block, "finite", r"1, 2"):
        wl.limit(simple, SIMPLE).nngp(blocks["x1"], blocks["x2"])


@pytest.mark.parametrize("block", ["x1", "x2"])
def test_an_empty_batch(block: str) -> None:
    blocks = {"x1": X, "x2": X, block: X[:0]}
    with refused(wl.InputError, block, "empty", r"\(0, 4\)"):
        wl.limit(simple, SIMPLE).nngp(blocks["x1"], blocks["x2"])


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_data_that_are_no_real_numbers(dtype: str) -> None:
    with refused(wl.InputError, dtype, "float", line=True):
        nngp(simple, (X > 0).astype(dtype))


@pytest.mark.parametrize("token", [4, -5])
def test_a_token_that_is_not_in_the_table(token: int) -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(p["E"][x].mean(axis=1))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    tokens = np.array([[0, 3], [1, token]])
    # JAX counts a negative index from the end before the table sees it.
    seen = str(token) if token >= 0 else f"{token}|{token + 4}"
    with refused(wl.InputError, seen, r"\b4\b", line=True):
        nngp(f, tokens, E=wl.normal((4, n)))


def test_a_token_of_the_second_block_that_is_not_in_the_table() -> None:
    def f(p: Params, x: Array) -> Array:
        h = jnp.tanh(jnp.take(p["E"], x, axis=0))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    net = wl.limit(f, {"E": wl.normal((4, n)), "v": wl.normal((n, 1))})
    with refused(wl.InputError, r"\b9\b", r"\b4\b", line=True):
        net.nngp(np.array([[0, 3]]), np.array([[0, 9]]))


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 1), (4,), ()])
def test_a_second_block_of_another_shape(shape: tuple[int, ...]) -> None:
    with refused(wl.ShapeMismatchError, "x2", re.escape(str(shape)), r"\(3, 4\)"):
        wl.limit(simple, SIMPLE).nngp(X, np.zeros(shape))


def test_data_with_too_many_features() -> None:
    with refused(wl.ShapeMismatchError, r"\b4\b", r"\b7\b", line=True):
        nngp(simple, np.ones((3, 7)))


def test_data_without_a_batch() -> None:
    with refused(wl.ShapeMismatchError, r"\(4,\)"):
        nngp(simple, X[0])


def test_a_list_of_words_as_data() -> None:
    with refused(wl.InputError, "array"):
        wl.limit(simple, SIMPLE).nngp(["the", "fox"])


# ----------------------------------------------------------------- what is not covered
def _sorted(p: Params, h: Array) -> Array:
    return jnp.sort(h, axis=-1)


def _running_sum_of_the_width(p: Params, h: Array) -> Array:
    return jnp.cumsum(h, axis=-1)


def _largest_coordinate(p: Params, h: Array) -> Array:
    return h * h.max(axis=-1, keepdims=True)


def _fourier_transform(p: Params, h: Array) -> Array:
    return jnp.fft.fft(h, axis=-1).real


def _loop_until(p: Params, h: Array) -> Array:
    return lax.while_loop(lambda k: (k**2).mean() > 0.1, lambda k: k / 2, h)


@pytest.mark.parametrize(
    ("step", "primitive"),
    [
        (_sorted, "sort"),
        (_running_sum_of_the_width, "cumsum"),
        (_largest_coordinate, "reduce_max"),
        (_fourier_transform, "fft"),
        (_loop_until, "while"),
    ],
)
def test_a_primitive_that_is_not_covered(step: Function, primitive: str) -> None:
    def f(step: Function, p: Params, x: Array) -> Array:
        h = step(p, jnp.tanh(x @ p["U"] / 2.0))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    content = rf"\b{primitive}\b", "overed primitives", "dot_general"
    with refused(wl.UnsupportedError, *content, line=True):
        nngp(functools.partial(f, step))


# ----------------------------------------------------------------------- the function
def test_what_is_no_function() -> None:
    with refused(wl.InputError, "function", "f"):
        wl.limit("relu", SIMPLE)  # pyright: ignore[reportArgumentType]


def test_an_output_that_is_no_array() -> None:
    def f(p: Params, x: Array) -> Any:
        return {"mean": simple(p, x)}

    with refused(wl.InputError, "output", "array"):
        nngp(f)


def test_an_output_without_the_batch() -> None:
    def f(p: Params, x: Array) -> Array:
        return simple(p, x).sum(axis=0)

    with refused(wl.ShapeMismatchError, r"return \(N, \.\.\)", r"\(1,\)"):
        nngp(f)


def test_a_parameter_that_is_no_declaration() -> None:
    with refused(wl.InputError, r"\bW\b", r"wl\.normal"):
        nngp(simple, W="normal")


def test_an_exception_of_the_network_is_the_users_own() -> None:
    def f(p: Params, x: Array) -> Array:
        return simple(p, x) * p["gain"]

    with pytest.raises(KeyError, match="gain"):
        nngp(f)


# ----------------------------------------------------------------------------- text
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("x : G(n)\ny = A @ x", "x : G"),
        ("this is no program", "this is no program"),
    ],
)
def test_a_text_that_is_no_program(text: str, content: str) -> None:
    with refused(wl.ParseError, content):
        wl.parse(text)


def test_a_text_with_one_broken_line_shows_that_line() -> None:
    p = wl.Program()
    x, A = p.vector("x", "n"), p.matrix("A", ("n", "n"))
    y = (A @ x).named("y")
    p.nonlin(jnp.tanh, y, name="z")
    lines = str(p).splitlines()
    (which,) = [i for i, line in enumerate(lines) if "tanh" in line]
    lines[which] = lines[which].replace("tanh", "tanh((")
    with refused(wl.ParseError, re.escape(lines[which].strip()), rf"\b{which + 1}\b"):
        wl.parse("\n".join(lines))
