"""Certified facts of regions for guidelines: lower gains, the parts of residual blocks, how unlike the blocks of a stack are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lipaudit.bounds.scalar import Lower, Upper
from lipaudit.certify import Certificate
from lipaudit.topology import Region
from lipaudit.topology.laws import walk

__all__ = ["certified_facts"]

_KINDS = {"attention": "attention", "attention-core": "attention", "gate": "mlp", "mlp": "mlp"}


def certified_facts(region: Region, certificate: Certificate) -> dict[str, dict[str, Any]]:
    """By namespace ("region", "residual", "stack"); None where nothing is certified."""
    bound = certificate.regions[region.path]
    found: dict[str, dict[str, Any]] = {
        "region": {"log10_lower": _log10(bound.lower), "log10_before": _log10(bound.before), "log10_after": _log10(bound.after)}
    }
    if region.kind == "residual":
        found["residual"] = {"branch_log10_gain": _log10(bound.branch), "shortcut_log10_gain": _log10(bound.shortcut)}
    if region.kind == "stack":
        found["stack"] = {"log10_gain": _log10(bound.joint.slope), **_spread(region, certificate)}
    return found


def _log10(gain: Upper | Lower | None) -> float | None:
    value = gain.log10() if gain is not None else math.inf
    return value if math.isfinite(value) else None


def _spread(stack: Region, certificate: Certificate) -> dict[str, float | None]:
    """Largest standard deviation of log10 branch gain within a kind, and largest difference of its mean between kinds."""
    by_kind: dict[str, list[float]] = {}
    for region in walk(stack):
        if region.kind != "residual":
            continue
        gain = _log10(certificate.regions[region.path].branch)
        if gain is None:  # nothing, or exactly nothing: a kind with a missing block says nothing
            return {"gain_spread": None, "kind_gap": None}
        by_kind.setdefault(_kind(region), []).append(gain)
    means = [sum(gains) / len(gains) for gains in by_kind.values()]
    spreads = [_deviation(gains) for gains in by_kind.values() if len(gains) > 1]
    return {"gain_spread": max(spreads, default=None), "kind_gap": max(means) - min(means) if len(means) > 1 else None}


def _kind(region: Region) -> str:
    """What the branch of a residual block computes."""
    return next((_KINDS[inner.kind] for inner in walk(region) if inner.kind in _KINDS), "other")


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
