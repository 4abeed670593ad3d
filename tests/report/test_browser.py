"""The page in a real browser: from disk, and as a strict CI server publishes it, without scripts, on a wide and a narrow screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lipaudit.report.html import render
from tests.report import audits

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
JENKINS = "sandbox; default-src 'none'; img-src 'self'; style-src 'self'"
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


def _answer(text: str, headers: dict[str, str] | None = None) -> Any:
    """A server that knows one page."""
    return lambda route: route.fulfill(body=text, headers={"content-type": "text/html; charset=utf-8", **(headers or {})})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", ["tidy", "hostile", "unbounded", "large"])
@pytest.mark.parametrize("served", ["disk", "jenkins"])
def test_the_page_is_readable(browser: Browser, tmp_path: Path, case: str, width: int, served: str) -> None:
    text = render(audits.ALL[case]())
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=False)
    try:
        page = context.new_page()
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if served == "disk":
            page.goto(file.as_uri())
        else:
            page.route("**/*", _answer(text, {"content-security-policy": JENKINS}))
            page.goto("http://report.invalid/report.html")
        assert len(requests) == 1, "the page asks for nothing but itself"
        if served == "disk":
            assert messages == []
        else:  # the inline style sheet is blocked, as it should be, and nothing else
            assert len(messages) == 1 and "inline style" in messages[0]
        headline = page.locator("#headline .big").first
        assert headline.is_visible()
        assert page.locator("h1").is_visible() and page.locator("#findings").is_visible() and page.locator("#provenance").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        context.close()


def test_hidden_parts_fit_a_narrow_screen_too_and_nothing_runs(browser: Browser) -> None:
    """With scripts allowed, every fold opened: the page's own policy is what stops injected ones."""
    context = browser.new_context(viewport={"width": 400, "height": 900})
    try:
        page = context.new_page()
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for styled in (True, False):
            text = render(audits.hostile()).replace("<details", "<details open")
            if not styled:
                text = text[: text.index("<style>")] + text[text.index("</style>") + len("</style>") :]
            page.unroute_all()
            page.route("**/*", _answer(text))
            page.goto("http://report.invalid/report.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            assert page.evaluate("document.scripts.length + document.images.length") == 0
        assert dialogs == []
    finally:
        context.close()


def test_the_policy_of_the_page_stops_a_script_that_got_in(browser: Browser) -> None:
    context = browser.new_context()
    try:
        page = context.new_page()
        text = render(audits.audit()).replace("</main>", "<script>document.title = 'ran'</script></main>")
        page.route("**/*", _answer(text))
        page.goto("http://report.invalid/report.html")
        assert page.title() == "classifier.onnx: Lipschitz audit"
    finally:
        context.close()
