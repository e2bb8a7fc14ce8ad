"""Gradients by filters as products: against JAX's own, and against the convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import _jax
from widelimit.finite import _filters

RNG = np.random.default_rng(0)
# Shape of the image, of the filter; options of the convolution.
CASES = {
    "same": ((7, 6), (3, 2), dict(padding="SAME")),
    "strided": ((8, 7), (3, 3), dict(padding="SAME", window_strides=(2, 3))),
    "dilated": ((9, 8), (2, 3), dict(padding="VALID", rhs_dilation=(3, 2))),
    "transposed": ((4, 5), (3, 2), dict(padding=((2, 1), (1, 1)), lhs_dilation=(2, 3))),
    "padded": ((6, 6), (3, 2), dict(padding=((2, 0), (3, 1)))),
    "cut": ((8, 8), (2, 2), dict(padding=((-1, 0), (0, -2)))),
    "one dimension": ((16,), (3,), dict(padding="SAME")),
    "three dimensions": ((4, 3, 5), (2, 1, 2), dict(padding="SAME")),
    "channels first": ((7, 6), (3, 2), dict(padding="SAME", first=True)),
}


def convolution(name):
    shape, taps, options = CASES[name]
    rank, options = len(shape), dict(options)
    space = "DHW"[-rank:]
    image = f"NC{space}" if options.pop("first", False) else f"N{space}C"
    dims = (image, f"{space}IO", f"N{space}C")
    options.setdefault("window_strides", (1,) * rank)
    size = (2, *shape) if image[1] == "C" else (*shape, 2)
    x, w = RNG.normal(size=(3, *size)), RNG.normal(size=(*taps, 2, 4))

    def f(w, x):
        y = jax.lax.conv_general_dilated(x, w, dimension_numbers=dims, **options)
        return jnp.tanh(y)

    return f, jnp.asarray(w), jnp.asarray(x)


@pytest.mark.parametrize("name", CASES)
def test_a_backward_pass_by_products_is_that_by_convolutions(name):
    f, w, x = convolution(name)

    def backward(w, x, cotangent):
        return jax.vjp(lambda w: f(w, x), w)[1](cotangent)[0]

    cotangent = jnp.asarray(RNG.normal(size=jax.eval_shape(f, w, x).shape))
    args = w, x, cotangent
    plain, _ = _jax.trace(backward, *args)
    products = _filters.by_products(_jax.inlined(plain, ("jit", "pjit")), 100)
    count = [sum(e.name == "conv_general_dilated" for e in g.equations)
             for g in (_jax.inlined(plain, ("jit", "pjit")), products)]  # fmt: skip
    assert count == [2, 1]
    values = dict(products.constants) | dict(zip(products.inputs, args, strict=True))
    for e in products.equations:
        ins = [values[a] if isinstance(a, _jax.Var) else a.value for a in e.inputs]
        values.update(zip(e.outputs, _jax.evaluate(e, ins), strict=True))
    np.testing.assert_allclose(
        values[products.outputs[0]], backward(*args), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("implementation", [0, 1, 3])
def test_kernels_of_convolutions(implementation):
    """With a filter used twice, whose gradient is a sum of two."""
    f, w, x = convolution("same")

    def network(p, x):
        h = f(p["w"], x)
        h = h[..., :2] + f(p["w"], h[..., 2:])[..., :2]
        return jnp.mean(h, (1, 2)) @ p["v"]

    params = {"w": w, "v": jnp.asarray(RNG.normal(size=(2, 12)))}
    jacobian = jax.jacrev(network)(params, x)
    flat = [j.reshape(36, -1) for j in jax.tree.leaves(jacobian)]
    wanted = sum(j @ j.T for j in flat).reshape(3, 12, 3, 12).transpose(0, 2, 1, 3)
    ntk = wl.empirical_ntk_fn(network, (), implementation=implementation)
    np.testing.assert_allclose(ntk(x, None, params), wanted, rtol=1e-12, atol=1e-14)
    across = ntk(x[:2], x, params)
    np.testing.assert_allclose(across, wanted[:2], rtol=1e-12, atol=1e-14)


def test_few_outputs_of_large_images_stay_convolutions():
    """Their patches would take more memory than all else."""
    f, w, x = convolution("same")
    cotangent = jnp.zeros(jax.eval_shape(f, w, x).shape)
    graph, _ = _jax.trace(
        lambda *a: jax.vjp(lambda w: f(w, a[1]), a[0])[1](a[2])[0], w, x, cotangent
    )
    kept = _filters.by_products(_jax.inlined(graph, ("jit", "pjit")), 1)
    assert sum(e.name == "conv_general_dilated" for e in kept.equations) == 2
