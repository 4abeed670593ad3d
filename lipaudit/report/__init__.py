"""From the immutable audit to text: one file a format, and none of them computes."""

from __future__ import annotations

from collections.abc import Mapping

from lipaudit.records import Audit
from lipaudit.report.formats import rendered

__all__ = ["FORMATS", "render"]

# Format -> module with `render(audit) -> str`; a module is imported when its format is asked for.
FORMATS: Mapping[str, str] = {
    "html": "lipaudit.report.html",
    "json": "lipaudit.report.json",
    "markdown": "lipaudit.report.markdown",
    "terminal": "lipaudit.report.terminal",
}


def render(name: str, audit: Audit, *, colour: bool = False) -> str:
    """The audit in the format ``name``.

    Parameters
    ----------
    name
        A key of :data:`FORMATS`.
    audit
        What to show.
    colour
        ANSI colours, in the formats that know them.

    Raises
    ------
    UsageError
        If there is no such format.
    """
    return rendered(FORMATS, name, audit, colour=colour)
