"""Pre-norm, post-norm and DeepNorm: the size of the stream and of gradients.

Xiong et al. 2020 (arXiv 2002.04745) for pre- and post-norm, Wang et al. 2022 (DeepNet, arXiv 2203.00555) for DeepNorm.
"""

from __future__ import annotations

import math

import onnx

from studies.nets import Net
from studies.study import Line, Outcome, Panel, Study, audited, exits, slope

__all__ = ["run"]

_KINDS = ("pre-norm", "post-norm", "DeepNorm")


def build(kind: str, depth: int, width: int) -> onnx.ModelProto:
    """A stack of MLP branches with normalizations; the pre-norm one ends with a normalization."""
    b = Net("norms", width, depth)
    x = b.input("x", [1, width])
    # DeepNorm for an encoder of L blocks of one branch each.
    alpha, beta = (1.0, 1.0) if kind != "DeepNorm" else (depth**0.25, (4 * depth) ** -0.25)
    for i in range(depth):
        scope = f"blocks.{i}"
        if kind == "pre-norm":
            x = b.node("Add", x, b.mlp(b.norm(x, f"{scope}.norm"), scope), scope=scope)
            continue
        kept = x if alpha == 1.0 else b.node("Mul", x, b.scalar(f"{scope}.alpha", alpha), scope=scope)
        x = b.norm(b.node("Add", kept, b.mlp(x, scope, beta), scope=scope), f"{scope}.norm")
    if kind == "pre-norm":
        x = b.norm(x, "norm")
    b.output(x, "y", [1, width])
    return b.model()


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes fewer and smaller networks."""
    width, depths = (24, (4, 8, 16)) if fast else (64, (4, 8, 16, 32, 64))
    rows: list[list[str]] = []
    size: dict[str, list[float]] = {}
    last: dict[str, list[float]] = {}
    fall: dict[str, list[float]] = {}
    for kind in _KINDS:
        for depth in depths:
            audit = audited(build(kind, depth, width))
            end = "Add" if kind == "pre-norm" else "LayerNormalization"
            forward, backward = ({n: v for n, v in exits(audit, fact).items() if n.startswith("/blocks") and end in n}
                                 for fact in ("forward_rms_log10", "backward_log10"))  # fmt: skip
            stream, gradient = list(forward.values()), list(backward.values())
            size.setdefault(kind, []).append(stream[-1])
            # For post-norm the last block ends at the output, whose gradient is 1 by definition: the value before it is looked at.
            last.setdefault(kind, []).append(gradient[-1] if kind == "pre-norm" else gradient[-2])
            fall.setdefault(kind, []).append((gradient[-2] - gradient[0]) / (len(gradient) - 2))
            rows.append([kind, str(depth), f"{size[kind][-1]:.2f}", f"{last[kind][-1]:.2f}", f"{fall[kind][-1]:+.3f}"])
    logs = [math.log10(depth) for depth in depths]
    rates = {kind: (slope(logs, size[kind]), slope(logs, last[kind])) for kind in _KINDS}
    outcomes = [
        Outcome(
            f"Pre-norm: the stream grows like L^{rates['pre-norm'][0]:.2f}, and the gradient of the last block falls like "
            f"L^{rates['pre-norm'][1]:.2f}: each further block counts for less.",
            0.3 < rates["pre-norm"][0] < 0.7 and -0.7 < rates["pre-norm"][1] < -0.3,
        ),
        *(
            Outcome(
                f"{kind}: the stream keeps size 1 (L^{rates[kind][0]:+.2f}) and so does the gradient (L^{rates[kind][1]:+.2f}).",
                abs(rates[kind][0]) < 0.05 and abs(rates[kind][1]) < 0.15,
            )
            for kind in _KINDS[1:]
        ),
        Outcome(
            "Gradients of post-norm do not vanish at initialisation with ReLU branches, against what is often said: at most "
            f"{max(abs(f) for f in fall['post-norm'][-2:]):.3f} decades a block in the deep ones.",
            max(abs(f) for f in fall["post-norm"][-2:]) < 0.05,
        ),
    ]
    lines = [[Line(kind, list(zip(depths, found[kind], strict=True))) for kind in _KINDS] for found in (size, last)]
    return Study(
        "norms", "Where the normalization stands", f"Stacks of MLP branches of width {width} with LayerNormalization, typical inputs.",
        ("kind", "depth L", "log10 rms of the stream", "log10 gradient at the last block", "decades of gradient a block"), rows,
        [Panel("Size of the stream behind the last block", "depth", "log10 rms", lines[0]),
         Panel("Gradient at the last block", "depth", "log10 gradient", lines[1])],
        outcomes,
    )  # fmt: skip
