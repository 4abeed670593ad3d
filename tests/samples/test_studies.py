"""The studies on small networks come out as expected; the page and its pictures are complete."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(
    path.stem
    for path in (ROOT / "samples" / "studies").glob("*.py")
    if path.stem not in {"__init__", "__main__", "nets", "picture", "study"}
)  # fmt: skip


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "samples"))
    return importlib.import_module("studies.__main__")


@pytest.mark.parametrize("name", NAMES)
def test_outcomes(package: Any, name: str) -> None:
    study = package.run(name, fast=True)
    assert [outcome.text for outcome in study.outcomes if not outcome.holds] == []
    assert len(study.outcomes) >= 2
    assert all(len(row) == len(study.columns) for row in study.rows)
    section = package.section(study)
    assert section.count("\n|") == len(study.rows) + 2
    picture = importlib.import_module("studies.picture").picture(study.panels, study.title)
    tree = ElementTree.fromstring(picture)
    curves = tree.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(curves) == sum(len(panel.lines) for panel in study.panels)
    assert "nan" not in picture


def test_the_page_shows_every_study(package: Any) -> None:
    assert sorted(package.NAMES) == NAMES
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"(studies/{name}.svg)" in page
        ElementTree.parse(ROOT / "docs" / "studies" / f"{name}.svg")
    assert "does not hold" not in page
