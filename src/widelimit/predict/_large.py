"""Products of large matrices on the host, by XLA.

XLA multiplies with vectors as wide as the processor has, also in float64, and its
threads do not wait for each other: the BLAS of NumPy's wheels takes about twice the
time, and many times that on a busy machine. Small products are not worth compiling.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

from .. import _jax

LARGE = 2**18
"""Numbers in the largest array from which on this is worth it."""


def computed(xp: Any, f: Callable[..., Any], *arrays: Any) -> Any:
    """`f` of arrays, compiled in float64 if they are large and NumPy's.

    Args:
        xp: `numpy` or `jax.numpy`.
        f: of arrays of either kind.
        *arrays: its arguments.

    Returns:
        What `f` returns, arrays of the kind that `xp` makes.
    """
    if xp is not np or not _large(*arrays):
        return f(*arrays)
    with _exactly():
        return jax.tree.map(np.asarray, _compiled(f)(*arrays))


def each(xp: Any, f: Callable[..., Any], rows: Any, *others: Any) -> Any:
    """`f(row, *others)` of every row, one after the other: in the memory of one."""
    if xp is not np:
        return jax.lax.map(lambda row: f(row, *others), rows)
    if not _large(*others):
        return np.stack([f(row, *others) for row in rows])
    with _exactly():
        arrays = [jnp.asarray(a) for a in others]
        return np.stack([np.asarray(_compiled(f)(row, *arrays)) for row in rows])


def side_by_side(xp: Any, makers: Sequence[Callable[[], Any]], k: Any) -> None:
    """Make several factorisations at once, each with its share of the threads of BLAS.

    Two on one processor each take as long as one after the other on both, and on a busy
    machine much less, where the threads of one wait for each other.

    Args:
        xp: `numpy`, or `jax.numpy`, which has threads of its own.
        makers: what makes and keeps them.
        k: a matrix of their size.
    """
    if xp is not np or not _large(k) or len(makers) < 2:
        return
    libraries = _libraries().select(user_api="blas")
    threads = max((i["num_threads"] for i in libraries.info()), default=1)
    share = max(1, threads // len(makers))
    with libraries.limit(limits=share), ThreadPoolExecutor(len(makers)) as pool:
        list(pool.map(lambda make: make(), makers))


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def product(a: Any, transposed: Any) -> Any:
    """A product, for `computed`: what LAPACK makes is in the order of its transpose."""
    return a @ transposed.T


def _large(*arrays: Any) -> bool:
    return max((a.size for a in arrays), default=0) >= LARGE


@functools.cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f)


@contextlib.contextmanager
def _exactly() -> Iterator[None]:
    """Numbers now, also under a trace, and in double precision."""
    with jax.ensure_compile_time_eval(), _jax.enable_x64():
        yield
