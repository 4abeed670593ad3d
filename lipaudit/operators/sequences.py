"""Sequences that the simplifier could not take apart: their elements are not known to any rule.

Where positions are constant, ``graph.simplify.sequences`` replaces the nodes by plain tensor operators before a rule is asked.
"""

from __future__ import annotations

from collections.abc import Sequence as Inputs

from lipaudit.bounds.scalar import ZERO, Norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.range import Range, reals

__all__ = ["Sequence", "Structure"]


class Sequence(Rule):
    """A node that builds or reads a sequence whose elements could not be told apart."""

    def range(self, site: Site, xs: Inputs[Range | None]) -> tuple[Range, ...]:
        """All reals."""
        return tuple(reals(value.shape if value is not None and value.shape is not None else ()) for value in site.outputs)

    def gain(self, site: Site, i: int, norm: Norm, xs: Inputs[Range | None]) -> Gain:
        """No bound."""
        return Unknown("the elements of the sequence are not at constant places")


class Structure(Sequence):
    """SequenceLength, OptionalHasElement: independent of the elements."""

    def gain(self, site: Site, i: int, norm: Norm, xs: Inputs[Range | None]) -> Gain:
        """Zero."""
        return Finite(ZERO, method="reads the structure only")
