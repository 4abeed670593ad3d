"""The normalizing operators of ONNX and ONNX Runtime: how each groups, scales and where its epsilon stands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipaudit.bounds.scalar import ONE, ZERO, Lower, Norm, Upper, repeat_factor
from lipaudit.operators.base import Finite, Gain, Rule, Site, Unbounded, Unknown
from lipaudit.operators.interval import add
from lipaudit.operators.normalizing import (
    Normalizing,
    Plan,
    affine_operand,
    inverse_deviation_gain,
    inverse_deviation_range,
    mean_gain,
    mean_range,
    normalized_range,
)
from lipaudit.operators.parts import Part, factors, table
from lipaudit.operators.radial import Place, Radial, spread
from lipaudit.operators.range import Range, down, reals, widen

__all__ = [
    "EmbedLayerNormalization", "FusedNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "SkipNormalization",
]  # fmt: skip


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _input(xs: Sequence[Range | None], i: int) -> Range | None:
    return xs[i] if i < len(xs) else None


def _operand(site: Site, xs: Sequence[Range | None], i: int) -> tuple[int, ...]:
    """Shape of an affine operand (right-aligned broadcasting)."""
    found = _input(xs, i)
    return found.shape if found is not None else ()


def _over_axes(site: Site, xs: Sequence[Range | None], axes: tuple[int, ...], *, centred: bool, eps: float, bias: int = 2) -> Plan:
    """Normalization of the axes ``axes`` with scale at input 1 and bias at input ``bias`` (0: none)."""
    x = xs[0] if xs[0] is not None else reals(site.shape(0))
    n = math.prod(x.shape[axis] for axis in axes)
    scale, shift = _input(xs, 1), _input(xs, bias) if bias else None
    return Plan(
        Radial(centred, n, n, eps),
        x,
        x.shape,
        axes,
        affine_operand(scale, _operand(site, xs, 1)),
        affine_operand(shift, _operand(site, xs, bias)),
        scale_input=1 if scale is not None else -1,
        bias_input=bias if shift is not None else -1,
    )


class LayerNormalization(Normalizing):
    """Mean and variance over the axes from ``axis`` on; optional outputs mean and 1/s."""

    centred = True

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups are the axes from ``axis`` (default -1) on."""
        rank = len(site.shape(0))
        axes = tuple(range(_axis(int(site.attr("axis", -1)), rank), rank))
        return _over_axes(site, xs, axes, centred=self.centred, eps=float(site.attr("epsilon", 1e-5)), bias=2)

    def other_gains(self, site: Site, plan: Plan, norm: Norm) -> tuple[Gain, ...]:
        """Mean and inverse deviation."""
        return _statistics_gains(site, plan, norm)

    def other_ranges(self, site: Site, plan: Plan) -> tuple[Range, ...]:
        """Mean and inverse deviation."""
        return _statistics_ranges(site, plan)


def _statistics_gains(site: Site, plan: Plan, norm: Norm) -> tuple[Gain, ...]:
    found: list[Gain] = []
    for k, value in enumerate(site.outputs[1:3]):
        mean_output = plan.core.centred and k == 0
        inverse = inverse_deviation_gain(plan.core, norm, plan.spread.floor)
        slope = ZERO if value is None else mean_gain(plan.core.n, norm) if mean_output else inverse
        ok = Finite(slope, method="mean" if mean_output else "inverse deviation")
        found.append(ok if slope.is_finite else Unbounded("the inverse deviation is not bounded without an epsilon"))
    return tuple(found)


def _statistics_ranges(site: Site, plan: Plan) -> tuple[Range, ...]:
    found: list[Range] = []
    for k, value in enumerate(site.outputs[1:3]):
        shape = value.shape if value is not None and value.shape is not None else ()
        mean_output = plan.core.centred and k == 0
        found.append(mean_range(shape, plan.x) if mean_output else inverse_deviation_range(shape, plan.core, plan.spread.floor))
    return tuple(found)


