"""A batched kernel is the kernel, whatever the sizes; and costs half where it can."""

import functools
import os
import subprocess
import sys
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widelimit as wl
from widelimit import InputError, ShapeMismatchError, UnsupportedError
from widelimit._kernel import Kernel
from widelimit.tiles import _memory

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3))
Z = RNG.normal(size=(4, 3))
IMAGES = RNG.normal(size=(5, 2, 2))
Both = namedtuple("Both", "ntk nngp")
Result = namedtuple("Result", "nngp cov1 cov2 shape1 shape2 batch_axis is_gaussian")


def on(x):
    """Kernels below are NumPy's where nothing is traced: compiling takes longer."""
    return np if isinstance(x, np.ndarray) else jnp


def angles(x1, x2=None, get="nngp"):
    """The arc-cosine kernel: not polynomial, so that nothing agrees by chance."""
    x2, xp = x1 if x2 is None else x2, on(x1)
    one, two = (xp.sqrt((x**2).sum(-1)) for x in (x1, x2))
    cosine = xp.clip(x1 @ x2.T / one[:, None] / two, -1.0, 1.0)
    found = {"nngp": xp.exp(cosine) * one[:, None] * two, "ntk": xp.arccos(cosine)}
    return found[get] if isinstance(get, str) else Both(*(found[g] for g in get))


def compare(found, expected, rtol=1e-12):
    one, two = (jax.tree.flatten(k) for k in (found, expected))
    assert one[1] == two[1]
    for a, b in zip(one[0], two[0], strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


class Counted:
    """A kernel that is called as it is, as those of `wl.limit`."""

    def __init__(self, kernel_fn, interact=False):
        self._kernel_fn, self._interact, self.calls = kernel_fn, interact, []

    def coupled(self, x):
        return self._interact

    def kernel(self, x1, x2=None, *args, **kwargs):
        if isinstance(x1, jax.core.Tracer):
            return self._kernel_fn(x1, x2, *args, **kwargs)
        self.calls.append((len(x1), None if x2 is None else len(x2)))
        return self._kernel_fn(x1, x2, *args, **kwargs)


# ------------------------------------------------------------------------------ sizes
BATCHED = {
    size: wl.batch(angles, size, device_count=0, store_on_device=False)
    for size in range(4)
}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.none() | st.integers(1, 4), st.integers(0, 3))
def test_any_sizes_will_do(n1, n2, size):
    x1, x2 = X[:n1], None if n2 is None else Z[:n2]
    found = BATCHED[size](x1, x2)
    assert isinstance(found, np.ndarray)
    compare(found, angles(x1, x2))


@pytest.mark.parametrize(("x2", "dtype"), [(None, np.float32), (Z, np.float64)])
def test_the_result_is_on_the_device_with_its_precision(x2, dtype):
    x1, x2 = X.astype(dtype), None if x2 is None else x2.astype(dtype)
    found = wl.batch(angles, 3, 0)(jnp.asarray(x1), x2, ("ntk", "nngp"))
    assert isinstance(found, Both)
    assert isinstance(found.ntk, jax.Array)
    assert found.ntk.dtype == dtype
    expected = angles(x1, x2, ("ntk", "nngp"))
    # The angle of an input with itself is a difference of equal numbers.
    tolerance = 1e-7 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(found.ntk, expected.ntk, atol=tolerance)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=10 * np.finfo(dtype).eps)


def test_four_shapes_are_traced_and_only_once():
    traced = []

    def kernel_fn(x1, x2, get, params):
        traced.append((len(x1), None if x2 is None else len(x2)))
        return angles(x1 * params, None if x2 is None else x2 * params, get)

    batched = wl.batch(kernel_fn, 2, 0)
    for scale in (2.0, 3.0):
        compare(batched(X, None, "nngp", scale * np.ones(3)), angles(scale * X))
    assert sorted(traced, key=str) == [(1, None), (2, 1), (2, 2), (2, None)]
    traced.clear()
    batched(Z[:3], X, "nngp", np.ones(3))
    batched(Z[:3], X, "nngp", np.zeros(3) + 2)
    assert sorted(traced) == [(1, 1), (1, 2)]  # the others are known by now
    batched(Z[:3], X, "ntk", np.ones(3))
    assert len(traced) == 6


