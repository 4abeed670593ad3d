"""Where a certificate holds: all reals, a box per source, or a box with its own ends for every element.

The box that the user writes in decimals is enclosed *outward* in doubles for the certificate, and *inward* for the search of
inputs, so that every measured pair lies in the domain that the certificate speaks of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipaudit import records
from lipaudit.errors import UsageError
from lipaudit.graph.ir import Value
from lipaudit.operators.range import Range, reals
from lipaudit.topology.sources import Source

__all__ = ["Box", "Domain", "ElementBox", "parse_boxes"]


@dataclass(frozen=True, slots=True)
class Box:
    """``lo <= x <= hi`` for every element, exact rationals, with the text the user wrote."""

    lo: Fraction
    hi: Fraction
    lo_text: str
    hi_text: str


@dataclass(frozen=True, slots=True, eq=False)
class ElementBox:
    """``lo <= x <= hi`` element by element: doubles that broadcast to the shape of the source, finite, ``lo <= hi``.

    For a neighbourhood of a given input, where every element has its own interval.
    """

    lo: NDArray[np.float64]
    hi: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not (np.all(np.isfinite(self.lo)) and np.all(np.isfinite(self.hi)) and np.all(self.lo <= self.hi)):
            raise UsageError("the ends of a box must be finite, and no lower end may lie above its upper end")


@dataclass(frozen=True)
class Domain:
    """Boxes by source label; a source without one ranges over all reals (or over its embedding table).

    ``elements`` are boxes with ends per element; where a source has both kinds, these count. A box may also name a graph input
    that is no source (an integer mask): nothing moves with it, but what it holds decides how far other values reach.
    """

    boxes: Mapping[str, Box]
    elements: Mapping[str, ElementBox] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Where the certificate holds: "reals" or "box"."""
        return "box" if self.boxes or self.elements else "reals"

    def check(self, sources: Sequence[Source], where: str, inputs: Sequence[Value] = ()) -> None:
        """Raise :class:`UsageError` if a box names neither a source nor one of the graph's ``inputs``."""
        names = [*dict.fromkeys([*(source.label for source in sources), *(value.name for value in inputs)])]
        for name in (*self.boxes, *self.elements):
            if name not in names:
                known = ", ".join(names) or "none"
                raise UsageError(f"--input names {name!r}, which is not a source of this model (sources and inputs: {known}).", where=where)

    def outer(self, source: Source) -> Range | None:
        """The range to certify on; None where the box says nothing (embedding tables speak for themselves)."""
        box = self.boxes.get(source.label)
        shape = source.value.shape
        if shape is None:
            return None
        own = self.elements.get(source.label)
        if own is not None:
            return Range(shape, own.lo, own.hi)
        if box is None:
            return reals(shape) if source.kind == "input" else None
        return Range(shape, np.asarray(_below(box.lo)), np.asarray(_above(box.hi)))

    def held(self, value: Value, mask: bool = False) -> Range | None:
        """The range of a graph input that is no source: its box, [0, 1] for a ``mask`` without one, else None."""
        box = self.boxes.get(value.name)
        if value.shape is None:
            return None
        if box is None:
            return Range(value.shape, np.asarray(0.0), np.asarray(1.0), integral=True) if mask else None
        if value.is_float:
            return Range(value.shape, np.asarray(_below(box.lo)), np.asarray(_above(box.hi)))
        lo, hi = _integers(box)
        return Range(value.shape, np.asarray(lo), np.asarray(hi), integral=True)

    def inner(
        self, sources: Sequence[Source], inputs: Sequence[Value] = (), masks: Sequence[str] = ()
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """The boxes to search in, by value name: the largest boxes with float32 ends inside what the user wrote.

        ``inputs``: the graph's inputs; those that are no sources are held within their boxes, ``masks`` without one in [0, 1].
        """
        found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {name: (np.asarray(0.0), np.asarray(1.0)) for name in masks}
        for value in inputs:
            named = self.boxes.get(value.name)
            if named is not None:
                ends = (_float32_above(named.lo), _float32_below(named.hi)) if value.is_float else _integers(named)
                found[value.name] = (np.asarray(ends[0]), np.asarray(ends[1]))
        for source in sources:
            box = self.boxes.get(source.label)
            own = self.elements.get(source.label)
            if own is not None:
                found[source.value.name] = _float32_inside(own)
            elif box is not None:
                found[source.value.name] = (np.asarray(_float32_above(box.lo)), np.asarray(_float32_below(box.hi)))
        return found

    def record(self, notes: Sequence[str] = ()) -> records.Domain:
        """For the report."""
        boxes = [records.InputBox(name, box.lo_text, box.hi_text) for name, box in self.boxes.items() if name not in self.elements]
        # The hull of the element boxes: what one line can say of them.
        boxes += [records.InputBox(name, repr(float(np.min(own.lo))), repr(float(np.max(own.hi)))) for name, own in self.elements.items()]
        return records.Domain(kind="box" if boxes else "reals", boxes=boxes, notes=list(notes))


def parse_boxes(texts: Sequence[str]) -> Domain:
    """``NAME=LO:HI`` each, decimals or fractions; raises :class:`UsageError` that names the offending text."""
    boxes: dict[str, Box] = {}
    for text in texts:
        name, equals, ends = text.rpartition("=")
        lo_text, colon, hi_text = ends.partition(":")
        if not (name and equals and colon):
            raise UsageError(f"--input {text!r} is not of the form NAME=LO:HI, for example x=0:1.")
        try:
            lo, hi = Fraction(lo_text.strip()), Fraction(hi_text.strip())
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"--input {text!r}: {lo_text!r} and {hi_text!r} must be decimal numbers.") from None
        if lo > hi:
            raise UsageError(f"--input {text!r}: the lower end lies above the upper end.")
        if name in boxes:
            raise UsageError(f"--input gives {name!r} twice.")
        if max(abs(lo), abs(hi)) > Fraction(10) ** 300:
            raise UsageError(f"--input {text!r}: the ends must lie within 1e300.")
        boxes[name] = Box(lo, hi, lo_text.strip(), hi_text.strip())
    return Domain(boxes)


