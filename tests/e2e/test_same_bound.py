"""One network written by several exporters has one bound, up to the rounding of its verified norms."""

from __future__ import annotations

from pathlib import Path

import pytest

import lipaudit

SIZES = {"gpt2": 16, "bert": 16, "llama": 16, "vit": 0, "sdpa_rmsnorm": 0, "convnext": 0}


@pytest.mark.models
@pytest.mark.parametrize("architecture", SIZES)
def test_exporters_give_the_same_bound(models: Path, architecture: str) -> None:
    found: dict[str, float] = {}
    for path in sorted((models / "exports").glob(f"{architecture}.*.onnx")):
        dims = {"seq": SIZES[architecture]} if SIZES[architecture] and "legacy" in path.name else {}
        certified = lipaudit.audit(path, dims=dims, measure=False).certified
        assert certified.status == "finite" and certified.log10 is not None
        found[path.name] = certified.log10
    assert len(found) >= 2
    assert max(found.values()) - min(found.values()) < 1e-4, found
