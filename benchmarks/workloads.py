"""What `speed.py` times: networks in the layers that widelimit and its peer share.

A workload makes a function without arguments from a library's modules; everything that
is called once is in there, and what is timed is the function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Run = Callable[[], Any]
GET = ("nngp", "ntk")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A function to time.

    Attributes:
        make: from a library to the function.
        peer: the same as the peer is fastest, if in another way: by name.
        runs: how often it is timed.
    """

    make: Callable[[Any], Run]
    peer: dict[str, Callable[[Any], Run]] = dataclasses.field(default_factory=dict)
    runs: int = 5


def data(*shape: int, seed: int = 0) -> Any:
    """Gaussian inputs."""
    draw = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(draw, jnp.float32)


# Networks -----------------------------------------------------------------------------


def fully_connected(stax: Any, depth: int, act: str = "Relu", std: Any = 1.4) -> Any:
    """`depth` layers with a nonlinearity, and a readout."""
    layers = []
    for _ in range(depth):
        layers += [stax.Dense(512, std, 0.1), getattr(stax, act)()]
    return stax.serial(*layers, stax.Dense(1, std, 0.1))[2]


def convolutional(
    stax: Any,
    depth: int,
    readout: str = "GlobalAvgPool",
    act: str = "Relu",
    shape: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    std: Any = 1.4,
) -> Any:
    """`depth` convolutions; the second one strided."""
    layers = []
    for i in range(depth):
        step = strides if i == 1 else (1, 1)
        layers += [
            stax.Conv(512, shape, step, "SAME", W_std=std, b_std=0.1),
            getattr(stax, act)(),
        ]
    end = [getattr(stax, readout)(), stax.Dense(1, std, 0.1)]
    return stax.serial(*layers, *end)[2]


def residual(stax: Any) -> Any:
    """A small wide residual network: two blocks, the second one strided."""
    conv = functools.partial(stax.Conv, 512, (3, 3), padding="SAME", W_std=1.4)

    def block(strides: tuple[int, int]) -> Any:
        main = stax.serial(stax.Relu(), conv(strides=strides), stax.Relu(), conv())
        beside = stax.Identity() if strides == (1, 1) else conv(strides=strides)
        return stax.serial(stax.FanOut(2), stax.parallel(main, beside), stax.FanInSum())

    blocks = [block((1, 1)), block((2, 2))]
    end = [stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1, 1.4, 0.1)]
    return stax.serial(conv(), *blocks, *end)[2]


def myrtle(stax: Any) -> Any:
    """Myrtle-5 of Shankar et al. (2020)."""
    conv = functools.partial(stax.Conv, 512, (3, 3), padding="SAME", W_std=1.4)
    pool = functools.partial(stax.AvgPool, (2, 2), (2, 2))
    layers: list[Any] = [conv(), stax.Relu(), conv(), stax.Relu(), pool()]
    layers += [conv(), stax.Relu(), pool(), conv(), stax.Relu(), pool(), pool(), pool()]
    return stax.serial(*layers, stax.Flatten(), stax.Dense(1, 1.4, 0.1))[2]


# Kernels ------------------------------------------------------------------------------


def kernel(network: Callable[[Any], Any], n1: int, n2: int | None, *shape: int) -> Any:
    """Both kernels of some inputs, as a library's user would call them."""

    def make(library: Any) -> Run:
        f = library.jitted(network(library.stax))
        x1 = data(n1, *shape)
        x2 = None if n2 is None else data(n2, *shape, seed=1)
        return lambda: f(x1, x2, GET)

    return make


def batched(
    network: Callable[[Any], Any], n1: int, n2: int | None, size: int, *shape: int
) -> Any:
    """The same through the library's `batch`."""

    def make(library: Any) -> Run:
        f = library.batch(network(library.stax), size)
        x1 = data(n1, *shape)
        x2 = None if n2 is None else data(n2, *shape, seed=1)
        return lambda: f(x1, x2, GET)

    return make


def gradient(network: Callable[[Any, Any], Any], count: int, *shape: int) -> Any:
    """The derivative of the sum of the tangent kernel by a standard deviation."""

    def make(library: Any) -> Run:
        x = data(count, *shape)

        def total(std: Any) -> Any:
            return network(library.stax, std)(x, None, "ntk").sum()

        value = jax.jit(jax.value_and_grad(total))
        return lambda: value(1.4)

    return make


def ensemble(times: int | None) -> Any:
    """Prediction of an ensemble of networks, trained on 2000 inputs."""

    def make(library: Any) -> Run:
        kernel_fn = fully_connected(library.stax, 3)
        x, y, z = data(2000, 50), data(2000, 1, seed=1), data(500, 50, seed=2)
        t = None if times is None else jnp.logspace(-1, 3, times)

        def run() -> Any:
            predict = library.predict.gradient_descent_mse_ensemble(
                kernel_fn, x, y, diag_reg=1e-4
            )
            return predict(x_test=z, t=t, get=GET, compute_cov=True)

        return run

    return make


