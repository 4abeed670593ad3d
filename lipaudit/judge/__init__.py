"""From facts to findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipaudit.certify import Certificate
from lipaudit.errors import UsageError
from lipaudit.judge.condition import NotEvaluated
from lipaudit.judge.guideline import Guideline, citations, load_guidelines
from lipaudit.judge.subjects import Subject, subjects
from lipaudit.operators.catalogue import Catalogue
from lipaudit.records import Cited, Finding
from lipaudit.topology import Topology

__all__ = ["judge"]

_ORDER = {"error": 0, "warning": 1, "note": 2}


def judge(
    topology: Topology,
    certificate: Certificate,
    catalogue: Catalogue,
    *,
    rules: Sequence[Path] = (),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> list[Finding]:
    """Findings of all stable guidelines, most severe first, then in the order of the graph.

    ``select`` and ``ignore`` are codes or prefixes of codes; a preview guideline runs only if it is selected by its full code.
    ``measured`` holds facts that only a run can tell, by path of the region ("" for the model) and namespace.
    A condition over a fact that is null is not evaluated, and does not fire.
    """
    guidelines = _chosen(load_guidelines(rules), select, ignore)
    compiled = [(guideline, guideline.condition()) for guideline in guidelines]
    findings: list[Finding] = []
    for subject in subjects(topology, certificate, catalogue, measured or {}):
        for guideline, condition in compiled:
            if guideline.on != subject.scope or not _speaks_of(subject, condition.facts):
                continue
            try:
                fires = condition.holds({**subject.facts, "p": guideline.params})
            except NotEvaluated:
                continue
            if fires:
                findings.append(_finding(guideline, subject, condition.facts))
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], finding.code))


def _chosen(guidelines: Sequence[Guideline], select: Sequence[str], ignore: Sequence[str]) -> list[Guideline]:
    for prefix in (*select, *ignore):
        if not any(guideline.code.startswith(prefix) for guideline in guidelines):
            raise UsageError(f"{prefix!r} is not a guideline code or a prefix of one.", hint="`lipaudit rules` lists them.")
    chosen: list[Guideline] = []
    for guideline in guidelines:
        wanted = not select or any(guideline.code.startswith(prefix) for prefix in select)
        if guideline.status == "preview":
            wanted = guideline.code in select
        if wanted and not any(guideline.code.startswith(prefix) for prefix in ignore):
            chosen.append(guideline)
    return chosen


def _speaks_of(subject: Subject, facts: frozenset[str]) -> bool:
    """True if the subject has every namespace that the condition names (a norm guideline skips regions that are no norm)."""
    return all(name.partition(".")[0] in (*subject.facts, "p") for name in facts)


def _finding(guideline: Guideline, subject: Subject, named: frozenset[str]) -> Finding:
    used: dict[str, Any] = {}
    for name in sorted(named):
        space, _, member = name.partition(".")
        used[name] = guideline.params[member] if space == "p" else _json(subject.facts[space].get(member))
    known = citations()
    return Finding(
        code=guideline.code,
        name=guideline.name,
        severity=guideline.severity,
        region=subject.region,
        node=subject.node,
        message=fill(guideline.message, subject.facts),
        why=" ".join(guideline.why.split()),
        fix=" ".join(guideline.fix.split()),
        facts=used,
        cite=[known.get(key, Cited(key=key, text=key)) for key in guideline.cite],
    )


def fill(template: str, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Put facts into ``{namespace.name}``; names of the model are data and never templates themselves."""

    def value(match: re.Match[str]) -> str:
        space, _, member = match.group(1).partition(".")
        found = facts.get(space, {}).get(member)
        return f"{found:g}" if isinstance(found, float) else str(found)

    return re.sub(r"\{([a-z_]+\.[a-z_0-9]+)\}", value, template)


def _json(fact: Any) -> Any:
    """Facts in the report are JSON: an infinite one becomes text."""
    return str(fact) if isinstance(fact, float) and fact in (float("inf"), float("-inf")) else fact
