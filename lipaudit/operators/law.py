"""What a scalar entry of the catalogue says for one set of attributes: slopes and values on an interval.

Between neighbouring turns and kinks f' is monotone, so on [a, b] it lies in the hull of f'(a), f'(b), its values at the turns
inside and both one-sided limits at the kinks inside. Likewise f between its extrema. ``operators.proof`` proves these claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.jet import Jet
from lipaudit.operators.base import Unknown
from lipaudit.operators.elements import Elements
from lipaudit.operators.entry import Case, Entry
from lipaudit.operators.formula import Formula, parse, parse_condition

__all__ = ["CUSHION", "Law", "attribute_names", "law_of", "problem"]

Floats = NDArray[np.float64]

CUSHION = 2.0**-300
"""On the tails a derivative is proved monotone only up to this much (``operators.proof``); it is added to what is local."""

_MOST_PERIODS = 8
_FAR = 2.0**60
_LISTS = ("turns", "kinks", "extrema", "poles", "jump_at")
_PAIRS = ("slope", "range", "limits", "slope_limits", "domain")


@dataclass(frozen=True)
class Law:
    """The numbers of an entry, attributes put in. See :class:`lipaudit.operators.entry.Entry` for the fields."""

    formula: Formula | None
    names: Mapping[str, Ball]
    slope: Ball
    range: Ball
    turns: tuple[Ball, ...]
    kinks: tuple[Ball, ...]
    extrema: tuple[Ball, ...]
    poles: tuple[Ball, ...]
    limits: tuple[Ball, Ball] | None
    slope_limits: tuple[Ball, Ball] | None
    domain: Ball | None
    period: Ball | None
    jump: Ball | None
    jump_at: tuple[Ball, ...]

    def jet(self, x: Ball, order: int) -> Jet:
        """Taylor coefficients of f over ``x``."""
        assert self.formula is not None
        names = {name: Jet.constant(value, order) for name, value in self.names.items()}
        names["x"] = Jet.variable(x, order)
        return self.formula.evaluate(names, lambda constant: Jet.constant(constant, order))

    def values(self, x: Elements) -> Elements:
        """f over finite elements."""
        assert self.formula is not None
        names = {name: Elements.constant(value) for name, value in self.names.items()}
        names["x"] = x
        return self.formula.evaluate(names, Elements.constant)

    def leaves_domain(self, lo: float, hi: float) -> bool:
        """True if f is not defined on all of [lo, hi]."""
        if self.domain is None:
            return False
        first, last = self.domain.floats()
        return lo < first or hi > last

    def inside(self, points: Iterable[Ball], x: Ball) -> Iterator[Ball]:
        """Those of ``points`` (and of their repetitions) that may lie in ``x``."""
        for point in points:
            if self.period is None:
                if point.meets(x):
                    yield point
                continue
            first, last = ((x - point) / self.period).floats()
            if not last - first < _FAR:
                yield point  # one of its repetitions
                continue
            for k in range(math.floor(first), math.ceil(last) + 1):
                moved = point + Ball.of(k) * self.period
                if moved.meets(x):
                    yield moved

    def too_wide(self, lo: float, hi: float) -> bool:
        """True if a periodic function is asked for many periods: only what holds on all reals is used then."""
        if self.period is None:
            return False
        return not (max(abs(lo), abs(hi)) < _FAR and hi - lo < _MOST_PERIODS * self.period.floats()[0])

    def slope_on(self, lo: float, hi: float) -> Ball:
        """Hull of f' on [lo, hi] (a superset), never more than on all reals; infinite where f' is not bounded."""
        everywhere = math.isinf(lo) and math.isinf(hi)
        if self.formula is None or everywhere or self.too_wide(lo, hi):
            return self.slope
        x = Ball.between(lo, hi)
        if any(True for _ in self.inside(self.poles, x)):
            return self.slope
        found = self._end_slope(lo, 0).hull(self._end_slope(hi, 1))
        for point in self.inside((*self.turns, *self.kinks), x):
            found = found.hull(self.jet(point, 1).terms[1])
        if lo != hi and self.formula.has_flat_tails:
            found = found + Ball.between(-CUSHION, CUSHION)
        return found.meet(self.slope)

    def _end_slope(self, end: float, side: int) -> Ball:
        if math.isfinite(end):
            return self.jet(Ball.of(end), 1).terms[1]
        return self.slope if self.slope_limits is None else self.slope_limits[side]

    def enclose(self, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """Element intervals of f over element intervals of x: its ends, its extrema inside, and the stated range."""
        least, largest = self.range.floats()
        if self.formula is None:
            return np.asarray(least), np.asarray(largest)
        first, last = self._at(lo), self._at(hi)
        low, high = np.minimum(first.lo, last.lo), np.maximum(first.hi, last.hi)
        if self.formula.has_flat_tails:
            moves = lo < hi
            low, high = np.where(moves, np.minimum(low - CUSHION, low), low), np.where(moves, np.maximum(high + CUSHION, high), high)
        if self.period is not None or self.poles:
            low, high = self._with_periods(lo, hi, low, high)
        else:
            for point in (*self.extrema, *self.jump_at):
                low, high = self._with_point(point, lo, hi, low, high)
        return np.maximum(low, least), np.minimum(high, largest)

    def _at(self, x: Floats) -> Elements:
        """f at the elements, its limits at infinite ones; domains are closed, so ends outside are moved to the border."""
        finite = np.isfinite(x)
        inner = np.where(finite, x, 0.0)
        if self.domain is not None:
            inner = np.clip(inner, *self.domain.floats())
        found = self.values(Elements.points(inner))
        if finite.all():
            return found
        low, high = self.limits if self.limits is not None else (self.range, self.range)
        ends = [np.where(x < 0, a, b) for a, b in zip(low.floats(), high.floats(), strict=True)]
        return Elements(np.where(finite, found.lo, ends[0]), np.where(finite, found.hi, ends[1]))

    def _with_point(self, point: Ball, lo: Floats, hi: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        before, after = point.floats()
        inside = (lo <= after) & (hi >= before)
        if not np.any(inside):
            return low, high
        ends = self.jet(point, 0).terms[0].floats()
        return np.where(inside, np.minimum(low, ends[0]), low), np.where(inside, np.maximum(high, ends[1]), high)

    def _with_periods(self, lo: Floats, hi: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """The value at every extremum that may lie inside (f has the period too); everything where a pole may."""
        period = self.period.floats()[0] if self.period is not None else math.inf
        for points, pole in ((self.extrema, False), (self.poles, True)):
            for point in points:
                inside = _may_contain(lo, hi, point, period)
                a, b = (-math.inf, math.inf) if pole else self.jet(point, 0).terms[0].floats()
                low, high = np.where(inside, np.minimum(low, a), low), np.where(inside, np.maximum(high, b), high)
        return low, high


def _may_contain(lo: Floats, hi: Floats, point: Ball, period: float) -> NDArray[np.bool_]:
    """Where [lo, hi] may contain ``point + k period``; generous by rounding errors of the quotient."""
    before, after = point.floats()
    if math.isinf(period):
        return np.asarray((lo <= after) & (hi >= before))
    with np.errstate(all="ignore"):
        first, last = (lo - after) / period, (hi - before) / period
        slack = 1e-9 + (np.abs(first) + np.abs(last)) * 1e-12
        inside = np.floor(last + slack) >= np.ceil(first - slack)
    return np.asarray(inside | ~np.isfinite(lo) | ~np.isfinite(hi))


def attribute_names(entry: Entry) -> frozenset[str]:
    """Attributes that the formulas of an entry mention."""
    return frozenset(name for text in _texts(entry) for name in parse(text).names) - {"x"}


def _texts(entry: Entry) -> Iterator[str]:
    for source in (entry, *entry.case):
        for name in (*_LISTS, *_PAIRS):
            yield from getattr(source, name, None) or ()
        for name in ("formula", "jump"):
            text = getattr(source, name) or ""
            if text:
                yield text
    if entry.period:
        yield entry.period
    for case in entry.case:
        if case.when:
            condition = parse_condition(case.when)
            yield from (condition.left.text, condition.right.text)


def problem(entry: Entry) -> str | None:
    """What is wrong with a scalar entry, or None."""
    if entry.slope is None and not any(case.slope or case.refuse for case in entry.case):
        return "an entry has either a rule or a slope."
    try:
        names = attribute_names(entry)
        for case in entry.case:
            if not (case.when or case.before or case.attrs):
                return "a [[case]] without when, before or attrs would always apply."
        for name, text in entry.attributes.items():
            if not parse(text).names <= {"x"}:
                return f"attributes.{name} must be a number."
        for source in (entry, *entry.case):
            for key in (*_LISTS, *_PAIRS):
                for text in getattr(source, key, None) or ():
                    if "x" in parse(text).names:
                        return f"{key} must not depend on x."
    except (ValueError, ArithmeticError) as error:
        return f"{error}."
    if "inf" in names or "pi" in names:
        return "pi and inf are no attributes."
    return None


def law_of(entry: Entry, attributes: Mapping[str, Any], version: int) -> Law | Unknown:
    """The law for the given attribute values (numbers for the names in formulas, anything for ``case.attrs``)."""
    names: dict[str, Ball] = {}
    for name in attribute_names(entry):
        value = attributes.get(name, entry.attributes.get(name))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            names[name] = Ball.of(value)
        elif name in entry.attributes:
            names[name] = parse(entry.attributes[name]).ball({})
    case = next((case for case in entry.case if _applies(case, names, attributes, version)), None)
    if case is not None and case.refuse:
        return Unknown(case.refuse)
    told = {name: getattr(entry, name) for name in (*_LISTS, *_PAIRS, "formula", "jump")}
    if case is not None:
        told |= {name: value for name in told if (value := getattr(case, name, None)) is not None}
    if told["slope"] is None:
        return Unknown(f"no case of {entry.op} in the catalogue covers these attributes")
    texts = [text for name in (*_LISTS, *_PAIRS) for text in told[name] or ()]
    texts += [text for text in (told["formula"], told["jump"], entry.period) if text]
    missing = sorted({name for text in texts for name in parse(text).names} - names.keys() - {"x"})
    if missing:
        return Unknown(f"attribute {missing[0]} of {entry.op} is missing or not a number")
    return _with_numbers(entry, told, names)


def _with_numbers(entry: Entry, told: Mapping[str, Any], names: Mapping[str, Ball]) -> Law:
    def pair(name: str) -> tuple[Ball, Ball] | None:
        texts: Sequence[str] | None = told[name]
        return None if texts is None else (parse(texts[0]).ball(names), parse(texts[1]).ball(names))

    def hull(name: str) -> Ball | None:
        ends = pair(name)
        return None if ends is None else ends[0].hull(ends[1])

    points = {name: tuple(parse(text).ball(names) for text in told[name]) for name in _LISTS}
    slope, values = hull("slope"), hull("range")
    assert slope is not None and values is not None
    return Law(
        formula=parse(told["formula"]) if told["formula"] else None,
        names=names,
        slope=slope,
        range=values,
        limits=pair("limits"),
        slope_limits=pair("slope_limits"),
        domain=hull("domain"),
        period=parse(entry.period).ball(names) if entry.period else None,
        jump=parse(told["jump"]).ball(names) if told["jump"] else None,
        **points,
    )


def _applies(case: Case, names: Mapping[str, Ball], attributes: Mapping[str, Any], version: int) -> bool:
    if case.before and not (version and version < case.before):
        return False
    if any(attributes.get(name) != value for name, value in case.attrs.items()):
        return False
    if not case.when:
        return True
    condition = parse_condition(case.when)
    if not (condition.left.names | condition.right.names) <= names.keys():
        return False
    # Attributes are exact, so comparisons of attributes are decided; what is left open does not apply.
    return condition.holds(names) is True
