"""The linear parts as JSON, by the contract ``lipaudit.weights/1``: equal tables give equal bytes."""

from __future__ import annotations

from lipaudit.records import Weights
from lipaudit.report.json import encode

__all__ = ["render"]


def render(weights: Weights) -> str:
    """JSON text, two spaces of indentation."""
    return encode(weights, weights.model.path)
