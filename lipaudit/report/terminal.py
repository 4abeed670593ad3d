"""The audit as plain text, for a terminal or a CI log: 100 columns, ASCII of our own, colour only when asked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from lipaudit.records import Audit, Measured, Severity
from lipaudit.report import sentences
from lipaudit.report.selection import FindingGroup, contributors, finding_groups, leaves, reason_groups, tally
from lipaudit.report.text import count, paragraph, printable, share, shorten

__all__ = ["render"]

_WIDTH = 100
_LABEL = 11
_PLACES = 5
_REASONS = 10
_REGIONS = 5
_NOTES = 8
_NAME = 120
_COLOURS: dict[Severity, str] = {"error": "1;31", "warning": "1;33", "note": "1;36"}


def render(audit: Audit, *, colour: bool = False) -> str:
    """What is certified on which domain, what was measured, where the gain comes from, and the findings with what to do."""
    paint = _Paint(colour)
    sections = (_head(audit, paint), _numbers(audit, paint), _reasons(audit, paint), _regions(audit, paint), _skipped(audit, paint))
    lines: list[str] = []
    for section in (*sections, _findings(audit, paint)):
        body = list(section)
        if body:
            lines += [*([""] if lines else []), *body]
    return "\n".join(lines) + "\n"


class _Paint:
    """ANSI codes around text, or nothing."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on else text

    def title(self, text: str) -> str:
        return self(text, "1")


def _head(audit: Audit, paint: _Paint) -> Iterator[str]:
    model = audit.model
    yield paint.title(f"lipaudit {printable(audit.provenance.lipaudit)}  {shorten(model.path, _NAME)}")
    opset = ", ".join(f"{printable(name) or 'ai.onnx'} {version}" for name, version in model.opset.items())
    yield f"{count(model.nodes, 'node')}, {count(model.parameters, 'parameter')}, opset {opset or 'none'}"
    for path in audit.user_rules:
        yield f"with the rules of {shorten(path, _NAME)}"


def _numbers(audit: Audit, paint: _Paint) -> Iterator[str]:
    for found in audit.contradictions:
        text = f"CONTRADICTION in {shorten(found.where, _NAME)}: measured {found.measured} lies above certified {found.certified}."
        yield paint(f"{text} This is a bug in lipaudit: please report it.", _COLOURS["error"])
    norm = f"in the {audit.norm} norm, {sentences.domain(audit)}"
    yield from _labelled("Certified", f"{sentences.certified(audit.certified)} {norm}", paint)
    notes = sentences.holds_for(audit)
    for i, note in enumerate(notes[:_NOTES]):
        yield from _labelled("" if i else "Given", note, paint)
    if len(notes) > _NOTES:
        yield from _labelled("", f"and {len(notes) - _NOTES} more, in the JSON report", paint)
    yield from _labelled("Measured", sentences.measured(audit.measured) + _how(audit.measured), paint)
    gap, local = sentences.gap(audit), sentences.local(audit)
    if gap:
        yield from _labelled("Between", gap, paint)
    if local:
        yield from _labelled("Typically", local, paint)


def _how(found: Measured) -> str:
    parts = [part for part in (f"on {printable(found.device)}" if found.device else "", paragraph(found.method)) if part]
    return f", {', '.join(parts)}" if parts and found.status == "measured" else ""


def _labelled(label: str, text: str, paint: _Paint) -> Iterator[str]:
    lines = _wrap(text, _LABEL)
    yield paint.title(f"{label:<{_LABEL}}") + lines[0].lstrip()
    yield from lines[1:]


def _wrap(text: str, indent: int) -> list[str]:
    """Lines of at most 100 columns; a name longer than a line stays whole, so that it can be copied."""
    space = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=space, subsequent_indent=space, break_long_words=False, break_on_hyphens=False
    ) or [space]  # fmt: skip


def _reasons(audit: Audit, paint: _Paint) -> Iterator[str]:
    found = audit.certified.reasons
    if audit.certified.status == "finite" or not found:
        return
    yield paint.title(f"Why {audit.certified.status}")
    groups = reason_groups(found)
    for reason, nodes in groups[:_REASONS]:
        where = f"{shorten(reason.op, _NAME)} ({sentences.places(nodes)})"
        yield from _item("-", f"{where}: {shorten(paragraph(reason.reason), 600)}")
    if len(groups) > _REASONS:
        yield f"  ... and {count(len(groups) - _REASONS, 'more reason')}, in the JSON report"
    if audit.certified.status == "unbounded" and audit.domain.kind == "reals":
        yield from _item("", "A smaller domain may make it finite: --input NAME=LO:HI.")


def _item(mark: str, text: str, indent: int = 2) -> list[str]:
    lines = _wrap(text, indent + 2)
    return [f"{' ' * indent}{mark:<2}{lines[0].lstrip()}", *lines[1:]]


def _regions(audit: Audit, paint: _Paint) -> Iterator[str]:
    parts = leaves(audit.regions)
    top = contributors(audit, _REGIONS)
    if not top:
        return
    yield paint.title(sentences.contributions(audit)) + f" ({len(top)} of {count(len(parts), 'region')})"
    yield f"  {'share':>5}  {'certified':>12}  {'measured':>12}  region"
    for region in top:
        numbers = f"{share(region.share or 0):>5}  {sentences.short_certified(region.certified):>12}"
        name = f"{shorten(sentences.label(region.path), _NAME)} ({shorten(region.kind, 40)})"
        yield f"  {numbers}  {sentences.short_measured(region.measured):>12}  {name}"


def _skipped(audit: Audit, paint: _Paint) -> Iterator[str]:
    if not audit.skipped:
        return
    yield paint.title("Left out") + f" ({count(len(audit.skipped), 'node')})"
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in audit.skipped:
        groups.setdefault((item.op, item.what, item.cost), []).append(item.node)
    for (op, what, cost), nodes in list(groups.items())[:_REASONS]:
        where = f"{shorten(op, _NAME)} ({sentences.places(nodes)})"
        yield from _item("-", f"{where}: {shorten(paragraph(what), 300)}; cost: {shorten(paragraph(cost), 200)}")
    if len(groups) > _REASONS:
        yield f"  ... and {count(len(groups) - _REASONS, 'more operator')}, in the JSON report"


def _findings(audit: Audit, paint: _Paint) -> Iterator[str]:
    if not audit.findings:
        yield paint.title("No findings")
        return
    numbers = [count(number, severity) for severity, number in tally(audit).items() if number]
    yield paint.title("Findings") + f": {', '.join(numbers)}"
    for group in finding_groups(audit):
        yield from _group(group, paint)


def _group(group: FindingGroup, paint: _Paint) -> Iterator[str]:
    yield ""
    yield f"  {paint(f'{group.severity:<8}', _COLOURS[group.severity])}{paint.title(f'{group.code} {printable(group.name)}')}"
    for finding in group.findings[:_PLACES]:
        state = "" if finding.state == "new" else f" ({finding.state})"
        node = f" [node {shorten(finding.node, _NAME)}]" if finding.node and finding.node not in finding.message else ""
        yield from _item("-", f"{shorten(finding.message, 400)}{node}{state}", 10)
    if len(group.findings) > _PLACES:
        yield f"          ... and {count(len(group.findings) - _PLACES, 'more place')}, in the JSON report"
    for label, text in (("why", group.why), ("fix", group.fix)):
        lines = _wrap(paragraph(text), 15)
        yield f"{' ' * 10}{label:<5}{lines[0].lstrip()}"
        yield from lines[1:]
    yield f"{' ' * 10}more lipaudit explain {group.code}"
