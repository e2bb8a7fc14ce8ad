"""What the library says about a limit: formulas, orders, hypotheses, warnings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

n = wl.width("n")
X = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
PARAMS = {
    "U": wl.normal((3, n), std=1.5),
    "W": wl.normal((n, n), std=0.5),
    "b": wl.normal((n,), std=0.1),
    "v": wl.normal((n, 1)),
}


def two_layers(p, x):
    h = jax.nn.relu(x @ p["U"])
    h = wl.tap("hidden", jnp.tanh(h @ p["W"] / jnp.sqrt(h.shape[-1]) + p["b"]))
    return h @ p["v"] / jnp.sqrt(h.shape[-1])


# -------------------------------------------------------------------------- formulas
def test_the_formula_has_one_equation_a_covariance():
    net = wl.limit(two_layers, PARAMS)
    formula = net.formula(X)
    text = str(formula)
    assert "tanh(" in text
    assert "max(" in text
    # Every nonlinearity meets itself at two inputs: with and without a prime.
    assert any("tanh(" in right and "'" in right for _, right in formula.equations)
    lefts = [left for left, _ in formula.equations]
    assert len(set(formula.equations)) == len(formula.equations)
    assert all(left.startswith(("K[", "E[")) for left in lefts)
    assert any("Hermite" in r for r in formula.routes)
    assert any("closed form" in r for r in formula.routes)


def test_the_formula_is_the_recursion_written_out():
    assert wl.limit(two_layers, PARAMS).formula(X).equations == (
        ("K[f1, f1']", "E[h2 h2']"),
        ("E[h2 h2']", "E[tanh(g3) tanh(g3')]"),
        ("K[g3, g3']", "K[g2, g2'] + 0.01"),
        ("K[g2, g2']", "0.25 E[h1 h1']"),
        ("E[h1 h1']", "E[max(g1, 0.0) max(g1', 0.0)]"),
        ("K[g1, g1']", "2.25 sum_k x x'"),
    )


def test_the_formula_names_every_covariance_it_uses():
    equations = wl.limit(two_layers, PARAMS).formula(X).equations
    lefts = {left for left, _ in equations}
    used = set().union(*(re.findall(r"[KE]\[\w+,? \w+'\]", r) for _, r in equations))
    assert used
    assert used <= lefts


def test_latex_is_an_aligned_environment():
    formula = wl.limit(two_layers, PARAMS).formula(X)
    latex = formula.latex()
    assert latex.startswith("\\begin{align*}\n")
    assert latex.endswith("\\end{align*}")
    assert latex.count("&=") == len(formula.equations)
    assert latex.count("\\\\\n") == len(formula.equations) - 1
    assert "\\tanh" in latex
    assert "\\mathbb{E}[" in latex
    assert "**" not in latex
    assert latex.count("{") == latex.count("}")


# ------------------------------------------------------------------------------ orders
def test_orders_of_the_output_and_the_taps():
    def f(p, x):
        h = x @ p["U"]
        big = wl.tap("big", (h @ p["W"]) / 1.0)
        small = wl.tap("small", big / h.shape[-1])
        return jnp.tanh(h + small) @ p["v"] / jnp.sqrt(h.shape[-1])

    order = wl.limit(f, PARAMS).order(X)
    assert order["output"] == 0
    assert float(order["big"]) == 0.5
    assert float(order["small"]) == -0.5


def test_a_missing_scale_names_the_power_and_the_line():
    def f(p, x):
        return jax.nn.relu(x @ p["U"]) @ p["v"]

    net = wl.limit(f, PARAMS)
    assert float(net.order(X)["output"]) == 0.5
    with pytest.raises(
        wl.NoLimitError, match=r"(?s)n\^1/2.*test_report\.py:\d+.*sqrt\(n\)"
    ):
        net.nngp(X)


def test_a_missing_scale_inside_names_the_hidden_quantity():
    def f(p, x):
        h = jax.nn.relu(x @ p["U"]) @ p["W"]
        return jnp.tanh(h) @ p["v"] / jnp.sqrt(h.shape[-1])

    with pytest.raises(wl.NoLimitError, match=r"(?s)n\^1/2.*test_report\.py:\d+"):
        wl.limit(f, PARAMS).nngp(X)


def test_a_mean_that_should_vanish_needs_one_over_n():
    def f(p, x):
        h = jax.nn.relu(x @ p["U"])
        t = jnp.sum(h, axis=-1, keepdims=True)
        return (h * t) @ p["v"] / jnp.sqrt(h.shape[-1])

    with pytest.raises(wl.NoLimitError, match=r"n\^1 "):
        wl.limit(f, PARAMS).nngp(X)


def test_a_vanishing_output_is_zero_with_a_warning():
    def f(p, x):
        return jax.nn.relu(x @ p["U"]) @ p["v"] / n

    net = wl.limit(f, PARAMS)
    with pytest.warns(UserWarning, match=r"vanishes like n\^-1/2"):
        k = net.nngp(X)
    np.testing.assert_array_equal(k, np.zeros((2, 2)))


def test_an_output_without_a_random_readout_is_a_constant_with_a_warning():
    def f(p, x):
        return jnp.mean(jax.nn.relu(x @ p["U"]), axis=-1)

    with pytest.warns(UserWarning, match="constant"):
        k = wl.limit(f, PARAMS).nngp(X)
    np.testing.assert_array_equal(k, np.zeros((2, 2)))


# ----------------------------------------------------------------------------- explain
def test_explain_states_growth_ranks_and_routes():
    explanation = wl.limit(two_layers, PARAMS).explain(X)
    text = str(explanation)
    assert "Theorem 4" in text
    assert explanation.orders == {"output": "0", "hidden": "0"}
    kinds = {t.split("(")[0]: g for g, t in explanation.growth.values()}
    assert kinds["tanh"] == "bounded"
    assert kinds["max"] == "polynomial"
    assert explanation.controlled
    (rank,) = explanation.ranks
    assert (rank.vectors, rank.rank, rank.full) == (2, 2, True)
    assert explanation.dropped == ()
    assert any(exact for exact in explanation.routes.values())
    assert not all(exact for exact in explanation.routes.values())
    for route in explanation.expectations:
        assert route.dimension in (1, 2)
        assert route.error == 0.0 if route.is_exact else 0.0 < route.error < 1e-8


def test_explain_shows_that_gradients_are_independent():
    explanation = wl.limit(two_layers, PARAMS).explain(X)
    assert explanation.gradient_independence
    assert all(c.structural for c in explanation.corrections)
    assert any(c.product.backward for c in explanation.corrections)
    assert "theorem 5" in str(explanation)


def test_explain_gives_the_size_of_what_is_not_independent():
    """Yang (2020), section 6: E[(dx)^2] = 16, and 8 if W^T were a fresh matrix."""
    params = {"U": wl.normal((3, n)), "W": wl.normal((n, n))}

    def f(p, x):
        h = x @ p["U"] + 1.0
        return jnp.sqrt(n) * jnp.mean((h @ p["W"] / jnp.sqrt(n)) ** 2, -1)

    explanation = wl.limit(f, params).explain(np.eye(3)[:2])
    (backward,) = [c for c in explanation.corrections if c.product.backward]
    assert backward.product.transposed
    assert backward.product.matrix == "W"
    np.testing.assert_allclose(backward.second, 16.0, rtol=1e-12)
    np.testing.assert_allclose(backward.independent, 8.0, rtol=1e-12)
    assert backward.size == pytest.approx(0.5)
    assert not explanation.gradient_independence
    assert "W^T" in str(explanation)
    assert "50 % apart" in str(explanation)


def test_explain_says_why_there_is_no_gradient():
    def f(p, x):
        h = jnp.tanh(x @ p["U"])
        return (h + jax.lax.stop_gradient(h**2)) @ p["v"] / jnp.sqrt(n)

    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    explanation = wl.limit(f, params).explain(X[:, :3])
    assert "stop_gradient" in explanation.no_gradient
    assert not explanation.gradient_independence


def test_explain_of_a_network_without_a_wide_vector():
    net = wl.limit(lambda p, x: x @ p["w"], {"w": wl.normal((3, 1))})
    assert "no wide vector" in net.explain(X).no_gradient


def test_explain_reports_growth_beyond_the_theorem():
    def f(p, x):
        h = jnp.exp(0.01 * (x @ p["U"]) ** 2)
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    explanation = wl.limit(f, PARAMS).explain(X)
    assert not explanation.controlled
    assert "beyond" in str(explanation)


def test_explain_reports_a_controlled_growth():
    def f(p, x):
        h = jnp.exp(0.1 * (x @ p["U"]))
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    explanation = wl.limit(f, PARAMS).explain(X)
    assert {g for g, _ in explanation.growth.values()} == {"controlled"}
    assert explanation.controlled


def test_explain_reports_a_singular_gram_matrix():
    net = wl.limit(two_layers, PARAMS)
    (rank,) = net.explain(np.stack([X[0], X[0]])).ranks
    assert (rank.vectors, rank.rank, rank.full) == (2, 1, False)
    assert "singular" in str(net.explain(np.stack([X[0], X[0]])))


def test_a_term_of_lower_order_is_dropped_and_reported():
    def f(p, x):
        h = jnp.tanh(x @ p["U"])
        small = jax.nn.relu(h @ p["W"]) / h.shape[-1]
        return (h + small) @ p["v"] / jnp.sqrt(h.shape[-1])

    def without(p, x):
        h = jnp.tanh(x @ p["U"])
        return h @ p["v"] / jnp.sqrt(h.shape[-1])

    net = wl.limit(f, PARAMS)
    explanation = net.explain(X)
    assert len(explanation.dropped) >= 1
    assert "test_report.py" in " ".join(explanation.dropped)
    assert "Dropped terms of lower order" in str(explanation)
    wanted = wl.limit(without, PARAMS)
    np.testing.assert_allclose(net.nngp(X), wanted.nngp(X), rtol=1e-14)
    assert wanted.explain(X).dropped == ()
