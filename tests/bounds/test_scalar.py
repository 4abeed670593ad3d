"""Certified scalars never round to the wrong side, and never mix."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Lower, Norm, Upper, combine, dual, matrix_norm, repeat_factor
from tests.bounds.truth import exact, spectral_from_below

doubles = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
fractions = st.fractions(min_value=0)
wide = st.tuples(st.integers(1, 2**90), st.integers(-(10**7), 10**7))
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


@given(fractions)
def test_construction_rounds_outward(x: Fraction) -> None:
    assert exact(Lower(x)) <= x <= exact(Upper(x))
    text = f"{x.numerator}/{x.denominator}"
    assert exact(Lower(text)) <= x <= exact(Upper(text))


@given(doubles)
def test_doubles_are_exact(x: float) -> None:
    assert exact(Upper(x)) == exact(Lower(x)) == Fraction(x)
    assert float(Upper(x)) == float(Lower(x)) == x


@given(st.integers(0, 2**80))
def test_integers_are_exact(n: int) -> None:
    assert exact(Upper(n)) == exact(Lower(n)) == n


@pytest.mark.parametrize("n", [2**53 + 1, 2**63 - 1, 2**60 + 3])
def test_numpy_integers_are_exact(n: int) -> None:
    assert exact(Upper(np.int64(n))) == exact(Lower(np.int64(n))) == n


@pytest.mark.parametrize("text", ["0.1", "1e-400", "2.5e400", "0.30000000000000001", "123456789.123456789"])
def test_decimal_text_is_enclosed(text: str) -> None:
    assert exact(Lower(text)) <= Fraction(text) <= exact(Upper(text))


@given(fractions, fractions)
def test_arithmetic_rounds_outward(x: Fraction, y: Fraction) -> None:
    a, b, c, d = Upper(x), Upper(y), Lower(x), Lower(y)
    assert exact(a + b) >= x + y >= exact(c + d)
    assert exact(a * b) >= x * y >= exact(c * d)
    if y > 0 and not d.is_zero:
        assert exact(a / d) >= x / y >= exact(c / b)
    assert exact(a.sqrt()) ** 2 >= x >= exact(c.sqrt()) ** 2
    assert exact(a**3) >= x**3


@given(st.floats(0, 300))
def test_exponential_rounds_up(x: float) -> None:
    assert exact(Upper(x).exp()) >= sum((Fraction(x) ** k / math.factorial(k) for k in range(20)), Fraction(0))


@given(fractions, st.integers(1, 30))
def test_decimal_text_rounds_outward_by_one_unit(x: Fraction, digits: int) -> None:
    upper, lower = Upper(x), Lower(x)
    up, down = Fraction(upper.decimal(digits)), Fraction(lower.decimal(digits))
    assert down <= exact(lower) <= x <= exact(upper) <= up
    if x:
        width = Fraction(10) ** (1 - digits)
        assert up <= exact(upper) * (1 + 2 * width)
        assert down >= exact(lower) * (1 - 2 * width)


@given(wide, st.integers(1, 12))
def test_decimal_text_of_huge_exponents(pair: tuple[int, int], digits: int) -> None:
    mantissa, exponent = pair
    value = arb(mantissa) * arb(2) ** exponent
    upper, lower = Upper.from_dyadic(mantissa, exponent), Lower.from_dyadic(mantissa, exponent)
    assert not arb(upper.decimal(digits)) < value
    assert not arb(lower.decimal(digits)) > value
    assert len(upper.decimal(digits).split("e")[0].replace(".", "")) == digits
    assert math.isclose(upper.log10(), (mantissa.bit_length() + exponent) * math.log10(2), rel_tol=1e-6, abs_tol=0.31)


@pytest.mark.parametrize("x", [1, 10, 100, 1000, 10**20, Fraction(1, 10), Fraction(1, 1000), 999999, Fraction(999995, 10**5)])
@pytest.mark.parametrize("digits", [1, 2, 5, 17])
def test_decimal_text_at_powers_of_ten(x: Fraction | int, digits: int) -> None:
    assert Fraction(Upper(x).decimal(digits)) >= x >= Fraction(Lower(x).decimal(digits))


def test_decimal_text_of_extremes() -> None:
    assert (ZERO.decimal(), INFINITE.decimal(), Lower(0).decimal()) == ("0", "inf", "0")
    assert Upper(10).decimal(3) == "1.00e+01"
    assert Upper(Fraction(99999, 10)).decimal(3) == "1.00e+04"
    assert Lower(Fraction(99999, 10)).decimal(3) == "9.99e+03"


@given(fractions.filter(lambda x: x > 0))
def test_log10_rounds_outward(x: Fraction) -> None:
    upper, lower = Upper(x), Lower(x)
    assert not arb(10) ** arb(upper.log10()) < arb(x.numerator) / arb(x.denominator)
    assert not arb(10) ** arb(lower.log10()) > arb(x.numerator) / arb(x.denominator)
    assert lower.log10() <= upper.log10()


def test_log10_of_extremes() -> None:
    assert (ZERO.log10(), INFINITE.log10(), ONE.log10()) == (-math.inf, math.inf, 0.0)


@given(fractions)
def test_floats_round_outward(x: Fraction) -> None:
    assert float(Upper(x)) >= x >= float(Lower(x))


@pytest.mark.parametrize("exponent", [-5000, -1075, -1074, 1023, 1024, 5000, 10**9])
def test_floats_of_numbers_that_do_not_fit(exponent: int) -> None:
    upper, lower = Upper.from_dyadic(1, exponent), Lower.from_dyadic(1, exponent)
    value = arb(2) ** exponent
    assert math.isinf(float(upper)) or not arb(float(upper)) < value
    assert math.isfinite(float(lower)) and not arb(float(lower)) > value


def test_rules_of_zero_and_infinity() -> None:
    assert ZERO * INFINITE == ZERO == INFINITE * ZERO
    assert ONE + INFINITE == INFINITE
    assert INFINITE / Lower(2) == INFINITE
    assert ONE / Lower(0) == INFINITE
    assert ZERO / Lower(0) == ZERO
    assert INFINITE.sqrt() == INFINITE == INFINITE.exp() == INFINITE**2
    assert INFINITE**0 == ONE
    assert Lower(3) / INFINITE == Lower(0)
    assert ONE < INFINITE and not INFINITE < INFINITE and INFINITE <= INFINITE
    assert max(ONE, INFINITE, ZERO) is INFINITE
    assert not Lower(5).exceeds(INFINITE) and not Lower(5).exceeds(Upper(5)) and Lower(5).exceeds(Upper(4))


def test_nan_negative_uppers_and_infinite_lowers_are_refused() -> None:
    for kind in (Upper, Lower):
        with pytest.raises(ValueError):
            kind(math.nan)
    for bad in (-1.0, -1e-300, Fraction(-1, 7), -math.inf, "-2"):
        with pytest.raises(ValueError):
            Upper(bad)
    with pytest.raises(ValueError):
        Lower(math.inf)
    with pytest.raises(ValueError):
        Upper(2) ** -1
    assert Lower(-3) == Lower(0)  # true: the quantity is not negative


def test_directions_do_not_mix() -> None:
    up, low = Upper(2), Lower(1)
    for action in (
        lambda: up + low,
        lambda: up * low,
        lambda: low + up,
        lambda: low * up,
        lambda: up / up,
        lambda: low / low,
        lambda: up < low,
        lambda: up + 1,
        lambda: up * 2.0,
        lambda: up < 3,
    ):
        with pytest.raises(TypeError):
            action()
    assert up != Lower(2)


def test_bounds_have_no_truth_value() -> None:
    for bound in (Upper(1), ZERO, Lower(1)):
        with pytest.raises(TypeError):
            bool(bound)


@given(doubles, doubles)
def test_order_and_hash_follow_the_values(x: float, y: float) -> None:
    assert (Upper(x) < Upper(y)) == (x < y) and (Upper(x) == Upper(y)) == (x == y) and (Upper(x) <= Upper(y)) == (x <= y)
    if x == y:
        assert hash(Upper(x)) == hash(Upper(y))


@given(st.lists(st.floats(0, 1e6), max_size=6))
def test_combine_is_the_norm(values: list[float]) -> None:
    parts = [Upper(v) for v in values]
    rationals = [Fraction(v) for v in values]
    assert exact(combine(parts, "l1")) >= sum(rationals, Fraction(0))
    assert exact(combine(parts, "linf")) == max(rationals, default=Fraction(0))
    assert exact(combine(parts, "l2")) ** 2 >= sum((v * v for v in rationals), Fraction(0))


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_matrix_norm_is_never_below_the_norm(rows: int, columns: int, data: st.DataObject) -> None:
    entry = st.one_of(st.just(0.0), st.floats(0, 100), st.floats(1e-12, 1e-3))
    matrix = np.array(data.draw(st.lists(st.lists(entry, min_size=columns, max_size=columns), min_size=rows, max_size=rows)))
    uppers = [[Upper(v) for v in row] for row in matrix]
    assert exact(matrix_norm(uppers, "l1")) >= max(sum(map(Fraction, column)) for column in matrix.T)
    assert exact(matrix_norm(uppers, "linf")) >= max(sum(map(Fraction, row)) for row in matrix)
    if np.all((matrix == 0) | (matrix > 1e-150)):
        assert exact(matrix_norm(uppers, "l2")) >= Fraction(spectral_from_below(matrix))
        assert float(matrix_norm(uppers, "l2")) <= np.linalg.norm(matrix, "fro") * min(rows, columns) + 1e-9


def test_matrix_norm_is_tight_and_handles_infinity() -> None:
    golden = (1 + math.sqrt(5)) / 2
    assert float(matrix_norm([[ONE, ONE], [ZERO, ONE]], "l2")) == pytest.approx(golden, rel=1e-9)
    for norm in NORMS:
        assert matrix_norm([[ONE, INFINITE], [ZERO, ONE]], norm) == INFINITE
        assert matrix_norm([], norm) == ZERO == matrix_norm([[ZERO]], norm)
    assert exact(matrix_norm([[Upper(3), Upper(4)]], "l2")) == 5
    assert exact(matrix_norm([[Upper(3), Upper(4)]], "l1")) == 4
    assert exact(matrix_norm([[Upper(3)], [Upper(4)]], "l1")) == 7


def test_small_helpers() -> None:
    assert [dual(norm) for norm in NORMS] == ["linf", "l2", "l1"]
    assert [exact(repeat_factor(4, norm)) for norm in NORMS] == [4, 2, 1]
    assert all(repeat_factor(0, norm) == ZERO for norm in NORMS)
    assert exact(repeat_factor(2, "l2")) ** 2 >= 2
