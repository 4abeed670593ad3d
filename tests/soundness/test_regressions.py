"""Counterexamples that once beat a certificate, or looked as if they should: each model is small, and each is attacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import certify
from lipaudit.certify.domain import Domain, ElementBox
from lipaudit.operators.catalogue import Catalogue
from tests.pipeline import make_model, topology
from tests.soundness.adversary import attack, evaluator

NORMS: tuple[Norm, ...] = ("l2", "l1", "linf")
_AXIS = np.array([1])


def node(op: str, inputs: list[str], output: str, **attrs: Any) -> onnx.NodeProto:
    """A node named after its output."""
    return helper.make_node(op, inputs, [output], name=f"n_{output}", **attrs)


def holds(model: onnx.ModelProto, norm: Norm, box: tuple[float, float] | None = None, points: int = 12) -> str:
    """Attack ``model`` (one double input x) and return the status of its certificate."""
    found = topology(model)
    ends = {} if box is None else {"x": ElementBox(np.asarray(box[0]), np.asarray(box[1]))}
    headline = certify(found, Catalogue.load(), Domain({}, ends), norm).headline
    if headline.status != "finite":
        assert headline.reasons
        return headline.status
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    slope, offset = float(headline.slope), float(headline.offset)
    for pair in attack(evaluator(model), shape, norm, np.random.default_rng(7), box, points=points):
        assert pair.change <= slope * pair.distance + offset, (slope, offset, pair.change / pair.distance)
    return headline.status


def double(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, Any], outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    """A model in float64."""
    return make_model(nodes, {"x": shape}, list(outputs), constants, dtype=onnx.TensorProto.DOUBLE)


def root_mean_square(keepdims: int) -> onnx.ModelProto:
    """``x / sqrt(mean(x^2) + eps)`` on a square: without its axis the statistic of row j divides *column* j."""
    nodes = [
        node("Pow", ["x", "two"], "squares"), node("ReduceMean", ["squares", "axis"], "mean", keepdims=keepdims),
        node("Add", ["mean", "eps"], "shifted"), node("Sqrt", ["shifted"], "root"), node("Div", ["x", "root"], "y"),
    ]  # fmt: skip
    return double(nodes, (4, 4), {"two": 2.0, "axis": _AXIS, "eps": 1e-2})


def centred(keepdims: int) -> onnx.ModelProto:
    """Layer normalization whose mean lost its axis: row means are subtracted from columns."""
    nodes = [
        node("ReduceMean", ["x", "axis"], "mean", keepdims=keepdims), node("Sub", ["x", "mean"], "centred"),
        node("Pow", ["centred", "two"], "squares"), node("ReduceMean", ["squares", "axis"], "variance", keepdims=1),
        node("Add", ["variance", "eps"], "shifted"), node("Sqrt", ["shifted"], "root"), node("Div", ["centred", "root"], "y"),
    ]  # fmt: skip
    return double(nodes, (4, 4), {"two": 2.0, "axis": _AXIS, "eps": 1e-2})


def put_back(axis: int) -> onnx.ModelProto:
    """The lost axis is put back: at its place (1) it is a normalization, at the other (0) it is none."""
    nodes = [
        node("Pow", ["x", "two"], "squares"), node("ReduceMean", ["squares", "axis"], "mean", keepdims=0),
        node("Add", ["mean", "eps"], "shifted"), node("Sqrt", ["shifted"], "root"), node("Unsqueeze", ["root", "place"], "column"),
        node("Div", ["x", "column"], "y"),
    ]  # fmt: skip
    return double(nodes, (4, 4), {"two": 2.0, "axis": _AXIS, "eps": 1e-2, "place": np.array([axis])})


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [None, (-0.5, 1.0)], ids=["reals", "box"])
@pytest.mark.parametrize("build", [root_mean_square, centred, put_back])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_statistic_meets_its_own_rows(build: Any, kept: int, box: tuple[float, float] | None, norm: Norm) -> None:
    model = build(kept)
    status = holds(model, norm, box)
    fused = [n for n in topology(model).graph.nodes if n.op == "Normalization"]
    if kept:
        assert len(fused) == 1 and status == "finite"
    elif build is not centred:
        assert not fused


@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_that_broadcasts_one_key(norm: Norm) -> None:
    nodes = [
        node("Slice", ["x", "zero", "one", "last"], "k"), node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["x", "kt"], "logits"), node("Add", ["logits", "mask"], "masked"), node("Softmax", ["masked"], "p", axis=-1),
        node("MatMul", ["p", "x"], "y"),
    ]  # fmt: skip
    constants = {"zero": np.array([0]), "one": np.array([1]), "last": np.array([1]), "mask": np.zeros((1, 1, 4))}
    assert holds(double(nodes, (1, 4, 3), constants), norm, (-1.0, 1.0)) == "finite"


@pytest.mark.parametrize("norm", NORMS)
def test_gelu_of_a_negative_multiple(norm: Norm) -> None:
    nodes = [
        node("Div", ["x", "root"], "scaled"), node("Neg", ["scaled"], "negative"), node("Erf", ["negative"], "erf"),
        node("Add", ["erf", "one"], "sum"), node("Mul", ["x", "sum"], "product"), node("Mul", ["product", "half"], "y"),
    ]  # fmt: skip
    model = double(nodes, (3,), {"root": 1.4142135, "one": 1.0, "half": 0.5})
    assert all(n.op != "Gelu" for n in topology(model).graph.nodes)
    assert holds(model, norm, (-2.0, 3.0)) == "finite"


def test_the_scale_of_dynamic_quantization_jumps_at_zero() -> None:
    """ONNX Runtime takes the scale 1 for a tensor of zeros."""
    quantize = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize")
    model = make_model([quantize], {"x": (4,)}, ["s"], opset=13)
    near = certify(topology(model), Catalogue.load(), Domain({}, {"x": ElementBox(np.asarray(-1.0), np.asarray(1.0))}), "linf").headline
    away = certify(topology(model), Catalogue.load(), Domain({}, {"x": ElementBox(np.asarray(0.5), np.asarray(1.0))}), "linf").headline
    assert float(near.offset) >= 1.0 > float(near.slope) and away.offset.is_zero


def whole_numbers(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, Any], to: int) -> onnx.ModelProto:
    """``nodes`` from i, the input converted to integers, to n, which is converted back."""
    first = helper.make_node("Cast", ["x"], ["i"], name="n_i", to=to)
    last = helper.make_node("Cast", ["n"], ["y"], name="n_y", to=onnx.TensorProto.DOUBLE)
    return make_model([first, *nodes, last], {"x": shape}, ["y"], constants, dtype=onnx.TensorProto.DOUBLE, opset=14)


@pytest.mark.parametrize("norm", NORMS)
def test_a_mean_of_integers_is_rounded(norm: Norm) -> None:
    """Only the first element can jump, by 1; the mean of four moves by 1/4 and its integer part by 1."""
    nodes = [node("Add", ["i", "ones"], "sum"), node("ReduceMean", ["sum"], "n", axes=[0])]
    lo, hi = np.array([0.5, 0.1, 0.1, 0.1]), np.array([1.5, 0.2, 0.2, 0.2])
    model = whole_numbers(nodes, (4,), {"ones": np.array([0, 1, 1, 1], dtype=np.int32)}, onnx.TensorProto.INT32)
    headline = certify(topology(model), Catalogue.load(), Domain({}, {"x": ElementBox(lo, hi)}), norm).headline
    step = 1e-6  # from just below 1 to 1
    assert float(headline.slope) * step + float(headline.offset) >= 1.0


@pytest.mark.parametrize("norm", NORMS)
def test_an_integer_power_is_rounded(norm: Norm) -> None:
    power = node("Pow", ["base", "x"], "n")
    back = helper.make_node("Cast", ["n"], ["y"], name="n_y", to=onnx.TensorProto.DOUBLE)
    model = double([power, back], (2,), {"base": np.array([2, 3], dtype=np.int32)})
    assert holds(model, norm, (0.0, 2.0), points=30) == "finite"


@pytest.mark.parametrize(("kind", "constant"), [(onnx.TensorProto.INT32, np.int32(2_000_000_000)), (onnx.TensorProto.UINT8, np.uint8(100))])
def test_integers_may_overflow(kind: int, constant: Any) -> None:
    """3 * 2 000 000 000 is negative in 32 bits, 3 * 100 is 44 in 8 bits."""
    model = whole_numbers([node("Mul", ["i", "c"], "n")], (2,), {"c": np.asarray(constant)}, kind)
    assert holds(model, "l2", (0.0, 3.5)) == "unknown"
    assert holds(model, "l2", (0.0, 1.5)) == "finite"


def test_a_divisor_that_wraps_around() -> None:
    """A byte plus 200 lies in 0..255, not in 200..455: it may be 0."""
    offset = helper.make_node("Add", ["ids", "c"], ["shifted"], name="n_shifted")
    wide = helper.make_node("Cast", ["shifted"], ["divisor"], name="n_divisor", to=onnx.TensorProto.FLOAT)
    model = make_model([offset, wide, node("Div", ["x", "divisor"], "y")], {"x": (2,)}, ["y"], {"c": np.uint8(200)})
    model.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.UINT8, [2]))
    assert certify(topology(model), Catalogue.load(), Domain({}), "l2").headline.status == "unknown"


def test_eight_bits_are_not_looked_through() -> None:
    """``x / rms(q(x))`` jumps with q: no normalization of x; likewise logits that are rounded before their softmax."""
    to_eight = helper.make_node("Cast", ["x"], ["q"], name="n_q", to=onnx.TensorProto.FLOAT8E4M3FN)
    back = helper.make_node("Cast", ["q"], ["r"], name="n_r", to=onnx.TensorProto.FLOAT)
    rms = [
        to_eight, back, node("Mul", ["r", "r"], "squares"), node("ReduceMean", ["squares", "axis"], "mean"),
        node("Add", ["mean", "eps"], "s"), node("Sqrt", ["s"], "root"), node("Div", ["x", "root"], "y"),
    ]  # fmt: skip
    model = make_model(rms, {"x": (2, 4)}, ["y"], {"axis": _AXIS, "eps": 1e-2}, opset=19)
    headline = certify(topology(model), Catalogue.load(), Domain({}, {"x": ElementBox(np.asarray(-3.0), np.asarray(3.0))}), "l2").headline
    assert headline.status != "finite" or not headline.offset.is_zero
    gelu = [
        node("Div", ["x", "c"], "d"), helper.make_node("Cast", ["d"], ["q"], name="n_q", to=onnx.TensorProto.FLOAT8E4M3FN),
        helper.make_node("Cast", ["q"], ["r"], name="n_r", to=onnx.TensorProto.FLOAT), node("Erf", ["r"], "e"),
        node("Add", ["e", "one"], "a"),
        node("Mul", ["x", "a"], "m"), node("Mul", ["m", "half"], "y"),
    ]  # fmt: skip
    found = topology(make_model(gelu, {"x": (4,)}, ["y"], {"c": 1.4142135, "one": 1.0, "half": 0.5}, opset=19))
    assert all(n.op != "Gelu" for n in found.graph.nodes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("columns", [[1], [0, 3], [2, 1, 0, 3]])
def test_columns_cut_out_of_an_attention(columns: list[int], norm: Norm) -> None:
    """What is left need not fill whole rows of the projection: the audit broke off here."""
    rng = np.random.default_rng(3)
    nodes = [
        *(node("MatMul", ["x", f"w{role}"], f"flat_{role}") for role in "qkv"),
        *(node("Reshape", [f"flat_{role}", "split"], f"split_{role}") for role in "qkv"),
        *(node("Transpose", [f"split_{role}"], role, perm=[0, 2, 3, 1] if role == "k" else [0, 2, 1, 3]) for role in "qkv"),
        node("MatMul", ["q", "k"], "scores"), node("Softmax", ["scores"], "p", axis=-1), node("MatMul", ["p", "v"], "o"),
        node("Transpose", ["o"], "t", perm=[0, 2, 1, 3]), node("Reshape", ["t", "whole"], "r"), node("MatMul", ["r", "wo"], "m"),
        node("Gather", ["m", "columns"], "y", axis=2),
    ]  # fmt: skip
    constants = {f"w{role}": rng.normal(size=(4, 4)) for role in "qkvo"}
    shapes = {"split": np.array([1, 3, 2, 2]), "whole": np.array([1, 3, 4]), "columns": np.array(columns)}
    assert holds(double(nodes, (1, 3, 4), {**constants, **shapes}), norm, (-1.0, 1.0)) == "finite"
