"""From a kernel and its window to a verified bound on a twisted torus: block form, choice of the torus, sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.blocks import block_taps
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.grid import cells, everywhere
from lipaudit.bounds.lags import Lags, Peak
from lipaudit.bounds.scalar import INFINITE, Lower, Upper
from lipaudit.bounds.sweep import scalar_sweep, sweep
from lipaudit.bounds.torus import Torus, candidates, grid_factor
from lipaudit.bounds.window import Axis, AxisForm

__all__ = ["Symbol", "scalar_bounds", "symbol_norm"]

Floats = NDArray[np.float64]

BUDGET = 60.0
"""Estimated seconds above which no sweep is tried."""

GRID_FROM = 2.0
"""Estimated seconds of a torus from which the image-independent grid is taken if it is smaller."""

CHEAP = 0.05
"""Estimated seconds up to which several tori are swept for a small image."""

GRID = "uniform grid of frequencies"
"""Name of the image-independent method."""

SIZE_PRICE = 0.05
"""A torus with p % more frequencies must score this share of p % lower to be taken: scores of flat symbols are guesses."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """Result of :func:`symbol_norm`.

    ``start`` is a vector to iterate from ("in" or "out" side, shape with a batch of 1). ``lower`` is given for a single block tap: it
    is valid if some output meets every tap.
    """

    upper: Upper
    method: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[str, Floats] | None = None
    lower: Lower | None = None


def _prepared(matrix: Floats, window: Sequence[Axis]) -> tuple[Floats, list[AxisForm], bool, int]:
    """Block taps [groups, c, n_1, .., n_d, L] with c <= L and magnitudes up to 1; the forms; whether c are the outputs; the exponent."""
    forms = [axis.form() for axis in window]
    blocks = block_taps(matrix, window, forms)
    peak = float(np.max(np.abs(blocks)))
    exponent = math.frexp(peak)[1] if peak else 0
    outputs = blocks.shape[1] <= blocks.shape[-1]
    blocks = np.ldexp(blocks, -exponent)
    return (blocks if outputs else np.ascontiguousarray(np.swapaxes(blocks, 1, -1))), forms, outputs, exponent


def scalar_bounds(matrix: Floats, window: Sequence[Axis]) -> list[Upper]:
    """An upper bound of the norm of every group, where each group has one input or one output channel (vectorised over groups)."""
    taps, forms, _, exponent = _prepared(matrix, window)
    counts = [form.count for form in forms]
    if taps.shape[1] > 1:  # strides give a single input channel several phases
        return [INFINITE] * matrix.shape[0]
    lags = Lags(taps)
    tops, _ = _tops(lags, candidates([form.least for form in forms], counts))
    scale = Upper.from_dyadic(1, exponent)
    return [(Upper(max(0.0, float(top))) + lags.error).sqrt() * scale for top in tops.min(axis=0)]


def symbol_norm(matrix: Floats, window: Sequence[Axis], slack: float) -> Symbol:
    """Verified l2 bound of a convolution by its symbol.

    ``matrix`` is the finite kernel [groups, o/groups, c/groups, taps]; every axis of ``window`` meets at least one pixel. The upper
    value is INFINITE if no sweep was affordable.
    """
    taps, forms, outputs, exponent = _prepared(matrix, window)
    counts, least = [form.count for form in forms], [form.least for form in forms]
    groups, side = taps.shape[:2]
    scale = Upper.from_dyadic(1, exponent)
    if not taps.any():
        return Symbol(Upper(0), "zero kernel")
    if math.prod(counts) == 1:
        found = [dense_norm(taps[g].reshape(side, -1), "l2", slack) for g in range(groups)]
        top = max(found, key=lambda item: item.upper)
        evidence = {**top.evidence, "exponent": top.evidence.get("exponent", 0) + exponent, "group": found.index(top)}
        return Symbol(
            top.upper * scale,
            f"single tap: {top.method}",
            evidence,
            lower=max(item.lower for item in found) * Lower.from_dyadic(1, exponent),
        )
    if not _affordable(groups, side, least, counts):
        return Symbol(INFINITE, "no affordable torus")
    lags = Lags(taps)
    options = candidates(least, counts)
    if lags.side == 1:
        return _scalars(lags, options, scale, exponent)
    peaks = lags.peaks()
    square, evidence, method, summit = _best(lags, options, peaks, slack)
    upper = square.sqrt() * scale if square.is_finite else INFINITE
    return Symbol(upper, method, {**evidence, "exponent": exponent}, _wave(summit, window, forms, groups, outputs))


def _seconds(groups: int, side: int, frequencies: float) -> float:
    """Rough time of a sweep on one core (only decides between methods)."""
    return frequencies * groups * (5.3 * side**3 / 2e10 + 60.0 * side**2 / 1e10 + 4e-6)


def _affordable(groups: int, side: int, least: Sequence[int], counts: Sequence[int]) -> bool:
    frequencies = math.prod(min(n, 48 * (k - 1)) if k > 1 else 1 for n, k in zip(least, counts, strict=True)) / 2
    lags = math.prod(2 * k - 1 for k in counts) / 2
    return side == 1 or (_seconds(groups, side, frequencies) <= BUDGET and 16.0 * lags * groups * side * side < 2e9)


def _tops(lags: Lags, options: Sequence[Torus]) -> tuple[Floats, Sequence[Torus]]:
    """Largest symbol value per torus and group, and the tori that were tried (one where images are large: all agree there)."""
    if math.prod(options[0].sizes) > 1 << 14:
        options = options[:1]
    return np.stack([scalar_sweep(lags, torus) for torus in options]), options


def _scalars(lags: Lags, options: Sequence[Torus], scale: Upper, exponent: int) -> Symbol:
    """Depthwise: per group the smallest maximum over all tori, then the largest over the groups."""
    tops, options = _tops(lags, options)
    per_group = tops.min(axis=0)
    group = int(np.argmax(per_group))
    torus = options[int(np.argmin(tops[:, group]))]
    square = Upper(max(0.0, float(per_group[group]))) + lags.error
    evidence = {"torus": list(torus.sizes), "twist": list(torus.twists), "group": group, "exponent": exponent}
    return Symbol(square.sqrt() * scale, "twisted torus, scalar symbols", evidence)


def _best(lags: Lags, options: Sequence[Torus], peaks: Sequence[Peak], slack: float) -> tuple[Upper, dict[str, Any], str, Peak]:
    """Smallest proved square among the tori worth sweeping."""
    cost = _seconds(lags.groups, lags.side, math.prod(options[0].sizes) / 2)
    counts = lags.counts
    polynomials = lags.polynomials(peaks)
    grid = Torus(cells(counts), (0,) * len(counts))
    if cost > GRID_FROM and math.prod(grid.sizes) < 0.67 * math.prod(options[0].sizes):
        found = everywhere(lags, polynomials, slack)
        if found is not None:
            return found.square, found.evidence, f"{GRID}, refined", found.peak
        found = sweep(lags, grid, polynomials, slack)
        if found is not None:
            factor = grid_factor(counts, grid.sizes)
            return found.square * factor * factor, {**found.evidence, "factor": factor.decimal(8)}, GRID, found.peak
    scored = [(float(np.max(lags.scores(torus, torus.frequencies(), polynomials))), torus) for torus in options]
    fewest = math.prod(options[0].sizes)
    chosen = [min(scored, key=lambda item: item[0] * (1 + SIZE_PRICE * (math.prod(item[1].sizes) / fewest - 1)))[1]]
    if cost <= CHEAP and min(size for size in options[0].sizes if size > 1) <= 18:
        chosen += [torus for _, torus in sorted(scored, key=lambda item: item[0])[:3]]
        chosen += [torus for torus in options if not any(torus.twists)][:1]
    best: tuple[Upper, dict[str, Any], str, Peak] = (INFINITE, {}, "no torus could be proved", peaks[0])
    for torus in dict.fromkeys(chosen):
        found = sweep(lags, torus, polynomials, slack, float(best[0]))
        if found is not None and found.square < best[0]:
            best = (found.square, found.evidence, "twisted torus", found.peak)
    return best


def _wave(peak: Peak, window: Sequence[Axis], forms: Sequence[AxisForm], groups: int, outputs: bool) -> tuple[str, Floats]:
    """A windowed plane wave with the frequency and vector of a peak: nearly what the operator stretches most."""
    carriers: list[NDArray[np.complex128]] = []
    for axis, form, frequency in zip(window, forms, peak.frequency, strict=True):
        size = axis.outputs if outputs else axis.image
        phases = (0,) if outputs else form.phases
        step = form.out_step if outputs else form.in_step
        carrier = np.zeros((len(phases), size), dtype=np.complex128)
        for k, phase in enumerate(phases):
            places = np.arange(phase, size, step)
            blocks = np.arange(places.size)
            carrier[k, places] = np.exp(1j * frequency * blocks) * np.sin(np.pi * (blocks + 1) / (blocks.size + 1))
        carriers.append(carrier)
    vector = peak.vector if outputs else peak.vector.conj()
    wave = vector.reshape(*(carrier.shape[0] for carrier in carriers), -1)
    for carrier in carriers:
        wave = np.tensordot(wave, carrier, axes=(0, 0))  # the leading phase axis becomes the trailing pixel axis
    values = np.zeros((groups, *wave.shape))
    values[peak.group] = wave.real
    return ("out" if outputs else "in"), values.reshape(1, groups * wave.shape[0], *wave.shape[1:])
