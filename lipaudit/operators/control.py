"""Operators that are known and have no constant: control flow whose bodies are not analysed, and draws of random numbers.

They stand in the catalogue as structured operators, so that the reason names what the node does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import Norm
from lipaudit.operators.base import Gain, Rule, Site, Unknown
from lipaudit.operators.range import Range, reals

__all__ = ["ControlFlow", "Random"]


def _reals(site: Site) -> tuple[Range, ...]:
    return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)


class ControlFlow(Rule):
    """If, Loop, Scan, SequenceMap: ``params["reason"]`` says what would have to be known."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """All reals."""
        return _reals(site)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Unknown."""
        return Unknown(str(self.params.get("reason", "the body of this operator is not analysed")))


class Random(Rule):
    """Operators that draw random numbers: not a function of their inputs. Uniform draws and Boolean ones have a range."""

    deterministic = False

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The interval of a uniform draw, {0, 1} for ``params["range"]`` = "bits"; otherwise all reals."""
        if self.params.get("range") == "uniform":
            lo, hi = float(site.attr("low", 0.0)), float(site.attr("high", 1.0))
            if math.isfinite(lo) and math.isfinite(hi) and lo <= hi:
                return tuple(found.replace(lo=np.asarray(lo), hi=np.asarray(hi)) for found in _reals(site))
        if self.params.get("range") == "bits":
            return tuple(found.replace(lo=np.asarray(0.0), hi=np.asarray(1.0), integral=True) for found in _reals(site))
        return _reals(site)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Unknown."""
        return Unknown(f"{site.node.op} draws random numbers: its output is not a function of its input")
