"""Linear regions with joins as one operator, against the exact matrix of the model."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import gains
from tests.bounds.truth import Singular, exact, exact_sums
from tests.pipeline import certificate, make_model

Floats = NDArray[np.float64]
RNG = np.random.default_rng(60)


def node(op: str, inputs: str, output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attrs)


def integers(*shape: int) -> Floats:
    return RNG.integers(-3, 4, shape).astype(float)


def dyadic(*shape: int) -> Floats:
    return RNG.integers(-40, 41, shape) / 64


def models() -> dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Floats]]]:
    """Nodes, shape of x, constants (integers and dyadics, so that the float64 matrix of the model is exact)."""
    maps = (1, 3, 5, 4)
    same = {"pads": [1, 1, 1, 1]}
    return {
        "residual of matrices": (
            [node("MatMul", "x a", "h"), node("MatMul", "h b", "v"), node("Add", "x v", "y")],
            (1, 4, 6), {"a": integers(6, 3), "b": dyadic(3, 6)},
        ),
        "two residuals in a row": (
            [node("MatMul", "x a", "v"), node("Add", "v x", "h"), node("MatMul", "h b", "w"), node("Sub", "h w", "y")],
            (1, 4, 6), {"a": dyadic(6, 6), "b": dyadic(6, 6)},
        ),
        "minus a shared projection": (
            [node("MatMul", "x a", "v"), node("Sub", "x v", "y")],
            (1, 3, 4), {"a": np.full((4, 4), 0.25)},
        ),
        "RepVGG": (
            [node("Conv", "x k a", "v", **same), node("Conv", "x p", "w"), node("Add", "v w", "h"), node("Add", "h x", "y")],
            maps, {"k": dyadic(3, 3, 3, 3), "p": dyadic(3, 3, 1, 1), "a": integers(3)},
        ),
        "convolutions beside each other": (
            [node("Conv", "x k", "v", **same), node("Conv", "x p", "w"), node("Concat", "v w", "h", axis=1), node("Conv", "h q", "y")],
            maps, {"k": dyadic(2, 3, 3, 3), "p": dyadic(2, 3, 1, 1), "q": dyadic(3, 4, 1, 1)},
        ),
        "pooling that is taken away": (
            [node("AveragePool", "x", "v", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1), node("Sub", "v x", "y")],
            maps, {},
        ),
        "one variable three times": (
            [node("Sum", "x x x", "h"), node("MatMul", "h a", "v"), node("Sub", "v x", "y")],
            (1, 3, 4), {"a": dyadic(4, 4)},
        ),
        "a join with a constant": (
            [node("MatMul", "x a", "v"), node("Add", "v c", "w"), node("Mul", "w s", "h"), node("Add", "h x", "y")],
            (1, 3, 4), {"a": dyadic(4, 4), "c": integers(3, 4), "s": dyadic(4)},
        ),
        "broadcasting join": (
            [node("ReduceSum", "x axes", "v", keepdims=1), node("Mul", "v s", "w"), node("Sub", "x w", "y")],
            (1, 4, 3), {"axes": np.array([1], dtype=np.int64), "s": np.asarray(0.25)},
        ),
        "transposed branch": (
            [node("Transpose", "x", "v", perm=[0, 2, 1]), node("MatMul", "v a", "w"), node("Add", "w x", "y")],
            (1, 4, 4), {"a": dyadic(4, 4)},
        ),
    }  # fmt: skip


SEVERAL_REGIONS = {"two residuals in a row", "convolutions beside each other"}
"""Their gains are multiplied."""


def matrix(model: onnx.ModelProto, shape: tuple[int, ...]) -> Floats:
    """Differences from the image of 0, a column for each unit vector."""
    run = ReferenceEvaluator(model)
    size = int(np.prod(shape))
    origin = np.asarray(run.run(None, {"x": np.zeros(shape, np.float32)})[0], dtype=np.float64)
    units = np.eye(size, dtype=np.float32).reshape(size, *shape)
    return np.stack([np.asarray(run.run(None, {"x": unit})[0], dtype=np.float64).ravel() - origin.ravel() for unit in units], axis=1)


@pytest.mark.parametrize("name", list(models()))
def test_regions_with_joins_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, shape, constants = models()[name]
    model = make_model(nodes, {"x": shape}, ["y"], constants)
    whole = matrix(model, shape)
    truth = Singular(whole)
    upper = exact(certificate(model).headline.slope)
    assert truth.largest_at_most(upper)
    if name in SEVERAL_REGIONS:
        return
    assert not truth.largest_at_most(upper / (1 + Fraction(2, 10**6)))
    for norm in ("l1", "linf"):
        found = exact(certificate(model, norm=norm).headline.slope)
        assert exact_sums(whole, norm) <= found <= exact_sums(whole, norm) * (1 + Fraction(1, 10**9)), norm
    monkeypatch.setattr(gains, "affine_map", lambda work, region: None)
    assert upper <= exact(certificate(model).headline.slope) * (1 + Fraction(1, 10**6))


def slope(model: onnx.ModelProto, norm: Norm = "l2", **options: Any) -> float:
    return float(certificate(model, norm=norm, **options).headline.slope)


def test_what_is_not_affine_is_not_taken_for_it() -> None:
    """Products of two moving values, rounding and activations beside linear branches: the paths decide, and those are larger."""
    square = make_model([node("MatMul", "x a", "v"), node("Mul", "v x", "y")], {"x": (1, 3)}, ["y"], {"a": np.eye(3)})
    assert certificate(square).headline.status != "finite"
    assert slope(square, boxes=["x=-2:2"]) >= 4
    relu = make_model(
        [node("MatMul", "x a", "v"), node("Relu", "v", "h"), node("Sub", "x h", "y")], {"x": (1, 3)}, ["y"], {"a": -np.eye(3)}
    )
    assert slope(relu) >= 2  # x - relu(-x): slopes 1 and 2
    rounded = make_model([node("Floor", "x", "v"), node("Sub", "x v", "y")], {"x": (1, 3)}, ["y"], {})
    found = certificate(rounded).headline
    assert not found.offset.is_zero or found.status != "finite"


def test_two_variables_do_not_become_one() -> None:
    """x + A z with both moving: no single entry, so that neither cancels the other."""
    model = make_model([node("MatMul", "z a", "v"), node("Add", "x v", "y")], {"x": (1, 3), "z": (1, 3)}, ["y"], {"a": -np.eye(3)})
    assert slope(model) >= 2**0.5 * (1 - 1e-12)
