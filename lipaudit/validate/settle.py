"""From what the float32 search believes to pairs that are proved in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipaudit.validate.confirm import Confirmer, Proof, Quotient, Unconfirmed
from lipaudit.validate.direction import View
from lipaudit.validate.search import Candidate
from lipaudit.validate.starts import starts

__all__ = ["Settler"]

Floats = NDArray[np.float64]

# Fractions of the candidate's step at which a local slope is tried: smaller ones for as long as they prove more (a slope may hold in a tiny
# piece only), the large one where the first proves nothing.
_FRACTIONS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
_LARGE = 10.0


@dataclass
class Settler:
    """Confirms candidates and remembers every pair that it evaluated; ``complaint`` is the first reason for a refusal."""

    confirmer: Confirmer
    proofs: list[Proof] = field(default_factory=list)
    complaint: str = ""

    def settle(self, view: View, candidates: Sequence[Candidate], sources: Sequence[str], exits: Sequence[str], share: int) -> None:
        """Confirm the best candidates with at most ``share`` pairs. Raises OutOfTime at the limit; ``proofs`` stays valid."""
        best, used = 0.0, 0
        for candidate in candidates:
            if used >= share or candidate.gain <= best:
                break
            top = 0.0
            for fraction in _FRACTIONS if candidate.local else (1.0,):
                if used >= share:
                    break
                used += 1
                found = self.prove(*self._pair(view, candidate, fraction), candidate.family, sources, exits)
                if found is None and fraction == 1.0 and candidate.local:
                    used += 1
                    found = self.prove(*self._pair(view, candidate, _LARGE), candidate.family, sources, exits)
                value = 0.0 if found is None else float(found.lower)
                if value <= top:
                    break
                top, best = value, max(best, value)
                if value >= 0.999 * candidate.gain:
                    break

    def wide(self, view: View, sources: Sequence[str], exits: Sequence[str], seed: Sequence[int], share: int) -> None:
        """Far pairs at growing scales: for functions whose differences are lost in float32."""
        problem = view.engine.problem
        rng = np.random.default_rng(list(seed))
        draws = starts(problem, rng)
        points = [next(draws) for _ in range(4)]
        for k in range(share):
            scale = 1.0 if problem.bounded else 10.0 ** (k % 7)
            a, b = points[k % 4].point, points[(k + 1 + k // 4) % 4].point
            x = problem.clip(a * scale)
            y = view.move(x, (problem.clip(b * scale) - x)[view.inputs])
            found = self.prove(x, y, "far pair", sources, exits)
            if found is not None and k >= 3:
                return

    def explore(self, view: View, candidates: Sequence[Candidate], seed: Sequence[int], count: int) -> None:
        """Pairs at diverse points, for the gains of regions."""
        rng = np.random.default_rng(list(seed))
        for i, candidate in enumerate(candidates[:count]):
            step = candidate.step
            if i % 2:
                noise = rng.standard_normal(step.size)
                step = noise * (np.linalg.norm(step) / max(float(np.linalg.norm(noise)), 1e-300))
            local = Candidate(candidate.gain, candidate.point, step, candidate.family, local=True)
            self.prove(*self._pair(view, local, 1.0), candidate.family, (), ())

    def best(self, sources: Sequence[str], exits: Sequence[str], *, held: Sequence[str] = ()) -> tuple[Proof, Quotient] | None:
        """The proof with the largest gain from ``sources`` to ``exits`` among the pairs that agree on ``held``."""
        found: tuple[Proof, Quotient] | None = None
        for proof in self.proofs:
            if any(not proof.moves[name].high.is_zero for name in held):
                continue
            quotient = self.confirmer.quotient(proof, sources, exits)
            if quotient is not None and (found is None or quotient.lower > found[1].lower):
                found = proof, quotient
        return found

    @staticmethod
    def _pair(view: View, candidate: Candidate, fraction: float) -> tuple[Floats, Floats]:
        problem = view.engine.problem
        if not candidate.local:
            return candidate.point, view.move(candidate.point, candidate.step)
        half = np.zeros(problem.size)
        half[view.inputs] = candidate.step * (0.5 * fraction)
        # Away from the faces, so that neither end is cut off.
        lo, hi = problem.lo + np.abs(half), problem.hi - np.abs(half)
        middle = np.where(lo <= hi, np.minimum(np.maximum(candidate.point, lo), hi), candidate.point)
        outside = np.ones(problem.size, dtype=np.bool_)
        outside[view.inputs] = False
        middle[outside] = candidate.point[outside]
        return problem.clip(middle - half), problem.clip(middle + half)

    def prove(self, x: Floats, y: Floats, family: str, sources: Sequence[str], exits: Sequence[str]) -> Quotient | None:
        """Confirm one pair and remember it; None if it proves nothing for ``sources`` and ``exits``. Raises OutOfTime."""
        if np.array_equal(x, y):
            return None
        try:
            proof = self.confirmer.prove(x, y, family)
        except Unconfirmed as reason:
            self.complaint = self.complaint or str(reason)
            return None
        self.proofs.append(proof)
        return self.confirmer.quotient(proof, sources, exits) if exits else None
