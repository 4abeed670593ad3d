"""Measured gains: a search for the worst pair of inputs in onnxruntime, every reported number confirmed in float64."""

from lipaudit.validate.budget import BUDGETS, NORMAL, QUICK, THOROUGH, Budget
from lipaudit.validate.measurement import Measurement, Measurements, to_record
from lipaudit.validate.run import validate

__all__ = ["BUDGETS", "NORMAL", "QUICK", "THOROUGH", "Budget", "Measurement", "Measurements", "to_record", "validate"]
