"""What holds for every format, on every audit of audits.py."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest

from lipaudit.errors import UsageError
from lipaudit.report import FORMATS, render
from tests.report import audits

FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
CASES = [(name, case) for name in FORMATS for case in audits.ALL]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_equal_audits_give_equal_text_in_one_piece(name: str, case: str) -> None:
    text = render(name, audits.ALL[case]())
    assert text == render(name, audits.ALL[case]())
    assert text.endswith("\n")
    text.encode("utf-8")


@pytest.mark.parametrize("name", ["html", "markdown", "terminal"])
@pytest.mark.parametrize("case", list(audits.ALL))
def test_nothing_invisible_is_printed(name: str, case: str) -> None:
    text = render(name, audits.ALL[case]())
    assert {c for c in text if unicodedata.category(c) in FORBIDDEN} <= {"\n"}


def words_of(name: str, case: str) -> str:
    """What a reader reads: places to break a line are no text."""
    text = render(name, audits.ALL[case]())
    return html.unescape(re.sub("<[^>]*>", "", text)) if name == "html" else text


@pytest.mark.parametrize("name", ["html", "markdown", "terminal"])
def test_numbers_and_domain_are_in_words_in_every_format(name: str) -> None:
    text = words_of(name, "tidy")
    for words in ("7250.1", "x in [0, 1]", "31", "l2", "LIP202", "blocks.1.norm", "blocks.2.mlp.fc1"):
        assert words in text, words


@pytest.mark.parametrize("name", list(FORMATS))
def test_reasons_findings_and_skipped_operators_are_never_hidden(name: str) -> None:
    text = words_of(name, "unbounded")
    for words in (
        "unbounded",
        "attn_0",
        "ai.onnx::Softmax",
        "dot-product attention",
        "custom::Quant",
        "no rule for this operator",
        "runtime refused",
    ):
        assert words in text, words
    assert "unknown" in words_of(name, "unknown")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_contradiction_is_shown(name: str) -> None:
    assert "ontradiction" in render(name, audits.hostile()).lower()


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_10_kb_name_is_whole_in_json_only(name: str) -> None:
    assert (audits.LONG in render(name, audits.hostile())) == (name == "json")


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_path_that_is_no_text_can_still_be_written(name: str) -> None:
    shown = audits.audit()
    model = audits.msgspec_replace(shown.model, path="/tmp/\udcff.onnx")
    render(name, audits.msgspec_replace(shown, model=model)).encode("utf-8")


@pytest.mark.parametrize("name", ["html", "json"])
def test_a_deep_tree_is_rendered(name: str) -> None:
    assert "leaf" in render(name, audits.deep(60))


def test_what_is_left_to_the_json_is_counted() -> None:
    page, full = render("html", audits.large()), render("json", audits.large())
    assert "180 more regions" in page  # 480 regions, 300 shown
    assert "3,002 steps" in page
    assert "74 more places" in page
    assert "75 more places" in render("terminal", audits.large())
    assert "77 more places" in render("markdown", audits.large())
    assert "blocks.119.mlp.fc2" in full


def test_formats_are_imported_when_asked_for_and_others_are_refused() -> None:
    with pytest.raises(UsageError, match="pdf"):
        render("pdf", audits.audit())


def test_colour_is_only_in_the_terminal_and_only_when_asked_for() -> None:
    assert "\x1b[" in render("terminal", audits.audit(), colour=True)
    assert "\x1b" not in render("terminal", audits.audit())
    for name in ("html", "json", "markdown"):
        assert render(name, audits.audit(), colour=True) == render(name, audits.audit())
