"""The JSON Schemas of the contracts, generated from the records.

``python -m lipaudit.report.schema [audit|weights]`` prints one; ``audit.schema.json`` and ``weights.schema.json`` beside this file are what
that printed (a test compares).
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from typing import Any

import msgspec

from lipaudit.records import Audit, Weights

__all__ = ["CONTRACTS", "published_schema", "schema"]

CONTRACTS = {"audit": ("lipaudit.audit/1", Audit), "weights": ("lipaudit.weights/1", Weights)}
"""Identifier and record, by the name that begins the file's."""


def schema(name: str = "audit") -> dict[str, Any]:
    """JSON Schema (2020-12) of a contract."""
    identifier, record = CONTRACTS[name]
    generated = msgspec.json.schema(record)
    generated["$defs"][record.__name__]["properties"]["schema"] = {"const": identifier}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{identifier.replace('/', ':')}",
        "title": identifier,
        **generated,
    }


def published_schema(name: str = "audit") -> str:
    """The text of a schema file that the package ships."""
    return files("lipaudit.report").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(*sys.argv[1:2]), indent=2, ensure_ascii=False) + "\n")
