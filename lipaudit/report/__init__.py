"""From the immutable audit to text: one file a format, and none of them computes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from lipaudit.errors import UsageError
from lipaudit.records import Audit

__all__ = ["FORMATS", "render"]

# Format -> module with `render(audit) -> str`; a module is imported when its format is asked for.
FORMATS: Mapping[str, str] = {
    "html": "lipaudit.report.html",
    "json": "lipaudit.report.json",
    "markdown": "lipaudit.report.markdown",
    "terminal": "lipaudit.report.terminal",
}
_COLOURED = frozenset({"terminal"})


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
    if name not in FORMATS:
        raise UsageError(f"{name!r} is not a format; choose one of {', '.join(FORMATS)}.")
    module = import_module(FORMATS[name])
    return module.render(audit, colour=colour) if name in _COLOURED else module.render(audit)
