import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.gaussian import Accuracy, expect, route
from widelimit.gaussian._hermite import hermite_dual
from widelimit.scalar import Arg, from_callable, substitute

SMOOTH = [
    "tanh",
    "sigmoid",
    "silu",
    "softplus",
    "gelu",
    "mish",
    "log_sigmoid",
    "squareplus",
]


def _function(name):
    return from_callable(lambda x: getattr(jax.nn, name)(x), 1)


def _grid_reference(f, g, means, cov, count=700, reach=12.0):
    """A plain trapezoidal rule on a tensor grid, in NumPy."""
    (m1, m2), (a, b, c) = means, cov
    x = np.linspace(-reach, reach, count)
    w = np.exp(-0.5 * x**2)
    w /= w.sum()
    gain = c / np.sqrt(a)
    rest = np.sqrt(max(b - gain**2, 0.0))
    u = m1 + np.sqrt(a) * x
    v = m2 + gain * x[:, None] + rest * x[None, :]
    return float(w @ (np.asarray(f(u))[:, None] * np.asarray(g(v))) @ w)


COVARIANCES = [
    ((0.0, 0.0), (1.0, 1.0, 0.5)),
    ((0.0, 0.0), (10.0, 10.0, 10.0)),
    ((0.0, 0.0), (10.0, 9.0, -9.4)),
    ((0.7, -1.2), (10.0, 8.0, 8.0)),
    ((2.0, 0.1), (0.01, 10.0, 0.3)),
    ((-3.0, 3.0), (2.0, 2.0, -2.0)),
]


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("means", "cov"), COVARIANCES)
def test_dual_of_a_smooth_function(name, means, cov):
    f, plain = _function(name), getattr(jax.nn, name)
    value = hermite_dual(f, f, *_arrays(means, cov), (), 1)
    exact = _grid_reference(plain, plain, means, cov)
    assert abs(value - exact) < 1e-11 * (1.0 + abs(exact))


def _arrays(means, cov, dtype=jnp.float64):
    return tuple(jnp.asarray(m, dtype) for m in means), tuple(
        jnp.asarray(c, dtype) for c in cov
    )


def test_parity_only_saves_work():
    tanh = _function("tanh")
    arguments = _arrays((0.0, 0.0), (6.0, 4.0, 3.9))
    full = hermite_dual(tanh, tanh, *arguments, (), 2, 0)
    half = hermite_dual(tanh, tanh, *arguments, (), 2, -1)
    assert abs(full - half) < 1e-15
    bump = from_callable(lambda x: 1.0 / (1.0 + x**2), 1)
    full = hermite_dual(bump, bump, *arguments, (), 2, 0)
    half = hermite_dual(bump, bump, *arguments, (), 2, 1)
    assert abs(full - half) < 1e-13


def test_high_frequency_is_not_mistaken_for_zero():
    wave = from_callable(lambda x: jnp.sin(9.0 * x) / (1.0 + 0.01 * x**2), 1)
    plain = lambda x: np.sin(9.0 * x) / (1.0 + 0.01 * x**2)  # noqa: E731
    means, cov = (0.1, 0.2), (1.0, 1.0, 0.999)
    value = hermite_dual(wave, wave, *_arrays(means, cov), (), 1)
    assert abs(value - _grid_reference(plain, plain, means, cov)) < 1e-11


@pytest.mark.parametrize("name", SMOOTH)
def test_single_precision(name):
    f, plain = _function(name), getattr(jax.nn, name)
    means, cov = (0.3, -0.2), (3.0, 2.0, 2.2)
    value = hermite_dual(f, f, *_arrays(means, cov, jnp.float32), (), 1)
    exact = _grid_reference(plain, plain, means, cov)
    assert value.dtype == jnp.float32
    assert abs(value - exact) < 2e-6 * (1.0 + abs(exact))


def test_work_per_input_keeps_its_shape():
    tanh = _function("tanh")
    x = np.random.default_rng(0).normal(size=(7, 3))
    gram = jnp.asarray(x @ x.T)
    diagonal = jnp.diag(gram)
    factors = [tanh, substitute(tanh, [Arg(1)])]
    rows = [[diagonal[:, None], gram], [gram, diagonal[None, :]]]
    value = expect(factors, [None, None], rows)
    assert route(factors, 2) == "Hermite series"
    assert value.shape == (7, 7)
    for i, j in [(0, 0), (2, 5)]:
        one = expect(
            factors, [0.0, 0.0], [[gram[i, i], gram[i, j]], [gram[i, j], gram[j, j]]]
        )
        assert abs(one - value[i, j]) < 1e-13
    pairs = jax.vmap(
        lambda a, row: jax.vmap(
            lambda b, c: expect(factors, [None, None], [[a, c], [c, b]])
        )(diagonal, row)
    )(diagonal, gram)
    assert np.allclose(pairs, value, rtol=0, atol=1e-12)


def test_zero_variance_and_coarse_level():
    tanh = _function("tanh")
    value = hermite_dual(tanh, tanh, *_arrays((0.4, 0.3), (0.0, 0.0, 0.0)), (), 1)
    assert abs(value - np.tanh(0.4) * np.tanh(0.3)) < 1e-14
    coarse = expect(
        [tanh, substitute(tanh, [Arg(1)])], [None] * 2, [[2.0, 1.0], [1.0, 2.0]],
        (), Accuracy(0),
    )  # fmt: skip
    exact = _grid_reference(np.tanh, np.tanh, (0, 0), (2.0, 2.0, 1.0))
    assert abs(coarse - exact) < 1e-10
