"""Snapshots of the text formats. After a deliberate change: ``pytest tests/report --snapshot-update``, then read the difference."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion

from lipaudit.report import render
from tests.report import audits


@pytest.mark.parametrize("name", ["terminal", "markdown"])
@pytest.mark.parametrize("case", ["tidy", "hostile", "unbounded", "unknown", "bare"])
def test_text(name: str, case: str, snapshot: SnapshotAssertion) -> None:
    assert render(name, audits.ALL[case]()) == snapshot


@pytest.mark.parametrize("case", ["tidy", "unbounded", "bare"])
def test_json(case: str, snapshot: SnapshotAssertion) -> None:
    assert render("json", audits.ALL[case]()) == snapshot