# ------------------------------------------------------------------ half of a square
@pytest.mark.parametrize(("size", "tiles"), [(1, 28), (2, 10), (3, 6), (4, 3), (6, 3)])
def test_half_of_a_symmetric_kernel_is_computed(size, tiles):
    counted = Counted(angles)
    compare(wl.batch(counted.kernel, size, 0)(X), angles(X))
    assert len(counted.calls) == tiles
    count = -(-len(X) // size)
    assert sum(n2 is None for _, n2 in counted.calls) == count
    counted.calls.clear()
    wl.batch(counted.kernel, size, 0)(X, X)
    assert len(counted.calls) == count**2


@pytest.mark.parametrize(
    ("formula", "blank_tiles"),
    [
        ("iab,jcd->ijacbd", 9),
        ("iab,jcd->ijabcd", 9),
        ("iab,jab->ijab", 6),  # one input is enough to see that nothing moves
        ("iab,jac->ijabc", 9),
    ],
)
def test_positions_change_places_in_the_mirror(formula, blank_tiles):
    def kernel_fn(x1, x2=None):
        x2 = x1 if x2 is None else x2
        return on(x1).einsum(formula, x1, x2**3) + on(x1).einsum(formula, x1**3, x2)

    counted = Counted(kernel_fn)
    compare(wl.batch(counted.kernel, 2, 0)(IMAGES), kernel_fn(IMAGES))
    assert len(counted.calls) == 6
    # Blank images do not show what the axes are, and nothing is guessed.
    blank = IMAGES.copy()
    blank[:4] = 1.0
    counted.calls.clear()
    compare(wl.batch(counted.kernel, 2, 0)(blank), kernel_fn(blank))
    assert len(counted.calls) == blank_tiles


def test_a_function_that_is_not_symmetric_has_no_mirror():
    def kernel_fn(x1, x2=None):
        return x1 @ (x1 if x2 is None else x2).T ** 3

    counted = Counted(kernel_fn)
    compare(wl.batch(counted.kernel, 2, 0)(X), kernel_fn(X))
    assert len(counted.calls) == 16


def test_progress_counts_the_tiles():
    seen = []
    wl.batch(angles, 2, 0, progress=lambda *at: seen.append(at))(X)
    assert seen == [(k, 10) for k in range(1, 11)]
    seen.clear()
    wl.batch(angles, 2, 0, progress=lambda done, total: seen.append((done, total)))(
        Z, X
    )
    assert seen == [(k, 8) for k in range(1, 9)]
    compare(wl.batch(angles, 2, 0, progress=True)(Z, X), angles(Z, X))  # no terminal


# --------------------------------------------------------------------- kernel objects
def layer(x1, x2=None, get=None):
    """A layer that uses every attribute: cosines of inputs of (N, 2, 2) positions."""

    def mask(x):
        return (x[:, :, :1] > 1.0)[..., None]

    two, xp = x1 if x2 is None else x2, on(x1)
    k = Kernel(
        nngp=xp.einsum("iab,jcd->ijacbd", x1, two),
        cov1=xp.einsum("iab,icd->iacbd", x1, x1),
        cov2=None if x2 is None else xp.einsum("iab,icd->iacbd", two, two),
        x1_is_x2=x2 is None or (x1.shape == x2.shape and xp.all(x1 == x2)),
        is_gaussian=True,
        shape1=(2, len(x1), 2, 9),
        shape2=(2, len(two), 2, 9),
        batch_axis=1,
        mask1=mask(x1),
        mask2=None if x2 is None else mask(x2),
    )
    k = k.replace(ntk=k.nngp**3 + k.nngp)
    return k if get is None else Result(*(getattr(k, name) for name in Result._fields))


def cosine(k):
    """A layer on kernels, which normalises by the variances of either batch."""
    second = k.cov1 if k.cov2 is None else k.cov2
    xp = on(k.nngp)
    sizes = [1.0 + xp.einsum("iaabb->i", c) for c in (k.cov1, second)]
    scale = (sizes[0][:, None] * sizes[1])[:, :, None, None, None, None]
    noise = xp.eye(*k.nngp.shape[:2]) * k.x1_is_x2  # of one input with itself
    nngp = k.nngp / scale + noise[:, :, None, None, None, None]
    return k.replace(nngp=nngp, ntk=xp.exp(nngp) * k.ntk, is_gaussian=False)


@pytest.mark.parametrize("x2", [None, IMAGES[1:], IMAGES])
@pytest.mark.parametrize("on_device", [True, False])
def test_a_kernel_has_all_its_attributes(x2, on_device):
    kernel_fn = layer if x2 is None else Counted(layer).kernel  # jitted, and not
    found = wl.batch(kernel_fn, 2, 0, on_device)(IMAGES, x2)
    expected = layer(IMAGES, x2)
    compare(found, expected.replace(x1_is_x2=found.x1_is_x2))
    assert bool(found.x1_is_x2) == bool(expected.x1_is_x2)
    assert found.shape1 == (2, 5, 2, 9)
    batched = wl.batch(Counted(layer).kernel, 2, 0, on_device)
    named = batched(IMAGES, x2, get="all of Result")
    assert named.shape2 == expected.shape2
    assert named.is_gaussian is True
    compare(named[:3], (expected.nngp, expected.cov1, expected.cov2))


def test_kernel_objects_cost_half_even_one_by_one():
    counted = Counted(layer)
    compare(wl.batch(counted.kernel, 1, 0)(IMAGES), layer(IMAGES))
    assert len(counted.calls) == 15


@pytest.mark.parametrize("x2", [None, IMAGES[1:]])
def test_layers_are_batched_one_after_another(x2):
    plain = Counted(layer).kernel
    first, second = wl.batch(plain, 2, 0), wl.batch(cosine, 3, 0)
    compare(second(first(IMAGES, x2)), cosine(layer(IMAGES, x2)))
    on_host = wl.batch(cosine, 3, 0, False)(wl.batch(plain, 2, 0, False)(IMAGES, x2))
    compare(on_host, cosine(layer(IMAGES, x2)))
    if x2 is not None:
        return
    one = layer(IMAGES, x2)
    found = wl.batch(lambda ks: [cosine(k) for k in ks], 2, 0)([one, one])
    compare(found[1], cosine(one))


def test_covariances_between_all_inputs_are_refused():
    def kernel_fn(x1, x2=None):
        return layer(x1, x2).replace(
            cov1=jnp.ones((len(x1),) * 2), diagonal_batch=False
        )

    with pytest.raises(UnsupportedError, match="not put together from tiles"):
        wl.batch(kernel_fn, 2, 0)(IMAGES)


# -------------------------------------------------------------------------- arguments
def test_inputs_are_trees_of_arrays():
    def kernel_fn(x1, x2=None):
        x2 = x1 if not jax.tree.leaves(x2) else x2
        return {"a": angles(x1["a"], x2["a"]), "b": [angles(x1["b"][0], x2["b"][0])]}

    one, two = ({"a": x, "b": (2 * x[:, ::-1],)} for x in (X, Z))
    batched = wl.batch(Counted(kernel_fn).kernel, 3, 0)
    compare(batched(one), kernel_fn(one))
    compare(wl.batch(kernel_fn, 3, 0)(one, two), kernel_fn(one, two))
    compare(batched(one, {"a": None, "b": (None,)}), kernel_fn(one))


def graph(x1, x2=None, *, pattern, mask_constant=None, params=(1.0, 0.0)):
    p1, p2 = pattern
    two, p2 = (x1, p1 if p2 is None else p2) if x2 is None else (x2, p2)
    one, two = (on(x).where(x == mask_constant, 0.0, x) for x in (x1, two))
    return params[0] * (one * p1) @ (two * p2).T + params[1]


def test_pairs_are_cut_with_their_inputs_and_the_rest_is_passed():
    p, q = RNG.normal(size=X.shape), RNG.normal(size=Z.shape)
    rest = {"mask_constant": float(X[0, 0]), "params": (np.ones(()), np.ones(()))}
    for kernel_fn, x2, pattern in [
        (graph, Z, (p, q)),
        (Counted(graph).kernel, None, (p, p)),
        (Counted(graph).kernel, None, (p, None)),
    ]:
        expected = graph(X, x2, pattern=pattern, **rest)
        batched = wl.batch(kernel_fn, 3, 0)
        compare(batched(X, x2, pattern=pattern, **rest), expected)
    # With two patterns the kernel is not symmetric, whatever the inputs are.
    counted = Counted(graph)
    other = p.copy()
    other[0, 0] += 1.0
    for pattern, calls in [((p, p.copy()), 6), ((p, other), 9)]:
        counted.calls.clear()
        found = wl.batch(counted.kernel, 3, 0)(X, pattern=pattern)
        compare(found, graph(X, X, pattern=pattern))
        assert len(counted.calls) == calls


def test_without_tiles_arguments_may_have_any_form():
    def kernel_fn(x1, x2=None, *, pattern):
        """Inputs are along axis 1; the graphs of both along axis 0."""
        two = x1 if x2 is None else x2
        return pattern[0][:, None] * (x1.T @ two) * pattern[1]

    p, q = RNG.normal(size=7), RNG.normal(size=4)
    batched = wl.batch(kernel_fn, device_count=0)
    compare(batched(X.T, Z.T, pattern=(p, q)), kernel_fn(X.T, Z.T, pattern=(p, q)))
    compare(batched(X.T, pattern=(p, p)), kernel_fn(X.T, pattern=(p, p)))
    compare(wl.batch(cosine, 0, 0)(layer(IMAGES)), cosine(layer(IMAGES)))


@pytest.mark.slow
def test_every_batch_of_inputs_has_its_own_key():
    def kernel_fn(x1, x2=None, *, rng):
        """Random features of the batch: the kernel that one network has with itself."""
        keys = (rng, rng) if x2 is None else rng
        keys = (keys[0][0],) * 2 if isinstance(keys[0], tuple) else keys
        noise = [
            jax.random.normal(k, (len(x), 2))
            for k, x in zip(keys, (x1, x1 if x2 is None else x2), strict=True)
        ]
        return noise[0] @ noise[1].T

    key = jax.random.key(1)
    batched = wl.batch(kernel_fn, 3, 0)
    for rng in (key, (key, None), jax.random.PRNGKey(1)):
        found = batched(X, rng=rng)
        values = np.linalg.eigvalsh(found)
        # One network has features of rank 2, the same in rows and in columns.
        np.testing.assert_allclose(found, found.T)
        assert values[:-2] == pytest.approx(0.0, abs=1e-12)
        assert len(np.unique(np.abs(found).round(9))) == 28
    one, two = batched(X, Z, rng=key), batched(X, Z, rng=(key, jax.random.key(2)))
    assert np.linalg.matrix_rank(one) == np.linalg.matrix_rank(two) == 2
    assert len(np.unique(one)) == len(np.unique(two)) == 28
    whole = wl.batch(kernel_fn, 7, 0)(X, rng=key)
    compare(whole, kernel_fn(X, rng=key))  # one tile is the call itself


def test_the_function_keeps_its_name_and_its_attributes():
    def kernel_fn(x1, x2=None):
        """A kernel."""

    kernel_fn.input_req = {"use_dropout": True}  # pyright: ignore
    batched = wl.batch(kernel_fn)
    assert batched.__name__ == "kernel_fn"
    assert batched.__doc__ == "A kernel."
    assert batched.input_req == {"use_dropout": True}  # pyright: ignore
    bound = wl.batch(functools.partial(Counted(angles).kernel, get="ntk"), 4, 0)
    compare(bound(X, Z), angles(X, Z, "ntk"))


@pytest.mark.slow
def test_inside_a_trace_the_kernel_is_the_same():
    batched = wl.batch(angles, 3, 0, store_on_device=False)
    compare(jax.jit(batched)(X), angles(X), 1e-11)
    compare(wl.batch(batched, 4, 0)(X, Z), angles(X, Z))  # batched twice
    found = jax.grad(lambda x: batched(x, Z).sum())(jnp.asarray(X))
    compare(found, jax.grad(lambda x: angles(x, Z).sum())(jnp.asarray(X)), 1e-11)


# --------------------------------------------------------------------------- networks
n = wl.width("n")


def network(p, x):
    h = jax.nn.relu(x @ p["u"])
    return h @ p["v"] / jnp.sqrt(n)


net = wl.limit(network, {"u": wl.normal((2, n)), "v": wl.normal((n, 1))})


@pytest.mark.slow
def test_kernels_of_limits():
    batched = wl.batch(net.kernels, 2, 0)
    one, two = IMAGES[:4], IMAGES[2:]
    compare(batched(one), net.kernels(one))
    compare(batched(one, two), net.kernels(one, two))
    with pytest.raises(InputError, match="not finite"):
        batched(np.full((5, 2, 2), np.nan))


@pytest.mark.slow
@pytest.mark.parametrize("x2", [None, pytest.param(Z, marks=pytest.mark.slow)])
def test_networks_of_layers_are_batched_one_after_another(x2):
    block = wl.stax.serial(wl.stax.Dense(8), wl.stax.Relu())
    whole = wl.stax.serial(block, block)[2]
    first, second = wl.batch(block[2], 2, 0), wl.batch(block[2], 4, 0, False)
    x1 = X[:4]
    found, expected = second(first(x1, x2)), whole(x1, x2)
    assert found.shape1 == (4, 8)
    assert bool(found.x1_is_x2) == (x2 is None)
    for name in ("nngp", "ntk", "cov1", "cov2"):
        compare(getattr(found, name), getattr(expected, name))
    if x2 is not None:
        found = wl.batch(whole, 3, 0)(x1, x2, ("ntk", "cov2"))
        compare((found.ntk, found.cov2), (expected.ntk, expected.cov2))


def test_kernels_of_finite_networks():
    f, theta = net.at(key=jax.random.key(0), n=16)

    def kernel_fn(x1, x2, get, params):
        assert get == "ntk"
        return f.ntk(params, x1, x2)

    batched = wl.batch(kernel_fn, 3, 0)
    compare(batched(IMAGES, None, "ntk", theta), f.ntk(theta, IMAGES), 1e-10)


def test_inputs_that_interact_are_refused_in_tiles():
    def centred(p, x):
        return network(p, x - x.mean(0))

    coupled = wl.limit(centred, net.params)
    with pytest.raises(InputError, match="inputs of a batch interact"):
        wl.batch(coupled.nngp, 2)(X[:, :2])
    compare(wl.batch(coupled.nngp, 7, 0)(X[:, :2]), coupled.nngp(X[:, :2]))


# ------------------------------------------------------------------------------- misuse
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wl.batch(3), "takes a kernel function"),  # pyright: ignore
        (lambda: wl.batch(angles, -1), "`batch_size` should be a whole number"),
        (lambda: wl.batch(angles, 2.5), "`batch_size`.*2.5"),  # pyright: ignore
        (lambda: wl.batch(angles, 2, -2), "`device_count` should be a whole number"),
        (lambda: wl.batch(angles, progress="yes"), "`progress`"),  # pyright: ignore
        (lambda: wl.batch(angles, 2, 99)(X), r"device_count=99.*has \d+ devices"),
        (lambda: wl.batch(angles, 2)(X[:0]), r"`x1` is empty: shape \(0, 3\)"),
        (lambda: wl.batch(angles, 2)([]), "`x1` should be an array.*nothing"),
        (lambda: wl.batch(angles, 2)(X, 3.0), "`x2` should be an array.*a number"),
        (lambda: wl.batch(layer, 2)(layer(IMAGES), IMAGES), "takes the kernels"),
        (lambda: wl.batch(angles, 2)(X, None, bytearray(b"a")), "cannot be hashed"),
        (lambda: wl.batch(lambda a, b: a.sum(), 2)(X), r"shape \(\) for a tile of 2"),
    ],
)
def test_misuse_is_explained(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_arrays_that_do_not_fit_are_named():
    with pytest.raises(ShapeMismatchError, match=r"arrays of `x1` have \[4, 7\] rows"):
        wl.batch(angles, 2)([X, Z])
    with pytest.raises(ShapeMismatchError, match=r"second of the pair `pattern`"):
        wl.batch(graph, 2)(X, Z, pattern=(X, X))
    one, two = (layer(x) for x in (IMAGES, IMAGES[1:]))
    with pytest.raises(ShapeMismatchError, match=r"\[\(4, 4\), \(5, 5\)\]"):
        wl.batch(cosine, 2)([one, two])


def test_a_result_that_does_not_fit_is_refused_before_it_is_computed(monkeypatch):
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 300)
    counted = Counted(angles)
    with pytest.raises(InputError, match=r"nngp \(7, 7\) float64.*392 bytes.*tile 32"):
        wl.batch(counted.kernel, 2, 0)(X)
    with pytest.raises(InputError, match=r"takes 392 bytes\. The"):
        wl.batch(counted.kernel, 0, 0)(X)
    assert counted.calls == []
    wl.batch(counted.kernel, 2, 0)(Z)


