from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.report.text import amount, count, facts, power, printable, share, shorten, shorten_path, value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_amount_never_changes_the_number(number: Decimal) -> None:
    assert Decimal(amount(str(number))) == number


@pytest.mark.parametrize(
    ("decimal", "shown"),
    [
        ("7.2501e+03", "7250.1"),
        ("0", "0"),
        ("3.1e-04", "0.00031"),
        ("1e+06", "1000000"),
        ("2.2387e+812345", "2.2387e+812345"),
        ("1.50e-09", "1.5e-09"),
        ("inf", "infinite"),
    ],
)
def test_amount(decimal: str, shown: str) -> None:
    assert amount(decimal) == shown


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_power_is_on_the_safe_side(exponent: float) -> None:
    assert Fraction(power(exponent, up=True)) >= Fraction(exponent) >= Fraction(power(exponent, up=False))
    assert Fraction(power(exponent, up=True)) - Fraction(power(exponent, up=False)) <= Fraction(1, 100)


def test_power_of_nothing_has_no_sign() -> None:
    assert power(-0.001, up=True) == "0.00"
    assert power(-0.001, up=False) == "-0.01"


@given(st.text())
def test_printable_text_is_printable_and_keeps_what_was(text: str) -> None:
    shown = printable(text)
    assert "\x1b" not in shown and "\n" not in shown and "\u202e" not in shown
    if text.isprintable():
        assert shown == text


@given(st.text(max_size=400), st.integers(9, 60))
def test_shorten_keeps_the_limit_and_both_ends(text: str, limit: int) -> None:
    shown = shorten(text, limit)
    assert len(shown) <= limit
    if len(printable(text)) > limit:
        assert "..." in shown
    else:
        assert shown == printable(text)


def test_shorten_long_names_without_reading_all_of_them() -> None:
    assert shorten("a" * 10_000_000 + "b", 20) == "aaaaaaaa...aaaaaaaab"


def test_count_facts_and_values() -> None:
    assert count(1, "node") == "1 node"
    assert count(1234, "node") == "1,234 nodes"
    assert dict(facts({"norm": {"width": 64, "kind": None}, "single": True})) == {"norm.width": "64", "single": "yes"}
    assert value({"a": [1.0, "x\n"]}) == r"{a: [1, x\n]}"


@given(st.lists(st.text(alphabet="ab-:", max_size=12), min_size=1, max_size=9), st.integers(12, 60))
def test_shorten_path_keeps_whole_segments_of_both_ends(parts: list[str], limit: int) -> None:
    path = "/".join(parts)
    shown = shorten_path(path, limit)
    assert len(shown) <= limit
    if len(path) <= limit:
        assert shown == path
    elif "/..." in shown and ".../" in shown:
        head, tail = shown.split("/.../")
        assert path.startswith(f"{head}/") and path.endswith(f"/{tail}")


def test_shorten_path_says_what_and_where() -> None:
    path = "stack-1/layer-1/block-1:residual/branch/block-1:attention/query:affine-chain"
    assert shorten_path(path, 38) == "stack-1/layer-1/.../query:affine-chain"
    assert shorten_path("q" * 1000, 20) == shorten("q" * 1000, 20)
    assert share(0.001) == "<1 %" and share(0.137) == "14 %" and share(0.0) == "0 %"