def _integers(box: Box) -> tuple[float, float]:
    """The least and the largest integer of a box, as doubles rounded outward."""
    lo, hi = math.ceil(box.lo), math.floor(box.hi)
    if lo > hi:
        raise UsageError(f"no integer lies between {box.lo_text} and {box.hi_text}.")
    return _below(Fraction(lo)), _above(Fraction(hi))


def _below(x: Fraction) -> float:
    nearest = float(x)
    return nearest if Fraction(nearest) <= x else math.nextafter(nearest, -math.inf)


def _above(x: Fraction) -> float:
    nearest = float(x)
    return nearest if Fraction(nearest) >= x else math.nextafter(nearest, math.inf)


def _float32_above(x: Fraction) -> float:
    """The smallest float32 that is not below ``x``."""
    nearest = np.float32(max(min(float(x), 3.0e38), -3.0e38))
    return float(nearest if Fraction(float(nearest)) >= x else np.nextafter(nearest, np.float32(np.inf)))


def _float32_below(x: Fraction) -> float:
    """The largest float32 that is not above ``x``."""
    nearest = np.float32(max(min(float(x), 3.0e38), -3.0e38))
    return float(nearest if Fraction(float(nearest)) <= x else np.nextafter(nearest, np.float32(-np.inf)))


def _float32_inside(box: ElementBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends moved to the next float32 inside the box; an interval that holds no float32 becomes its lower end."""
    infinity = np.float32(np.inf)
    with np.errstate(over="ignore"):
        lo, hi = (np.clip(end, -3.0e38, 3.0e38).astype(np.float32) for end in (box.lo, box.hi))
    lo = np.where(lo.astype(np.float64) < box.lo, np.nextafter(lo, infinity), lo).astype(np.float64)
    hi = np.where(hi.astype(np.float64) > box.hi, np.nextafter(hi, -infinity), hi).astype(np.float64)
    empty = lo > hi
    return np.where(empty, box.lo, lo), np.where(empty, box.lo, hi)
