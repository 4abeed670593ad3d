"""Guidelines as data: one TOML file each, with its condition, reason, remedy, sources and examples."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from lipaudit.errors import UsageError
from lipaudit.judge.condition import Condition
from lipaudit.records import Cited, Severity
from lipaudit.resources import rules_dir

__all__ = ["Example", "FactType", "Guideline", "citations", "documented_facts", "load_guidelines"]

_LARGEST_FILE = 1 << 20


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts and whether the guideline fires on them; every example is a test."""

    facts: dict[str, dict[str, Any]]
    fires: bool


class Guideline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One guideline, as its file says it. ``on`` is what it looks at; ``params`` are the ``p`` of its condition."""

    code: str
    name: str
    status: Literal["preview", "stable", "deprecated"]
    since: str
    severity: Severity
    on: Literal["model", "region", "node", "tensor"]
    when: str
    message: str
    why: str
    fix: str
    cite: list[str]
    example: list[Example]
    params: dict[str, Any] = {}

    def condition(self) -> Condition:
        """The compiled condition."""
        return Condition(self.when)


class FactType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One documented fact; ``params`` are the numbers that its definition rests on."""

    type: Literal["int", "double", "string", "bool"]
    text: str
    unit: str = ""
    params: dict[str, float] = {}


@lru_cache(maxsize=1)
def documented_facts() -> Mapping[str, FactType]:
    """All facts that a condition may name, ``namespace.name`` -> type and meaning (rules/facts.toml)."""
    groups = msgspec.convert(_toml(rules_dir() / "facts.toml"), dict[str, dict[str, FactType]])
    return {f"{space}.{name}": fact for space, facts in groups.items() for name, fact in facts.items()}


@lru_cache(maxsize=1)
def citations() -> Mapping[str, Cited]:
    """Sources by key (rules/sources.bib): author, title, year, where."""
    text = (rules_dir() / "sources.bib").read_text(encoding="utf-8")
    found: dict[str, Cited] = {}
    for key, body in re.findall(r"@\w+\{\s*([^,\s]+)\s*,(.*?)\}\s*(?=@|\Z)", text, flags=re.DOTALL):
        fields = {name.lower(): " ".join(value.split()) for name, value in re.findall(r"(\w+)\s*=\s*\{([^{}]*)\}", body)}
        author = fields.get("author", "").replace(" and others", " et al.").replace(" and ", "; ")
        where = f"arXiv {fields['eprint']}" if "eprint" in fields else fields.get("journal", fields.get("howpublished", ""))
        parts = [author, fields.get("title", ""), where, fields.get("year", "")]
        found[key] = Cited(key=key, text=". ".join(part for part in parts if part))
    return found


def load_guidelines(extra: Sequence[Path] = ()) -> tuple[Guideline, ...]:
    """All guidelines by code; those of ``extra`` folders (``DIR/guidelines/*.toml``) add to or override ours.

    Raises
    ------
    UsageError
        A file is not a guideline, its condition does not compile, or it names a fact that does not exist.
    """
    found: dict[str, Guideline] = {}
    for folder in (rules_dir(), *extra):
        for path in sorted((folder / "guidelines").glob("*.toml")):
            guideline = _read(path)
            found[guideline.code] = guideline
    return tuple(found[code] for code in sorted(found))


def _toml(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_FILE:
        raise UsageError("the file is larger than 1 MB.", where=str(path))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a TOML file: {error}.", where=str(path)) from None


def _read(path: Path) -> Guideline:
    try:
        guideline = msgspec.convert(_toml(path), Guideline)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a guideline: {error}.", where=str(path)) from None
    if not re.fullmatch(r"[A-Z]{2,8}[0-9]{3}", guideline.code):
        raise UsageError(f"the code {guideline.code!r} is not of the form LIP123.", where=str(path))
    try:
        named = guideline.condition().facts
    except ValueError as error:
        raise UsageError(f"the condition does not compile: {error}.", where=str(path)) from None
    known = documented_facts()
    for name in sorted(named):
        space, _, member = name.partition(".")
        if space == "p":
            if member not in guideline.params:
                raise UsageError(f"the condition names the parameter {name}, which [params] does not give.", where=str(path))
        elif name not in known:
            raise UsageError(f"the condition names the fact {name}, which does not exist{_nearest(name, known)}.", where=str(path))
    return guideline


def _nearest(name: str, known: Mapping[str, FactType]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
