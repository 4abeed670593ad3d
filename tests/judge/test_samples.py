"""The sample models break the guidelines that samples/README.md says they break, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lipaudit.audit import audit

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"


def promised() -> dict[str, set[str]]:
    """Codes by sample, from the table of samples/README.md."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (SAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: set(re.findall(r"LIP\d{3}", shows)) for name, shows in rows}


def test_the_table_names_every_sample() -> None:
    assert set(promised()) == {path.stem for path in (SAMPLES / "models").glob("*.onnx")}


@pytest.mark.parametrize(("name", "codes"), promised().items(), ids=list(promised()))
def test_findings_are_the_promised_ones(name: str, codes: set[str]) -> None:
    found = audit(SAMPLES / "models" / f"{name}.onnx", measure=False)
    assert {finding.code for finding in found.findings} == codes
    paths = {found.region for found in found.findings}
    assert all(finding.message and finding.facts for finding in found.findings), paths
