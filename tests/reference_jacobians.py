"""Tangent kernels from whole Jacobians, and the methods that they are compared with."""

import string

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as wl

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
METHODS = (1, 2, 3)
ROLES = ("kept", "traced", "diagonal")


def array(*shape):
    return jnp.asarray(RNG.standard_normal(shape))


X, Y = array(4, 3), array(4, 3)
IMAGES, OTHERS = array(3, 3, 4, 2), array(3, 3, 4, 2)
DENSE = {"U": array(3, 30), "b": array(30), "W": array(30, 30), "v": array(30, 2)}
FILTERS = {"U": array(2, 2, 2, 5), "b": array(5), "W": array(3, 2, 5, 3)}


def mlp(p, x):
    h = jax.nn.relu(x @ p["U"] + p["b"])
    return jnp.tanh(h @ p["W"] / 6) @ p["v"]


def cnn(p, x):
    def conv(h, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            h, w, (1, 1), "SAME", dimension_numbers=numbers
        )

    return conv(jax.nn.gelu(conv(x, p["U"]) + p["b"]), p["W"])


TREE = {"U": array(3, 6), "v": [array(6, 2), array(4)]}


def of_trees(p, x, *, gate, shift=None, double=False):
    """The batch is axis 1 of `a`, 0 of `b`, 2 of the gate, -1 and 0 of outputs."""
    first, second = x["a"], x["b"][0]
    h = jnp.tanh(first.T @ p["U"]) * jnp.mean(gate, (0, 1))[:, None]
    out = (h @ p["v"][0]).T
    total = jnp.sum(jnp.sin(second * p["v"][1][None, None]), (1, 2))
    if shift is not None:
        total = total + shift @ p["v"][1]
    return {"one": [2 * out if double else out], "two": total}


def tree_inputs(count):
    x = {"a": array(3, count), "b": (array(count, 2, 4), None)}
    return x, array(2, 1, count)


def explicit(f, params, x1, x2):
    """J1 J2^T, shape (*f(x1), *f(x2)), from dense Jacobians."""
    j1, j2 = (jax.jit(jax.jacobian(f))(params, x) for x in (x1, x2))
    ndim = [jax.eval_shape(f, params, x).ndim for x in (x1, x2)]
    total = 0.0
    for a, b in zip(jax.tree.leaves(j1), jax.tree.leaves(j2), strict=True):
        axes = [range(n, j.ndim) for n, j in zip(ndim, (a, b), strict=True)]
        total = total + np.tensordot(np.asarray(a), np.asarray(b), axes)
    return total


def reduced(full, traced, diagonal):
    """Every axis twice, side by side; diagonal ones once; traced ones averaged."""
    ndim = full.ndim // 2
    one, two = list(string.ascii_letters[:ndim]), list(string.ascii_letters[-ndim:])
    out, size = "", 1
    for a in range(ndim):
        if a in traced or a in diagonal:
            two[a] = one[a]
        out += "" if a in traced else one[a] if a in diagonal else one[a] + two[a]
        size *= full.shape[a] if a in traced else 1
    return np.einsum(f"{''.join(one)}{''.join(two)}->{out}", full) / size


def reduced_outputs(full):
    return np.einsum("aibi->ab", full) / full.shape[1]


def axes_of(roles):
    return [tuple(a for a, r in enumerate(roles) if r == role) for role in ROLES]


def close(found, expected, tolerance=1e-11):
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def of_all_methods(f, x1, x2, params, *, vmap_axes=(None,), **options):
    """Compiled together: most of the time of these tests is compilation."""

    def run(x1, x2, params):
        return {
            (method, str(axes)): wl.empirical_ntk_fn(
                f, vmap_axes=axes, implementation=method, **options
            )(x1, x2, params)
            for method in METHODS
            for axes in vmap_axes
        }

    return jax.jit(run)(x1, x2, params)
