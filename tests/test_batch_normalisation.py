"""Batch normalisation: few, equal and several inputs, positions, and finite networks.

Kernels are compared with real networks, and with plain Monte Carlo: Gaussian vectors in
NumPy, normalised and rectified. Where there is no limit there is an error.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_except

import widelimit as wl
from widelimit import stax

n = wl.width("n")
X = np.random.default_rng(0).normal(size=(6, 5))
DENSE = {"W": wl.normal((5, n)), "v": wl.normal((n, 1))}
IMAGES = np.random.default_rng(1).normal(size=(3, 4, 2))
CONVOLUTION = {"W": wl.normal((3, 2, n), std=0.5), "v": wl.normal((n, 1))}
DRAWS = 200_000


def normalised(h: Any, axes: tuple[int, ...], eps: float) -> Any:
    return (h - h.mean(axes)) / jnp.sqrt(h.var(axes) + eps)


def dense(eps: float = 0.0, fn: Any = jax.nn.relu) -> wl.Limit:
    """One hidden layer that is normalised over the batch."""

    def f(p: Any, x: Any) -> Any:
        h = normalised(x @ p["W"], (0,), eps)
        return fn(h) @ p["v"] / jnp.sqrt(n)

    return wl.limit(f, DENSE)


def words(fn: Any = jax.nn.relu) -> wl.Limit:
    """A layer that is normalised over the words of every input."""

    def f(p: Any, x: Any) -> Any:
        h = x @ p["W"]
        h = h - h.mean(1, keepdims=True)
        h = fn(h / jnp.sqrt((h * h).mean(1, keepdims=True)))
        return h.mean(1) @ p["v"] / jnp.sqrt(n)

    return wl.limit(f, DENSE)


def convolution(eps: float, pool: bool) -> wl.Limit:
    """A convolution, normalised over the batch and the positions."""

    def f(p: Any, x: Any) -> Any:
        h = jax.lax.conv_general_dilated(
            x, p["W"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )
        h = jax.nn.relu(normalised(h, (0, 1), eps))
        h = h.mean(1) if pool else h[:, 1]
        return h @ p["v"] / jnp.sqrt(n)

    return wl.limit(f, CONVOLUTION)


def stax_convolution(eps: float) -> tuple[Any, Any, Any]:
    return stax.serial(
        stax.Conv(256, (3,), padding="SAME", dimension_numbers=("NHC", "HIO", "NHC")),
        stax.BatchNorm((0, 1), eps),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    )


def assert_means(found: Any, draws: np.ndarray) -> None:
    """Entries are the means of products of draws, (draws, N), with themselves."""
    products = draws[:, :, None] * draws[:, None, :]
    stderr = products.std(0) / len(draws) ** 0.5
    assert stderr.max() < 0.01 * np.abs(found).max()
    off = np.abs(products.mean(0) - found)
    # Some products are zero in every draw, and are so exactly.
    assert np.all(off <= np.where(stderr > 0, 4.5 * stderr, 1e-12))


def monte_carlo(cov: np.ndarray, groups: list[np.ndarray], eps: float) -> np.ndarray:
    """Gaussian vectors, whose groups are normalised and rectified."""
    rng = np.random.default_rng(2)
    z = rng.multivariate_normal(np.zeros(len(cov)), cov, DRAWS, method="eigh")
    for at in groups:
        part = z[:, at] - z[:, at].mean(1, keepdims=True)
        part /= np.sqrt((part**2).mean(1, keepdims=True) + eps)
        z[:, at] = np.maximum(part, 0.0)
    return z


# ------------------------------------------------------------------- where no limit is
TOO_FEW = {
    "one": (X[:1], "nngp", 0),
    "equal": (X[[0, 0, 0]], "nngp", 0),
    "tangent kernel of two": (X[:2], "ntk", 1),
    "tangent kernel of three": (X[:3], "ntk", 2),
    "tangent kernel of three different": (X[[0, 0, 1, 2, 2]], "ntk", 2),
}


@pytest.mark.parametrize(("x", "get", "rank"), TOO_FEW.values(), ids=TOO_FEW)
def test_too_few_different_inputs_are_refused(x: Any, get: str, rank: int) -> None:
    message = rf"test_batch_normalisation.py.* {rank} (is|are) independent"
    with pytest.raises(wl.NoLimitError, match=message):
        getattr(dense(), get)(x)
    with pytest.raises(wl.NoLimitError, match="add a positive number"):
        dense().estimate(x, get=get)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_inputs_that_are_traced_are_refused_by_their_shapes(get: str) -> None:
    kernel = jax.jit(getattr(dense(), get))
    with pytest.raises(wl.NoLimitError, match="independent"):
        kernel(X[: 1 if get == "nngp" else 3])


def test_any_function_of_too_few_is_refused() -> None:
    with pytest.raises(wl.NoLimitError, match="2 are independent"):
        dense(fn=jnp.tanh).ntk(X[:3])
    with pytest.raises(wl.NoLimitError, match="0 are independent"):
        dense(fn=jnp.tanh).nngp(X[:1])


@pytest.mark.parametrize("get", slow_except(["nngp", "ntk"], ["nngp"]))
def test_too_few_words_are_refused(get: str) -> None:
    x = np.stack([X[:3], X[3:]])
    few, rank = (x[:, :1], 0) if get == "nngp" else (x, 2)
    with pytest.raises(wl.NoLimitError, match=f"{rank} are independent"):
        getattr(words(), get)(few)


def test_equal_words_of_a_later_input_are_refused() -> None:
    """The first inputs show what the shapes do; others only that there is a NaN."""
    x = np.stack([X[:4], X[2:], X[[0, 0, 0, 0]] * 0])
    with pytest.raises(wl.NoLimitError, match="NaN"):
        words().nngp(x)


def test_one_input_beside_a_constant() -> None:
    assert dense(0.1).nngp(X[:1]) == 0.0


@pytest.mark.slow
def test_the_theorem_does_not_cover_the_derivative() -> None:
    """That is why the tangent kernels below are compared with real networks."""
    explained = dense().explain(X[:4])
    assert {h.name for h in explained.fails(6)} == {"polynomially bounded"}
    assert "outside its hypotheses: not polynomially bounded" in str(explained)
    assert not dense(1e-2).explain(X[:4]).fails(6)


# ------------------------------------------------------------------- where there is one
def test_two_inputs_are_signs() -> None:
    """Normalised, each of them is 1 or -1."""
    np.testing.assert_allclose(dense().nngp(X[:2]), np.eye(2) / 2, atol=1e-12)


def test_equal_inputs_are_one() -> None:
    kernel = dense().nngp(X[[0, 1, 0, 2]])
    np.testing.assert_allclose(kernel[0], kernel[2], rtol=1e-12)
    x = X[[0, 1, 0, 2]]
    assert_means(kernel, monte_carlo(x @ x.T, [np.arange(4)], 0.0))


CASES = {
    "two": (X[:2], 0.0),
    "equal": (X[[0, 0, 1, 2, 2]], 0.0),
    "a constant": (X[:3], 0.3),
    "a constant and equal inputs": (X[[0, 0, 1]], 0.3),
}


@pytest.mark.parametrize(("x", "eps"), CASES.values(), ids=CASES)
def test_kernels_of_finite_networks(x: Any, eps: float) -> None:
    check = dense(eps).check(x, widths=(128, 512), seeds=64, key=jax.random.key(0))
    assert check.passed, check


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_tangent_kernels_of_finite_networks(eps: float) -> None:
    x = X[[0, 1, 2, 3, 4, 0] if eps == 0.0 else [0, 1, 0]]
    check = dense(eps).check(
        x, widths=(128, 512), seeds=64, key=jax.random.key(1), ntk=True
    )
    assert check.passed, check


@pytest.mark.parametrize("eps", slow_except([0.0, 0.3], [0.0]))
@pytest.mark.parametrize("rows", [(4, 2), (2, 2), (3, 1)], ids=str)
def test_two_batches(rows: tuple[int, int], eps: float) -> None:
    first, second = X[: rows[0]], X[rows[0] : sum(rows)]
    if rows[1] == 1 and eps == 0.0:
        with pytest.raises(wl.NoLimitError, match="0 are independent"):
            dense(eps).nngp(first, second)
        return
    x = np.concatenate([first, second])
    groups = [np.arange(rows[0]), np.arange(rows[0], sum(rows))]
    z = monte_carlo(x @ x.T, groups, eps)
    net = dense(eps)
    whole = np.block(
        [
            [net.nngp(first), net.nngp(first, second)],
            [net.nngp(second, first), net.nngp(second)],
        ]
    )
    assert_means(whole, z)


# ---------------------------------------------------------------------------- positions
def patches(x: np.ndarray) -> np.ndarray:
    """What a filter of three positions reads at each of them: (N, H, 3 C)."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    size = x.shape[1]
    return np.concatenate([padded[:, i : i + size] for i in range(3)], axis=-1)


