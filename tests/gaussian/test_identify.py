"""A function is known by what it does, not by how it is spelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.gaussian import _identify
from widelimit.gaussian._closed import closed_name
from widelimit.gaussian._form import form_of
from widelimit.gaussian._identify import Pieces, identify
from widelimit.gaussian._terms import Mode
from widelimit.scalar import from_callable

SAME = {
    "relu": [
        lambda x: jnp.maximum(x, 0),
        jax.nn.relu,
        lambda x: x * (x > 0),
        lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: (x + jnp.abs(x)) / 2,
        lambda x: -jnp.minimum(-x, 0.0),
        lambda x: jnp.where(x != x, jnp.tanh(x), jax.nn.relu(x)),
    ],
    "sign": [jnp.sign, lambda x: x / jnp.abs(x), lambda x: 2.0 * (x >= 0) - 1.0],
    "hard_tanh": [
        jax.nn.hard_tanh,
        lambda x: jnp.clip(x, -1, 1),
        lambda x: jax.nn.relu(x + 1) - jax.nn.relu(x - 1) - 1,
    ],
    "elu": [
        jax.nn.elu,
        jax.nn.celu,
        lambda x: jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1),
    ],
    "gelu": [
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: x * jax.scipy.stats.norm.cdf(x),
        lambda x: x * 0.5 * (1 + jax.lax.erf(x * np.sqrt(0.5))),
    ],
    "sin^2": [lambda x: jnp.sin(x) ** 2, lambda x: 0.5 - 0.5 * jnp.cos(2 * x)],
    "cosh": [jnp.cosh, lambda x: (jnp.exp(x) + jnp.exp(-x)) / 2],
}


def _sizes(f):
    pieces = identify(from_callable(f, 1))
    assert pieces is not None
    return pieces


def _close(one, two):
    if len(one) != len(two):
        return False
    return all(
        np.allclose(
            [m.alpha, m.beta, m.omega, m.p, m.q],
            [n.alpha, n.beta, n.omega, n.p, n.q],
            1e-15,
            0,
        )
        and m.k == n.k
        and np.allclose(one[m], two[n], 1e-15, 1e-15)
        for m, n in zip(sorted(one), sorted(two), strict=True)
    )


@pytest.mark.parametrize("name", SAME)
def test_spellings_give_one_function(name):
    first, *others = [_sizes(f) for f in SAME[name]]
    for other in others:
        assert other.breaks == first.breaks
        assert all(
            _close(a, b) for a, b in zip(first.pieces, other.pieces, strict=True)
        )


def test_pieces_of_known_functions():
    relu6 = _sizes(jax.nn.relu6)
    assert relu6.breaks == (0.0, 6.0)
    assert relu6.pieces == ({}, {Mode(k=1): 1.0}, {Mode(): 6.0})
    assert _sizes(lambda x: jnp.maximum(x * x - 1, 0.0)).breaks == (-1.0, 1.0)
    assert _sizes(lambda x: jnp.exp(-x * x / 2)).pieces == ({Mode(beta=-0.5): 1.0},)
    golden = _sizes(lambda x: jnp.maximum(x * x - 1, x)).breaks
    np.testing.assert_allclose(golden, [(1 - 5**0.5) / 2, (1 + 5**0.5) / 2], 1e-15)
    clipped = jax.grad(lambda x: jnp.clip(x, -1, 1))
    assert _sizes(clipped).pieces == ({}, {Mode(): 1.0}, {})


@pytest.mark.parametrize(
    "f",
    [
        jnp.tanh,
        jax.nn.sigmoid,
        jax.nn.silu,
        jax.nn.softplus,
        jax.nn.mish,
        jax.nn.gelu,
        jax.nn.soft_sign,
        jnp.floor,
        lambda x: jax.lax.erf(x) ** 2,
        lambda x: jnp.exp(x**3),
        lambda x: 1 / (1 + x * x),
        lambda x: jnp.sqrt(x),
        lambda x: jnp.where(jnp.sin(x) > 0, x, 0.0),
    ],
)
def test_other_functions_have_no_form(f):
    assert identify(from_callable(f, 1)) is None


def test_functions_without_expectation_or_cross_terms_have_no_closed_form():
    kinked = from_callable(lambda x: jnp.where(x > 0, jnp.sin(x), 0.0), 1)
    assert identify(kinked) is not None
    assert closed_name(kinked) is None
    assert closed_name(from_callable(lambda x: jnp.exp(x * x / 8), 1)) is None
    relu, sine = from_callable(jax.nn.relu, 1), from_callable(jnp.sin, 1)
    assert closed_name(relu) is not None
    assert closed_name(relu, sine) is None


def test_a_form_that_disagrees_with_the_expression_is_refused():
    f = from_callable(jax.nn.relu, 1)
    good = Pieces((0.0,), ({}, {Mode(k=1): 1.0}))
    bad = Pieces((0.0,), ({}, {Mode(k=1): 1.0 + 1e-11}))
    assert _identify._confirmed(f, good)
    assert not _identify._confirmed(f, bad)
    assert not _identify._confirmed(f, Pieces((0.005,), good.pieces))


def test_more_than_one_argument_is_not_identified():
    assert identify(from_callable(lambda x, y: x * y, 2)) is None


def test_form_reproduces_the_function():
    for f in (jax.nn.selu, jax.nn.hard_swish, lambda x: jax.nn.relu(x - 1) ** 3):
        form = form_of(_sizes(f))
        assert form is not None
        x = np.linspace(-7, 7, 101) + 0.003
        total = np.zeros_like(x)
        for atom in form:
            y = atom.w * (x - atom.t)
            size = np.polynomial.polynomial.polyval(y, np.real(atom.poly))
            gate = y > 0 if atom.gate == "step" else 1.0
            total += size * np.exp(np.where(gate, atom.alpha * y, 0.0)) * gate
        np.testing.assert_allclose(total, f(jnp.asarray(x)), 1e-14, 1e-14)


def test_identification_inside_jit_sees_numbers():
    @jax.jit
    def inside(x):
        pieces = identify(from_callable(lambda u: jnp.maximum(u - 0.7531, 0.0), 1))
        assert pieces is not None
        return x * pieces.breaks[0]

    assert float(inside(1.0)) == 0.7531
