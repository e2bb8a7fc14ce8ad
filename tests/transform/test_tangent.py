"""The moments of a backward pass give the tangent kernel of a network.

Under theorem 5 of Yang (2019) a transpose may be replaced by a fresh matrix. Then the
program has no transposes, its limit is that of theorem 4, and the tangent kernel is

    sum over matrices of E[dg dg'] E[h h'], and over vectors of E[dp dp'].
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from coverage_table import Params, apply, m, n

import widelimit as wl
from widelimit.asymptotics import Engine, Side
from widelimit.program import Line, MatIn, MatMul, TensorProgram, Transpose
from widelimit.trace import compile_network
from widelimit.transform import at_ratios, backprop

STDS = (1.3, 0.9, 1.1)
DEPTH = 3
PARAMS = {
    "U": wl.normal((4, n), std=STDS[0]),
    "W": wl.normal((n, m), std=STDS[1]),
    "Q": wl.normal((m, m), std=STDS[1]),
    "b": wl.normal((m,), std=0.3),
    "v": wl.normal((m, 1), std=STDS[2]),
}
RATIOS = {"n": 1.0, "m": 1.5}


def mlp(p: Params, x: jax.Array) -> jax.Array:
    h = jax.nn.relu(apply(p["U"], x))
    h = jax.nn.relu(apply(p["W"], h) + p["b"])
    h = jax.nn.relu(apply(p["Q"], h))
    return apply(p["v"], h)


def with_fresh_transposes(program: TensorProgram) -> TensorProgram:
    """Transposes as independent matrices whose entries have the same variance."""

    def fresh(line: Line) -> Line:
        if not isinstance(line, Transpose):
            return line
        a = program.lines[line.matrix]
        assert isinstance(a, MatIn)
        root = math.sqrt(a.rows.ratio(RATIOS) / a.cols.ratio(RATIOS))
        std = STDS[1] * root
        return MatIn(name=line.name, shape=a.shape, rows=a.cols, cols=a.rows, std=std)

    return TensorProgram(tuple(map(fresh, program.lines)))


def tangent_kernel(x: np.ndarray) -> float:
    """The kernel of two inputs, the parameters as they are received."""
    network = compile_network(mlp, PARAMS, jax.ShapeDtypeStruct((1, 4), np.float64))
    ((out, _),) = network.output.refs
    done = backprop(network.program, [out])
    (g,) = done.gradients
    program = at_ratios(with_fresh_transposes(done.program), RATIOS)
    stds = {f"std:{name}": jnp.asarray(p.std) for name, p in PARAMS.items()}
    engine = Engine([Side(program, {"x": row[None], **stds}) for row in x])

    def moment(ref: int) -> np.ndarray:
        k = engine.pair_array(ref, ref, (0, 1), centred=False)
        return np.zeros(1) if k is None else np.asarray(k)

    total = 0.0
    for ref, line in enumerate(network.program.lines):
        # The dimension that the adjoints are measured by is m.
        unit = line.rows if isinstance(line, MatIn) else getattr(line, "dim", None)
        scale = 1.0 if unit is None else unit.ratio(RATIOS) / g.width.ratio(RATIOS)
        for use in g.uses.get(ref, ()):
            product = program.lines[use.line]
            assert isinstance(product, MatMul)
            total += scale * (moment(use.gradient) * moment(product.x)).item()
        if ref in g.adjoints and line.name in PARAMS:
            # U is a family of one vector for every entry of x: a trace over entries.
            k = moment(g.adjoints[ref])
            half = k.ndim // 2
            side = math.prod(k.shape[:half])
            total += scale * float(np.trace(k.reshape(side, side)))
    return total


def recursion(x: np.ndarray) -> float:
    """The arc-cosine recursion of the same network."""
    k = STDS[0] ** 2 * x @ x.T / 4
    theta = x @ x.T / 4
    for std, bias in ((STDS[1], 0.3), (STDS[1], 0.0), (STDS[2], None)):
        root = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        rho = np.clip(k / root, -1.0, 1.0)
        dual = root * (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / 2 / np.pi
        slope = (np.pi - np.arccos(rho)) / (2 * np.pi)
        one = 1.0 if bias else 0.0
        theta = dual + one + std**2 * theta * slope
        k = std**2 * dual + (bias or 0.0) ** 2
    return theta[0, 1]


def test_tangent_kernel_of_a_network_of_two_widths() -> None:
    x = np.random.default_rng(3).normal(size=(2, 4))
    np.testing.assert_allclose(tangent_kernel(x), recursion(x), rtol=1e-12)
