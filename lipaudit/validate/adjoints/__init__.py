"""Tangent and adjoint graphs: J t and J' c of a graph as ONNX models that onnxruntime runs like any other."""

from lipaudit.validate.adjoints.builder import NoDerivative
from lipaudit.validate.adjoints.derive import Derivative, jvp, spelled, vjp

__all__ = ["Derivative", "NoDerivative", "jvp", "spelled", "vjp"]
