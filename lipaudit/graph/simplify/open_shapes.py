"""Shapes that follow from the specification and stored inputs where onnx's own inference leaves them open.

Each case reads the text of the operator: Compress-11 (as many slices as the condition holds), OneHot-11 (depth as a new axis),
MaxUnpool-11 (``output_shape``), MelWeightMatrix-17 (``dft_length // 2 + 1`` bins), MeanVarianceNormalization-13 (elementwise),
FlexAttention (rows of the queries, width of the values), and in ai.onnx.ml Scaler, Imputer, Normalizer (elementwise), regressors (a column
for each target) and FeatureVectorizer (inputs side by side).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TypeProto, helper

from lipaudit.graph.dtypes import elem_type
from lipaudit.graph.ir import Constant, Node

__all__ = ["shape_from_constants", "typed"]

_Shapes = Mapping[int, tuple[int, ...]]
_Stored = Mapping[int, Constant]


def typed(node: Node, types: Mapping[str, TypeProto], constants: Mapping[str, Constant]) -> TypeProto | None:
    """Type of the first output with its static shape, where this module knows it; None elsewhere."""
    if node.kind not in _CASES or not node.outputs:
        return None
    shapes: dict[int, tuple[int, ...]] = {}
    for i, name in enumerate(node.inputs):
        kind = types.get(name)
        if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
            continue
        dims = kind.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[i] = tuple(int(dim.dim_value) for dim in dims)
    stored = {i: constants[name] for i, name in enumerate(node.inputs) if name in constants}
    shape = shape_from_constants(node, shapes, stored)
    if shape is None:
        return None
    if node.op == "MelWeightMatrix":
        return helper.make_tensor_type_proto(int(node.attrs.get("output_datatype", elem_type("float32"))), shape)
    if node.domain == "ai.onnx.ml" and node.op != "Imputer":
        return helper.make_tensor_type_proto(elem_type("float32"), shape)
    source = node.inputs[2 if node.op == "OneHot" else 0]
    return helper.make_tensor_type_proto(types[source].tensor_type.elem_type, shape) if source in types else None


def shape_from_constants(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    """Shape of the first output.

    Parameters
    ----------
    node
        Any node.
    shapes
        Static shapes of its inputs, by position; unknown ones are missing.
    stored
        Its constant inputs, by position.

    Returns
    -------
    The shape, or None where the operator is not one of this module's or something that decides it is not known.
    """
    case = _CASES.get(node.kind)
    return case(node, shapes, stored) if case is not None else None


def _compress(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    if 0 not in shapes or 1 not in stored:
        return None
    chosen = int(np.count_nonzero(stored[1].array()))
    axis = node.attrs.get("axis")
    if axis is None:
        return (chosen,)
    rank = len(shapes[0])
    if not -rank <= int(axis) < rank:
        return None
    return tuple(chosen if k == int(axis) % rank else n for k, n in enumerate(shapes[0]))


def _one_hot(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    if 0 not in shapes or 1 not in stored or stored[1].size != 1:
        return None
    rank, axis = len(shapes[0]) + 1, int(node.attrs.get("axis", -1))
    if not -rank <= axis < rank:
        return None
    dims = list(shapes[0])
    dims.insert(axis % rank, int(stored[1].array().reshape(-1)[0]))
    return tuple(dims)


def _max_unpool(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    return tuple(int(n) for n in stored[2].array().reshape(-1)) if 2 in stored else None


def _mel_weight_matrix(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    if 0 not in stored or 1 not in stored:
        return None
    bins, length = (int(stored[i].array().reshape(-1)[0]) for i in (0, 1))
    return length // 2 + 1, bins


def _as_input(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    return shapes.get(0)


def _flex_attention(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    if 0 not in shapes or 2 not in shapes or len(shapes[0]) != 4 or len(shapes[2]) != 4:
        return None
    return (*shapes[0][:-1], shapes[2][-1])


def _targets(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    """Rows of features to one column for each target (LinearRegressor), or to one (SVMRegressor)."""
    if not shapes.get(0):
        return None
    rows = shapes[0][0] if len(shapes[0]) > 1 else 1
    return rows, int(node.attrs.get("targets", 1)) if node.op == "LinearRegressor" else 1


def _side_by_side(node: Node, shapes: _Shapes, stored: _Stored) -> tuple[int, ...] | None:
    """The stated widths, those of the inputs where they are not stated."""
    if len(shapes) != len(node.inputs) or any(len(shape) not in (1, 2) for shape in shapes.values()):
        return None
    widths = list(node.attrs.get("inputdimensions", ())) or [shapes[i][-1] for i in range(len(node.inputs))]
    rows = {shape[0] if len(shape) == 2 else 1 for shape in shapes.values()}
    return (rows.pop(), sum(int(width) for width in widths)) if len(rows) == 1 else None


_CASES: Mapping[str, Callable[[Node, _Shapes, _Stored], tuple[int, ...] | None]] = {
    "ai.onnx.ml::FeatureVectorizer": _side_by_side,
    "ai.onnx.ml::Imputer": _as_input,
    "ai.onnx.ml::LinearRegressor": _targets,
    "ai.onnx.ml::Normalizer": _as_input,
    "ai.onnx.ml::SVMRegressor": _targets,
    "ai.onnx.ml::Scaler": _as_input,
    "ai.onnx::Compress": _compress,
    "ai.onnx::OneHot": _one_hot,
    "ai.onnx::MaxUnpool": _max_unpool,
    "ai.onnx::MelWeightMatrix": _mel_weight_matrix,
    "ai.onnx::MeanVarianceNormalization": _as_input,
    "ai.onnx.preview::FlexAttention": _flex_attention,
}
