"""Signal propagation: gradients at taps against those of finite networks."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply as dense

import widelimit as wl
from widelimit.trace import widths_in

n = wl.width("n")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4))
SEQUENCES = RNG.standard_normal((2, 3, 4))
SLOW = pytest.mark.slow


class Shifts:
    """Stands for `wl.tap`: what is added at every tap, and its shapes."""

    def __init__(self):
        self.values, self.shapes = {}, {}

    def tap(self, name, h):
        if not isinstance(h, jax.core.Tracer) or name not in self.values:
            self.shapes[name] = h.shape
        return h + self.values[name] if name in self.values else h


SHIFTS = None


def tap(name, h):
    return wl.tap(name, h) if SHIFTS is None else SHIFTS.tap(name, h)


@contextlib.contextmanager
def shifted():
    global SHIFTS
    SHIFTS = Shifts()
    yield SHIFTS
    SHIFTS = None


def normalised(p, x):
    """A gradient that passes through the mean and the variance of a layer."""
    h = tap("h", dense(p["U"], x))
    z = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1)
    return dense(p["v"], jnp.tanh(dense(p["W"], z)))


NORMALISED = {
    "U": wl.normal((4, n)),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 2)),
}


def positions(p, x):
    """A tap with positions, every one of which reaches the output."""
    h = tap("h", jnp.tanh(dense(p["U"], x)))
    z = tap("z", jax.nn.relu(dense(p["W"], jnp.cumsum(h, 1))))
    return dense(p["v"], z.mean(1))


POSITIONS = {
    "U": wl.normal((4, n)),
    "W": wl.normal((n, n)),
    "v": wl.normal((n, 2)),
}


def sums_of_products(f, params, x, seed, width):
    """sum_a df/dh_a df'/dh'_a of one network, averaged over the two outputs."""
    rng = np.random.default_rng(seed)
    widths = {k: round(w.ratio * width) for k, w in widths_in(params).items()}
    theta = {
        name: p.std
        * rng.standard_normal([widths.get(getattr(s, "name", ""), s) for s in p.shape])
        for name, p in params.items()
    }
    with shifted() as shifts:
        f(theta, x)
        shapes = dict(shifts.shapes)

        def at(values, i, o):
            shifts.values = values
            return f(theta, x)[i, o]

        zero = {k: jnp.zeros(s) for k, s in shapes.items()}
        rows = [
            [jax.grad(functools.partial(at, i=i, o=o))(zero) for i in range(len(x))]
            for o in range(2)
        ]
    found = {}
    for name in shapes:
        own = np.stack([[row[i][name][i] for i in range(len(x))] for row in rows])
        own = own.reshape(2, len(x), -1, own.shape[-1])
        found[name] = np.einsum("oipa,ojqa->ijpq", own, own) / 2
    return found


@pytest.mark.parametrize(
    ("f", "params", "x"),
    [
        pytest.param(normalised, NORMALISED, X, marks=SLOW),
        pytest.param(positions, POSITIONS, SEQUENCES, marks=SLOW),
    ],
)
def test_gradients_are_those_of_finite_networks(f, params, x):
    net, seeds, width = wl.limit(f, params), 8, 500
    found = net.statistics(x)
    seen = [sums_of_products(f, params, x, s, width) for s in range(seeds)]
    forward = net.forward(x)
    for name, statistics in found.items():
        np.testing.assert_allclose(statistics.forward, forward[name], rtol=1e-13)
        gradient = np.asarray(statistics.gradient)
        assert gradient.shape == statistics.forward.shape
        mean = np.mean([one[name] for one in seen], 0).reshape(gradient.shape)
        error = np.std([one[name] for one in seen], 0, ddof=1).reshape(gradient.shape)
        error, size = error / seeds**0.5, np.abs(gradient).max()
        assert (np.abs(mean - gradient) < 4.5 * error + 3 * size / width).all(), name
        assert error.max() < 0.1 * size, name


def test_a_tap_inside_a_loop_has_its_steps():
    """dh_t of a linear recurrence by hand: std^2 (T - 1 - t) in the exponent."""
    params = {
        "W": wl.normal((n, n), std=1.5),
        "U": wl.normal((4, n)),
        "v": wl.normal((n, 1)),
    }

    def f(p, x):
        def step(h, row):
            return wl.tap("h", dense(p["W"], h) + dense(p["U"], row)), None

        h, _ = jax.lax.scan(step, jnp.zeros((len(x), n)), jnp.swapaxes(x, 0, 1))
        return dense(p["v"], h)

    gradient = wl.limit(f, params).statistics(SEQUENCES)["h"].gradient
    assert gradient.shape == (2, 2, 3, 3)
    expected = np.diag([1.5**4, 1.5**2, 1.0])
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, (2, 2, 3, 3)))


def test_the_output_is_chosen_by_its_position():
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 1), std=0.5)}

    def f(p, x):
        h = wl.tap("h", dense(p["U"], x))
        return dense(p["v"], jnp.cumsum(h, 1))

    net = wl.limit(f, params)
    for position in range(3):
        gradient = net.statistics(SEQUENCES, output=position)["h"].gradient
        reached = np.arange(3) <= position
        expected = 0.25 * np.outer(reached, reached)
        np.testing.assert_allclose(gradient, np.broadcast_to(expected, (2, 2, 3, 3)))
    with pytest.raises(wl.InputError, match=r"axes \(3,\).*got \(\)"):
        net.statistics(SEQUENCES)
    with pytest.raises(wl.InputError, match="got 3"):
        net.statistics(SEQUENCES, output=3)


def test_there_must_be_a_tap():
    params = {"U": wl.normal((4, n)), "v": wl.normal((n, 2))}
    net = wl.limit(lambda p, x: dense(p["v"], dense(p["U"], x)), params)
    with pytest.raises(wl.InputError, match=r"wl.tap"):
        net.statistics(X)
