"""Whether inputs interact: those seen to be apart are, and others are kept whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_jacobians import (
    DENSE,
    FILTERS,
    IMAGES,
    X,
    Y,
    array,
    close,
    cnn,
    explicit,
    mlp,
    reduced,
)

import widelimit as wl
from widelimit.finite._independent import independent


def hidden(p, x):
    return jnp.tanh(x @ p["U"])


def images(p, x):
    h = cnn(p, x)
    h = jax.lax.reduce_window(
        h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 2, 1), "VALID"
    )
    return jnp.concatenate([h, 2 * h[:, ::-1]], axis=2)[:, 1:].reshape(len(x), -1)


def moved(p, x):
    return jnp.cumsum(p["v"].T @ hidden(p, x).T, axis=0) * jnp.arange(2.0)[:, None]


def pairs_of_features(p, x):
    h = hidden(p, x)[:, :3]
    return jnp.einsum("ni,nj->ijn", h, h) + jax.nn.softmax(h).sum(1)


APART = {
    "dense": (mlp, DENSE, X, 0),
    "windows, slices, reversed": (images, FILTERS, IMAGES, 0),
    "transposed, summed up": (moved, DENSE, X, 1),
    "products of features": (pairs_of_features, DENSE, X, 2),
    "checkpoint": (jax.checkpoint(mlp), DENSE, X, 0),
    "one for all": (lambda p, x: mlp(p, x) + jnp.ones((len(x), 1)), DENSE, X, 0),
}


def of_batch(f):
    return lambda p, x: f(hidden(p, x) @ p["v"], x)


@jax.custom_jvp
def odd_rule(h):
    return h


@odd_rule.defjvp
def _(primals, tangents):
    return odd_rule(*primals), tangents[0] + jnp.mean(tangents[0], axis=0)


@jax.custom_vjp
def odd_backward(h):
    return h


odd_backward.defvjp(lambda h: (h, None), lambda _, g: (g + jnp.mean(g, axis=0),))

NUMBERS = np.arange(1.0, 5.0)[:, None]

TOGETHER = {
    "batch normalisation": of_batch(lambda h, x: h - h.mean(0)),
    "largest of the batch": of_batch(lambda h, x: h / jnp.max(jnp.abs(h))),
    "all pairs": of_batch(lambda h, x: h @ h.T),
    "reversed": of_batch(lambda h, x: h[::-1]),
    "shifted": of_batch(lambda h, x: jnp.pad(h, ((1, 0), (0, 0)))[:-1]),
    "summed up": of_batch(lambda h, x: jnp.cumsum(h, axis=0)),
    "sorted": of_batch(lambda h, x: jnp.sort(h, axis=0)),
    "neighbours": of_batch(
        lambda h, x: jax.lax.reduce_window(h, 0.0, jax.lax.add, (3, 1), (1, 1), "SAME")
    ),
    "size of the batch": of_batch(lambda h, x: h / len(x)),
    "another function of one": of_batch(lambda h, x: h if len(x) == 1 else h * h),
    "numbered": of_batch(lambda h, x: h * (1.0 + jnp.arange(len(x))[:, None])),
    "constants by number": of_batch(lambda h, x: h * NUMBERS[: len(x)]),
    "merged axes": of_batch(lambda h, x: h.reshape(-1)),
    "first input": of_batch(lambda h, x: h * h[:1]),
    "random by number": of_batch(
        lambda h, x: h * jax.random.normal(jax.random.key(0), h.shape)
    ),
    "inputs of the whole batch": of_batch(lambda h, x: h * jnp.sum(x)),
    "loop over the batch": of_batch(
        lambda h, x: jax.lax.scan(lambda s, a: (s + a, s * a), h[0], h)[1]
    ),
    "rule of its own": of_batch(lambda h, x: odd_rule(h)),
    "backward rule of its own": of_batch(lambda h, x: odd_backward(h)),
}


@pytest.mark.parametrize(("f", "params", "x", "axis"), APART.values(), ids=APART)
def test_inputs_that_are_seen_to_be_apart(f, params, x, axis):
    for some in (x, x[:1]):
        assert independent(f, params, some) == (0, axis, {})
    whole = jax.jacobian(f)(params, x)
    for name, rows in whole.items():
        # Row i of the batch is the only row of a batch of input i.
        alone = jax.vmap(lambda one, name=name: jax.jacobian(f)(params, one)[name])(
            x[:, None]
        )
        np.testing.assert_allclose(
            jnp.moveaxis(rows, axis, 0), jnp.squeeze(alone, 1 + axis), atol=1e-12
        )


@pytest.mark.parametrize("f", TOGETHER.values(), ids=TOGETHER)
def test_inputs_that_interact_are_not_taken_apart(f):
    assert independent(f, DENSE, X) is None


@pytest.mark.slow
@pytest.mark.parametrize("f", TOGETHER.values(), ids=TOGETHER)
def test_kernels_of_inputs_that_interact(f):
    close(
        wl.empirical_ntk_fn(f, ())(X, Y, DENSE),
        reduced(explicit(f, DENSE, X, Y), (), ()),
    )


@pytest.mark.parametrize("count", [1, 2])
def test_kernels_by_default(count):
    for f, params, x, _ in list(APART.values())[:3]:
        expected = reduced(explicit(f, params, x, x[:count]), (), ())
        close(jax.jit(wl.empirical_ntk_fn(f, ()))(x, x[:count], params), expected)


def test_only_one_batch_whose_inputs_interact():
    def f(p, x):
        h = hidden(p, x) @ p["v"]
        return h if len(x) != 3 else h - h.mean(0)

    assert independent(f, DENSE, X) is not None
    expected = reduced(explicit(f, DENSE, X, Y[:3]), (), ())
    close(wl.empirical_ntk_fn(f, ())(X, Y[:3], DENSE), expected)


def test_pytrees_of_inputs_and_outputs():
    def f(p, x):
        return {"a": hidden(p, x["a"]), "b": [(p["v"].T @ x["b"][:, :30].T)]}

    x = {"a": X, "b": array(4, 31)}
    assert independent(f, DENSE, x) == (0, {"a": 0, "b": [1]}, {})
    assert independent(f, DENSE, {"a": X, "b": array(5, 31)}) is None
    assert independent(f, DENSE, {"a": X, "b": jnp.float32(1)}) is None


def test_a_network_that_needs_the_numbers_of_its_inputs_is_run_whole():
    def f(p, x):
        return mlp(p, x) * (1 if float(np.asarray(x)[0, 0]) > 1e3 else 2)

    assert independent(f, DENSE, X) is None
    expected = reduced(explicit(mlp, DENSE, X, X), (), ())
    close(wl.empirical_ntk_fn(f, ())(X, None, DENSE), 4 * expected)


def test_gradients_of_the_whole_batch_are_not_made():
    ntk_fn = wl.empirical_ntk_fn(mlp, ())
    sizes = [
        np.prod(v.aval.shape)
        for e in jax.make_jaxpr(ntk_fn)(X, None, DENSE).eqns
        for v in e.outvars
    ]
    assert max(sizes) <= 4 * 2 * 30 * 30  # one matrix for every output entry
