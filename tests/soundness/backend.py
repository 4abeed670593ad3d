"""onnx's own operator cases as audits: which inputs are sources, on which domain, and what the certificate says."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import Certificate, certify
from lipaudit.certify.domain import Domain, ElementBox
from lipaudit.graph.export import to_model
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology, recognise
from tests.soundness.adversary import Erf

__all__ = ["Case", "Function", "backend_cases", "certified", "domain_around", "function", "has_floats", "opened"]

Floats = NDArray[np.float64]

# Inputs that say how many elements come out: with them moving there is no function between spaces of fixed dimension.
_SIZES = {"Resize": (2,), "Upsample": (1,), "OneHot": (1,)}


@dataclass(frozen=True)
class Case:
    """A model of onnx's operator suite and the inputs that it gives."""

    name: str
    model: onnx.ModelProto
    given: dict[str, Any]

    @property
    def twin(self) -> str:
        """The case whose operator this one spells out; empty if it is no expansion."""
        return self.name.partition("_expanded")[0] if "_expanded" in self.name else ""


def backend_cases() -> list[Case]:
    """All cases, in the order in which onnx gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = []
        for case in collect_testcases(None):
            if case.model is None or not case.data_sets:
                continue
            values = [numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value for value in case.data_sets[0][0]]
            names = [info.name for info in case.model.graph.input]
            values = [np.asarray(value) if isinstance(value, np.generic) else value for value in values]
            given = Case(case.name, case.model, dict(zip(names, values, strict=False)))
            found.append(_without_sequences(given, case.data_sets[0][1]))
        return found


def _without_sequences(case: Case, expected: Sequence[Any]) -> Case:
    """Sequences of tensors that come in or go out become tensors, one each: only tensors can be audited.

    The expansions loop over their sequences and stay refused: a sequence that a Loop carries has no static shape.
    """
    if case.twin:
        return case
    ends = [info for info in (*case.model.graph.input, *case.model.graph.output) if info.type.WhichOneof("value") == "sequence_type"]
    lists = [value for value in (*case.given.values(), *expected) if isinstance(value, list)]
    if not ends or len(lists) != len(ends) or not all(lists) or any(not isinstance(x, np.ndarray) for each in lists for x in each):
        return case
    model, given = onnx.ModelProto(), dict(case.given)
    model.CopyFrom(case.model)
    graph, before, after = model.graph, list[onnx.NodeProto](), list[onnx.NodeProto]()
    for info, tensors in zip(ends, lists, strict=True):
        names = [f"{info.name}.{k}" for k in range(len(tensors))]
        kinds = [onnx.helper.make_tensor_value_info(name, info.type.sequence_type.elem_type.tensor_type.elem_type, x.shape)
                 for name, x in zip(names, tensors, strict=True)]  # fmt: skip
        if info in graph.input:
            graph.input.remove(info)
            graph.input.extend(kinds)
            del given[info.name]
            given |= dict(zip(names, tensors, strict=True))
            before.append(onnx.helper.make_node("SequenceConstruct", names, [info.name]))
        else:
            graph.output.remove(info)
            graph.output.extend(kinds)
            for k, name in enumerate(names):
                graph.initializer.append(numpy_helper.from_array(np.asarray(k, dtype=np.int64), f"{name}.place"))
                after.append(onnx.helper.make_node("SequenceAt", [info.name, f"{name}.place"], [name]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return Case(case.name, model, given)


def has_floats(case: Case) -> bool:
    """True if a float32 tensor comes in and one goes out: the cases that the percentages speak of."""

    def any_float(infos: Sequence[onnx.ValueInfoProto]) -> bool:
        return any(info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for info in infos)

    return any_float(case.model.graph.input) and any_float(case.model.graph.output)


def opened(case: Case, *, only_first: bool = False) -> Topology:
    """Load, simplify and recognise; inputs that are no sources are baked in with the values that the case gives.

    ``only_first`` bakes in all but the first float input as well.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    sizes = {node.input[i] for node in model.graph.node for i in _SIZES.get(node.op_type, ()) if i < len(node.input)}
    floats = 0
    for info in list(model.graph.input):
        value = case.given.get(info.name)
        if not isinstance(value, np.ndarray) or value.dtype == object:
            continue
        wide = str(value.dtype) in ("float16", "bfloat16", "float32", "float64")
        floats += wide and info.name not in sizes
        if not wide or info.name in sizes or (only_first and floats > 1):
            model.graph.input.remove(info)
            model.graph.initializer.append(numpy_helper.from_array(value, info.name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return recognise(simplify(load(str(path)).graph, operators=_catalogue().operators()))


def domain_around(topology: Topology, case: Case, radius: float) -> Domain:
    """A box around the given inputs: each element may change by ``radius`` times its size, or times 1/8 if it is smaller."""
    boxes: dict[str, ElementBox] = {}
    for source in topology.sources:
        value = case.given.get(source.label)
        if source.kind == "input" and isinstance(value, np.ndarray):
            centre = np.clip(np.nan_to_num(np.asarray(value, dtype=np.float64)), -1e30, 1e30)
            half = radius * np.maximum(np.abs(centre), 0.125)
            boxes[source.label] = ElementBox(centre - half, centre + half)
    return Domain({}, boxes)


@cache
def _catalogue() -> Catalogue:
    return Catalogue.load()


def certified(topology: Topology, domain: Domain, norm: Norm) -> Certificate:
    """The certificate of the case."""
    return certify(topology, _catalogue(), domain, norm)


@dataclass(frozen=True)
class Function:
    """All certified outputs, flattened and concatenated, as a float64 function of all sources, flattened and concatenated."""

    evaluate: Callable[[Floats], Floats]
    centre: Floats
    lo: Floats
    hi: Floats
    error: float = 2.0**-36
    """Of one evaluation, relative to its values."""


# Computed in float32 by the evaluator, whatever the type of the input.
_SINGLE = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "Gelu", "GridSample", "AffineGrid", "MelWeightMatrix"})


