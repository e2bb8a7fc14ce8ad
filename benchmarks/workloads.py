"""What `speed.py` times: networks in the layers that widelimit and its peer share.

A workload makes a function without arguments from a library's modules; everything that
is called once is in there, and what is timed is the function. `functions.py` has the
same networks without layers.
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
        layers_only: whether there is nothing to spell without layers.
        product: the matrices whose product it cannot do without: N1, N2 and the length
            of a row; N2 is None where both are one.
        entries: the numbers in the covariances of all pairs at the positions of all
            layers, as many as there are without symmetric ones.
    """

    make: Callable[[Any], Run]
    peer: dict[str, Callable[[Any], Run]] = dataclasses.field(default_factory=dict)
    runs: int = 5
    layers_only: bool = False
    product: tuple[int, int | None, int] | None = None
    entries: int = 0


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
    end: str = "GlobalAvgPool",
    act: str = "Relu",
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    std: Any = 1.4,
) -> Any:
    """`depth` convolutions; the second one strided."""
    layers = []
    for i in range(depth):
        step = strides if i == 1 else (1, 1)
        layers += [
            stax.Conv(512, window, step, "SAME", W_std=std, b_std=0.1),
            getattr(stax, act)(),
        ]
    return stax.serial(*layers, getattr(stax, end)(), stax.Dense(1, std, 0.1))[2]


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


def inputs(n1: int, n2: int | None, *shape: int) -> tuple[Any, Any]:
    """One data set, or two."""
    return data(n1, *shape), None if n2 is None else data(n2, *shape, seed=1)


def kernel(
    network: Callable[..., Any],
    n1: int,
    n2: int | None,
    *shape: int,
    size: int | None = None,
    **settings: Any,
) -> Any:
    """Both kernels of some inputs, as users call them; or in batches of a size."""

    def make(library: Any) -> Run:
        f = library.kernel_fn(network, shape, **settings)
        f = library.jitted(f) if size is None else library.batch(f, size)
        x1, x2 = inputs(n1, n2, *shape)
        return lambda: f(x1, x2, GET)

    return make


def product(n1: int, n2: int | None, length: int) -> Run:
    """The products of inputs alone; half of them where both data sets are one."""
    x1, x2 = inputs(n1, n2, length)
    if jax.default_backend() == "cpu":
        # NumPy sees that both are one, and its product is the faster one.
        x1, x2 = np.asarray(x1), None if x2 is None else np.asarray(x2)
    return lambda: x1 @ (x1 if x2 is None else x2).T


def gradient(network: Callable[..., Any], count: int, *shape: int, depth: int) -> Any:
    """The derivative of the sum of the tangent kernel by a standard deviation."""

    def make(library: Any) -> Run:
        x = data(count, *shape)

        def total(std: Any) -> Any:
            f = library.kernel_fn(network, shape, depth=depth, std=std)
            return f(x, None, "ntk").sum()

        value = jax.jit(jax.value_and_grad(total))
        return lambda: value(1.4)

    return make


def ensemble(times: int | None) -> Any:
    """Prediction of an ensemble of networks, trained on 2000 inputs."""

    def make(library: Any) -> Run:
        kernel_fn = library.kernel_fn(fully_connected, (50,), depth=3)
        x, y, z = data(2000, 50), data(2000, 1, seed=1), data(500, 50, seed=2)
        t = None if times is None else jnp.logspace(-1, 3, times)

        def run() -> Any:
            predict = library.predict.gradient_descent_mse_ensemble(
                kernel_fn, x, y, diag_reg=1e-4
            )
            return predict(x_test=z, t=t, get=GET, compute_cov=True)

        return run

    return make


def empirical(trace: bool, convolution: bool, **options: Any) -> Any:
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
        ntk = jax.jit(library.empirical(apply, axes, **options))
        return lambda: ntk(x, None, params)

    return make


def apart(trace: bool, convolution: bool) -> dict[str, Any]:
    """As the peer may be told to do it: inputs apart, by any of its methods."""
    names = ("Jacobians", "products with vectors", "structured")
    return {
        f"apart, {name}": empirical(
            trace, convolution, vmap_axes=0, implementation=number
        )
        for number, name in enumerate(names, 1)
    }


