"""Coefficients of a linear regression between families: blocks of C^+ b."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

# Eigenvalues of the correlations below this, relative to the largest, count as zero.
# Correlations that are singular in exact arithmetic come with eigenvalues of 1e-16
# from closed forms and of 1e-12 or so from quadrature.
_CUTOFF = 1e-10


def block_index(row: int, col: int, blocks: int) -> int:
    """Where block (row, col), row <= col, of a symmetric matrix stands in a list."""
    return row * blocks - row * (row - 1) // 2 + col - row


def regress(part: int, blocks: int, args: Sequence[Any]) -> Any:
    """One block of C^+ b, the coefficients with least norm.

    Args:
        part: the number of the block.
        blocks: how many blocks there are, K.
        args: the blocks C[k, l] for k <= l in the order of rows, of shape I_k + I_l;
            then the blocks b[k], of shape I_k + P.

    Returns:
        Block `part`, of shape I_part + P.
    """
    right = args[-blocks:]
    shapes = []
    for k in range(blocks):
        square = jnp.shape(args[block_index(k, k, blocks)])
        shapes.append(square[: len(square) // 2])
    sizes = [math.prod(s) for s in shapes]
    tail = jnp.shape(right[0])[len(shapes[0]) :]

    def block(k: int, m: int) -> Any:
        if k <= m:
            return args[block_index(k, m, blocks)].reshape(sizes[k], sizes[m])
        return args[block_index(m, k, blocks)].reshape(sizes[m], sizes[k]).T

    c = jnp.block([[block(k, m) for m in range(blocks)] for k in range(blocks)])
    b = jnp.concatenate([x.reshape(n, -1) for x, n in zip(right, sizes, strict=True)])
    # Variables of very different sizes are brought to variance 1 first.
    variance = jnp.diagonal(c)
    positive = variance > 0.0
    scale = jnp.where(positive, 1.0 / jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)
    correlations = scale[:, None] * c * scale
    inverse = jnp.linalg.pinv(correlations, rtol=_CUTOFF, hermitian=True)
    a = scale[:, None] * jnp.matmul(inverse, scale[:, None] * b, precision="highest")
    start = sum(sizes[:part])
    return a[start : start + sizes[part]].reshape(*shapes[part], *tail)
