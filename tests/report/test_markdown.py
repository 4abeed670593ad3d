from __future__ import annotations

import re

import pytest

from lipaudit.report.markdown import cell, code, render
from tests.report import audits


@pytest.mark.parametrize("text", [*audits.HOSTILE, "", "`", "``", "a`", "`a``b```c", " a ", "\n", "|"])
def test_a_code_span_holds_its_text(text: str) -> None:
    span = code(text)
    fence = re.match("`+", span).group()  # type: ignore[union-attr]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence) and not re.search(f"(?<!`){fence}(?!`)", inside)
    assert "\n" not in span and inside.strip(" ")


def test_a_bar_does_not_end_a_table_cell() -> None:
    assert cell("a|b") == r"`a\|b`"
    for line in render(audits.hostile()).splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 6)


def test_names_stand_in_code_spans_only() -> None:
    """Outside code spans no markup, mention or link of the model's is left."""
    text = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", render(audits.hostile()))
    for part in ("<img", "<script", "@someone", "](", "nnn"):
        assert part not in text


def test_it_stays_short() -> None:
    assert len(render(audits.large())) < 4000
    assert len(render(audits.hostile())) < 20_000
