"""The structure of the page, read with a parser of its own."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from lipaudit.report.html import name, prose, render
from tests.report import audits

VOID = {"meta", "br", "wbr", "img", "hr", "input", "link"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section", "article", "div", "p",
    "h1", "h2", "h3", "a", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td",
    "details", "summary", "figure", "figcaption",
    "strong", "em", "small", "span", "code", "sup", "br", "wbr", "svg", "desc", "g", "rect", "line", "circle", "text", "tspan",
}  # fmt: skip
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Elements in order; checks that every one is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> str:
        return "".join(words for owner, words in self.words if owner == tag)


@pytest.fixture(scope="module", params=list(audits.ALL))
def page(request: pytest.FixtureRequest) -> Page:
    return Page(render(audits.ALL[request.param]()))


def test_only_known_elements_and_no_active_ones(page: Page) -> None:
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        assert "style" not in attributes
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
        assert not {"src", "srcset", "action", "xlink:href"} & set(attributes)


def test_the_page_carries_its_own_policy_and_needs_no_network(page: Page) -> None:
    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    assert "url(" not in page.text("style") and "@import" not in page.text("style")


def test_anchors_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {target for target in targets if target != "#matrix"} <= {f"#{found}" for found in ids}


def test_pictures_have_title_and_description_and_their_looks_in_attributes(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.elements}
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("role") in ("img", "presentation")
            if attributes.get("role") == "img":
                assert set((attributes.get("aria-labelledby") or "").split()) <= ids and attributes.get("aria-labelledby")
        if tag in ("rect", "circle", "text"):
            assert attributes.get("fill")
        if tag == "line":
            assert attributes.get("stroke")


def test_tables_say_which_cells_are_heads_and_have_borders_without_a_style_sheet(page: Page) -> None:
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "table":
            assert attributes.get("border") == "1"


def test_one_main_heading_and_no_level_skipped(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


@pytest.mark.parametrize(
    "place",
    [
        "model",
        "domain",
        "matrix",
        "regions",
        "operators",
        "skipped",
        "findings",
        "derivation",
        "user_rules",
        "contradictions",
        "provenance",
    ],
)
def test_hostile_text_is_text_wherever_it_stands(place: str) -> None:
    """One field at a time: an escape forgotten in one template cannot hide behind the others."""
    hostile = audits.hostile()
    text = render(audits.audit(**{place: getattr(hostile, place)}))
    assert "<img" not in text and "<script" not in text and "\u202e" not in text and "\x1b" not in text and audits.LONG not in text
    assert "onerror" not in text or "&lt;" in text
    assert {tag for tag, _ in Page(text).elements} <= ALLOWED


def test_the_numbers_of_every_region_are_on_the_page() -> None:
    page = Page(render(audits.audit()))
    words = "".join(text for _, text in page.words)
    for _, region in [(0, r) for r in audits.blocks(4)]:
        assert region.path in words
        for child in region.children:
            assert child.path.removeprefix(f"{region.path}/") in words
    assert "norm.epsilon" in words and "1e-05" in words


def test_the_derivation_leads_from_the_result_to_its_operands() -> None:
    text = render(audits.audit())
    assert text.index('id="step-13"') < text.index('id="step-12"') < text.index('id="step-0"')
    assert 'href="#step-12"' in text


def test_matrix_only_if_there_is_more_than_one_pair() -> None:
    assert 'id="matrix"' not in render(audits.audit())
    assert 'id="matrix"' in render(audits.hostile())


def test_sections_without_content_say_so() -> None:
    text = render(audits.bare())
    assert "No findings." in text and "not divided into regions" in text and "no derivation" in text


def test_names_can_break_and_sentences_set_code_and_powers() -> None:
    assert name("blocks.norm/weight") == "blocks.<wbr>norm/<wbr>weight"
    assert name("v1.5") == "v1.5"
    assert name("a" * 45) == f"{'a' * 20}<wbr>{'a' * 20}<wbr>{'a' * 5}"
    assert name("<b>") == "&lt;b&gt;"
    assert prose("use `x<y` at 10^-2.5") == "use <code>x&lt;y</code> at 10<sup>-2.5</sup>"