class RMSNormalization(LayerNormalization):
    """Root mean square over the axes from ``axis`` on, no mean, no bias (also ONNX Runtime's SimplifiedLayerNormalization)."""

    centred = False

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups are the axes from ``axis`` (default -1) on."""
        rank = len(site.shape(0))
        axes = tuple(range(_axis(int(site.attr("axis", -1)), rank), rank))
        return _over_axes(site, xs, axes, centred=False, eps=float(site.attr("epsilon", 1e-5)), bias=0)


class InstanceNormalization(Normalizing):
    """Mean and variance over the spatial axes of each sample and channel."""

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups are all axes after the channel."""
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        rank = len(x.shape)
        axes = tuple(range(2, rank))
        n = math.prod(x.shape[2:])
        per_channel = (x.shape[1],) + (1,) * (rank - 2)
        core = Radial(True, n, n, float(site.attr("epsilon", 1e-5)))
        scale, bias = affine_operand(_input(xs, 1), per_channel), affine_operand(_input(xs, 2), per_channel)
        return Plan(core, x, x.shape, axes, scale, bias, scale_input=1, bias_input=2)


class GroupNormalization(Normalizing):
    """Mean and variance over groups of channels; scale and bias per group before version 21, per channel from 21 on."""

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups are ``C / num_groups`` channels with all their positions."""
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        groups = int(site.attr("num_groups", 0))
        if groups <= 0 or x.shape[1] % groups:
            return Unknown(f"{x.shape[1]} channels cannot be cut into {groups} groups")
        shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
        axes = tuple(range(2, len(shape)))
        n = math.prod(shape[2:])
        ones = (1,) * (len(shape) - 3)
        affine = (groups, 1, *ones) if 0 < site.node.version < 21 else (groups, shape[2], *ones)
        core = Radial(True, n, n, float(site.attr("epsilon", 1e-5)))
        scale, bias = affine_operand(_input(xs, 1), affine), affine_operand(_input(xs, 2), affine)
        return Plan(core, x, shape, axes, scale, bias, scale_input=1, bias_input=2)


class MeanVarianceNormalization(Normalizing):
    """``(x - mean) / (deviation + 1e-9)``: the epsilon stands outside the root (default axes 0, 2, 3)."""

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Groups run over ``axes``; the epsilon is the float32 number nearest to 1e-9 or below."""
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        rank = len(x.shape)
        axes = tuple(sorted({_axis(int(axis), rank) for axis in site.attr("axes", (0, 2, 3))}))
        if axes and axes[-1] >= rank:
            return Unknown(f"axis {axes[-1]} does not exist in a value of rank {rank}")
        n = math.prod(x.shape[axis] for axis in axes)
        eps = min(1e-9, float(np.float32(1e-9)))
        return Plan(Radial(True, n, n, eps, "outside"), x, x.shape, axes)


class FusedNormalization(Normalizing):
    """A normalization that an exporter spelled out and the recogniser found again (``lipaudit::Normalization``).

    Attributes: ``kind`` ("layer", "rms", "l2"), ``axes``, ``epsilon``, ``eps_place`` ("root", "outside", "max": the root is at
    least epsilon), ``sum`` (root of the sum, not of the mean), ``unbiased`` (divisor n - 1).
    """

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """As the attributes say."""
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        rank = len(x.shape)
        kind, place = str(site.attr("kind", "")), str(site.attr("eps_place", "root"))
        if kind not in ("layer", "rms", "l2") or place not in ("root", "outside", "max"):
            return Unknown(f"a normalization of kind {kind!r} with its epsilon at {place!r} is not known")
        axes = tuple(sorted({_axis(int(axis), rank) for axis in site.attr("axes", ())}))
        n = math.prod(x.shape[axis] for axis in axes)
        m = 1 if kind == "l2" or int(site.attr("sum", 0)) else n - 1 if int(site.attr("unbiased", 0)) else n
        places: dict[str, Place] = {"root": "root", "outside": "outside", "max": "max"}
        core = Radial(kind == "layer", n, m, float(site.attr("epsilon", 0.0)), places[place])
        scale, bias = _input(xs, 1), _input(xs, 2)
        return Plan(
            core,
            x,
            x.shape,
            axes,
            affine_operand(scale, _operand(site, xs, 1)),
            affine_operand(bias, _operand(site, xs, 2)),
            scale_input=1 if scale is not None else -1,
            bias_input=2 if bias is not None else -1,
        )


