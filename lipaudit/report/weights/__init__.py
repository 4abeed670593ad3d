"""The linear parts of a model as text: one file a format, and none of them computes."""

from __future__ import annotations

from collections.abc import Mapping

from lipaudit.records import Weights
from lipaudit.report.formats import rendered

__all__ = ["FORMATS", "render"]

# Format -> module with `render(weights) -> str`; a module is imported when its format is asked for.
FORMATS: Mapping[str, str] = {
    "html": "lipaudit.report.weights.html",
    "json": "lipaudit.report.weights.json",
    "markdown": "lipaudit.report.weights.markdown",
    "terminal": "lipaudit.report.weights.terminal",
}


def render(name: str, weights: Weights, *, colour: bool = False) -> str:
    """The table in the format ``name``, a key of :data:`FORMATS`; ``colour`` allows ANSI codes in the formats that know them.

    Raises
    ------
    UsageError
        If there is no such format.
    """
    return rendered(FORMATS, name, weights, colour=colour)
