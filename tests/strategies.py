"""Random tensor programs, for hypothesis and from a seeded generator.

The programs are deep and reuse matrices, vectors and moments; their values stay of
order one at every width, so that they can also be simulated and compared with limits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from widelimit.program import (
    Array,
    AxisMap,
    Constant,
    LinComb,
    Map,
    MatIn,
    MatMul,
    ProgramBuilder,
    Readout,
    TensorArg,
    Term,
    Transpose,
    VecIn,
    VectorHandle,
)

Draw = Callable[[int], int]
"""A whole number from 0 to below the argument."""

UNARY = (
    jax.nn.relu,
    jnp.tanh,
    jax.lax.erf,
    jnp.sin,
    jax.nn.sigmoid,
    jnp.abs,
    lambda u: u * jax.nn.sigmoid(u),
    lambda u: jnp.maximum(u, -0.2 * u),
)
BINARY = (
    lambda u, v: u * jax.nn.sigmoid(v),
    lambda u, v: jnp.tanh(u) * jnp.sin(v),
    lambda u, v: jax.nn.relu(u + 0.5 * v),
    lambda u, v: jnp.tanh(v - 0.3 * u * jnp.tanh(v)),
)
MOMENTS = (
    lambda u, v: u * v,
    lambda u, v: jnp.tanh(u) + 0.5 * v,
    lambda u, v: jax.nn.relu(u) * jnp.sin(v) + 0.1,
)
WITH_MOMENT = (
    lambda u, t: u / jnp.sqrt(1.0 + t * t),
    lambda t, u: jnp.tanh(u - jnp.tanh(t)),
    lambda u, t: jax.nn.relu(u) * jnp.sin(t) + 0.5 * u,
)


def random_program(
    rng: np.random.Generator,
    transposes: bool = False,
    families: bool = False,
    back: bool = False,
) -> ProgramBuilder:
    """A random program from a seeded generator.

    Args:
        rng: the generator.
        transposes: with transposed matrices.
        families: with index families.
        back: products often go back through the transpose of a matrix used before.
    """
    return build(lambda k: int(rng.integers(k)), transposes, families, back)


@st.composite
def random_programs(
    draw: st.DrawFn, transposes: bool = False, families: bool = False
) -> ProgramBuilder:
    """Random programs for hypothesis; the widths are called n and m."""
    return build(lambda k: draw(st.integers(0, k - 1)), transposes, families)


def build(
    draw: Draw, transposes: bool, families: bool, back: bool = False
) -> ProgramBuilder:
    """One program, from a source of whole numbers."""
    return _Builder(draw, transposes, families, back).run()


class _Builder:
    def __init__(
        self, draw: Draw, transposes: bool, families: bool, back: bool
    ) -> None:
        self.draw = draw
        self.back = back
        self.used: list[tuple[str, bool]] = []
        self.transposes = transposes
        self.families = families
        self.p = ProgramBuilder()
        self.depth: dict[int, int] = {}
        self.squared: set[int] = set()
        self.vectors: dict[str, list[VectorHandle]] = {"n": [], "m": []}

    def run(self) -> ProgramBuilder:
        self.inputs()
        steps = 6 + self.draw(6)
        while steps > 0 or max(self.depth.values()) < 6:
            self.step(deepen=steps <= 0)
            steps -= 1
        if self.families:
            add_families(self.p, self.draw)
        return self.p

    def inputs(self) -> None:
        p, means = self.p, self.draw(5) == 0
        mean = [0.4, -0.7, 0.2] if means else 0.0
        # The third vector is the difference of the first two: a singular covariance.
        root = np.array([[1.0, 0.0], [0.5, 0.8], [0.5, -0.8]])
        count = 2 + self.draw(2)
        x = p.vectors(
            [f"x{i}" for i in range(count)], "n", 0.0, (root @ root.T)[:count, :count]
        )
        if means:
            x = [v + c for v, c in zip(x, mean, strict=False)]
        y = p.vector(
            "y0", "m", mean=0.5 if means else 0.0, var=self.pick(0.5, 1.0, 2.0)
        )
        for v in x:
            self.add("n", v, 0)
        self.add("m", y, 0)
        for name, widths in (("A", "mn"), ("B", "nm"), ("C", "nn"), ("D", "mm")):
            p.matrix(name, (widths[0], widths[1]), std=self.pick(0.7, 1.0, 1.3))

    def pick(self, *options: float) -> float:
        return options[self.draw(len(options))]

    def add(self, width: str, v: VectorHandle, depth: int) -> None:
        self.depth[v.ref] = depth
        self.vectors[width].append(v)

    def vector(self, width: str | None = None) -> tuple[str, VectorHandle]:
        """Mostly the latest vector, sometimes any."""
        if width is None:
            widths = [w for w in "nm" if self.vectors[w]]
            width = widths[self.draw(len(widths))]
        known = self.vectors[width]
        return width, known[-1] if self.draw(3) else known[self.draw(len(known))]

    def step(self, deepen: bool) -> None:
        width, x = self.vector()
        if deepen:
            width, x = max(
                ((w, v) for w in "nm" for v in self.vectors[w]),
                key=lambda pair: self.depth[pair[1].ref],
            )
        kind = self.draw(3) if deepen else self.draw(7)
        others = [x]
        if kind <= 1:
            width, result = self.matmul(width, x)
        elif kind == 2:
            result = self.unary(x)
        else:
            other = self.vector(width)[1]
            others.append(other)
            result = (self.lincomb, self.binary, self.moment_in, self.moment_times)[
                kind - 3
            ](x, other)
        if self.squared & {v.ref for v in others}:
            self.squared.add(result.ref)
        self.add(width, result, 1 + max(self.depth[v.ref] for v in others))

    def matmul(self, width: str, x: VectorHandle) -> tuple[str, VectorHandle]:
        transposed = self.transposes and self.draw(2) == 1
        fits = {"n": ["B", "C"] if transposed else ["A", "C"]}
        fits["m"] = ["A", "D"] if transposed else ["B", "D"]
        name = fits[width][self.draw(2)]
        if self.back:
            name, transposed = self.backwards(width, name, transposed)
        matrix = self.p[name]
        matrix = matrix.T if transposed else matrix
        to = str(matrix.rows)
        if self.draw(4) == 0 and to == width:
            return to, 0.6 * matrix @ x - 0.3 * x
        return to, matrix @ x

    def backwards(self, width: str, name: str, transposed: bool) -> tuple[str, bool]:
        """Mostly the transpose of a matrix that was used before, where one fits."""
        takes = {"A": "nm", "B": "mn", "C": "nn", "D": "mm"}
        fit = [(m, not t) for m, t in self.used if takes[m][not t] == width]
        if fit and self.draw(4):
            name, transposed = fit[-1 - self.draw(min(2, len(fit)))]
        self.used.append((name, transposed))
        return name, transposed

    def unary(self, x: VectorHandle) -> VectorHandle:
        # One square in the history of a vector, more would have heavy tails.
        if x.ref not in self.squared and self.draw(8) == 0:
            result = self.p.nonlin(lambda u: 0.5 * u**2, x)
            self.squared.add(result.ref)
            return result
        return self.p.nonlin(UNARY[self.draw(len(UNARY))], x)

    def binary(self, x: VectorHandle, y: VectorHandle) -> VectorHandle:
        return self.p.nonlin(BINARY[self.draw(len(BINARY))], x, y)

    def lincomb(self, x: VectorHandle, y: VectorHandle) -> VectorHandle:
        a, b = self.pick(0.5, 1.0, -0.8), self.pick(0.5, -1.0, 0.3)
        return 0.7 * (a * x + b * y) + (0.2 if self.draw(6) == 0 else 0.0)

    def moment_in(self, x: VectorHandle, y: VectorHandle) -> VectorHandle:
        t = self.p.moment(MOMENTS[self.draw(len(MOMENTS))], x, y)
        f = WITH_MOMENT[self.draw(len(WITH_MOMENT))]
        return self.p.nonlin(f, *((t, x) if f is WITH_MOMENT[1] else (x, t)))

    def moment_times(self, x: VectorHandle, y: VectorHandle) -> VectorHandle:
        t = self.p.moment(MOMENTS[self.draw(len(MOMENTS))], x, y)
        t = self.p.map(jnp.tanh, t) if self.draw(2) else t / (1.0 + t * t)
        return t * y + 0.5 * x


def add_families(p: ProgramBuilder, draw: Draw) -> None:
    """Lines with index families: stencils, sums, tables, coefficients, a readout."""
    n = p["x0"].dim
    size, filters = 3 + draw(3), 2 + draw(2)
    weights = np.linspace(-1.0, 1.0, size * filters).reshape(size, filters) / filters
    w = p.append(
        Map(name="weights", op=Constant(Array(weights)), args=(), shape=weights.shape)
    )
    f = p.append(VecIn(name="pixels", shape=(size,), dim=n, mean=0.1 * draw(2)))
    k = p.append(MatIn(name="kernel", shape=(filters,), rows=n, cols=n, std=1.1))
    if draw(2):
        k = p.append(Transpose(name="lenrek", matrix=k.ref))
    grid = np.add.outer(np.arange(size), np.arange(filters)) - draw(2)
    window = AxisMap((0, 1), np.where((grid < 0) | (grid >= size), -1, grid))
    conv = p.append(
        MatMul(
            name="conv",
            matrix=k.ref,
            letters=(1,),
            x=f.ref,
            maps=(window,),
            shape=(size,),
            sums=(filters,),
        )
    )
    act = p.nonlin(UNARY[draw(len(UNARY))], conv, name="act")
    t = p.moment(MOMENTS[draw(len(MOMENTS))], act, f, name="energy")
    scaled = p.nonlin(lambda u, s: u / jnp.sqrt(1.0 + s * s), act, t)
    order = [(i * 2) % size if size % 2 else size - 1 - i for i in range(size)]
    table = [AxisMap((0,), order), AxisMap((0,), np.arange(size) // 2), AxisMap((), 0)]
    mixed = p.append(
        LinComb(
            name="mixed",
            shape=(size,),
            terms=(
                Term(
                    scaled.ref,
                    0.5,
                    (TensorArg(w.ref, (0, 1)),),
                    (window,),
                    (filters,),
                ),
                Term(f.ref, -1.0, (TensorArg(t.ref, (0,)),), (table[draw(3)],)),
                Term(None, 0.25),
            ),
        )
    )
    v = p.append(VecIn(name="readout", shape=(), dim=n))
    every = AxisMap.identity(0, size)
    p.append(
        Readout(
            name="f",
            v=v.ref,
            letters=(),
            x=mixed.ref,
            maps=(every,),
            shape=(),
            sums=(size,),
        )
    )
    bias = p.append(VecIn(name="bias", shape=(2,), dim=None, std=0.3))
    terms = (Term(p["f"].ref, 2.0), Term(bias.ref, 1.0, maps=(AxisMap.identity(0, 2),)))
    p.append(LinComb(name="output", terms=terms, shape=(2,)))
