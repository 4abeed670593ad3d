"""The stages up to the certificate, for tests that build their model in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import Certificate, certify
from lipaudit.certify.domain import parse_boxes
from lipaudit.graph.load import load
from lipaudit.graph.simplify import simplify
from lipaudit.operators.catalogue import Catalogue
from lipaudit.topology import Topology, recognise

__all__ = ["certificate", "make_model", "topology"]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of ``nodes``; float constants are stored as float32 unless they are arrays of another type."""
    stored = []
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        if array.dtype == np.float64 and dtype == TensorProto.FLOAT:
            array = array.astype(np.float32)
        stored.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        stored,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def topology(model: onnx.ModelProto, dims: Mapping[str, int] | None = None) -> Topology:
    """Load (from a file, as always), simplify, recognise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return recognise(simplify(load(str(path)).graph, dict(dims or {}), operators=Catalogue.load().operators()))


def certificate(model: onnx.ModelProto, norm: Norm = "l2", boxes: Sequence[str] = (), dims: Mapping[str, int] | None = None) -> Certificate:
    """The certificate of ``model`` on all reals or on ``boxes``."""
    return certify(topology(model, dims), Catalogue.load(), parse_boxes(list(boxes)), norm)
