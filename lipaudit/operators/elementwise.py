"""All scalar operators: one rule, driven by the numbers of the catalogue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.operator import LinearOperator
from lipaudit.bounds.scalar import ZERO, Norm, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.entry import Entry
from lipaudit.operators.flow import Flow, flatten, may_be_undefined, total
from lipaudit.operators.law import Law, attribute_names, law_of
from lipaudit.operators.range import Range, extent, reals, up

__all__ = ["Scalar"]

Floats = NDArray[np.float64]

# Element intervals that are looked at one by one: where the hull of all has a bound too, and where it has none.
_FEW, _MANY = 32, 2048


class Scalar(Rule):
    """y = f(x) elementwise, or f(x + b) where the entry names a bias input.

    f has its slopes in [m, M] on the element intervals of x (on their hull, if they are many), so the gain is max(|m|, |M|) in every
    norm. Where f jumps by at most d, ``|f(x) - f(y)| <= L |x - y| + d`` with the stated L. An element moves at most by the width of
    its own value interval, so that may replace d, and L too where it is enough for all elements.
    """

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.op, entry.params)
        self.entry = entry
        self._asked = sorted(attribute_names(entry) | {name for case in entry.case for name in case.attrs})
        self._laws: dict[tuple[Any, ...], Law | Unknown] = {}

    def law(self, site: Site) -> Law | Unknown:
        """The numbers of the entry with the node's attributes."""
        attributes = {name: site.attr(name) for name in self._asked}
        key = (site.node.version, *(value if isinstance(value, (int, float, str)) else None for value in attributes.values()))
        found = self._laws.get(key)
        if found is None:
            found = self._laws[key] = law_of(self.entry, attributes, site.node.version)
        return found

    def argument(self, site: Site, xs: Sequence[Range | None]) -> Range:
        """Range of what f is applied to: the first input, plus the bias."""
        x = xs[0]
        if x is None:
            return reals(site.shape(0))
        bias = xs[self.entry.bias] if self.entry.bias and self.entry.bias < len(xs) else None
        if bias is None:
            return x
        lo, hi = interval.add((x.lo, x.hi), (bias.lo, bias.hi))
        return Range(x.shape, lo, hi)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Element intervals by f; rows about 0 keep their norm where ``|f(x)| <= |x|``, else grow with the slope and f(0)."""
        law = self.law(site)
        shape = site.out_shape()
        x = self.argument(site, xs)
        lo, hi = _ends(x)
        if isinstance(law, Unknown) or law.leaves_domain(lo, hi):
            return (reals(shape),)
        if self.entry.fixes_integers and x.integral:
            return (x.replace(shape=shape),)
        low, high = law.enclose(x.lo, x.hi)
        slope = math.inf if law.jump is not None else float(law.slope_on(lo, hi).magnitude())
        row, linear = self._row(law, x, lo, hi)
        return (
            Range(
                shape,
                low,
                high,
                row=row,
                diameter=_product(slope, x.diameter),
                zero_mean=x.zero_mean and linear,
                integral=self.entry.integral,
            ),
        )

    def _row(self, law: Law, x: Range, lo: float, hi: float) -> tuple[float, bool]:
        """Norm of the rows about 0; and whether f is linear.

        ``|f(t)| <= |f(0)| + L |t|`` with L the slope between 0 and t: on the hull of the elements *and 0*.
        """
        if math.isinf(x.row) or law.formula is None:
            return math.inf, False
        if self.entry.contracts:
            return (x.row if law.slope.inside(Ball.between(-1, 1)) else float(up(x.row))), self._is_linear(law)
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        if law.jump is not None or law.leaves_domain(lo, hi):
            return math.inf, False
        slope = float(law.slope_on(lo, hi).magnitude())
        origin = float(law.jet(Ball.of(0), 0).terms[0].magnitude())
        if origin == 0.0:
            return _product(slope, x.row), self._is_linear(law)
        width = x.shape[-1] if x.shape else 1
        return float(up(_product(slope, x.row) + float(up(origin * up(math.sqrt(width)))))), False

    @staticmethod
    def _is_linear(law: Law) -> bool:
        return not law.kinks and law.jump is None and bool(law.slope.lo == law.slope.hi) and law.slope.is_finite

    def slope(self, site: Site, xs: Sequence[Range | None]) -> Ball | Unbounded | Unknown:
        """Hull of f' on the range of x: the signed interval that slopes of functions of one tensor add in."""
        law = self.law(site)
        if isinstance(law, Unknown):
            return law
        lo, hi = _ends(self.argument(site, xs))
        if law.leaves_domain(lo, hi):
            return Unknown(f"{site.node.op} is not defined on all of [{lo:.6g}, {hi:.6g}]{self._advice()}")
        found = law.slope_on(lo, hi)
        if not found.is_finite:
            return Unbounded(f"the slope of {site.node.op} is not bounded on [{lo:.6g}, {hi:.6g}]{self._advice()}")
        return found

    def _advice(self) -> str:
        return f"; it needs {self.entry.needs}" if self.entry.needs else ""

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Slope on the range of x, or slope and jumps; the bias pays for its copies."""
        if i and i != self.entry.bias:
            return Unknown(f"input {i} of {site.node.op} may not depend on a source")
        x = self.argument(site, xs)
        if x.size == 0:
            return Finite(ZERO, method="empty tensor")
        if self.entry.fixes_integers and x.integral:
            return self._by_slope(site, i, norm, x, Ball.of(1))
        law = self.law(site)
        if isinstance(law, Unknown):
            return law
        if law.jump is not None and self._may_jump(law, x):
            return self._by_jumps(site, i, norm, x, law)
        slope = self.slope(site, xs)
        if isinstance(slope, Ball):
            return self._by_slope(site, i, norm, x, self._one_by_one(law, x, slope, _FEW))
        if isinstance(slope, Unbounded):  # the hull of all elements may hold a pole that no element can reach
            apart = self._one_by_one(law, x, None, _MANY)
            if apart.is_finite:
                return self._by_slope(site, i, norm, x, apart)
        return slope

    @staticmethod
    def _one_by_one(law: Law, x: Range, whole: Ball | None, most: int) -> Ball:
        """Hull of f' over the interval of each element by itself, of at most ``most`` different ones; ``whole`` where there are more."""
        lo, hi = np.broadcast_arrays(x.lo, x.hi)
        pairs = np.unique(np.stack([lo.ravel(), hi.ravel()]), axis=1).T if 1 < lo.size <= 16 * most else np.empty((0, 2))
        if not 0 < len(pairs) <= most:
            return law.slope if whole is None else whole
        found: Ball | None = None
        for a, b in pairs.tolist():
            slope = law.slope_on(a, b)
            if not slope.is_finite:
                return slope
            found = slope if found is None else found.hull(slope)
        assert found is not None
        return found if whole is None else found.meet(whole)

    def _by_slope(self, site: Site, i: int, norm: Norm, x: Range, slope: Ball) -> Finite:
        copied = repeat_factor(_copies(site, i), norm)
        evidence = {"interval": [repr(end) for end in _ends(x)], "slope": [repr(end) for end in slope.floats()]}
        return Finite(slope.magnitude() * copied, method="slope interval", evidence=evidence)

    @staticmethod
    def _may_jump(law: Law, x: Range) -> bool:
        hull = Ball.between(*_ends(x))
        return not law.jump_at or any(True for _ in law.inside(law.jump_at, hull))

    def _by_jumps(self, site: Site, i: int, norm: Norm, x: Range, law: Law) -> Gain:
        """(L, d) per element: (stated slope, stated jump), where d may be the width of the element's value interval."""
        assert law.jump is not None
        lo, hi = law.enclose(x.lo, x.hi)
        with np.errstate(invalid="ignore"):
            widths = np.where(lo == hi, 0.0, hi - lo if self.entry.integral else up(hi - lo))
        jump = float(law.jump.magnitude())
        enough = bool(np.all(widths <= jump))
        offset = extent(np.minimum(widths, jump), x.shape, norm)
        slope = ZERO if enough else law.slope.magnitude()
        evidence = {"interval": [repr(end) for end in _ends(x)], "jump": repr(jump)}
        return Finite(slope * repeat_factor(_copies(site, i), norm), offset, "slope and jumps", evidence)

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """A multiple of the identity where f' is one number."""
        law = self.law(site)
        if i or self.entry.bias or isinstance(law, Unknown) or not self._is_linear(law):
            return None
        from lipaudit.bounds.diagonal import Diagonal

        lo, hi = law.slope.floats()
        return Diagonal(np.asarray(lo), site.shape(0)) if lo == hi else None

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Each part moves by itself; a bias moves every part as a whole."""
        parts: list[Flow] = []
        for i, (flow, gain) in enumerate(zip(flows, gains, strict=True)):
            if flow is not None and gain is not None:
                gain = self._undecided(site, flow, gain, norm)
                parts.append(scaled(site, flow if i == 0 else flatten(flow, norm), gain, norm, keep_parts=i == 0))
        joint = total(parts)
        return tuple(joint for _ in site.outputs)

    def _undecided(self, site: Site, flow: Flow, gain: Gain, norm: Norm) -> Gain:
        """A step function turns NaN into a value: where the input may be undefined, its range decides nothing."""
        law = self.law(site)
        if isinstance(law, Unknown) or law.jump is None or not law.range.is_finite or not may_be_undefined(flow):
            return gain
        ends = law.range.floats()
        return Finite(ZERO, extent(np.asarray(ends[1] - ends[0]), site.out_shape(), norm), "all values")


def _ends(x: Range) -> tuple[float, float]:
    """Hull of all element intervals."""
    if x.size == 0:
        return 0.0, 0.0
    return float(np.min(x.lo)), float(np.max(x.hi))


def _copies(site: Site, i: int) -> int:
    """How often each element of the bias is used; 1 for the operand itself."""
    own = math.prod(site.shape(i)) if i else 0
    return math.prod(site.shape(0)) // own if own else 1


def _product(slope: float, size: float) -> float:
    """Product of two bounds, rounded up; 0 times an unknown size is 0."""
    if slope == 0 or size == 0:
        return 0.0
    value = slope * size
    return value if slope == 1 or math.isinf(value) else math.nextafter(value, math.inf)