class SkipNormalization(Normalizing):
    """ONNX Runtime's ``norm(x + skip + bias) * gamma + beta`` with the sum as fourth output (rms form: no beta).

    ``params["rms"]`` selects SkipSimplifiedLayerNormalization: inputs x, skip, gamma, bias.
    """

    def parts(self, site: Site) -> tuple[Part, ...]:
        """The scale."""
        return factors(site, 2)

    @property
    def _rms(self) -> bool:
        return bool(self.params.get("rms", False))

    def plan(self, site: Site, xs: Sequence[Range | None]) -> Plan | Unknown:
        """Rows of the sum of all inputs that are not affine parameters."""
        beta, bias = (-1, 3) if self._rms else (3, 4)
        x = self._sum(site, xs, bias)
        n = x.shape[-1] if x.shape else 1
        core = Radial(not self._rms, n, n, float(site.attr("epsilon", 1e-12)))
        shift = _input(xs, beta) if beta >= 0 else None
        return Plan(
            core,
            x,
            x.shape,
            (len(x.shape) - 1,),
            affine_operand(_input(xs, 2), (n,)),
            affine_operand(shift, (n,)),
            x_inputs=(0, 1, bias),
            scale_input=2,
            bias_input=beta if shift is not None else -1,
        )

    def _sum(self, site: Site, xs: Sequence[Range | None], bias: int) -> Range:
        shape = site.shape(0)
        terms = [term for term in (_input(xs, 0), _input(xs, 1), _input(xs, bias)) if term is not None]
        if not terms:
            return reals(shape)
        lo, hi = terms[0].lo, terms[0].hi
        for term in terms[1:]:
            lo, hi = add((lo, hi), (term.lo, term.hi))
        row = sum(term.row_norm() for term in terms)
        diameters = [0.0 if len(term.shape) == 1 else term.row_diameter() for term in terms]
        alike = all(len(term.shape) in (1, len(shape)) for term in terms) and len(shape) >= 3
        diameter = widen(sum(diameters), 4) if alike else math.inf
        zero_mean = all(term.zero_mean for term in terms)
        return Range(shape, np.asarray(lo), np.asarray(hi), widen(row, 4), diameter, zero_mean)

    def other_gains(self, site: Site, plan: Plan, norm: Norm) -> tuple[Gain, ...]:
        """Statistics (rarely asked for) and the sum itself: 1."""
        found: list[Gain] = []
        for k, value in enumerate(site.outputs[1:4]):
            slope = ZERO
            if value is not None:
                slope = (mean_gain(plan.core.n, norm), inverse_deviation_gain(plan.core, norm, plan.spread.floor), ONE)[k]
            found.append(Finite(slope, method="sum") if slope.is_finite else Unbounded("the inverse deviation has no epsilon"))
        return tuple(found)

    def other_ranges(self, site: Site, plan: Plan) -> tuple[Range, ...]:
        """Statistics and the sum."""
        found: list[Range] = []
        for k, value in enumerate(site.outputs[1:4]):
            shape = value.shape if value is not None and value.shape is not None else ()
            makers = (mean_range(shape, plan.x), inverse_deviation_range(shape, plan.core, plan.spread.floor), plan.x)
            found.append(makers[k])
        return tuple(found)


