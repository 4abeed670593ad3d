"""``make studies``: run all studies and write docs/studies.md with a picture each; the exit code is 1 if an outcome does not hold."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.picture import picture
from studies.study import Study

NAMES = ("depth", "branches", "norms", "attention", "initialisation", "weights")
_DOCS = Path(__file__).resolve().parents[2] / "docs"
_HEAD = """# Studies

Small random networks whose gains are known from theory, audited by lipaudit through its Python function: what it certifies and
measures, beside what is expected. `make studies` builds, audits and writes this page; the scripts are in
[samples/studies](../samples/studies). All numbers are log10 of gains unless a column says otherwise; weights have fixed seeds.
"""


def run(name: str, *, fast: bool = False) -> Study:
    """One study."""
    return importlib.import_module(f"studies.{name}").run(fast)


def section(study: Study) -> str:
    """A study as a section of the page."""
    aligned = "|".join(["---", *["--:"] * (len(study.columns) - 1)])
    table = [f"| {' | '.join(study.columns)} |", f"|{aligned}|", *(f"| {' | '.join(row)} |" for row in study.rows)]
    outcomes = [f"- {'' if outcome.holds else '**does not hold:** '}{outcome.text}" for outcome in study.outcomes]
    image = f"![{study.title}](studies/{study.name}.svg)"
    return "\n".join([f"## {study.title}", "", study.about, "", *outcomes, "", image, "", *table, ""])


def main(arguments: Sequence[str]) -> int:
    """Run; write the page and the pictures."""
    parser = argparse.ArgumentParser(prog="studies", description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--out", type=Path, default=_DOCS, help="folder of studies.md (default: docs)")
    chosen = parser.parse_args(arguments)
    (chosen.out / "studies").mkdir(exist_ok=True, parents=True)
    studies: list[Study] = []
    for name in chosen.names:
        study = run(name)
        studies.append(study)
        print(study.title)
        for outcome in study.outcomes:
            print(f"  {'ok ' if outcome.holds else 'NOT'} {outcome.text}", flush=True)
        (chosen.out / "studies" / f"{name}.svg").write_text(picture(study.panels, study.title), encoding="utf-8")
    (chosen.out / "studies.md").write_text("\n".join([_HEAD, *map(section, studies)]), encoding="utf-8")
    return 0 if all(outcome.holds for study in studies for outcome in study.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
