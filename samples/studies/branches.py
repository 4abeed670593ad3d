"""Residual branches scaled by 1, 1/sqrt(2L) and 1/L.

Zhang, Dauphin, Ma 2019 (Fixup, arXiv 1901.09321) and Qi et al. 2023 (LipsFormer, arXiv 2304.09856) scale branches by depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import onnx

from studies.nets import Net
from studies.study import Line, Outcome, Panel, Study, audited, exits, slope

__all__ = ["run"]

_FACTORS: Mapping[str, Callable[[int], float]] = {
    "1": lambda depth: 1.0,
    "1/sqrt(2L)": lambda depth: 1 / math.sqrt(2 * depth),
    "1/L": lambda depth: 1 / depth,
}


def build(factor: float, depth: int, width: int) -> onnx.ModelProto:
    """A stack of x + factor * W2 relu(W1 x)."""
    b = Net("branches", width, depth)
    x = b.input("x", [1, width])
    for i in range(depth):
        x = b.node("Add", x, b.mlp(x, f"blocks.{i}", factor), scope=f"blocks.{i}")
    b.output(x, "y", [1, width])
    return b.model()


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes fewer and smaller networks."""
    width, depths = (24, (4, 8, 16)) if fast else (64, (4, 8, 16, 32, 64))
    rows: list[list[str]] = []
    lines: list[Line] = []
    sizes: list[Line] = []
    certified: dict[str, list[float]] = {}
    measured: dict[str, list[float]] = {}
    grown: dict[str, list[float]] = {}
    for kind, factor in _FACTORS.items():
        for depth in depths:
            audit = audited(build(factor(depth), depth, width))
            above, below = audit.certified.log10, audit.measured.log10
            assert above is not None and below is not None
            # Rms of the stream behind the last block over that behind the first.
            stream = [size for name, size in exits(audit, "forward_rms_log10").items() if name.startswith("/blocks") and "Add" in name]
            certified.setdefault(kind, []).append(above)
            measured.setdefault(kind, []).append(below)
            grown.setdefault(kind, []).append(stream[-1] - stream[0] if stream else math.nan)
            rows.append([kind, str(depth), f"{above:.2f}", f"{below:.2f}", f"{grown[kind][-1]:+.2f}"])
        lines += [Line(f"{kind}: certified", list(zip(depths, certified[kind], strict=True)))]
        lines += [Line(f"{kind}: measured", list(zip(depths, measured[kind], strict=True)), dashed=True)]
        sizes += [Line(kind, list(zip(depths, grown[kind], strict=True)))]
    logs = [math.log10(depth) for depth in depths]
    root, whole, none = (certified[kind] for kind in ("1/sqrt(2L)", "1/L", "1"))
    power = slope(logs, [math.log10(value) for value in root])
    # Each depth draws its own weights, so the steps between depths are not ordered one by one; the limit is about |W2| |W1| / ln 10 = 2.5.
    added = [b - a for a, b in pairwise(whole)]
    outcomes = [
        Outcome(
            f"Factor 1: the measured gain grows by {slope(depths, measured['1']):.2f} decades a block, the certified one by "
            f"{slope(depths, none):.2f}.",
            slope(depths, measured["1"]) > 0.1 and slope(depths, none) > 0.5,
        ),
        Outcome(
            f"Factor 1/sqrt(2L): the stream keeps its size (at most {max(abs(g) for g in grown['1/sqrt(2L)']):.2f} decades) and the log of "
            f"the certified gain grows like L^{power:.2f}.",
            max(abs(g) for g in grown["1/sqrt(2L)"]) < 0.3 and 0.3 < power < 0.7,
        ),
        Outcome(
            f"Factor 1/L: the certified gain has a bound whatever the depth: {whole[0]:.2f} to {whole[-1]:.2f} decades, the first doubling "
            f"adds {added[0]:.2f}, the last one {added[-1]:.2f}.",
            whole[-1] < 2.5 and added[-1] < added[0] / 2,
        ),
    ]
    return Study(
        "branches", "Residual branches scaled by depth", f"Stacks of x + c W2 relu(W1 x) of width {width}; log10 of the gain on all reals.",
        ("c", "depth L", "certified", "measured", "growth of the stream"), rows,
        [Panel("Gain of the whole network", "depth", "log10 gain", lines), Panel("Growth of the stream", "depth", "log10 rms", sizes)],
        outcomes,
    )  # fmt: skip
