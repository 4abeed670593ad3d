"""The audit in words: the same sentences in every format, so that no two reports disagree."""

from __future__ import annotations

from collections.abc import Sequence

from lipaudit.records import Audit, Certified, Domain, Measured
from lipaudit.report.text import amount, paragraph, power, printable, shorten

__all__ = [
    "certified",
    "contributions",
    "domain",
    "gap",
    "headline",
    "holds_for",
    "label",
    "local",
    "measured",
    "places",
    "short_certified",
    "short_measured",
]

_NAME = 80


def domain(audit: Audit) -> str:
    """Where the certified numbers hold, as "for ..."."""
    where: Domain = audit.domain
    if where.kind == "ball":
        return f"for inputs within {where.radius} of the given ones"
    if where.kind == "reals":
        return "for all real inputs"
    parts = [f"{shorten(box.name, _NAME)} in [{printable(box.lo)}, {printable(box.hi)}]" for box in where.boxes]
    named = {box.name for box in where.boxes}
    free = [tensor.name for tensor in audit.model.inputs if tensor.source and tensor.name not in named]
    text = f"for {', '.join(parts)}"
    return f"{text}, all other inputs real" if free else text


def holds_for(audit: Audit) -> list[str]:
    """What else the certified numbers depend on: the rule that gave the bound, assumed sizes, embedding tables."""
    notes = [paragraph(note) if len(note) < 400 else shorten(note, 400) for note in audit.domain.notes]
    method = audit.certified.method
    plain = audit.certified.status != "finite" or method in ("", "paths")
    return notes if plain else [f"the bound is that of the rule {shorten(paragraph(method), 200)}", *notes]


def certified(found: Certified) -> str:
    """The certified bound: "at most 7250.1 (10^3.87)"."""
    if found.status != "finite" or found.upper is None:
        return "unbounded" if found.status == "unbounded" else "unknown"
    text = f"at most {amount(found.upper)}"
    if found.log10 is not None:
        text += f" (10^{power(found.log10, up=True)})"
    if has_offset(found):
        text += f", plus a jump of at most {amount(found.offset or '0')} whatever the distance"
    return text


def has_offset(found: Certified) -> bool:
    """True if the bound is affine: rounding steps on the way add a fixed jump."""
    return found.offset is not None and amount(found.offset) != "0"


def short_certified(found: Certified) -> str:
    """The certified bound in a table: "10^3.87"; "0", "unbounded" or "unknown" where there is no power of ten."""
    if found.status != "finite":
        return found.status
    if found.log10 is None:
        return amount(found.upper or "0")
    return f"10^{power(found.log10, up=True)}"


def measured(found: Measured) -> str:
    """The measured gain: "at least 31 (10^1.49)", or why there is none."""
    if found.status != "measured" or found.lower is None:
        return f"not measured: {paragraph(found.reason)}" if found.reason else "not measured"
    text = f"at least {amount(found.lower)}"
    return text if found.log10 is None else f"{text} (10^{power(found.log10, up=False)})"


def short_measured(found: Measured) -> str:
    """The measured gain in a table: "10^1.49", or "-"."""
    if found.status != "measured" or found.lower is None:
        return "-"
    return amount(found.lower) if found.log10 is None else f"10^{power(found.log10, up=False)}"


def gap(audit: Audit) -> str:
    """How far the two numbers are apart; empty unless both exist."""
    above, below = audit.certified.log10, audit.measured.log10
    if above is None or below is None or above < below:
        return ""
    apart = above - below
    if apart < 0.005:
        return "certified and measured agree to within 1 %: the bound is tight"
    if apart < 1:
        return f"the true constant lies between the two numbers, which are a factor of {10**apart:.3g} apart"
    return f"the true constant lies between the two numbers, which are a factor of 10^{apart:.2f} apart"


def local(audit: Audit) -> str:
    """The local gains at typical inputs in one sentence; empty if there are none."""
    found = audit.local_gains
    if found is None:
        return ""
    middle, high, top = (amount(f"{found.quantiles[share]:g}") for share in ("0.5", "0.9", "1"))
    text = f"at {found.points} typical inputs a small change is amplified {middle} times (median), "
    text += f"at most {high} times at nine in ten of them and {top} times at any of them"
    if found.estimate is not None:
        end = amount(f"{found.estimate:g}")
        text += f"; an extreme value fit puts the largest such gain near {end} (an estimate from a sample, not a bound)"
    return text


def contributions(audit: Audit) -> str:
    """What a list of the regions with the largest shares is called: nothing adds up to a bound that is not finite."""
    return "Where the certified gain comes from" if audit.certified.status == "finite" else "Largest certified gains of single regions"


def headline(audit: Audit) -> str:
    """The certified result in one sentence for a reader who sees nothing else."""
    found = audit.certified
    norm = {"l1": "l1", "l2": "l2 (Euclidean)", "linf": "l-infinity (largest entry)"}[audit.norm]
    where = domain(audit)
    if found.status == "finite" and found.upper is not None:
        text = f"Moving the input by a distance d moves the output by at most {amount(found.upper)} times d"
        if has_offset(found):
            text += f" plus {amount(found.offset or '0')}"
        return f"{text}, {where}. Distances are in the {norm} norm over all entries."
    if found.status == "unbounded":
        return f"No finite bound was found {where}: some operators have none on what reaches them. They are listed below."
    return f"No bound could be certified {where}, because the effect of some operators is not known. They are listed below."


def label(path: str) -> str:
    """A region's path without the root that all paths share."""
    return path.removeprefix("model/") or path


def places(nodes: Sequence[str], limit: int = 3) -> str:
    """Nodes in a sentence: "a, b, c and 11 more"."""
    shown = ", ".join(shorten(node, _NAME) for node in nodes[:limit])
    return f"{shown} and {len(nodes) - limit} more" if len(nodes) > limit else shown
