"""Loop and Scan: one body, turn after turn.

The state after k turns moves by products of the body's gains (``recurrence``). Turns are followed one by one while the ranges
of the state still change; then a range that the body maps into itself holds for all later turns (``loop_ranges``).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipaudit.bounds.scalar import Norm, repeat_factor
from lipaudit.graph.ir import Graph
from lipaudit.operators.base import Gain, Rule, Site, Unknown
from lipaudit.operators.branches import named_ranges
from lipaudit.operators.flow import Flow
from lipaudit.operators.hull import hull
from lipaudit.operators.loop_gains import outcome
from lipaudit.operators.loop_plan import Plan, dependent, own_inputs
from lipaudit.operators.loop_ranges import Walk, walk
from lipaudit.operators.moves import Branch, Outcome, flow_of, gain_of
from lipaudit.operators.range import Range, exact, reals

__all__ = ["Loop", "Scan", "of_all_samples"]


class _Repeated(Rule):
    """What Loop and Scan have in common once their inputs and outputs are sorted (:class:`Plan`)."""

    @abstractmethod
    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | str:
        """The roles of inputs and outputs, or why they cannot be told."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Final states: hull over the possible numbers of turns; stacked outputs: hull over the turns."""
        plan = self.plan(site, xs) if site.bodies is not None else ""
        walked = walk(site, plan) if isinstance(plan, Plan) else None
        if isinstance(plan, str) or walked is None:
            return tuple(reals(value.shape) if value is not None and value.shape is not None else reals(()) for value in site.outputs)
        return tuple(self._final(site, o, plan, walked) for o in range(len(site.outputs)))

    def _final(self, site: Site, o: int, plan: Plan, walked: Walk) -> Range:
        value = site.outputs[o]
        whole = value.shape if value is not None and value.shape is not None else ()
        found = self._of_one(whole[1:] if plan.batch else whole, o, plan, walked)
        return of_all_samples(found, whole) if plan.batch else found

    @staticmethod
    def _of_one(shape: tuple[int, ...], o: int, plan: Plan, walked: Walk) -> Range:
        """Output ``o`` of one sample."""
        states = len(plan.states)
        if o < states:
            found = walked.final(plan, o)
            return found if found is not None and found.shape == shape else reals(shape)
        parts = walked.stacked[o - states] if o - states < len(walked.stacked) else None
        if not parts or not shape:
            return reals(shape)
        axis = plan.stack_axes[o - states] % len(shape)
        union = hull(parts)
        if union.shape != shape[:axis] + shape[axis + 1 :]:
            return reals(shape)
        lo, hi = (np.expand_dims(end, axis) for end in union.full())
        row = union.row if axis < len(shape) - 1 else math.inf
        return Range(shape, lo, hi, row=row, integral=union.integral)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """See the module."""
        if site.bodies is None:
            return Unknown("graphs are nested too deeply here: the body is not analysed")
        plan = self.plan(site, xs)
        if isinstance(plan, str):
            return Unknown(plan)
        walked = walk(site, plan)
        if walked is None:
            return Unknown("the shape of its state is not known, or changes from turn to turn")
        found = outcome(site, plan, walked, norm)
        if isinstance(found, str):
            return Unknown(found)
        if plan.batch:
            found = _side_by_side(found, plan, norm)
        turns = "any number of" if plan.most is None else str(plan.most) if plan.fewest == plan.most else f"at most {plan.most}"
        return gain_of(found, i, norm, f"{turns} turns of its body")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Each output by itself, with all that moves."""
        return flow_of(site, flows, gains, norm)


class Loop(_Repeated):
    """Inputs: trip count, condition, states, captured values. The condition inside the body is true, or the body would not run."""

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | str:
        """The trip count from its range; exact if nothing can stop the loop early."""
        body: Graph = site.node.attrs["body"]
        own = own_inputs(site)
        count = own - 2
        if len(body.inputs) < 2 + count or len(body.outputs) < 1 + count:
            return "its body has fewer inputs or outputs than it needs"
        names = [value.name for value in body.inputs]
        initial = xs[2:own]
        if any(x is None for x in initial):
            return "the shape of its state is not known"
        states = tuple((2 + k, names[2 + k]) for k in range(count))
        captured = tuple((i, site.node.inputs[i]) for i in range(own, len(site.node.inputs)))
        start = [name for i, name in (*states, *captured) if site.moving[i]]
        moving, reached = dependent(body, start, [name for _, name in states], 1)
        known = named_ranges(site, xs)
        given = {name: known[name] for _, name in captured if name in known}
        given[names[1]] = exact(np.ones(body.inputs[1].shape or (), dtype=bool))
        deciders = frozenset(i for i in (0, 1) if site.has(i) and site.moving[i])
        varies = bool(deciders) or body.outputs[0] in reached
        fewest, most = _trips(site, xs, self._goes_on(site, body, xs))
        read = any(names[0] in (*node.inputs, *body.captured_by(node)) for node in body.nodes) or names[0] in body.outputs
        return Plan(
            body, states, (), captured, tuple(x for x in initial if x is not None), given, names[0] if read else "", 1, fewest, most,
            varies and fewest != most, deciders, moving, (0,) * (len(body.outputs) - 1 - count),
        )  # fmt: skip

    def _goes_on(self, site: Site, body: Graph, xs: Sequence[Range | None]) -> bool:
        """True if only the trip count ends the loop: the condition is true at first and the body never changes it."""
        if site.has(1):
            first = site.constant(1)
            if first is None or not bool(np.all(first.array())):
                return False
        name = body.outputs[0]
        producer = body.producer.get(name)
        while producer is not None and producer.kind == "ai.onnx::Identity":
            name = producer.inputs[0]
            producer = body.producer.get(name)
        if name == body.inputs[1].name:
            return True
        constant = body.constants.get(name)
        if constant is None and name in site.node.inputs:
            constant = site.constant(site.node.inputs.index(name))
        return constant is not None and bool(np.all(constant.array()))


def _trips(site: Site, xs: Sequence[Range | None], goes_on: bool) -> tuple[int, int | None]:
    """Fewest and most turns; None: no limit."""
    limit = xs[0]
    first = site.constant(1) if site.has(1) else None
    if first is not None and not bool(np.all(first.array())):
        return 0, 0
    if not site.has(0) or limit is None:
        return (0, None)
    lo, hi = float(np.max(limit.lo)), float(np.max(limit.hi))
    most = max(0, math.floor(hi)) if math.isfinite(hi) else None
    fewest = max(0, math.ceil(lo)) if goes_on and math.isfinite(lo) else 0
    return fewest, most


def of_all_samples(one: Range, whole: tuple[int, ...]) -> Range:
    """Range of the value that stacks the samples from that of one of them.

    Elements and rows are those of the samples, but a sample's first axis is no axis of samples any more: rows along it count for the
    diameter now. A stack of numbers is one row.
    """
    if len(whole) == 1:
        return Range(whole, one.lo, one.hi, integral=one.integral)
    return one.replace(shape=whole, diameter=math.inf)


def _side_by_side(found: Outcome, plan: Plan, norm: Norm) -> Outcome:
    """Of ``batch`` independent samples: block-diagonal in what each has of its own; a captured value enters all of them."""
    copies = repeat_factor(plan.batch, norm)
    captured = {i for i, _ in plan.captured}
    branches = tuple(
        Branch(
            tuple({i: slope * copies if i in captured else slope for i, slope in row.items()} for row in branch.slopes),
            tuple(offset * copies for offset in branch.offsets),
        )
        for branch in found.branches
    )
    return replace(found, branches=branches, jumps=tuple(jump * copies for jump in found.jumps))


class Scan(_Repeated):
    """Inputs: states, then tensors that are read slice by slice, then captured values. Directions only permute.

    Version 8 has ``sequence_lens`` in front (refused where given) and a batch axis before all others: its samples are independent.
    """

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | str:
        """As many turns as the scanned axis is long."""
        batched = 0 < site.node.version < 9
        if batched and site.has(0):
            return "the lengths of the sequences (input 0 of Scan-8) decide how many turns each sample takes"
        body: Graph = site.node.attrs["body"]
        own = own_inputs(site)
        begin = 1 if batched else 0
        scanned = int(site.attr("num_scan_inputs", 0))
        count = own - begin - scanned
        names = [value.name for value in body.inputs]
        if len(names) != own - begin or len(body.outputs) < count:
            return "its body does not fit its inputs"
        if any(x is None or (batched and not x.shape) for x in xs[begin:own]):
            return "the shape of its inputs is not known"
        inner = [_slice(x, 0) if batched and x is not None else x for x in xs[begin:own]]
        axes = (0,) * scanned if batched else tuple(site.attr("scan_input_axes") or (0,) * scanned)
        states = tuple((begin + k, names[k]) for k in range(count))
        slices = tuple((begin + k, names[k]) for k in range(count, own - begin))
        captured = tuple((i, site.node.inputs[i]) for i in range(own, len(site.node.inputs)))
        known = named_ranges(site, xs)
        given = {name: known[name] for _, name in captured if name in known}
        turns: set[int] = set()
        for (i, name), axis in zip(slices, axes, strict=True):
            x = inner[i - begin]
            assert x is not None
            if not x.shape:
                return "a scanned input has no axis"
            given[name] = _slice(x, axis % len(x.shape))
            turns.add(x.shape[axis % len(x.shape)])
        if len(turns) != 1:
            return "its scanned inputs have different lengths"
        most = turns.pop()
        start = [name for i, name in (*states, *slices, *captured) if site.moving[i]]
        moving, _ = dependent(body, start, [name for _, name in states], 0)
        stacked = len(body.outputs) - count
        out_axes = (0,) * stacked if batched else tuple(site.attr("scan_output_axes") or (0,) * stacked)
        return Plan(
            body, states, slices, captured, tuple(x for x in inner[:count] if x is not None), given, "", 0, most, most, False,
            frozenset(), moving, out_axes, site.shape(begin)[0] if batched else 0,
        )  # fmt: skip


def _slice(x: Range, axis: int) -> Range:
    """What every slice across ``axis`` lies in."""
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    if x.shape[axis] == 0:
        return reals(shape)
    lo, hi = x.full()
    rows = axis < len(x.shape) - 1
    return Range(
        shape, np.min(lo, axis=axis), np.max(hi, axis=axis), row=x.row if rows else math.inf,
        zero_mean=x.zero_mean and rows, integral=x.integral,
    )  # fmt: skip
