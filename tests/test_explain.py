"""``lipaudit explain`` and ``lipaudit rules``: every guideline and every operator can be explained."""

from __future__ import annotations

import pytest

from lipaudit.errors import UsageError
from lipaudit.explain import explain, listing
from lipaudit.judge.guideline import load_guidelines
from lipaudit.operators.catalogue import Catalogue

GUIDELINES = load_guidelines()
CATALOGUE = Catalogue.load()


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("guideline", GUIDELINES, ids=lambda guideline: guideline.code)
def test_a_guideline_is_explained_in_full(guideline: object) -> None:
    assert guideline in GUIDELINES
    for subject in (guideline.code, guideline.code.lower(), guideline.name):  # type: ignore[attr-defined]
        text = flat(explain(subject))
        for part in (guideline.code, guideline.name, guideline.when, guideline.why, guideline.fix):  # type: ignore[attr-defined]
            assert flat(part) in text


def test_every_operator_is_explained() -> None:
    for kind in (*CATALOGUE.entries, *CATALOGUE.refusals):
        text = explain(kind)
        assert text.startswith(kind)
        assert max(len(line) for line in text.splitlines()) <= 100 or any(len(word) > 80 for word in text.split())


def test_an_operator_name_finds_all_domains() -> None:
    text = explain("gelu")
    assert "ai.onnx::Gelu\n" in text and "com.microsoft::Gelu\n" in text
    assert "com.microsoft" not in explain("ai.onnx::Gelu")


def test_a_scalar_operator_shows_slope_range_and_source() -> None:
    text = explain("Relu")
    assert "f'(x) in [0, 1]" in text and "f(x) in [0, inf]" in text


@pytest.mark.parametrize(
    ("subject", "near"), [("Softmx", "Softmax"), ("LIP20", "LIP20"), ("double-sofmax", "double-softmax"), ("relu6x", "Relu")]
)
def test_an_unknown_subject_names_the_nearest(subject: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        explain(subject)


@pytest.mark.parametrize("subject", ["", "\x1b[31m\u202e", "q" * 10_000])
def test_nonsense_is_refused_in_one_printable_line(subject: str) -> None:
    with pytest.raises(UsageError) as caught:
        explain(subject)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_listing_names_every_guideline_and_operator() -> None:
    words = set(listing().replace(",", " ").split())
    assert {guideline.code for guideline in GUIDELINES} <= words
    assert {kind.removeprefix("ai.onnx::") for kind in CATALOGUE.entries} <= words
