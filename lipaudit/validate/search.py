"""Search for a pair of inputs with a large gain: scouts at diverse points, pair ascent from the best, local moves, polish.

A long search runs in stages. Each is a whole search, five times as long as the one before, and goes on with its scouts and finds: what a
time limit cuts short has then worked on its best points already. Stages are counted in evaluations, so that the clock decides nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.validate.ascent import Pair, ascend, pair_gain, spread
from lipaudit.validate.direction import Direction, View, worst_direction
from lipaudit.validate.engine import SMALL, State
from lipaudit.validate.starts import Start, starts, width
from lipaudit.validate.vectors import norm_of, unit

__all__ = ["Candidate", "Search", "shares"]

Floats = NDArray[np.float64]

# First distance (2 % of the diameter) and first step (5 %) of the ascents in turn, in multiples: convolutional networks want both large,
# dense ones a close pair. With one of the two alone the gains found on real networks were lower by a fifth to a half.
_FIRST = ((10.0, 10.0), (0.03, 0.03), (1.0, 10.0), (3.0, 10.0))

# Length of a stage in lengths of the one before, and the fewest evaluations that are worth a stage.
_GROWTH = 5.0
_LEAST_STAGE = 200.0


def shares(budget: float, stages: int) -> list[float]:
    """Parts of the budget that the stages get, first to last; fewer stages where the first would be too short to find anything."""
    while stages > 1:
        sizes = [_GROWTH**i for i in range(stages)]
        if budget * sizes[0] / sum(sizes) >= _LEAST_STAGE:
            return [size / sum(sizes) for size in sizes]
        stages -= 1
    return [1.0]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the float32 search believes: ``gain`` at ``point`` along ``step`` (full length: the pair is point, point + step).

    ``local`` marks the slope of a Jacobian (the pair may be drawn closer), otherwise the gain is that of the pair itself.
    """

    gain: float
    point: Floats
    step: Floats
    family: str
    local: bool


