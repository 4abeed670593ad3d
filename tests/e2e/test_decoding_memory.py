"""Narrow and quantised weights are decoded block by block: what an audit holds beside the file, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

K, N, BLOCK = 8192, 1024, 32
WIDE = 8 * K * N
"""Bytes of the weight in float64."""
LIBRARIES = 24 << 20
"""What is loaded on the way."""
CHUNKS = 40 << 20
"""A block of float64 in conversion."""


def external(name: str, kind: int, dims: list[int], array: NDArray[np.generic], folder: Path) -> onnx.TensorProto:
    (folder / f"{name}.bin").write_bytes(array.tobytes())
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", f"{name}.bin"), ("offset", "0"), ("length", str(array.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor


def build(kind: str, folder: Path, rows: int = K, columns: int = N) -> Path:
    """One product with a weight [rows, columns] of that kind."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 1, (rows // BLOCK, columns)).astype(np.float32)
    halves = rng.integers(0, 256, rows * columns // 2).astype(np.uint8)
    element = TensorProto.FLOAT
    if kind == "MatMulNBits":
        weights = [
            external("w", TensorProto.UINT8, [columns, rows // BLOCK, BLOCK // 2], halves, folder),
            external("s", TensorProto.FLOAT, [columns * (rows // BLOCK)], scale, folder),
        ]
        nodes = [helper.make_node(kind, ["x", "w", "s"], ["y"], domain="com.microsoft", K=rows, N=columns, bits=4, block_size=BLOCK)]
    elif kind == "bfloat16":
        element = TensorProto.BFLOAT16
        bits = rng.standard_normal((rows, columns), dtype=np.float32).view(np.uint32) >> 16
        weights = [external("w", element, [rows, columns], bits.astype(np.uint16), folder)]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        stored = (
            (TensorProto.INT4, halves) if kind == "int4" else (TensorProto.INT8, rng.integers(-127, 128, rows * columns).astype(np.int8))
        )
        weights = [
            external("w", stored[0], [rows, columns], stored[1], folder),
            external("s", TensorProto.FLOAT, [rows // BLOCK, columns], scale, folder),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=0, block_size=BLOCK),
            helper.make_node("MatMul", ["x", "v"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(*end) for end in (("x", element, [1, rows]), ("y", element, [1, columns]))]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "product", ends[:1], ends[1:], weights), ir_version=10, opset_imports=opsets)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# As a share of the weight in float64 (8 bytes): one decoded copy (8), float32 values, their source and what is kept (4 + 1 + 3),
# the file itself (2).
@pytest.mark.parametrize(("kind", "share"), [("MatMulNBits", 1.13), ("int4", 1.0), ("int8", 1.0), ("bfloat16", 0.3)])
def test_decoded_weights_are_held_once(kind: str, share: float, tmp_path: Path) -> None:
    path = build(kind, tmp_path)
    script = (
        "import resource, lipaudit\n"
        f"lipaudit.audit({str(tmp_path / 'warm.onnx')!r}, measure=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = lipaudit.audit({str(path)!r}, measure=False)\n"
        "print(found.certified.status, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    warm = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 80])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 80])],
        [helper.make_tensor("w", TensorProto.FLOAT, [80, 80], np.arange(6400.0).tolist())],
    )
    (tmp_path / "warm.onnx").write_bytes(
        helper.make_model(warm, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    status, held = result.stdout.split()
    gram = 12 * N * N
    assert status == "finite"

    assert int(held) <= share * WIDE + gram + CHUNKS + LIBRARIES
