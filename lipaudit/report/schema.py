"""The JSON Schema of an audit, generated from the records.

``python -m lipaudit.report.schema`` prints it; ``audit.schema.json`` beside this file is what that printed (a test compares).
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from typing import Any

import msgspec

from lipaudit.records import Audit

__all__ = ["audit_schema", "published_schema"]

_IDENTIFIER = "lipaudit.audit/1"


def audit_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``lipaudit.audit/1``."""
    generated = msgspec.json.schema(Audit)
    generated["$defs"]["Audit"]["properties"]["schema"] = {"const": _IDENTIFIER}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{_IDENTIFIER.replace('/', ':')}",
        "title": _IDENTIFIER,
        **generated,
    }


def published_schema() -> str:
    """The text of the schema file that the package ships."""
    return files("lipaudit.report").joinpath("audit.schema.json").read_text(encoding="utf-8")


def _text() -> str:
    return json.dumps(audit_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(_text())