@dataclass
class Search:
    """One search; ``found`` grows while it runs, so that an interrupted search keeps what it has.

    Parameters
    ----------
    view
        What moves and what is looked at.
    norm
        The norm on both sides.
    seed
        Everything random comes from it.
    budget
        Evaluations to spend.
    stages
        At most so many searches, each on the finds of the one before.
    """

    view: View
    norm: Norm
    seed: tuple[int, ...]
    budget: float
    stages: int = 1
    progress: Callable[[float], None] = lambda fraction: None
    found: list[Candidate] = field(default_factory=list)
    scouts: list[tuple[Candidate, State]] = field(default_factory=list)
    _fresh: Iterator[Start] = field(init=False)
    _ascents: int = 0
    # Where the present stage began, and its length.
    _begin: float = 0.0
    _length: float = 0.0

    def run(self) -> None:
        """Spend the budget. Raises OutOfTime at the time limit; ``found`` is valid then as well."""
        rng = np.random.default_rng([*self.seed])
        engine = self.view.engine
        self._fresh = starts(engine.problem, rng)
        self._first = end = engine.spent
        # Evolution has no phases that a cut could miss.
        for share in shares(self.budget, self.stages if engine.differentiable else 1):
            # What a stage left over is the next one's, what it overdrew is taken from there.
            end += share * self.budget
            self._begin, self._length = engine.spent, max(end - engine.spent, 1.0)
            if engine.differentiable:
                self._scout(rng, 0.2)
                self._climb(rng)
                self._polish(rng)
            else:
                self._evolve(rng)
        self.progress(1.0)

    def best(self) -> list[Candidate]:
        """Candidates, the largest believed gain first."""
        return sorted(self.found, key=lambda c: -c.gain)

    @property
    def _used(self) -> float:
        """Spent part of the present stage."""
        return (self.view.engine.spent - self._begin) / self._length

    def _tell(self) -> None:
        self.progress(min(1.0, (self.view.engine.spent - self._first) / self.budget))

    def _probes(self) -> tuple[int, int]:
        """Probes and rounds of one local search, by what the budget allows."""
        if self._length < 40:
            return 1, 1
        return (2, 2) if self._length < 400 else (4, 3)

    def _scout(self, rng: np.random.Generator, share: float) -> None:
        probes, rounds = self._probes()
        for start in self._fresh:
            state = self.view.engine.state(start.point)
            if np.isfinite(self.view.value(state)).all():
                direction = worst_direction(self.view, state, self.norm, rng, rounds=rounds, probes=probes)
                candidate = self._keep_local(state, direction, start.family)
                if candidate.gain > 0:
                    self.scouts.append((candidate, state))
            # States hold the taps of a run: keep few.
            if len(self.scouts) > 24:
                self._thin()
            self._tell()
            if self._used >= share:
                break
        self._thin()

    def _thin(self) -> None:
        """The best scouts, and the best of each family: the highest slope is not always the foot of the highest peak."""
        self.scouts.sort(key=lambda item: -item[0].gain)
        seen, kept = set[str](), list[tuple[Candidate, State]]()
        for i, item in enumerate(self.scouts):
            if i < 4 or item[0].family not in seen:
                kept.append(item)
            seen.add(item[0].family)
        self.scouts = kept[:14]

    def _keep_local(self, state: State, direction: Direction, family: str) -> Candidate:
        step = direction.tangent * self._reach(state.point)
        candidate = Candidate(direction.gain, state.point, step, family, local=True)
        if direction.gain > 0:
            self.found.append(candidate)
        if len(self.found) > 64:
            self.found = self.best()[:32]
        return candidate

    def _keep_pair(self, pair: Pair, family: str) -> None:
        if pair.gain > 0:
            step = (pair.z.point - pair.x.point)[self.view.inputs]
            self.found.append(Candidate(pair.gain, pair.x.point, step, family, local=False))

    def _scale(self, point: Floats) -> float:
        """Size of the region around ``point``, as the half-width of open elements."""
        return max(float(np.abs(point[self.view.inputs]).max(initial=0.0)), 1e-3)

    def _reach(self, point: Floats) -> float:
        """Length of a step along a unit tangent: a thousandth of the point, or of the box."""
        across = norm_of(width(self.view.engine.problem, self._scale(point))[self.view.inputs], self.norm)
        return 1e-3 * max(norm_of(point[self.view.inputs], self.norm), 0.1 * across)

    def _diameter(self, point: Floats) -> float:
        return norm_of(width(self.view.engine.problem, self._scale(point))[self.view.inputs], "l2")

    def _climb(self, rng: np.random.Generator) -> None:
        """Pair ascent from each scout in turn, then from fresh ones; moves around the best points in between.

        With few inputs, where the whole Jacobian costs one run, hill climbing on its gain comes first: it takes most of the budget.
        """
        i, limit = 0, 0.9
        if self.view.size <= SMALL and self.scouts:
            self._climb_hills(rng, 0.6)
        # Different first distances from many scouts, before any of them is worked on; in the last pass the odd ones come first.
        for first, scouts, share in ((_FIRST[2], self.scouts[:2], 0.3), (_FIRST[0], self.scouts, 0.4), (_FIRST[1], self.scouts[::-1], 0.6)):
            for scout in scouts:
                if self._used < share:
                    self._ascend_from(*scout, rng, limit, first)
        while self.scouts and self._used < limit:
            if i < len(self.scouts):
                self._ascend_from(*self.scouts[i], rng, limit)
            else:
                self._restart(rng, limit)
            self._local_moves(rng, limit, 20)
            self._refine(rng, limit)
            self._hop(rng, limit)
            i += 1
            self._tell()

    def _climb_hills(self, rng: np.random.Generator, limit: float) -> None:
        """Random hill climbing on the local gain from the scouts, then from the best of some fresh points each time."""
        tops = [candidate for candidate, _ in self.scouts]
        while self._used < limit:
            if not tops:
                drawn = [self._gain_at(start.point, rng, start.family) for start in islice(self._fresh, 24)]
                tops = sorted(drawn, key=lambda candidate: -candidate.gain)[:3]
            self._hill(tops.pop(0), rng, limit)
            self._tell()

    def _gain_at(self, point: Floats, rng: np.random.Generator, family: str) -> Candidate:
        state = self.view.engine.state(point)
        found = worst_direction(self.view, state, self.norm, rng, rounds=1, probes=1)
        return Candidate(found.gain, point, found.tangent * self._reach(point), family, local=True)

    def _hill(self, best: Candidate, rng: np.random.Generator, limit: float) -> None:
        """Steps of a size that grows with success and shrinks without, until 60 in a row fail."""
        view, family = self.view, best.family.split(",")[0] + ", hill climbing"
        across = width(view.engine.problem, self._scale(best.point))[view.inputs]
        size, failures = 0.1, 0
        while failures < 60 and self._used < limit:
            step = size * 10.0 ** rng.uniform(-1.5, 0.0) * rng.standard_normal(view.size) * across
            found = self._gain_at(view.move(best.point, step), rng, family)
            if found.gain > best.gain:
                best, size, failures = found, min(1.5 * size, 0.3), 0
            else:
                size, failures = max(0.95 * size, 1e-4), failures + 1
        if best.gain > 0 and best.family == family:
            self.found.append(best)

    def _refine(self, rng: np.random.Generator, limit: float) -> None:
        """A short ascent with a close pair from one of the best local candidates."""
        local = [candidate for candidate in self.best() if candidate.local][:8]
        if local and self._used < limit:
            candidate = local[min(int(rng.exponential(2.0)), len(local) - 1)]
            size = 10.0 ** rng.uniform(-2.0, -0.5)
            self._ascend_from(candidate, self.view.engine.state(candidate.point), rng, limit, (size, size))

    def _hop(self, rng: np.random.Generator, limit: float) -> None:
        """Basin hopping: one of the best pairs, shifted at random as a whole, climbs again."""
        pairs = [candidate for candidate in self.best() if not candidate.local][:4]
        left = (limit - self._used) * self._length
        if not pairs or left < 40:
            return
        view, engine = self.view, self.view.engine
        start = pairs[min(int(rng.exponential(0.8)), len(pairs) - 1)]
        sparse = rng.random(view.size) < rng.choice([0.05, 0.3, 1.0])
        shift = 10.0 ** rng.uniform(-2.0, -0.3) * rng.standard_normal(view.size) * sparse
        x = view.move(start.point, shift * width(engine.problem, self._scale(start.point))[view.inputs])
        z = view.move(x, start.step)
        if norm_of((z - x)[view.inputs], "l2") < spread(view, x, 1e-6 * self._diameter(x)):
            return
        pair = ascend(view, engine.state(x), engine.state(z), self.norm, self._diameter(x), min(left, max(0.02 * self._length, 300.0)))
        self._keep_pair(pair, start.family.split(",")[0] + ", basin hopping")

    def _ascend_from(
        self, candidate: Candidate, state: State, rng: np.random.Generator, limit: float, first: tuple[float, float] | None = None
    ) -> None:
        """Pair ascent from distance and step of 2 % and 5 % of the diameter times ``first``, then the slopes along the final pair."""
        engine, view = self.view.engine, self.view
        left = (limit - self._used) * self._length
        if left < 8:
            engine.spent += max(left, 0.0)
            return
        if first is None:
            first = _FIRST[self._ascents % len(_FIRST)]
            self._ascents += 1
        diameter = self._diameter(state.point)
        direction = unit(candidate.step, "l2")
        ends = [engine.state(view.move(state.point, sign * 0.02 * first[0] * diameter * direction)) for sign in (1.0, -1.0)]
        z = max(ends, key=lambda end: pair_gain(view, state, end, self.norm))
        if norm_of((z.point - state.point)[view.inputs], "l2") < spread(view, state.point, 1e-6 * diameter):
            return
        pair = ascend(view, state, z, self.norm, first[1] * diameter, min(left, max(0.06 * self._length, 300.0)))
        family = candidate.family.split(",")[0] + ", pair ascent"
        self._keep_pair(pair, family)
        probes, rounds = self._probes()
        for t in (0.0, 0.25, 0.5, 0.75, 1.0):
            if self._used >= limit:
                return
            point = engine.problem.clip((1 - t) * pair.x.point + t * pair.z.point)
            middle = engine.state(point)
            start = unit((pair.z.point - pair.x.point)[view.inputs], self.norm)
            found = worst_direction(view, middle, self.norm, rng, rounds=rounds, probes=probes, start=start)
            self._keep_local(middle, found, family)

    def _local_moves(self, rng: np.random.Generator, limit: float, count: int) -> None:
        """Random moves around the best local candidate; a gain is kept, the step adapts."""
        view = self.view
        local = [candidate for candidate in self.best() if candidate.local]
        if not local:
            return
        best = local[int(rng.integers(0, min(len(local), 6))) if rng.random() < 0.3 else 0]
        probes, rounds = self._probes()
        for _ in range(count):
            if self._used >= limit:
                return
            # Sizes of all orders: pieces of a piecewise linear function can be tiny.
            size = 10.0 ** rng.uniform(-3.5, -0.5)
            sparse = rng.random(view.size) < rng.choice([0.02, 0.2, 1.0])
            moves = rng.standard_normal(view.size) * sparse * width(view.engine.problem, self._scale(best.point))[view.inputs]
            state = view.engine.state(view.move(best.point, size * moves))
            found = worst_direction(view, state, self.norm, rng, rounds=max(1, rounds - 1), probes=probes, start=unit(best.step, self.norm))
            if found.gain > best.gain:
                best = self._keep_local(state, found, best.family.removesuffix(", local moves") + ", local moves")

    def _restart(self, rng: np.random.Generator, limit: float) -> None:
        """An ascent from the best of a few fresh scouts."""
        probes, rounds = self._probes()
        best: tuple[Candidate, State] | None = None
        for start in islice(self._fresh, int(rng.choice([1, 4, 12]))):
            if self._used >= limit:
                break
            state = self.view.engine.state(start.point)
            if not np.isfinite(self.view.value(state)).all():
                continue
            direction = worst_direction(self.view, state, self.norm, rng, rounds=rounds, probes=probes)
            if direction.gain > 0 and (best is None or direction.gain > best[0].gain):
                step = direction.tangent * self._reach(state.point)
                best = Candidate(direction.gain, state.point, step, start.family, local=True), state
        if best is not None:
            self.found.append(best[0])
            self._ascend_from(*best, rng, limit)

    def _polish(self, rng: np.random.Generator) -> None:
        """More rounds at the two best points: matters where the Jacobian is large."""
        probes, _ = self._probes()
        rounds = max(1, int(0.1 * self._length / (4 * (2.5 + 2 * probes))))
        for candidate in [c for c in self.best() if c.local][:2]:
            state = self.view.engine.state(candidate.point)
            start = unit(candidate.step, self.norm)
            found = worst_direction(self.view, state, self.norm, rng, rounds=min(rounds, 60), probes=probes, start=start)
            self._keep_local(state, found, candidate.family)

    def _evolve(self, rng: np.random.Generator) -> None:
        """Without derivatives: random pairs, then mutations of the best pair's point and direction."""
        view, engine = self.view, self.view.engine
        best: Pair | None = None
        family = ""
        draws = self._fresh
        while self._used < 0.4:
            start = next(draws)
            x = engine.state(start.point)
            pair = self._pair_along(x, unit(rng.standard_normal(view.size), self.norm), 10.0)
            if pair is not None and (best is None or pair.gain > best.gain):
                best, family = pair, start.family
                self._keep_pair(pair, f"{family}, random pair")
            self._tell()
        size = 0.5
        while best is not None and self._used < 1.0:
            step = unit((best.z.point - best.x.point)[view.inputs], "l2") * np.sqrt(view.size)
            sparse = rng.random(view.size) < rng.choice([0.05, 0.3, 1.0])
            direction = unit(step + size * 2 * rng.standard_normal(view.size) * sparse, self.norm)
            shift = width(engine.problem, self._scale(best.x.point))[view.inputs] * rng.standard_normal(view.size)
            moved = rng.random() < 0.5
            x = engine.state(view.move(best.x.point, 0.1 * size * shift)) if moved else best.x
            pair = self._pair_along(x, direction, float(rng.choice([1.0, 10.0, 100.0])))
            if pair is not None and pair.gain > best.gain:
                best, size = pair, min(1.0, size * 1.3)
                self._keep_pair(pair, f"{family}, evolution")
            else:
                size = max(0.02, size * 0.95)
            self._tell()

    def _pair_along(self, x: State, direction: Floats, stretch: float) -> Pair | None:
        z = self.view.engine.state(self.view.move(x.point, direction * (self._reach(x.point) * stretch)))
        gain = pair_gain(self.view, x, z, self.norm)
        return Pair(x, z, gain) if gain > 0 else None
