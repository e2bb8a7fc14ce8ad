"""What `net.explain` says about gradients: failing terms, their sizes, hypotheses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.report._parity import EVEN, NEITHER, ODD, ZERO, of_function
from widelimit.scalar import from_callable

n = wl.width("n")
X = np.random.default_rng(0).standard_normal((3, 4))
PARAMS = {
    "U": wl.normal((4, n), std=1.2),
    "W": wl.normal((n, n), std=1.3),
    "v": wl.normal((n, 1)),
}


def dense(w, x):
    return x @ w / jnp.sqrt(w.shape[0])


def mlp(p, x):
    h = jax.nn.relu(dense(p["U"], x))
    return dense(p["v"], jnp.tanh(dense(p["W"], h)))


def tied(p, x):
    h = jnp.tanh(dense(p["U"], x))
    z = dense(p["W"], h)
    return dense(p["v"], jnp.tanh(dense(p["W"].T, jnp.sin(z)) + z))


def mean(p, x):
    h = dense(p["U"], x) + 1.0
    return jnp.sqrt(n) * jnp.mean(dense(p["W"], h) ** 2, -1)


def batch_norm(p, x, epsilon=0.0):
    g = dense(p["U"], x)
    h = (g - g.mean(0)) / jnp.sqrt(g.var(0) + epsilon)
    return dense(p["v"], jnp.tanh(dense(p["W"], jax.nn.relu(h))))


def smooth_batch_norm(p, x):
    return batch_norm(p, x, 1e-3)


def layer_norm(p, x):
    g = jnp.sin(dense(p["U"], x))
    h = (g - g.mean(-1, keepdims=True)) / jnp.sqrt(g.var(-1, keepdims=True))
    return dense(p["v"], jnp.tanh(dense(p["W"], h)))


def exponential(p, x):
    h = jnp.exp(dense(p["U"], x))
    return dense(p["v"], jnp.tanh(dense(p["W"], h)))


def root(p, x):
    """A bounded second moment, and a derivative that is infinite at 0."""
    h = jnp.sqrt(jnp.abs(dense(p["U"], x)))
    return dense(p["v"], jnp.tanh(dense(p["W"], h)))


def explained(f, params=PARAMS):
    return wl.limit(f, params).explain(X)


def states(explanation):
    return {h.name: h.holds for h in explanation.hypotheses}


NO_T, ZERO_MEAN, IS_ODD, BOUNDED, RANK = (
    "no transposes in the network",
    "zero-mean output gradients",
    "odd in the output gradients",
    "polynomially bounded",
    "rank convergence",
)


@pytest.mark.parametrize(
    ("f", "fails"),
    [
        (mlp, set()),
        (layer_norm, set()),
        (mean, {ZERO_MEAN, IS_ODD}),
        (exponential, {BOUNDED}),
        (root, {BOUNDED}),
        pytest.param(tied, {NO_T}, marks=pytest.mark.slow),
        pytest.param(batch_norm, {BOUNDED}, marks=pytest.mark.slow),
        pytest.param(smooth_batch_norm, set(), marks=pytest.mark.slow),
    ],
)
def test_hypotheses_and_what_follows_from_them(f, fails):
    explanation = explained(f)
    held = states(explanation)
    assert set(held) == {NO_T, ZERO_MEAN, IS_ODD, BOUNDED, RANK}
    assert {name for name, holds in held.items() if holds is False} == fails
    assert {h.name for h in explanation.fails(5)} == fails
    assert {h.name for h in explanation.fails(6)} == fails & {BOUNDED}
    # The conclusion of theorem 5, derived apart from its hypotheses.
    independent = not fails & {NO_T, ZERO_MEAN, IS_ODD}
    assert explanation.gradient_independence is independent
    text = str(explanation)
    assert ("but is outside its hypotheses" in text) is (BOUNDED in fails)
    assert f"theorem {5 if independent else 6}" in text


@pytest.mark.slow
def test_batch_norm_is_outside_theorem_5_by_its_derivative():
    (hypothesis,) = explained(batch_norm).fails(5)
    assert "derivative" in hypothesis.why
    assert "singular" in hypothesis.why
    kinds = {g.kind for g in explained(batch_norm).gradient_growth}
    assert "singular" in kinds
    smooth = explained(smooth_batch_norm)
    assert all(g.polynomial for g in smooth.gradient_growth)
    assert smooth.controlled


def test_a_derivative_may_be_singular_where_the_function_is_not():
    explanation = explained(root)
    assert explanation.controlled
    assert "singular" in {g.kind for g in explanation.gradient_growth}
    (hypothesis,) = explanation.fails(6)
    assert "rsqrt" in hypothesis.why
    assert "test_gradients_explained.py" in hypothesis.why


def test_a_function_that_is_controlled_but_not_polynomial():
    explanation = explained(exponential)
    assert explanation.controlled
    (hypothesis,) = explanation.fails(5)
    assert "exp(" in hypothesis.why
    assert "theorem 4 allows" in hypothesis.why


@pytest.mark.slow
def test_rank_convergence_is_assumed_where_gradients_are_dependent():
    """Both positions of a mean have one gradient, where the function is linear."""

    def f(p, x):
        h = jnp.tanh(dense(p["U"], x))
        return dense(p["v"], dense(p["W"], h) + dense(p["W"], jnp.sin(h)))

    explanation = explained(f)
    assert states(explanation)[RANK] is True

    def g(p, x):
        a = jnp.stack([dense(p["U"], x), dense(p["U"], 2 * x)])
        return dense(p["v"], dense(p["W"], jnp.sin(a)).mean(0))

    (rank,) = [h for h in explained(g).hypotheses if h.name == RANK]
    assert rank.holds is None
    assert "rank 1 of 2" in rank.why
    assert not explained(g).fails(5)


# ------------------------------------------------------------------------ failing terms
@pytest.mark.slow
def test_the_failing_term_of_a_mean_has_the_size_of_its_absence():
    """Yang (2020), section 6: W^T d_g = hatZ + 2 h, E[Z^2] = 16; 8 without the term."""
    params = {"U": wl.normal((3, n)), "W": wl.normal((n, n))}

    def f(p, x):
        h = x @ p["U"] + 1.0
        return jnp.sqrt(n) * jnp.mean((h @ p["W"] / jnp.sqrt(n)) ** 2, -1)

    explanation = wl.limit(f, params).explain(np.eye(3)[:2])
    (bad,) = [c for c in explanation.corrections if c.theorem == 6]
    (term,) = bad.failing
    np.testing.assert_allclose((term.size, term.second), (8.0, 16.0), rtol=1e-12)
    assert "not odd" in term.why
    assert term.derivative.startswith("E[d ")
    text = str(explanation)
    assert f"{term.derivative} {term.vector} adds 8 " in text


def of_a_network(seed, width):
    """d_h1 of `tied`, and its term in d_h2 by its formula, at one width."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((4, width)) * 1.2
    w = rng.standard_normal((width, width)) * 1.3 / width**0.5
    v = rng.standard_normal(width)
    h1 = np.tanh(X[0] @ u / 2)
    g2 = h1 @ w
    g4 = np.sin(g2) @ w.T + g2
    d_g4 = (1 - np.tanh(g4) ** 2) * v
    d_h2 = d_g4 @ w
    d_h1 = (d_g4 + np.cos(g2) * d_h2) @ w.T
    term = 1.69 * np.mean(np.cos(g2)) * d_g4
    return np.mean(d_h1**2), np.mean((d_h1 - term) ** 2)


