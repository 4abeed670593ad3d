"""A recurrent network: one LSTM over 12 steps, then a linear layer on the last hidden state.

The initial states are zero, so the only source is the sequence. The gain grows with the number of steps; the gates
multiply, which is why the range of the cell state matters.
"""

from __future__ import annotations

import numpy as np
import onnx
from builder import Builder, rng, save

STEPS, WIDTH, HIDDEN = 12, 8, 10


def build() -> onnx.ModelProto:
    """Return the model."""
    random, b = rng(808), Builder("lstm")
    x = b.input("sequence", [STEPS, "batch", WIDTH])

    def normal(*shape: int, scale: float) -> str:
        return b.weight(f"lstm.{len(b.weights)}", (scale * random.standard_normal(shape)).astype(np.float32))

    inputs, recurrent = normal(1, 4 * HIDDEN, WIDTH, scale=0.2), normal(1, 4 * HIDDEN, HIDDEN, scale=0.15)
    bias = normal(1, 8 * HIDDEN, scale=0.1)
    last = b.nodes_of("LSTM", x, inputs, recurrent, bias, outputs=3, hidden_size=HIDDEN)[1]
    last = b.node("Squeeze", last, b.weight("direction", np.array([0], np.int64)))
    y = b.gemm(last, (0.4 * random.standard_normal((3, HIDDEN))).astype(np.float32), np.zeros(3, np.float32), "head")
    b.output(y, "scores", ["batch", 3])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
