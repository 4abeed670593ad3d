"""A guideline of a user, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write"]


def write(folder: Path, **changes: Any) -> Path:
    """Write ``folder/guidelines/one.toml``; keywords replace lines, None leaves one out."""
    fields = {
        "code": '"ABC001"', "name": '"a-name"', "status": '"stable"', "since": '"0.1"', "severity": '"note"', "on": '"model"',
        "when": "'model.nodes > 3'", "message": '"{model.nodes} nodes"', "why": '"because"', "fix": '"change it"', "cite": "[]",
    }  # fmt: skip
    body = "\n".join(f"{key} = {line}" for key, line in {**fields, **changes}.items() if line is not None)
    (folder / "guidelines").mkdir(exist_ok=True)
    path = folder / "guidelines" / "one.toml"
    path.write_text(body + "\n[[example]]\nfacts = { model = { nodes = 4 } }\nfires = true\n", encoding="utf-8")
    return path
