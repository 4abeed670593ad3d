"""A decoder with a cache of keys and values: no constant on all reals, and one on every box of the cache.

The scores multiply queries by what the cache holds, so the bound must be infinite on all reals: two rays show that every constant
is exceeded. The test is about the truth; that the certificate agrees, and is finite where it can be, comes after it.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import lipaudit

Doubles = NDArray[np.float64]

CACHES = tuple(f"past_{i}" for i in range(5))
HEADS, WIDTH, PAST = 4, 8, 8


class Decoder:
    """genai_gpt2 on one new token behind eight cached ones, cut behind its embedding."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        embedding = next(node for node in model.graph.node if node.op_type == "EmbedLayerNormalization")
        self.token, self.sum = embedding.output[0], embedding.output[2]
        model.graph.node.remove(embedding)
        for name in (self.token, self.sum):
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, HEADS * WIDTH]))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        weights = {item.name: onnx.numpy_helper.to_array(item).astype(np.float64) for item in model.graph.initializer}
        matrix, bias = weights["transformer.h.0.attn.c_attn.weight"], weights["transformer.h.0.attn.c_attn.bias"]
        random = np.random.default_rng(0)
        self.x = random.normal(size=HEADS * WIDTH)
        self.query_matrix = matrix[:, :WIDTH]
        self.query = self.x @ self.query_matrix + bias[:WIDTH]  # of the first head

    def logits(self, cache: Doubles, x: Doubles | None = None) -> Doubles:
        """With ``cache`` [2, tokens, width] in the first head of the first layer, 0 elsewhere."""
        given: dict[str, Any] = {name: np.zeros((2, 1, HEADS, PAST, WIDTH), np.float32) for name in CACHES}
        given["past_0"][:, 0, 0] = cache
        moved = self.x if x is None else x
        given[self.token] = moved.reshape(1, 1, -1).astype(np.float32)
        given[self.sum] = self.x.reshape(1, 1, -1).astype(np.float32)
        for item in self.session.get_inputs():
            if item.type == "tensor(int32)":
                given.setdefault(item.name, np.ones((1, PAST + 1 if "mask" in item.name else 1), np.int32))
        return np.asarray(self.session.run(["logits"], given)[0], dtype=np.float64)


@pytest.fixture(scope="module")
def decoder(models: Path) -> Decoder:
    return Decoder(models / "genai_gpt2_fp32.onnx")


def _alternating(row: Doubles) -> Doubles:
    return np.outer((-1.0) ** np.arange(PAST), row)


@pytest.mark.models
def test_no_constant_from_the_cache(decoder: Decoder) -> None:
    """All cached keys score alike, the values are +-t: the mean is 0, and its slope in the keys is proportional to t."""
    along = decoder.query / np.linalg.norm(decoder.query)
    keys = np.outer(np.full(PAST, 40.0), along)  # far above the score of the new token itself
    turned = _alternating(along)
    gains: list[float] = []
    for t in (1.0, 10.0, 100.0, 1000.0):
        values = _alternating(np.full(WIDTH, t))
        step = 0.05 / t
        difference = decoder.logits(np.stack([keys + step * turned, values])) - decoder.logits(np.stack([keys, values]))
        gains.append(float(np.linalg.norm(difference) / np.linalg.norm(step * turned)))
    assert all(later > 5 * earlier for earlier, later in itertools.pairwise(gains)), gains
    assert gains[-1] > 300 * gains[0], gains


@pytest.mark.models
def test_no_constant_from_the_tokens_for_all_caches(decoder: Decoder) -> None:
    """Keys and values +-t, keys orthogonal to the query: from the token the slope is proportional to t^2."""
    random = np.random.default_rng(1)
    away = random.normal(size=WIDTH)
    away -= away @ decoder.query / (decoder.query @ decoder.query) * decoder.query
    away /= np.linalg.norm(away)
    toward = decoder.query_matrix @ away
    toward /= np.linalg.norm(toward)
    gains: list[float] = []
    for t in (3.0, 10.0, 30.0, 100.0):
        cache = np.stack([_alternating(t * away), _alternating(np.full(WIDTH, t))])
        step = 0.3 / t**2
        difference = decoder.logits(cache, decoder.x + step * toward) - decoder.logits(cache)
        gains.append(float(np.linalg.norm(difference) / step))
    assert gains[-1] > 100 * gains[0], gains


@pytest.mark.models
def test_unbounded_names_the_cache(models: Path) -> None:
    audit = lipaudit.audit(models / "genai_gpt2_fp32.onnx", measure=False)
    assert audit.certified.status == "unbounded"
    assert {reason.op for reason in audit.certified.reasons} == {"com.microsoft::Attention"}
    assert all("the cache is unbounded" in reason.reason for reason in audit.certified.reasons)


@pytest.mark.models
@pytest.mark.parametrize("size", [0, 1, 3])
def test_finite_on_boxes_of_the_cache(models: Path, size: int) -> None:
    """A cache that is held still (0:0) leaves the tokens on the range of their table."""
    audit = lipaudit.audit(models / "genai_gpt2_fp32.onnx", boxes=dict.fromkeys(CACHES, (-size, size)), measure=False)
    assert audit.certified.status == "finite"
    assert all(entry.certified.status == "finite" for entry in audit.matrix)
