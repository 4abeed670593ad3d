"""The adversary: the largest gain that a float64 search finds, made a true lower bound by subtracting its own rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

__all__ = ["Erf", "Pair", "attack", "evaluator", "pair"]

Floats = NDArray[np.float64]
_ORDER: dict[str, float] = {"l1": 1, "l2": 2, "linf": np.inf}


@dataclass(frozen=True)
class Pair:
    """``change`` is a lower bound of the output distance, ``distance`` an upper bound of the input distance."""

    change: float
    distance: float


class Erf(OpRun):
    """The error function in the precision of its argument: that of the evaluator is in float32."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        """As the evaluator calls it."""
        return (erf(x),)


class MaxPool(OpRun):
    """The largest element of each window over two axes: the evaluator's refuses padding on one side only, and windows of NaN."""

    op_domain = ""

    def _run(self, x: Any, kernel_shape: Any = None, pads: Any = None, strides: Any = None, **others: Any) -> tuple[Any]:
        """As the evaluator calls it."""
        assert others.get("ceil_mode") in (None, 0) and set(others.get("dilations") or (1,)) == {1}, "neither is drawn"
        top, left, bottom, right = pads or (0, 0, 0, 0)
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
        down, across = strides or (1, 1)
        return (np.max(sliding_window_view(padded, kernel_shape, axis=(2, 3))[:, :, ::down, ::across], axis=(-2, -1)),)


def evaluator(model: onnx.ModelProto) -> Callable[[Floats], Floats]:
    """All outputs, flattened and concatenated, as a function of the one input."""
    session = ReferenceEvaluator(model, new_ops=[Erf, MaxPool])

    def f(x: Floats) -> Floats:
        with np.errstate(all="ignore"):
            outputs = session.run(None, {"x": x})
        return np.concatenate([np.asarray(y, dtype=np.float64).ravel() for y in outputs])

    return f


def attack(
    f: Callable[[Floats], Floats],
    shape: tuple[int, ...],
    norm: str,
    rng: np.random.Generator,
    box: tuple[float, float] | None,
    points: int = 8,
) -> Iterator[Pair]:
    """Pairs along the worst directions of the Jacobian at many points, and random ones, at several distances."""
    for k in range(points):
        x = _point(shape, rng, box, k)
        y = f(x)
        if not np.all(np.isfinite(y)):
            continue
        jacobian = _jacobian(f, x, box)
        for direction in _directions(jacobian, norm, rng, shape):
            for distance in (1e-4, 1e-2, 0.3, 3.0):
                z = x + distance * direction / max(float(np.linalg.norm(direction)), 1e-300)
                if box is not None:
                    z = np.clip(z, *box)
                yield pair(y, f(z), x, z, norm)


def pair(y: Floats, fz: Floats, x: Floats, z: Floats, norm: str, error: float = 2.0**-36) -> Pair:
    """What the points x and z with the values y and fz say for certain; ``error`` is that of one evaluation, relative to the values."""
    # Both evaluations are off by a modest multiple of the machine precision of what they sum up to.
    order = _ORDER[norm]
    if not np.all(np.isfinite(fz)):
        return Pair(0.0, 1.0)
    error = error * (1.0 + float(np.linalg.norm(y.ravel(), order)) + float(np.linalg.norm(fz, order)))
    change = float(np.linalg.norm((fz - y).ravel(), order)) * (1 - 2.0**-40) - error
    return Pair(max(change, 0.0), float(np.linalg.norm((z - x).ravel(), order)) * (1 + 2.0**-40))


def _point(shape: tuple[int, ...], rng: np.random.Generator, box: tuple[float, float] | None, k: int) -> Floats:
    if box is None:
        return rng.normal(size=shape) * [0.0, 0.1, 1.0, 5.0][k % 4]
    lo, hi = box
    if k % 3 == 0:
        return np.where(rng.random(shape) < 0.5, lo, hi)
    return lo + (hi - lo) * rng.random(shape)


def _jacobian(f: Callable[[Floats], Floats], x: Floats, box: tuple[float, float] | None) -> Floats:
    columns: list[Floats] = []
    for i in range(x.size):
        ends: list[Floats] = []
        for sign in (1.0, -1.0):
            z = x.copy()
            z.ravel()[i] += sign * 1e-6
            ends.append(f(z))
        columns.append(np.nan_to_num((ends[0] - ends[1]) / 2e-6))
    return np.stack(columns, axis=1)


def _directions(jacobian: Floats, norm: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Floats]:
    if norm == "l2":
        yield np.linalg.svd(jacobian)[2][0].reshape(shape)
    elif norm == "l1":
        unit = np.zeros(jacobian.shape[1])
        unit[int(np.argmax(np.abs(jacobian).sum(axis=0)))] = 1.0
        yield unit.reshape(shape)
    else:
        yield np.sign(jacobian[int(np.argmax(np.abs(jacobian).sum(axis=1)))] + 1e-300).reshape(shape)
    yield rng.normal(size=shape)
