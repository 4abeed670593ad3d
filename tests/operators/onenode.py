"""One-node models for rule tests: the site of a node, its function in float64, its exact Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.defs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession

from lipaudit.bounds.scalar import Norm, Upper
from lipaudit.graph.ir import Constant, Node, Value
from lipaudit.operators.base import Finite, Gain, Rule, Site
from lipaudit.operators.catalogue import Catalogue
from lipaudit.operators.flow import Flow, identity
from lipaudit.operators.range import Range, exact

CATALOGUE = Catalogue.load()
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
# Relative rounding of a measured ratio: measured values are lowered by it before they are compared.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Moving:
    """A source of a shape with elements in [lo, hi]; or, with ``row``, whose rows have at most that norm.

    Two rows of one sample are then at most ``row / 2`` apart, and with ``centred`` every row sums to zero.
    """

    shape: tuple[int, ...]
    lo: float = -math.inf
    hi: float = math.inf
    name: str = ""
    row: float = math.inf
    centred: bool = False

    def sample(self, rng: np.random.Generator) -> NDArray[np.float64]:
        if math.isfinite(self.row):
            common = _ball(rng, (self.shape[0], *(1,) * (len(self.shape) - 2), self.shape[-1]), self.centred) * self.row * 0.75
            return common + _ball(rng, self.shape, self.centred) * (self.row * 0.25)
        lo, hi = max(self.lo, -3.0), min(self.hi, 3.0)
        if rng.random() < 0.3:  # corners
            return np.where(rng.random(self.shape) < 0.5, float(lo), float(hi))
        return rng.uniform(lo, hi, self.shape)

    def range(self) -> Range:
        if math.isfinite(self.row):
            top = np.asarray(self.row * (1 + ROUNDING))
            return Range(self.shape, -top, top, row=float(top), diameter=float(top) / 2, zero_mean=self.centred)
        return Range(self.shape, np.asarray(float(self.lo)), np.asarray(float(self.hi)))


def _ball(rng: np.random.Generator, shape: tuple[int, ...], centred: bool) -> NDArray[np.float64]:
    """Rows in (often on the boundary of) the unit ball."""
    x = rng.normal(size=shape)
    if centred:
        x = x - x.mean(axis=-1, keepdims=True)
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(size > 1e-9, x / np.maximum(size, 1e-9), 0.0) * rng.choice([0.3, 1.0])


Argument = Moving | np.ndarray | None


@dataclass(frozen=True)
class One:
    """One node with arguments: moving ones, constants, or omitted (None)."""

    op: str
    args: Sequence[Argument]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    shapes: tuple[tuple[int, ...], ...] | None = None
    float32: bool = False
    """Run in onnxruntime's float32 (for values that are exact there)."""
    function: Callable[[Mapping[str, NDArray[np.float64]]], list[NDArray[np.float64]]] | None = None
    """Instead of the reference evaluator, where that computes in float32."""
    domain: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(
            "" if arg is None else (arg.name if isinstance(arg, Moving) and arg.name else f"x{i}") for i, arg in enumerate(self.args)
        )

    @cached_property
    def model(self) -> Any:
        kind = TensorProto.FLOAT if self.float32 else TensorProto.DOUBLE
        inputs: dict[str, Any] = {}
        for name, arg in zip(self.names, self.args, strict=True):
            if arg is not None and name not in inputs:
                stored = not isinstance(arg, Moving) and arg.dtype != np.float64
                inputs[name] = helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(arg.dtype) if stored else kind, arg.shape
                )
        outs = [f"y{k}" for k in range(self.outputs)]
        node = helper.make_node(self.op, list(self.names), outs, domain=self.domain, **self.attrs)
        infos = [helper.make_tensor_value_info(name, kind, None) for name in outs]
        graph = helper.make_graph([node], "one", list(inputs.values()), infos)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(self.domain, self.opset)], ir_version=10)
        return (
            InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]) if self.float32 else ReferenceEvaluator(model)
        )

    def run(self, xs: Mapping[str, NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        if self.function is not None:
            return self.function(xs)
        feed = {**xs, **{name: arg for name, arg in zip(self.names, self.args, strict=True) if isinstance(arg, np.ndarray)}}
        if self.float32:
            feed = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in feed.items()}
        return [np.asarray(y) for y in self.model.run(None, feed)]

    @cached_property
    def sources(self) -> dict[str, Moving]:
        return {name: arg for name, arg in zip(self.names, self.args, strict=True) if isinstance(arg, Moving)}

    @cached_property
    def site(self) -> Site:
        rng = np.random.default_rng(0)
        shapes = self.shapes or tuple(y.shape for y in self.run({name: arg.sample(rng) for name, arg in self.sources.items()}))
        inputs: list[Value | None] = []
        constants: list[Constant | None] = []
        for name, arg in zip(self.names, self.args, strict=True):
            if arg is None:
                inputs.append(None)
                constants.append(None)
            else:
                inputs.append(Value(name, "float64" if isinstance(arg, Moving) else str(arg.dtype), arg.shape))
                constants.append(Constant.of(name, arg) if isinstance(arg, np.ndarray) else None)
        own = self.domain if self.domain != "com.microsoft" else None
        version = onnx.defs.get_schema(self.op, self.opset, own).since_version if own is not None else 1
        attrs = {key: stored(value) for key, value in self.attrs.items()}
        node = Node("n", self.op, self.names, tuple(f"y{k}" for k in range(self.outputs)), self.domain, version, attrs, ("n",))
        moving = tuple(isinstance(arg, Moving) for arg in self.args)
        outs = tuple(Value(f"y{k}", "float64", tuple(int(d) for d in shape)) for k, shape in enumerate(shapes))
        return Site(node, tuple(inputs), outs, tuple(constants), moving)

    @property
    def rule(self) -> Rule:
        found = CATALOGUE.rule(self.site.node)
        assert found is not None, f"no rule for {self.op}"
        return found

    @cached_property
    def ranges(self) -> list[Range | None]:
        return [None if arg is None else arg.range() if isinstance(arg, Moving) else exact(arg) for arg in self.args]

    def gain(self, i: int = 0, norm: Norm = "l2") -> Gain:
        return self.rule.gain(self.site, i, norm, self.ranges)

    def slope(self, i: int = 0, norm: Norm = "l2") -> float:
        """The certified slope; fails the test if there is none."""
        found = self.gain(i, norm)
        assert isinstance(found, Finite), found
        return float(found.slope)

    def slopes(self, i: int = 0) -> tuple[float, float, float]:
        return self.slope(i, "l1"), self.slope(i, "l2"), self.slope(i, "linf")

    def joint(self, norm: Norm) -> tuple[Upper, Upper]:
        """Slope and offset from all sources to output 0, through the partition calculus (one column per source)."""
        return self.through(dict.fromkeys(self.sources), norm)

    def through(self, cuts: Mapping[str, tuple[int, tuple[int, ...]] | None], norm: Norm) -> tuple[Upper, Upper]:
        """As :meth:`joint`, each source cut along an axis into parts (a column for every part of every source)."""
        total = sum(1 if cut is None else len(cut[1]) for cut in cuts.values())
        start, by_name = 0, {}
        for name, cut in cuts.items():
            count = 1 if cut is None else len(cut[1])
            whole = identity(total)
            rows = whole.rows[start : start + count]
            by_name[name] = Flow(rows, 0 if cut is None else cut[0], () if cut is None or count == 1 else cut[1])
            start += count
        flows = [by_name.get(name) if name else None for name in self.names]
        gains = [self.gain(i, norm) if flow is not None else None for i, flow in enumerate(flows)]
        found = self.rule.flow(self.site, flows, gains, norm)[0]
        check_cut(found, self.site.out_shape())
        return found.gain(norm), found.offset(norm)

    def jacobian(self, name: str, at: Mapping[str, NDArray[np.float64]] | None = None) -> NDArray[np.float64]:
        """Matrix of output 0 as a function of source ``name``, exact for maps that are affine in it (others at 0 or ``at``)."""
        base = {key: np.zeros(arg.shape) for key, arg in self.sources.items()} | dict(at or {})
        origin = base | {name: np.zeros(self.sources[name].shape)}
        zero = self.run(origin)[0].astype(np.float64).ravel()
        columns = []
        for k in range(math.prod(self.sources[name].shape)):
            unit = np.zeros(self.sources[name].shape)
            unit.reshape(-1)[k] = 1.0
            columns.append(self.run(origin | {name: unit})[0].astype(np.float64).ravel() - zero)
        return np.stack(columns, axis=1) if columns else np.zeros((zero.size, 0))


def stored(value: Any) -> Any:
    """An attribute as a model file holds it: floats are float32."""
    if isinstance(value, float):
        return float(np.float32(value))
    return tuple(stored(item) for item in value) if isinstance(value, (list, tuple)) else value


def check_cut(flow: Flow, shape: tuple[int, ...]) -> None:
    """The parts of a flow fit the value."""
    if len(flow.rows) > 1:
        assert len(flow.sizes) == len(flow.rows)
        assert sum(flow.sizes) == shape[flow.axis], (flow.sizes, flow.axis, shape)
    else:
        assert len(flow.sizes) <= 1


def norm_of(matrix: NDArray[np.float64], norm: Norm) -> float:
    """Operator norm of a matrix, lowered by its own rounding."""
    if matrix.size == 0:
        return 0.0
    if norm == "l1":
        value = float(np.abs(matrix).sum(axis=0).max())
    elif norm == "linf":
        value = float(np.abs(matrix).sum(axis=1).max())
    else:
        value = float(np.linalg.norm(matrix, 2))
    return value * (1 - ROUNDING)


def size_of(x: NDArray[np.float64], norm: Norm) -> float:
    """Norm of a flattened tensor."""
    flat = np.asarray(x, dtype=np.float64).ravel()
    return float(np.linalg.norm(flat, {"l1": 1, "l2": 2, "linf": np.inf}[norm])) if flat.size else 0.0


def joint_size(xs: Sequence[NDArray[np.float64]], norm: Norm) -> float:
    """Norm of several tensors together."""
    return size_of(np.concatenate([x.ravel() for x in xs]), norm)


def check_range(one: One, found: Sequence[Range], rng: np.random.Generator, samples: int = 6) -> None:
    """Outputs of sampled inputs lie in the range: elements, rows, distances of rows, sums of rows."""
    for _ in range(samples):
        outputs = one.run({name: arg.sample(rng) for name, arg in one.sources.items()})
        for y, claimed in zip(outputs, found, strict=False):
            y = np.asarray(y, dtype=np.float64)
            assert claimed.shape == y.shape
            lo, hi = claimed.full()
            tiny = 1e-12 * (1 + np.abs(y))  # the reference rounds too
            assert np.all(y >= lo - tiny) and np.all(y <= hi + tiny)
            if not y.size:
                continue
            rows = y.reshape(-1, y.shape[-1] if y.ndim else 1)
            assert np.max(np.linalg.norm(rows, axis=1)) <= claimed.row * (1 + ROUNDING) + ROUNDING
            if math.isfinite(claimed.diameter) and y.ndim >= 2:
                for sample in y:
                    own = sample.reshape(-1, sample.shape[-1] if sample.ndim else 1)
                    gaps = np.linalg.norm(own[:, None] - own[None], axis=-1)
                    assert np.max(gaps, initial=0.0) <= claimed.diameter * (1 + ROUNDING) + ROUNDING
            if claimed.zero_mean:
                assert np.max(np.abs(rows.sum(axis=1))) <= 1e-9


def check_pairs(one: One, rng: np.random.Generator, pairs: int = 8) -> None:
    """No sampled pair moves farther than certified: each source alone, and all together through the flow."""
    names = list(one.sources)
    for norm in NORMS:
        alone = {name: [one.gain(i, norm) for i, own in enumerate(one.names) if own == name] for name in names}
        joint = one.joint(norm) if names else None
        for _ in range(pairs):
            xs = {name: arg.sample(rng) for name, arg in one.sources.items()}
            ys = {name: arg.sample(rng) for name, arg in one.sources.items()}
            for name in names:
                if all(isinstance(gain, Finite) for gain in alone[name]):
                    slope = sum(float(gain.slope) for gain in alone[name])
                    offset = sum(float(gain.offset) for gain in alone[name])
                    _compare(one, xs, xs | {name: ys[name]}, [name], slope, offset, norm)
            if joint is not None:
                _compare(one, xs, ys, names, float(joint[0]), float(joint[1]), norm)


def _compare(one: One, xs: Any, ys: Any, names: Sequence[str], slope: float, offset: float, norm: Norm) -> None:
    moved = joint_size([xs[name] - ys[name] for name in names], norm)
    if moved == 0 or not math.isfinite(slope + offset):
        return
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        a, b = (np.asarray(one.run(point)[0], dtype=np.float64) for point in (xs, ys))
    noise = 1e-13 * (size_of(a, norm) + size_of(b, norm))
    measured = size_of(a - b, norm) - noise
    assert slope * moved + offset >= measured, (one.op, norm, slope, offset, measured / moved)
