"""Strips of the linear parts: what they show, in words too, and what extreme rows do to them."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lipaudit.records import WeightNorm, WeightRank, WeightRow
from lipaudit.report import render
from lipaudit.report.spectra import strips
from tests.report.audits import audit as example


def row(upper: str | None, sigma: str | None = None, fro: str | None = "4", **more: Any) -> WeightRow:
    given: dict[str, Any] = {
        "name": "w<1>", "node": "n", "op": "ai.onnx::MatMul", "kind": "matrix", "shape": [4, 4], "operator_shape": [4, 4],
        "norm": WeightNorm(upper, upper, None if upper is None else 1e-6, "verified Cholesky"), "l1": upper, "linf": upper, "fro": fro,
        "stable_rank": WeightRank("1.5", "1.5"), "sigma_min": sigma,
    }  # fmt: skip
    return WeightRow(**{**given, **more})


def xs(picture: str, tag: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<{tag} x1="([\d.]+)%" x2="([\d.]+)%"', picture)
    return [(float(a), float(b)) for a, b in found]


def test_places_are_in_order_and_on_one_axis() -> None:
    found, ruler, left = strips([row("10", "0.1"), row("100", "1", "40"), row("1000", None, "400")], 10)
    assert left == 0 and ruler is not None and "10^-1" in ruler and "10^3" in ruler
    edges: list[float] = []
    for strip in found:
        assert strip.picture is not None
        lines = xs(str(strip.picture), "line")
        mean, top = lines[-2][0], lines[-1][0]
        assert mean < top
        edges.append(top)
        start = re.search(r'<rect x="([\d.]+)%"', str(strip.picture))
        assert start is not None and float(start.group(1)) <= mean
        assert ("stroke-dasharray" in str(strip.picture)) == (strip.row.sigma_min is None)
    assert edges == sorted(edges) and abs((edges[1] - edges[0]) - (edges[2] - edges[1])) < 0.2


def test_pictures_say_in_words_what_they_show() -> None:
    (strip,), _, _ = strips([row("2.5", "0.5")], 10)
    assert 'role="img"' in strip.picture and "Singular values of w&lt;1&gt;" in strip.picture
    for text in (strip.numbers, str(strip.picture)):
        assert "largest singular value \N{LESS-THAN OR EQUAL TO} 2.5 (slack 1e-06)" in text
        assert "stable rank 1.5 of 4" in text and "smallest \N{GREATER-THAN OR EQUAL TO} 0.5" in text
    assert "style=" not in str(strip.picture)


def test_extreme_rows() -> None:
    rows = [
        row("1e400", None, "1e400"), row("0", None, "0"), row("1e-400", "0", None), row(None, None, None, reason="holds 1 non-finite"),
        row("1", None, operator_shape=None), row("1", None, operator_shape=[0, 4]),
    ]  # fmt: skip
    found, _, left = strips(rows, 10)
    assert left == 0 and [strip.picture is not None for strip in found] == [True, False, True, False, False, False]
    assert found[3].numbers == "holds 1 non-finite"
    assert strips([], 10) == ([], None, 0)
    assert strips([row("0", None, "0")], 10)[1] is None


def test_the_largest_are_kept_in_the_order_of_the_network() -> None:
    found, _, left = strips([row(str(k + 1), name=f"w{k}") for k in (3, 0, 2, 1)], 2)
    assert [strip.row.name for strip in found] == ["w3", "w2"] and left == 2


def test_the_page_has_the_section_only_if_there_are_parts() -> None:
    audit = example()
    assert 'id="parts"' not in render("html", audit)
    page = render("html", msgspec.structs.replace(audit, weights=[row("2", "1")] * 70))
    assert page.count('aria-labelledby="chart-part-') == 60 and "10 more linear parts" in page and 'href="#parts"' in page
    assert "<script" not in page
