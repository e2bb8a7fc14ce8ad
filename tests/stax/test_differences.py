"""What Neural Tangents gets wrong, refuses, or leaves to its own machinery.

The same networks are run at finite width in `test_layers.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as nt
from widelimit import stax
from widelimit._jax import enable_x64

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 3))
IMAGES = RNG.normal(size=(3, 4, 6, 2))


def kernel(*layers: Any) -> Any:
    return stax.serial(*layers)[2]


def branches(join: Any) -> Any:
    twice = stax.parallel(stax.Identity(), stax.Identity())
    return kernel(stax.Dense(8, 1.3), stax.FanOut(2), twice, join)


def test_a_branch_added_to_itself_is_twice_the_signal() -> None:
    single = kernel(stax.Dense(8, 1.3))(X, Y)
    double = branches(stax.FanInSum())(X, Y)
    np.testing.assert_allclose(double.nngp, 4 * single.nngp, rtol=1e-12)
    np.testing.assert_allclose(double.ntk, 4 * single.ntk, rtol=1e-12)


def test_a_branch_multiplied_with_itself_is_its_square() -> None:
    k = kernel(stax.Dense(8, 1.3))(X, Y)
    squared = branches(stax.FanInProd())(X, Y, "nngp")
    expected = np.outer(k.cov1, k.cov2) + 2 * k.nngp**2  # E u^2 v^2
    np.testing.assert_allclose(squared, expected, rtol=1e-12)


@pytest.mark.slow
def test_the_diagonal_is_exact_in_single_precision_at_depth_30() -> None:
    depth = 30
    layers = [stax.Dense(8, 2**0.5), stax.Relu()] * depth
    x = jnp.asarray(X, jnp.float32)
    with enable_x64(False):
        found = kernel(*layers, stax.Dense(1))(x, None, ("nngp", "ntk"))
    size = (X.astype(np.float32).astype(float) ** 2).mean(1)
    # K keeps |x|^2 / d, halved by the last relu twice over W_std^2.
    np.testing.assert_allclose(np.diag(found.nngp), size, rtol=1e-5)
    np.testing.assert_allclose(np.diag(found.ntk), size * (depth + 1), rtol=1e-5)


@pytest.mark.slow
def test_no_nan_on_the_diagonal_or_for_an_input_of_zeros() -> None:
    x = np.concatenate([X, np.zeros((1, 3)), X[:1]])
    for layer in (
        stax.RectifiedMonomial(1),
        stax.Polynomial([0.5, 1.0, -0.3]),
        stax.ElementwiseNumerical(jnp.tanh, 9),
        stax.ExpNormalized(),
    ):
        found = kernel(stax.Dense(8), layer, stax.Dense(1))(x, None, ("nngp", "ntk"))
        assert np.isfinite(found.nngp).all()
        assert np.isfinite(found.ntk).all()


def test_positions_keep_their_order() -> None:
    """After one convolution the peer returns (N, N, W, W, H, H)."""
    convolution = kernel(stax.Conv(8, (3, 2), padding="SAME"))
    found = convolution(IMAGES, None)
    assert found.nngp.shape == (3, 3, 4, 4, 6, 6)
    assert not found.is_reversed
    turned = kernel(stax.Conv(8, (2, 3), padding="SAME"))(IMAGES.swapaxes(1, 2), None)
    np.testing.assert_allclose(
        found.nngp[0, 1, 1, 2, 3, 4], turned.nngp[0, 1, 3, 4, 1, 2]
    )


def test_edges_are_those_of_the_adjacency_matrix() -> None:
    """On images that are not square, after a convolution."""
    edges = RNG.integers(0, 4, size=(3, 7, 2, 2))
    edges[:, -1] = -1
    dense = np.zeros((3, 4, 6, 4, 6))
    for which, edge in np.ndindex(3, 6):
        n, (tail, head) = which, edges[which, edge].T
        dense[n, tail[0], tail[1], head[0], head[1]] += 1
    conv = stax.Conv(8, (3, 2), padding="SAME")
    sparse = kernel(conv, stax.Aggregate(implementation="SPARSE"), stax.GlobalAvgPool())
    whole = kernel(conv, stax.Aggregate(), stax.GlobalAvgPool())
    np.testing.assert_allclose(
        sparse(IMAGES, None, "nngp", pattern=(edges, edges)),
        whole(IMAGES, None, "nngp", pattern=(dense, dense)),
        rtol=1e-12,
    )


@pytest.mark.slow
def test_layers_are_applied_to_kernels() -> None:
    first, second = stax.Dense(8, 1.2), stax.Dense(8, 0.9)
    between = kernel(first, stax.Erf())(X, Y)
    found, whole = second[2](between), kernel(first, stax.Erf(), second)(X, Y)
    np.testing.assert_allclose(found.ntk, whole.ntk, rtol=1e-13)
    with pytest.raises(nt.InputError, match="unchanged"):
        second[2](between.replace(nngp=2 * between.nngp))


@pytest.mark.slow
def test_kernels_differ_by_what_is_traced() -> None:
    def total(w: Any, alpha: Any) -> Any:
        layers = stax.Dense(8, w, 0.1), stax.LeakyRelu(alpha), stax.Dense(1)
        return kernel(*layers)(X, None, "ntk").sum()

    slopes = jax.grad(total, (0, 1))(1.3, 0.2)
    for slope, (dw, da) in zip(slopes, np.eye(2) * 1e-5, strict=True):
        rise = total(1.3 + dw, 0.2 + da) - total(1.3 - dw, 0.2 - da)
        np.testing.assert_allclose(slope, rise / 2e-5, rtol=1e-6)


def test_single_precision_with_masks_and_labels() -> None:
    with enable_x64(False):
        masked = np.where(IMAGES > 1, 9.0, IMAGES).astype(np.float32)
        pooled = kernel(stax.Conv(8, (2, 2)), stax.Erf(), stax.GlobalAvgPool())
        assert pooled(masked, None, "nngp", mask_constant=9.0).dtype == np.float32
        words = kernel(stax.Embedding(5, 8), stax.GlobalAvgPool())
        assert words(RNG.integers(5, size=(2, 6, 1)), None, "nngp").shape == (2, 2)


def test_inputs_may_be_taken_by_index() -> None:
    conv = stax.Conv(8, (2, 2))
    whole = kernel(conv)(IMAGES, None, "nngp")
    some = kernel(conv, stax.Index(stax.Slice[::2]))(IMAGES, None)
    one = kernel(conv, stax.Index(stax.Slice[1]))(IMAGES, None, "nngp")
    np.testing.assert_allclose(some.nngp, whole[::2, ::2], rtol=1e-12)
    np.testing.assert_allclose(one, whole[1, 1], rtol=1e-12)
    assert some.shape1 == (2, 3, 5, 8)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (lambda: [stax.Dense(0)], "positive whole number"),
        (lambda: [stax.Dense(8, parameterization="other")], "'ntk' or 'standard'"),
        (lambda: [stax.Conv(8, (9, 9))], "does not fit"),
        (lambda: [stax.Dropout(1.5)], r"\(0, 1\]"),
        (lambda: [stax.parallel(stax.Dense(8), stax.Dense(8))], "FanOut"),
        (lambda: [stax.Conv(8, (2, 2), padding="MIRROR")], "CIRCULAR"),
        (lambda: ["Dense"], "A layer is a triple"),
        (lambda: [stax.Elementwise()], "nngp_fn"),
    ],
)
def test_mistakes_are_explained(layers: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kernel(*layers())(IMAGES, None, "nngp")


def test_a_strict_setting_of_ranks_is_that_of_the_user_alone() -> None:
    with jax.numpy_rank_promotion("raise"):
        found = kernel(stax.Dense(8, 1.0, 0.1), stax.Relu(), stax.Dense(1))(X, Y)
    assert np.isfinite(found.ntk).all()


def test_a_bias_that_there_is_not_may_be_zero() -> None:
    _, apply_fn, _ = stax.Dense(2)
    W = RNG.normal(size=(3, 2))
    np.testing.assert_allclose(apply_fn((W, 0.0), X), X @ W / 3**0.5, rtol=1e-12)
    with pytest.raises(nt.InputError, match="b_std"):
        apply_fn((W, np.ones(2)), X)


def test_an_array_with_one_entry_an_input() -> None:
    scales = np.array([0.5, -1.0, 2.0])
    numbers = ((), ()), ((0,), (0,))
    scaled = stax.DotGeneral(rhs=scales, dimension_numbers=numbers)
    found = kernel(stax.Dense(8), scaled, stax.Dense(1))(IMAGES[:, 0, 0], None, "nngp")
    plain = kernel(stax.Dense(8), stax.Dense(1))(IMAGES[:, 0, 0], None, "nngp")
    np.testing.assert_allclose(found, plain * np.outer(scales, scales), rtol=1e-12)
    with pytest.raises(nt.ShapeMismatchError, match="3 entries"):
        kernel(stax.Dense(8), scaled)(X, None, "nngp")


def test_an_array_with_one_entry_an_input_and_masks() -> None:
    shifts = RNG.integers(1, 5, size=(3, 2, 4))  # whole numbers, one matrix an input
    numbers = ((1,), (1,)), ((0,), (0,))
    masked, present = Y[:, :2, None].copy(), Y[:, :2, None].copy()
    masked[1, 0], present[1, 0] = 9.0, 0.0
    mixed = stax.DotGeneral(rhs=shifts, dimension_numbers=numbers)
    found = kernel(mixed, stax.Flatten())(masked, mask_constant=9.0)
    y = np.einsum("nic,nij->ncj", present, shifts)
    expected = np.einsum("ncj,mcj->nm", y, y) / 4
    np.testing.assert_allclose(found.nngp, expected, rtol=1e-12)


def test_the_axis_of_inputs_is_not_contracted() -> None:
    summed = stax.DotGeneral(rhs=np.ones(3), dimension_numbers=(((0,), (0,)), ((), ())))
    with pytest.raises(nt.UnsupportedError, match="contracts axis 0"):
        kernel(stax.Dense(8), summed)(Y)


def test_names_that_are_not_known() -> None:
    with pytest.raises(nt.InputError, match="ngp"):
        kernel(stax.Dense(8))(X, None, "ngp")


def test_the_layers_of_a_user() -> None:
    @stax.layer
    def Cube() -> Any:
        return (lambda rng, shape: (shape, ())), (lambda params, x, **kwargs: x**3)

    own = kernel(stax.Dense(8), Cube(), stax.Dense(1))(X, Y)
    known = kernel(stax.Dense(8), stax.Monomial(3), stax.Dense(1))(X, Y)
    np.testing.assert_allclose(own.ntk, known.ntk, rtol=1e-12)
    assert Cube()[0].__name__ == "Cube"


def test_draws_are_those_of_the_example_library() -> None:
    from jax.example_libraries import stax as example

    key = jax.random.key(3)
    mine = stax.serial(stax.Dense(5), stax.Relu(), stax.Dense(2, b_std=0.1))
    _, params = mine[0](key, (-1, 3))
    normal = jax.random.normal
    theirs = example.serial(
        example.Dense(5, normal, normal), example.Relu, example.Dense(2, normal, normal)
    )
    _, expected = theirs[0](key, (-1, 3))
    np.testing.assert_array_equal(params[0][0], expected[0][0])
    assert params[0][1] is None
    np.testing.assert_array_equal(params[2][0], expected[2][0])
    np.testing.assert_array_equal(params[2][1][0], expected[2][1])


def test_recurrent_layers_and_softmax_say_what_they_take() -> None:
    flat, sequence = np.ones((2, 3)), np.ones((2, 4, 3))
    for cell in (stax.RNN, stax.LSTM, stax.GRU):
        with pytest.raises(nt.UnsupportedError, match="one axis of time"):
            stax.serial(cell(8), stax.Dense(1))[2](flat)
        with pytest.raises(nt.UnsupportedError, match="one axis of time"):
            stax.serial(cell(8), stax.Dense(1))[0](jax.random.key(0), (2, 4, 4, 3))
    for axis in (0, 2, -1, 3):
        with pytest.raises(nt.InputError, match="axes of positions"):
            kernel(stax.Dense(8), stax.Softmax(axis))(sequence)


def test_a_reversed_layer_is_the_layer_on_reversed_steps() -> None:
    x = np.random.default_rng(2).normal(size=(2, 4, 3))
    for cell in (stax.RNN, stax.LSTM, stax.GRU):
        init_fn, forward, _ = cell(8, b_std=0.3)
        _, backward, _ = cell(8, b_std=0.3, reverse=True)
        shape, params = init_fn(jax.random.key(0), x.shape)
        y = forward(params, x)
        assert y.shape == shape == (2, 4, 8)
        np.testing.assert_allclose(backward(params, x[:, ::-1])[:, ::-1], y)
