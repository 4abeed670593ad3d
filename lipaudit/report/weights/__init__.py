"""The linear parts of a model as text: one file a format, and none of them computes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from lipaudit.errors import UsageError
from lipaudit.records import Weights

__all__ = ["FORMATS", "render"]

# Format -> module with `render(weights) -> str`; a module is imported when its format is asked for.
FORMATS: Mapping[str, str] = {
    "html": "lipaudit.report.weights.html",
    "json": "lipaudit.report.weights.json",
    "markdown": "lipaudit.report.weights.markdown",
    "terminal": "lipaudit.report.weights.terminal",
}
_COLOURED = frozenset({"terminal"})


def render(name: str, weights: Weights, *, colour: bool = False) -> str:
    """The table in the format ``name``, a key of :data:`FORMATS`; ``colour`` allows ANSI codes in the formats that know them.

    Raises
    ------
    UsageError
        If there is no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"{name!r} is not a format; choose one of {', '.join(FORMATS)}.")
    module = import_module(FORMATS[name])
    return module.render(weights, colour=colour) if name in _COLOURED else module.render(weights)
