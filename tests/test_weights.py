"""``lipaudit weights``: every linear part of a model with its numbers, and the contract of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest

import lipaudit
from lipaudit.errors import UsageError
from lipaudit.records import WeightRow
from lipaudit.report.schema import published_schema, schema
from lipaudit.report.weights import FORMATS, render
from lipaudit.weights import weights

RNG = np.random.default_rng(31)
Build = Callable[[Path], Path]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lipaudit", "weights", *arguments], check=False, capture_output=True, text=True, timeout=120
    )


def save(
    folder: Path, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], shapes: dict[str, list[int]], opsets: dict[str, int]
) -> Path:
    """A model from ``x`` (its shape in ``shapes``) to ``y``; ``i`` are integer ids where given."""
    inputs = [
        oh.make_tensor_value_info(name, onnx.TensorProto.INT64 if name == "i" else onnx.TensorProto.FLOAT, shapes[name])
        for name in shapes
        if name != "y"
    ]
    graph = oh.make_graph(
        nodes, "g", inputs, [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shapes["y"])],
        [nh.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid(domain, version) for domain, version in opsets.items()], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def only(path: Path) -> WeightRow:
    (row,) = weights(path).weights
    return row


def agrees(row: WeightRow, matrix: np.ndarray) -> None:
    """All numbers of a row against numpy's, each on its side."""
    matrix = matrix.astype(np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert row.operator_shape == list(matrix.shape)
    assert row.norm.upper is not None and row.norm.lower is not None and row.norm.slack is not None
    assert float(row.norm.lower) * (1 - 1e-12) <= values[0] <= float(row.norm.upper) * (1 + 1e-12)
    assert float(row.norm.upper) <= values[0] * (1 + 1e-5)
    assert float(row.norm.upper) <= float(row.norm.lower) * (1 + row.norm.slack) * (1 + 1e-7)
    assert row.l1 is not None and row.linf is not None and row.fro is not None and row.stable_rank is not None
    for text, true in (
        (row.l1, np.abs(matrix).sum(axis=0).max()),
        (row.linf, np.abs(matrix).sum(axis=1).max()),
        (row.fro, np.linalg.norm(matrix)),
    ):
        assert true * (1 - 1e-12) <= float(text) <= true * (1 + 1e-6)
    rank = (values**2).sum() / values[0] ** 2
    assert float(row.stable_rank.lower) <= rank * (1 + 1e-12) and rank * (1 - 1e-12) <= float(row.stable_rank.upper)
    if row.sigma_min is not None:
        assert float(row.sigma_min) <= values[-1] * (1 + 1e-9)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_products(tmp_path: Path) -> None:
    w = f32(4, 3)
    for node, stored, matrix in (
        (oh.make_node("MatMul", ["x", "w"], ["y"], "n"), w, w.T),
        (oh.make_node("Gemm", ["x", "w"], ["y"], "n", transB=1), w.T.copy(), w.T),
        (oh.make_node("Gemm", ["x", "w"], ["y"], "n", alpha=0.75), w, 0.75 * w.T.astype(float)),
        (oh.make_node("FusedMatMul", ["x", "w"], ["y"], "n", domain="com.microsoft", transB=1, alpha=2.0), w.T.copy(), 2 * w.T),
        (oh.make_node("FusedGemm", ["x", "w"], ["y"], "n", domain="com.microsoft", activation="Relu"), w, w.T),
    ):
        row = only(save(tmp_path, [node], {"w": stored}, {"x": [2, 4], "y": [2, 3]}, {"": 17, "com.microsoft": 1}))
        assert (row.name, row.node, row.kind) == ("w", "n", "matrix")
        assert row.sigma_min is not None
        agrees(row, matrix)
    left = only(save(tmp_path, [oh.make_node("MatMul", ["w", "x"], ["y"], "n")], {"w": w}, {"x": [3, 5], "y": [4, 5]}, {"": 17}))
    agrees(left, w)
    batch = f32(3, 4, 2)
    row = only(save(tmp_path, [oh.make_node("MatMul", ["x", "w"], ["y"], "n")], {"w": batch}, {"x": [3, 1, 4], "y": [3, 1, 2]}, {"": 17}))
    assert row.kind == "batched matrix"
    full = np.zeros((6, 12))
    for k in range(3):
        full[2 * k : 2 * k + 2, 4 * k : 4 * k + 4] = batch[k].T
    agrees(row, full)


def conv_matrix(node: onnx.NodeProto, w: np.ndarray, shape: list[int], out: list[int]) -> np.ndarray:
    """From the runtime itself, one pixel at a time."""
    from onnx.reference import ReferenceEvaluator

    size = int(np.prod(shape))
    graph = oh.make_graph(
        [node], "g", [oh.make_tensor_value_info("x", 1, shape)], [oh.make_tensor_value_info("y", 1, out)], [nh.from_array(w, "w")]
    )
    session = ReferenceEvaluator(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)]))
    unit = np.eye(size, dtype=np.float32)
    return np.stack([np.asarray(session.run(None, {"x": unit[k].reshape(shape)})[0]).reshape(-1) for k in range(size)], axis=1)


