"""More than 2 GB of external weights are audited without ever being in memory at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

SIDE, LAYERS = 2048, 136  # 2.3 GB of float32, in one small file that all layers share


def build(folder: Path) -> Path:
    """A chain of MatMul and Relu whose weights all view the same 16 MB of one external file."""
    rng = np.random.default_rng(0)
    (folder / "w.bin").write_bytes((rng.standard_normal((SIDE, SIDE)) / (2.2 * np.sqrt(SIDE))).astype(np.float32).tobytes())
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    for i in range(LAYERS):
        tensor = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE], data_location=TensorProto.EXTERNAL)
        for key, text in (("location", "w.bin"), ("offset", "0"), ("length", str(SIDE * SIDE * 4))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
        weights.append(tensor)
        nodes += [helper.make_node("MatMul", [value, f"w{i}"], [f"h{i}"]), helper.make_node("Relu", [f"h{i}"], [f"r{i}"])]
        value = f"r{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path


@pytest.mark.soak
def test_large_model_in_little_memory(tmp_path: Path) -> None:
    path = build(tmp_path)
    script = (
        "import resource, lipaudit\n"
        f"found = lipaudit.audit({str(path)!r})\n"
        "print(found.certified.status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=1200)
    status, kilobytes = result.stdout.split()
    assert status == "finite"
    assert int(kilobytes) < 1_500_000
