"""Rows of two Jacobians against each other: as they are, or as their factors."""

from typing import Any

import jax
import jax.numpy as jnp

from ._factors import Factors


def pays(a: Factors | None, b: Factors | None, size: int) -> bool:
    """Whether two gradients cost less to contract as factors.

    Args:
        a: of one side, if it has any.
        b: of the other.
        size: of the variable that they are gradients by.
    """
    if a is None or b is None or a.layout != b.layout:
        return False
    return a.steps * b.steps * (a.left + a.right) < size


def contract(a: tuple[Any, ...], b: tuple[Any, ...]) -> jax.Array:
    """The products of the rows of two Jacobians by one variable, summed over columns.

    Args:
        a: one array (units, rows, columns, size); or two factors (units, rows, columns,
            steps, length), of size one along axes that they do not depend on.
        b: the same of the other side.

    Returns:
        Shape (units, rows, units of b, rows of b).
    """
    if len(a) == 1:
        return jnp.einsum("uraz,vsaz->urvs", a[0], b[0])
    return _contract_factors(a, b)


def _contract_factors(a: tuple[Any, ...], b: tuple[Any, ...]) -> jax.Array:
    """The sum over columns and steps of (u_s . u'_t) (v_s . v'_t).

    Columns are summed over at once where only one of the products depends on them.
    """
    pairs = [_same_columns(p, q) for p, q in zip(a, b, strict=True)]
    if all(p.shape[2] > 1 for p, _ in pairs):
        grams = [jnp.einsum("urasz,vqatz->aurvqst", p, q) for p, q in pairs]
        return jnp.einsum("aurvqst,aurvqst->urvq", *grams)
    grams = [jnp.einsum("urasz,vqatz->urvqst", p, q) for p, q in pairs]
    return jnp.sum(grams[0] * grams[1], axis=(-1, -2))


def _same_columns(p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    columns = max(p.shape[2], q.shape[2])
    p, q = (jnp.broadcast_to(f, (*f.shape[:2], columns, *f.shape[3:])) for f in (p, q))
    return p, q
