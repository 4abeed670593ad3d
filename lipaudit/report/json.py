"""The audit as JSON, by the contract ``lipaudit.audit/1``: equal audits give equal bytes."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lipaudit.errors import ModelError
from lipaudit.records import Audit, Record

__all__ = ["encode", "render"]


def render(audit: Audit) -> str:
    """JSON text of an audit, see :func:`encode`."""
    return encode(audit, audit.model.path)


def encode(record: Record, where: str) -> str:
    """JSON text, two spaces of indentation, keys of free-form objects sorted.

    JSON has no infinity and no NaN: free-form values (facts, evidence, options) become the text ``"inf"``, ``"-inf"`` or
    ``"nan"``; the numbers of the contract are null where there is none.

    Raises
    ------
    ModelError
        The tree of regions is nested too deeply for JSON.
    """
    try:
        plain = msgspec.to_builtins(record, order="deterministic")
        _make_valid(plain)
        return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode("utf-8") + "\n"
    except RecursionError:
        raise ModelError("the regions are nested too deeply to be written as JSON.", where=where) from None


# Numbers that the schema declares; everything else that holds a float is free-form.
_NULLABLE = frozenset({"log10", "before_log10", "after_log10", "share"})


def _make_valid(root: dict[str, Any]) -> None:
    """Replace, in place, what JSON cannot hold: non-finite floats and lone surrogates (of a path given on the command line)."""
    stack: list[dict[str, Any] | list[Any]] = [root]
    while stack:
        holder = stack.pop()
        items: Any = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, item in items:
            if isinstance(item, float) and not math.isfinite(item):
                holder[key] = None if key in _NULLABLE else str(item)
            elif isinstance(item, str) and not item.isascii():
                holder[key] = item.encode("utf-8", "backslashreplace").decode("utf-8")
            elif isinstance(item, (dict, list)):
                stack.append(item)