def empirical(trace: bool, convolution: bool) -> Any:
    """The tangent kernel of a finite network."""

    def make(library: Any) -> Run:
        stax = library.stax
        if convolution:
            conv = functools.partial(stax.Conv, 32, (3, 3), padding="SAME")
            layers = [conv(), stax.Relu(), conv(), stax.Relu(), conv(), stax.Relu()]
            init, apply, _ = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(10))
            x = data(16, 16, 16, 3)
        else:
            layers = [stax.Dense(512), stax.Relu()] * 3
            init, apply, _ = stax.serial(*layers, stax.Dense(10))
            x = data(128, 784)
        _, params = init(jax.random.PRNGKey(0), x.shape)
        axes = (-1,) if trace else ()
        ntk = jax.jit(library.empirical(apply, axes))
        return lambda: ntk(x, None, params)

    return make


def first_call(depth: int) -> Any:
    """A new network of many layers: what its first call takes."""

    def make(library: Any) -> Run:
        x = data(32, 50)

        def run() -> Any:
            # A fresh function, so that nothing was compiled before.
            jax.clear_caches()
            return library.jitted(fully_connected(library.stax, depth))(x, None, GET)

        return run

    return make


def _fc(depth: int, n1: int, n2: int | None, d: int, act: str = "Relu") -> Workload:
    network = functools.partial(fully_connected, depth=depth, act=act)
    return Workload(kernel(network, n1, n2, d))


def _conv(n1: int, n2: int | None, runs: int = 3, **kwargs: Any) -> Workload:
    network = functools.partial(convolutional, **kwargs)
    return Workload(kernel(network, n1, n2, 32, 32, 3), runs=runs)


IMAGE = (32, 32, 3)
WORKLOADS = {
    "fc relu 5, N=4000, d=3072, x2=None": _fc(5, 4000, None, 3072),
    "fc relu 5, N=4000, d=3072, two blocks": _fc(5, 4000, 4000, 3072),
    "fc relu 5, N=2000, d=50": _fc(5, 2000, None, 50),
    "fc relu 20, N=2000, d=50": _fc(20, 2000, None, 50),
    "fc erf 5, N=4000, d=3072": _fc(5, 4000, None, 3072, "Erf"),
    "conv flat 4, N=64": dataclasses.replace(
        _conv(64, None, 5, depth=4, readout="Flatten"),
        peer={
            "batch 32": batched(
                functools.partial(convolutional, depth=4, readout="Flatten"),
                64, None, 32, *IMAGE,
            )
        },
    ),
    "conv pool 5, 4 x 4 pairs": _conv(4, 4, depth=5),
    "conv pool 5, N=16, x2=None": dataclasses.replace(
        _conv(16, None, 1, depth=5),
        peer={
            "batch 4": batched(
                functools.partial(convolutional, depth=5), 16, None, 4, *IMAGE
            )
        },
    ),
    "conv pool 5 erf, 2 x 2 pairs": _conv(2, 2, depth=5, act="Erf"),
    "conv pool 5 stride 2, 4 x 4 pairs": _conv(4, 4, depth=5, strides=(2, 2)),
    "conv pool 5, 5x5 filter, 2 x 2 pairs": _conv(2, 2, depth=5, shape=(5, 5)),
    "residual, 2 x 2 pairs": Workload(kernel(residual, 2, 2, *IMAGE), runs=3),
    "myrtle 5, N=4": Workload(kernel(myrtle, 4, None, *IMAGE), runs=3),
    "gradient, fc, N=500": Workload(
        gradient(lambda s, std: fully_connected(s, 3, std=std), 500, 100)
    ),
    "gradient, fc, N=2000": Workload(
        gradient(lambda s, std: fully_connected(s, 3, std=std), 2000, 100)
    ),
    "gradient, conv pool 3, 16x16, N=2": Workload(
        gradient(lambda s, std: convolutional(s, 3, std=std), 2, 16, 16, 3)
    ),
    "gradient, conv pool 3, 32x32, N=2": Workload(
        gradient(lambda s, std: convolutional(s, 3, std=std), 2, *IMAGE), runs=3
    ),
    "ensemble, n=2000, t=None": Workload(ensemble(None), runs=3),
    "ensemble, n=2000, 10 times": Workload(ensemble(10), runs=3),
    "empirical, mlp, full": Workload(empirical(False, False)),
    "empirical, mlp, trace": Workload(empirical(True, False)),
    "empirical, cnn, full": Workload(empirical(False, True)),
    "first call, fc 100": Workload(first_call(100), runs=1),
}  # fmt: skip
