"""The sample models: built by their scripts, run by onnxruntime, and what their docstrings claim of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
NAMES = sorted(path.stem.removeprefix("build_") for path in SAMPLES.glob("build_*.py") if path.stem != "build_all")
TRAINED = "digits_mlp"

Array = NDArray[Any]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All samples, built anew by their scripts (the trained one is the committed file)."""
    folder = tmp_path_factory.mktemp("samples")
    code = "import sys, pathlib; from build_all import build_all; build_all(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=SAMPLES, check=True, timeout=120)
    return folder


def load(name: str, folder: Path = SAMPLES / "models") -> onnx.ModelProto:
    return onnx.load(folder / f"{name}.onnx")


def run(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]


def random_inputs(model: onnx.ModelProto, scale: float = 1.0) -> dict[str, Array]:
    """One input per graph input; symbolic dimensions are 1."""
    random = np.random.default_rng(7)
    inputs: dict[str, Array] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or 1 for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.INT64:
            inputs[value.name] = random.integers(0, 10, shape)
        else:
            inputs[value.name] = (scale * random.standard_normal(shape)).astype(np.float32)
    return inputs


def test_every_model_has_a_script_and_every_script_a_model() -> None:
    assert {path.stem for path in (SAMPLES / "models").glob("*.onnx")} == set(NAMES)
    assert len(NAMES) >= 11


@pytest.mark.parametrize("name", NAMES)
def test_script_says_what_the_sample_shows(name: str) -> None:
    text = ast.get_docstring(ast.parse((SAMPLES / f"build_{name}.py").read_text(encoding="utf-8")))
    assert text is not None
    assert len(text.split()) >= 20
    assert f"`{name}`" in (SAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_runs_in_onnxruntime(name: str) -> None:
    model = load(name)
    assert model.ir_version == 10
    assert {entry.version for entry in model.opset_import} <= {17, 18, 21}
    outputs = run(model, random_inputs(model))
    assert len(outputs) == len(model.graph.output)
    for declared, value in zip(model.graph.output, outputs, strict=True):
        assert value.shape == tuple(dim.dim_value or 1 for dim in declared.type.tensor_type.shape.dim)
    finite = all(np.isfinite(value).all() for value in outputs)
    assert finite == (name != "nan_weight")


@pytest.mark.parametrize("name", NAMES)
def test_committed_file_is_what_its_script_builds(name: str, rebuilt: Path) -> None:
    committed, again = load(name), load(name, rebuilt)
    weights = [{tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} for model in (committed, again)]
    assert list(weights[0]) == list(weights[1])
    for key, value in weights[0].items():
        # QR decompositions differ in their last bits from one LAPACK to the next.
        np.testing.assert_allclose(weights[1][key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    for model in (committed, again):
        del model.graph.initializer[:]
    assert committed == again


def test_digits_classifier_knows_images_it_never_saw() -> None:
    images = np.load(SAMPLES / "models" / f"{TRAINED}.inputs.npz")
    labels = np.load(SAMPLES / "models" / f"{TRAINED}.labels.npy")
    assert images.files == ["x"]
    assert images["x"].min() >= 0.0
    assert images["x"].max() <= 1.0
    (logits,) = run(load(TRAINED), {"x": images["x"]})
    assert np.mean(logits.argmax(axis=1) == labels) >= 0.9


def attention_gain(name: str, scale: float) -> float:
    """Largest gain of small random steps at a random input of the given scale."""
    model = load(name)
    x = random_inputs(model, scale)["x"]
    random = np.random.default_rng(8)
    best = 0.0
    for _ in range(30):
        step = random.standard_normal(x.shape).astype(np.float32)
        step *= np.float32(1e-2 / np.linalg.norm(step))
        (a,), (b,) = run(model, {"x": x}), run(model, {"x": x + step})
        best = max(best, float(np.linalg.norm(a - b) / np.linalg.norm(step)))
    return best


def test_only_dot_product_attention_grows_with_its_input() -> None:
    growth = {
        name: attention_gain(f"{name}_attention", 8.0) / attention_gain(f"{name}_attention", 0.5)
        for name in ("dot_product", "l2", "cosine")
    }
    assert growth["dot_product"] > 3.0
    assert growth["l2"] < 1.5
    assert growth["cosine"] < 1.5


def test_unstable_sample_has_the_faults_it_claims() -> None:
    model = load("unstable")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not weights["block.conv2.weight"].any()
    assert not weights["bn2.mean"].any()
    assert (weights["bn2.var"] == 1).all()
    assert weights["gate.norm.weight"].size == 1
    first, second = (run(model, random_inputs(model, scale)) for scale in (1.0, 3.0))
    # The gate is a constant, whatever comes in: its bias.
    gate = next(node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization")
    model.graph.output.append(onnx.helper.make_tensor_value_info(gate, TensorProto.FLOAT, None))
    for scale in (1.0, 3.0):
        np.testing.assert_array_equal(run(model, random_inputs(model, scale))[-1], np.full((1, 1), 0.7, np.float32))
    assert not np.array_equal(first[0], second[0])


def test_epsilon_of_half_norm_is_lost() -> None:
    (node,) = [node for node in load("half_norm").graph.node if node.op_type == "GroupNormalization"]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes["stash_type"] == TensorProto.FLOAT16
    assert attributes["epsilon"] > 0
    assert np.float16(attributes["epsilon"]) == 0


def test_untrained_sample_has_the_spectra_of_noise() -> None:
    ratios: list[float] = []
    for tensor in load("untrained").graph.initializer:
        weight = numpy_helper.to_array(tensor).astype(np.float64)
        if weight.ndim == 2:
            rows, cols = weight.shape
            ratios.append(float(np.linalg.norm(weight, 2) / (weight.std() * (np.sqrt(rows) + np.sqrt(cols)))))
    assert len(ratios) >= 8
    assert np.mean([0.9 <= ratio <= 1.1 for ratio in ratios]) >= 0.9
