"""onnx's own operator tests (they come with the onnx wheel) as small problems."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

from lipaudit.errors import LipauditError
from lipaudit.graph.ir import Graph
from lipaudit.graph.load import load


@dataclass(frozen=True)
class Case:
    """One node with its inputs and the outputs that onnx expects."""

    name: str
    op: str
    graph: Graph
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


@cache
def cases() -> Sequence[Case]:
    """All plain one-node cases of the standard domain on dense tensors."""
    return tuple(_cases())


@cache
def _first_version(op: str) -> int:
    return min(schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op and not schema.domain)


def _cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            collected = collect_testcases(None)
        for case in collected:
            model: onnx.ModelProto = case.model
            if "expanded" in case.name or len(model.graph.node) != 1 or model.graph.node[0].domain not in {"", "ai.onnx"}:
                continue
            feeds = {value.name: array for value, array in zip(model.graph.input, case.data_sets[0][0], strict=True)}
            expected = {value.name: array for value, array in zip(model.graph.output, case.data_sets[0][1], strict=True)}
            arrays = [*feeds.values(), *expected.values()]
            if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays):
                continue
            newest = max(24, _first_version(model.graph.node[0].op_type))
            # onnxruntime refuses the newest versions; the operators tested here are the same in both.
            model.ir_version = min(model.ir_version, 10)
            for opset in model.opset_import:
                opset.version = min(opset.version, newest)
            path.write_bytes(model.SerializeToString())
            try:
                graph = load(str(path)).graph
            except LipauditError:
                continue
            yield Case(case.name, model.graph.node[0].op_type, graph, feeds, expected)
