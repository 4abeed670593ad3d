"""A small writer of ONNX graphs: the samples need numpy and onnx, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MODELS", "Builder", "decaying", "rng", "save"]

MODELS = Path(__file__).resolve().parent / "models"

# Fixed, and older than the newest: `onnx.helper` would stamp versions that current runtimes refuse.
IR_VERSION = 10

Shape = Sequence[int | str]
Array = NDArray[Any]


def rng(seed: int) -> np.random.Generator:
    """Return the generator of a sample; each sample has its own seed, so that one can change without the others."""
    return np.random.Generator(np.random.PCG64(seed))


def decaying(random: np.random.Generator, rows: int, cols: int, *, norm: float, power: float = 1.0) -> NDArray[np.float32]:
    """Return a rows x cols matrix with singular values ``norm / k**power``, k = 1, 2, …

    Trained weight matrices have such decaying spectra, with a few strong directions; independent Gaussian entries have
    not, and ``LIP405 weights-look-untrained`` tells them apart.
    """
    rank = min(rows, cols)
    left = np.linalg.qr(random.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(random.standard_normal((cols, rank)))[0]
    values = norm / np.arange(1, rank + 1) ** power
    return ((left * values) @ right.T).astype(np.float32)


class Builder:
    """Collects nodes and weights in order; every method that adds a node returns the name of its first output."""

    def __init__(self, name: str, *, opset: int = 18) -> None:
        self.name = name
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._count: dict[str, int] = {}

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph input; a text in ``shape`` is a symbolic dimension."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> None:
        """Declare ``value`` as a graph output called ``name``."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"/{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, name: str, array: Array) -> str:
        """Store a constant tensor."""
        if name in self.weights:
            raise ValueError(f"two weights are called {name}")
        self.weights[name] = np.array(array, order="C")
        return name

    def node(self, op: str, *inputs: str, scope: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node called ``/scope/op``, numbered from the second of its name on."""
        return self.nodes_of(op, *inputs, scope=scope, outputs=outputs, **attributes)[0]

    def nodes_of(self, op: str, *inputs: str, scope: str = "", outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of all its outputs."""
        name = f"/{scope}/{op}" if scope else f"/{op}"
        seen = self._count.get(name, 0)
        self._count[name] = seen + 1
        name = f"{name}_{seen}" if seen else name
        results = [f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name=name, **attributes))
        return results

    def scalar(self, name: str, value: float, dtype: Any = np.float32) -> str:
        """Store a 0-d constant."""
        return self.weight(name, np.array(value, dtype=dtype))

    def linear(self, x: str, weight: Array, bias: Array | None, scope: str) -> str:
        """Return ``x @ weight + bias`` on the last axis (``weight`` is in x out), as MatMul and Add."""
        y = self.node("MatMul", x, self.weight(f"{scope}.weight", weight), scope=scope)
        return y if bias is None else self.node("Add", y, self.weight(f"{scope}.bias", bias), scope=scope)

    def gemm(self, x: str, weight: Array, bias: Array, scope: str) -> str:
        """Return ``x @ weight.T + bias`` for a matrix ``x`` (``weight`` is out x in), as one Gemm."""
        return self.node("Gemm", x, self.weight(f"{scope}.weight", weight), self.weight(f"{scope}.bias", bias), scope=scope, transB=1)

    def model(self) -> onnx.ModelProto:
        """Return the checked model."""
        graph = helper.make_graph(
            self.nodes,
            self.name,
            self.inputs,
            self.outputs,
            initializer=[numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", self.opset)],
            producer_name="lipaudit samples",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def save(model: onnx.ModelProto, folder: Path = MODELS) -> Path:
    """Write the model as ``folder/NAME.onnx``, NAME being the name of its graph."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.graph.name}.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
