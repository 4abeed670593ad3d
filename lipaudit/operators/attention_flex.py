"""FlexAttention (ai.onnx.preview): attention with nested graphs for scores and probabilities; without them, the plain operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lipaudit.operators.attention import Attention, Computation
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.range import Range

__all__ = ["FlexAttention"]


class FlexAttention(Attention):
    """As ``ai.onnx::Attention`` on rank-4 inputs; a modifier changes scores or probabilities in a way that is not looked into."""

    def computation(self, site: Site, xs: Sequence[Range | None]) -> Computation | Unknown:
        """Of the plain operator."""
        for name in ("score_mod", "prob_mod"):
            if site.node.attrs.get(name) is not None:
                return Unknown(f"the graph {name} of FlexAttention is not looked into")
        attrs = {name: value for name, value in site.node.attrs.items() if name == "scale"}
        return super().computation(replace(site, node=site.node.renamed(op="Attention", domain="", version=23, attrs=attrs)), xs)
