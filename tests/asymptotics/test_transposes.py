"""Limits of programs with transposes: closed forms, references and simulation."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import widelimit as wl
from widelimit.program import Vector

DATA = pathlib.Path(__file__).parent.parent / "data" / "gp4a_finite_width.json"


def times(u, v):
    return u * v


def agree(
    p: wl.Program,
    ratios: dict[str, float] | None = None,
    lines: Iterable[str] | None = None,
    width: int = 400,
    seeds: int = 24,
) -> None:
    """All means and second moments of the lines against networks of finite width.

    Two widths remove the bias of order 1 / n; five standard errors are allowed.
    """
    ratios, lim = ratios or {}, p.limit(ratios)
    program = p.tensor_program
    kinds = zip(program.lines, program.types, strict=True)
    names = list(lines or (x.name for x, t in kinds if isinstance(t, Vector)))
    widths = {name for x in names for name, _ in p[x].dim.terms}
    half, full = (
        p.simulate(
            {w: int(n * ratios.get(w, 1.0)) for w in widths}, jax.random.key(1), seeds
        )
        for n in (width // 2, width)
    )

    def check(what: str, limit: np.ndarray, moment: Callable, error=0.0) -> None:
        draws = 2.0 * moment(full) - moment(half)
        stderr = draws.std(0, ddof=1) / seeds**0.5
        gap = np.abs(draws.mean(0) - limit)
        assert np.all(gap <= 5.0 * stderr + error + 1e-12), (what, limit, draws.mean(0))

    for i, x in enumerate(names):
        a = lim.mean(x)
        check(
            f"E {x}", np.asarray(a), lambda s, x=x: np.asarray(s[x].mean(-1)), a.error
        )
        for y in names[i:]:
            if p[x].dim != p[y].dim:
                continue
            k, b = lim.cov(x, y), lim.mean(y)
            second = np.asarray(k) + np.multiply.outer(np.asarray(a), np.asarray(b))
            error = np.max(k.error) + np.max(np.abs(a)) * np.max(b.error)
            error = 3.0 * (error + np.max(np.abs(b)) * np.max(a.error))

            def moment(s, x=x, y=y, shape=second.shape):
                u, v = (np.asarray(s[z]) for z in (x, y))
                u, v = (z.reshape(len(z), -1, z.shape[-1]) for z in (u, v))
                product = np.einsum("sin,sjn->sij", u, v) / u.shape[-1]
                return product.reshape(-1, *shape)

            check(f"E {x} {y}", second, moment, error)


# ---------------------------------------------------------------- there and back again
def there_and_back() -> wl.Program:
    """y = A x, z = relu y, w = A^T z, u = tanh w, r = A u."""
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("m", "n"), std=1.3)
    y = (a @ x).named("y")
    z = p.nonlin(jax.nn.relu, y, name="z")
    w = (a.T @ z).named("w")
    u = p.nonlin(jnp.tanh, w, name="u")
    _ = (a @ u).named("r")
    return p


def test_a_rectangular_matrix_there_and_back() -> None:
    lim = there_and_back().limit({"m": 2.0})
    # w = 1.69 x + N(0, 2.8561): sigma^2 of A^T is 1.69 * 2, that of z is 1.69 / 2.
    assert float(lim.cov("w", "x")) == pytest.approx(1.69, abs=1e-12)
    assert float(lim.cov("w", "w")) == pytest.approx(1.69**2 + 1.69**2, abs=1e-12)
    for (x, y), wanted in {
        ("r", "y"): 1.3400774,
        ("r", "z"): 0.8933849,
        ("r", "r"): 1.8697752,
    }.items():
        assert float(lim.expect(times, x, y)) == pytest.approx(wanted, abs=1e-7)
    assert float(lim.mean("r")) == pytest.approx(0.2741608, abs=1e-7)


def test_a_rectangular_matrix_agrees_with_networks() -> None:
    agree(there_and_back(), {"m": 2.0})


def test_other_ratios_agree_with_networks() -> None:
    agree(there_and_back(), {"m": 0.5}, ["w", "r"])


def four_products() -> wl.Program:
    """t = A^T tanh(A tanh(A^T relu(A x)))."""
    p = wl.Program()
    x, a = p.vector("x", "n"), p.matrix("A", ("m", "n"), std=1.3)
    v = p.nonlin(jnp.tanh, a.T @ p.nonlin(jax.nn.relu, a @ x))
    _ = (a.T @ p.nonlin(jnp.tanh, a @ v)).named("t")
    return p


def test_the_derivative_is_the_total_one() -> None:
    found = four_products().limit({"m": 2.0}).expect(times, "t", "x")
    # 0.907 with the partial derivative; simulated 1.314 +- 0.007 at finite width.
    assert float(found) == pytest.approx(1.296, abs=5e-4)
    assert found.error < 1e-8


# -------------------------------------------------------------------- random matrices
def moments(p: wl.Program, ratios: dict[str, float], count: int) -> list[float]:
    lim = p.limit(ratios)
    pairs = [(f"x{k // 2}", f"x{k - k // 2}") for k in range(count)]
    return [float(lim.cov(x, y)) for x, y in pairs]


def test_the_semicircle_has_the_moments_of_catalan() -> None:
    p = wl.Program()
    a, x = p.matrix("A", ("n", "n")), p.vector("x0", "n")
    symmetric = (a + a.T) / math.sqrt(2.0)
    for k in range(1, 7):
        x = (symmetric @ x).named(f"x{k}")
    wanted = [math.comb(k, k // 2) // (k // 2 + 1) * (k % 2 == 0) for k in range(13)]
    assert wanted[-1] == 132
    np.testing.assert_allclose(moments(p, {}, 13), wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_marchenko_pastur_has_the_moments_of_narayana(ratio: float) -> None:
    p = wl.Program()
    a, x = p.matrix("A", ("m", "n")), p.vector("x0", "n")
    for k in range(1, 6):
        x = (a.T @ (a @ x)).named(f"x{k}")

    def narayana(k: int) -> float:
        terms = (
            math.comb(k, r) * math.comb(k, r - 1) / k * ratio**r
            for r in range(1, k + 1)
        )
        return math.fsum(terms) if k else 1.0

    wanted = [narayana(k) for k in range(11)]
    np.testing.assert_allclose(moments(p, {"m": ratio}, 11), wanted, rtol=1e-13)


def test_a_product_of_matrices_and_its_transpose() -> None:
    """tr B^T A^T A B / n for independent square A and B: Fuss-Catalan numbers."""
    p = wl.Program()
    a, b, x = p.matrix("A", ("n", "n")), p.matrix("B", ("n", "n")), p.vector("x0", "n")
    product = a @ b
    for k in range(1, 4):
        x = (product.T @ (product @ x)).named(f"x{k}")
    wanted = [math.comb(3 * k, k) / (2 * k + 1) for k in range(7)]
    np.testing.assert_allclose(moments(p, {}, 7), wanted, rtol=1e-13)


# ------------------------------------------------- gradients that are not independent
def reference(part: str) -> dict[str, dict[str, float]]:
    return json.loads(DATA.read_text())[part]


@pytest.mark.parametrize("case", ["a1", "a2"])
def test_a_network_whose_gradients_depend_on_its_weights(case: str) -> None:
    p = wl.Program()
    cov = np.array([[1.0, 0.5], [0.5, 1.0]])
    w = p.matrix("W", ("n", "n"))
    for i, h in enumerate(p.vectors(["h1_1", "h1_2"], "n", 0.0, cov), start=1):
        square = case == "a1"
        x1 = p.nonlin((lambda u: u * u) if square else (lambda u: u + 1.0), h)
        h2 = (w @ x1.named(f"x1_{i}")).named(f"h2_{i}")
        dx1 = (w.T @ (2.0 * h2).named(f"dh2_{i}")).named(f"dx1_{i}")
        slope = (lambda d, u: 2.0 * d * u) if square else (lambda d, u: d + 0.0 * u)
        p.nonlin(slope, dx1, h, name=f"dh1_{i}")
    lim, wanted = p.limit(), reference("a")

    def second(x: str, i: int, j: int) -> float:
        return float(lim.expect(times, f"{x}_{i}", f"{x}_{j}"))

    found = {f"{case}.f": second("h2", 1, 1), f"{case}.f2": second("h2", 2, 2)}
    for i, j, inner in ((1, 1, 1.0), (1, 2, 0.5)):
        each = {x: second(x, i, j) for x in ("x1", "dh2", "dx1", "dh1")}
        found |= {f"{case}.{x}{x}.{i}{j}": v for x, v in each.items()}
        ntk = each["dh1"] * inner + each["dh2"] * each["x1"]
        found[f"{case}.ntk.{i}{j}"] = ntk
    found[f"{case}.mean_dx1"] = float(lim.mean("dx1_1"))
    found[f"{case}.dx1_x1"] = float(lim.expect(times, "dx1_1", "x1_1"))
    assert set(found) == {k for k in wanted if k.startswith(case)}
    for key, value in found.items():
        assert value == pytest.approx(wanted[key]["limit"], rel=1e-12), key


def rounds(count: int) -> wl.Program:
    """h = A x, y = relu h, x = A^T y, again and again with one A."""
    p = wl.Program()
    a, x = p.matrix("A", ("n", "n")), p.vector("x0", "n")
    for k in range(1, count + 1):
        h = (a @ x).named(f"h{k}")
        x = (a.T @ p.nonlin(jax.nn.relu, h)).named(f"g{k}")
    return p


FUNCTIONS = {
    "m1": lambda u: u + 0.0,
    "m2": lambda u: u**2,
    "m3": lambda u: u**3,
    "m4": lambda u: u**4,
    "abs": jnp.abs,
    "relu": jax.nn.relu,
}


@pytest.mark.parametrize(
    "last", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3))], ids=str
)
def test_rounds_through_one_matrix(last: int) -> None:
    lim = rounds(last).limit()
    for key, wanted in reference("b").items():
        lines, what = key.split(".")
        if lines[1] != str(last):
            continue
        if what in FUNCTIONS:
            found = lim.expect(FUNCTIONS[what], lines)
        elif what == "corr":
            continue
        else:
            x, y = lines[:2], lines[2:].replace("x1", "g1").replace("x2", "g2")
            f = times if what == "cov" else (lambda u, v: u**2 * v**2)
            found = lim.expect(f, x, y)
        allowed = 1e-9 * abs(wanted["limit"]) + 1e-12
        # Among so many numbers some miss a half-width of 99 %.
        allowed += 5.0 * wanted["limit_se"] + 3.0 * float(found.error)
        assert abs(float(found) - wanted["limit"]) <= allowed, key
        # The error is small enough to tell the limit from that of a fresh matrix.
        assert found.error < 0.02 * (1.0 + abs(wanted["limit"])), key


# --------------------------------------------------- jumps, and dependent products
JUMPS = """
x  : G[n]    := vecin(mean=0.0, std=1.0)
A  : A[m, n] := matin(std=1.3)
y  : G[m]    := A @ x
z  : H[m]    := nonlin(sign(y) + 0.3 * y)
AT : A[n, m] := A.T
w  : G[n]    := AT @ z
u  : H[n]    := nonlin(gt(w, 0.2) * w)
r  : G[m]    := A @ u
"""


def test_the_mean_derivative_of_a_jump() -> None:
    lim = wl.parse(JUMPS).limit({"m": 2.0})
    # E of 2 delta(y) + 0.3 for y ~ N(0, 1.69).
    slope = 2.0 * norm.pdf(0.0) / 1.3 + 0.3
    assert float(lim.cov("w", "x")) == pytest.approx(3.38 * slope, rel=1e-12)


def test_jumps_agree_with_networks() -> None:
    agree(wl.parse(JUMPS), {"m": 2.0})


DEPENDENT = """
x1 : G[n]    := vecin(mean=0.0, std=1.0)
x2 : G[n]    := vecin(mean=0.5, std=1.0)
x3 : G[n]    := 0.5 * x1 - 2.0 * x2
A  : A[m, n] := matin(std=1.1)
y1 : G[m]    := A @ x1
y2 : G[m]    := A @ x2
y3 : G[m]    := A @ x3
y4 : G[m]    := A @ x1
z  : H[m]    := nonlin(sign(y1 + 0.5 * y2 - y3) + tanh(y4))
s  : H[m]    := nonlin(tanh(y1 + y3 - y4))
AT : A[n, m] := A.T
w  : G[n]    := AT @ z
v  : G[n]    := AT @ s
u  : H[n]    := nonlin(tanh(w + v))
r  : G[m]    := A @ u
"""


@pytest.mark.slow
def test_dependent_products_through_one_matrix() -> None:
    """Four products of which two are independent: the regression is singular."""
    agree(wl.parse(DEPENDENT), {"m": 2.0}, ["x1", "x2", "w", "v", "r", "z"])


def test_a_singular_regression_gives_what_the_regular_one_gives() -> None:
    """The second product is the first one again, so that C has rank 1."""
    twice = JUMPS.replace(
        "z  : H[m]    := nonlin(sign(y) + 0.3 * y)",
        "y2 : G[m]    := A @ x\nz  : H[m]    := nonlin(sign(y) + 0.3 * y2)",
    )
    assert "y2" in twice
    one, two = (wl.parse(text).limit({"m": 2.0}) for text in (JUMPS, twice))
    for x, y in (("w", "x"), ("w", "w"), ("r", "y"), ("r", "r")):
        assert float(two.cov(x, y)) == pytest.approx(float(one.cov(x, y)), rel=1e-12)


# ------------------------------------------------------------------ families of lines
CONVOLUTION = """
f[i<4]  : G[n]    := vecin(mean=0.3, std=1.0)
W[k<3]  : A[n, n] := matin(std=0.8)
y[i<4]  : G[n]    := sum_{k<3} W[k] @ f[i + k - 1]
z[i<4]  : H[n]    := nonlin(max(y, 0.0))
WT[k<3] : A[n, n] := W.T
b[i<4]  : G[n]    := sum_{k<3} WT[k] @ z[i - k + 1]
u[i<4]  : H[n]    := nonlin(tanh(b))
c[i<4]  : G[n]    := sum_{k<3} W[k] @ u[i + k - 1]
"""
HEADS = """
f[i<3]        : G[n]    := vecin(mean=0.0, std=1.0)
W[h<2]        : A[m, n] := matin(std=1.2)
y[i<3, h<2]   : G[m]    := W[h] @ f[i]
z[i<3, h<2]   : H[m]    := nonlin(tanh(y) + 0.5 * y)
WT[h<2]       : A[n, m] := W.T
b[i<3]        : G[n]    := sum_{h<2} WT[h] @ z[i, h]
d[i<3, h<2]   : G[n]    := WT[h] @ z[(i * 2) % 3, 1 - h]
u[i<3]        : H[n]    := nonlin(tanh(b))
c[i<3, h<2]   : G[m]    := W[h] @ u[2 - i]
"""
MIXED = """
T[i<2, j<3] : tensor  := constant([[0.2, -0.5, 0.3], [0.1, 0.4, 0.7]])
f[i<3]      : G[n]    := vecin(mean=0.0, std=1.0)
W           : A[n, n] := matin(std=1.2)
y[i<3]      : G[n]    := W @ f[i]
a[i<2]      : G[n]    := sum_{j<3} T[i, j] * y[j] + 1
z[i<2]      : H[n]    := nonlin(max(a, 0.0))
s[i<3]      : H[n]    := sum_{j<2} 0.5 * z[j] + y[i]
h[i<3]      : H[n]    := nonlin(tanh(s))
WT          : A[n, n] := W.T
g[i<3]      : G[n]    := WT @ h[i]
b[i<2]      : G[n]    := sum_{j<3} T[i, j] * g[j]
c           : G[n]    := b[1] + g[0]
k           : H[n]    := nonlin(tanh(c))
r           : G[n]    := W @ k
"""
STEPS = """
f[i<3]  : G[n]    := vecin(mean=0.3, std=1.0)
W[k<2]  : A[n, n] := matin(std=0.8)
y[i<3]  : G[n]    := sum_{k<2} W[k] @ f[i + k - 1]
z[i<3]  : H[n]    := nonlin(gt(y, 0.3) * y)
p[i<2]  : H[n]    := z[i] + z[i + 1]
WT[k<2] : A[n, n] := W.T
b[i<3]  : G[n]    := sum_{k<2} WT[k] @ p[i - k]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (CONVOLUTION, ["f", "b", "c", "z"]),
        (HEADS, ["f", "b", "d", "c", "z"]),
        (STEPS, ["f", "b"]),
        pytest.param(MIXED, ["f", "y", "g", "r", "h"], marks=pytest.mark.slow),
    ],
    ids=["convolution", "heads", "steps", "mixed"],
)
def test_families_agree_with_networks(text: str, lines: list[str]) -> None:
    p = wl.parse(text)
    agree(p, {"m": 2.0} if "[m" in text else None, lines, width=300)
