"""Which parts of a large audit a page shows, and in which order; what is left out is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lipaudit.records import Audit, Cited, Finding, ReasonRecord, Region, Severity, Step

__all__ = [
    "SEVERITIES", "FindingGroup", "by_depth", "contributors", "finding_groups", "leaves", "level", "proof", "reason_groups", "tally",
    "walk",
]  # fmt: skip

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def walk(regions: Sequence[Region]) -> Iterator[tuple[int, Region]]:
    """Every region with its depth in the tree, parents first (no recursion: trees may be deep)."""
    stack = [(0, region) for region in reversed(regions)]
    while stack:
        depth, region = stack.pop()
        yield depth, region
        stack.extend((depth + 1, child) for child in reversed(region.children))


def leaves(regions: Sequence[Region]) -> list[Region]:
    """The regions without children, in the order of the network."""
    return [region for _, region in walk(regions) if not region.children]


def level(regions: Sequence[Region], limit: int) -> list[Region]:
    """The finest cut through the tree with at most ``limit`` regions, or the coarsest one if even that has more."""
    cut = list(regions)
    while True:
        finer = [part for region in cut for part in (region.children or [region])]
        if len(finer) > limit or all(not region.children for region in cut):
            return cut
        cut = finer


def by_depth(regions: Sequence[Region], limit: int) -> tuple[list[Region], int]:
    """At most ``limit`` regions in the order of the network, those with the largest gains; and how many were left out."""
    if len(regions) <= limit:
        return list(regions), 0
    ranked = sorted(range(len(regions)), key=lambda i: (-_weight(regions[i]), i))[:limit]
    return [regions[i] for i in sorted(ranked)], len(regions) - limit


def _weight(region: Region) -> float:
    """Regions without a finite bound first: they decide the result."""
    if region.certified.status != "finite":
        return float("inf")
    return region.certified.log10 if region.certified.log10 is not None else float("-inf")


def contributors(audit: Audit, limit: int) -> list[Region]:
    """The regions that contribute most to the certified gain, largest share first."""
    shares = [(region.share, i, region) for i, region in enumerate(leaves(audit.regions)) if region.share]
    return [region for _, _, region in sorted(shares, key=lambda item: (-item[0], item[1]))[:limit]]


@dataclass(frozen=True)
class FindingGroup:
    """All findings of one guideline: the reason and the remedy are said once, the places are listed."""

    code: str
    name: str
    severity: Severity
    why: str
    fix: str
    cite: Sequence[Cited]
    findings: Sequence[Finding]


def finding_groups(audit: Audit, keep: Callable[[Finding], bool] = lambda finding: True) -> list[FindingGroup]:
    """Findings by guideline, errors first, otherwise in the order of the audit."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in audit.findings:
        if keep(finding):
            groups.setdefault((finding.severity, finding.code, finding.name, finding.why, finding.fix), []).append(finding)
    ordered = sorted(groups.values(), key=lambda found: SEVERITIES.index(found[0].severity))
    return [FindingGroup(f[0].code, f[0].name, f[0].severity, f[0].why, f[0].fix, f[0].cite, f) for f in ordered]


def reason_groups(reasons: Sequence[ReasonRecord]) -> list[tuple[ReasonRecord, list[str]]]:
    """Reasons that say the same of the same operator, once each, with the nodes they say it of."""
    groups: dict[tuple[str, str], tuple[ReasonRecord, list[str]]] = {}
    for reason in reasons:
        groups.setdefault((reason.op, reason.reason), (reason, []))[1].append(reason.node)
    return list(groups.values())


def tally(audit: Audit) -> dict[Severity, int]:
    """How many findings there are of each severity."""
    return {severity: sum(finding.severity == severity for finding in audit.findings) for severity in SEVERITIES}


def proof(audit: Audit, step: int | None, limit: int) -> tuple[list[Step], int]:
    """The steps that ``step`` rests on, itself first, then nearest first; at most ``limit``, and how many there are in all."""
    steps = {found.id: found for found in audit.derivation}
    if step is None or step not in steps:
        return [], 0
    seen = {step: None}  # a dict keeps the order in which steps were met
    queue = [step]
    for current in queue:
        for operand in steps[current].operands:
            if operand in steps and operand not in seen:
                seen[operand] = None
                queue.append(operand)
    return [steps[found] for found in queue[:limit]], len(queue)
