"""A classifier of handwritten digits, really trained: 64-48-32-10, ReLU, on scikit-learn's digits (1,797 images, 8 x 8).

The training loop is numpy alone (Adam, weight decay, batches of 32); scikit-learn is needed only for the images, which
its package ships (`uv pip install --group samples`). The trained model is committed, with 32 images that training never saw
(`digits_mlp.inputs.npz`, an array ``x`` for ``--inputs``) and their labels (`digits_mlp.labels.npy`).

Pixels are scaled to [0, 1], so ``--input x=0:1`` is the domain of all possible images.
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import numpy as np
import onnx
from builder import MODELS, Builder, rng, save
from numpy.typing import NDArray

WIDTHS = (64, 48, 32, 10)
HELD_OUT = 360
EPOCHS, BATCH, RATE, DECAY = 60, 32, 2e-3, 1e-3

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]


def images() -> tuple[Floats, NDArray[np.int64]]:
    """Return all images, scaled to [0, 1] and shuffled, with their labels."""
    datasets = import_module("sklearn.datasets")  # by name: an optional dependency, absent where types are checked
    x, labels = datasets.load_digits(return_X_y=True)
    order = rng(1500).permutation(len(x))
    return np.asarray(x, np.float64)[order] / 16.0, np.asarray(labels, np.int64)[order]


def forward(layers: list[Layer], x: Floats) -> list[Floats]:
    """Return the input of every layer, and the logits at the end."""
    values = [x]
    for i, (weight, bias) in enumerate(layers):
        y = values[-1] @ weight.T + bias
        values.append(np.maximum(y, 0.0) if i < len(layers) - 1 else y)
    return values


def gradients(layers: list[Layer], x: Floats, labels: NDArray[np.int64]) -> list[Layer]:
    """Return the gradient of the mean cross entropy with respect to each layer."""
    values = forward(layers, x)
    shifted = np.exp(values[-1] - values[-1].max(axis=1, keepdims=True))
    delta = shifted / shifted.sum(axis=1, keepdims=True)
    delta[np.arange(len(x)), labels] -= 1.0
    delta /= len(x)
    result: list[Layer] = []
    for i in reversed(range(len(layers))):
        result.append((delta.T @ values[i], delta.sum(axis=0)))
        delta = (delta @ layers[i][0]) * (values[i] > 0)
    return result[::-1]


def train(x: Floats, labels: NDArray[np.int64]) -> list[Layer]:
    """Adam with decoupled weight decay from He's initialisation."""
    random = rng(1501)
    layers: list[Layer] = [(random.standard_normal((out, width)) * np.sqrt(2.0 / width), np.zeros(out)) for width, out in pairwise(WIDTHS)]
    first = [(np.zeros_like(w), np.zeros_like(b)) for w, b in layers]
    second = [(np.zeros_like(w), np.zeros_like(b)) for w, b in layers]
    step = 0
    for epoch in range(EPOCHS):
        rate = RATE * 0.5 * (1.0 + np.cos(np.pi * epoch / EPOCHS))
        order = random.permutation(len(x))
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            step += 1
            for i, slopes in enumerate(gradients(layers, x[batch], labels[batch])):
                updated: list[Floats] = []
                for j, slope in enumerate(slopes):
                    m, v = first[i][j], second[i][j]
                    m += 0.1 * (slope - m)
                    v += 0.001 * (slope * slope - v)
                    move = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                    decay = DECAY if j == 0 else 0.0
                    updated.append(layers[i][j] - rate * (move + decay * layers[i][j]))
                layers[i] = (updated[0], updated[1])
    return layers


def accuracy(layers: list[Layer], x: Floats, labels: NDArray[np.int64]) -> float:
    """Share of the images whose largest logit is their label."""
    return float((forward(layers, x)[-1].argmax(axis=1) == labels).mean())


def build() -> onnx.ModelProto:
    """Train, print the accuracies, write the held-out images, and return the model."""
    x, labels = images()
    layers = train(x[HELD_OUT:], labels[HELD_OUT:])
    print(f"accuracy: {accuracy(layers, x[HELD_OUT:], labels[HELD_OUT:]):.4f} on {len(x) - HELD_OUT} training images,")
    print(f"          {accuracy(layers, x[:HELD_OUT], labels[:HELD_OUT]):.4f} on {HELD_OUT} held-out images")
    np.savez_compressed(MODELS / "digits_mlp.inputs.npz", x=x[:32].astype(np.float32))
    np.save(MODELS / "digits_mlp.labels.npy", labels[:32])

    b = Builder("digits_mlp")
    value = b.input("x", ["batch", WIDTHS[0]])
    for i, (weight, bias) in enumerate(layers):
        value = b.gemm(value, weight.astype(np.float32), bias.astype(np.float32), f"layers.{i}")
        if i < len(layers) - 1:
            value = b.node("Relu", value, scope=f"layers.{i}")
    b.output(value, "logits", ["batch", WIDTHS[-1]])
    return b.model()


if __name__ == "__main__":
    print(save(build()))
