"""L2 attention with tied queries and keys: recognised in its spellings, refused where it is another function."""

from __future__ import annotations

import numpy as np
import pytest

from tests.topology.spelled import check_same_function, fused, recognised
from tests.topology.test_activations import constants

WEIGHT = "wf = Constant<value_floats=[{}]>() ws = Constant<value_ints=[3,2]>() w = Reshape(wf, ws) ".format(
    ", ".join(str(float(x)) for x in np.arange(6) / 4)
)
GIVEN = constants(two=2.0, tau=0.5, minus=-0.5, unit=-2.0) + " axes = Constant<value_ints=[-1]>() " + WEIGHT
SQUARES = (
    "s2 = Mul(q, q) s = ReduceSum<keepdims=1>(s2, axes) st = Transpose<perm=[0,2,1]>(s) qt = Transpose<perm=[0,2,1]>(q) qq = MatMul(q, qt) "
)
VALUES = "v = MatMul(q, w) y = MatMul(p, v) "

SPELLINGS = {
    "distance": SQUARES + "a = Add(s, st) b = Mul(qq, two) c = Sub(a, b) l = Mul(c, minus) p = Softmax<axis=-1>(l) " + VALUES,
    "negated": SQUARES + "b = Mul(two, qq) a = Sub(s, b) c = Add(a, st) n = Neg(c) l = Div(n, two) p = Softmax<axis=2>(l) " + VALUES,
    "without the rows": SQUARES + "a = Mul(st, tau) l = Sub(qq, a) p = Softmax<axis=-1>(l) " + VALUES,
    "powers": SQUARES.replace("Mul(q, q)", "Pow(q, two)") + "b = Mul(qq, two) l = Sub(b, st) p = Softmax<axis=-1>(l) " + VALUES,
    "values are the queries": SQUARES + "a = Add(s, st) b = Mul(qq, unit) c = Add(b, a) l = Neg(c) "
    "p = Softmax<axis=-1>(l) y = MatMul(p, q) ",
}


def _model(body: str, more: str = "", width: int = 2) -> str:
    return f"g (float[1,4,3] q{more}) => (float[1,4,{width}] y) {{ {GIVEN} {body} }}"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    topology = recognised(_model(SPELLINGS[spelling], width=3 if "queries" in spelling else 2))
    (node,) = fused(topology)
    assert node.kind == "lipaudit::L2Attention" and node.inputs[0] == "q"
    assert node.attrs["tau"] in (0.5, 1.0)
    check_same_function(topology)


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        (SPELLINGS["distance"].replace("minus", "tau"), "", "no negative squared distance"),
        (SPELLINGS["distance"].replace("Mul(qq, two)", "Mul(qq, tau)"), "", "no negative squared distance"),
        (SPELLINGS["distance"].replace("MatMul(q, w)", "MatMul(z, w)"), ", float[1,4,3] z", "not a linear map of the same rows"),
        (SPELLINGS["distance"].replace("Mul(q, q)", "Mul(z, z)"), ", float[1,4,3] z", "not tied"),
        (SPELLINGS["distance"].replace("y = MatMul(p, v)", "r = Relu(p) y = MatMul(r, v)"), "", "one product with values"),
    ],
)
def test_other_functions_are_refused(body: str, more: str, says: str) -> None:
    topology = recognised(_model(body, more))
    assert not fused(topology, "L2Attention")
    assert any(says in refusal.reason for refusal in topology.refusals if refusal.pattern == "L2 attention")


def test_dot_products_do_not_begin_like_it() -> None:
    body = "t = Transpose<perm=[0,2,1]>(q) l = MatMul(q, t) p = Softmax<axis=-1>(l) y = MatMul(p, q)"
    topology = recognised(_model(body, width=3))
    assert [node.op for node in fused(topology)] == ["Attention"]
    assert not topology.refusals