@pytest.mark.parametrize(
    ("op", "kernel", "shape", "out", "attributes"),
    [
        ("Conv", (3, 2, 3, 3), [1, 2, 5, 4], [1, 3, 5, 4], {"pads": [1, 1, 1, 1]}),
        ("Conv", (4, 1, 3), [1, 2, 7], [1, 4, 3], {"strides": [2], "group": 2}),
        ("Conv", (2, 1, 2, 2, 2), [1, 1, 3, 3, 3], [1, 2, 2, 2, 2], {}),
        ("ConvTranspose", (2, 3, 3, 2), [1, 2, 3, 3], [1, 3, 6, 6], {"strides": [2, 2], "pads": [0, 0, 1, 0]}),
    ],
)
def test_convolutions(
    op: str, kernel: tuple[int, ...], shape: list[int], out: list[int], attributes: dict[str, object], tmp_path: Path
) -> None:
    w = f32(*kernel)
    node = oh.make_node(op, ["x", "w"], ["y"], "n", **attributes)
    row = only(save(tmp_path, [node], {"w": w}, {"x": shape, "y": out}, {"": 17}))
    assert row.kind == ("convolution" if op == "Conv" else "transposed convolution") and row.shape == list(kernel)
    agrees(row, conv_matrix(node, w, shape, out))


def test_diagonals_tables_and_recurrent_layers(tmp_path: Path) -> None:
    scale, mean, table = f32(5), f32(5), f32(7, 3)
    row = only(save(tmp_path, [oh.make_node("Mul", ["x", "s"], ["y"], "n")], {"s": scale}, {"x": [2, 5], "y": [2, 5]}, {"": 17}))
    assert row.kind == "diagonal"
    agrees(row, np.diag(scale))
    variance = np.abs(f32(5)) + 1
    node = oh.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], "n", epsilon=0.5)
    row = only(save(tmp_path, [node], {"s": scale, "b": mean, "m": mean, "v": variance}, {"x": [1, 5, 2], "y": [1, 5, 2]}, {"": 17}))
    agrees(row, np.diag(scale / np.sqrt(variance.astype(float) + 0.5)))
    row = only(save(tmp_path, [oh.make_node("Gather", ["t", "i"], ["y"], "n")], {"t": table}, {"i": [4], "y": [4, 3]}, {"": 17}))
    assert row.kind == "embedding"
    agrees(row, table.T)
    w, r = f32(2, 12, 4), f32(2, 12, 3)
    node = oh.make_node("LSTM", ["x", "w", "r"], ["y"], "n", hidden_size=3, direction="bidirectional")
    rows = weights(save(tmp_path, [node], {"w": w, "r": r}, {"x": [2, 1, 4], "y": [2, 2, 1, 3]}, {"": 17})).weights
    assert [row.name for row in rows] == ["w", "w", "r", "r"]
    for row, matrix in zip(rows, (*w, *r), strict=True):
        agrees(row, matrix)


