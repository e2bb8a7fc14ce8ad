"""What kernel matrices must satisfy before they are factorised."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from .._errors import InputError
from .._jax import is_concrete

_BAND = 128
"""Rows that are compared with their mirror images at a time."""


def double(name: str, array: Any, *, infinite: bool = False) -> np.ndarray:
    """A float64 copy or view of `array`, all of it finite, or numbers if `infinite`.

    Raises:
        InputError: it is traced, not numeric, complex, or not finite.
    """
    if not is_concrete(array):
        raise InputError(
            f"`{name}` is traced by JAX (inside jit, grad or vmap), so it has no "
            "numbers yet. Compute the kernels there and call this function outside."
        )
    given = np.asarray(array)
    if given.dtype.kind == "c" or not _numeric(given):
        raise InputError(
            f"`{name}` has type {given.dtype}; real numbers were expected."
        )
    values = given.astype(np.float64, copy=False)
    bad = np.isnan(values) if infinite else ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"`{name}` has {int(bad.sum())} entries that are not finite, the first at "
            f"{where}: {values[where]}."
        )
    return values


def _numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating)


def resolution(array: Any) -> float:
    """The relative spacing of the numbers of an array, as computed by the caller."""
    dtype = getattr(array, "dtype", np.dtype(np.float64))
    floating = jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype).eps) if floating else float(np.finfo(float).eps)


def symmetric(name: str, k: np.ndarray, accuracy: float) -> None:
    """Refuse a kernel matrix that is not symmetric to its own precision.

    Raises:
        InputError: naming the entry that differs most from its mirror image.
    """
    enough = 1e3 * accuracy * largest(k)
    # By bands, which stay in the cache, and their mirror images.
    bands = range(0, len(k), _BAND)
    if all(
        largest(k[i : i + _BAND, i:] - k[i:, i : i + _BAND].T) <= enough for i in bands
    ):
        return
    gap = np.abs(k - k.T)
    i, j = np.unravel_index(int(np.argmax(gap)), k.shape)
    if gap[i, j] > enough:
        raise InputError(
            f"`{name}` is not symmetric: entry ({i}, {j}) is {k[i, j]:.6g} and "
            f"({j}, {i}) is {k[j, i]:.6g}. A kernel of a set of inputs with itself is."
        )


def largest(k: Any) -> Any:
    """The largest size of an entry."""
    return max(k.max(), -k.min())


def rounding(k: Any, accuracy: float, xp: Any = np) -> Any:
    """The size below which an eigenvalue of `k` is rounding error.

    Independent errors of `accuracy` in every entry have norm about sqrt(n) times the
    largest entry; the factorisation adds n roundings of the norm of `k`, which `xp`
    computes.
    """
    n = len(k)
    entry, norm = xp.maximum(k.max(), -k.min()), xp.linalg.norm(k)
    return accuracy * math.sqrt(n) * entry + n * resolution(k) * norm


def smallest(k: np.ndarray) -> float:
    """The smallest eigenvalue of a symmetric matrix."""
    return float(scipy.linalg.eigvalsh(k, subset_by_index=(0, 0))[0])


def singular(
    k: np.ndarray,
    noise: float,
    accuracy: float,
    *,
    name: str = "k_train",
    option: str = "noise",
    unit: float = 1.0,
) -> InputError:
    """The error for a `k + noise * I` that cannot be inverted.

    Args:
        k: the matrix.
        noise: added to its diagonal.
        accuracy: relative error of its entries.
        name: of the kernel.
        option: what the caller calls the noise.
        unit: of that option.
    """
    eigenvalue, least = smallest(k), rounding(k, accuracy)
    enough = 2 * least - min(eigenvalue, 0.0) if least > 0 else 1.0
    if eigenvalue < -1e3 * least:
        reason = "so it is not the kernel of any process; check how it was computed"
    else:
        reason = "as when inputs coincide or outnumber the features of the kernel"
    return InputError(
        f"`{name}` plus {option} {noise / unit:g} is singular: the smallest eigenvalue "
        f"of `{name}` is {eigenvalue:.3g}, {reason}. From its {len(k)} x {len(k)} "
        f"numbers, {least:.1g} is the least that can be told from 0; "
        f"`{option}={round_up(enough / unit):g}` is enough."
    )


def round_up(x: float) -> float:
    """The least number of one significant digit that is not below `x` > 0."""
    unit = 10.0 ** math.floor(math.log10(x))
    return float(f"{math.ceil(x / unit) * unit:.0e}")


def not_negative(
    variance: np.ndarray,
    scale: float,
    total: np.ndarray,
    accuracy: float,
    what: str,
    kernels: str,
) -> np.ndarray:
    """Round tiny negative variances of test inputs up to zero, and refuse others.

    A relative error of `accuracy` in every kernel entry moves the variance of a test
    input with weights w by at most about `accuracy` (1 + sum |w|)^2 times the scale.

    Args:
        variance: one for every test input.
        scale: of the entries of the kernels.
        total: sum |w| for every test input.
        accuracy: relative error of the kernels.
        what: what kind of variance it is, for the message.
        kernels: the names of the kernels, for the message.
    """
    slack = 10 * accuracy * scale * (1 + total) ** 2
    worst = int(np.argmin(variance + slack))
    if variance[worst] < -slack[worst]:
        raise InputError(
            f"The {what} of test input {worst} is {variance[worst]:.3g}, "
            f"below zero by more than rounding: {kernels} are "
            "not kernels of the same process at the same inputs. Compute all three "
            "with one kernel, and give the one between test and training inputs with "
            "the test inputs first."
        )
    return np.maximum(variance, 0.0)
