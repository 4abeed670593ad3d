"""ai.onnx.ml::Normalizer: rows divided by their l2 norm, l1 norm or largest element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.range import Range, reals, up

__all__ = ["Normalizer"]


class Normalizer(Rule):
    """Rows of F elements with size at least r on the range:

    L2: ``J = (I - uu')/|x|``: ``sqrt(F)/r, 1/r, sqrt(F)/r``. L1: ``J = (I - y s')/|x|_1``: columns sum to at most 2, rows to
    at most ``max(1, F - 1)``. MAX (of non-negative rows; runtimes differ on negative ones): columns ``max(1, F - 1)``, rows 2; the
    l2 bounds of these two are ``sqrt(l1 * linf)``. A row that may be 0 jumps within the values: those of norm at most 1.
    """

    def _kind(self, site: Site) -> str:
        return str(site.attr("norm", "MAX"))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Values in [-1, 1]; the signs stay."""
        x, shape = xs[0], site.out_shape()
        if x is None or not x.size:
            return (reals(shape),)
        lo, hi = float(np.min(x.lo)), float(np.max(x.hi))
        if self._kind(site) == "MAX" and lo < 0:
            return (reals(shape),)
        row = 1.0 if self._kind(site) != "MAX" else float(up(math.sqrt(shape[-1] if shape else 1)))
        return (Range(shape, np.asarray(0.0 if lo >= 0 else -1.0), np.asarray(0.0 if hi <= 0 else 1.0), row=row),)

    def _least(self, x: Range, kind: str) -> Lower:
        """Lower bound of the size of every row."""
        lo, hi = x.full()
        sizes = np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi))).reshape(-1, x.shape[-1])
        if kind == "MAX":
            return Lower(float(sizes.max(axis=1).min()))
        if kind == "L1":
            return Lower(float(sizes.sum(axis=1).min()) * (1 - (x.shape[-1] + 2) * 2.0**-52))
        return Lower(float(np.sum(sizes * sizes, axis=1).min()) * (1 - (x.shape[-1] + 4) * 2.0**-52)).sqrt()

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x, kind = xs[0], self._kind(site)
        assert x is not None
        if x.size == 0:
            return Finite(ZERO, method="empty")
        if kind not in ("MAX", "L1", "L2"):
            return Unknown(f"norm {kind!r} has no rule")
        if kind == "MAX" and float(np.min(x.lo)) < 0:
            return Unknown("the largest element of rows with negative elements: runtimes disagree whether of x or |x|")
        width = x.shape[-1] if x.shape else 1
        rows = x.size // width
        least = self._least(x, kind)
        if least == Lower(0):
            return Finite(ZERO, self._diameter(kind, float(np.min(x.lo)) >= 0, rows, width, norm), method="all values: a row may be 0")
        long = Upper(max(1, width - 1))
        sizes: dict[str, tuple[Upper, Upper]] = {
            "L2": (Upper(width).sqrt(), Upper(width).sqrt()),
            "L1": (Upper(2), long),
            "MAX": (long, Upper(2)),
        }
        column, row = sizes[kind]
        both = ONE if kind == "L2" else (column * row).sqrt()
        return Finite({"l1": column, "l2": both, "linf": row}[norm] / least, method="quotient by the size of a row")

    @staticmethod
    def _diameter(kind: str, positive: bool, rows: int, width: int, norm: Norm) -> Upper:
        reach = ONE if positive else Upper(2)
        if norm == "linf":
            return reach
        if kind == "MAX":
            return reach * repeat_factor(rows * width, norm)
        if kind == "L1" and norm == "l1":
            return Upper(2 * rows)
        if norm == "l2":
            return Upper(2) * Upper(rows).sqrt()
        return Upper(2 * rows) * Upper(width).sqrt()
