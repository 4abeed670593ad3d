"""The table of linear parts as GitHub-flavoured Markdown."""

from __future__ import annotations

import re

from lipaudit.records import Weights
from lipaudit.report.markdown import cell, code
from lipaudit.report.text import count
from lipaudit.report.weights.cells import HEADINGS, NOTE, cells, shape

__all__ = ["render"]


def render(weights: Weights) -> str:
    """One table; everything that the model names stands in code spans."""
    name = re.split(r"[/\\]", weights.model.path)[-1]
    lines = [f"### lipaudit weights: {code(name)}", "", f"{count(len(weights.weights), 'linear part')} with a stored weight.", ""]
    lines.append(f"| weight | node | operator | kind | shape | outputs x inputs | {' | '.join(HEADINGS)} | method |")
    lines.append(f"|---|---|---|---|---|---|{'--:|' * len(HEADINGS)}---|")
    for row in weights.weights:
        what = f"{cell(row.name)} | {cell(row.node)} | {cell(row.op)} | {row.kind} | {shape(row.shape)} | {shape(row.operator_shape)}"
        last = cell(row.reason, 300) if row.reason else row.norm.method
        lines.append(f"| {what} | {' | '.join(cells(row))} | {last} |")
    return "\n".join([*lines, "", NOTE]) + "\n"