def first_call(depth: int) -> Any:
    """A new network of many layers: what its first call takes."""

    def make(library: Any) -> Run:
        x = data(32, 50)

        def run() -> Any:
            # A fresh function, so that nothing was compiled before.
            jax.clear_caches()
            f = library.kernel_fn(fully_connected, (50,), depth=depth)
            return library.jitted(f)(x, None, GET)

        return run

    return make


def _pairs(n1: int, n2: int | None) -> int:
    return n1 * (n1 + 1) // 2 if n2 is None else n1 * n2


def _fc(depth: int, n1: int, n2: int | None, d: int, act: str = "Relu") -> Workload:
    make = kernel(fully_connected, n1, n2, d, depth=depth, act=act)
    return Workload(make, product=(n1, n2, d), entries=depth * _pairs(n1, n2))


IMAGE = (32, 32, 3)
# Pairs of positions of two images, and of images half and a quarter as wide.
FULL, HALF, QUARTER = 32**4, 16**4, 8**4


def _conv(
    n1: int,
    n2: int | None,
    entries: int,
    network: Any = convolutional,
    runs: int = 3,
    size: int | None = None,
    **settings: Any,
) -> Workload:
    """Both kernels of images; the peer's also in batches of a size.

    `entries` are those of one pair.
    """
    arguments = network, n1, n2, *IMAGE
    peer = {}
    if size is not None:
        peer[f"batch {size}"] = kernel(*arguments, size=size, **settings)
    all_entries = entries * _pairs(n1, n2)
    return Workload(kernel(*arguments, **settings), peer, runs, entries=all_entries)


WORKLOADS = {
    "fc relu 5, N=4000, d=3072, x2=None": _fc(5, 4000, None, 3072),
    "fc relu 5, N=4000, d=3072, two blocks": _fc(5, 4000, 4000, 3072),
    "fc relu 5, N=2000, d=50": _fc(5, 2000, None, 50),
    "fc relu 20, N=2000, d=50": _fc(20, 2000, None, 50),
    "fc erf 5, N=4000, d=3072": _fc(5, 4000, None, 3072, "Erf"),
    "conv flat 4, N=64": _conv(
        64, None, 4 * 32**2, depth=4, end="Flatten", runs=5, size=32
    ),
    "conv pool 5, 4 x 4 pairs": _conv(4, 4, 5 * FULL, depth=5),
    "conv pool 5, N=16, x2=None": _conv(16, None, 5 * FULL, depth=5, runs=1, size=4),
    "conv pool 5 erf, 2 x 2 pairs": _conv(2, 2, 5 * FULL, depth=5, act="Erf"),
    "conv pool 5 stride 2, 4 x 4 pairs": _conv(
        4, 4, FULL + 4 * HALF, depth=5, strides=(2, 2)
    ),
    "conv pool 5, 5x5 filter, 2 x 2 pairs": _conv(
        2, 2, 5 * FULL, depth=5, window=(5, 5)
    ),
    "residual, 2 x 2 pairs": _conv(2, 2, 3 * FULL + 3 * HALF, residual),
    "myrtle 5, N=4": _conv(4, None, 2 * FULL + HALF + QUARTER, myrtle),
    "gradient, fc, N=500": Workload(gradient(fully_connected, 500, 100, depth=3)),
    "gradient, fc, N=2000": Workload(gradient(fully_connected, 2000, 100, depth=3)),
    "gradient, conv pool 3, 16x16, N=2": Workload(
        gradient(convolutional, 2, 16, 16, 3, depth=3)
    ),
    "gradient, conv pool 3, 32x32, N=2": Workload(
        gradient(convolutional, 2, *IMAGE, depth=3), runs=3
    ),
    "ensemble, n=2000, t=None": Workload(ensemble(None), runs=3),
    "ensemble, n=2000, 10 times": Workload(ensemble(10), runs=3),
    "empirical, mlp, full": Workload(
        empirical(False, False), apart(False, False), runs=1, layers_only=True
    ),
    "empirical, mlp, trace": Workload(
        empirical(True, False), apart(True, False), runs=2, layers_only=True
    ),
    "empirical, cnn, full": Workload(
        empirical(False, True), apart(False, True), layers_only=True
    ),
    "first call, fc 100": Workload(first_call(100), runs=1),
}
