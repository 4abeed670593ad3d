"""Ranges of the state of a loop, turn by turn, and an invariant for the turns that are not followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipaudit.operators.base import Site
from lipaudit.operators.hull import hull, within
from lipaudit.operators.loop_plan import Plan
from lipaudit.operators.range import Range, reals

__all__ = ["Walk", "walk"]

_NODES = 4000


@dataclass(frozen=True, eq=False)
class Walk:
    """``states[t]`` before turn t; with ``settles`` the last of them holds before every later turn too.

    ``stacked[k]`` are ranges whose hull holds the k-th stacked output of every turn (None: a shape is not known).
    """

    states: tuple[tuple[Range, ...], ...]
    settles: bool
    stacked: tuple[tuple[Range, ...] | None, ...]

    def turn(self, plan: Plan, t: int) -> dict[str, Range]:
        """What the body reads in turn ``t``; beyond the turns that were followed: in any of the later ones."""
        at = min(t, len(self.states) - 1)
        last = self.settles and at == len(self.states) - 1
        return _reads(plan, self.states[at], at, plan.most if last else at + 1)

    def final(self, plan: Plan, s: int) -> Range | None:
        """State s after the last turn."""
        if plan.most is not None and plan.fewest == plan.most:
            return self.states[min(plan.most, len(self.states) - 1)][s]
        return hull([states[s] for states in self.states[min(plan.fewest, len(self.states) - 1) :]])


def _reads(plan: Plan, states: Sequence[Range], begin: int, end: int | None) -> dict[str, Range]:
    given = dict(plan.given)
    given.update({name: x for (_, name), x in zip(plan.states, states, strict=True)})
    if plan.counter:
        hi = np.inf if end is None else float(max(begin, end - 1))
        given[plan.counter] = Range((), np.asarray(float(begin)), np.asarray(hi), integral=True)
    return given


def walk(site: Site, plan: Plan) -> Walk | None:
    """Follow the ranges of the state; None if a shape is not known or changes."""
    bodies = site.bodies
    if bodies is None:
        return None
    follow = max(2, min(bodies.steps, _NODES // max(1, len(plan.body.nodes))))
    states = plan.initial
    seen: list[tuple[Range, ...]] = [states]
    stacked: list[list[Range] | None] = [[] for _ in plan.stacked]

    def after(now: Sequence[Range], begin: int, end: int | None) -> tuple[Range, ...] | None:
        outputs = bodies.ranges(site, plan.body, _reads(plan, now, begin, end), plan.moving)
        following = outputs[plan.first : plan.first + len(plan.states)]
        if any(x is None or x.shape != y.shape for x, y in zip(following, now, strict=True)):
            return None
        for k, o in enumerate(plan.stacked):
            part, kept = outputs[o], stacked[k]
            if part is None or kept is None:
                stacked[k] = None
            else:
                kept.append(part)
        return tuple(x for x in following if x is not None)

    def done(settles: bool) -> Walk:
        return Walk(tuple(seen), settles, tuple(None if parts is None else tuple(parts) for parts in stacked))

    # A body that reads the counter is another map in each turn: few turns are worth looking at one by one.
    each = bool(plan.counter) and plan.most is not None and plan.most <= follow
    for t in range(follow):
        if plan.most is not None and t >= plan.most:
            return done(False)
        later = after(states, t, t + 1 if each else plan.most)
        if later is None:
            return None
        if not each and all(within(x, y) for x, y in zip(later, states, strict=True)):
            return done(True)
        following = after(states, t, t + 1) if plan.counter and not each else later
        if following is None:
            return None
        states = following
        seen.append(states)
    if plan.most is not None and plan.most <= follow:
        return done(False)
    for wide in _wider(seen):
        later = after(wide, follow, plan.most)
        if later is None:
            return None
        if all(within(x, y) for x, y in zip(later, wide, strict=True)):
            seen[-1] = wide
            return done(True)
    # Everything is an invariant.
    wide = tuple(reals(x.shape) for x in states)
    if after(wide, follow, plan.most) is None:
        return None
    seen[-1] = wide
    return done(True)


def _wider(seen: Sequence[Sequence[Range]]) -> list[tuple[Range, ...]]:
    """Guesses of an invariant: what still grew in the last turn is let go."""
    loose: list[Range] = []
    for s in range(len(seen[-1])):
        now, before = seen[-1][s], seen[-2][s]
        whole = hull([states[s] for states in seen])
        lo = np.where(now.lo < before.lo, -np.inf, whole.lo)
        hi = np.where(now.hi > before.hi, np.inf, whole.hi)
        grew = now.row_norm() > before.row_norm() or now.row_diameter() > before.row_diameter()
        loose.append(whole.replace(lo=lo, hi=hi, row=np.inf if grew else whole.row, diameter=np.inf if grew else whole.diameter))
    plain = tuple(Range(x.shape, x.lo, x.hi, integral=x.integral) for x in loose)
    return [tuple(loose), plain]
