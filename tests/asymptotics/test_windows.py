"""Windows that several arrays share: products at every position, then sums of slices.

Witnesses: the gathered patches of NumPy, and networks that are made of these.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit.asymptotics._index import Letters
from widelimit.asymptotics._product import Product, materialise, windows_apart
from widelimit.asymptotics._stencil import Factor
from widelimit.program import AxisMap

RNG = np.random.default_rng(0)
SLOW = pytest.mark.slow


def places(size: int, taps: int, stride: int, dilation: int, before: int, count: int):
    """Where a window reads an axis, at (output, tap); -1 outside."""
    at = stride * np.arange(count)[:, None] + dilation * np.arange(taps) - before
    return np.where((at < 0) | (at >= size), -1, at)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    size, taps = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    before, count = draw(st.integers(0, 2)), draw(st.integers(1, 5))
    return size, places(size, taps, stride, dilation, before, count)


def patches(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """x[b, h, w, c] as [b, o, o', k, k', c], zero outside."""
    wide = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
    return wide[:, first[:, None, :, None], second[None, :, None, :]]


@given(tables(), tables())
@settings(max_examples=60, deadline=None)
def test_a_product_of_windows_is_one_of_patches(rows, cols):
    (h, first), (w, second) = rows, cols
    letters = Letters()
    p, q = (letters.new(t.shape[0]) for t in (first, second))
    k, m = (letters.new(t.shape[1]) for t in (first, second))
    channel = letters.new(2)
    batches = letters.new(2), letters.new(3)
    x, y = (RNG.normal(size=(letters.sizes[b], h, w, 2)) for b in batches)
    moving = AxisMap((p, k), first), AxisMap((q, m), second)
    factors = [
        Factor(
            jnp.asarray(array),
            (letters.identity(b), *moving, letters.identity(channel)),
        )
        for b, array in zip(batches, (x, y), strict=True)
    ]
    sums = (k, m, channel)
    total = (Product(tuple(factors), (), sums),)
    found = materialise(total, letters, (p, q, *batches))
    one, two = (patches(z, first, second) for z in (x, y))
    wanted = np.einsum("apqkmc,bpqkmc->pqab", one, two)
    np.testing.assert_allclose(
        jnp.broadcast_to(found, wanted.shape), wanted, rtol=1e-12, atol=1e-13
    )
    apart = windows_apart(factors, sums, letters)
    overlap = first.size > h > 1 and second.size > w > 1
    if first.shape[1] > 1 < second.shape[1]:
        assert (apart is not None) == overlap


def test_windows_that_differ_are_not_taken_apart():
    letters = Letters()
    p, q, k, b = (letters.new(n) for n in (4, 4, 3, 2))
    table = places(4, 3, 1, 1, 1, 4)
    x = jnp.ones((2, 4))

    def factors(*moving):
        return [Factor(x, (letters.identity(b), m)) for m in moving]

    same = AxisMap((p, k), table)
    assert windows_apart(factors(same, same), [k], letters) is not None
    for other in (AxisMap((q, k), table), AxisMap((p, k), table[::-1])):
        assert windows_apart(factors(same, other), [k], letters) is None
    beside = [*factors(same, same), Factor(jnp.ones(4), (letters.identity(p),))]
    assert windows_apart(beside, [k], letters) is None
    assert windows_apart(factors(same), [k], letters) is None


SETTINGS = {
    "same": dict(window_strides=(1, 1), padding="SAME"),
    "strided": dict(window_strides=(2, 1), padding="SAME"),
    "dilated": dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 1)),
    "valid": dict(window_strides=(1, 2), padding="VALID"),
    "one dimension": dict(window_strides=(1,), padding="SAME"),
}
ACTIVATIONS = {"relu": jax.nn.relu, "erf": jax.lax.erf, "linear": lambda u: u}


CASES = [
    pytest.param(name, phi, marks=[] if "relu" == phi or "same" == name else SLOW)
    for name in SETTINGS
    for phi in ACTIVATIONS
]


@pytest.mark.parametrize(("name", "activation"), CASES)
def test_a_flattened_convolution_is_a_network_of_patches(name, activation):
    """One dense layer for every position, with the same weights."""
    how, phi, n = SETTINGS[name], ACTIVATIONS[activation], wl.width("n")
    rank = len(how["window_strides"])
    shape = (6, 5)[:rank]
    dims = ("NHWC", "HWIO", "NHWC") if rank == 2 else ("NHC", "HIO", "NHC")
    kwargs = dict(how, dimension_numbers=dims)

    def flat(p, x):
        y = jax.lax.conv_general_dilated(x, p["w"], **kwargs)
        h = phi(y).reshape(len(x), -1, y.shape[-1])
        return jnp.einsum("bpn,pno->bo", h, p["v"]) / jnp.sqrt(y.shape[-1])

    def identity(x):
        """The patches, by a convolution with all unit filters."""
        taps = (3,) * rank
        count = 3**rank * 5
        unit = np.eye(count).reshape(*taps, 5, count)
        return jax.lax.conv_general_dilated(x, jnp.asarray(unit), **kwargs)

    def of_patches(p, x):
        h = phi(x @ p["w"])
        return jnp.einsum("bpn,pno->bo", h, p["v"]) / jnp.sqrt(h.shape[-1])

    x, y = RNG.normal(size=(3, *shape, 5)), RNG.normal(size=(2, *shape, 5))
    y[0] = x[1] + 1e-6 * y[0]
    first, second = (np.asarray(identity(jnp.asarray(z))) for z in (x, y))
    rows = [z.reshape(len(z), -1, z.shape[-1]) for z in (first, second)]
    count = rows[0].shape[1]
    v = wl.normal((count, n, 1))
    net = wl.limit(flat, {"w": wl.normal((*(3,) * rank, 5, n)), "v": v})
    twin = wl.limit(of_patches, {"w": wl.normal((3**rank * 5, n)), "v": v})
    found, wanted = net.kernels(x, y), twin.kernels(*rows)
    np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-11)
    alone = net.ntk(x)
    np.testing.assert_allclose(alone, twin.ntk(rows[0]), rtol=1e-11)

    def total(net):
        return lambda z: jnp.sum(jnp.sin(net.ntk(z, y.reshape(len(y), *z.shape[1:]))))

    grad = jax.grad(total(net))(jnp.asarray(x))

    def through_patches(z):
        z = identity(z)
        z = z.reshape(len(z), -1, z.shape[-1])
        return jnp.sum(jnp.sin(twin.ntk(z, rows[1])))

    np.testing.assert_allclose(
        grad, jax.grad(through_patches)(jnp.asarray(x)), rtol=1e-8, atol=1e-8
    )
