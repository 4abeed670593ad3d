"""Rules of structured operators against float64 functions: sites of single nodes, Jacobians by complex steps, comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.bounds.scalar import Norm
from lipaudit.graph.ir import Constant, Node, Value
from lipaudit.operators.base import Finite, Gain, Rule, Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.range import Range, exact

Array = NDArray[Any]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
CATALOGUE = Catalogue.load()

# A measured number is lowered by the rounding of its own float64 evaluation before it is compared; nothing else is allowed.
ROUNDING = 1e-12
STEP = 1e-30


def box(shape: Sequence[int], lo: Any = -math.inf, hi: Any = math.inf, **more: Any) -> Range:
    """A moving input in a box."""
    return Range(tuple(shape), np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64), **more)


class OneNode:
    """One node; arguments are ranges (moving), arrays (stored), or None (omitted). ``outputs`` are shapes (None: omitted)."""

    def __init__(
        self,
        op: str,
        args: Sequence[Range | Array | None],
        outputs: Sequence[tuple[int, ...] | None],
        attrs: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        version: int = 0,
        still: Sequence[int] = (),
        dtype: str = "float32",
    ) -> None:
        names = tuple("" if arg is None else f"x{i}" for i, arg in enumerate(args))
        outs = tuple("" if shape is None else f"y{k}" for k, shape in enumerate(outputs))
        values: list[Value | None] = []
        constants: list[Constant | None] = []
        self.ranges: list[Range | None] = []
        for name, arg in zip(names, args, strict=True):
            stored = Constant.of(name, arg) if isinstance(arg, np.ndarray) else None
            constants.append(stored)
            if arg is None:
                values.append(None)
                self.ranges.append(None)
            elif isinstance(arg, Range):
                values.append(Value(name, "float32", arg.shape))
                self.ranges.append(arg)
            else:
                values.append(Constant.of(name, arg).value)
                self.ranges.append(exact(arg))
        moving = tuple(isinstance(arg, Range) and i not in still for i, arg in enumerate(args))
        node = Node("n", op, names, outs, domain, version, dict(attrs or {}), ("n",))
        shapes = [None if shape is None else Value(name, dtype, shape) for name, shape in zip(outs, outputs, strict=True)]
        self.site = Site(node, tuple(values), tuple(shapes), tuple(constants), moving)

    @property
    def rule(self) -> Rule:
        found = CATALOGUE.rule(self.site.node)
        assert found is not None, f"no rule for {self.site.node.kind}"
        return found

    def gain(self, i: int = 0, norm: Norm = "l2") -> Gain:
        return self.rule.gain(self.site, i, norm, self.ranges)

    def slope(self, i: int = 0, norm: Norm = "l2") -> float:
        found = self.gain(i, norm)
        assert isinstance(found, Finite), found
        return float(found.slope)

    def range(self) -> tuple[Range, ...]:
        return self.rule.range(self.site, self.ranges)


def jacobian(f: Callable[[Array], Array], x: Array) -> Array:
    """Matrix of derivatives by complex steps: exact to rounding for analytic code."""
    columns: list[Array] = []
    for k in range(x.size):
        point = x.astype(np.complex128)
        point.reshape(-1)[k] += 1j * STEP
        columns.append(np.imag(np.asarray(f(point))).ravel() / STEP)
    return np.stack(columns, axis=1)


def norm_of(matrix: Array, norm: Norm) -> float:
    """Operator norm, lowered by its rounding."""
    if matrix.size == 0:
        return 0.0
    axis: dict[str, int] = {"l1": 0, "linf": 1}
    value = np.linalg.norm(matrix, 2) if norm == "l2" else np.abs(matrix).sum(axis=axis[norm]).max()
    return float(value) * (1 - ROUNDING)


def size_of(x: Array, norm: Norm) -> float:
    """Norm of a flattened tensor."""
    return float(np.linalg.norm(np.asarray(x, dtype=np.float64).ravel(), {"l1": 1, "l2": 2, "linf": np.inf}[norm]))


def holds(certified: float, measured: float) -> None:
    """Certified is not below measured."""
    assert certified >= measured, (certified, measured)


def attained(certified: float, measured: float, share: float = 0.9901) -> None:
    """Sound, and so close that a constant 1 % smaller would not be."""
    holds(certified, measured)
    assert measured >= share * certified, (measured, certified)


def inside(y: Array, claimed: Range) -> None:
    """A sampled output lies in the range: elements, rows, distances of rows of a sample, sums of rows."""
    y = np.asarray(y, dtype=np.float64)
    assert y.shape == claimed.shape
    lo, hi = claimed.full()
    tiny = ROUNDING * (1 + np.abs(y))
    assert np.all(y >= lo - tiny) and np.all(y <= hi + tiny), (y.min(), y.max(), lo.min(), hi.max())
    if not y.size:
        return
    rows = y.reshape(-1, y.shape[-1] if y.ndim else 1)
    assert np.max(np.linalg.norm(rows, axis=1)) <= claimed.row * (1 + ROUNDING) + ROUNDING
    if math.isfinite(claimed.diameter) and y.ndim >= 2:
        for sample in y:
            own = sample.reshape(-1, sample.shape[-1])
            gaps = np.linalg.norm(own[:, None] - own[None], axis=-1)
            assert np.max(gaps, initial=0.0) <= claimed.diameter * (1 + ROUNDING) + ROUNDING
    if claimed.zero_mean:
        assert np.max(np.abs(rows.sum(axis=1))) <= 1e-9


def points(range_: Range, rng: np.random.Generator, count: int, reach: float = 3.0) -> list[Array]:
    """Points of a box: uniform, corners, and mixtures; infinite ends are replaced by ``reach``."""
    lo, hi = range_.full()
    lo, hi = np.where(np.isfinite(lo), lo, -reach), np.where(np.isfinite(hi), hi, reach)
    found: list[Array] = []
    for k in range(count):
        weight = rng.random(range_.shape)
        if k % 3 == 1:
            weight = np.round(weight)
        elif k % 3 == 2:
            weight = np.where(rng.random(range_.shape) < 0.5, np.round(weight), weight)
        found.append(lo + weight * (hi - lo))
    return found
