"""What a study is: networks, a table, a picture, and outcomes that either hold or do not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from builder import save
from numpy.typing import NDArray

import lipaudit

__all__ = ["Line", "Outcome", "Panel", "Study", "audited", "exits", "slope", "walk"]


@dataclass(frozen=True)
class Line:
    """A curve of a picture: y in decades (log10) over x."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart: its lines share both axes; ``log_x`` puts x on a logarithmic axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = True


@dataclass(frozen=True)
class Outcome:
    """What the study expects, in words with the figures seen, and whether it came out so."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Study:
    """A finished study."""

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    panels: Sequence[Panel]
    outcomes: Sequence[Outcome]


def audited(
    model: onnx.ModelProto,
    *,
    boxes: Mapping[str, tuple[float, float]] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    measure: bool = True,
) -> lipaudit.Audit:
    """The audit of a model that exists in memory only; ``inputs`` are points to begin the search at."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder))
        return lipaudit.audit(path, boxes=boxes or {}, inputs=inputs, effort="quick", device="cpu", measure=measure)


def walk(regions: Sequence[lipaudit.Region]) -> Iterator[lipaudit.Region]:
    """All regions, outer ones first."""
    for region in regions:
        yield region
        yield from walk(region.children)


def exits(audit: lipaudit.Audit, fact: str) -> dict[str, float]:
    """A fact of the flow (``forward_rms_log10``, ``backward_log10``) by the value at which a region ends, in the order of the network."""
    return {region.exit: region.facts["flow"][fact] for region in walk(audit.regions) if fact in region.facts.get("flow", {})}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of the least-squares line through the points."""
    return float(np.polyfit(np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64), 1)[0])
