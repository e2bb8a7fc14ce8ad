"""Which expectations exist where a quadratic form is divided by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import NoLimitError
from widelimit.gaussian import check_exists, rough_mean
from widelimit.scalar import from_callable

ONES, EYE = np.ones((2, 2)), np.eye(2)


def square(*z):
    return sum(x * x for x in z)


def check(f, cov, means=None, params=()):
    d = len(cov)
    rows = [[jnp.asarray(c) for c in row] for row in cov]
    at = [None] * d if means is None else [jnp.asarray(m) for m in means]
    e = from_callable(f, d + len(params))
    check_exists([e], at, rows, params, lambda i: rows[i][i], lambda i: f"leaf {i}")


def inverse(power):
    return lambda *z: square(*z) ** -power


def jacobian(a, b):
    """An entry of the derivative of z / |z|."""
    q = square(a, b)
    return 1 / jnp.sqrt(q) - a * a / q**1.5


EXIST = {
    "1/|z| of 2": (inverse(0.5), EYE, None),
    "1/|z|^2 of 3": (inverse(1.0), np.eye(3), None),
    "1/|z|^3.5 of 4": (inverse(1.75), np.eye(4), None),
    "a b / |z|^2 of 1": (lambda a, b: a * b / square(a, b), ONES, None),
    "a bounded function of 1": (
        lambda a, b: jnp.tanh(a / jnp.sqrt(square(a, b))),
        ONES,
        None,
    ),
    "what cancels": (
        lambda a, b: (1 - (a * a + b * b) / square(a, b)) / square(a, b),
        EYE,
        None,
    ),
    "a constant": (lambda a, b: 1 / (square(a, b) + 1e-5), ONES, None),
    "a derivative that is zero": (lambda a, b: 1.0 / (a * a + 2.0), ONES, None),
    "a mean that is not met": (inverse(1.0), ONES, [1.0, -1.0]),
    "a guard": (
        lambda a, b: jnp.where(
            square(a, b) > 0,
            a / jnp.where(square(a, b) > 0, square(a, b), 1.0),
            0.0,
        ),
        ONES,
        None,
    ),
    "two batches": (lambda *z: inverse(0.5)(*z[:2]) * inverse(0.5)(*z[2:]), np.eye(4),
                    None),
}  # fmt: skip
NOT = {
    "1/|z| of 1": (inverse(0.5), ONES, None, 1),
    "1/|z|^2 of 2": (inverse(1.0), EYE, None, 2),
    "1/|z|^4 of 3": (inverse(2.0), np.eye(3), None, 3),
    "0/0": (lambda a, b: jax.nn.relu(a / jnp.sqrt(square(a, b))), 0 * EYE, None, 0),
    "a derivative": (lambda a, b: jacobian(a, b) ** 2, EYE, None, 2),
    "a function of others": (
        lambda a, b, c: jnp.tanh(c / jnp.sqrt(square(a, b))) / jnp.sqrt(square(a, b)),
        np.ones((3, 3)) + np.diag([0, 0, 1]),
        None,
        1,
    ),
    "of the root": (lambda a, b: 1 / jnp.sqrt(square(a, b)) ** 2, EYE, None, 2),
    "rsqrt": (lambda a, b: jax.lax.rsqrt(square(a, b)) ** 2, EYE, None, 2),
    "a mean that is met": (inverse(1.0), ONES, [1.0, 1.0], 1),
    "two batches that are one": (
        lambda *z: inverse(0.5)(*z[:2]) * inverse(0.5)(*z[2:]),
        np.tile(np.eye(2), (2, 2)),
        None,
        2,
    ),
}


@pytest.mark.parametrize(("f", "cov", "means"), EXIST.values(), ids=EXIST)
def test_what_exists(f, cov, means):
    check(f, cov, means)


@pytest.mark.parametrize(("f", "cov", "means", "rank"), NOT.values(), ids=NOT)
def test_what_does_not(f, cov, means, rank):
    with pytest.raises(NoLimitError, match=rf"leaf 0, of which {rank} (is|are) indep"):
        check(f, cov, means)


def test_a_constant_may_be_a_parameter():
    def f(a, b, eps):
        return 1 / (square(a, b) + eps)

    check(f, ONES, params=(jnp.asarray(0.1),))


def test_one_entry_of_many_suffices():
    for equal, passes in ((0.5, True), (1.0, False)):
        across = jnp.asarray([0.0, 0.3, equal])
        cov = [[1.0, across], [across, 1.0]]
        if passes:
            check(inverse(0.5), cov)
        else:
            with pytest.raises(NoLimitError, match="1 is independent"):
                check(inverse(0.5), cov)


def test_single_precision():
    batch = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    batch -= batch.mean(0)
    cov = batch @ batch.T
    check(inverse(0.5), cov)
    with pytest.raises(NoLimitError, match="2 are independent"):
        check(inverse(1.0), cov)


def test_traced_numbers_are_not_known():
    jax.jit(lambda cov: check(inverse(0.5), cov))(jnp.ones((2, 2)))


def test_rough_means_are_of_the_right_size():
    f = from_callable(lambda a, b: a**2 + b, 2)
    found = rough_mean([f], [None, 0.5], [[np.full(3, 2.0), None], [None, 1.0]], ())
    assert found.shape == (3,)
    np.testing.assert_allclose(found, 2.5, rtol=0.5)
