"""Compound operators (recurrent layers, fused and quantised operators, loops) spelled in standard nodes for derivatives and float64."""

from lipaudit.validate.lowering.lower import LOWERINGS, Lowered, lower
from lipaudit.validate.lowering.parameters import PARAMETERS

__all__ = ["LOWERINGS", "PARAMETERS", "Lowered", "lower"]
