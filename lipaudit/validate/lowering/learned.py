"""ai.onnx.ml: linear models, support vector machines and preprocessing as products and elementwise functions.

Meanings are those of the ONNX-ML specification. Labels are flat: they are left out where nobody reads them, else the node stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.lowering.emitter import Emitter, Lowering, NotLowered

__all__ = ["LOWERINGS"]

Floats = NDArray[np.float64]


def _numbers(site: Site, name: str) -> Floats:
    value = site.attr(name)
    return np.asarray([] if value is None else value, dtype=np.float64)


def _row(site: Site, name: str, default: float) -> Floats:
    found = _numbers(site, name)
    return found if found.size else np.full(1, default)


def _input(e: Emitter, site: Site, i: int = 0) -> str:
    """Input ``i`` in the floating-point type of the outputs."""
    value, name = site.inputs[i], site.node.inputs[i]
    return name if value is not None and value.dtype == str(e.floating) else e.add("Cast", name, to=e.float_type)


def _scaler(e: Emitter, site: Site) -> Sequence[str]:
    moved = e.add("Sub", _input(e, site), e.floats(_row(site, "offset", 0.0)))
    return [e.add("Mul", moved, e.floats(_row(site, "scale", 1.0)))]


def _reduced(e: Emitter, op: str, x: str, version: int) -> str:
    """``op`` along the last axis, kept; its axes are an input from opset ``version`` on."""
    return e.add(op, x, e.ints(-1), keepdims=1) if e.opset >= version else e.add(op, x, axes=(-1,), keepdims=1)


def _normalizer(e: Emitter, site: Site) -> Sequence[str]:
    kind, x = str(site.attr("norm", "MAX")), _input(e, site)
    if kind not in {"MAX", "L1", "L2"}:
        raise NotLowered(f"Normalizer with norm {kind!r}")
    op = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}[kind]
    return [e.add("Div", x, _reduced(e, op, x, 18))]


def _imputer(e: Emitter, site: Site) -> Sequence[str]:
    """Elements equal to one value are replaced; a NaN does not move, and neither does what takes its place."""
    floats = _numbers(site, "imputed_value_floats")
    imputed = floats if floats.size else _numbers(site, "imputed_value_int64s")
    value = float(site.attr("replaced_value_float" if floats.size else "replaced_value_int64", 0.0))
    x = _input(e, site)
    missing = e.add("IsNaN", x) if np.isnan(value) else e.add("Equal", x, e.floats(value))
    return [e.add("Where", missing, e.floats(imputed), x)]


def _vectorizer(e: Emitter, site: Site) -> Sequence[str]:
    """Inputs side by side, each cut or filled up with zeros to its stated width."""
    widths = [int(n) for n in site.attr("inputdimensions") or ()]
    parts: list[str] = []
    for i in range(len(site.inputs)):
        shape = site.shape(i)
        if len(shape) not in {1, 2}:
            raise NotLowered("FeatureVectorizer of tensors that are no rows")
        own = shape[-1]
        width = widths[i] if i < len(widths) else own
        x = e.reshape(_input(e, site, i), -1, own)
        if width < own:
            x = e.slice(x, 1, 0, width)
        elif width > own:
            x = e.concat([x, e.floats(np.zeros((1 if len(shape) == 1 else shape[0], width - own)))], 1)
        parts.append(x)
    return [e.reshape(e.concat(parts, 1), *site.out_shape())]


def _extractor(e: Emitter, site: Site) -> Sequence[str]:
    rank = len(site.shape(0))
    chosen = e.reshape(site.node.inputs[1], -1)
    return [e.reshape(e.add("Gather", site.node.inputs[0], chosen, axis=rank - 1), *site.out_shape())]


def _transformed(e: Emitter, site: Site, scores: str) -> str:
    kind = str(site.attr("post_transform", "NONE"))
    if kind in {"NONE", ""}:
        return scores
    if kind == "LOGISTIC":
        return e.add("Sigmoid", scores)
    if kind == "SOFTMAX":
        return e.add("Softmax", scores, axis=1)
    raise NotLowered(f"{site.node.op} with post_transform {kind!r}")


def _rows(e: Emitter, site: Site) -> tuple[str, int]:
    """The input as rows of features, and their number."""
    width = site.shape(0)[-1]
    return e.reshape(_input(e, site), -1, width), width


def _affine(e: Emitter, x: str, matrix: Floats, bias: Floats) -> str:
    y = e.add("MatMul", x, e.floats(matrix.T))
    return e.add("Add", y, e.floats(bias)) if bias.size else y


def _linear_regressor(e: Emitter, site: Site) -> Sequence[str]:
    x, width = _rows(e, site)
    matrix = _numbers(site, "coefficients").reshape(-1, width)
    return [e.reshape(_transformed(e, site, _affine(e, x, matrix, _numbers(site, "intercepts"))), *site.out_shape())]


def _classified(e: Emitter, site: Site, scores: str, count: int, binary: str = "") -> Sequence[str]:
    """No labels, and the scores; a single score of two classes is given out twice, ``binary`` being the first."""
    if e.is_read(site.node.outputs[0]):
        raise NotLowered(f"{site.node.op} whose labels are read")
    wanted = site.out_shape(1)
    if count == 1 and wanted[-1] == 2:
        if str(site.attr("post_transform", "NONE")) not in {"NONE", "", "LOGISTIC"}:
            raise NotLowered(f"{site.node.op} with a transform of a single score")
        scores = _transformed(e, site, scores)
        first = binary or (e.add("Neg", scores) if site.attr("post_transform", "NONE") in {"NONE", ""} else "")
        first = first or e.add("Sub", e.floats(1.0), scores)
        return ["", e.reshape(e.concat([first, scores], 1), *wanted)]
    if count != wanted[-1]:
        raise NotLowered(f"{site.node.op} whose scores are combined")
    return ["", e.reshape(_transformed(e, site, scores), *wanted)]


def _linear_classifier(e: Emitter, site: Site) -> Sequence[str]:
    x, width = _rows(e, site)
    matrix = _numbers(site, "coefficients").reshape(-1, width)
    return _classified(e, site, _affine(e, x, matrix, _numbers(site, "intercepts")), matrix.shape[0])


def _kernels(e: Emitter, site: Site, x: str, vectors: Floats) -> str:
    """The kernel of every row with every support vector."""
    kind = str(site.attr("kernel_type", "LINEAR")).upper()
    products = e.add("MatMul", x, e.floats(vectors.T))
    if kind == "LINEAR":
        return products
    gamma, shift, degree = (*(float(v) for v in site.attr("kernel_params") or ()), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        # |x - s|^2 from differences: squares and products would cancel.
        width = vectors.shape[1]
        apart = e.add("Sub", e.reshape(x, -1, 1, width), e.floats(vectors[None]))
        square = e.add("Mul", apart, apart)
        total = e.add("ReduceSum", square, e.ints(2), keepdims=0) if e.opset >= 13 else e.add("ReduceSum", square, axes=(2,), keepdims=0)
        return e.add("Exp", e.add("Mul", total, e.floats(-gamma)))
    inner = e.add("Add", e.add("Mul", products, e.floats(gamma)), e.floats(shift))
    if kind == "POLY":
        return e.add("Pow", inner, e.floats(degree))
    if kind == "SIGMOID":
        return e.add("Tanh", inner)
    raise NotLowered(f"{site.node.op} with kernel {kind!r}")


def _svm_regressor(e: Emitter, site: Site) -> Sequence[str]:
    if site.attr("one_class", 0):
        raise NotLowered("SVMRegressor whose output is a sign")
    x, width = _rows(e, site)
    weights, count = _numbers(site, "coefficients"), int(site.attr("n_supports", 0))
    k = _kernels(e, site, x, _numbers(site, "support_vectors").reshape(count, width)) if count else x
    y = _affine(e, k, weights.reshape(1, -1), _numbers(site, "rho")[:1])
    return [e.reshape(_transformed(e, site, y), *site.out_shape())]


def _svm_classifier(e: Emitter, site: Site) -> Sequence[str]:
    """One score for each class (linear), or for each pair i < j: the weights of j - 1 on the vectors of i, of i on those of j."""
    if _numbers(site, "prob_a").size:
        raise NotLowered("SVMClassifier whose scores are coupled to probabilities step by step")
    x, width = _rows(e, site)
    weights, counts = _numbers(site, "coefficients"), _numbers(site, "vectors_per_class").astype(int)
    rho, total = _numbers(site, "rho"), int(counts.sum())
    if not total:
        matrix = weights.reshape(-1, width)
        return _classified(e, site, _affine(e, x, matrix, rho[:1]), matrix.shape[0])
    k = _kernels(e, site, x, _numbers(site, "support_vectors").reshape(total, width))
    table, ends = weights.reshape(-1, total), np.concatenate([[0], np.cumsum(counts)])
    rows: list[Floats] = []
    for i in range(counts.size):
        for j in range(i + 1, counts.size):
            row = np.zeros(total)
            row[ends[i] : ends[i + 1]] = table[j - 1, ends[i] : ends[i + 1]]
            row[ends[j] : ends[j + 1]] = table[i, ends[j] : ends[j + 1]]
            rows.append(row)
    return _classified(e, site, _affine(e, k, np.stack(rows), rho[: len(rows)]), len(rows))


LOWERINGS: Mapping[str, Lowering] = {
    "ai.onnx.ml::ArrayFeatureExtractor": _extractor,
    "ai.onnx.ml::FeatureVectorizer": _vectorizer,
    "ai.onnx.ml::Imputer": _imputer,
    "ai.onnx.ml::LinearClassifier": _linear_classifier,
    "ai.onnx.ml::LinearRegressor": _linear_regressor,
    "ai.onnx.ml::Normalizer": _normalizer,
    "ai.onnx.ml::SVMClassifier": _svm_classifier,
    "ai.onnx.ml::SVMRegressor": _svm_regressor,
    "ai.onnx.ml::Scaler": _scaler,
}
