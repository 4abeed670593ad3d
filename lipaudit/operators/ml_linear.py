"""ai.onnx.ml: operators that are linear maps, possibly followed by a transform of the scores, and the small preprocessing steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, repeat_factor
from lipaudit.operators import interval
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown, scaled
from lipaudit.operators.broadcast import stack_flows
from lipaudit.operators.flow import Flow, Row
from lipaudit.operators.parts import Part, matrix
from lipaudit.operators.range import Range, extent, reals, up

__all__ = [
    "FeatureVectorizer", "Imputer", "LinearClassifier", "LinearRegressor", "OneHotEncoder", "Scaler", "Scores", "numbers", "score_diameter",
]  # fmt: skip

Floats = NDArray[np.float64]


def numbers(site: Site, name: str) -> Floats:
    """A list of numbers that is an attribute (empty if it is not given)."""
    value = site.attr(name)
    return np.asarray([] if value is None else value, dtype=np.float64)


class Scaler(Rule):
    """``(x - offset) scale`` along the last axis: the largest ``|scale|``, exact."""

    def _row(self, site: Site, name: str, default: float) -> Floats | None:
        value = numbers(site, name)
        width = site.shape(0)[-1] if site.shape(0) else 1
        if value.size == 0:
            return np.full(1, default)
        return value if value.size in (1, width) else None

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Interval arithmetic."""
        x, scale, offset = xs[0], self._row(site, "scale", 1.0), self._row(site, "offset", 0.0)
        if x is None or scale is None or offset is None:
            return (reals(site.out_shape()),)
        moved = interval.add((x.lo, x.hi), (-offset, -offset))
        lo, hi = interval.multiply(moved, (scale, scale))
        return (Range(site.out_shape(), lo, hi),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        scale = self._row(site, "scale", 1.0)
        if scale is None:
            return Unknown("the scale does not fit the last axis")
        return Finite(Upper(float(np.max(np.abs(scale)))), method="largest factor")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Element by element."""
        flow, gain = flows[0], gains[0]
        assert flow is not None and gain is not None
        return (scaled(site, flow, gain, norm, keep_parts=True),)


class Imputer(Scaler):
    """Elements equal to one value are replaced. NaN: the identity on numbers. A number v: ``(1, |v - replacement|)`` per element.

    ``|f(x) - f(v)| = |x - c| <= |x - v| + |v - c|`` for the replacement c; without v in the range, the identity.
    """

    def _parts(self, site: Site) -> tuple[float, Floats] | None:
        floats = numbers(site, "imputed_value_floats")
        if floats.size:
            return float(site.attr("replaced_value_float", 0.0)), floats
        whole = numbers(site, "imputed_value_int64s")
        return (float(site.attr("replaced_value_int64", 0)), whole) if whole.size else None

    def _jumps(self, site: Site, x: Range) -> Floats | Unknown:
        """Size of the jump of each element, broadcastable to x."""
        parts = self._parts(site)
        if parts is None:
            return Unknown("there is no value to impute")
        value, imputed = parts
        if math.isnan(value):
            return np.zeros(1)
        return np.where((x.lo <= value) & (x.hi >= value), up(np.abs(imputed - value)), 0.0)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """The elements, or the imputed values."""
        x, parts = xs[0], self._parts(site)
        if x is None or parts is None:
            return (reals(site.out_shape()),)
        lo, hi = np.minimum(x.lo, parts[1]), np.maximum(x.hi, parts[1])
        return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        x = xs[0]
        assert x is not None
        jumps = self._jumps(site, x)
        if isinstance(jumps, Unknown):
            return jumps
        return Finite(ONE, extent(jumps, x.shape, norm) if np.any(jumps) else ZERO, method="identity but for one value")


class FeatureVectorizer(Rule):
    """Inputs side by side, each cut or padded with zeros to its stated width: joins like Concat."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Hull of all inputs and 0."""
        lo = min([0.0, *(float(np.min(x.lo)) for x in xs if x is not None and x.size)])
        hi = max([0.0, *(float(np.max(x.hi)) for x in xs if x is not None and x.size)])
        return (Range(site.out_shape(), np.asarray(lo), np.asarray(hi)),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """1, or 0 for what is cut away."""
        widths = site.attr("inputdimensions") or ()
        gone = i < len(widths) and int(widths[i]) == 0
        return Finite(ZERO if gone or math.prod(site.shape(i)) == 0 else ONE, method="selection")

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Inputs fill disjoint places."""
        parts = [scaled(site, flow, gain, norm) for flow, gain in zip(flows, gains, strict=True) if flow is not None and gain is not None]
        return (stack_flows(parts, norm),)


class OneHotEncoder(Rule):
    """A 1 at the place of the category of each element: it jumps by ``2 N, sqrt(2 N), 1`` for N elements."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Zeros and ones, at most a single 1 in a row."""
        return (Range(site.out_shape(), np.asarray(0.0), np.asarray(1.0), row=1.0, integral=True),)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """The constant of the class."""
        changed = min(2 * math.prod(site.shape(0)), math.prod(site.out_shape()))
        return Finite(ZERO, repeat_factor(changed, norm), method="one element jumps to 1 and another to 0")


def transformed(transform: str, slope: Upper, offset: Upper, rows: int, columns: int, norm: Norm) -> Gain:
    """Scores that move by (slope, offset), after the post-transform of an ml operator.

    LOGISTIC 1/4, SOFTMAX 1/2. SOFTMAX_ZERO treats scores near 0 by another formula: it jumps within its values. PROBIT (the
    inverse of the normal distribution) has no bounded slope.
    """
    if transform in ("NONE", ""):
        return Finite(slope, offset, method="scores")
    if transform in ("LOGISTIC", "SOFTMAX"):
        factor = Upper(0.25) if transform == "LOGISTIC" else Upper(0.5)
        cap = score_diameter(transform, rows, columns, norm)
        if not slope.is_finite or not offset.is_finite:
            return Finite(ZERO, cap, method="values of the transform")
        return Finite(factor * slope, min(factor * offset, cap), method=f"scores, then {transform.lower()}")
    if transform == "SOFTMAX_ZERO":
        return Finite(ZERO, score_diameter(transform, rows, columns, norm), method="values of the transform")
    return Unknown(f"post_transform {transform!r} has no bounded slope")


def score_diameter(transform: str, rows: int, columns: int, norm: Norm) -> Upper:
    """Largest distance of two score tensors: probability vectors (rows), or elements in [0, 1]."""
    if transform == "SOFTMAX":
        twice = Upper(2 * rows)
        return {"l1": twice, "l2": twice.sqrt(), "linf": ONE}[norm] if columns > 1 else ZERO
    return repeat_factor(rows * columns, norm)


class Scores(Rule):
    """Shared by regressors and classifiers: scores, and for classifiers the labels before them, which jump."""

    @abstractmethod
    def raw(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> tuple[Upper, Upper] | Unknown:
        """Slope and offset of the scores as the output has them (both columns of a binary score), before the post-transform."""

    def classifies(self, site: Site) -> bool:
        """True if output 0 holds labels and output 1 the scores."""
        return len(site.outputs) > 1 or site.node.op.endswith("Classifier")

    def _scores(self, site: Site) -> tuple[int, int]:
        at = 1 if self.classifies(site) else 0
        value = site.outputs[at] if at < len(site.outputs) else None
        shape: tuple[int, ...] = (value.shape or ()) if value is not None else ()
        return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))

    def transform(self, site: Site) -> str:
        """The post-transform; TreeEnsemble numbers them."""
        found = site.attr("post_transform", "NONE")
        return dict(enumerate(("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"))).get(found, str(found))

    def labels(self, site: Site) -> tuple[float, float]:
        """Least and largest label; infinite for strings."""
        for name in ("classlabels_ints", "classlabels_int64s"):
            found = numbers(site, name)
            if found.size:
                return min(float(found.min()), 0.0), max(float(found.max()), 1.0)
        return 0.0, math.inf if site.attr("classlabels_strings") else 1.0

    def value_range(self, site: Site, xs: Sequence[Range | None]) -> tuple[float, float]:
        """Interval of the scores before the transform."""
        return -math.inf, math.inf

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Labels, and scores by the transform."""
        lo, hi = self.value_range(site, xs)
        if self.transform(site) in ("LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"):
            lo, hi = 0.0, 1.0
        elif self.transform(site) not in ("NONE", ""):
            lo, hi = -math.inf, math.inf
        found: list[Range] = []
        for k, value in enumerate(site.outputs):
            shape: tuple[int, ...] = value.shape if value is not None and value.shape is not None else ()
            if self.classifies(site) and k == 0:
                ends = self.labels(site)
                found.append(Range(shape, np.asarray(ends[0]), np.asarray(ends[1]), integral=math.isfinite(ends[1])))
            else:
                found.append(Range(shape, np.asarray(lo), np.asarray(hi)))
        return tuple(found)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Of the scores; labels are integers (or strings) and jump, see :meth:`flow`."""
        if math.prod(site.shape(0)) == 0:
            return Finite(ZERO, method="empty")
        found = self.raw(site, norm, xs)
        if isinstance(found, Unknown):
            return found
        answer = transformed(self.transform(site), *found, *self._scores(site), norm)
        if isinstance(answer, Finite) and not (answer.slope.is_finite and answer.offset.is_finite):
            return Unbounded("the scores grow faster than linearly and the input is not bounded on the domain")
        return answer

    def flow(self, site: Site, flows: Sequence[Flow | None], gains: Sequence[Gain | None], norm: Norm) -> tuple[Flow, ...]:
        """Labels move by at most the distance of two labels."""
        flow, gain = flows[0], gains[0]
        assert flow is not None and gain is not None
        scores = scaled(site, flow, gain, norm)
        if not self.classifies(site):
            return (scores,)
        lo, hi = self.labels(site)
        still = tuple(ZERO for _ in flow.rows[0].gains)
        jump = Upper(hi - lo) * repeat_factor(self._scores(site)[0], norm)
        return (Flow((Row(still, jump),)), scores)


class LinearRegressor(Scores):
    """``x C' + b``: the norm of C on rows."""

    def coefficients(self, site: Site) -> Floats | Unknown:
        """C, shape [targets, features]."""
        targets, width = int(site.attr("targets", 1)), site.shape(0)[-1]
        flat = numbers(site, "coefficients")
        return flat.reshape(targets, width) if flat.size == targets * width else Unknown("the coefficients do not fit the input")

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The coefficients, which are an attribute."""
        found = self.coefficients(site)
        return () if isinstance(found, Unknown) else (matrix("coefficients", found.shape, found.T),)

    def copies(self, site: Site, count: int) -> int:
        """How often each score is given out (with either sign)."""
        return 1

    def raw(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> tuple[Upper, Upper] | Unknown:
        """See the base class."""
        matrix = self.coefficients(site)
        if isinstance(matrix, Unknown):
            return matrix
        if not np.all(np.isfinite(matrix)):
            return Unknown("the coefficients hold values that are not finite")
        # Rows of x are multiplied from the right: the matrix acts as it stands, on one sample each.
        return dense_norm(matrix, norm).upper * repeat_factor(self.copies(site, matrix.shape[0]), norm), ZERO

    def value_range(self, site: Site, xs: Sequence[Range | None]) -> tuple[float, float]:
        """See the base class."""
        matrix, x = self.coefficients(site), xs[0]
        if isinstance(matrix, Unknown) or x is None or not np.all(np.isfinite(matrix)):
            return -math.inf, math.inf
        bias = float(np.max(np.abs(numbers(site, "intercepts")), initial=0.0))
        top = float(dense_norm(matrix, "linf").upper * Upper(x.magnitude()) + Upper(bias))
        return -top, top


class LinearClassifier(LinearRegressor):
    """Scores as LinearRegressor; one row of coefficients and two classes give the score with both signs."""

    def _classes(self, site: Site) -> int:
        return max(numbers(site, "classlabels_ints").size, len(site.attr("classlabels_strings") or ()))

    def coefficients(self, site: Site) -> Floats | Unknown:
        """See the base class."""
        width, flat = site.shape(0)[-1], numbers(site, "coefficients")
        fits = width > 0 and flat.size > 0 and flat.size % width == 0
        return flat.reshape(-1, width) if fits else Unknown("the coefficients do not fit the input")

    def copies(self, site: Site, count: int) -> int:
        """See the base class."""
        return 2 if count == 1 and self._scores(site)[1] == 2 else 1
