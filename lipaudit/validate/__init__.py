"""Measured gains: a search for the worst pair of inputs in onnxruntime, every reported number confirmed in float64."""

from lipaudit.validate.arrays import check_inputs, pack, read_arrays
from lipaudit.validate.budget import BUDGETS, NORMAL, QUICK, THOROUGH, Budget
from lipaudit.validate.isolate import can_isolate, isolated
from lipaudit.validate.measurement import Measurement, Measurements, to_record
from lipaudit.validate.run import validate
from lipaudit.validate.witness import Witness, witness_bytes

__all__ = [
    "BUDGETS", "NORMAL", "QUICK", "THOROUGH", "Budget", "Measurement", "Measurements", "Witness", "can_isolate", "check_inputs",
    "isolated", "pack", "read_arrays", "to_record", "validate", "witness_bytes",
]  # fmt: skip
