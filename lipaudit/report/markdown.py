"""The audit as a short piece of GitHub-flavoured Markdown, made for a pull request comment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from lipaudit.records import Audit
from lipaudit.report import sentences
from lipaudit.report.selection import contributors, finding_groups, leaves, reason_groups, tally
from lipaudit.report.text import count, paragraph, printable, share, shorten

__all__ = ["render"]

_REGIONS = 5
_PLACES = 3
_REASONS = 5
_NOTES = 4
_NAME = 120


def render(audit: Audit) -> str:
    """Headline, largest contributions, findings with what to do. Everything that the model names stands in code spans."""
    sections = (_headline(audit), _reasons(audit), _findings(audit), _regions(audit), _skipped(audit), _footer(audit))
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def code(text: str, limit: int = _NAME) -> str:
    """A code span: inside it neither markup nor a mention of a person has an effect."""
    clean = shorten(text, limit)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", clean)), default=0))
    pad = " " if not clean or clean[0] in "` " or clean[-1] in "` " else ""
    return f"{fence}{pad}{clean or '(none)'}{pad}{fence}"


def cell(text: str, limit: int = _NAME) -> str:
    """A code span in a table, where a bar would end the cell."""
    return code(text, limit).replace("|", "\\|")


def _headline(audit: Audit) -> Iterator[str]:
    name = re.split(r"[/\\]", audit.model.path)[-1]
    yield f"### lipaudit: {code(name)}"
    yield ""
    for found in audit.contradictions:
        yield f"> **Contradiction** in {code(found.where)}: measured {found.measured} above certified {found.certified}. "
        yield "> This is a bug in lipaudit, please report it."
        yield ""
    yield "| | gain | |"
    yield "|---|---|---|"
    yield f"| **certified** | {sentences.certified(audit.certified)} | {_domain(audit)}, {audit.norm} norm |"
    stopped = f", stopped early ({audit.provenance.stopped})" if audit.provenance.stopped else ""
    where = f"on {cell(audit.measured.device)}{stopped}" if audit.measured.device else ""
    measured = sentences.measured(audit.measured) if audit.measured.status == "measured" else "not measured"
    yield f"| **measured** | {measured} | {where or (cell(audit.measured.reason) if audit.measured.reason else '')} |"
    notes = sentences.holds_for(audit)
    if notes:
        shown = ", ".join(code(note) for note in notes[:_NOTES]) + (f" and {len(notes) - _NOTES} more" if len(notes) > _NOTES else "")
        yield ""
        yield f"Given {shown}."
    gap = sentences.gap(audit)
    if gap:
        yield ""
        yield f"{gap[0].upper()}{gap[1:]}."


def _domain(audit: Audit) -> str:
    text = sentences.domain(audit)
    return text if audit.domain.kind == "reals" else f"for {cell(text.removeprefix('for '), 300)}"


def _reasons(audit: Audit) -> Iterator[str]:
    found = audit.certified.reasons
    if audit.certified.status == "finite" or not found:
        return
    yield f"**Why {audit.certified.status}**"
    yield ""
    groups = reason_groups(found)
    for reason, nodes in groups[:_REASONS]:
        yield f"- {code(reason.op)} {code(sentences.places(nodes), 300)}: {code(reason.reason, 300)}"
    if len(groups) > _REASONS:
        yield f"- and {count(len(groups) - _REASONS, 'more reason')}"


def _findings(audit: Audit) -> Iterator[str]:
    if not audit.findings:
        yield "**No findings.**"
        return
    numbers = [count(number, severity) for severity, number in tally(audit).items() if number]
    yield f"**Findings: {', '.join(numbers)}**"
    for group in finding_groups(audit):
        yield ""
        yield f"- **{group.severity}** `{group.code}` {printable(group.name)}"
        for finding in group.findings[:_PLACES]:
            state = "" if finding.state == "new" else f" ({finding.state})"
            yield f"  - {code(finding.message, 300)}{state}"
        if len(group.findings) > _PLACES:
            yield f"  - and {count(len(group.findings) - _PLACES, 'more place')}"
        yield f"  - fix: {paragraph(group.fix)}"


def _regions(audit: Audit) -> Iterator[str]:
    top = contributors(audit, _REGIONS)
    if not top:
        return
    parts = len(leaves(audit.regions))
    yield f"<details><summary>{sentences.contributions(audit)} ({len(top)} of {count(parts, 'region')})</summary>"
    yield ""
    yield "| region | kind | share | certified | measured |"
    yield "|---|---|--:|--:|--:|"
    for region in top:
        numbers = f"{share(region.share or 0)} | {sentences.short_certified(region.certified)}"
        yield f"| {cell(region.path)} | {cell(region.kind, 40)} | {numbers} | {sentences.short_measured(region.measured)} |"
    yield ""
    yield "</details>"


def _skipped(audit: Audit) -> Iterator[str]:
    if not audit.skipped:
        return
    yield f"**Left out: {count(len(audit.skipped), 'node')}**"
    yield ""
    groups = Counter((item.op, item.what) for item in audit.skipped)
    for (op, what), number in list(groups.items())[:_REASONS]:
        yield f"- {number} x {code(op)}: {code(what, 200)}"
    if len(groups) > _REASONS:
        yield f"- and {count(len(groups) - _REASONS, 'more operator')}"


def _footer(audit: Audit) -> Iterator[str]:
    made = audit.provenance
    yield f"<sub>lipaudit {printable(made.lipaudit)}, model sha256 {printable(audit.model.sha256[:16])}, seed {made.seed}</sub>"
