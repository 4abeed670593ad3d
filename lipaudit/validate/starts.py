"""Where to look: uniform draws in a box are all the same point (mean grey), so points come from several families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lipaudit.validate.problem import Part, Problem

__all__ = ["Start", "starts", "typical", "width"]

Floats = NDArray[np.float64]

# Elements without two finite ends are drawn at these scales in turn.
_SCALES = (1.0, 0.1, 10.0, 100.0, 1e-2)
_FIRST_GIVEN = 8
_FAMILIES = ("corners", "level", "sparse", "smooth", "uniform", "normal")


@dataclass(frozen=True, slots=True)
class Start:
    """A point, with the family and scale that it was drawn from (for the witness)."""

    point: Floats
    family: str
    scale: float


def width(problem: Problem, scale: float) -> Floats:
    """How far elements spread: the box's width, or twice ``scale`` where an end is infinite."""
    whole = problem.hi - problem.lo
    return np.where(np.isfinite(whole), whole, 2.0 * scale)


def _ends(problem: Problem, scale: float) -> tuple[Floats, Floats]:
    """The box, with a window of half-width ``scale`` where it is open."""
    low, high = np.isfinite(problem.lo), np.isfinite(problem.hi)
    lo = np.where(low, problem.lo, np.where(high, problem.hi - 2 * scale, -scale))
    hi = np.where(high, problem.hi, np.where(low, problem.lo + 2 * scale, scale))
    return lo, hi


def starts(problem: Problem, rng: np.random.Generator) -> Iterator[Start]:
    """Endless points of the box: given ones, the centre, two corners, then the families in turn.

    Of many given points the later ones take turns with the others: they are one family among several.
    """
    given = [Start(point, "given", 1.0) for point in problem.given]
    yield from given[:_FIRST_GIVEN]
    later = iter(given[_FIRST_GIVEN:])
    for drawn in _drawn(problem, rng):
        yield drawn
        yield from islice(later, 1)


def typical(problem: Problem, rng: np.random.Generator, count: int) -> Iterator[Floats]:
    """``count`` ordinary points: given ones, then normal and uniform draws of scale 1 in turn (rows of its table for an embedding)."""
    yield from problem.given[:count]
    lo, hi = _ends(problem, 1.0)
    for i in range(count - len(problem.given)):
        parts = [_draw(part, ("normal", "uniform")[i % 2], rng) for part in problem.parts]
        yield problem.clip(_tables(problem, lo + (hi - lo) * np.concatenate(parts), rng))


def _drawn(problem: Problem, rng: np.random.Generator) -> Iterator[Start]:
    lo, hi = _ends(problem, 1.0)
    yield Start(problem.clip(_tables(problem, (lo + hi) / 2, rng)), "centre", 1.0)
    yield Start(problem.clip(_tables(problem, lo, rng)), "all low", 1.0)
    yield Start(problem.clip(_tables(problem, hi, rng)), "all high", 1.0)
    i = 0
    while True:
        family = _FAMILIES[i % len(_FAMILIES)]
        scale = 1.0 if problem.bounded else _SCALES[(i // 2) % len(_SCALES)]
        lo, hi = _ends(problem, scale)
        point = lo + (hi - lo) * np.concatenate([_draw(part, family, rng) for part in problem.parts])
        yield Start(problem.clip(_tables(problem, point, rng)), family, scale)
        i += 1


def _draw(part: Part, family: str, rng: np.random.Generator) -> Floats:
    """Elements in [0, 1] for one source."""
    n = part.place.stop - part.place.start
    if family == "corners":
        return (rng.random(n) < rng.random()).astype(np.float64)
    if family == "level":
        return np.clip(rng.random() + 0.02 * rng.standard_normal(n), 0.0, 1.0)
    if family == "sparse":
        background = float(rng.choice([0.0, 0.5, 1.0]))
        return np.where(rng.random(n) < 0.05, rng.random(n), background)
    if family == "smooth":
        noise = rng.standard_normal(part.shape)
        for axis, size in enumerate(part.shape):
            if size > 1:
                noise = np.cumsum(noise, axis=axis)
        flat = noise.reshape(-1)
        low, high = float(flat.min(initial=0.0)), float(flat.max(initial=1.0))
        return (flat - low) / (high - low) if high > low else np.full(n, 0.5)
    if family == "normal":
        return np.clip(0.5 + 0.25 * rng.standard_normal(n), 0.0, 1.0)
    return rng.random(n)


def _tables(problem: Problem, point: Floats, rng: np.random.Generator) -> Floats:
    """Embeddings start at rows of their table."""
    for part in problem.parts:
        if part.table is None or not len(part.table):
            continue
        rows = rng.integers(0, len(part.table), part.shape[:-1])
        point[part.place] = np.asarray(part.table[rows], dtype=np.float64).reshape(-1)
    return point
