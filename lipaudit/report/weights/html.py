"""The table of linear parts as one self-contained HTML page: no script, no network."""

from __future__ import annotations

import re

from lipaudit.records import Weights
from lipaudit.report.html import environment
from lipaudit.report.text import shorten
from lipaudit.report.weights.cells import HEADINGS, NOTE, cells, shape

__all__ = ["render"]


def render(weights: Weights) -> str:
    """One HTML page."""
    title = re.split(r"[/\\]", weights.model.path)[-1]
    rows = [(row, shape(row.shape), shape(row.operator_shape), cells(row)) for row in weights.weights]
    content = {"weights": weights, "title": title, "page_title": shorten(title, 80), "rows": rows, "headings": HEADINGS, "note": NOTE}
    return environment().get_template("weights.html.j2").render(content) + "\n"