@pytest.mark.slow
def test_the_size_of_a_term_is_what_zeroing_it_does_in_finite_networks():
    corrections = {c.product.line: c for c in explained(tied).corrections}
    bad = [c for c in corrections.values() if c.theorem == 6]
    assert len(bad) == 2
    (forward,) = [c for c in bad if not c.product.backward]
    assert "network itself uses the matrix and its transpose" in forward.failing[0].why
    (backward,) = [c for c in bad if c.product.backward]
    structural = [t for t in backward.terms if t.structural]
    (term,) = backward.failing
    assert structural  # odd in v: the derivative along a product of the network
    assert all(t.size == 0.0 for t in structural)
    assert "the derivative is even" in term.why
    seen = np.array([of_a_network(s, 600) for s in range(40)])
    error = seen.std(0, ddof=1) / len(seen) ** 0.5
    wanted = np.array([term.second, term.without])
    assert (np.abs(seen.mean(0) - wanted) < 4 * error + 0.01).all()
    assert term.size > 10 * error.max()


@pytest.mark.slow
def test_several_terms_are_told_apart():
    """y = W^T sin(W a) and then W^T tanh(W a + ..): one term for every earlier use."""

    def f(p, x):
        a = dense(p["U"], x)
        b = dense(p["W"], a)
        c = dense(p["W"], jnp.sin(a))
        y = dense(p["W"].T, jnp.tanh(b) + jnp.tanh(2 * c))
        return dense(p["v"], y)

    explanation = explained(f)
    (bad,) = [
        c for c in explanation.corrections if c.failing and not c.product.backward
    ]
    first, second = bad.failing
    assert {first.vector, second.vector} == {"g1", "h1"}
    # y = hatZ + s a + t sin(a): E[y^2] less what is left without a part, by hand.
    k = 1.44 * np.sum(X[0] ** 2) / 4
    q = (1 - np.exp(-2 * k)) / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()

    def slope(scale, variance):
        z = np.sqrt(variance) * nodes
        return scale * weights @ (1 - np.tanh(scale * z) ** 2)

    s, t = 1.69 * slope(1, 1.69 * k), 1.69 * slope(2, 1.69 * q)
    cross = 2 * s * t * k * np.exp(-k / 2)
    sizes = {"g1": s**2 * k + cross, "h1": t**2 * q + cross}
    for term in bad.failing:
        np.testing.assert_allclose(term.size, sizes[term.vector], rtol=1e-6)
    total = s**2 * k + t**2 * q + cross
    np.testing.assert_allclose(bad.second - bad.independent, total, rtol=1e-6)


# ------------------------------------------------------------------------------- parity
@pytest.mark.parametrize(
    ("f", "parity"),
    [
        (lambda v, g: jnp.cos(g) * v, ODD),
        (lambda v, g: (v + jnp.sin(v)) / (1 + g**2), ODD),
        (lambda v, g: jnp.where(g > 0, v, 0.0), ODD),
        (lambda v, g: v * jnp.tanh(v) + jnp.abs(v) + v**2, EVEN),
        (lambda v, g: jnp.exp(g), EVEN),
        (lambda v, g: v + g, NEITHER),
        (lambda v, g: jnp.maximum(v, 0.0), NEITHER),
        (lambda v, g: 0.0 * v, ZERO),
    ],
)
def test_parity_of_a_function(f, parity):
    found = of_function(from_callable(f, 2), [ODD, EVEN])
    assert found is parity or (parity is ZERO and found is ODD)
    v, g = np.random.default_rng(0).standard_normal((2, 50))
    if found in (ODD, EVEN):
        sign = -1.0 if found is ODD else 1.0
        np.testing.assert_allclose(f(-v, g), sign * f(v, g), rtol=1e-12)
