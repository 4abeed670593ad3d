"""Products quantised on the fly are one node; its bound holds against pairs that straddle the rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from lipaudit.bounds.scalar import Norm
from tests.pipeline import certificate, make_model, topology

NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
RNG = np.random.default_rng(3)
W = RNG.integers(0, 255, size=(5, 4)).astype(np.uint8)
ZERO = np.array(117, dtype=np.uint8)
SCALE = np.array(0.03, dtype=np.float32)


def chain(*, scale: np.ndarray = SCALE, swap: bool = False, **changes: str) -> onnx.ModelProto:
    scales = ["w_scale", "s"] if swap else ["s", "w_scale"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Mul", scales, ["both"]),
        helper.make_node("MatMulInteger", ["q", "w", changes.get("zero", "z"), "w_zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["both", "f"] if swap else ["f", "both"], ["y"]),
    ]
    if changes.get("extra"):
        nodes.append(helper.make_node("Cast", [changes["extra"]], ["more"], to=1))
    outputs = ["y", *(["more"] if changes.get("extra") else [])]
    return make_model(nodes, {"x": (2, 5)}, outputs, {"w": W, "w_zero": ZERO, "w_scale": scale})


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op for node in topology(model).graph.nodes]


@pytest.mark.parametrize("scale", [SCALE, np.array([0.1, 0.2, 0.01, 0.5], dtype=np.float32)])
@pytest.mark.parametrize("swap", [False, True])
def test_the_chain_is_one_node(scale: np.ndarray, swap: bool) -> None:
    found = topology(chain(scale=scale, swap=swap))
    (node,) = found.graph.nodes
    assert node.kind == "com.microsoft::DynamicQuantizeMatMul" and len(node.covers) == 5


@pytest.mark.parametrize("extra", ["q", "z", "i"])
def test_a_part_that_is_read_elsewhere_is_not_lost(extra: str) -> None:
    """The quantised input may be shared: then the product is recognised all the same; its own inside must be private."""
    found = ops(chain(extra=extra))
    assert ("DynamicQuantizeMatMul" in found) == (extra != "i")
    assert "DynamicQuantizeLinear" in found


def test_another_zero_point_is_another_function() -> None:
    model = chain(zero="w_zero")
    assert "MatMulInteger" in ops(model)


def test_two_products_share_one_quantised_input() -> None:
    model = make_model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            *(
                node
                for k in "ab"
                for node in (
                    helper.make_node("Mul", ["s", "w_scale"], [f"both{k}"]),
                    helper.make_node("MatMulInteger", ["q", "w", "z", "w_zero"], [f"i{k}"]),
                    helper.make_node("Cast", [f"i{k}"], [f"f{k}"], to=1),
                    helper.make_node("Mul", [f"f{k}", f"both{k}"], [f"y{k}"]),
                )
            ),
            helper.make_node("Sub", ["ya", "yb"], ["y"]),
        ],
        {"x": (2, 5)},
        ["y"],
        {"w": W, "w_zero": ZERO, "w_scale": SCALE},
    )
    assert ops(model) == ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul", "Sub"]


def quantised(x: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear and back, in float64."""
    lo, hi = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (hi - lo) / 255
    if scale == 0:
        return np.zeros_like(x)
    zero = np.clip(np.rint(-lo / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("norm", NORMS)
def test_no_pair_beats_the_bound_on_a_box(norm: Norm) -> None:
    found = certificate(chain(), norm, ["x=-1:2"]).headline
    assert found.status == "finite"
    slope, offset = float(found.slope), float(found.offset)
    weight = (W.astype(np.float64) - float(ZERO)) * float(SCALE)
    worst = 0.0
    for k in range(400):
        x = RNG.uniform(-1, 2, size=(2, 5))
        if k % 2:
            # Ends fixed, so that the grid stands still, and the other elements beside its ties.
            x[0, 0], x[0, 1] = -1.0, 2.0
            tie = (RNG.integers(-80, 160, size=(2, 5)) + 0.5) * 3 / 255
            x = np.where(np.isin(x, (-1.0, 2.0)), x, tie)
        y = np.clip(x + RNG.choice([-1e-9, 1e-9, 1e-3, 0.2], size=x.shape) * (np.abs(x) < 0.99), -1, 2)
        change = float(np.linalg.norm(((quantised(x) - quantised(y)) @ weight).ravel(), ORDER[norm]))
        assert change <= slope * float(np.linalg.norm((x - y).ravel(), ORDER[norm])) + offset
        worst = max(worst, change - slope * float(np.linalg.norm((x - y).ravel(), ORDER[norm])))
    assert worst > 0.1 * offset  # the offset is needed, and of the right size


def test_on_all_reals_the_step_grows_with_the_input() -> None:
    found = certificate(chain()).headline
    assert found.status == "unbounded" and any("grows with the input" in reason.reason for reason in found.reasons)
