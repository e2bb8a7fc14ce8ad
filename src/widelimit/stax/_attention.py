"""Self-attention over all positions."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import InputError
from ._choice import chosen
from ._layer import Layer, Leaf, layer, layer_of
from ._masks import every, zeroed
from ._signal import Signal, Widths, known
from ._weights import Weight


class AttentionMechanism(enum.Enum):
    """What is done to the products of queries and keys.

    Attributes:
        SOFTMAX: `jax.nn.softmax` over the keys.
        IDENTITY: nothing.
        ABS: the absolute value.
        RELU: the positive part.
    """

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"

    def fn(self) -> Callable[[Any], Any]:
        """The function of the products, shape (.., queries, keys)."""
        return {
            "SOFTMAX": jax.nn.softmax,
            "IDENTITY": lambda x: x,
            "ABS": jnp.abs,
            "RELU": lambda x: jnp.maximum(x, 0.0),
        }[self.value]


class PositionalEmbedding(enum.Enum):
    """How positions are told apart.

    Attributes:
        NONE: they are not.
        SUM: a random vector for every position is added to its channels.
        CONCAT: it is put beside them.
    """

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


@layer
def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: Any = 1.0,
    W_value_std: Any = 1.0,
    W_query_std: Any = 1.0,
    W_out_std: Any = 1.0,
    b_std: Any = None,
    attention_mechanism: str = AttentionMechanism.SOFTMAX.name,
    pos_emb_type: str = PositionalEmbedding.NONE.name,
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: Callable[[Any], Any] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: Any = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    r"""Every position becomes a weighted mean over all positions.

    With weights A = mechanism(Q K^T) of queries and keys, every head gives A V; the
    heads together are multiplied with the output weights.

    Args:
        n_chan_out: the number of channels afterwards.
        n_chan_key: that of the keys and queries of a head.
        n_chan_val: that of the values of a head.
        n_heads: the number of heads.
        linear_scaling: whether Q K^T is divided by `n_chan_key`, with the weights of
            the queries those of the keys; its limit is then not random. Otherwise by
            the root of `n_chan_key`, with weights of their own; the limit is that of
            infinitely many heads.
        W_key_std: standard deviation of the weights of the keys, times the square root
            of the fan-in; only its product with `W_query_std` matters.
        W_value_std: that of the values.
        W_query_std: that of the queries.
        W_out_std: that of the output.
        b_std: that of the biases of the output; None for none.
        attention_mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
        pos_emb_type: "NONE", "SUM" or "CONCAT".
        pos_emb_p_norm: the distance of two positions is the p-th power of their
            p-norm.
        pos_emb_decay_fn: the covariance of the embeddings of two positions as a
            function of their distance; by default they are independent.
        n_chan_pos_emb: the number of channels of the embeddings, for "CONCAT"; by
            default that of the input.
        W_pos_emb_std: standard deviation of the embeddings.
        val_pos_emb: whether the values see the embeddings too.
        batch_axis: the axis of inputs.
        channel_axis: the axis of channels.

    Returns:
        A layer; its parameters are (query, key, value, output, bias, embedding), None
        for those it does not have; those of heads have the heads first.

    References:
        Hron et al. (2020), https://arxiv.org/abs/2006.10540.
    """
    it = _Attention(
        (n_chan_out, n_chan_key, n_chan_val, n_heads),
        linear_scaling,
        (W_query_std, W_key_std, W_value_std, W_out_std, b_std),
        chosen(AttentionMechanism, "attention_mechanism", attention_mechanism),
        chosen(PositionalEmbedding, "pos_emb_type", pos_emb_type),
        (pos_emb_p_norm, pos_emb_decay_fn),
        n_chan_pos_emb,
        W_pos_emb_std,
        val_pos_emb,
        (batch_axis, channel_axis),
    )
    if it.embedding == PositionalEmbedding.SUM and n_chan_pos_emb is not None:
        raise InputError(
            "`n_chan_pos_emb` is for pos_emb_type='CONCAT'; embeddings that are added "
            "have the channels of the input."
        )

    def mask(mask: Any, shape: Any) -> Any:
        return every(mask, channel_axis)

    return layer_of(Leaf(it.run, it.declared, mask, it.axes))


@dataclasses.dataclass(frozen=True)
class _Attention:
    """The arguments of `GlobalSelfAttention`, in groups, and what it does."""

    channels: tuple[int, int, int, int]
    linear_scaling: bool
    stds: tuple[Any, Any, Any, Any, Any]
    mechanism: AttentionMechanism
    embedding: PositionalEmbedding
    decay: tuple[float, Callable[[Any], Any] | None]
    n_chan_pos_emb: int | None
    W_pos_emb_std: Any
    val_pos_emb: bool
    axes: tuple[int, int]

    def declared(self, signal: Signal, widths: Widths) -> tuple[Signal, Any]:
        """The signal afterwards, and the weights."""
        channels = known(signal.channels, "The number of channels")
        out, key, value = (widths(size) for size in self.channels[:3])
        heads = widths.heads(self.channels[3])
        if widths.is_infinite and self.linear_scaling:
            heads = 1  # all are alike, as their weights on positions are not random
        place = None
        seen = read = channels
        if self.embedding != PositionalEmbedding.NONE:
            given = self.n_chan_pos_emb
            extra = channels if given is None else widths(given)
            sizes = [known(n, "The number of positions") for n in signal.spatial_shape]
            place = Weight((*sizes, extra), self.W_pos_emb_std)
            if self.embedding == PositionalEmbedding.CONCAT:
                seen = channels + extra
                read = seen if self.val_pos_emb else channels
        query_std, key_std, value_std, out_std, b_std = self.stds
        shape = (heads, seen, key)
        queries = None if self.linear_scaling else Weight(shape, query_std, (1,))
        # One matrix for both: only the product of their deviations matters.
        tied = (query_std * key_std) ** 0.5
        weights = (
            queries,
            Weight(shape, tied if self.linear_scaling else key_std, (1,)),
            Weight((heads, read, value), value_std, (1,)),
            Weight((heads, value, out), out_std, (0, 1)),
            None if b_std is None else Weight((out,), b_std),
            place,
        )
        return signal.with_channels(out), weights

    def run(self, weights: Any, x: Any, mask: Any = None, **kwargs: Any) -> Any:
        """The layer, with effective weights."""
        queries, keys, values, output, bias, place = weights
        ends = tuple(a % x.ndim for a in self.axes)
        x = jnp.moveaxis(x, ends, (0, -1))
        count, *positions, channels = x.shape
        hidden = None
        if mask is not None:
            hidden = every(mask, self.axes[1])
            hidden = jnp.moveaxis(hidden, ends, (0, -1))
            hidden = jnp.broadcast_to(hidden, (count, *positions, 1))
            hidden = hidden.reshape(count, -1)
        x = x.reshape(count, -1, channels)
        told = x if place is None else self._placed(x, place, positions, hidden)
        k = jnp.einsum("npc,hcd->nhpd", told, keys)
        q = k if queries is None else jnp.einsum("npc,hcd->nhpd", told, queries)
        size = k.shape[-1] if self.linear_scaling else jnp.sqrt(k.shape[-1])
        logits = jnp.einsum("nhpd,nhqd->nhpq", q, k) / size
        if hidden is not None:
            softmax = self.mechanism == AttentionMechanism.SOFTMAX
            nothing = -1e20 if softmax else 0.0
            logits = jnp.where(hidden[:, None, None, :], nothing, logits)
        read = jnp.einsum("nqc,hcd->nhqd", told if self.val_pos_emb else x, values)
        mixed = jnp.einsum("nhpq,nhqd->nhpd", self.mechanism.fn()(logits), read)
        y = jnp.einsum("nhpd,hdo->npo", mixed, output)
        if bias is not None:
            y = y + bias[None, None]
        y = y.reshape(count, *positions, y.shape[-1])
        return jnp.moveaxis(y, (0, -1), ends)

    def _placed(self, x: Any, place: Any, positions: Any, hidden: Any) -> Any:
        """The input (N, positions, channels) with its positions told."""
        norm, decay = self.decay
        placed = place.reshape(-1, place.shape[-1])
        if decay is not None:
            placed = jnp.asarray(_root(tuple(positions), norm, decay), x.dtype) @ placed
        if hidden is not None:
            placed = zeroed(placed[None], hidden[:, :, None])
        if self.embedding == PositionalEmbedding.SUM:
            return x + (placed if placed.ndim == 3 else placed[None])
        placed = jnp.broadcast_to(placed, (*x.shape[:2], placed.shape[-1]))
        return jnp.concatenate([x, placed], -1)


def _root(
    positions: Sequence[int], norm: float, decay: Callable[[Any], Any]
) -> np.ndarray:
    """A square root of the covariance of embeddings, (positions, positions).

    Raises:
        InputError: it is not positive definite.
    """
    grid = np.stack(np.meshgrid(*map(np.arange, positions), indexing="ij"), -1)
    grid = grid.reshape(-1, len(positions))
    distance = (np.abs(grid[:, None] - grid[None]) ** float(norm)).sum(-1)
    with jax.ensure_compile_time_eval():
        covariance = np.asarray(decay(jnp.asarray(distance)), np.float64)
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise InputError(
            "`pos_emb_decay_fn` gives no covariance: the matrix of its values for all "
            f"pairs of the {len(grid)} positions is not positive definite."
        ) from None
