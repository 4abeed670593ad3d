"""How far apart the two sides of an audit are, by family of models: the median of certified over measured.

``python tools/families.py TABLE.json [--models FOLDER]`` audits every model of FOLDER (else of ``$LIPAUDIT_MODELS``, else of
``../shared/models`` beside the checkout) on all reals at the default effort and writes a table for tools/benchmark_table.py. The family
of a model is read off its operators and regions. A median that grew by more than 1 % over that of docs/benchmarks.md wants a reason: a line
of CHANGELOG.md's unreleased part that says ``family NAME``; without one the exit status is 1, after the table was written. A measured gain
above a certified bound is a contradiction: the exit status is 1 then, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TITLE = "Certified over measured by family of models"
NOTE = (
    "All models of the folder of real models, on all reals, at the default effort. Where both sides are known and nothing jumps, the "
    "certified bound divided by the measured gain, as a power of ten: deep networks multiply worst cases that do not meet."
)
COLUMNS = ["family", "models", "finite", "compared", "median of log10(certified / measured)", "largest"]
GROWTH = 0.0043
"""log10 of 1.01."""

_QUANTISED = re.compile(r"QLinear|Quant|Integer|NBits|::QGemm|::QAttention")
_RECURRENT = re.compile(r"::(LSTM|GRU|RNN|Scan|Loop|DynamicQuantizeLSTM)$")


def regions(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All regions of the tree."""
    for region in found:
        yield region
        yield from regions(region.get("children", []))


def family(audit: Mapping[str, Any]) -> str:
    """By what a model is made of, the rarest first."""
    operators = [entry["op"] for entry in audit["operators"]]
    kinds = {region["kind"] for region in regions(audit["regions"])}
    convolves = any("Conv" in op for op in operators)
    if any(_QUANTISED.search(op) for op in operators):
        return "quantised"
    if any(_RECURRENT.search(op) for op in operators):
        return "recurrent"
    if "attention" in kinds:
        return "transformer"
    if convolves:
        return "residual convolutional" if "residual" in kinds else "convolutional"
    return "fully connected and other"


def audit(path: Path, out: Path) -> dict[str, Any] | None:
    """The JSON of one audit, written to ``out``; None where the model is refused."""
    command = [sys.executable, "-m", "lipaudit", "audit", str(path), "--exit-zero", "-o", f"json={out}"]
    subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else None


def measured(models: Path, jobs: int = 2) -> tuple[list[list[object]], list[str]]:
    """Rows of the table, and the models whose measured gain lies above the bound."""
    paths = sorted(models.rglob("*.onnx"))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        found = pool.map(audit, paths, (Path(name) / f"{k}.json" for k in range(len(paths))))
        audits = [(path, item) for path, item in zip(paths, found, strict=True) if item is not None]
    members: dict[str, list[Mapping[str, Any]]] = {}
    for _, item in audits:
        members.setdefault(family(item), []).append(item)
    broken = [path.stem for path, item in audits if item["contradictions"]]
    rows: list[list[object]] = []
    for name, group in sorted(members.items()):
        finite = [entry for entry in group if entry["certified"]["status"] == "finite"]
        gaps = [gap for entry in finite if (gap := _gap(entry)) is not None]
        figures: list[object] = [f"{statistics.median(gaps):.4f}", f"{max(gaps):.4f}"] if gaps else ["none", "none"]
        rows.append([name, len(group), len(finite), len(gaps), *figures])
    return rows, broken


def _gap(entry: Mapping[str, Any]) -> float | None:
    above, below = entry["certified"], entry["measured"]
    if below["log10"] is None or above["log10"] is None or float(above["offset"] or 0) != 0:
        return None
    return float(above["log10"]) - float(below["log10"])


def before(page: str) -> dict[str, float]:
    """The medians of the page that is replaced."""
    if f"## {TITLE}" not in page:
        return {}
    part = page.split(f"## {TITLE}")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]
    return {row[0]: float(row[4]) for row in cells[1:] if len(row) == len(COLUMNS) and re.fullmatch(r"-?[\d.]+", row[4])}


def unexplained(rows: list[list[object]], old: Mapping[str, float], changelog: str) -> list[str]:
    """Families whose median grew without a line in the unreleased part of the changelog."""
    news = changelog.split("## [Unreleased]")[-1].split("\n## [")[0]
    grown = [str(row[0]) for row in rows if row[3] and float(str(row[4])) > old.get(str(row[0]), float("inf")) + GROWTH]
    return [name for name in grown if f"family {name}" not in news]


def main() -> None:
    """Write the table, compare it with the old one."""
    parser = argparse.ArgumentParser(description="Certified over measured by family of models.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("LIPAUDIT_MODELS", ROOT.parent / "shared" / "models")))
    options = parser.parse_args()
    if not options.models.is_dir():
        sys.exit(f"{options.models} is no folder of models: set LIPAUDIT_MODELS or give --models")
    rows, broken = measured(options.models)
    page = ROOT / "docs" / "benchmarks.md"
    grown = unexplained(rows, before(page.read_text(encoding="utf-8")), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    table = {"title": TITLE, "note": NOTE, "columns": COLUMNS, "rows": rows}
    options.table.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(str(value) for value in row))
    for name in broken:
        print(f"{name}: a measured gain lies above a certified bound", file=sys.stderr)
    for name in grown:
        print(f"the median of family {name} grew, and CHANGELOG.md does not say why (a line with 'family {name}')", file=sys.stderr)
    sys.exit(1 if broken or grown else 0)


if __name__ == "__main__":
    main()
