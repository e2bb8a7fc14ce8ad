"""Layouts of kernels are told apart, or not believed."""

import jax.numpy as jnp
import numpy as np
import pytest

from widelimit._kernel import Kernel
from widelimit.tiles import Mirror, Parts, layouts

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 4))
LAYOUTS = {
    "ij": ("iab,jab->ij", (1, 0)),
    "one pair": ("iab,jcb->ijac", (1, 0, 3, 2)),
    "one alone": ("iab,jab->ija", (1, 0, 2)),
    "interleaved": ("iab,jcd->ijacbd", (1, 0, 3, 2, 5, 4)),
    "first half with second": ("iab,jcd->ijabcd", (1, 0, 4, 5, 2, 3)),
    "both alone": ("iab,jab->ijab", (1, 0, 2, 3)),
    "alone, then a pair": ("iab,jac->ijabc", (1, 0, 2, 4, 3)),
    "a pair, then alone": ("iab,jcb->ijacb", (1, 0, 3, 2, 4)),
}


def seen(tiles, answer=None):
    answer = Parts.of(tiles[0]) if answer is None else answer
    mirror = Mirror(answer, list(answer.by_path()))
    for tile in tiles:
        mirror.see(Parts.of(tile))
    return mirror.axes


def kernel(formula, x):
    return jnp.einsum(formula, x, x**3) + jnp.einsum(formula, x**3, x)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tile_on_the_diagonal_shows_the_layout(name):
    formula, axes = LAYOUTS[name]
    assert seen([kernel(formula, X)]) == {(): axes}


@pytest.mark.parametrize("name", list(LAYOUTS)[1:])
def test_equal_inputs_show_nothing_and_later_ones_do(name):
    formula, axes = LAYOUTS[name]
    blank = kernel(formula, np.ones_like(X))
    if name != "one alone":  # three axes: there is only one way
        assert seen([blank]) is None
    assert seen([blank, kernel(formula, X)]) == {(): axes}


def test_what_is_not_symmetric_has_no_mirror():
    assert seen([jnp.einsum("iab,jab->ij", X, X**3)]) is None
    assert seen([kernel("iab,jab->ij", X).at[0, 1].add(1e-2)]) is None
    assert seen([kernel("iab,jab->ij", X).at[0, 1].set(jnp.nan)]) is None


def test_numbers_that_are_whole_are_compared_exactly():
    assert seen([jnp.asarray([[1, 2], [2, 1]])]) == {(): (1, 0)}
    assert seen([jnp.asarray([[1, 2], [3, 1]])]) is None
    assert seen([jnp.asarray([[True, False], [False, True]])]) == {(): (1, 0)}


@pytest.mark.parametrize(
    ("diagonal", "name"), [(True, "both alone"), (False, "one pair")]
)
def test_a_kernel_object_says_its_layout(diagonal, name):
    formula, axes = LAYOUTS[name]
    one = kernel(formula, np.ones_like(X))  # shows nothing
    answer = Parts.of(Kernel(nngp=one, ntk=one, diagonal_spatial=diagonal))
    paths = answer.by_path()
    mirror = Mirror(answer, [p for p in paths if p[-1].name in ("nngp", "ntk")])
    mirror.see(answer)
    assert list((mirror.axes or {}).values()) == [axes, axes]


def test_layouts_are_listed_once():
    assert layouts((5, 5)) == [(1, 0)]
    assert layouts((5, 5, 1, 1)) == [(1, 0, 2, 3)]
    assert layouts((5, 4, 3, 2)) == [(1, 0, 2, 3)]
    assert set(layouts((2, 2, 3, 3))) == {(1, 0, 2, 3), (1, 0, 3, 2)}
    assert len(layouts((2, 2, 3, 3, 3, 3))) == 6
    assert set(layouts((2, 2, 1, 3, 1, 3))) == {(1, 0, 2, 3, 4, 5), (1, 0, 2, 5, 4, 3)}