# -------------------------------------------------------------------- several devices
DEVICES = """
import jax, numpy as np, widelimit as wl
jax.config.update("jax_enable_x64", True)
assert jax.local_device_count() == 4
x, z = np.random.default_rng(0).normal(size=(2, 11, 3))
used = []

class Kernels:
    def coupled(self, x): return False
    def plain(self, x1, x2=None):
        if not isinstance(x1, jax.core.Tracer):
            used.append((jax.numpy.asarray(x1).device.id, len(x1)))
        return jax.numpy.exp(x1 @ (x1 if x2 is None else x2).T)

kernels = Kernels()
right = {None: kernels.plain(jax.numpy.asarray(x)), 5: np.exp(x @ z[:5].T)}
cases = [(3, -1, True), (0, -1, False), (4, 2, True)]
for size, count, on_device in cases:
    for rows in (None, 5):
        used.clear()
        other = None if rows is None else z[:rows]
        found = wl.batch(kernels.plain, size, count, on_device)(x, other)
        jitted = wl.batch(lambda a, b: kernels.plain(a, b), size, count, on_device)
        for k in (found, jitted(x, other) if size == 3 else found):
            np.testing.assert_allclose(k, right[rows], rtol=1e-12)
            assert isinstance(k, jax.Array) == on_device
            assert not on_device or [d.id for d in k.devices()] == [0]
        devices = {d for d, _ in used}
        assert devices == set(range(4 if count == -1 else count)), (size, devices)
    if size == 0:
        assert {n for _, n in used} == {3, 2}, used  # four parts of the rows
print("all equal")
"""


@pytest.mark.slow
def test_devices_share_the_tiles():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", DEVICES],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
    )
    assert run.stdout == "all equal\n", run.stderr
