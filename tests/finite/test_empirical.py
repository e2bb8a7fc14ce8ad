"""Kernels of any function, against the whole Jacobian contracted by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_jacobians import (
    DENSE,
    FILTERS,
    IMAGES,
    KEY,
    METHODS,
    OTHERS,
    ROLES,
    TREE,
    X,
    Y,
    array,
    axes_of,
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

FAST = [
    ("kept", "kept"),
    ("kept", "traced"),
    ("diagonal", "kept"),
    ("traced", "diagonal"),
    ("kept", "kept", "kept", "kept"),
    ("diagonal", "kept", "traced", "kept"),
    ("traced", "diagonal", "kept", "kept"),
]


def roles_of(axes, fast):
    """What becomes of every axis; all but some are slow."""
    return [
        pytest.param(roles, marks=[] if roles in fast else [pytest.mark.slow])
        for roles in itertools.product(ROLES, repeat=axes)
    ]


@pytest.mark.parametrize("roles", roles_of(2, FAST), ids="-".join)
def test_all_methods_agree_with_whole_jacobians_of_an_mlp(roles):
    _, traced, diagonal = axes_of(roles)
    expected = reduced(explicit(mlp, DENSE, X, Y), traced, diagonal)
    options = {"trace_axes": traced, "diagonal_axes": diagonal}
    for name, k in of_all_methods(mlp, X, Y, DENSE, vmap_axes=(0,), **options).items():
        assert k.dtype == jnp.float64, name
        close(k, expected)


@pytest.mark.parametrize("roles", roles_of(4, FAST), ids="-".join)
def test_all_methods_agree_with_whole_jacobians_of_a_cnn(roles):
    _, traced, diagonal = axes_of(roles)
    same = explicit(cnn, FILTERS, IMAGES, IMAGES)
    options = {"trace_axes": traced, "diagonal_axes": diagonal}
    for k in of_all_methods(
        cnn, IMAGES, None, FILTERS, vmap_axes=(None, 0), **options
    ).values():
        close(k, reduced(same, traced, diagonal))


@pytest.mark.parametrize(
    "roles", list(itertools.product(ROLES, repeat=4)), ids="-".join
)
def test_nngp_of_all_axes(roles):
    _, traced, diagonal = axes_of(roles)
    a, b = cnn(FILTERS, IMAGES), cnn(FILTERS, OTHERS)
    negative = [r - 4 for r in traced]
    nngp_fn = wl.empirical_nngp_fn(cnn, negative, diagonal)
    full = np.multiply.outer(np.asarray(a), np.asarray(b))
    close(nngp_fn(IMAGES, OTHERS, FILTERS), reduced(full, traced, diagonal))


def test_default_axes_and_other_sizes_of_the_batches():
    x2 = array(2, 3)
    close(
        jax.jit(wl.empirical_ntk_fn(mlp, vmap_axes=0))(X, x2, DENSE),
        reduced_outputs(explicit(mlp, DENSE, X, x2)),
    )
    full = np.multiply.outer(mlp(DENSE, X), mlp(DENSE, x2))
    close(wl.empirical_nngp_fn(mlp)(X, x2, DENSE), reduced_outputs(full))


def test_a_single_axis_and_automatic_choice():
    expected = reduced(explicit(mlp, DENSE, X, X), (1,), (0,))
    ntk_fn = wl.empirical_ntk_fn(mlp, 1, 0, 0, wl.NtkImplementation.AUTO)
    close(jax.jit(ntk_fn)(X, None, DENSE), expected)


def test_numbers_of_the_implementations():
    assert {i.name: i.value for i in wl.NtkImplementation} == {
        "AUTO": 0,
        "JACOBIAN_CONTRACTION": 1,
        "NTK_VECTOR_PRODUCTS": 2,
        "STRUCTURED_DERIVATIVES": 3,
    }


# Batches along other axes, pytrees, keyword arguments ---------------------------------

AXES = ({"a": 1, "b": 0}, {"one": -1, "two": 0}, {"gate": -1})


@pytest.mark.slow
def test_pytrees_with_batches_along_other_axes():
    (x1, gate1), (x2, gate2) = tree_inputs(3), tree_inputs(2)
    shift = array(4)
    options = {"gate": (gate1, gate2), "shift": shift, "double": True}

    def run(x1, x2, params):
        return {
            (method, mapped): wl.empirical_ntk_fn(
                of_trees, (), (), AXES if mapped else None, method
            )(x1, x2, params, **options)
            for method in METHODS
            for mapped in (False, True)
        }

    found = jax.jit(run)(x1, x2, TREE)
    for place in (("one", 0), ("two",)):

        def leaf(p, both, place=place):
            x, gate = both
            out = of_trees(p, x, gate=gate, shift=shift, double=True)
            for part in place:
                out = out[part]
            return out

        expected = reduced(explicit(leaf, TREE, (x1, gate1), (x2, gate2)), (), ())
        for k in found.values():
            assert jax.tree.structure(k) == jax.tree.structure(found[1, False])
            part = k
            for at in place:
                part = part[at]
            close(part, expected)
    nothing = {"a": None, "b": (None, None)}
    ntk_fn = jax.jit(wl.empirical_ntk_fn(of_trees, (), vmap_axes=AXES))
    alone = ntk_fn(x1, nothing, TREE, gate=(gate1, gate1))
    jax.tree.map(
        np.testing.assert_array_equal, alone, ntk_fn(x1, None, TREE, gate=gate1)
    )


def test_one_kernel_for_every_leaf_of_the_output():
    x, gate = tree_inputs(3)
    kernel_fn = jax.jit(wl.empirical_kernel_fn(of_trees, ()), static_argnums=2)
    both = kernel_fn(x, None, None, TREE, gate=gate)
    assert type(both["two"]).__name__ == "EmpiricalKernel"
    assert both["two"]._fields == ("nngp", "ntk")
    assert both["one"][0].ntk.shape == both["one"][0].nngp.shape == (2, 2, 3, 3)
    turned = kernel_fn(x, None, ("NTK", "nngp"), TREE, gate=gate)
    assert turned["two"]._fields == ("ntk", "nngp")
    alone = kernel_fn(x, None, "ntk", TREE, gate=gate)
    for found in (turned["two"].ntk, alone["two"]):
        np.testing.assert_array_equal(found, both["two"].ntk)
    outs = of_trees(TREE, x, gate=gate)
    close(both["two"].nngp, np.outer(outs["two"], outs["two"]))


def dropped(p, x, rng):
    h = jnp.tanh(x @ p["U"] + p["b"])
    return jnp.where(jax.random.bernoulli(rng, 0.5, h.shape), 2 * h, 0.0) @ p["v"]


@pytest.mark.slow
@pytest.mark.parametrize("new", [pytest.param(False, marks=pytest.mark.slow), True])
def test_masks_are_one_draw_on_equal_inputs_and_independent_on_others(new):
    key, other = jax.random.split(KEY if new else jax.random.PRNGKey(3))
    x2 = X.at[0, 0].add(1.0)

    some = {k: DENSE[k] for k in ("U", "b", "v")}

    @jax.jit
    def by_hand(x1, x2, rng1, rng2):
        j1 = jax.jacobian(dropped)(some, x1, rng1)
        j2 = jax.jacobian(dropped)(some, x2, rng2)
        return sum(jnp.einsum("ni...,mi...->nm", j1[k], j2[k]) for k in some) / 2

    same, apart = by_hand(X, X, key, key), jax.random.fold_in(key, 1)
    for method in METHODS if new else (1,):
        ntk_fn = jax.jit(wl.empirical_ntk_fn(dropped, implementation=method))
        close(ntk_fn(X, None, some, rng=key), same)
        close(ntk_fn(X, X + 0.0, some, rng=key), same)
        close(ntk_fn(X, x2, some, rng=key), by_hand(X, x2, key, apart))
        close(ntk_fn(X, x2, some, rng=(key, other)), by_hand(X, x2, key, other))
        close(ntk_fn(X, x2, some, rng=(key, key)), by_hand(X, x2, key, apart))
        close(ntk_fn(X, X + 0.0, some, rng=(key, other)), same)
    with pytest.raises(_errors.InputError, match="random key"):
        wl.empirical_ntk_fn(dropped)(X, x2, DENSE, rng=3)


# Odd parameters and bad inputs --------------------------------------------------------


@pytest.mark.slow
def test_parameters_that_are_no_real_numbers_are_held_fixed():
    params = {"W": array(3, 2), "depth": 2, "key": KEY, "scale": 0.5}

    def f(p, x):
        noise = jax.random.normal(p["key"], (2,))
        for _ in range(p["depth"]):
            x = jnp.sin(p["scale"] * x)
        return x @ p["W"] + noise

    def of_real(p, x):
        return f({**params, **p}, x)

    some = {k: jnp.asarray(params[k]) for k in ("W", "scale")}
    expected = reduced_outputs(explicit(of_real, some, X, X))
    for method in (0, *METHODS):
        ntk_fn = wl.empirical_ntk_fn(f, implementation=method)
        close(jax.jit(lambda x, fn=ntk_fn: fn(x, None, params))(X), expected)
    nothing = wl.empirical_ntk_fn(lambda p, x: x, ())(X, None, {"depth": 2})
    np.testing.assert_array_equal(nothing, np.zeros((4, 4, 3, 3)))


def test_empty_batches_and_empty_parameters():
    params = {"W": array(3, 2), "none": array(0, 4)}

    def f(p, x):
        return x @ p["W"] + jnp.sum(p["none"])

    full = explicit(f, params, X, X)
    for method in (0, *METHODS):
        for axes in (None, 0):
            ntk_fn = wl.empirical_ntk_fn(f, (), (), axes, method)
            close(jax.jit(ntk_fn)(X, None, params), reduced(full, (), ()))
            assert jax.eval_shape(ntk_fn, X, X[:0], params).shape == (4, 0, 2, 2)


@pytest.mark.slow
def test_a_network_of_this_package():
    n = wl.width("n", base=8)
    declared = {"U": wl.normal((3, n)), "v": wl.normal((n, 2))}
    f, theta = wl.limit(lambda p, x: jnp.tanh(x @ p["U"]) @ p["v"], declared).at(
        n=20, key=KEY
    )
    found = jax.jit(wl.empirical_ntk_fn(f, vmap_axes=0))(X, Y, theta)
    close(found, f.ntk(theta, X, Y))


def test_single_precision():
    low = jax.tree.map(lambda a: a.astype(jnp.float32), DENSE)
    exact = reduced_outputs(explicit(mlp, DENSE, X, Y))
    x, y = X.astype(jnp.float32), Y.astype(jnp.float32)
    for k in of_all_methods(mlp, x, y, low, vmap_axes=(0,)).values():
        assert k.dtype == jnp.float32
        close(k, exact, 1e-5)


def stacked(p, x):
    return mlp(p, x)[None]


@pytest.mark.parametrize(
    ("options", "f", "error", "match"),
    [
        ({"trace_axes": (2,)}, mlp, _errors.InputError, "`trace_axes` should be axes"),
        ({"diagonal_axes": "a"}, mlp, _errors.InputError, "sequence of axes"),
        ({"trace_axes": (-1,), "diagonal_axes": 1}, mlp, _errors.InputError, "not bo"),
        ({"trace_axes": 0}, mlp, _errors.ShapeMismatchError, "for `x1` and 2"),
        ({}, lambda p, x: jnp.zeros(()), _errors.InputError, "shape ()"),
        ({}, lambda p, x: (x > 0) + 1, _errors.InputError, "type int"),
        ({}, lambda p, x: x @ p["U"] * 1j, _errors.UnsupportedError, "two arrays"),
        ({}, lambda p, x: x @ p["U"][:, :0], _errors.InputError, "empty axis"),
        ({"implementation": 4}, mlp, _errors.InputError, "AUTO"),
        ({"vmap_axes": 2}, mlp, _errors.InputError, "an axis|An axis"),
        ({"vmap_axes": (0, (0, 0), {})}, mlp, _errors.InputError, "of the outputs"),
        ({"vmap_axes": (0, None, {})}, mlp, _errors.InputError, "every output needs"),
        ({"vmap_axes": (0, 0, {"k": 0})}, mlp, _errors.InputError, "not given: k"),
        ({"vmap_axes": (0, 1, {})}, mlp, _errors.ShapeMismatchError, "one length"),
        ({"vmap_axes": 0}, stacked, _errors.ShapeMismatchError, "one length"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(options, f, error, match):
    with pytest.raises(error, match=match):
        wl.empirical_ntk_fn(f, **options)(X, Y[:2], DENSE)


def test_more_errors():
    def interacting(p, x):
        return mlp(p, x) if len(x) == 4 else mlp(p, x)[:, :1]

    with pytest.raises(_errors.ShapeMismatchError, match=r"\(1, 1\) for one entry"):
        wl.empirical_ntk_fn(interacting, vmap_axes=0)(X, None, DENSE)
    low = {"U": DENSE["U"] + 0j}
    with pytest.raises(_errors.UnsupportedError, match="complex parameters"):
        wl.empirical_ntk_fn(lambda p, x: jnp.real(x @ p["U"]))(X, None, low)

    def changing(p, x):
        return [mlp(p, x)] * len(x)

    for fn in (wl.empirical_nngp_fn(changing), wl.empirical_ntk_fn(changing)):
        with pytest.raises(_errors.ShapeMismatchError, match="one structure"):
            fn(X, Y[:2], DENSE)
    with pytest.raises(_errors.ShapeMismatchError, match="equally many axes"):
        wl.empirical_nngp_fn(lambda p, x: x, ())(X, X[0], DENSE)
    for get in ("nngpp", ("nngp", "cov1"), (), ("ntk", "ntk")):
        with pytest.raises(_errors.InputError, match="`get`"):
            wl.empirical_kernel_fn(mlp)(X, None, get, DENSE)
