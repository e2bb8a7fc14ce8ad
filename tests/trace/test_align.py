"""Several concrete traces as one graph: what may depend on the width, and how."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_witness import both

import widelimit as wl
from widelimit.trace import traced_graph
from widelimit.trace._align import Constant
from widelimit.trace._sizes import Scaled, Size

n = wl.width("n")
X = np.random.default_rng(3).normal(size=(2, 3))
PARAMS = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
Function = Callable[[Any, Any], Any]


def refused(f: Function, match: str) -> None:
    with pytest.raises(wl.UnsupportedError, match=match):
        wl.limit(f, PARAMS).nngp(X)


# ------------------------------------------------------- structure depends on the width
def test_loop_over_the_width_is_refused_with_the_difference() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        for _ in range(h.shape[-1] // 100_000):
            h = jnp.tanh(h)
        return h @ p["v"] / jnp.sqrt(n)

    refused(f, r"(?s)structure depends on the width.*equations.*tanh.*test_align\.py")


def test_branch_on_the_width_is_refused_with_the_difference() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        h = jnp.sin(h) if h.shape[-1] > 250_000 else jnp.cos(h)
        return h @ p["v"] / jnp.sqrt(n)

    refused(f, r"(?s)structure depends.*(cos and sin|sin and cos).*test_align\.py")


def test_step_that_only_wide_networks_have_is_shown() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        out = h @ p["v"] / jnp.sqrt(h.shape[-1])
        return out if h.shape[-1] < 250_000 else -out

    refused(f, r"(?s)structure depends.*further `neg`.*test_align\.py:\d+ \(.*f\)")


def test_number_of_axes_that_depends_on_the_width_is_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        shape = (2, 3) if h.shape[-1] < 250_000 else (2, 3, 1)
        return (h @ p["v"] / jnp.sqrt(n)) * x.reshape(shape).sum()

    refused(f, r"depends on the width")


# ------------------------------------------------------------------------ fixed arrays
def test_array_that_varies_along_a_wide_axis_is_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        return (h * np.linspace(0, 1, h.shape[-1])) @ p["v"] / jnp.sqrt(n)

    refused(f, r"shape \(n\) varies along a wide axis.*wl\.normal")


def test_positions_along_a_wide_axis_are_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        return (h * jnp.arange(h.shape[-1])) @ p["v"] / jnp.sqrt(n)

    with pytest.raises(wl.UnsupportedError, match=r"test_align\.py"):
        wl.limit(f, PARAMS).nngp(X)


def test_fixed_matrix_with_two_wide_axes_is_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        return (h @ (np.ones((8, 8)) if h.shape[-1] == 8 else jnp.eye(n))) @ p["v"]

    with pytest.raises(wl.UnsupportedError, match=r"test_align\.py"):
        wl.limit(f, PARAMS).nngp(X)


def test_entries_that_change_with_the_width_are_refused() -> None:
    def f(p: Any, x: Any) -> Any:
        h = (x * np.array([1.0, h_size(p), 2.0])) @ p["U"]
        return h @ p["v"] / jnp.sqrt(n)

    def h_size(p: Any) -> float:
        return p["U"].shape[-1] ** -0.5

    refused(f, r"entries that change with the width.*only scalars may")


def test_constant_array_along_a_wide_axis_agrees() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        table = np.broadcast_to(np.array([[0.5], [2.0]]), (2, h.shape[-1]))
        h = jnp.tanh(h)[:, None] * table + np.full(h.shape[-1], 0.25)
        return h.sum(axis=1) @ p["v"] / np.sqrt(h.shape[-1])

    program, network = both(f, PARAMS, X)
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-13)


# ---------------------------------------------------------------- scalars of the width
SCALES: dict[str, Callable[[Any], Any]] = {
    "math.sqrt": lambda h: 1 / math.sqrt(h.shape[-1]),
    "power": lambda h: h.shape[-1] ** -0.5,
    "np.sqrt": lambda h: 1 / np.sqrt(h.shape[-1]),
    "np.sqrt of the width": lambda h: 1 / np.sqrt(n),
    "jnp.sqrt of the width": lambda h: 1 / jnp.sqrt(n),
    "jnp.sqrt of an array": lambda h: jax.lax.rsqrt(jnp.float64(h.shape[-1])),
    "power of the width": lambda h: n**-0.5,
    "math.sqrt of the width": lambda h: 1 / math.sqrt(n),
    "float": lambda h: float(n) ** -0.5,
    "np.float64": lambda h: 1 / np.float64(h.shape[-1]) ** 0.5,
    "two factors": lambda h: h.shape[-1] ** 0.5 * (1 / h.shape[-1]),
    "size of an array": lambda h: (h.size / h.shape[0]) ** -0.5,
    "exp and log": lambda h: math.exp(-0.5 * math.log(h.shape[-1])),
}


@pytest.mark.parametrize("name", SCALES)
def test_scale_written_in_any_way_gives_one_kernel(name: str) -> None:
    """x @ U @ v / (3 n) ** 0.5 has the kernel of its inputs."""

    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        return (h @ p["v"]) * SCALES[name](h)

    np.testing.assert_allclose(wl.limit(f, PARAMS).nngp(X), X @ X.T, rtol=1e-14)


def test_divided_before_the_product_or_after_it() -> None:
    def before(p: Any, x: Any) -> Any:
        return (x @ p["U"] / math.sqrt(n)) @ p["v"]

    def inside(p: Any, x: Any) -> Any:
        return x @ (p["U"] / 2.0) @ (p["v"] * (2.0 * n**-0.5))

    for f in (before, inside):
        np.testing.assert_allclose(wl.limit(f, PARAMS).nngp(X), X @ X.T, rtol=1e-14)


def test_missing_scale_has_its_power() -> None:
    net = wl.limit(lambda p, x: x @ p["U"] @ p["v"], PARAMS)
    assert net.order(X) == {"output": Fraction(1, 2)}
    with pytest.raises(wl.NoLimitError, match=r"n\^1/2"):
        net.nngp(X)


def test_scale_of_another_kind_is_refused_with_its_line() -> None:
    def f(p: Any, x: Any) -> Any:
        h = x @ p["U"]
        return h @ p["v"] * math.log(h.shape[-1]) ** -0.5

    refused(f, r"not of the form c \* n\^p.*test_align\.py:\d+ \(.*f\)")


def test_shapes_written_with_the_width() -> None:
    def f(p: Any, x: Any) -> Any:
        count, h = x.shape[0], x @ p["U"]
        h = jnp.zeros((count, n)) + jnp.ones((h.shape[-1],)) * h
        heads = jnp.tanh(h.reshape(count, 4, -1))
        h = jnp.broadcast_to(heads, (count, 4, n // 4)).reshape(count, n)
        return (h + jnp.full((n,), 0.5)) @ p["v"] / np.sqrt(h.shape[1])

    program, network = both(f, PARAMS, X)
    np.testing.assert_allclose(program, network, rtol=0.0, atol=1e-13)


# --------------------------------------------------------------------------- the graph
def test_aligned_graph_has_sizes_scalars_and_constants_of_the_widths() -> None:
    table = np.array([[1.0, 2.0, 3.0]])

    def f(p: Any, x: Any) -> Any:
        h = (x * table) @ p["U"]
        h = h * np.full(h.shape[-1], 3.0)
        return h @ p["v"] * h.shape[-1] ** -0.5

    struct = jax.ShapeDtypeStruct(X.shape, np.float64)
    graph, ratios = traced_graph(f, PARAMS, struct)
    assert ratios == {"n": 1.0}
    assert [v.shape for v in graph.inputs] == [
        (3, Size((("n", Fraction(1)),))),
        (Size((("n", Fraction(1)),)), 1),
        (2, 3),
    ]
    constants = [c for _, c in graph.constants]
    assert all(isinstance(c, Constant) for c in constants)
    wide = [c for c in constants if any(isinstance(s, Size) for s in c.shape)]
    assert [(c.value.tolist(), len(c.shape)) for c in wide] == [([3.0], 1)]
    scalars = [
        a.value for e in graph.equations for a in e.inputs if hasattr(a, "value")
    ]
    assert Scaled(1.0, Fraction(-1, 2)) in scalars
