"""Compound operators (recurrent layers, fused and quantised operators, loops) spelled in standard nodes for derivatives and float64."""

from lipaudit.validate.lowering.lower import LOWERINGS, Lowered, lower

__all__ = ["LOWERINGS", "Lowered", "lower"]
