"""The audit as one self-contained HTML page: no script, no network, readable without its own style sheet.

The CI server Jenkins serves published pages under a policy that blocks scripts and styles alike, so the page is semantic HTML
first; the inline style sheet only adds looks. Everything that comes from the model is escaped twice over: control and
bidirectional characters become escapes, then jinja2 escapes the markup; a policy in the page itself stops what might be left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lipaudit.records import Audit, Region, Step
from lipaudit.report import charts, sentences
from lipaudit.report.selection import by_depth, contributors, finding_groups, level, proof, reason_groups, tally, walk
from lipaudit.report.spectra import strips
from lipaudit.report.text import amount, count, facts, power, printable, share, shorten, value

__all__ = ["environment", "render"]

_CHART_ROWS = 40
_PROFILE_POINTS = 150
_TREE_ROWS = 300
_TREE_DEPTH = 24
_STEPS = 200
_OPERATORS = 200
_REASONS = 100
_PLACES = 6
_MORE_PLACES = 50
_NODES = 12
_FACTS = 30
_MATRIX = 100
_PARTS = 60
_NAME = 100
# A place to break stands behind punctuation (not inside a number), and in any word of more than 20 characters.
_PIECES = re.compile(r"\s+|(?:[^\s/._:,;\\()=-]|[/._:,;\\()=-](?=\d)){1,20}[/._:,;\\()=-]{0,4}|[/._:,;\\()=-]{1,4}")
_LONG_WORD = re.compile(r"\S{21,}")
_MARKED = re.compile(r"(`[^`]+`)|\b10\^(-?\d+(?:\.\d+)?)")


def render(audit: Audit) -> str:
    """One HTML page."""
    return environment().get_template("page.html.j2").render(_content(audit)) + "\n"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, with escaping of everything that comes from a model."""
    environment = Environment(
        loader=PackageLoader("lipaudit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_filters())
    return environment


def _filters() -> dict[str, Callable[..., Any]]:
    return {
        "amount": amount, "certified": short_certified, "count": count, "items": _items, "label": sentences.label,
        "measured": short_measured, "name": name, "prose": prose, "share": _share, "value": _value,
    }  # fmt: skip


def _items(groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(facts(groups))


def _value(item: Any) -> str:
    return shorten(value(item), 300)


def _share(part: float) -> str:
    return share(part).replace(" ", "\N{NO-BREAK SPACE}")


def _safe(item: Any) -> Any:
    """Every string that reaches the page, unless it is markup already, has its invisible characters spelled out."""
    return printable(item) if isinstance(item, str) and not isinstance(item, Markup) else item


def name(text: str, limit: int = _NAME) -> Markup:
    """A name out of the model, shortened, with places where a narrow screen may break it (also without a style sheet)."""
    return Markup(" ").join(Markup("<wbr>").join(_PIECES.findall(word)) for word in shorten(text, limit).split(" "))


def prose(text: str, limit: int = 2000) -> Markup:
    """A sentence of lipaudit's or a guideline's, names in it or not: `code` and 10^x are set as such, long words may break."""
    clean = shorten(text, limit)
    parts: list[Markup] = []
    at = 0
    for match in _MARKED.finditer(clean):
        parts.append(_breakable(clean[at : match.start()]))
        code, exponent = match.groups()
        parts.append(ten_to(exponent) if code is None else Markup("<code>{}</code>").format(_breakable(code[1:-1])))
        at = match.end()
    return Markup("").join([*parts, _breakable(clean[at:])])


def _breakable(words: str) -> Markup:
    """Text whose very long words get places to break."""
    parts = re.split(f"({_LONG_WORD.pattern})", words)
    return Markup("").join(name(part, len(part)) if _LONG_WORD.fullmatch(part) else part for part in parts)


def ten_to(exponent: str) -> Markup:
    """A power of ten."""
    return Markup("10<sup>{}</sup>").format(exponent)


def short_certified(found: Any) -> Markup | str:
    """A certified gain in a table."""
    if found.status != "finite" or found.log10 is None:
        return sentences.short_certified(found)
    return Markup("\u2264&nbsp;") + ten_to(power(found.log10, up=True))


def short_measured(found: Any) -> Markup | str:
    """A measured gain in a table."""
    if found.status != "measured" or found.log10 is None:
        return sentences.short_measured(found)
    return Markup("\u2265&nbsp;") + ten_to(power(found.log10, up=False))


@dataclass(frozen=True)
class Row:
    """A region in the tree, named within its parent: ``opens`` before its children, and ``closes`` levels that end after it."""

    region: Region
    label: str
    depth: int
    opens: bool
    closes: int
    facts: Sequence[tuple[str, str]]
    findings: Sequence[str]
    anchor: str


def _content(audit: Audit) -> dict[str, Any]:
    shown = level(audit.regions, _CHART_ROWS)
    chart_regions, chart_left = by_depth(shown, _CHART_ROWS)
    profile_regions = level(audit.regions, _PROFILE_POINTS)
    rows, rows_left = _tree(audit)
    steps, steps_total = proof(audit, audit.certified.step, _STEPS)
    groups = finding_groups(audit)
    parts, parts_axis, parts_left = strips(audit.weights, _PARTS)
    return {
        "audit": audit,
        "title": re.split(r"[/\\]", audit.model.path)[-1],
        "page_title": shorten(re.split(r"[/\\]", audit.model.path)[-1], 80),
        "headline": sentences.headline(audit),
        "certified_big": _big(audit.certified.upper, audit.certified.status),
        "certified_power": None if audit.certified.log10 is None else ten_to(power(audit.certified.log10, up=True)),
        "measured_big": _big(audit.measured.lower, audit.measured.status),
        "measured_power": None if audit.measured.log10 is None else ten_to(power(audit.measured.log10, up=False)),
        "offset": amount(audit.certified.offset or "0") if sentences.has_offset(audit.certified) else "",
        "domain": sentences.domain(audit),
        "notes": sentences.holds_for(audit),
        "contributions": sentences.contributions(audit),
        "gap": _sentence(sentences.gap(audit)),
        "local": sentences.local(audit),
        "interval": charts.interval(audit),
        "gains": charts.gains(chart_regions),
        "gains_left": chart_left,
        "gains_coarse": any(region.children for region in shown),
        "profile": charts.profile(profile_regions, audit.certified.log10) if len(profile_regions) <= _PROFILE_POINTS else None,
        "top": contributors(audit, 5),
        "reason_groups": reason_groups(audit.certified.reasons),
        "rows": rows,
        "rows_left": rows_left,
        "groups": groups,
        "tally": tally(audit),
        "parts": parts,
        "parts_axis": parts_axis,
        "parts_left": parts_left,
        "steps": [_step(step, {found.id for found in steps}) for step in steps],
        "steps_total": steps_total,
        "places": _PLACES,
        "more_places": _MORE_PLACES,
        "reasons": _REASONS,
        "operators": _OPERATORS,
        "nodes": _NODES,
        "matrix": _MATRIX,
        "colours": {"certified": charts.CERTIFIED, "measured": charts.MEASURED},
    }


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _big(decimal: str | None, status: str) -> str:
    return {"not-measured": "not measured"}.get(status, status) if decimal is None else amount(decimal)


def _tree(audit: Audit) -> tuple[list[Row], int]:
    """The tree as rows that the template can write one after the other, and how many regions were left out."""
    codes: dict[str, list[str]] = {}
    for finding in audit.findings:
        codes.setdefault(finding.region, []).append(finding.code)
    every = list(walk(audit.regions))
    shown = every[:_TREE_ROWS]
    rows: list[Row] = []
    parents: list[str] = []
    for i, (depth, region) in enumerate(shown):
        del parents[depth:]
        label = region.path.removeprefix(f"{parents[-1]}/") if parents else sentences.label(region.path)
        parents.append(region.path)
        here = min(depth, _TREE_DEPTH)
        following = min(shown[i + 1][0], _TREE_DEPTH) if i + 1 < len(shown) else 0
        found = sorted(set(codes.get(region.path, [])))
        shown_facts = list(facts(region.facts))[:_FACTS]
        rows.append(Row(region, label, depth, following > here, max(here - following, 0), shown_facts, found, f"region-{i}"))
    return rows, len(every) - len(shown)


@dataclass(frozen=True)
class ProofStep:
    """A step of the derivation as the page shows it; ``operands`` are (id, whether it is on the page)."""

    step: Step
    target: Markup
    value: Markup | str
    operands: Sequence[tuple[int, bool]]
    evidence: Sequence[tuple[str, str]]


def _step(step: Step, present: set[int]) -> ProofStep:
    operands = [(operand, operand in present) for operand in step.operands[:12]]
    evidence = [(key, shorten(text, 120)) for key, text in facts(step.evidence)][:6]
    shown = amount(step.value)
    if step.offset not in ("0", "inf"):
        shown = f"{shown} + {amount(step.offset)}"
    return ProofStep(step, name(step.target), shown, operands, evidence)
