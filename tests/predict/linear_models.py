"""Models linear in their parameters, whose training is known by other means."""

import itertools

import numpy as np
import scipy.linalg

N, M, OUT, RATE = 5, 3, 2, 0.4
RNG = np.random.default_rng(0)
TANGENT = RNG.standard_normal((N + M, 40)) / 4
PRIOR = RNG.standard_normal((N + M, 30)) / 5
Y = RNG.standard_normal((N, OUT))
START = RNG.standard_normal((N + M, OUT))


def blocks(features, n=N):
    """Kernels of linear features: training, cross, test."""
    k = features @ features.T
    return k[:n, :n], k[n:, :n], k[n:, n:]


def flow_map(k_train, k_cross, s):
    """The map from errors (n) and outputs (m) at time 0 to those at time s.

    By the exponential of the system of both, which divides by nothing.
    """
    n, m = len(k_train), len(k_cross)
    slope = np.zeros((n + m, n + m))
    slope[:n, :n], slope[n:, :n] = -k_train, -k_cross
    return scipy.linalg.expm(s * slope)


def whole(matrix, shape1, shape2, traced):
    """A kernel of rows as that of all outputs, which it is a multiple of I along."""
    rows1, rows2 = (
        [s for a, s in enumerate(shape) if a not in traced]
        for shape in (shape1, shape2)
    )
    table = matrix.reshape((*rows1, *rows2))
    found = np.zeros((*shape1, *shape2))
    for i in itertools.product(*map(range, shape1)):
        for j in itertools.product(*map(range, shape2)):
            if all(i[a] == j[a] for a in traced):
                kept = [
                    [index[a] for a in range(len(index)) if a not in traced]
                    for index in (i, j)
                ]
                found[i + j] = table[tuple(kept[0] + kept[1])]
    return found.reshape(np.prod(shape1), np.prod(shape2))


def interleaved(matrix, rows, columns):
    """A matrix as a kernel with pairs of axes side by side, entry by entry."""
    found = np.zeros([s for pair in zip(rows, columns, strict=True) for s in pair])
    for a, i in enumerate(itertools.product(*map(range, rows))):
        for b, j in enumerate(itertools.product(*map(range, columns))):
            found[tuple(s for pair in zip(i, j, strict=True) for s in pair)] = matrix[
                a, b
            ]
    return found