@pytest.mark.parametrize("eps", slow_except([0.0, 1e-2], [1e-2]))
@pytest.mark.parametrize("pool", slow_except([True, False], [True]))
def test_kernels_over_positions(pool: bool, eps: float) -> None:
    rows = patches(IMAGES).reshape(-1, 6)
    z = monte_carlo(0.25 * rows @ rows.T, [np.arange(len(rows))], eps)
    z = z.reshape(DRAWS, *IMAGES.shape[:2])
    z = z.mean(2) if pool else z[:, :, 1]
    net = convolution(eps, pool)
    assert_means(net.nngp(IMAGES), z)
    check = net.check(IMAGES, widths=(128, 512), seeds=64, key=jax.random.key(3))
    assert check.passed, check


@pytest.mark.slow
def test_tangent_kernel_over_positions() -> None:
    check = convolution(1e-2, True).check(
        IMAGES[:2], widths=(128, 512), seeds=64, key=jax.random.key(4), ntk=True
    )
    assert check.passed, check


def test_layers_over_positions() -> None:
    init_fn, apply_fn, kernel_fn = stax_convolution(1e-2)
    kernel = kernel_fn(IMAGES, get="nngp")
    rows = patches(IMAGES).reshape(-1, 6) / np.sqrt(6)
    z = monte_carlo(rows @ rows.T, [np.arange(len(rows))], 1e-2)
    assert_means(kernel, z.reshape(DRAWS, *IMAGES.shape[:2]).mean(2))

    @jax.jit
    @jax.vmap
    def finite(key: Any) -> Any:
        _, weights = init_fn(key, IMAGES.shape)
        y = apply_fn(weights, IMAGES)
        return y * y.T

    drawn = np.asarray(finite(jax.random.split(jax.random.key(5), 4096)))
    stderr = drawn.std(0) / len(drawn) ** 0.5
    assert np.all(np.abs(drawn.mean(0) - kernel) < 4.5 * stderr)
