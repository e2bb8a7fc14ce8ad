"""Equal layers as one loop: the same kernels, and programs that do not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coverage_table import apply, n, readout

import widelimit as wl
from widelimit.asymptotics import find_loops
from widelimit.kernels import PairKernel
from widelimit.program import ProgramBuilder, operands

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=(4, 3))
SEQUENCE = RNG.normal(size=(3, 4, 2))
SLOW = pytest.mark.slow


def dense(activation, depth, stds=(1.3,), bias=0.2):
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    for i in range(depth):
        params[f"W{i}"] = wl.normal((n, n), std=stds[i % len(stds)])
        params[f"b{i}"] = wl.normal((n,), std=bias)

    def f(p, x):
        h = apply(p["U"], x)
        for i in range(depth):
            h = apply(p[f"W{i}"], activation(h)) + p[f"b{i}"]
        return readout(p, activation(h))

    return f, params, FLAT


def in_the_middle(depth):
    """Layers of another kind before and behind, and one of another variance."""
    _, params, x = dense(jax.nn.relu, depth)
    params[f"W{depth // 2}"] = wl.normal((n, n), std=0.7, lr=0.5)

    def f(p, x):
        h = jax.lax.erf(apply(p["U"], jnp.sin(x)))
        for i in range(depth):
            h = jax.nn.relu(apply(p[f"W{i}"], h) + p[f"b{i}"])
        return readout(p, 0.5 * h + jnp.abs(h))

    return f, params, x


def given_variances(depth):
    """Arrays, of which a loop takes one for every layer."""
    f, params, x = dense(jax.nn.relu, depth)
    for i in range(depth):
        params[f"W{i}"] = wl.normal((n, n), std=jnp.asarray(1.0 + 0.1 * i))
        params[f"b{i}"] = wl.normal((n,), std=jnp.asarray(0.1 * i), lr=0.3)
    return f, params, x


def tied(depth, distinct):
    """So many matrices in turn; and the last layer has the first again."""
    f, params, x = dense(jax.lax.erf, depth)
    names = [f"W{i % distinct}" for i in range(depth - 1)] + ["W0"]
    unused = {f"W{i}" for i in range(depth)}.difference(names)

    def g(p, x):
        again = {f"W{i}": p[name] for i, name in enumerate(names)}
        return f({**p, **again}, x)

    return g, {k: v for k, v in params.items() if k not in unused}, x


def with_inputs(depth):
    """Every layer reads the inputs as well."""
    params = {"U": wl.normal((3, n)), "v": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((n, n), std=1.2) for i in range(depth)}
    params |= {f"V{i}": wl.normal((3, n), std=0.6) for i in range(depth)}

    def f(p, x):
        h = apply(p["U"], x)
        for i in range(depth):
            h = apply(p[f"W{i}"], jax.nn.relu(h)) + apply(p[f"V{i}"], x)
        return readout(p, jax.nn.relu(h))

    return f, params, FLAT


def residual(depth):
    _, params, x = dense(jax.nn.relu, depth)

    def g(p, x):
        h = apply(p["U"], x)
        for i in range(depth):
            h = h + 0.5 * apply(p[f"W{i}"], jax.nn.relu(h)) + p[f"b{i}"]
        return readout(p, h)

    return g, params, x


def normalised(depth):
    _, params, x = dense(jax.nn.relu, depth)

    def norm(h):
        h = h - h.mean(-1, keepdims=True)
        return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-3)

    def g(p, x):
        h = apply(p["U"], x)
        for i in range(depth):
            h = norm(apply(p[f"W{i}"], jax.nn.relu(h)) + p[f"b{i}"])
        return readout(p, jax.nn.relu(h))

    return g, params, x


def convolution(depth, pool=True):
    params = {"c": wl.normal((3, 2, n), std=1.4), "v": wl.normal((n, 1))}
    params |= {f"W{i}": wl.normal((3, n, n), std=1.4) for i in range(depth)}
    layout = ("NWC", "WIO", "NWC")

    def layer(w, h):
        scale = np.sqrt(w.shape[0] * h.shape[-1])
        h = jax.lax.conv_general_dilated(h, w, (1,), "SAME", dimension_numbers=layout)
        return jax.nn.relu(h / scale)

    def f(p, x):
        h = layer(p["c"], x)
        for i in range(depth):
            h = layer(p[f"W{i}"], h)
        return readout(p, h.mean(1) if pool else h)

    return f, params, SEQUENCE


def skipping(depth):
    """Every layer reads the two before it."""
    _, params, x = dense(jax.nn.relu, depth, bias=0.0)
    params = {k: v for k, v in params.items() if k[0] != "b"}

    def f(p, x):
        before = h = apply(p["U"], x)
        for i in range(depth):
            before, h = h, apply(p[f"W{i}"], jax.nn.relu(h)) + 0.5 * before
        return readout(p, jax.nn.relu(h))

    return f, params, x


# Networks, and the number of equal blocks of their NNGP that are one loop.
NETWORKS = {
    "relu, 3 layers": (lambda: dense(jax.nn.relu, 3), 3),
    "relu, 12 layers": (lambda: dense(jax.nn.relu, 12), 12),
    "erf": (lambda: dense(jax.lax.erf, 4), 4),
    "two in turn": (lambda: dense(jax.nn.relu, 9, (1.3, 0.9)), 4),
    "four in turn": (lambda: dense(jax.nn.relu, 6, (1.3, 0.9, 1.1, 2.0)), 0),
    "in the middle": (lambda: in_the_middle(8), 4),
    "given variances": (lambda: given_variances(6), 6),
    "one matrix": (lambda: tied(4, 1), 3),
    "two matrices in turn": (lambda: tied(6, 2), 0),
    "the first matrix again": (lambda: tied(5, 5), 4),
    "inputs in every layer": (lambda: with_inputs(5), 5),
    "residual": (lambda: residual(6), 5),
    "skipping, 5 layers": (lambda: skipping(5), 0),
    "skipping, 12 layers": (lambda: skipping(12), 5),
    "normalised": (lambda: normalised(4), 3),
    "convolution": (lambda: convolution(4), 4),
    "positions": (lambda: convolution(3, pool=False), 3),
}
FAST = ("relu, 3 layers", "skipping, 5 layers")


@pytest.mark.parametrize(
    "name", [k if k in FAST else pytest.param(k, marks=SLOW) for k in NETWORKS]
)
def test_kernels_are_those_of_the_layers_one_by_one(name, monkeypatch):
    make, count = NETWORKS[name]
    f, params, x = make()
    folded = wl.limit(f, params).kernels(x)
    (*loops,) = wl.limit(f, params).plan(x, get="nngp").loops
    assert [loop[2] for loop in loops] == ([count] if count else [])
    monkeypatch.setattr(PairKernel, "loops", [])
    for one, two in zip(folded, wl.limit(f, params).kernels(x), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)


def equations(jaxpr):
    """How many equations a program has, with those inside of others."""
    total = 0
    for e in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inside = jax.tree.leaves(list(e.params.values()))
        graphs = [g for g in inside if hasattr(getattr(g, "jaxpr", g), "eqns")]
        total += 1 + sum(map(equations, graphs))
    return total


@pytest.mark.parametrize("kind", ["nngp", pytest.param("ntk", marks=SLOW)])
def test_programs_do_not_grow_with_the_number_of_layers(kind):
    def size(depth):
        f, params, x = dense(jax.nn.relu, depth)
        return equations(jax.make_jaxpr(getattr(wl.limit(f, params), kind))(x))

    assert size(20) == size(40)


# ----------------------------------------------------------------------------- loops
def chain(count, stds=(1.0,), back=1):
    """A program of `count` layers, each reading the `back`-th line before too."""
    p = ProgramBuilder()
    x = [p.vector(f"x{i}", "n") for i in range(back)]
    for i in range(count):
        w = p.matrix(f"W{i}", ("n", "n"), std=stds[i % len(stds)])
        x.append(p.nonlin(jnp.tanh, w @ x[-1] + 0.5 * x[-back]))
    return p.tensor_program


@pytest.mark.parametrize("count", [3, 7, 10])
@pytest.mark.parametrize("stds", [(1.0,), (1.0, 2.0), (1.0, 2.0, 1.0)])
@pytest.mark.parametrize("back", [1, 2, 3])
def test_lines_of_a_block_read_those_of_the_block_before(count, stds, back):
    """The definition of a loop, line by line."""
    program = chain(count, stds, back)
    loops = find_loops(program)
    if len(stds) == back == 1:
        assert len(loops) == (count > 3)
    for loop in loops:
        assert loop.count >= 3
        for i in range(loop.start, loop.end - loop.period):
            one, two = program.lines[i], program.lines[i + loop.period]
            assert type(one) is type(two)
            for r, s in zip(operands(one), operands(two), strict=True):
                # Static, before all blocks; or moving, from this block or the last.
                if r == s:
                    assert r < loop.start
                else:
                    assert s == r + loop.period
                    assert loop.block(s) in (
                        loop.block(i + loop.period) - 1,
                        loop.block(i + loop.period),
                    )
