"""Chains the derivatives of the nodes: forward over the graph for J t, backward for J' c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from lipaudit.graph.ir import Graph, Node
from lipaudit.validate.adjoints import (
    contraction,
    elementwise,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
    selection,
    transform,
)
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.exact import NotExact
from lipaudit.validate.lowering import PARAMETERS, Lowered, lower

__all__ = ["FLAT", "RULES", "Derivative", "jvp", "spelled", "vjp"]

RULES: Mapping[str, Rule] = {
    **contraction.RULES,
    **elementwise.RULES,
    **movement.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **quantization.RULES,
    **reduction.RULES,
    **selection.RULES,
    **transform.RULES,
}

# Piecewise constant, or a shape: nothing moves behind them.
FLAT = frozenset({
    "ai.onnx.ml::Binarizer", "ai.onnx.ml::OneHotEncoder", "ai.onnx.ml::TreeEnsemble", "ai.onnx.ml::TreeEnsembleClassifier",
    "ai.onnx.ml::TreeEnsembleRegressor", "ai.onnx::And", "ai.onnx::ArgMax", "ai.onnx::ArgMin", "ai.onnx::BitShift",
    "ai.onnx::BlackmanWindow", "ai.onnx::Ceil", "ai.onnx::ConstantOfShape", "ai.onnx::Equal", "ai.onnx::EyeLike", "ai.onnx::Floor",
    "ai.onnx::Greater", "ai.onnx::GreaterOrEqual", "ai.onnx::HammingWindow", "ai.onnx::HannWindow", "ai.onnx::Hardmax",
    "ai.onnx::IsInf", "ai.onnx::IsNaN", "ai.onnx::Less", "ai.onnx::LessOrEqual", "ai.onnx::MelWeightMatrix",
    "ai.onnx::NonMaxSuppression", "ai.onnx::NonZero", "ai.onnx::Not", "ai.onnx::OneHot", "ai.onnx::OptionalHasElement", "ai.onnx::Or",
    "ai.onnx::RandomNormalLike", "ai.onnx::RandomUniformLike", "ai.onnx::Range", "ai.onnx::Round", "ai.onnx::SequenceLength",
    "ai.onnx::Shape", "ai.onnx::Sign", "ai.onnx::Size", "ai.onnx::Xor",
})  # fmt: skip


@dataclass(frozen=True)
class Derivative:
    """A derivative model.

    Attributes
    ----------
    model
        Inputs: ``taps``, ``large`` and the seeds; outputs in the order of ``results``. Seeds and results have a leading
        axis K of probes.
    taps
        Input name by forward value.
    large
        Weights that are passed at run time, by input name.
    seeds, results
        Names, parallel to the sources and outputs that were asked for. A result is "" where nothing moves.
    """

    model: onnx.ModelProto
    taps: Mapping[str, str]
    large: Mapping[str, NDArray[Any]]
    seeds: tuple[str, ...]
    results: tuple[str, ...]


def _moving(graph: Graph, sources: Sequence[str]) -> set[str]:
    moving = set(sources)
    for node in graph.nodes:
        if node.kind in FLAT:
            continue
        if any(name in moving for name in (*node.inputs, *graph.captured_by(node))):
            moving.update(name for name in node.outputs if name)
    return moving


def _leading(graph: Graph, outputs: Sequence[str]) -> set[str]:
    """Values that some output depends on."""
    leading = set(outputs)
    for node in reversed(graph.nodes):
        if any(name in leading for name in node.outputs):
            leading.update(name for name in node.inputs if name)
    return leading


def _is_plain(node: Node, moving: set[str]) -> bool:
    """Whether the rule of a standard operator holds: of some only with parameters that do not move."""
    parameters = [node.inputs[i] for i in PARAMETERS.get(node.op, ()) if i < len(node.inputs)]
    return normalization.plain_attention(node) and not any(name in moving for name in parameters) and not node.attrs.get("training_mode", 0)


def spelled(graph: Graph, sources: Sequence[str], outputs: Sequence[str], fixed: Mapping[str, NDArray[Any]]) -> Lowered:
    """``graph`` with the nodes between ``sources`` and ``outputs`` that have no rule here spelled in nodes that have one, where possible.

    ``fixed`` are values of inputs that never change. The graph itself where all nodes have rules.
    """
    _, nodes = _active(graph, sources, outputs)
    active = {node.name for node in nodes}
    moving = _moving(graph, sources)

    def known(node: Node) -> bool:
        # New nodes stand in place of active ones; of the others only those that nothing moves are left alone.
        idle = node.name not in active and not any(name in moving for name in node.inputs) and node.name in original
        return idle or node.kind in FLAT or (not node.domain and node.op in RULES and _is_plain(node, moving))

    original = {node.name for node in graph.nodes}
    return lower(graph, known, fixed)


def _local(b: Builder, node: Node) -> Local:
    rule = RULES.get(node.op) if node.domain in {"", "ai.onnx"} else None
    if rule is None or any(isinstance(attr, Graph) for attr in node.attrs.values()):
        raise NoDerivative(f"{node.op} {node.name!r} has no derivative rule")
    try:
        return rule(b, b.site(node))
    except (NoDerivative, NotExact) as error:
        raise NoDerivative(f"{node.op} {node.name!r}: {error}") from None


def _active(graph: Graph, sources: Sequence[str], outputs: Sequence[str]) -> tuple[Builder, list[Node]]:
    moving = _moving(graph, sources) & _leading(graph, outputs)
    inner = set(sources)
    nodes = [node for node in graph.nodes if any(name in moving and name not in inner for name in node.outputs)]
    nodes = [node for node in nodes if node.kind not in FLAT]
    return Builder(graph, moving), nodes


def jvp(graph: Graph, sources: Sequence[str], outputs: Sequence[str]) -> Derivative:
    """The model of J t: seeds are tangents of ``sources``, results tangents of ``outputs``.

    Raises
    ------
    NoDerivative
        If a node on the way has no rule; the message names it.
    """
    b, nodes = _active(graph, sources, outputs)
    tangents: dict[str, Maybe] = {}
    seeds = tuple(b.seed(b.shape(name), "seed") for name in sources)
    tangents.update(zip(sources, seeds, strict=True))
    for node in nodes:
        ts = [tangents.get(name) for name in node.inputs]
        if all(t is None for t in ts):
            continue
        moved = zip(node.outputs, _checked(b, node, _local(b, node), ts, forward=True), strict=False)
        tangents.update((name, t) for name, t in moved if name in b.moving)
    return _finish(b, seeds, [(name, tangents.get(name)) for name in outputs])


def vjp(graph: Graph, sources: Sequence[str], outputs: Sequence[str], *, inner: Sequence[str] = ()) -> Derivative:
    """The model of J' c: seeds are cotangents of ``outputs``, results cotangents of ``sources``, then those of the values ``inner``.

    Raises
    ------
    NoDerivative
        If a node on the way has no rule; the message names it.
    """
    b, nodes = _active(graph, sources, outputs)
    terms: dict[str, list[str]] = {}
    seeds = tuple(b.seed(b.shape(name), "seed") for name in outputs)
    for name, seed in zip(outputs, seeds, strict=True):
        terms.setdefault(name, []).append(seed)
    for node in reversed(nodes):
        cs = [b.sum(terms.get(name, [])) if name else None for name in node.outputs]
        if all(c is None for c in cs):
            continue
        for name, c in zip(node.inputs, _checked(b, node, _local(b, node), cs, forward=False), strict=False):
            if name in b.moving and c is not None:
                terms.setdefault(name, []).append(c)
    return _finish(b, seeds, [(name, b.sum(terms.get(name, []))) for name in (*sources, *inner)])


def _checked(b: Builder, node: Node, local: Local, parts: Sequence[Maybe], *, forward: bool) -> Sequence[Maybe]:
    try:
        return local.tangent(parts) if forward else local.adjoint(parts)
    except (NoDerivative, NotExact) as error:
        raise NoDerivative(f"{node.op} {node.name!r}: {error}") from None


def _finish(b: Builder, seeds: tuple[str, ...], results: Sequence[tuple[str, Maybe]]) -> Derivative:
    names: list[str] = []
    for value, name in results:
        if name is None:
            names.append("")
            continue
        # A seed that is a result itself, and one value that is two results, need names of their own.
        own = b.node("Identity", name)
        b.result(own, b.shape(value))
        names.append(own)
    model = b.model()
    return Derivative(model, dict(b.taps), dict(b.large), seeds, tuple(names))
