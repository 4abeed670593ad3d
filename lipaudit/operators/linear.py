"""Rules of operators that are one linear map of one input, plus a constant: the map says everything.

Gain: the verified norm. Range: the map on the intervals (rounded outward) plus the constant.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.adjoint import Adjoint
from lipaudit.bounds.conv import Convolution
from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.linear import Dense
from lipaudit.bounds.operator import LinearOperator, VerifiedNorm
from lipaudit.bounds.scalar import Norm, dual
from lipaudit.graph.ir import Constant
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unknown
from lipaudit.operators.interval import Interval
from lipaudit.operators.range import Range, reals

__all__ = ["LinearRule", "constant_norm", "matrix_norm", "norm_gain", "stored_values", "weight_array"]

Floats = NDArray[np.float64]


def weight_array(constant: Constant) -> NDArray[np.float64]:
    """The elements of a weight as the bounds want them: a uniform one is a broadcast scalar, never materialised."""
    if constant.fill is not None:
        return np.broadcast_to(np.float64(constant.fill), constant.shape)
    array = constant.array()
    # ml_dtypes' narrow floats know few numpy functions; float64 holds all of them exactly.
    return array if str(array.dtype) in ("float32", "float64") else np.asarray(array, dtype=np.float64)


def stored_values(constant: Constant) -> NDArray[np.generic]:
    """The elements as they are stored, for operators and norms that widen them block by block; uniform ones as above."""
    return weight_array(constant) if constant.fill is not None or "float" not in constant.dtype else constant.array()


# Norms of matrices that ranges and gains both ask for, as long as the weight lives; the answer is the same whoever asks first.
_NORMS: WeakKeyDictionary[Constant, dict[Hashable, VerifiedNorm]] = WeakKeyDictionary()
_LOCK = Lock()


def _once(constant: Constant, key: Hashable, make: Callable[[], VerifiedNorm]) -> VerifiedNorm:
    with _LOCK:
        found = _NORMS.setdefault(constant, {}).get(key)
    if found is None:
        found = make()
        with _LOCK:
            _NORMS[constant][key] = found
    return found


def matrix_norm(constant: Constant, norm: Norm, *, transposed: bool = False) -> VerifiedNorm:
    """Verified norm of a stored matrix (or its transpose) as a map ``v -> W v``."""
    own: Norm = dual(norm) if transposed else norm
    return _once(constant, ("matrix", own), lambda: dense_norm(stored_values(constant), own))


def constant_norm(constant: Constant, operator: LinearOperator, norm: Norm) -> VerifiedNorm:
    """Verified norm of an operator that ``constant``, as it is stored, defines; computed once where several ask."""
    key = _signature(operator)
    return operator.norm(norm) if key is None else _once(constant, (key, norm), lambda: operator.norm(norm))


def _signature(operator: LinearOperator) -> Hashable | None:
    """Everything beside its weight that the norm of an operator depends on; None for operators that are not looked up."""
    if isinstance(operator, Adjoint):
        base = _signature(operator.base)
        return None if base is None else ("adjoint", base)
    if isinstance(operator, Convolution):
        return "convolution", operator.groups, operator.window, operator.in_shape, operator.weight.shape
    if isinstance(operator, Dense):
        return "dense", operator.side, operator.in_shape, operator.weight.shape
    return None


def norm_gain(operator: LinearOperator | VerifiedNorm, norm: Norm, weight: str = "", node: str = "") -> Gain:
    """The gain of a linear map (or of one whose norm is known); a weight with values that are not finite is named."""
    found = operator if isinstance(operator, VerifiedNorm) else operator.norm(norm)
    if found.upper.is_finite:
        return Finite(found.upper, method=found.method, evidence=found.evidence)
    bad = found.evidence.get("nonfinite")
    if bad:
        return Unknown(f"weight {weight!r} of node {node!r} holds {bad} non-finite values")
    return Unknown(f"the norm of weight {weight!r} overflows")


class LinearRule(Rule):
    """Base: a subclass names the moving input, the operator and the constant."""

    data = 0
    """The input that the map acts on."""
    weight = 1
    """The input that holds the weight, for messages."""

    @abstractmethod
    def operator(self, site: Site) -> LinearOperator | str:
        """The map, or why there is none."""

    def bias(self, site: Site, xs: Sequence[Range | None]) -> Interval | None:
        """Interval of the constant, broadcastable to the output; None for none."""
        return None

    def image(self, site: Site, operator: LinearOperator, x: Range) -> Range:
        """Range of the map alone. On all reals it is all reals, without a look at the weight."""
        shape = site.out_shape()
        if not np.any(np.isfinite(x.lo)) and not np.any(np.isfinite(x.hi)):
            return reals(shape)
        lo, hi = operator.enclose(x.lo, x.hi)
        return Range(shape, lo.reshape(shape), hi.reshape(shape))

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Image of the intervals plus the bias."""
        x = xs[self.data]
        found = self.operator(site)
        if x is None or isinstance(found, str):
            return (reals(site.out_shape()),)
        image = self.image(site, found, x)
        bias = self.bias(site, xs)
        if bias is None:
            return (image,)
        lo, hi = interval.add((image.lo, image.hi), bias)
        return (Range(image.shape, lo, hi, row=self._shifted(image, bias, site), diameter=image.diameter),)

    def _shifted(self, image: Range, bias: Interval, site: Site) -> float:
        if not math.isfinite(image.row):
            return image.row
        size = Range(site.out_shape(), bias[0], bias[1]).row_norm()
        return math.nextafter(image.row + size, math.inf) if size else image.row

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        if i != self.data:
            return Unknown(f"input {i} ({site.node.inputs[i]!r}) of {site.node.op} depends on the source")
        found = self.operator(site)
        if isinstance(found, str):
            return Unknown(found)
        name = site.node.inputs[self.weight] if site.has(self.weight) else ""
        return norm_gain(found, norm, name, site.node.name)

    def linear(self, site: Site, i: int) -> LinearOperator | None:
        """The map itself."""
        if i != self.data or sum(site.moving) != 1:
            return None
        found = self.operator(site)
        return None if isinstance(found, str) else found
