"""Every layer: the finite network, run, against the kernels of its limit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_except

from widelimit import stax

RNG = np.random.default_rng(0)
FLAT, SEQUENCE = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 5, 2))
IMAGE, NCHW = RNG.normal(size=(2, 5, 4, 2)), RNG.normal(size=(2, 2, 5, 4))
GRAPH = RNG.integers(2, size=(3, 5, 5)).astype(float)
EDGES = RNG.integers(-1, 5, size=(3, 6, 2))
WIDTH, SEEDS = 96, 200

Dense = functools.partial(stax.Dense, WIDTH, 1.3, 0.3)
Conv = functools.partial(stax.Conv, WIDTH, W_std=1.3, b_std=0.3)
N, C = ("NCHW", "OIHW", "NCHW"), 1


def residual(*branch: Any) -> Any:
    return stax.serial(
        stax.FanOut(2),
        stax.parallel(stax.Identity(), stax.serial(*branch)),
        stax.FanInSum(),
    )


def two(first: Any, second: Any, join: Any) -> Any:
    return stax.serial(stax.FanOut(2), stax.parallel(first, second), join)


STEP = stax.shared(Dense())
SMALL = functools.partial(stax.Conv, WIDTH, (2, 2), W_std=1.3)
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dense": ([Dense(), stax.Erf(), Dense()], FLAT, {}),
    "standard": (
        [
            stax.Dense(32, 1.3, 0.3, parameterization="standard", s=(1, 4)),
            stax.Erf(),
            stax.Dense(32, 1.3, 0.3, parameterization="standard", s=(4, 4)),
        ],
        FLAT,
        {},
    ),
    "channels first": (
        [
            Conv((2, 2), dimension_numbers=N),
            stax.Erf(),
            stax.AvgPool((2, 2), None, "VALID", False, 0, C),
        ],
        NCHW,
        {},
    ),
    "strides": ([Conv((3, 2), (2, 1), "SAME"), stax.Erf(), stax.Flatten()], IMAGE, {}),
    "circular": (
        [Conv((3, 2), (1, 2), "CIRCULAR"), stax.Erf(), stax.GlobalSumPool()],
        IMAGE,
        {},
    ),
    "transposed": (
        [
            stax.ConvTranspose(WIDTH, (3, 2), (2, 1), "SAME", 1.3, 0.3),
            stax.Erf(),
            stax.GlobalAvgPool(),
        ],
        IMAGE,
        {},
    ),
    "transposed, circular": (
        [
            stax.ConvTranspose(WIDTH, (3, 3), (2, 1), "CIRCULAR", 1.3, 0.3),
            stax.Erf(),
            stax.GlobalAvgPool(),
        ],
        IMAGE,
        {},
    ),
    "local": (
        [
            stax.ConvLocal(WIDTH, (3, 2), padding="SAME", W_std=1.3, b_std=0.3),
            stax.Erf(),
            stax.GlobalAvgPool(),
            Dense(),
        ],
        IMAGE,
        {},
    ),
    "average, edges": (
        [
            Conv((2, 2)),
            stax.AvgPool((2, 2), (1, 2), "SAME", normalize_edges=True),
            stax.Erf(),
            stax.Flatten(),
        ],
        IMAGE,
        {},
    ),
    "sum, circular": (
        [SMALL(), stax.Erf(), stax.SumPool((2, 2), padding="CIRCULAR"), SMALL()],
        IMAGE,
        {},
    ),
    "sum of branches": ([Dense(), residual(stax.Relu(), Dense()), Dense()], FLAT, {}),
    "one branch twice": (
        [Dense(), two(stax.Identity(), stax.Identity(), stax.FanInSum()), Dense()],
        FLAT,
        {},
    ),
    "product with itself": (
        [
            Dense(),
            stax.Erf(),
            two(stax.Identity(), stax.Identity(), stax.FanInProd()),
            Dense(),
        ],
        FLAT,
        {},
    ),
    "side by side": (
        [
            two(
                stax.serial(stax.Dense(WIDTH), stax.Erf()),
                stax.Dense(2 * WIDTH, 0.7),
                stax.FanInConcat(),
            ),
            Dense(),
        ],
        FLAT,
        {},
    ),
    "positions side by side": (
        [
            two(Conv((2, 2)), Conv((2, 2)), stax.FanInConcat(1)),
            stax.Erf(),
            stax.GlobalAvgPool(),
        ],
        IMAGE,
        {},
    ),
    "layer norm": ([Dense(), stax.Relu(), stax.LayerNorm(), Dense()], FLAT, {}),
    "layer norm over positions": (
        [SMALL(), stax.LayerNorm((1, 2, 3)), stax.Erf(), stax.Flatten()],
        IMAGE,
        {},
    ),
    "dropout": ([Dense(), stax.Erf(), stax.Dropout(0.6), Dense()], FLAT, {"rng": True}),
    "aggregate": (
        [stax.Dense(WIDTH), stax.Erf(), stax.Aggregate(1), Dense()],
        SEQUENCE,
        {"pattern": GRAPH},
    ),
    "aggregate edges": (
        [stax.Dense(WIDTH), stax.Aggregate(1, implementation="SPARSE"), Dense()],
        SEQUENCE,
        {"pattern": EDGES},
    ),
    "cubic": (
        [
            SMALL(),
            stax.ImageResize((-1, 3, 5, -1), "cubic"),
            stax.Erf(),
            stax.Flatten(),
        ],
        IMAGE,
        {},
    ),
    "index": (
        [SMALL(), stax.Index(stax.Slice[:, ::-2, 1:]), stax.Erf(), stax.Flatten()],
        IMAGE,
        {},
    ),
    "fixed product": (
        [
            SMALL(),
            stax.DotGeneral(
                rhs=np.arange(8.0).reshape(2, 4) / 8,
                dimension_numbers=(((1,), (1,)), ((), ())),
            ),
        ],
        IMAGE,
        {},
    ),
    "attention": (
        [
            stax.Dense(WIDTH),
            stax.GlobalSelfAttention(
                WIDTH, WIDTH, WIDTH, 2, pos_emb_type="CONCAT", b_std=0.2, W_out_std=1.2
            ),
        ],
        SEQUENCE,
        {},
    ),
    "attention with random weights": (
        [
            stax.Dense(48),
            stax.GlobalSelfAttention(
                48, 48, 48, 24, False, b_std=0.2, attention_mechanism="RELU"
            ),
        ],
        SEQUENCE[:, :3],
        {},
    ),
    "repeated": (
        [Dense(), stax.repeat(stax.serial(stax.Erf(), Dense()), 3)],
        FLAT,
        {},
    ),
    "shared": ([Dense(), stax.Erf(), STEP, stax.Erf(), STEP], FLAT, {}),
    "embedding": (
        [stax.Embedding(5, WIDTH), stax.GlobalAvgPool(), stax.Erf(), Dense()],
        RNG.integers(5, size=(3, 4, 1)),
        {},
    ),
    "masked": (
        [
            stax.Conv(WIDTH, (2,), W_std=1.3, b_std=0.3, padding="SAME"),
            stax.Erf(),
            stax.GlobalAvgPool(),
        ],
        np.where(
            np.arange(5)[None, :, None] < np.array([5, 3, 2])[:, None, None],
            SEQUENCE,
            9.0,
        ),
        {"mask_constant": 9.0},
    ),
    "bidirectional": (
        [
            stax.FanOut(2),
            stax.parallel(
                stax.RNN(WIDTH, b_std=0.3),
                stax.RNN(
                    WIDTH, jnp.sin, 1.3, reverse=True, parameterization="standard"
                ),
            ),
            stax.FanInConcat(),
            Dense(),
        ],
        SEQUENCE[:, :3],
        {},
    ),
    "sequences of different lengths": (
        [stax.RNN(WIDTH, jax.lax.erf, 1.3, b_std=0.3), stax.GlobalAvgPool(), Dense()],
        np.where(
            np.arange(3)[None, :, None] < np.array([3, 2, 1])[:, None, None],
            SEQUENCE[:, :3],
            9.0,
        ),
        {"mask_constant": 9.0},
    ),
    "lstm": (
        [stax.LSTM(WIDTH, b_std=0.3), stax.GlobalAvgPool(), Dense()],
        SEQUENCE[:2, :2],
        {},
    ),
    "gru": (
        [stax.GRU(WIDTH, 1.2, b_std=0.3), stax.GlobalAvgPool(), Dense()],
        SEQUENCE[:2, :2],
        {},
    ),
    "softmax": ([Dense(), stax.Softmax(), stax.Flatten()], SEQUENCE[:, :3], {}),
    "maximum": (
        [SMALL(), stax.MaxPool((2, 2), (2, 2)), stax.GlobalAvgPool(), Dense()],
        IMAGE,
        {},
    ),
    "given kernel": (
        [Dense(), stax.ElementwiseNumerical(jnp.tanh, 40), Dense()],
        FLAT,
        {},
    ),
}
FAST = ("one branch twice", "masked")


@pytest.mark.parametrize("name", slow_except(NETWORKS, FAST))
def test_networks_converge_to_their_kernels(name: str) -> None:
    layers, x, kwargs = NETWORKS[name]
    init_fn, apply_fn, kernel_fn = stax.serial(*layers)
    x = jnp.asarray(x, float)
    given = {k: v for k, v in kwargs.items() if k != "rng"}
    twice = {k: (v, v) if k == "pattern" else v for k, v in given.items()}
    *limit, channel_axis = kernel_fn(x, None, ("nngp", "ntk", "channel_axis"), **twice)

    @jax.jit
    @jax.vmap
    def sample(key: Any) -> tuple[Any, Any]:
        first, second, third = jax.random.split(key, 3)
        _, params = init_fn(first, x.shape)
        rng = {"rng": second} if "rng" in kwargs else {}

        def run(params: Any) -> Any:
            y = stax.unmask_fn(apply_fn)(params, x, **rng, **given)
            return jnp.moveaxis(y, channel_axis, -1)

        # Along a random direction v: the mean of (J v) (J v)^T is J J^T.
        keys = iter(jax.random.split(third, len(jax.tree.leaves(params))))
        v = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
        return tuple(map(products, jax.jvp(run, (params,), (v,))))

    samples = sample(jax.random.split(jax.random.key(1), SEEDS))
    for exact, found in zip(limit, samples, strict=True):
        found = np.asarray(found)
        assert found.shape[1:] == exact.shape
        mean, scatter = found.mean(0), found.std(0, ddof=1)
        # Finite networks have a bias of order 1 / width besides.
        size = np.sqrt(np.mean(np.square(exact)))
        bound = 5 * scatter / np.sqrt(SEEDS) + 4 * size / WIDTH
        assert np.all(np.abs(mean - exact) < bound)


def products(y: Any) -> Any:
    """The mean over channels of y y', with positions in pairs."""
    count = y.ndim - 2
    left, right = "abcd"[:count], "ijkl"[:count]
    pairs = "".join(a + b for a, b in zip(left, right, strict=True))
    return jnp.einsum(f"n{left}z,m{right}z->nm{pairs}", y, y) / y.shape[-1]
