"""ai.onnx.ml: support vector machines. The scores are sums of kernels at the support vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.dense import dense_norm
from lipaudit.bounds.scalar import ONE, ZERO, Norm, Upper, combine, repeat_factor
from lipaudit.operators.base import Site, Unknown
from lipaudit.operators.ml_linear import Scores, numbers, score_diameter
from lipaudit.operators.range import Range

__all__ = ["SVMClassifier", "SVMRegressor"]

Floats = NDArray[np.float64]


class _Machine(Scores):
    """Shared: gradients of the kernels.

    LINEAR ``s``; SIGMOID ``|gamma| s``; POLY ``degree |gamma| (|gamma| |s|_1 max|x| + |c|)^(degree - 1) s``; RBF: the gradient of
    ``exp(-gamma |x - s|^2)`` has l2 norm at most ``sqrt(2 gamma / e)``, hence every element too, and their sum is sqrt(F) times that.
    """

    def _kernel_rows(self, site: Site, vectors: Floats, x: Range) -> tuple[Floats | None, Upper] | Unknown:
        """Gradients as multiples of the support vectors (and the factor), or None and the l2 size of a gradient."""
        kind = str(site.attr("kernel_type", "LINEAR")).upper()
        parameters = [float(v) for v in site.attr("kernel_params") or (0.0, 0.0, 0.0)]
        if kind == "LINEAR":
            return vectors, ONE
        if len(parameters) < 3:
            return Unknown("kernel_params needs gamma, coef0 and degree")
        gamma, shift, degree = parameters[:3]
        if kind == "SIGMOID":
            return vectors, Upper(abs(gamma))
        if kind == "RBF":
            if gamma < 0:
                return Unknown("an RBF kernel with a negative gamma is not bounded")
            # sqrt(2/e) = 0.857763884960706796..
            return None, Upper("0.85776388496070679649") * Upper(gamma).sqrt()
        if kind == "POLY":
            if degree < 1 or degree != int(degree):
                return Unknown("a polynomial kernel of that degree")
            if degree == 1:
                return vectors, Upper(abs(gamma))
            inner = dense_norm(vectors, "linf").upper * Upper(x.magnitude()) * Upper(abs(gamma)) + Upper(abs(shift))
            return vectors, Upper(int(degree)) * Upper(abs(gamma)) * inner ** (int(degree) - 1)
        return Unknown(f"kernel {kind!r} has no rule")

    def kernel_gain(self, site: Site, weights: Floats, vectors: Floats, norm: Norm, x: Range) -> Upper | Unknown:
        """Gain of ``weights @ kernels`` (weights [scores, vectors]) in one sample."""
        found = self._kernel_rows(site, vectors, x)
        if isinstance(found, Unknown):
            return found
        directions, factor = found
        if directions is None:
            by_score = [_total(row) * factor for row in weights]  # l2 gain of each score
            width = Upper(vectors.shape[1])
            rows = {"l1": by_score, "l2": by_score, "linf": [size * width.sqrt() for size in by_score]}[norm]
            return combine(rows, norm)
        # |sum_j a_j g_j| with |g_j| <= factor |s_j|: signs are only common to all where the kernel is linear.
        if factor == ONE and str(site.attr("kernel_type", "LINEAR")).upper() == "LINEAR":
            return dense_norm(weights @ vectors, norm).upper + Upper((weights.shape[1] + 4) * 2.0**-52) * self._spread(
                weights, vectors, norm
            )
        return factor * self._spread(weights, vectors, norm)

    @staticmethod
    def _spread(weights: Floats, vectors: Floats, norm: Norm) -> Upper:
        """Norm of the matrix of ``sum_j |a_j| |s_j|``."""
        sizes = np.abs(weights) @ np.abs(vectors)
        return dense_norm(np.nextafter(sizes * (1 + (weights.shape[1] + 4) * 2.0**-52), np.inf), norm).upper


def _total(row: Floats) -> Upper:
    total = ZERO
    for value in np.abs(row):
        total = total + Upper(float(value))
    return total


class SVMRegressor(_Machine):
    """``sum a_j k(x, s_j) + rho``; one_class gives its sign, which jumps by 2."""

    def raw(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> tuple[Upper, Upper] | Unknown:
        """See the base class."""
        x, width = xs[0], site.shape(0)[-1]
        assert x is not None
        if site.attr("one_class", 0):
            return ZERO, Upper(2) * repeat_factor(self._scores(site)[0], norm)
        weights, count = numbers(site, "coefficients"), int(site.attr("n_supports", 0))
        if count == 0:
            if weights.size != width:
                return Unknown("the coefficients do not fit the input")
            kind = str(site.attr("kernel_type", "LINEAR")).upper()
            if kind != "LINEAR":
                return Unknown("no support vectors with a kernel that is not linear")
            return dense_norm(weights[None], norm).upper, ZERO
        vectors = numbers(site, "support_vectors")
        if weights.size != count or vectors.size != count * width:
            return Unknown("the support vectors do not fit the input")
        found = self.kernel_gain(site, weights[None], vectors.reshape(count, width), norm, x)
        return found if isinstance(found, Unknown) else (found, ZERO)

    def value_range(self, site: Site, xs: Sequence[Range | None]) -> tuple[float, float]:
        """See the base class."""
        return (-1.0, 1.0) if site.attr("one_class", 0) else (-math.inf, math.inf)


class SVMClassifier(_Machine):
    """Linear scores, or one score for each pair of classes; with prob_a, probabilities by iterated coupling, which stay in [0, 1]."""

    def _probabilities(self, site: Site) -> bool:
        return numbers(site, "prob_a").size > 0 and numbers(site, "vectors_per_class").size > 0

    def raw(self, site: Site, norm: Norm, xs: Sequence[Range | None]) -> tuple[Upper, Upper] | Unknown:
        """See the base class."""
        x, width = xs[0], site.shape(0)[-1]
        assert x is not None
        rows, columns = self._scores(site)
        if self._probabilities(site):
            # The coupling stops after a number of steps that depends on the input: it may jump, within [0, 1].
            return ZERO, score_diameter("", rows, columns, norm)
        weights, counts = numbers(site, "coefficients"), numbers(site, "vectors_per_class").astype(int)
        classes = max(numbers(site, "classlabels_ints").size, len(site.attr("classlabels_strings") or ()), 1)
        total = int(counts.sum())
        if total == 0:
            if width == 0 or weights.size != classes * width:
                return Unknown("the coefficients do not fit the input")
            scores, gain = classes, dense_norm(weights.reshape(classes, width), norm).upper
        else:
            vectors = numbers(site, "support_vectors")
            if counts.size != classes or vectors.size != total * width or weights.size != (classes - 1) * total:
                return Unknown("the support vectors do not fit the input")
            pairs = _pairs(weights.reshape(-1, total), counts)
            scores = pairs.shape[0]
            found = self.kernel_gain(site, pairs, vectors.reshape(total, width), norm, x)
            if isinstance(found, Unknown):
                return found
            gain = found
        if columns == scores:
            return gain, ZERO
        if scores == 1 and columns == 2:
            return gain * repeat_factor(2, norm), ZERO
        return Unknown("the scores are combined in a way that has no rule")

    def value_range(self, site: Site, xs: Sequence[Range | None]) -> tuple[float, float]:
        """See the base class."""
        return (0.0, 1.0) if self._probabilities(site) else (-math.inf, math.inf)


def _pairs(weights: Floats, counts: NDArray[np.int64]) -> Floats:
    """One row of kernel weights for each pair of classes i < j: those of j - 1 on the vectors of i, of i on those of j."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows: list[Floats] = []
    for i in range(counts.size):
        for j in range(i + 1, counts.size):
            row = np.zeros(weights.shape[1])
            row[starts[i] : starts[i] + counts[i]] = weights[j - 1, starts[i] : starts[i] + counts[i]]
            row[starts[j] : starts[j] + counts[j]] = weights[i, starts[j] : starts[j] + counts[j]]
            rows.append(row)
    return np.stack(rows) if rows else np.zeros((1, weights.shape[1]))
