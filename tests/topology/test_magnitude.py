"""The length of a vector that is spread over several values: recognised in all spellings, the same function, 1-Lipschitz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import lipaudit
from tests.pipeline import certificate, make_model
from tests.topology.spelled import check_same_function, fused, recognised
from tests.topology.test_activations import constants

GIVEN = constants(two=2.0, half=0.5, eps=0.25)
SPELLINGS = {
    "pow": "a = Pow(x, two) b = Pow(y, two) s = Add(a, b) z = Sqrt(s)",
    "mul, other order": "a = Mul(x, x) b = Mul(y, y) s = Add(b, a) z = Sqrt(s)",
    "root as power": "a = Mul(x, x) b = Pow(y, two) s = Add(a, b) z = Pow(s, half)",
    "with epsilon": "a = Mul(x, x) b = Mul(y, y) s = Add(a, b) t = Add(s, eps) z = Sqrt(t)",
    "epsilon inside": "a = Mul(x, x) b = Mul(y, y) t = Add(eps, a) s = Add(t, b) z = Sqrt(s)",
    "sum": "a = Mul(x, x) b = Mul(y, y) s = Sum(a, b, eps) z = Sqrt(s)",
    "one part": "a = Mul(x, x) z = Sqrt(a)",
}
HALVES = (
    "o = Constant<value_ints=[0]>() h = Constant<value_ints=[3]>() e = Constant<value_ints=[6]>() ax = Constant<value_ints=[1]>() "
    "x = Slice(v, o, h, ax) y = Slice(v, h, e, ax) "
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    topology = recognised(f"g (float[1,3,4] x, float[1,3,4] y) => (float[1,3,4] z) {{ {GIVEN} {SPELLINGS[name]} }}")
    (node,) = fused(topology)
    assert node.kind == "lipaudit::Magnitude" and node.attrs["epsilon"] == (0.25 if "eps" in SPELLINGS[name] else 0.0)
    check_same_function(topology)


def test_halves_of_one_value() -> None:
    topology = recognised(f"g (float[1,6,4] v) => (float[1,3,4] z) {{ {GIVEN} {HALVES} {SPELLINGS['pow']} }}")
    (node,) = topology.graph.nodes
    assert node.inputs == ("v",) and node.attrs["begins"] == (0, 3) and node.attrs["count"] == 3 and node.attrs["axis"] == 1
    check_same_function(topology)


@pytest.mark.parametrize("slices", ["y = Slice(v, one, four, ax)", "y = Slice(v, h, e, ax) w = Neg(y)"])
def test_slices_that_overlap_or_are_read_again_stay(slices: str) -> None:
    more = "one = Constant<value_ints=[1]>() four = Constant<value_ints=[4]>() "
    body = HALVES.replace("y = Slice(v, h, e, ax)", more + slices) + SPELLINGS["pow"]
    out = ", float[1,3,4] w" if "w" in slices else ""
    topology = recognised(f"g (float[1,6,4] v) => (float[1,3,4] z{out}) {{ {GIVEN} {body} }}")
    (node,) = fused(topology)
    assert node.kind == "lipaudit::Magnitude" and node.inputs == ("x", "y")
    check_same_function(topology)


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, y) b = Mul(y, y) s = Add(a, b) z = Sqrt(s)",
        "a = Mul(x, x) b = Mul(y, y) s = Sub(a, b) z = Sqrt(s)",
        "n = Neg(eps) a = Mul(x, x) s = Add(a, n) z = Sqrt(s)",
        "a = Mul(x, x) b = Mul(y, y) s = Add(a, b) z = Pow(s, two)",
    ],
)
def test_what_only_looks_so(body: str) -> None:
    assert not fused(recognised(f"g (float[1,3,4] x, float[1,3,4] y) => (float[1,3,4] z) {{ {GIVEN} {body} }}"))


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("form", ["two inputs", "one product", "halves"])
def test_the_constant(norm: str, form: str) -> None:
    """Attained: nothing that the search finds is above, and the bound is within a millionth of the value that is known."""
    rng = np.random.default_rng(3)
    node = helper.make_node
    tail = [node("Mul", ["p", "p"], ["a"]), node("Mul", ["q", "q"], ["b"]), node("Add", ["a", "b"], ["s"]), node("Sqrt", ["s"], ["y"])]
    w = np.asarray(rng.standard_normal((3, 4)), np.float32)
    if form == "two inputs":
        model = make_model(tail, {"p": [2, 3], "q": [2, 3]}, ["y"])
        known = {"l2": np.sqrt(2), "l1": 1.0, "linf": 2.0}[norm]  # independent sources are added
    elif form == "halves":
        index = {"o": np.array([0]), "h": np.array([2]), "e": np.array([4]), "ax": np.array([0])}
        cut = [node("Slice", ["x", "o", "h", "ax"], ["p"]), node("Slice", ["x", "h", "e", "ax"], ["q"])]
        model = make_model([*cut, *tail], {"x": [4, 3]}, ["y"], index)
        known = {"l2": 1.0, "l1": 1.0, "linf": np.sqrt(2)}[norm]
    else:
        cut = [node("MatMul", ["x", "w"], ["v"]), node("Split", ["v"], ["p", "q"], axis=1, num_outputs=2)]
        model = make_model([*cut, *tail], {"x": [2, 3]}, ["y"], {"w": w})
        known = None
    slope = float(certificate(model, norm).headline.slope)  # type: ignore[arg-type]
    if known is not None:
        assert known <= slope <= known * (1 + 1e-6)
    if form == "one product":  # rows act alone: one row suffices
        full = w.astype(float)
        best = 0.0
        order = {"l2": 2, "l1": 1, "linf": np.inf}[norm]
        for _ in range(200):
            v = rng.standard_normal(3) @ full
            unit = v.reshape(2, 2) / np.hypot(v[:2], v[2:])
            jacobian = np.stack([full[:, k] * unit[0, k] + full[:, 2 + k] * unit[1, k] for k in range(2)])
            best = max(best, float(np.linalg.norm(jacobian, order)))
        assert best <= slope


def test_range_and_zero() -> None:
    """Also at 0, where root and squares alone have no bound; the range holds corners and the point 0."""
    node = helper.make_node
    nodes = [node("Mul", ["p", "p"], ["a"]), node("Mul", ["q", "q"], ["b"]), node("Add", ["a", "b"], ["s"]), node("Sqrt", ["s"], ["y"])]
    found = certificate(make_model(nodes, {"p": [2, 3], "q": [2, 3]}, ["y"]), boxes=["p=3:4", "q=-1:2"])
    reach = found.ranges["y"]
    assert np.all(reach.lo <= 3.0) and np.all(reach.lo > 3 - 1e-9) and np.all(reach.hi >= np.sqrt(20.0)) and np.all(reach.hi < 4.4722)


@pytest.mark.models
def test_a_spectrogram_of_a_real_model(models: Path) -> None:
    """With a box for the state, whose range grows without bound on all reals, the voice detector has a constant."""
    audit = lipaudit.audit(models / "silero_vad_op15.onnx", boxes={"state": (-1.0, 1.0)}, measure=False)
    assert audit.certified.status == "finite"
