"""Sizes and scalars of several traces, solved for the widths."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import widelimit as wl
from widelimit.trace._sizes import RAY, Scaled, Size, Solver, trials

ONE = {"n": 1.0}
TWO = {"m": 1.5, "n": 1.0}


def solver(ratios: dict[str, float]) -> tuple[Solver, list[dict[str, int]]]:
    assignments = trials(ratios)
    return Solver(ratios, assignments), assignments


def form(**terms: Any) -> tuple[tuple[str, Fraction], ...]:
    return tuple((name, Fraction(c)) for name, c in terms.items())


# ----------------------------------------------------------------------- assignments
@pytest.mark.parametrize("ratios", [ONE, TWO, {"a": 0.25, "b": 1.0, "c": 3.0}])
def test_first_trials_are_on_the_ray(ratios: dict[str, float]) -> None:
    for a in trials(ratios)[:RAY]:
        scales = {a[name] / ratio for name, ratio in ratios.items()}
        assert len(scales) == 1


@pytest.mark.parametrize("ratios", [ONE, TWO, {"a": 0.25, "b": 1.0, "c": 3.0}])
def test_trial_widths_divide_into_heads_and_are_distinct(
    ratios: dict[str, float],
) -> None:
    for a in trials(ratios):
        assert all(value % k == 0 for value in a.values() for k in range(1, 11))
    for name in ratios:
        assert len({a[name] for a in trials(ratios)[:RAY]}) == RAY


# ----------------------------------------------------------------------------- sizes
@given(
    a=st.integers(0, 8),
    b=st.integers(0, 8),
    c=st.integers(-5, 5),
    k=st.sampled_from([1, 2, 3, 4]),
)
def test_linear_sizes_in_two_widths(a: int, b: int, c: int, k: int) -> None:
    s, assignments = solver(TWO)
    values = [a * w["m"] // k + b * w["n"] // k + c for w in assignments]
    found = s.extent(values, "")
    if a == b == 0:
        assert found == c
        return
    assert isinstance(found, Size)
    expected = {"m": Fraction(a, k), "n": Fraction(b, k)}
    assert dict(found.terms) == {name: q for name, q in expected.items() if q}
    assert found.constant == c


def test_widths_of_equal_ratio_are_told_apart() -> None:
    s, assignments = solver({"m": 1.0, "n": 1.0})
    assert s.extent([w["m"] for w in assignments], "") == Size(form(m=1))
    assert s.extent([w["n"] + 2 * w["m"] for w in assignments], "") == Size(
        form(m=2, n=1)
    )


@pytest.mark.parametrize(
    "f", [lambda w: w["n"] ** 2, lambda w: math.isqrt(w["n"]), lambda w: w["n"] % 997]
)
def test_size_that_is_not_linear_is_refused(f: Any) -> None:
    s, assignments = solver(ONE)
    with pytest.raises(wl.UnsupportedError, match=r"not a linear form.*, at net\.py:3"):
        s.extent([f(w) for w in assignments], ", at net.py:3")


def test_product_of_two_widths_is_refused() -> None:
    s, assignments = solver(TWO)
    with pytest.raises(wl.UnsupportedError, match="not a linear form"):
        s.extent([w["n"] * w["m"] for w in assignments], "")


def test_arithmetic_of_sizes() -> None:
    n, m = Size(form(n=1)), Size(form(m=1))
    assert n + m == Size(form(m=1, n=1))
    assert n - n == 0
    assert (n + 3) - n == 3
    assert 4 * n / 2 == Size(form(n=2))
    assert str(n * Fraction(1, 2) - 1) == "n/2 - 1"
    assert n.dim.size({"n": 7}) == 7


@pytest.mark.parametrize("size", [Size(form(n=1), Fraction(1)), Size(form(n=-1))])
def test_size_that_is_no_width_is_no_dimension(size: Size) -> None:
    with pytest.raises(wl.UnsupportedError, match="positive multiples of widths"):
        _ = size.dim


# --------------------------------------------------------------------------- scalars
POWERS = [Fraction(p, q) for q in (1, 2, 3, 4) for p in (-4, -3, -2, -1, 1, 2, 3)]


@given(
    c=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3),
    power=st.sampled_from(POWERS),
    ratios=st.sampled_from([ONE, TWO]),
)
def test_power_laws(c: float, power: Fraction, ratios: dict[str, float]) -> None:
    s, assignments = solver(ratios)
    # Nothing but the literal of the trace: c * n^p with n the width of ratio one.
    found = s.scalar([c * float(w["n"]) ** float(power) for w in assignments], "")
    assert found.power == power
    assert found.value == pytest.approx(c, rel=1e-12)


def test_scalar_of_another_width_is_in_the_common_scale() -> None:
    s, assignments = solver(TWO)
    found = s.scalar([1 / math.sqrt(w["m"]) for w in assignments], "")
    assert found.power == Fraction(-1, 2)
    assert found.value == pytest.approx(1 / math.sqrt(1.5), rel=1e-14)


def test_product_of_powers_of_two_widths() -> None:
    s, assignments = solver(TWO)
    found = s.scalar([3 * w["m"] / w["n"] ** 1.5 for w in assignments], "")
    assert found.power == Fraction(-1, 2)
    assert found.value == pytest.approx(4.5, rel=1e-14)


def test_round_numbers_stay_round() -> None:
    s, assignments = solver(ONE)
    assert s.scalar([0.1 / w["n"] for w in assignments], "") == Scaled(
        0.1, Fraction(-1)
    )
    assert s.scalar([2 * math.sqrt(w["n"]) for w in assignments], "").value == 2.0


@pytest.mark.parametrize(
    ("f", "value"),
    [
        (lambda w: w["n"] - 1, 1.0),
        (lambda w: 2 * w["n"] + 7, 2.0),
        (lambda w: -3 * w["n"] + 1, -3.0),
    ],
)
def test_leading_order_of_linear_forms(f: Any, value: float) -> None:
    s, assignments = solver(ONE)
    assert s.scalar([f(w) for w in assignments], "") == Scaled(value, Fraction(1))


def test_leading_order_in_two_widths_is_along_the_ray() -> None:
    s, assignments = solver(TWO)
    found = s.scalar([w["m"] + w["n"] - 1 for w in assignments], "")
    assert found == Scaled(2.5, Fraction(1))


@pytest.mark.parametrize(
    "f",
    [
        lambda w: math.log(w["n"]),
        lambda w: math.sin(w["n"]),
        lambda w: 0.5 + 1 / math.sqrt(w["n"]),
        lambda w: float("nan") if w["n"] > 300_000 else 1.0,
        lambda w: w["n"] ** 2 + w["n"],
    ],
)
def test_scalar_without_a_power_law_is_refused(f: Any) -> None:
    s, assignments = solver(ONE)
    with pytest.raises(
        wl.UnsupportedError, match=r"not of the form c \* n\^p.*net\.py"
    ):
        s.scalar([f(w) for w in assignments], ", at net.py:9")


def test_scalar_that_changes_its_sign_is_refused() -> None:
    s, assignments = solver(ONE)
    with pytest.raises(wl.UnsupportedError, match="not of the form"):
        s.scalar(np.resize([1.5, -1.5], len(assignments)).tolist(), "")
