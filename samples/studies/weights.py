"""How the gain of an attention branch and of an MLP branch follows the size of their weights.

The output of an attention branch is linear in two of its matrices and its weights depend on the two others; trained transformers are
known to diverge through the logits first (Zhai et al. 2023, arXiv 2303.06296).
"""

from __future__ import annotations

import math

import onnx

from studies.nets import Net
from studies.study import Line, Outcome, Panel, Study, audited, slope

__all__ = ["run"]

_TOKENS = 6


def build(kind: str, std: float, width: int) -> onnx.ModelProto:
    """LayerNormalization and one branch on rows."""
    b = Net("weights", width, 5)
    x = b.input("x", [1, _TOKENS, width])
    y = b.norm(x, "norm")
    y = b.attention(y, "attn", std) if kind == "attention" else b.mlp(y, "mlp", std=std)
    b.output(y, "y", [1, _TOKENS, width])
    return b.model()


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes fewer and smaller networks."""
    width, factors = (16, (0.5, 1, 2)) if fast else (32, (0.25, 0.5, 1, 2, 4))
    rows: list[list[str]] = []
    lines: list[Line] = []
    rates: dict[str, tuple[float, float]] = {}
    logs = [math.log10(factor) for factor in factors]
    for kind in ("attention", "MLP"):
        certified: list[float] = []
        measured: list[float] = []
        for factor in factors:
            audit = audited(build(kind, factor, width))
            above, below = audit.certified.log10, audit.measured.log10
            assert above is not None and below is not None
            certified.append(above)
            measured.append(below)
            rows.append([kind, f"{factor:g}", f"{above:.2f}", f"{below:.2f}"])
        rates[kind] = slope(logs, certified), slope(logs, measured)
        lines += [Line(f"{kind}: certified", list(zip(factors, certified, strict=True)))]
        lines += [Line(f"{kind}: measured", list(zip(factors, measured, strict=True)), dashed=True)]
    outcomes = [
        Outcome(
            f"The {'measured' if i else 'certified'} gain of an attention branch grows like the weights to the power "
            f"{rates['attention'][i]:.1f}, that of an MLP branch like {rates['MLP'][i]:.1f}.",
            rates["attention"][i] > rates["MLP"][i] + 0.3,
        )
        for i in (0, 1)
    ]
    return Study(
        "weights", "Sensitivity to the size of the weights", f"One branch behind LayerNormalization, {_TOKENS} rows of width {width}.",
        ("branch", "factor of the weights", "certified", "measured"), rows,
        [Panel("Gain of the branch", "factor of the weights", "log10 gain", lines)], outcomes,
    )  # fmt: skip
