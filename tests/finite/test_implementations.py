"""What the methods for a tangent kernel are, and the products with vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_jacobians import (
    DENSE,
    FILTERS,
    IMAGES,
    METHODS,
    TREE,
    X,
    Y,
    array,
    close,
    cnn,
    explicit,
    mlp,
    of_all_methods,
    of_trees,
    reduced,
    reduced_outputs,
    tree_inputs,
)

import widelimit as wl
from widelimit import _errors

# Every case compiles several methods.
pytestmark = pytest.mark.slow


def tied(p, x):
    """One matrix used as it is, transposed and scaled; more of it for longer inputs."""
    h = x[:, 0] @ p["U"]
    h = jnp.tanh(h @ p["W"])
    if x.shape[1] > 1:
        h = jnp.tanh(2.0 * h @ p["W"].T / 3.0) + jax.checkpoint(jnp.sin)(x[:, 1, :1])
    return h @ p["v"]


@pytest.mark.parametrize("traced", [(), (-1,)])
def test_factors_of_other_numbers_on_both_sides(traced):
    one, two = array(3, 1, 3), array(2, 2, 3)
    params = {**DENSE, "U": DENSE["U"] / 2, "W": DENSE["W"] / 6}
    full = explicit(tied, params, one, two)
    expected = reduced(full, tuple(a % 2 for a in traced), ())
    options = {"trace_axes": traced, "vmap_axes": (0, None)}
    for k in of_all_methods(tied, one, two, params, **options).values():
        close(k, expected)


def recurrent(p, x):
    def step(h, token):
        return jnp.tanh(h @ p["W"] / 6 + token @ p["U"] + p["b"]), None

    start = jnp.zeros((x.shape[0], 30))
    h, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return h @ p["v"]


def test_matrices_inside_a_loop():
    x = array(3, 4, 3)
    expected = reduced_outputs(explicit(recurrent, DENSE, x, x))
    for k in of_all_methods(recurrent, x, None, DENSE, vmap_axes=(0,)).values():
        close(k, expected)


def largest(method, *, trace_axes=()):
    """Numbers in the largest array that a method makes."""
    ntk_fn = wl.empirical_ntk_fn(mlp, trace_axes, (), 0, method)
    found = 0
    for e in jax.make_jaxpr(ntk_fn)(X, Y, DENSE).eqns:
        found = max([found, *(int(np.prod(v.aval.shape)) for v in e.outvars)])
    return found


def test_structured_derivatives_make_no_gradient_of_a_matrix():
    whole = 4 * 2 * 30 * 30  # inputs, outputs, weights
    assert largest(1) >= whole
    assert largest(3) < whole // 5
    assert largest(3, trace_axes=(-1,)) < whole // 5


def test_automatic_choice_counts_operations(monkeypatch):
    from widelimit.finite import _implementation

    chosen = []
    cheapest = _implementation.cheapest

    def spy(problems):
        chosen.append(cheapest(problems).__name__)
        return cheapest(problems)

    monkeypatch.setattr(_implementation, "cheapest", spy)
    wide = {"U": array(3, 50), "b": array(50), "W": array(50, 50), "v": array(50, 2)}
    ntk_fn = wl.empirical_ntk_fn(mlp, (), (), 0, 0)
    jax.eval_shape(ntk_fn, X, None, wide)
    jax.eval_shape(ntk_fn, Y, None, wide)  # the same shapes
    assert chosen == ["structured_derivatives"]
    mean = lambda p, x: jnp.mean(cnn(p, x), (1, 2, 3))  # noqa: E731
    jax.eval_shape(wl.empirical_ntk_fn(mean, (), (), 0, 0), IMAGES, None, FILTERS)
    assert chosen[1:] == ["jacobian_contraction"]
    words, many = array(2, 2, 3), {**DENSE, "v": array(30, 40)}
    jax.eval_shape(wl.empirical_ntk_fn(recurrent, (), (), 0, 0), words, None, many)
    assert chosen[2:] == ["ntk_vector_products"]


@jax.custom_vjp
def only_backward(h):
    return jnp.sin(h)


only_backward.defvjp(lambda h: (jnp.sin(h), h), lambda h, g: (jnp.cos(h) * g,))


def test_automatic_choice_leaves_out_what_cannot_be_differentiated_forward():
    def f(p, x):
        return only_backward(x @ p["U"]) @ p["v"]

    some = {k: DENSE[k] for k in ("U", "v")}
    close(
        jax.jit(wl.empirical_ntk_fn(f, vmap_axes=0, implementation=0))(X, Y, some),
        reduced_outputs(explicit(f, some, X, Y)),
    )


@pytest.mark.slow
def test_derivatives_of_kernels():
    def slope(method):
        ntk_fn = wl.empirical_ntk_fn(mlp, vmap_axes=0, implementation=method)
        return jax.grad(lambda x: jnp.sum(jnp.sin(ntk_fn(x, Y, DENSE))))(X)

    def by_hand(x):
        j1, j2 = (jax.jacobian(mlp)(DENSE, a) for a in (x, Y))
        parts = [jnp.einsum("ni...,mi...->nm", j1[k], j2[k]) for k in DENSE]
        return jnp.sum(jnp.sin(sum(parts) / 2))

    expected, *found = jax.jit(
        lambda: [jax.grad(by_hand)(X), *(slope(method) for method in METHODS)]
    )()
    assert np.abs(expected).max() > 0.1
    for by_inputs in found:
        close(by_inputs, expected, 1e-9)


# Products with vectors ----------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_products_with_vectors_equal_the_explicit_matrix(same):
    x2 = X if same else array(2, 3)
    full = explicit(mlp, DENSE, X, x2)
    vector = array(*mlp(DENSE, x2).shape)
    product = wl.empirical_ntk_vp_fn(mlp, X, None if same else x2, DENSE)
    expected = np.einsum("aibj,bj->ai", full, vector)
    close(product(vector), expected)
    close(jax.jit(product)(vector), expected)
    basis = jnp.eye(x2.shape[0] * 2).reshape(-1, x2.shape[0], 2)
    rows = jax.jit(jax.vmap(product))(basis).reshape(-1, 8)
    close(rows.T, full.reshape(8, -1))


def test_products_with_vectors_keep_covariances_between_leaves():
    x, gate = tree_inputs(3)
    outs = of_trees(TREE, x, gate=gate)

    def flat(p, x):
        return jnp.concatenate(
            [jnp.ravel(y) for y in jax.tree.leaves(of_trees(p, x, gate=gate))]
        )

    full = explicit(flat, TREE, x, x)
    vector = jax.tree.map(lambda y: array(*y.shape), outs)
    product = wl.empirical_ntk_vp_fn(of_trees, x, None, TREE, gate=gate)(vector)
    leaves = [
        np.concatenate([np.ravel(y) for y in jax.tree.leaves(t)])
        for t in (vector, product)
    ]
    close(leaves[1], full @ leaves[0])
    with pytest.raises(_errors.ShapeMismatchError, match="cotangents"):
        wl.empirical_ntk_vp_fn(mlp, X, None, DENSE)(jnp.ones((4, 3)))
