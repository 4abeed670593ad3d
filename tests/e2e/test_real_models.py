"""Every real model gives an audit or a refusal in words; what must be finite is finite; certified >= measured > 0."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import lipaudit
from lipaudit.errors import LipauditError
from lipaudit.records import Audit, Region
from tests.conftest import models_folder

FINITE = (
    "acasxu_1_1",
    "cgan_32_1",
    "cgan_32_3_upsample",
    "cifar10_resnet_2b",
    "cntk_mnist",
    "collins_rul_full40",
    "dist_shift_generator",
    "eran_sigmoid_6x200",
    "light_densenet121",
    "light_resnet50",
    "light_squeezenet",
    "light_vgg19",
    "linearizenn_allinone",
    "marabou_cifar10_small",
    "metaroom_4cnn_ry",
    "micro_kws_fp32",
    "mnist_fc_256x2",
    "mnist_fc_256x4",
    "nn4sys_lindex_deep",
    "oval21_cifar_base",
    "pytorch_superres",
    "reach_prob_gcas",
    "rl_lunarlander",
    "safenlp_medical",
    "sri_resnet_a",
    "test_nano",
    "test_small",
    "verivital_avgpool",
    "vnn_tinyyolo",
    "resnet18.dyn18",
    "resnet18.dyn23",
    "resnet18.legacy17",
    "mobilenetv2.dyn18",
    "resnet50_external",
)

# Their weights are one constant throughout, so all logits are equal for every input and the softmax returns 1/n: the
# function is constant, its gain is exactly 0, and nothing positive can be measured.
CONSTANT = ("light_resnet50", "light_squeezenet", "light_vgg19")

# Box sizes are exp(regression) of a network without bounded activations: along a ray of inputs the gain grows exponentially
# (test_no_constant_exists shows it), so no constant on all reals exists. The other output, "scores", has one.
UNBOUNDED = {"ultraface_rfb320": ("ai.onnx::Exp", "scores")}

RESIDUAL = {
    "resnet18.dyn18": 8, "resnet18.dyn23": 8, "resnet18.legacy17": 8, "resnet50_external": 16, "light_resnet50": 16,
    "cifar10_resnet_2b": 2, "sri_resnet_a": 3, "mobilenetv2.dyn18": 10,
}  # fmt: skip
ATTENTION = {
    "vit.dyn18": 3, "vit.dyn23": 3, "vit.legacy17": 3, "bert.dyn18": 2, "bert.dyn23": 2, "bert.legacy17": 2,
    "gpt2.dyn18": 2, "gpt2.dyn23": 2, "gpt2.legacy17": 2, "llama.dyn18": 2, "llama.dyn23": 2, "llama.legacy17": 2,
}  # fmt: skip


def _files() -> list[Path]:
    folder = models_folder()
    return [] if folder is None else sorted([*folder.glob("*.onnx"), *(folder / "exports").glob("*.onnx")])


FILES = _files()


def kinds(audit: Audit) -> Counter[str]:
    """How many regions of each kind the tree holds."""
    counts: Counter[str] = Counter()
    stack: list[Region] = list(audit.regions)
    while stack:
        region = stack.pop()
        counts[region.kind] += 1
        stack.extend(region.children)
    return counts


def test_the_folder_is_there(models: Path) -> None:
    assert len(FILES) >= 90


@pytest.mark.models
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_audit_or_refusal_in_words(path: Path) -> None:
    try:
        audit = lipaudit.audit(path, effort="quick")
    except LipauditError as refusal:
        problem = refusal
    else:
        check(path.stem, audit)
        return
    assert path.stem not in FINITE
    assert problem.exit_code == 3, problem
    assert len(str(problem)) > 20


def check(name: str, audit: Audit) -> None:
    """What must hold of the audit of a real model."""
    assert not audit.contradictions
    assert audit.certified.status == "finite" or audit.certified.reasons
    if name in FINITE:
        assert audit.certified.status == "finite", audit.certified.reasons
        if name in CONSTANT:
            assert audit.measured.status == "not-measured"
        else:
            assert audit.measured.status == "measured", audit.measured.reason
            assert audit.measured.log10 is not None
            assert audit.certified.log10 is not None
            assert audit.measured.log10 <= audit.certified.log10
    if name in UNBOUNDED:
        op, finite_output = UNBOUNDED[name]
        assert audit.certified.status == "unbounded"
        assert audit.certified.reasons[0].op == op
        assert [entry.certified.status for entry in audit.matrix if entry.output == finite_output] == ["finite"]
    counts = kinds(audit)
    if name in RESIDUAL:
        assert counts["residual"] == RESIDUAL[name]
    if name in ATTENTION:
        assert counts["attention"] == ATTENTION[name]


@pytest.mark.models
def test_no_constant_exists(models: Path) -> None:
    """The gain of ultraface's boxes along one ray, far out: more than any constant."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(models / "ultraface_rfb320.onnx"), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)

    def boxes(image: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(session.run(["boxes"], {"input": image})[0], dtype=np.float64)

    def widest(image: NDArray[np.float32]) -> float:
        far = boxes(image * np.float32(1000.0))[0]
        return float(np.max(far[:, 2] - far[:, 0]))

    def fine(coarse: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.kron(coarse, np.ones((1, 1, 30, 32))).astype(np.float32)

    best = random.normal(size=(1, 3, 8, 10))
    for _ in range(150):  # a ray along which some box grows
        other = best + random.normal(size=best.shape) * 0.5
        best = max(best, other, key=lambda coarse: widest(fine(coarse)))
        if widest(fine(best)) > 1e9:
            break
    ray = fine(best)
    gains: list[float] = []
    for scale in (1.0, 600.0, 800.0, 1000.0):
        x, z = (ray * np.float32(scale), ray * np.float32(scale * 1.001))
        gains.append(float(np.linalg.norm(boxes(z) - boxes(x)) / np.linalg.norm((z - x).astype(np.float64))))
    assert gains[3] > 10 * gains[2] > 100 * gains[1], gains
    assert gains[3] > 1e4 * gains[0], gains


@pytest.mark.models
def test_a_box_makes_it_finite(models: Path) -> None:
    audit = lipaudit.audit(models / "ultraface_rfb320.onnx", boxes={"input": (-1, 1)}, measure=False)
    assert audit.certified.status == "finite"
