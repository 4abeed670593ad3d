"""The graph evaluated in float64 by numpy, with every intermediate value on request.

This is the function that the certificate speaks of: stored constants as they are, float types without their rounding.
onnxruntime has no double kernel for Conv, Erf and many others; here convolutions are sums over kernel taps, done by BLAS.
"""

from lipaudit.validate.exact.call import NotExact
from lipaudit.validate.exact.evaluator import Evaluator, evaluated

__all__ = ["Evaluator", "NotExact", "evaluated"]
