"""Gradient per layer at initialisation for five activations.

Glorot, Bengio 2010 (variance 1 / width), He et al. 2015 (arXiv 1502.01852; variance 2 / width).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from studies.nets import Net
from studies.study import Line, Outcome, Panel, Study, audited, exits

__all__ = ["run"]

# Activation: variance times width.
_KINDS: Mapping[str, float] = {"Sigmoid": 1.0, "Tanh": 1.0, "Relu": 2.0, "Gelu": 2.0, "Silu": 2.0}


def build(activation: str, gain: float, depth: int, width: int) -> onnx.ModelProto:
    """Linear layers with an activation after each."""
    b = Net("initialisation", width, 11)
    b.opset = 20
    x = b.input("x", [1, width])
    for i in range(depth):
        scope = f"layers.{i}"
        x = b.square(x, scope, gain)
        x = b.node("Mul", x, b.node("Sigmoid", x, scope=scope), scope=scope) if activation == "Silu" else b.node(activation, x, scope=scope)
    b.output(x, "y", [1, width])
    return b.model()


def run(fast: bool = False) -> Study:
    """Measure; ``fast`` takes smaller networks."""
    width, depth = (32, 10) if fast else (64, 20)
    rows: list[list[str]] = []
    lines: list[Line] = []
    rates: dict[str, float] = {}
    for kind, gain in _KINDS.items():
        audit = audited(build(kind, gain, depth, width))
        end = "Mul" if kind == "Silu" else kind
        found = {name: v for name, v in exits(audit, "backward_log10").items() if name.startswith("/layers") and f"/{end}" in name}
        places = [(int(name.split("/")[1].split(".")[1]) + 1, v) for name, v in found.items()]
        places = sorted(dict(places).items())
        rates[kind] = (places[-1][1] - places[0][1]) / -(places[-1][0] - places[0][0])
        lines.append(Line(kind, places))
        variance = "1 / width" if gain == 1.0 else "2 / width"
        above, below = audit.certified.log10, audit.measured.log10
        assert above is not None and below is not None
        rows.append([kind, variance, f"{rates[kind]:+.3f}", f"{above / depth:+.3f}", f"{below / depth:+.3f}"])
    outcomes = [
        Outcome(f"Sigmoid: gradients vanish, {rates['Sigmoid']:+.2f} decades a layer.", rates["Sigmoid"] < -0.5),
        Outcome(
            f"Tanh and ReLU keep them: {rates['Tanh']:+.3f} and {rates['Relu']:+.3f}.", max(abs(rates[k]) for k in ("Tanh", "Relu")) < 0.08
        ),
        Outcome(
            f"GELU and SiLU lose a little with He's variance ({rates['Gelu']:+.2f}, {rates['Silu']:+.2f}): they need a gain of their own.",
            all(-0.35 < rates[k] < -0.05 for k in ("Gelu", "Silu")),
        ),
    ]
    return Study(
        "initialisation", "Initialisation and activation", f"{depth} layers of width {width}; gradients at typical inputs.",
        ("activation", "variance of the weights", "decades of gradient a layer", "certified a layer", "measured a layer"), rows,
        [Panel("Gradient at the exit of each layer", "layer", "log10 gradient", lines, log_x=False)], outcomes,
    )  # fmt: skip
