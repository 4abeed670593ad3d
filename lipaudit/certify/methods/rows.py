"""What the rows of a value can be, for linear maps that read them: a ball, seen through the matrix that follows.

Behind a normalization ``y = g * z + b`` the rows are ``G z + b`` with z in a ball (of vectors that sum to zero, where the mean is
subtracted), so that ``W y`` lies within ``rho ||W G P||`` of ``W b`` and two rows are at most ``2 rho ||W G P||`` apart: sharp as epsilon
vanishes. The map from x to z has gain 1/s0 on any set (two-point lemma of radial maps, ``operators.radial``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, Upper
from lipaudit.certify.methods.enclosed import Enclosed
from lipaudit.certify.methods.workspace import Workspace
from lipaudit.operators.base import Finite, Unknown
from lipaudit.operators.interval import Interval
from lipaudit.operators.normalizing import Normalizing, normalized_gain

__all__ = ["Rows", "rows_behind"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows ``G z + b`` with ``|z| <= radius``; without a normalization z is the row itself, g = 1 and b = 0.

    Attributes
    ----------
    value
        The value whose rows these are.
    radius, diameter
        Largest norm of z, and largest distance of two z of one sample.
    gain
        Gain from the rows of ``source`` to z.
    source
        What the normalization reads; "" where there is none, or where it reads a sum that has no name.
    scale, bias
        g and b, shape [width]; None for 1 and 0.
    centred
        z sums to zero.
    """

    value: str
    radius: Upper
    diameter: Upper
    gain: Upper = ONE
    source: str = ""
    scale: Floats | None = None
    bias: Floats | None = None
    centred: bool = False

    @property
    def is_normalized(self) -> bool:
        """Behind a normalization."""
        return self.scale is not None

    def through(self, weight: Enclosed) -> Enclosed:
        """``W G P`` for a matrix [.., width] that acts on the rows."""
        return weight if self.scale is None else weight.columns(self.scale, centred=self.centred)

    def centre(self, weight: Enclosed) -> tuple[Floats, float]:
        """``W b`` [rows of W], and a bound of the error of each element."""
        if self.bias is None or not np.any(self.bias):
            return np.zeros(weight.array.shape[0]), 0.0
        image = Enclosed(self.bias[None, :]).times(Enclosed(weight.array.T, weight.error))
        return image.array[0], float(image.error)


def rows_behind(work: Workspace, value: str) -> Rows | None:
    """The rows of ``value`` [.., width]: behind a normalization, or whatever its range says."""
    return work.once(("rows", value), lambda: _normalized(work, value) or _ranged(work, value))


def _ranged(work: Workspace, value: str) -> Rows | None:
    x = work.ranges.get(value)
    if x is None or not x.shape:
        return None
    diameter = x.row_diameter() if len(x.shape) >= 3 else 2 * x.row_norm()
    return Rows(value, Upper(x.row_norm()), Upper(diameter))


def _normalized(work: Workspace, value: str) -> Rows | None:
    node = work.graph.producer.get(value)
    rule = work.rules.get(node.name) if node is not None else None
    if node is None or not isinstance(rule, Normalizing) or node.outputs[0] != value or node.name not in work.gains:
        return None
    xs = work.of(node)
    if any(x is None for x, name in zip(xs, node.inputs, strict=True) if name):
        return None
    plan = rule.plan(work.sites[node.name], xs)
    shape = work.graph.value(value).shape
    if isinstance(plan, Unknown) or not shape or plan.shape != shape or plan.axes != (len(shape) - 1,) or plan.x.size == 0:
        return None
    if not set(work.moving(node)) <= set(plan.x_inputs):
        return None
    gain = normalized_gain(plan, "l2")
    scale, bias = _fixed_row(plan.scale, shape[-1], 1.0), _fixed_row(plan.bias, shape[-1], 0.0)
    if not isinstance(gain, Finite) or scale is None or bias is None:
        return None
    radius = Upper(plan.core.radius(plan.spread.largest))
    read = ""
    if all(work.gain(node, i) is not None for i in work.moving(node)):
        # A residual normalization reads a sum, which it hands on as its fourth output.
        read = node.inputs[0] if plan.x_inputs == (0,) else node.outputs[3] if len(node.outputs) > 3 else ""
    return Rows(
        value, radius, Upper(2) * radius, plan.core.slope("l2", plan.spread.floor), read, scale, bias, plan.core.centred
    )  # fmt: skip


def _fixed_row(operand: Interval | None, width: int, default: float) -> Floats | None:
    """The affine parameter as one stored row of finite numbers; None if it is nothing of the kind."""
    if operand is None:
        return np.full(width, default)
    lo, hi = np.broadcast_arrays(*operand)
    if not np.array_equal(lo, hi) or lo.size not in (1, width) or math.prod(lo.shape[:-1]) > 1 or not np.all(np.isfinite(lo)):
        return None
    return np.array(np.broadcast_to(lo.reshape(-1), (width,)))
