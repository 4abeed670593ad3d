"""Rotary position embedding: each pair of features turns by an angle that depends on the position.

A turn is an isometry of l2; the stored tables are rounded, so the factor is ``max sqrt(cos^2 + sin^2)`` over what they hold,
and at least 1 where only part of a row turns. In l1 and linf a turn costs ``max (|cos| + |sin|) <= sqrt 2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import ONE, Lower, Norm, Upper
from lipaudit.graph.ir import Constant
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.range import Range, reals, up, widen

__all__ = ["RotaryEmbedding", "Rotation", "rotation_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rotation:
    """``length``: bound of ``sqrt(cos^2 + sin^2)``; ``absolute``: of ``|cos| + |sin|``."""

    length: Upper
    absolute: Upper

    def gain(self, norm: Norm) -> Upper:
        """Of one turn."""
        return self.length if norm == "l2" else self.absolute


def rotation_of(cos: Constant | None, sin: Constant | None) -> Rotation | None:
    """From the stored tables (same shape); None if they are not both stored."""
    if cos is None or sin is None or cos.shape != sin.shape:
        return None
    c, s = np.abs(cos.float64()), np.abs(sin.float64())
    if c.size == 0:
        return Rotation(ONE, ONE)
    if not (np.all(np.isfinite(c)) and np.all(np.isfinite(s))):
        return None
    squares = float(up(up(np.max(c * c + s * s))))
    return Rotation(Upper(squares).sqrt(), Upper(float(up(np.max(c + s)))))


class RotaryEmbedding(Rule):
    """``RotaryEmbedding`` of ONNX (x, cos, sin, positions) and of ONNX Runtime (x, positions, cos, sin; ``params["tables"]`` = 2)."""

    @property
    def _tables(self) -> int:
        return int(self.params.get("tables", 1))

    def _rotation(self, site: Site) -> Rotation | Unknown:
        at = self._tables
        found = rotation_of(site.constant(at), site.constant(at + 1))
        if found is None:
            return Unknown("the tables of cosines and sines are not stored constants, so that the turn need not be an isometry")
        scale = abs(float(site.attr("scale", 1.0) or 1.0))
        if scale != 1.0:
            # ONNX Runtime's attribute may scale the result; nothing smaller than either reading is claimed.
            top = max(Upper(scale), ONE)
            found = Rotation(found.length * top, found.absolute * top)
        # Rows of which only a part turns keep the rest as it is.
        return Rotation(max(found.length, ONE), max(found.absolute, ONE))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Rows keep their length; an element is at most ``|cos| + |sin|`` times the largest one."""
        shape = site.out_shape()
        rotation = self._rotation(site)
        x = xs[0]
        if isinstance(rotation, Unknown) or x is None:
            return (reals(shape),)
        row = float(rotation.length * Upper(x.row_norm()))
        top = min(row, float(rotation.absolute * Upper(x.magnitude())))
        return (Range(shape, np.asarray(-top), np.asarray(top), row, widen(2 * row, 1) if math.isfinite(row) else math.inf),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The factor of the stored tables."""
        if i != 0:
            return Unknown("moving tables of cosines and sines multiply the input: no rule")
        rotation = self._rotation(site)
        if isinstance(rotation, Unknown):
            return rotation
        evidence = {"excess": (rotation.length / Lower(1)).decimal(17)}
        return Finite(rotation.gain(norm), method="rotation, factor of the stored tables", evidence=evidence)
