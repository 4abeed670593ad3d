"""Facts about normalizations: what they divide by, over how many elements, in which precision (namespace "norm")."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from lipaudit.graph.ir import Constant, Graph, Node

__all__ = ["norm_facts"]

_LAYER = {
    "ai.onnx::LayerNormalization": "layer",
    "ai.onnx::RMSNormalization": "rms",
    "ai.onnx::SimplifiedLayerNormalization": "rms",
    "com.microsoft::SimplifiedLayerNormalization": "rms",
    "com.microsoft::SkipLayerNormalization": "layer",
    "com.microsoft::SkipSimplifiedLayerNormalization": "rms",
}
_DEFAULT_EPSILON = {"com.microsoft::SkipLayerNormalization": 1e-12, "com.microsoft::SkipSimplifiedLayerNormalization": 1e-12}


def norm_facts(simplified: Graph, graph: Graph, node: Node) -> dict[str, Any] | None:
    """Facts of one node of the abstract graph; None if it is no normalization.

    ``simplified`` tells in which type a spelled-out normalization computes its root. Batch facts (``scale_max``, ``collapsed``,
    ``stats_default``) are neutral for other kinds; facts that cannot be had are None.
    """
    x = graph.value(node.inputs[0])
    shape = x.shape
    facts: dict[str, Any] = {
        "kind": "", "width": 0, "width_pinned": False, "epsilon": 0.0, "has_floor": True, "dtype": x.dtype, "stat_dtype": x.dtype,
        "gain_max": None, "scale_max": None, "collapsed": 0, "stats_default": False, "affine_default": False,
    }  # fmt: skip
    kind = node.kind
    if kind == "ai.onnx::BatchNormalization":
        return _batch(graph, node, facts)
    if kind in _LAYER:
        start = -1 if kind.startswith("com.microsoft::Skip") else int(node.attrs.get("axis", -1))
        facts["kind"] = _LAYER[kind]
        facts["width"] = prod(shape[start:]) if shape else 0
        facts["epsilon"] = float(node.attrs.get("epsilon", _DEFAULT_EPSILON.get(kind, 1e-5)))
        if int(node.attrs.get("stash_type", 1)) == 1 and x.dtype in ("float16", "bfloat16"):
            facts["stat_dtype"] = "float32"
        scale, bias = (2, 3) if kind.startswith("com.microsoft::Skip") else (1, 2)
    elif kind == "lipaudit::Normalization":
        facts["kind"] = str(node.attrs["kind"])
        facts["width"] = prod(shape[a] for a in node.attrs["axes"]) if shape else 0
        facts["epsilon"] = float(node.attrs["epsilon"])
        facts["stat_dtype"] = _root_type(simplified, node) or x.dtype
        scale, bias = 1, 2
    elif kind == "ai.onnx::InstanceNormalization":
        facts["kind"] = "group" if _is_regrouped(graph, node) else "instance"
        facts["width"] = prod(shape[2:]) if shape else 0
        facts["epsilon"] = float(node.attrs.get("epsilon", 1e-5))
        scale, bias = 1, 2
    elif kind in ("ai.onnx::GroupNormalization", "com.microsoft::GroupNorm"):
        groups = int(node.attrs.get("num_groups", node.attrs.get("groups", 1)))
        facts["kind"] = "group"
        facts["width"] = prod(shape[1:]) // max(1, groups) if shape else 0
        facts["epsilon"] = float(node.attrs.get("epsilon", 1e-5))
        if int(node.attrs.get("stash_type", 1)) == 1 and x.dtype in ("float16", "bfloat16"):
            facts["stat_dtype"] = "float32"
        scale, bias = 1, 2
    elif kind == "ai.onnx::LpNormalization":
        axis = int(node.attrs.get("axis", -1))
        facts["kind"] = "l2" if int(node.attrs.get("p", 2)) == 2 else "l1"
        facts["width"] = shape[axis] if shape else 0
        facts["has_floor"] = False
        scale = bias = -1
    else:
        return None
    facts["has_floor"] = facts["has_floor"] and facts["epsilon"] > 0
    gamma, beta = _constant(graph, node, scale), _constant(graph, node, bias)
    if gamma is not None:
        facts["gain_max"] = float(np.max(np.abs(gamma.float64()), initial=0.0))
        facts["affine_default"] = _is_all(gamma, 1.0) and (beta is None or _is_all(beta, 0.0))
    # A width that a stored scale confirms does not depend on an assumed size.
    facts["width_pinned"] = bool(graph.pinned) and (gamma is None or gamma.size != facts["width"])
    return facts


def _batch(graph: Graph, node: Node, facts: dict[str, Any]) -> dict[str, Any]:
    gamma, beta, mean, variance = (_constant(graph, node, i) for i in range(1, 5))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    shape = graph.value(node.inputs[0]).shape
    facts |= {"kind": "batch", "epsilon": epsilon, "has_floor": epsilon > 0}
    if shape and len(shape) > 1:
        facts["width"] = prod(shape) // max(1, shape[1])
    if gamma is not None:
        facts["gain_max"] = float(np.max(np.abs(gamma.float64()), initial=0.0))
        facts["affine_default"] = _is_all(gamma, 1.0) and beta is not None and _is_all(beta, 0.0)
    if variance is not None:
        v = variance.float64()
        facts["collapsed"] = int(np.sum(v <= epsilon))
        facts["stats_default"] = mean is not None and _is_all(mean, 0.0) and _is_all(variance, 1.0)
        if gamma is not None and gamma.size == v.size:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.abs(gamma.float64().reshape(-1)) / np.sqrt(v.reshape(-1) + epsilon)
            if ratio.size and not np.any(np.isnan(ratio)):
                facts["scale_max"] = float(np.max(ratio))
    return facts


def _constant(graph: Graph, node: Node, i: int) -> Constant | None:
    return graph.constants.get(node.inputs[i]) if 0 <= i < len(node.inputs) and node.inputs[i] else None


def _is_all(constant: Constant, value: float) -> bool:
    if constant.fill is not None:
        return float(constant.fill) == value
    return bool(np.all(constant.float64() == value))


def _root_type(simplified: Graph, node: Node) -> str:
    """Type of the root in a spelled-out normalization, found from its result backward."""
    covers = set(node.covers)
    stack = [node.outputs[0]]
    while stack:
        made = simplified.producer.get(stack.pop())
        if made is None or made.name not in covers:
            continue
        if made.op in ("Sqrt", "ReduceL2") or (
            made.op == "Pow" and made.inputs[1] in simplified.constants and not _is_square(simplified, made)
        ):
            return simplified.value(made.outputs[0]).dtype
        covers.discard(made.name)
        stack.extend(made.inputs)
    return ""


def _is_square(graph: Graph, node: Node) -> bool:
    exponent = graph.constants[node.inputs[1]]
    return exponent.size == 1 and float(exponent.float64().reshape(-1)[0]) == 2.0


def _is_regrouped(graph: Graph, node: Node) -> bool:
    """An InstanceNormalization between two Reshapes spells a group normalization."""
    before = graph.producer.get(node.inputs[0])
    after = graph.consumers.get(node.outputs[0], ())
    return before is not None and before.op == "Reshape" and len(after) == 1 and after[0].op == "Reshape"