def test_quantised_weights(tmp_path: Path) -> None:
    q = RNG.integers(-127, 128, (4, 3)).astype(np.int8)
    step, zero = np.array([0.5, 0.25, 0.03], dtype=np.float32), np.zeros(3, dtype=np.int8)
    real = q.astype(np.float32) * step
    nodes = [oh.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1), oh.make_node("MatMul", ["x", "w"], ["y"], "n")]
    agrees(only(save(tmp_path, nodes, {"q": q, "s": step, "z": zero}, {"x": [2, 4], "y": [2, 3]}, {"": 17})), real.T)
    packed = RNG.integers(0, 256, (3, 1, 8)).astype(np.uint8)
    scales = np.array([0.5, 2.0, 0.125], dtype=np.float32)
    nibbles = np.stack((packed & 15, packed >> 4), axis=-1).reshape(3, 16).astype(float) - 8
    node = oh.make_node("MatMulNBits", ["x", "p", "s"], ["y"], "n", domain="com.microsoft", K=16, N=3, bits=4, block_size=16)
    row = only(save(tmp_path, [node], {"p": packed, "s": scales}, {"x": [2, 16], "y": [2, 3]}, {"": 17, "com.microsoft": 1}))
    agrees(row, nibbles * scales[:, None])


def test_weights_that_are_not_finite_are_named_and_the_rest_goes_on(samples: Path, tmp_path: Path) -> None:
    found = run(str(samples / "nan_weight.onnx"), "-o", f"json={tmp_path / 'w.json'}")
    assert found.returncode == 1, found.stderr
    rows = json.loads((tmp_path / "w.json").read_text())["weights"]
    bad = [row for row in rows if row["nonfinite"]]
    assert [row["reason"] for row in bad] == ["weight 'fc2.weight' of node '/fc2/Gemm' holds 1 non-finite values"]
    assert bad[0]["norm"]["upper"] is None and bad[0]["fro"] is None and bad[0]["sigma_min"] is None
    assert all(row["norm"]["upper"] is not None for row in rows if not row["nonfinite"]) and len(rows) > 1


def test_equal_bytes_whatever_the_number_of_threads(samples: Path) -> None:
    for name in ("unet", "prenorm_transformer"):
        texts = {render("json", weights(samples / f"{name}.onnx", threads=threads)) for threads in (1, 2)}
        assert len(texts) == 1


def test_json_fits_the_published_schema_which_is_up_to_date(samples: Path) -> None:
    assert json.loads(published_schema("weights")) == schema("weights")
    validator = jsonschema.Draft202012Validator(schema("weights"))
    for name in ("nan_weight", "unet", "lstm"):
        found = json.loads(render("json", weights(samples / f"{name}.onnx")))
        validator.validate(found)
        assert found["schema"] == "lipaudit.weights/1"
        fields = {"name", "node", "op", "shape", "operator_shape", "norm", "l1", "linf", "fro", "stable_rank", "sigma_min"}
        assert all(fields <= set(row) and set(row["norm"]) == {"upper", "lower", "slack", "method"} for row in found["weights"])


def test_the_audit_has_the_same_numbers(samples: Path) -> None:
    rows = {row.node: row for row in weights(samples / "mlp.onnx").weights}
    steps = lipaudit.audit(samples / "mlp.onnx", measure=False).derivation
    gains = {step.target: float(step.value) for step in steps if step.quantity == "gain" and step.target in rows}
    assert gains
    for node, gain in gains.items():
        upper = rows[node].norm.upper
        assert upper is not None and gain == pytest.approx(float(upper), rel=1e-4)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_names_every_weight_and_escapes(name: str, tmp_path: Path) -> None:
    hostile = "<b>|`\x1b[31m\u202e"
    node = oh.make_node("MatMul", ["x", hostile], ["y"], "n")
    path = save(tmp_path, [node], {hostile: f32(4, 3)}, {"x": [2, 4], "y": [2, 3]}, {"": 17})
    text = render(name, weights(path))
    assert ("\x1b" not in text and "\u202e" not in text) or name == "json"
    assert name != "html" or "<b>" not in text
    with pytest.raises(UsageError):
        render("yaml", weights(path))


def test_orders_and_usage(samples: Path) -> None:
    path = str(samples / "unet.onnx")
    uppers = [float(row.norm.upper or "inf") for row in weights(path, sort="norm").weights]
    assert uppers == sorted(uppers, reverse=True)
    for change in ({"sort": "colour"}, {"threads": 0}):
        with pytest.raises(UsageError):
            weights(path, **change)  # pyright: ignore[reportArgumentType]
    for arguments, code in (((path, "-o", "yaml=x"), 2), ((path, "--sort", "colour"), 2), (("missing.onnx",), 3)):
        found = run(*arguments)
        assert found.returncode == code and found.stdout == "" and found.stderr.count("\n") == 1