class EmbedLayerNormalization(Rule):
    """ONNX Runtime's sum of embeddings with a layer normalization: its output is a source, so only its range is asked for."""

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Rows of ``gamma * z + beta``; the sum of embeddings (third output) is bounded by its tables."""
        shape = site.out_shape()
        width = shape[-1] if shape else 1
        core = Radial(True, width, width, float(site.attr("epsilon", 1e-12)))
        tables = [found for found in (_input(xs, 2), _input(xs, 3), _input(xs, 4)) if found is not None]
        row = widen(sum(table.row_norm() for table in tables), 4) if tables else math.inf
        top = widen(sum(table.magnitude() for table in tables), 4) if tables else math.inf
        whole = Range(shape, np.asarray(-top), np.asarray(top), row)
        plan = Plan(
            core,
            whole,
            shape,
            (len(shape) - 1,),
            affine_operand(_input(xs, 5), (width,)),
            affine_operand(_input(xs, 6), (width,)),
        )
        found = [normalized_range(plan, shape)]
        for k, value in enumerate(site.outputs[1:], 1):
            own = value.shape if value is not None and value.shape is not None else ()
            found.append(whole.replace(shape=own) if k == 2 else reals(own))
        return tuple(found)

    def parts(self, site: Site) -> tuple[Part, ...]:
        """Tables and scale."""
        return (*table(site, 2), *table(site, 3), *table(site, 4), *factors(site, 5))

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """Integer ids do not move; moving tables are not supported."""
        return Unknown("the embedding tables of EmbedLayerNormalization must be stored constants: its output is the source")


class LpNormalization(Rule):
    """``x / |x|_p`` along one axis, p = 1 or 2, without an epsilon: discontinuous at 0, so a domain must keep |x| away from it."""

    def _axes(self, site: Site) -> tuple[int, ...]:
        rank = len(site.shape(0))
        return (_axis(int(site.attr("axis", -1)), rank),)

    def range(self, site: Site, xs: Sequence[Range | None]) -> tuple[Range, ...]:
        """Elements in [-1, 1]; rows of norm at most 1 (the l2 norm is at most the l1 norm)."""
        shape = site.out_shape()
        result = Range(shape, np.asarray(-1.0), np.asarray(1.0))
        if shape and self._axes(site) == (len(shape) - 1,):
            result = result.replace(row=1.0)
        return (result,)

    def gain(self, site: Site, i: int, norm: Norm, xs: Sequence[Range | None]) -> Gain:
        """p = 2: 1/r in l2, ``(1 + sqrt n)/(2 r)`` in l1 and linf; p = 1: ``(1 + sqrt n)/r``, 2/r, max(1, n-1)/r."""
        x = xs[0] if xs[0] is not None else reals(site.shape(0))
        axes = self._axes(site)
        n = math.prod(x.shape[axis] for axis in axes)
        reason = "x/|x| jumps at x = 0, which this domain does not exclude"
        if x.size == 0:
            return Finite(ZERO)
        p = int(site.attr("p", 2))
        if p == 2:
            floor = spread(x, x.shape, axes, centred=False).floor
            if not floor > 0:
                return Unbounded(reason)
            core = Radial(False, n, 1, 0.0)
            return Finite(core.slope(norm, floor), method="1/r with r <= |x| on this box", evidence={"floor": floor})
        if p != 1:
            return Unknown(f"p = {p} is not 1 or 2")
        floor = _smallest_sum(x, axes)
        if not floor > 0:
            return Unbounded(reason)
        top = {"l1": Upper(2), "l2": ONE + repeat_factor(n, "l2"), "linf": Upper(max(1, n - 1))}[norm]
        return Finite(top / Lower(floor), method="|x|_1 >= r on this box", evidence={"floor": floor})


def _smallest_sum(x: Range, axes: tuple[int, ...]) -> float:
    """Lower bound of ``|x|_1`` over all groups."""
    lo, hi = x.full()
    nearest = np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))
    if not np.all(np.isfinite(nearest)):
        return 0.0
    n = math.prod(x.shape[axis] for axis in axes)
    return max(0.0, float(down(np.min(np.sum(nearest, axis=axes)) * (1 - (n + 4) * 2.0**-52))))
