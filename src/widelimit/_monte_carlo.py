"""The kernels of an infinitely wide network from draws of finite ones.

References:
    Novak et al. (2019), Bayesian deep convolutional networks with many channels are
    Gaussian processes, https://arxiv.org/abs/1810.05148, section 4.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ._batch import batch
from ._errors import InputError
from ._kernel import returned, wanted
from .finite import NtkImplementation, empirical_kernel_fn

NAME = "MonteCarloKernel"


def monte_carlo_kernel_fn(
    init_fn: Callable[..., Any],
    apply_fn: Callable[..., Any],
    key: jax.Array,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: int | tuple[int, ...] = (-1,),
    diagonal_axes: int | tuple[int, ...] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """The means of the kernels of many finite networks.

    They tend to the kernels of the limit as the width and the number of draws grow. One
    draw is off by a random amount of order width^-1/2, and its expectation by one of
    order 1/width, which no number of draws makes smaller.

    Args:
        init_fn: `init_fn(key, input_shape)` to a pair of the output shape and
            parameters, as in `jax.example_libraries.stax`.
        apply_fn: `apply_fn(params, x, **kwargs)`; if it takes `rng`, it gets a key of
            every draw.
        key: a random key; the same one gives the same draws.
        n_samples: how many networks to draw; or several such numbers.
        batch_size: see `batch`.
        device_count: see `batch`.
        store_on_device: see `batch`.
        trace_axes: see `empirical_nngp_fn`.
        diagonal_axes: see `empirical_nngp_fn`.
        vmap_axes: see `empirical_ntk_fn`.
        implementation: see `empirical_ntk_fn`.
        _j_rules: accepted for callers of Neural Tangents, without effect.
        _s_rules: the same.
        _fwd: the same.

    Returns:
        `kernel_fn(x1, x2=None, get=None, **apply_fn_kwargs)`: what
        `empirical_kernel_fn` gives, as a named tuple `MonteCarloKernel`. If `n_samples`
        are several numbers, an iterator over the means of so many draws, from the
        fewest to the most.

    Raises:
        InputError: a number of draws that is no positive whole number, or none at all;
            `apply_fn` cannot be called; and what `empirical_ntk_fn` and `batch` raise.
    """
    several = isinstance(n_samples, Iterable)
    counts = _counts(list(n_samples) if several else [n_samples])
    kernel_fn = empirical_kernel_fn(
        apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation
    )
    draw = one_draw(
        kernel_fn, init_fn, batch_size, device_count, store_on_device,
        with_rng=_takes_rng(apply_fn),
    )  # fmt: skip

    def means(x1: Any, x2: Any, get: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
        last, total = key, None
        for n in range(1, max(counts) + 1):
            last, own = jax.random.split(last)
            sample = draw(x1, x2, own, get=get, **kwargs)
            total = sample if total is None else jax.tree.map(jnp.add, total, sample)
            if n in counts:
                yield _named(jax.tree.map(lambda k, n=n: k / n, total), get)

    def sampled(
        x1: Any, x2: Any = None, get: Any = None, **apply_fn_kwargs: Any
    ) -> Any:
        names = wanted(get)
        asked = names[0] if isinstance(get, str) and names else names
        found = means(x1, x2, asked, apply_fn_kwargs)
        return found if several else next(found)

    return sampled


def one_draw(
    kernel_fn: Callable[..., Any],
    init_fn: Callable[..., Any],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    with_rng: bool = True,
) -> Callable[..., Any]:
    """The kernels of one network, as a function of its key.

    Args:
        kernel_fn: as `empirical_kernel_fn` gives.
        init_fn: see `monte_carlo_kernel_fn`.
        batch_size: see `batch`.
        device_count: see `batch`.
        store_on_device: see `batch`.
        with_rng: whether the network gets a key.

    Returns:
        `draw(x1, x2, key, get, **apply_fn_kwargs)`.
    """

    def draw(x1: Any, x2: Any, key: Any, get: Any, **apply_fn_kwargs: Any) -> Any:
        init_key, rng = jax.random.split(key)
        _, params = init_fn(init_key, jax.tree.map(lambda a: a.shape, x1))
        options = {"rng": rng} if with_rng else {}
        return kernel_fn(x1, x2, get, params, **options, **apply_fn_kwargs)

    return batch(draw, batch_size, device_count, store_on_device)


def _named(kernels: Any, get: Any) -> Any:
    """Kernels under the name of this module."""

    def renamed(kernel: Any) -> Any:
        return returned(kernel._asdict(), get, NAME) if _is_named(kernel) else kernel

    return jax.tree.map(renamed, kernels, is_leaf=_is_named)


def _is_named(kernel: Any) -> bool:
    return {"nngp", "ntk"}.issuperset(getattr(kernel, "_fields", [""]))


def _takes_rng(apply_fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(apply_fn).parameters.values()
    except (ValueError, TypeError) as error:
        raise InputError(
            "`apply_fn` should be a function apply_fn(params, x, **kwargs), got "
            f"{apply_fn!r}: {error}"
        ) from None
    return any(p.name == "rng" or p.kind is p.VAR_KEYWORD for p in parameters)


def _counts(given: list[Any]) -> frozenset[int]:
    try:
        counts = frozenset(operator.index(n) for n in given)
    except TypeError:
        counts = frozenset()
    if not counts or min(counts) < 1 or any(isinstance(n, bool) for n in given):
        raise InputError(
            "`n_samples` should be a positive whole number or several of them, got "
            f"{', '.join(map(repr, given)) or 'none'}."
        )
    return counts
