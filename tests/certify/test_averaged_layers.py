"""Products and activations as averaged operators: below the product of norms, never below a searched Jacobian or pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from lipaudit.certify import Certificate
from tests.certify.blocks import ascend
from tests.pipeline import certificate, make_model

Array = NDArray[Any]

_ACTS: dict[str, tuple[Callable[[Array], Array], dict[str, Any]]] = {
    "Relu": (lambda u: u * (u.real > 0), {}),
    "LeakyRelu": (lambda u: np.where(u.real > 0, u, 0.25 * u), {"alpha": 0.25}),
    "Tanh": (np.tanh, {}),
    "Sigmoid": (lambda u: (1 + np.tanh(u / 2)) / 2, {}),
    "Softplus": (lambda u: u * (u.real > 0) + np.log(1 + np.exp(np.where(u.real > 0, -u, u))), {}),
    "Elu": (lambda u: np.where(u.real > 0, u, np.exp(u) - 1), {"alpha": 1.0}),
}


@dataclass
class Layers:
    """``shortcut(x) + W_K s(.. s(W_1 N(x) + b_1) ..)``; x is [1, tokens, width].

    ``shortcut``: "", "identity", "scaled", "projection" or "minus" (``x - f(x)``); ``norm``: the entry is normalized first;
    ``tied``: two layers, the last matrix is ``-step W_1'``; ``scale``: a stored factor for each channel at the end.
    """

    seed: int
    act: str = "Relu"
    sizes: tuple[int, ...] = (4, 6, 4)
    shortcut: str = ""
    norm: bool = False
    tied: float = 0.0
    scale: bool = False
    size: float = 1.0
    tokens: int = 2

    def __post_init__(self) -> None:
        rng = np.random.default_rng([17, self.seed])
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        self.w = [np.float32(self.size * rng.standard_normal((a, b)) / np.sqrt(a)) for a, b in pairs]
        self.b = [np.float32(rng.standard_normal(b)) for _, b in pairs]
        if self.tied:
            self.w[1] = np.float32(-self.tied) * np.ascontiguousarray(self.w[0].T)
        self.around = np.float32(rng.standard_normal((self.sizes[0], self.sizes[-1])))
        self.factor = np.float32(rng.uniform(-2, 2, self.sizes[-1]))
        self.x0 = rng.standard_normal((1, self.tokens, self.sizes[0]))

    def inner(self, x: Array) -> Array:
        """From the (normalized) entry to the exit."""
        f = _ACTS[self.act][0]
        h = x
        for k, (w, b) in enumerate(zip(self.w, self.b, strict=True)):
            h = h @ w.astype(float) + b.astype(float)
            h = f(h) if k < len(self.w) - 1 else h
        h = h * self.factor.astype(float) if self.scale else h
        around = {"": 0, "identity": x, "minus": x, "scaled": 0.5 * x, "projection": x @ self.around.astype(float)}[self.shortcut]
        return around - h if self.shortcut == "minus" else around + h

    def __call__(self, x: Array) -> Array:
        if self.norm:
            z = x - x.mean(axis=-1, keepdims=True)
            x = z / np.sqrt((z * z).mean(axis=-1, keepdims=True) + float(np.float32(1e-2)))
        return self.inner(x)

    def model(self) -> onnx.ModelProto:
        """As an exporter writes it."""
        node, width = helper.make_node, self.sizes[0]
        c: dict[str, Any] = {"one": np.ones(width, np.float32), "zero": np.zeros(width, np.float32), "half": np.float32(0.5)}
        c |= {"around": self.around, "factor": self.factor}
        nodes = [node("LayerNormalization", ["x", "one", "zero"], ["n"], epsilon=1e-2)] if self.norm else []
        entry = value = "n" if self.norm else "x"
        for k, (w, b) in enumerate(zip(self.w, self.b, strict=True)):
            c |= {f"w{k}": w, f"b{k}": b}
            nodes += [node("MatMul", [value, f"w{k}"], [f"p{k}"]), node("Add", [f"p{k}", f"b{k}"], [f"u{k}"])]
            value = f"u{k}"
            if k < len(self.w) - 1:
                nodes.append(node(self.act, [value], [f"h{k}"], **_ACTS[self.act][1]))
                value = f"h{k}"
        if self.scale:
            nodes.append(node("Mul", [value, "factor"], ["f"]))
            value = "f"
        if self.shortcut == "scaled":
            nodes.append(node("Mul", [entry, "half"], ["s"]))
        if self.shortcut == "projection":
            nodes.append(node("MatMul", [entry, "around"], ["s"]))
        around = "s" if self.shortcut in ("scaled", "projection") else entry
        if self.shortcut:
            nodes.append(node("Sub" if self.shortcut == "minus" else "Add", [around, value], ["j"]))
            value = "j"
        nodes.append(node("Identity", [value], ["y"]))
        return make_model(nodes, {"x": [1, self.tokens, width]}, ["y"], c)


def _found(block: Layers, **more: Any) -> tuple[float, list[str]]:
    found: Certificate = certificate(block.model(), **more)
    return float(found.headline.slope), [bound.joint.method for bound in found.regions.values()]


_CASES: list[dict[str, Any]] = [
    {}, {"act": "LeakyRelu"}, {"act": "Tanh"}, {"act": "Sigmoid", "sizes": (3, 8, 8, 2)}, {"sizes": (3, 5, 4, 6, 2), "act": "Elu"},
    {"sizes": (1, 1, 1)}, {"sizes": (1, 7, 1), "shortcut": "identity"}, {"shortcut": "identity"}, {"shortcut": "minus", "act": "Softplus"},
    {"shortcut": "scaled", "scale": True}, {"shortcut": "projection", "sizes": (4, 6, 3)}, {"shortcut": "identity", "tied": 0.5},
    {"shortcut": "identity", "tied": 2.0, "size": 2.0, "act": "LeakyRelu"}, {"norm": True}, {"norm": True, "act": "Tanh", "size": 5.0},
    {"norm": True, "shortcut": "identity"}, {"tokens": 1, "size": 100.0, "act": "Sigmoid"},
]  # fmt: skip


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_no_jacobian_and_no_pair_exceeds_the_bound(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for seed in range(3):
        block = Layers(seed, **case)
        slope, _ = _found(block)
        for size in (0.1, 1.0, 10.0):
            assert ascend(block, size * rng.standard_normal(block.x0.shape), rng, 20) <= slope
            for _ in range(20 if block.sizes != (1, 1, 1) else 0):  # there a linear piece attains the bound: rounding would decide
                x, z = (size * rng.standard_normal(block.x0.shape) for _ in range(2))
                assert np.linalg.norm(block(x) - block(z)) <= slope * np.linalg.norm(x - z)


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_never_above_the_paths(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    block = Layers(4, **case)
    slope, methods = _found(block)
    monkeypatch.setattr("lipaudit.certify.methods._METHODS", ())
    plain, _ = _found(block)
    assert slope <= plain
    assert block.sizes[0] == 1 or "averaged layers" in methods


def test_a_gradient_step_of_a_convex_potential_does_not_expand() -> None:
    """``x - t W' relu(W x + b)`` with ``t ||W||^2 <= 2``: exactly 1 (rounding of the verified norm aside)."""
    block = Layers(0, shortcut="identity", tied=1.0)
    norm = float(np.linalg.norm(block.w[0].astype(float), 2))
    block = Layers(0, shortcut="identity", tied=float(np.float32(1.9 / norm**2)))
    slope, _ = _found(block)
    assert 1 <= slope < 1 + 1e-5
    steep = Layers(0, shortcut="identity", tied=float(np.float32(4 / norm**2)))
    assert 2.999 < _found(steep)[0] < 3.01


def test_a_shortcut_that_cancels_the_linear_part() -> None:
    """Tanh at small slopes is nearly linear: ``x - W2 tanh(W1 x)`` with ``W2 W1 = 1`` on a small box hardly moves."""
    block = Layers(0, act="Tanh", sizes=(3, 3, 3), shortcut="minus", tokens=1)
    block.w = [np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)]
    block.b = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    slope, _ = _found(block, boxes=["x=-0.1:0.1"])
    assert 1 - 1 / np.cosh(0.1) ** 2 <= slope < 0.0101


def test_the_local_slopes_of_each_channel_count() -> None:
    """On a box on which half of the neurons are off, the bound is that of the others."""
    block = Layers(1, sizes=(3, 4, 3), tokens=1)
    block.b[0] = np.float32([-100, 100, -100, 100])
    slope, _ = _found(block, boxes=["x=-1:1"])
    live = block.w[0][:, [1, 3]].astype(float) @ block.w[1][[1, 3]].astype(float)
    assert np.linalg.norm(live, 2) <= slope <= np.linalg.norm(live, 2) * (1 + 1e-4)
