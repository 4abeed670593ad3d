"""Finds the renderer of a format; its module is imported when the format is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from lipaudit.errors import UsageError
from lipaudit.records import Audit, Weights

__all__ = ["rendered"]

_COLOURED = frozenset({"terminal"})


def rendered(formats: Mapping[str, str], name: str, record: Audit | Weights, *, colour: bool) -> str:
    """``record`` by the function ``render`` of the module that ``formats`` names; ``colour`` is passed on where ANSI codes are known.

    Raises
    ------
    UsageError
        If ``formats`` has no such name.
    """
    if name not in formats:
        raise UsageError(f"{name!r} is not a format; choose one of {', '.join(formats)}.")
    module = import_module(formats[name])
    return module.render(record, colour=colour) if name in _COLOURED else module.render(record)
