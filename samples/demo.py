"""``make demo``: build the sample models, audit each, and say where the HTML reports are."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from build_all import build_all

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"

# Inputs that have a natural range; all other samples are audited on all real numbers.
BOXES = {"digits_mlp": "x=0:1", "dot_product_attention": "x=-1:1", "residual_cnn": "image=0:1"}


def run(model: Path) -> dict[str, Any] | str:
    """Audit one model; return its JSON report, or the sentence that says why there is none."""
    command = [sys.executable, "-m", "lipaudit", "audit", str(model.relative_to(ROOT))]
    for form in ("html", "json"):
        command += ["-o", f"{form}={(DEMO / model.stem).relative_to(ROOT)}.{form}"]
    if box := BOXES.get(model.stem):
        command += ["--input", box]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode in (0, 1):  # 1: findings, which some samples are there to show
        return json.loads((DEMO / f"{model.stem}.json").read_text(encoding="utf-8"))
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"exit {done.returncode}: {last[0]}"


def summary(report: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return domain, certified, measured and findings of a report, as shown in the table."""
    certified, measured = report["certified"], report["measured"]
    domain = ", ".join(f"{box['name']} in [{box['lo']}, {box['hi']}]" for box in report["domain"]["boxes"]) or "all reals"
    codes = sorted({finding["code"] for finding in report["findings"]})
    return domain, certified["upper"] or certified["status"], measured["lower"] or measured["status"], " ".join(codes) or "none"


def index(rows: list[tuple[str, tuple[str, str, str, str] | str]]) -> str:
    """Return a page that links to all reports."""
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lipaudit: sample audits</title></head><body>',
        "<h1>Sample audits</h1>",
        '<table border="1" cellpadding="6"><tr><th>model<th>domain<th>certified at most<th>measured at least<th>findings',
    ]
    for name, cells in rows:
        if isinstance(cells, str):
            lines.append(f'<tr><td>{html.escape(name)}<td colspan="4">{html.escape(cells)}')
        else:
            lines.append(f'<tr><td><a href="{name}.html">{name}</a>' + "".join(f"<td>{html.escape(cell)}" for cell in cells))
    return "\n".join([*lines, "</table></body></html>", ""])


def markdown(rows: list[tuple[str, tuple[str, str, str, str] | str]]) -> str:
    """Return the table of the README."""
    lines = ["| model | domain | certified at most | measured at least | findings |", "|---|---|--:|--:|---|"]
    for name, cells in rows:
        lines.append(f"| `{name}` | " + (f"{cells} | | |" if isinstance(cells, str) else " | ".join(cells)) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Build, audit and summarise; the exit code is 0 if every sample could be audited."""
    models = build_all(DEMO / "models")
    rows: list[tuple[str, tuple[str, str, str, str] | str]] = []
    print(f"{'model':24} {'domain':22} {'certified <=':>15} {'measured >=':>15}  findings", flush=True)
    for model in models:
        report = run(model)
        cells = report if isinstance(report, str) else summary(report)
        rows.append((model.stem, cells))
        if isinstance(cells, str):
            print(f"{model.stem:24} {cells}", flush=True)
        else:
            print(f"{model.stem:24} {cells[0]:22} {cells[1]:>15} {cells[2]:>15}  {cells[3]}", flush=True)
    (DEMO / "index.html").write_text(index(rows), encoding="utf-8")
    (DEMO / "summary.md").write_text(markdown(rows), encoding="utf-8")
    failed = sum(isinstance(cells, str) for _, cells in rows)
    if failed:
        print(f"\n{failed} of {len(rows)} samples could not be audited (see above).", file=sys.stderr)
    print(f"\nThe HTML reports are in {DEMO}; open {DEMO / 'index.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
