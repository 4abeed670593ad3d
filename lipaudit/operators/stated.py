"""Whole-tensor constants that a file states, for operators of which nothing else is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.scalar import ZERO, Norm
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.entry import Entry
from lipaudit.operators.formula import parse
from lipaudit.operators.range import Range

__all__ = ["StatedGains", "problem"]

_ZERO = Ball.of(0)


class StatedGains(Rule):
    """``|f(x) - f(y)| <= gain |x - y| + offset`` per input and norm, and an interval that holds every element of every output."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.op, entry.params)
        self._stated = {stated.input: stated for stated in entry.gain}
        lo, hi = (_number(end) for end in entry.range)
        self._lo, self._hi = np.asarray(lo.floats()[0]), np.asarray(hi.floats()[1])

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The stated interval."""
        shapes = [value.shape if value is not None and value.shape is not None else () for value in site.outputs]
        return tuple(Range(shape, self._lo, self._hi) for shape in shapes)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The stated constant."""
        stated = self._stated.get(i)
        text = getattr(stated, norm) if stated is not None else ""
        if stated is None or not text:
            return Unknown(f"the rule of {self.kind} states no {norm} constant for input {i}")
        offset = _number(stated.offset[norm]).magnitude() if norm in stated.offset else ZERO
        return Finite(_number(text).magnitude(), offset, "constant of a user's rule")


def _number(text: str) -> Ball:
    return parse(text).ball({})


def problem(entry: Entry) -> str | None:
    """What is wrong with the stated constants of an entry, or None."""
    try:
        lo, hi = (_number(end) for end in entry.range)
        if not lo.not_above(hi):
            return "the lower end of range lies above the upper end."
        for stated in entry.gain:
            texts = [text for text in (stated.l1, stated.l2, stated.linf, *stated.offset.values()) if text]
            if not texts or stated.input < 0:
                return "a [[gain]] names an input (0 for the first) and at least one of l1, l2, linf."
            if not stated.offset.keys() <= {"l1", "l2", "linf"}:
                return "the offsets of a [[gain]] go by l1, l2, linf."
            for text in texts:
                if not (_ZERO.not_above(_number(text)) and _number(text).is_finite):
                    return f"{text!r} is not a number of at least 0."
        if len({stated.input for stated in entry.gain}) != len(entry.gain):
            return "two [[gain]] tables are for the same input."
    except (ValueError, ArithmeticError, KeyError) as error:
        return f"{error}."
    return None
