"""Gain against depth, with and without residual shortcuts, for two initialisations.

He et al. 2015 (arXiv 1512.03385) for the shortcut, He et al. 2015 (arXiv 1502.01852) for the initialisation.
"""

from __future__ import annotations

import math

import onnx

from studies.nets import Net
from studies.study import Line, Outcome, Panel, Study, audited, slope

__all__ = ["run"]

_KINDS = {
    "plain, He": (False, 1.0),
    "plain, half of He's variance": (False, math.sqrt(0.5)),
    "x + relu(W x), He": (True, 1.0),
}


def build(shortcut: bool, factor: float, depth: int, width: int) -> onnx.ModelProto:
    """A stack of ReLU layers."""
    b = Net("depth", width, depth)
    x = b.input("x", [1, width])
    for i in range(depth):
        y = b.relu_layer(x, f"layers.{i}", factor)
        x = b.node("Add", x, y, scope=f"layers.{i}") if shortcut else y
    b.output(x, "y", [1, width])
    return b.model()


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes fewer and smaller networks."""
    width, depths = (24, (4, 8, 16)) if fast else (64, (2, 4, 8, 16, 32, 64))
    rows: list[list[str]] = []
    lines: list[Line] = []
    rates: dict[str, tuple[float, float]] = {}
    for kind, (shortcut, factor) in _KINDS.items():
        certified: list[tuple[float, float]] = []
        measured: list[tuple[float, float]] = []
        for depth in depths:
            audit = audited(build(shortcut, factor, depth, width))
            above, below = audit.certified.log10, audit.measured.log10
            assert above is not None and below is not None
            certified.append((depth, above))
            measured.append((depth, below))
            rows.append([kind, str(depth), f"{above:.2f}", f"{below:.2f}"])
        lines += [Line(f"{kind}: certified", certified), Line(f"{kind}: measured", measured, dashed=True)]
        rates[kind] = slope(depths, [y for _, y in certified]), slope(depths, [y for _, y in measured])
    plain, half, residual = (rates[kind] for kind in _KINDS)
    outcomes = [
        Outcome(f"With half of He's variance the measured gain vanishes: {half[1]:+.3f} decades a layer.", half[1] < -0.08),
        Outcome(f"With a shortcut it does not: {residual[1]:+.3f}.", residual[1] > 0.05),
        Outcome(f"He's variance keeps it level without one: {plain[1]:+.3f}.", abs(plain[1]) < 0.1),
        Outcome(
            f"The shortcut does not lower the certified gain ({residual[0]:.2f} decades a layer against {plain[0]:.2f}), which loosens "
            "exponentially with depth in every case.",
            residual[0] > plain[0] > plain[1] + 0.2,
        ),
    ]
    return Study(
        "depth", "Gain against depth", f"Stacks of ReLU layers of width {width}, random weights; log10 of the gain on all reals.",
        ("network", "depth", "certified", "measured"), rows,
        [Panel("Gain of the whole network", "depth", "log10 gain", lines, log_x=False)],
        outcomes,
    )  # fmt: skip
