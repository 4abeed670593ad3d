"""How the outputs of a loop move: the gains of its body, multiplied over the turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lipaudit.bounds.scalar import INFINITE, ONE, ZERO, Norm, Upper, combine, matrix_norm, repeat_factor
from lipaudit.operators.base import BodyBound, Site
from lipaudit.operators.flow import Reason
from lipaudit.operators.loop_plan import Plan
from lipaudit.operators.loop_ranges import Walk
from lipaudit.operators.moves import Branch, Outcome
from lipaudit.operators.recurrence import Change, Column, Turn, at_most, dot, joined, mixed, plus, power, settled

__all__ = ["outcome"]

# A scanned input and a stacked output are cut into at most this many groups of turns.
_GROUPS = 64
# Products of gains that may be computed turn by turn; beyond it the turns are bounded together.
_PRODUCTS = 150_000

_Stacked = tuple[list[dict[Column, Upper]], Upper]
"""Rows of a stacked output (groups of turns), and its offset."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """Of one stacked output in one turn: gains of the states, of columns that always enter, of fresh ones, and the offset."""

    state: tuple[Upper, ...]
    drive: Mapping[Column, Upper]
    fresh: Mapping[Column, Upper]
    offset: Upper

    def row(self, before: Change, norm: Norm) -> tuple[dict[Column, Upper], Upper]:
        """The output's own change in this turn."""
        gains = joined(plus(mixed(self.state, before.gains), self.drive), self.fresh, norm)
        return gains, dot(self.state, before.offsets) + self.offset


def outcome(site: Site, plan: Plan, walked: Walk, norm: Norm) -> Outcome | str:
    """The matrix of gains from the node's inputs to its outputs; a sentence if nothing can be said."""
    bodies = site.bodies
    assert bodies is not None
    followed = len(walked.states) if walked.settles else max(plan.most or 0, 0)
    bounds = [bodies.bound(site, plan.body, walked.turn(plan, t), plan.moving, norm) for t in range(followed)]
    reasons = tuple(dict.fromkeys(reason for bound in bounds for reason in bound.reasons))
    unknown = next((reason for reason in reasons if reason.status == "unknown"), None)
    if unknown is not None:
        return f"inside its body, {unknown.op or unknown.node}: {unknown.reason}"
    if plan.stacked and (plan.fewest != plan.most or plan.varies) and any(site.outputs[len(plan.states) :]):
        return "its stacked outputs have no fixed shape"
    slopes, offsets = _read(_turns(site, plan, bounds, norm), norm)
    if plan.slices and (plan.most or 0) > _GROUPS:
        # Groups of turns lose more than Young's inequality where the gains fade fast. Both bound what one input alone causes in
        # the same linear recurrence, so the smaller one counts input by input.
        other, others = _read(_together(site, plan, bounds, norm, _start(site, plan)), norm)
        slopes = [{i: min(a[i], b[i]) for i in a} for a, b in zip(slopes, other, strict=True)]
        offsets = [min(a, b) for a, b in zip(offsets, others, strict=True)]
    count = len(site.outputs)
    slopes, offsets = slopes[:count], offsets[:count]
    jumps = tuple(_jump(walked, plan, o, norm) if plan.varies else ZERO for o in range(count))
    movers = (*plan.states, *plan.slices, *plan.captured)
    chooses = frozenset({*plan.deciders, *(i for i, _ in movers)}) if plan.varies else frozenset()
    why = reasons or (_growth(site, plan),)
    finite = all(entry.is_finite for row in slopes for entry in row.values()) and all(x.is_finite for x in (*offsets, *jumps))
    return Outcome((Branch(tuple(slopes), tuple(offsets)),), jumps, chooses, () if finite else why)


def _read(found: tuple[Change, list[_Stacked]], norm: Norm) -> tuple[list[dict[int, Upper]], list[Upper]]:
    """Per output the gain of each input, and the offset."""
    finals, stacks = found
    slopes = [_reduced([row], norm) for row in finals.gains] + [_reduced(rows, norm) for rows, _ in stacks]
    return slopes, [*finals.offsets, *(offset for _, offset in stacks)]


def _start(site: Site, plan: Plan) -> Change:
    """Before the first turn: every state moves like its initial value."""
    return Change(tuple({(i, 0): ONE} if site.moving[i] else {} for i, _ in plan.states), (ZERO,) * len(plan.states))


def _growth(site: Site, plan: Plan) -> Reason:
    if plan.varies:
        words = "the number of its turns depends on the input, and results after different numbers of turns differ by an unbounded amount"
    else:
        words = "nothing limits the number of its turns, and a change of its state may grow from turn to turn"
    return Reason(site.node.name, "", "unbounded", words)


def _jump(walked: Walk, plan: Plan, o: int, norm: Norm) -> Upper:
    """Largest difference of results after different numbers of turns."""
    if o >= len(plan.states):
        return INFINITE
    found = walked.final(plan, o)
    return INFINITE if found is None else found.total_diameter(norm)


