"""Facts about stored tensors: what they are for, whether they are finite, and whether their spectrum looks like noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.operator import VerifiedNorm
from lipaudit.bounds.spectrum import stable_rank, sum_of_squares
from lipaudit.bounds.sums import BLOCK
from lipaudit.graph.ir import Constant, Graph, Node
from lipaudit.operators.linear import matrix_norm, stored_values

__all__ = ["WeightFacts", "weight_facts"]

_PARAMETERS = frozenset({"linear", "conv", "embedding", "norm", "bias"})
# Marchenko-Pastur edges need both sides to be more than a handful.
_SMALLEST_SIDE = 16
# The edge ratio is a hint, not a certificate: skip matrices whose Gram alone would take longer than the audit.
_LARGEST_SIDE = 4096
_NO_SPECTRUM: dict[str, float | None] = {"edge_ratio": None, "frobenius": None, "stable_rank": None}


@dataclass(frozen=True)
class WeightFacts:
    """The facts of one tensor and the first node that reads it."""

    node: str
    facts: dict[str, Any]


def weight_facts(graph: Graph) -> list[WeightFacts]:
    """Facts of every stored floating-point tensor that a node reads, in order of first use."""
    found: list[WeightFacts] = []
    seen: set[str] = set()
    for node in graph.nodes:
        for i, name in enumerate(node.inputs):
            constant = graph.constants.get(name)
            if constant is None or name in seen or "float" not in constant.dtype:
                continue
            seen.add(name)
            found.append(WeightFacts(node.name, _facts(constant, _role(node, i, constant))))
    return found


def _role(node: Node, i: int, constant: Constant) -> str:
    op, rank = node.op, len(constant.shape)
    if op in ("Conv", "ConvTranspose", "FusedConv", "NhwcConv"):
        return "conv" if i == 1 else "bias"
    if op in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "LSTM", "GRU", "RNN", "Attention") and i <= 2 and rank >= 2:
        return "linear" if op not in ("Gemm", "FusedGemm") or i < 2 else "bias"
    if op in ("Gather", "EmbedLayerNormalization") and rank == 2:
        return "embedding"
    if "Normalization" in op:
        return "norm"
    if op == "Where" or (constant.fill is None and bool(np.isneginf(_float32(constant)).any())):
        return "mask"
    if op in ("Add", "Gemm", "LSTM", "GRU", "RNN", "Attention") and constant.size > 1 and max(constant.shape, default=1) == constant.size:
        return "bias"
    return "other"


def _float32(constant: Constant) -> NDArray[Any]:
    array = constant.array()
    return array if str(array.dtype) in ("float32", "float64") else np.asarray(array, dtype=np.float32)


def _facts(constant: Constant, role: str) -> dict[str, Any]:
    matrix = role in ("linear", "conv")
    rows, cols = _sides(constant, role)
    nan_count, inf_count, zero = _counts(constant)
    return {
        "name": constant.name,
        "role": role,
        "dtype": constant.dtype,
        "is_matrix": matrix,
        "is_parameter": role in _PARAMETERS,
        "rows": rows,
        "cols": cols,
        "nan_count": nan_count,
        "inf_count": inf_count,
        "zero": zero,
        **(_of_spectrum(constant, rows, cols) if matrix and nan_count + inf_count == 0 and not zero else _NO_SPECTRUM),
    }


def _counts(constant: Constant) -> tuple[int, int, bool]:
    if constant.fill is not None:
        value = float(constant.fill)
        return constant.size * math.isnan(value), constant.size * math.isinf(value), value == 0.0
    array = _float32(constant)
    nan_count, inf_count = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    return nan_count, inf_count, bool(array.size) and not bool(array.any())


def _sides(constant: Constant, role: str) -> tuple[int, int]:
    if len(constant.shape) < 2:
        return constant.size, 1
    if role == "conv":
        return constant.shape[0], math.prod(constant.shape[1:])
    return math.prod(constant.shape[:-1]), constant.shape[-1]


def _of_spectrum(constant: Constant, rows: int, cols: int) -> dict[str, float | None]:
    """Edge ratio, Frobenius norm and stable rank of the matrix [rows, cols]."""
    if min(rows, cols) == 0:
        return _NO_SPECTRUM
    weight = stored_values(constant)
    size = sum_of_squares(weight).sqrt()
    found = {**_NO_SPECTRUM, "frobenius": float(size.upper)}
    if min(rows, cols) > _LARGEST_SIDE:
        return found
    # The norm of a stored matrix is the one that the certificate used.
    norm = matrix_norm(constant, "l2") if len(constant.shape) == 2 else dense_norm(weight.reshape(rows, cols), "l2", slack=1e-3)
    rank = stable_rank(norm, size, (rows, cols))
    return {**found, "edge_ratio": _edge_ratio(constant, rows, cols, norm), "stable_rank": None if rank is None else float(rank.upper)}


def _deviation(array: NDArray[Any]) -> float:
    """Standard deviation of all elements, read in blocks."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
    blocks = range(0, flat.size, BLOCK)

    def mean(shift: float, power: int) -> float:
        parts = (np.asarray(flat[at : at + BLOCK], dtype=np.float64) - shift for at in blocks)
        return math.fsum(float(np.sum(part**power)) for part in parts) / flat.size

    return math.sqrt(mean(mean(0.0, 1), 2))


def _edge_ratio(constant: Constant, rows: int, cols: int, norm: VerifiedNorm) -> float | None:
    """Largest singular value over ``std (sqrt rows + sqrt cols)`` (Marchenko, Pastur 1967: the edge for iid entries)."""
    if constant.fill is not None or min(rows, cols) < _SMALLEST_SIDE:
        return None
    spread = _deviation(constant.array())
    return None if spread == 0.0 else float(norm.upper) / (spread * (math.sqrt(rows) + math.sqrt(cols)))
