"""Layer normalisation, dropout and batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp

from .._errors import InputError
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import mean_and_variance
from ._signal import Signal, Widths


@layer
def LayerNorm(
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-12,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Mean 0 and variance 1 along some axes, for every input.

    Args:
        axis: along which; among them usually that of the channels.
        eps: what is added to the variance.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.

    References:
        Ba et al. (2016), https://arxiv.org/abs/1607.06450.
    """
    given = (axis,) if isinstance(axis, int) else tuple(axis)

    def run(weights: Any, x: Any, mask: Any = None, **kwargs: Any) -> Any:
        axes = tuple(sorted({a % x.ndim for a in given}))
        mean, variance = mean_and_variance(x, axes, mask, keepdims=True)
        return (x - mean) / jnp.sqrt(eps + variance)

    return layer_of(Leaf(run, axes=(batch_axis, channel_axis)))


@layer
def Dropout(rate: float, mode: str = "train") -> Layer:
    """Entries are 0 at random, the others larger.

    Args:
        rate: the probability with which an entry is *kept*.
        mode: "train", or "test" for the identity. In training `apply_fn` takes a
            random key `rng`; in the limit every input has draws of its own.

    Raises:
        InputError: `rate` is not in (0, 1], or there is no such mode.
    """
    if mode not in ("train", "test"):
        raise InputError(f"`mode` should be 'train' or 'test', got {mode!r}.")
    if not 0.0 < rate <= 1.0:
        raise InputError(f"`rate`, of what is kept, should be in (0, 1], got {rate!r}.")

    def run(weights: Any, x: Any, rng: Any = None, **kwargs: Any) -> Any:
        if mode == "test" or rate == 1.0:
            return x
        if rng is None:
            raise InputError(
                "`apply_fn` of a network with dropout takes a random key: "
                "apply_fn(params, x, rng=jax.random.key(0)); or mode='test'."
            )
        kept = jax.random.bernoulli(rng, rate, x.shape)
        return jnp.where(kept, x / rate, 0.0)

    def declared(signal: Signal, widths: Widths) -> tuple[Signal, tuple[()]]:
        return signal.after(is_gaussian=signal.is_gaussian and mode == "test"), ()

    return layer_of(Leaf(run, declared))


@layer
def BatchNorm(
    axis: int | tuple[int, ...] = 0,
    eps: float = 1e-5,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Mean 0 and variance 1 of every channel over the batch, in training mode.

    Without `eps` the kernel needs 2 different inputs and the tangent kernel 4. Its
    derivative, infinite at zero, is then outside the theorems on gradients: the tangent
    kernel is what they would give, to be compared with real networks.

    Args:
        axis: over which; with positions, (0, 1, 2) also over these.
        eps: what is added to the variance.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.

    References:
        Ioffe and Szegedy (2015), https://arxiv.org/abs/1502.03167; Yang et al. (2019),
        https://arxiv.org/abs/1902.08129.
    """
    return LayerNorm(axis, eps, batch_axis, channel_axis)
