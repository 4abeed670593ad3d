"""Runs the ``[[check]]`` blocks of every catalogue file."""

from __future__ import annotations

import numpy as np
import pytest

from lipaudit.bounds.ball import Ball
from lipaudit.bounds.scalar import Upper
from lipaudit.operators.base import Finite, Unbounded
from lipaudit.operators.entry import Check
from tests.rules.entries import CATALOGUE, KINDS, number, site_of

CHECKS = [(kind, i) for kind in KINDS for i in range(len(CATALOGUE.entries[kind].check))]


def exactly(bound: Upper) -> Ball:
    """The bound as a point."""
    dyadic = bound.dyadic()
    assert dyadic is not None
    return Ball.of(dyadic[0]) * (Ball.of(2) ** dyadic[1])


def within(bound: Upper, limits: dict[str, str], what: str) -> None:
    assert bound.is_finite, f"{what} is not finite"
    if "at_least" in limits:
        assert not exactly(bound).below(number(limits["at_least"])), f"{what} {bound} is too small"
    if "at_most" in limits:
        # Not a question of soundness: a few roundings upward are fine.
        assert not (number(limits["at_most"]) * Ball.of("1.000000000001")).below(exactly(bound)), f"{what} {bound} is too large"
    assert limits.keys() <= {"at_least", "at_most"}


@pytest.mark.parametrize(("kind", "i"), CHECKS)
def test_check(kind: str, i: int) -> None:
    entry = CATALOGUE.entries[kind]
    check: Check = entry.check[i]
    site, ranges = site_of(entry, check)
    rule = CATALOGUE.rule(site.node)
    assert rule is not None
    if check.range is not None:
        found = rule.range(site, ranges)[0]
        lo, hi = float(np.min(found.lo)), float(np.max(found.hi))
        least, largest = number(check.range[0]).floats()[0], number(check.range[1]).floats()[1]
        assert lo >= least - 1e-9 * abs(least) - 1e-12
        assert hi <= largest + 1e-9 * abs(largest) + 1e-12
    if not any(site.moving):
        return
    gain = rule.gain(site, check.wrt, check.norm, ranges)  # type: ignore[arg-type]
    status = "finite" if isinstance(gain, Finite) else "unbounded" if isinstance(gain, Unbounded) else "unknown"
    assert status == check.status, gain
    if isinstance(gain, Finite):
        within(gain.slope, check.gain, "gain")
        within(gain.offset, check.offset, "offset")