def _reduced(rows: Sequence[Mapping[Column, Upper]], norm: Norm) -> dict[int, Upper]:
    """Gain of each input: the norm of the matrix (turns of the output) x (groups of the input)."""
    columns: dict[int, list[Column]] = {}
    for row in rows:
        for column in row:
            known = columns.setdefault(column[0], [])
            if column not in known:
                known.append(column)
    return {i: matrix_norm([[row.get(c, ZERO) for c in own] for row in rows], norm) for i, own in columns.items()}


def _turns(site: Site, plan: Plan, bounds: Sequence[BodyBound], norm: Norm) -> tuple[Change, list[_Stacked]]:
    """The largest change of each final state over the possible numbers of turns, and the rows of the stacked outputs."""
    states = len(plan.states)
    start = _start(site, plan)
    groups = min(_GROUPS, plan.most or 1) if plan.slices else 1
    cost = states * (states + 1) * (len(site.node.inputs) + groups * len(plan.slices)) + 1
    if plan.most is None or plan.most * cost > _PRODUCTS:
        return _together(site, plan, bounds, norm, start)
    most = plan.most
    width = -(-most // _GROUPS) if most else 1
    now = start
    worst = now if plan.fewest == 0 else None
    rows: list[list[list[dict[Column, Upper]]]] = [[] for _ in plan.stacked]
    offsets: list[list[Upper]] = [[] for _ in plan.stacked]
    for t in range(most):
        bound = bounds[min(t, len(bounds) - 1)]
        for k, o in enumerate(plan.stacked):
            row, offset = _stack(plan, bound, o, t // width).row(now, norm)
            offsets[k].append(offset)
            if t % width == 0:
                rows[k].append([])
            rows[k][-1].append(row)
        now = now.after(_turn(plan, bound, t // width), norm)
        if t + 1 >= plan.fewest:
            worst = now if worst is None else worst.larger(now)
    assert worst is not None
    merged = [[_column_norms(chunk, norm) for chunk in chunks] for chunks in rows]
    return worst, [(chunks, combine(own, norm)) for chunks, own in zip(merged, offsets, strict=True)]


def _column_norms(rows: Sequence[Mapping[Column, Upper]], norm: Norm) -> dict[Column, Upper]:
    """Several turns of an output as one part: column by column the norm of the entries."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return {column: combine([row.get(column, ZERO) for row in rows], norm) for column in columns}


def _together(site: Site, plan: Plan, bounds: Sequence[BodyBound], norm: Norm, start: Change) -> tuple[Change, list[_Stacked]]:
    """Many turns, or any number of them: what bounds the change after all of them."""
    turns = [_turn(plan, bound, 0, always=True) for bound in bounds]
    if not plan.slices and not plan.stacked:
        worst = now = start
        for turn in turns[:-1]:
            now = now.after(turn, norm)
            worst = worst.larger(now)
        return worst.larger(_later(now, turns[-1], plan.most)), []
    # A scanned input enters the sum over its turns (Young's inequality for convolutions), so that its gain does not grow with them.
    whole = at_most(turns)
    later = _later(start, whole, plan.most)
    copies = INFINITE if plan.most is None else repeat_factor(plan.most, norm)
    scanned = {i for i, _ in plan.slices}
    stacks: list[_Stacked] = []
    for o in plan.stacked:
        row: dict[Column, Upper] = {}
        offset = ZERO
        for bound in bounds:
            part = _stack(plan, bound, o, 0)
            gains = plus(plus(mixed(part.state, later.gains), part.drive), part.fresh)
            row = {column: max(row.get(column, ZERO), gains.get(column, ZERO)) for column in {**row, **gains}}
            offset = max(offset, dot(part.state, later.offsets) + part.offset)
        stacks.append(([{c: gain if c[0] in scanned else gain * copies for c, gain in row.items()}], offset * copies))
    return later, stacks


def _later(now: Change, turn: Turn, most: int | None) -> Change:
    found = settled(now, turn)
    entries = [*found.offsets, *(entry for row in found.gains for entry in row.values())]
    if most is None or all(entry.is_finite for entry in entries):
        return found
    bounded = power(now, turn, most)
    gains = tuple(
        {column: min(a.get(column, ZERO), b.get(column, ZERO)) for column in {**a, **b}}
        for a, b in zip(found.gains, bounded.gains, strict=True)
    )
    return Change(gains, tuple(min(a, b) for a, b in zip(found.offsets, bounded.offsets, strict=True)))


def _turn(plan: Plan, bound: BodyBound, group: int, *, always: bool = False) -> Turn:
    """Matrices of one turn; with ``always`` scanned inputs count as entering every turn."""
    parts = [_stack(plan, bound, plan.first + s, group) for s in range(len(plan.states))]
    drive = tuple(plus(part.drive, part.fresh) if always else part.drive for part in parts)
    fresh = () if always else tuple(part.fresh for part in parts)
    return Turn(tuple(part.state for part in parts), drive, tuple(part.offset for part in parts), fresh)


def _stack(plan: Plan, bound: BodyBound, output: int, group: int) -> _Stack:
    row = bound.gains[output]
    return _Stack(
        tuple(row.get(name, ZERO) for _, name in plan.states),
        {(i, 0): row[name] for i, name in plan.captured if name in row},
        {(i, group): row[name] for i, name in plan.slices if name in row},
        bound.offsets[output],
    )
