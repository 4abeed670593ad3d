"""Integer values are real numbers to the rules; here is where the stored value is another one: rounding and overflow.

An operator that is no polynomial with integer coefficients rounds its result to its integer type (towards 0, down, or to the
nearest, as the runtime has it): ``|T(a) - T(b)| <= |a - b| + 1`` per element. A result beyond its type wraps around: no rule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lipaudit.bounds.scalar import Norm, repeat_factor
from lipaudit.graph.ir import Value
from lipaudit.operators.base import Finite, Gain, Site
from lipaudit.operators.range import Range

__all__ = ["overflow", "rounded", "within"]

_BITS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)}

# Operators whose result in real numbers may be no integer although their operands are.
_ROUNDING = frozenset(
    {"Pow", "ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "Gemm", "Resize", "Upsample", "GridSample", "Mean", "AveragePool"}
)


def _ends(dtype: str) -> tuple[float, float] | None:
    found = _BITS.get(dtype)
    if found is None:
        return None
    sign, bits = found
    return (0.0, 2.0**bits - 1) if sign else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def overflow(value: Value, found: Range) -> bool:
    """True if ``found``, the range in real numbers, leaves the integer type of ``value``.

    Without any finite end nothing is known of the value, and 64 bits are taken to be enough for it.
    """
    ends = _ends(value.dtype)
    if ends is None or found.size == 0:
        return False
    lo, hi = float(np.ceil(np.min(found.lo))), float(np.floor(np.max(found.hi)))
    if "64" in value.dtype:
        lo, hi = (end if np.isfinite(end) else 0.0 for end in (lo, hi))
    return lo < ends[0] or hi > ends[1]


def within(value: Value, found: Range) -> Range:
    """The range of the stored integers: any of the type after an overflow, whole ends after rounding."""
    ends = _ends(value.dtype)
    if ends is None:
        return found
    if overflow(value, found):
        return Range(found.shape, np.asarray(ends[0]), np.asarray(ends[1]), integral=True)
    if found.integral:
        return found
    return Range(found.shape, np.floor(found.lo), np.ceil(found.hi), integral=True)


def rounded(site: Site, gain: Gain, norm: Norm) -> Gain:
    """``gain`` with a jump of 1 per element where the operator rounds its result to an integer type."""
    value = site.outputs[0]
    if not isinstance(gain, Finite) or value is None or site.node.op not in _ROUNDING or _ends(value.dtype) is None:
        return gain
    return replace(gain, offset=gain.offset + repeat_factor(value.size, norm))