def _error(model: onnx.ModelProto) -> float:
    """Single precision where the model converts to it on the way, or the evaluator does."""
    narrow = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        for node in graph.node:
            if node.op_type in _SINGLE or (node.op_type == "Cast" and any(a.name == "to" and a.i in narrow for a in node.attribute)):
                return 2.0**-18
            stack.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return 2.0**-36


def function(topology: Topology, case: Case, domain: Domain, outputs: Sequence[str]) -> Function | str:
    """The function that an adversary can attack; a sentence where there is none."""
    sources = topology.sources
    if not sources or any(source.kind != "input" or source.label not in case.given for source in sources):
        return "no source is a graph input"
    given = {source.value.name: np.asarray(case.given[source.label], dtype=np.float64) for source in sources}
    try:
        model = to_model(topology.simplified, double=True)
        session = ReferenceEvaluator(model, new_ops=[Erf])
    except Exception as error:  # the evaluator lacks some operators
        return f"not evaluated: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    names = session.output_names
    picks = [names.index(name) for name in outputs]

    def evaluate(x: Floats) -> Floats:
        feed, start = {}, 0
        for name, value in given.items():
            feed[name] = x[start : start + value.size].reshape(value.shape)
            start += value.size
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = session.run(None, feed)
        return np.concatenate([np.asarray(list(results)[i]).astype(np.float64).ravel() for i in picks])

    centre = np.concatenate([value.ravel() for value in given.values()])
    ends = [
        (np.broadcast_to(box.lo, given[source.value.name].shape).ravel(), np.broadcast_to(box.hi, given[source.value.name].shape).ravel())
        if (box := domain.elements.get(source.label)) is not None
        else (np.full(given[source.value.name].size, -np.inf), np.full(given[source.value.name].size, np.inf))
        for source in sources
    ]
    found = Function(evaluate, centre, np.concatenate([lo for lo, _ in ends]), np.concatenate([hi for _, hi in ends]), _error(model))
    try:
        evaluate(centre)
    except Exception as error:  # shapes or types that the evaluator does not take in float64
        return f"not evaluated: {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    return found
