"""Cast and CastLike: the identity where the target holds all values, jumps where it does not.

In real arithmetic a cast between float formats is the identity; its rounding is not part of the bound. To an integer it
truncates: ``|trunc x - trunc y| <= |x - y| + 1``. To bool: 0 or 1. To the small float formats it rounds to the nearest point of
a coarse grid with largest gap g: ``(1, g)`` per element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from lipaudit.bounds.scalar import ONE, ZERO, Norm, repeat_factor
from lipaudit.graph.dtypes import dtype_name
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown, scaled
from lipaudit.operators.flow import Flow, Row, may_be_undefined
from lipaudit.operators.grid import Grid, grid_of
from lipaudit.operators.range import Range, extent, reals, up

__all__ = ["Cast"]

_WIDE = ("float64", "float32", "float16", "bfloat16", "double", "float")
# Stored mantissa bits and log2 of the spacing of the subnormals (ONNX, "Float stored in 8 bits" and "4 bits").
_SPACING = {
    "float8_e4m3fn": (3, -9),
    "float8_e4m3fnuz": (3, -10),
    "float8_e5m2": (2, -16),
    "float8_e5m2fnuz": (2, -17),
    "float4_e2m1fn": (1, -1),
}


class Cast(Rule):
    """``to`` names the target, for CastLike the second input has it."""

    def _types(self, site: Site) -> tuple[str, str]:
        source = site.inputs[0].dtype if site.inputs[0] is not None else ""
        to = site.attr("to")
        if isinstance(to, str):
            to = dict(TensorProto.DataType.items()).get(to.upper(), 0)
        if isinstance(to, int):
            return source, dtype_name(to)
        like = site.inputs[1] if site.has(1) else site.outputs[0]
        return source, like.dtype if like is not None else ""

    def _kind(self, site: Site, x: Range) -> str | Unknown:
        """One of "same", "bool", "truncate" and "round"; or why there is no rule."""
        source, target = self._types(site)
        if source == target or target in _WIDE:
            return "same" if source != "string" and target != "string" else Unknown("strings have no distance")
        if "string" in (source, target):
            return Unknown("strings have no distance")
        if target == "bool":
            return "bool"
        grid = grid_of(target)
        if grid is None:
            return Unknown(f"a cast to {target or 'an unknown type'} has no rule")
        lo, hi = (float(np.min(x.lo)), float(np.max(x.hi))) if x.size else (0.0, 0.0)
        if grid.integral:
            if not (np.trunc(lo) >= grid.lo and np.trunc(hi) <= grid.hi):
                return Unknown(f"a cast to {target} is not defined on all of [{lo:.6g}, {hi:.6g}]; it needs a range that fits")
            return "same" if x.integral or source == "bool" else "truncate"
        if not site.attr("saturate", 1) and not (lo >= grid.lo and hi <= grid.hi):
            return Unknown(f"a cast to {target} without saturation needs a range within [{grid.lo:g}, {grid.hi:g}]")
        return "round"

    def _gap(self, target: str, grid: Grid, x: Range) -> float:
        """Largest distance of neighbours of the grid on the range."""
        size = x.magnitude()
        if target not in _SPACING or not size < grid.hi:
            return grid.gap
        bits, finest = _SPACING[target]
        mantissa, exponent = math.frexp(size)
        binade = exponent - (2 if mantissa == 0.5 else 1)  # a power of two is the end of its binade
        return 2.0 ** max(finest, binade - bits) if size > 0 else 2.0**finest

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The identity, truncated ends, 0 and 1, or the ends widened by a gap."""
        shape = site.out_shape()
        x = xs[0] if xs[0] is not None else reals(shape)
        kind = self._kind(site, x)
        if isinstance(kind, Unknown):
            return (reals(shape),)
        if kind == "bool":
            zero, nonzero = (x.lo == 0) & (x.hi == 0), (x.lo > 0) | (x.hi < 0)
            return (Range(shape, np.where(nonzero, 1.0, 0.0), np.where(zero, 0.0, 1.0), integral=True),)
        if kind == "truncate":
            return (Range(shape, np.trunc(x.lo), np.trunc(x.hi), row=x.row, integral=True),)
        if kind == "round":
            target = self._types(site)[1]
            grid = grid_of(target)
            assert grid is not None
            gap = self._gap(target, grid, x)
            lo, hi = (np.clip(end, grid.lo, grid.hi) for end in (x.lo, x.hi))
            return (Range(shape, np.maximum(lo - gap, grid.lo), np.minimum(hi + gap, grid.hi)),)
        return (x.replace(shape=shape),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constants of the module; the value of a type's example does not matter."""
        if i:
            return Finite(ZERO, method="only its type is used")
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        kind = self._kind(site, x)
        if isinstance(kind, Unknown):
            return kind
        if kind == "same":
            return Finite(ONE, method="identity in real arithmetic")
        (image,) = self.range(site, xs)
        if kind == "round":
            target = self._types(site)[1]
            grid = grid_of(target)
            assert grid is not None
            gap = self._gap(target, grid, x)
            return Finite(ONE, extent(np.asarray(gap), x.shape, norm), "rounding to a grid", {"gap": repr(gap)})
        with np.errstate(invalid="ignore"):
            widths = np.where(image.lo == image.hi, 0.0, up(image.hi - image.lo))
        offset = extent(np.minimum(widths, 1.0), x.shape, norm)
        enough = kind == "bool" or bool(np.all(image.hi - image.lo <= 1))
        return Finite(ZERO if enough else ONE, offset, "truncation" if kind == "truncate" else "zero or not")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Parts survive. NaN becomes some number: then no range decides."""
        flow, gain = flows[0], gains[0]
        if flow is None or gain is None:
            moved = next(found for found in flows if found is not None)
            return (Flow((Row(tuple(ZERO for _ in moved.rows[0].gains)),)),)
        if may_be_undefined(flow) and isinstance(gain, Finite):
            target = self._types(site)[1]
            if target == "bool":
                size = math.prod(site.out_shape())
                return (flow.single(Row(tuple(ZERO for _ in flow.rows[0].gains), repeat_factor(size, norm))),)
            gain = Finite(max(gain.slope, ONE), gain.offset, gain.method)
        return (scaled(site, flow, gain, norm, keep_parts=True),)
