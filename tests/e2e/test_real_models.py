"""Every real model gives an audit or a refusal in words; what must be finite is finite; certified >= measured > 0."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

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
    "ultraface_rfb320",
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
    counts = kinds(audit)
    if name in RESIDUAL:
        assert counts["residual"] == RESIDUAL[name]
    if name in ATTENTION:
        assert counts["attention"] == ATTENTION[name]
