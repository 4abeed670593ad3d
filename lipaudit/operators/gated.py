"""SwiGLU: ``swish_alpha(a) * b`` element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from lipaudit.bounds.scalar import ZERO, Norm, Upper
from lipaudit.operators import interval
from lipaudit.operators.arithmetic import Elementwise
from lipaudit.operators.base import Finite, Gain, Site, Unbounded, Unknown
from lipaudit.operators.entry import Entry
from lipaudit.operators.law import Law, law_of
from lipaudit.operators.range import Range, reals

__all__ = ["SwiGLU", "swish"]


@cache
def swish() -> Entry:
    """The entry of Swish: its slopes and values are stated once, in the catalogue."""
    from lipaudit.operators.catalogue import Catalogue

    return Catalogue.load().entries["ai.onnx::Swish"]


class SwiGLU(Elementwise):
    """By midpoints as a product: gain of a is ``sup |swish'| sup |b|``, of b ``sup |swish(a)|``; swish as the catalogue has it."""

    def _law(self, site: Site) -> Law | Unknown:
        return law_of(swish(), {"alpha": float(site.attr("alpha", 1.0))}, 0)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Product of the intervals."""
        law, a, b = self._law(site), xs[0], xs[1]
        if isinstance(law, Unknown) or a is None or b is None:
            return (reals(site.out_shape()),)
        return (Range(site.out_shape(), *interval.multiply(law.enclose(a.lo, a.hi), (b.lo, b.hi))),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        law, a, b = self._law(site), xs[0], xs[1]
        assert a is not None and b is not None
        if isinstance(law, Unknown):
            return law
        if a.size == 0:
            return Finite(ZERO, method="empty tensor")
        if i == 0:
            if not math.isfinite(b.magnitude()):
                return Unbounded(f"product with {site.node.inputs[1]!r}, which is not bounded on the domain")
            slope = law.slope_on(float(np.min(a.lo)), float(np.max(a.hi)))
            return Finite(slope.magnitude() * Upper(b.magnitude()), method="slope interval times the other factor")
        lo, hi = law.enclose(a.lo, a.hi)
        top = float(np.max(np.maximum(np.abs(lo), np.abs(hi))))
        if not math.isfinite(top):
            return Unbounded(f"product with the gate {site.node.inputs[0]!r}, which is not bounded on the domain")
        return Finite(Upper(top), method="largest gate")
