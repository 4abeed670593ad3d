"""If, Loop, Scan: constants derived by hand in three norms, and random bodies against a search in float64."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import parser

from lipaudit.bounds.scalar import Norm
from lipaudit.certify import Certificate
from lipaudit.operators.loops import of_all_samples
from lipaudit.operators.range import Range
from tests.pipeline import certificate
from tests.soundness.adversary import attack, evaluator

NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
ORDER = {"l1": 1, "l2": 2, "linf": math.inf}

HEAD = '<ir_version: 10, opset_import: ["": 18]>\n'


def model(text: str) -> onnx.ModelProto:
    parsed = parser.parse_model(HEAD + text)
    onnx.checker.check_model(parsed)
    return parsed


def slope(found: Certificate) -> float:
    return float(found.headline.slope)


def near(found: float, truth: float) -> bool:
    """Not below the truth, and sharp."""
    return truth <= found <= truth * (1 + 1e-6) + 1e-9


# ---------------------------------------------------------------------- If

STILL = """g (double[3] x, bool k) => (double[3] y) {
  y = If (k) <then_branch = a () => (u) { u0 = Relu(x)  u = Add(u0, u0) },
              else_branch = b () => (v) <double h = {-3.0}> { v = Mul(x, h) }>
}"""

DECIDED = """g (double[3] x) => (double[3] y) <double z = {0.0}> {
  s = ReduceSum <keepdims = 0> (x)
  k = Greater(s, z)
  y = If (k) <then_branch = a () => (u) { u0 = Relu(x)  u = Add(u0, u0) },
              else_branch = b () => (v) <double h = {-3.0}> { v = Mul(x, h) }>
}"""


@pytest.mark.parametrize("norm", NORMS)
def test_the_worst_branch_counts_when_the_condition_stands_still(norm: Norm) -> None:
    found = certificate(model(STILL), norm).headline
    assert near(float(found.slope), 3.0) and found.offset.is_zero


@pytest.mark.parametrize(("norm", "copies"), [("l1", 3.0), ("l2", math.sqrt(3.0)), ("linf", 1.0)])
def test_a_condition_from_the_input_adds_the_difference_of_the_branches(norm: Norm, copies: float) -> None:
    found = certificate(model(DECIDED), norm, ["x=-1:1"]).headline
    # 2 relu(x) lies in [0, 2], -3x in [-3, 3]: they differ by at most 5 per element.
    assert near(float(found.slope), 3.0) and near(float(found.offset), 5 * copies)


def test_a_condition_from_the_input_on_all_reals_is_named() -> None:
    found = certificate(model(DECIDED)).headline
    assert found.status == "unbounded"
    assert any("two branches differ" in reason.reason for reason in found.reasons)


def test_a_condition_that_the_ranges_decide_is_a_constant() -> None:
    found = certificate(model(DECIDED), "l2", ["x=1:2"]).headline
    assert near(float(found.slope), 2.0) and found.offset.is_zero


def test_branches_that_jump_jump_once_more_than_their_difference() -> None:
    text = """g (double[1] x) => (double[1] y) <double z = {0.0}> {
      k = Greater(x, z)
      y = If (k) <then_branch = a () => (u) { u = Round(x) }, else_branch = b () => (v) { v = Floor(x) }>
    }"""
    found = certificate(model(text), "l2", ["x=-4:4"]).headline
    # Both move by |dx| + 1; the difference of the branches is at most 8 by their ranges.
    assert near(float(found.slope), 1.0) and near(float(found.offset), 9.0)


AGREEING = """g (double[2] x) => (double[2] y) <double z = {0.0}> {
  s = ReduceSum <keepdims = 0> (x)
  k = Greater(s, z)
  y = If (k) <then_branch = a () => (u) <double h = {3.0}> { m = Mul(x, h) u = Sin(m) },
              else_branch = b () => (v) <double h = {OTHER}> { n = Mul(x, h) v = Sin(n) }> }"""


def test_branches_that_compute_alike_do_not_jump() -> None:
    found = certificate(model(AGREEING.replace("OTHER", "3.0"))).headline
    assert found.status == "finite" and found.offset.is_zero and near(float(found.slope), 3.0)


def test_branches_with_another_constant_do() -> None:
    """sin 3x on one side and sin 4x on the other differ where the condition switches, at x = (t, -t)."""
    found = certificate(model(AGREEING.replace("OTHER", "4.0"))).headline
    t = np.linspace(-4, 4, 4001)
    jump = float(np.max(np.abs(np.sin(3 * t) - np.sin(4 * t)))) * math.sqrt(2)
    assert found.status != "finite" or float(found.offset) >= jump


def test_both_branches_hand_on_the_same_value() -> None:
    text = """g (double[2] x) => (double[2] y) <double z = {0.0}> {
      s = ReduceSum <keepdims = 0> (x)
      k = Greater(s, z)
      w = Mul(x, x)
      y = If (k) <then_branch = a () => (w) { }, else_branch = b () => (w) { }>
    }"""
    found = certificate(parser.parse_model(HEAD + text), "l2", ["x=-1:1"]).headline
    assert near(float(found.slope), 2.0) and found.offset.is_zero


def test_different_inputs_of_the_branches_do_not_add() -> None:
    text = """g (double[3] x, bool k) => (double[3] y) {
      a = Relu(x)
      b = Neg(x)
      y = If (k) <then_branch = p () => (u) { u = Add(a, a) }, else_branch = q () => (v) <double h = {3.0}> { v = Mul(b, h) }>
    }"""
    assert near(slope(certificate(model(text))), 3.0)


def test_random_numbers_in_a_branch_are_no_function() -> None:
    text = """g (double[3] x, bool k) => (double[3] y) {
      y = If (k) <then_branch = p () => (u) { u0 = RandomUniformLike(x) u = Add(u0, x) }, else_branch = q () => (v) { v = Neg(x) }>
    }"""
    found = certificate(model(text)).headline
    assert found.status == "unknown" and any("random" in reason.reason for reason in found.reasons)


def test_an_undefined_value_does_not_decide_inside_a_branch() -> None:
    # Log is NaN on half of the inputs; its range is that of the defined values.
    text = """g (double[1] x, bool k) => (double[1] y) <double lo = {-100.0}> {
      l = Log(x)
      y = If (k) <then_branch = p () => (u) { c = Greater(l, lo) u = Cast <to = 11> (c) }, else_branch = q () => (v) { v = Neg(l) }>
    }"""
    assert certificate(model(text), "l2", ["x=-1:1"]).headline.status != "finite"


# ---------------------------------------------------------------------- Loop


def geometric(count: str, gain: float, *, known: bool = True) -> onnx.ModelProto:
    """s <- gain s + x, from s = x."""
    given = "double[3] x" if known else "double[3] x, int64 n"
    constants = f"<int64 n = {{{count}}}, bool t = {{1}}>" if known else "<bool t = {1}>"
    return model(f"""g ({given}) => (double[3] y) {constants} {{
      y = Loop (n, t, x) <body = b (int64 i, bool c, double[3] s) => (bool c2, double[3] s2) <double h = {{{gain}}}> {{
        c2 = Identity(c)  m = Mul(s, h)  s2 = Add(m, x) }}>
    }}""")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("count", "gain"), [(0, 2.0), (1, 2.0), (5, 0.5), (4, 2.0), (40, 1.0), (100, 0.5)])
def test_a_known_number_of_turns_is_a_geometric_sum(count: int, gain: float, norm: Norm) -> None:
    truth = gain**count + sum(gain**k for k in range(count))
    assert near(slope(certificate(geometric(str(count), gain), norm)), truth)


def test_very_many_turns_are_bounded_together() -> None:
    assert 1e5 + 1 <= slope(certificate(geometric("100000", 1.0))) <= (1e5 + 1) * (1 + 1e-6)
    # 0.5 + 0.25 + ... <= 2, and the initial state by itself at most 1.
    assert 2 <= slope(certificate(geometric("100000", 0.5))) <= 3 * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_turns_is_finite_only_if_a_turn_contracts(norm: Norm) -> None:
    found = certificate(geometric("", 0.5, known=False), norm).headline
    assert 2 <= float(found.slope) <= 3 * (1 + 1e-9)  # 1/(1 - 1/2) from x, and 1 from the initial state
    for gain in (1.0, 1.5):
        grows = certificate(geometric("", gain, known=False), norm).headline
        assert grows.status == "unbounded" and any("turns" in reason.reason for reason in grows.reasons)


def test_any_number_of_turns_with_gain_one_and_a_jump_is_unbounded() -> None:
    def rounds(op: str) -> onnx.ModelProto:
        return model(f"""g (double[3] x, int64 n) => (double[3] y) <bool t = {{1}}> {{
          y = Loop (n, t, x) <body = b (int64 i, bool c, double[3] s) => (bool c2, double[3] s2) {{ c2 = Identity(c)  s2 = {op}(s) }}>
        }}""")

    assert near(slope(certificate(rounds("Neg"))), 1.0)
    assert certificate(rounds("Round")).headline.status == "unbounded"


def test_two_coupled_states_contract_together() -> None:
    # (a, b) <- (b, a/4): the products of the gains have spectral radius 1/2, though one entry is 1.
    text = """g (double[2] x, int64 n) => (double[2] y) <bool t = {1}> {
      y, z = Loop (n, t, x, x)
          <body = b (int64 i, bool c, double[2] a, double[2] b) => (bool c2, double[2] p, double[2] q) <double h = {0.25}> {
        c2 = Identity(c)  p = Identity(b)  q = Mul(a, h) }>
    }"""
    found = slope(certificate(model(text), "linf"))
    assert 1 <= found <= 2 + 1e-2


def test_a_captured_value_that_enters_twice_counts_twice() -> None:
    text = """g (double[2] x) => (double[2] y) <int64 n = {3}, bool t = {1}, double[2] zero = {0.0, 0.0}> {
      y = Loop (n, t, zero) <body = b (int64 i, bool c, double[2] s) => (bool c2, double[2] s2) {
        c2 = Identity(c)  d = Add(x, x)  s2 = Add(s, d) }>
    }"""
    for norm in NORMS:
        assert near(slope(certificate(model(text), norm)), 6.0)


def test_an_untouched_state_keeps_its_gain_beside_one_that_grows() -> None:
    text = """g (double[2] x, int64 n) => (double[2] y) <bool t = {1}> {
      y, z = Loop (n, t, x, x)
          <body = b (int64 i, bool c, double[2] a, double[2] b) => (bool c2, double[2] p, double[2] q) <double h = {0.5}> {
        c2 = Identity(c)  p = Mul(a, h)  q = Add(a, b) }>
    }"""
    # z = sum of the a's grows to at most 3|x|, and does not feed y.
    assert slope(certificate(model(text))) <= 3 + 1e-9


def test_a_range_that_grows_is_followed_turn_by_turn() -> None:
    # s <- s^2 on [0, 1] stays there: slope 2 a turn, 2^k s^(2^k - 1) <= 2^k.
    text = """g (double[1] x) => (double[1] y) <int64 n = {3}, bool t = {1}> {
      y = Loop (n, t, x) <body = b (int64 i, bool c, double[1] s) => (bool c2, double[1] s2) { c2 = Identity(c)  s2 = Mul(s, s) }>
    }"""
    assert near(slope(certificate(model(text), "l2", ["x=0:1"])), 8.0)
    # On [0, 2] the slopes are 4, 8, 32.
    assert near(slope(certificate(model(text), "l2", ["x=0:2"])), 1024.0)


def test_a_loop_that_the_input_ends_jumps_by_the_reach_of_its_state() -> None:
    text = """g (double[1] x) => (double[1] y) <int64 n = {5}, bool t = {1}, double[1] half = {0.5}> {
      y = Loop (n, t, x) <body = b (int64 i, bool c, double[1] s) => (bool c2, double[1] s2) <double stop = {0.3}> {
        s2 = Mul(s, half)  c1 = Greater(s2, stop)  c2 = Squeeze(c1) }>
    }"""
    found = certificate(model(text), "l2", ["x=0:1"]).headline
    assert near(float(found.slope), 1.0) and near(float(found.offset), 1.0)
    assert certificate(model(text)).headline.status == "unbounded"


def test_unknown_operators_inside_a_body_are_named() -> None:
    text = """g (double[1] x) => (double[1] y) <int64 n = {5}, bool t = {1}> {
      y = Loop (n, t, x)
          <body = b (int64 i, bool c, double[1] s) => (bool c2, double[1] s2) { c2 = Identity(c)  s2 = RandomUniformLike(s) }>
    }"""
    assert certificate(model(text)).headline.status == "unknown"


# ---------------------------------------------------------------------- Scan

SCAN = """g (double[4,3] x) => (double[3] y, double[4,3] z) <double[3] i = {0, 0, 0}> {
  y, z = Scan (i, x) <num_scan_inputs = 1, body = b (double[3] s, double[3] u) => (double[3] s2, double[3] o) <double h = {0.5}> {
    m = Mul(s, h)  s2 = Add(m, u)  o = Identity(s2) }>
}"""


@pytest.mark.parametrize("norm", NORMS)
def test_a_scan_is_a_triangular_matrix(norm: Norm) -> None:
    truth = np.array([[0.5 ** (t - s) if s <= t else 0.0 for s in range(4)] for t in range(4)])
    found = certificate(model(SCAN), norm)
    last, stacked = found.matrix["x", "y"], found.matrix["x", "z"]
    assert near(float(last.slope), float(np.linalg.norm(truth[-1:], ORDER[norm])))
    exact = float(np.linalg.norm(truth, ORDER[norm]))
    assert exact <= float(stacked.slope) <= exact * (1 + 1e-4)


@pytest.mark.parametrize(("norm", "truth"), [("l1", 4.0), ("l2", 2.0), ("linf", 1.0)])
def test_an_output_that_repeats_a_captured_value_is_stacked(norm: Norm, truth: float) -> None:
    text = """g (double[3] w) => (double[3] y, double[4,3] z) <double[3] i = {0, 0, 0}, double[4,3] x = {0,0,0,0,0,0,0,0,0,0,0,0}> {
      y, z = Scan (i, x) <num_scan_inputs = 1,
          body = b (double[3] s, double[3] u) => (double[3] s2, double[3] o) { s2 = Identity(s)  o = Add(u, w) }>
    }"""
    assert near(float(certificate(model(text), norm).matrix["w", "z"].slope), truth)


def test_offsets_of_a_scan_are_stacked() -> None:
    text = """g (double[4,1] x) => (double[1] y, double[4,1] z) <double[1] i = {0}> {
      y, z = Scan (i, x) <num_scan_inputs = 1,
          body = b (double[1] s, double[1] u) => (double[1] s2, double[1] o) { s2 = Identity(s)  o = Round(u) }>
    }"""
    for norm, copies in zip(NORMS, (4.0, 2.0, 1.0), strict=True):
        found = certificate(model(text), norm).headline
        assert near(float(found.slope), 1.0) and near(float(found.offset), copies)


def test_a_long_scan_is_cut_into_groups() -> None:
    text = SCAN.replace("[4,3]", "[300,3]")
    for norm in NORMS:
        found = certificate(model(text), norm)
        assert 1.99 <= float(found.matrix["x", "z"].slope) <= (2.0 + 1e-6) * (1.0 if norm != "l2" else 1.5)


# ---------------------------------------------------------------------- random bodies against an adversary

_UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Softsign", "Sin")


def _expression(rng: np.random.Generator, names: list[str], tag: str, *, products: bool) -> tuple[str, str]:
    """A few random nodes over values of one shape; the text and the name of the result."""
    lines: list[str] = []
    have = list(names)
    for k in range(int(rng.integers(2, 5))):
        out = f"{tag}{k}"
        pick = rng.random()
        a, b = (have[int(i)] for i in rng.integers(len(have), size=2))
        if pick < 0.4:
            lines.append(f"{out} = {_UNARY[int(rng.integers(len(_UNARY)))]}({a})")
        elif pick < 0.6:
            lines.append(f"{out} = Mul({a}, h{int(rng.integers(2))})")
        elif pick < 0.7 and products:
            lines.append(f"{out} = Mul({a}, {b})")
        elif pick < 0.8:
            lines.append(f"{out} = Max({a}, {b})")
        else:
            lines.append(f"{out} = Add({a}, {b})")
        have.append(out)
    # The last value joins the first one, so that something always moves.
    lines.append(f"{tag}r = Add({have[-1]}, {names[int(rng.integers(len(names)))]})")
    return "  ".join(lines), f"{tag}r"


def _random(rng: np.random.Generator, kind: str, *, products: bool) -> onnx.ModelProto:
    h = ", ".join(f"double h{k} = {{{rng.uniform(-1.5, 1.5):.4f}}}" for k in range(2))
    before, w = _expression(rng, ["x"], "w", products=products)
    if kind == "if":
        then, u = _expression(rng, ["x", w], "u", products=products)
        other, v = _expression(rng, ["x", w], "v", products=products)
        text = f"""g (double[4] x) => (y) <{h}, double z = {{0.1}}> {{ {before}
          s = ReduceSum <keepdims = 0> (x)  k = Greater(s, z)
          y = If (k) <then_branch = a () => (double[4] {u}) {{ {then} }}, else_branch = b () => (double[4] {v}) {{ {other} }}> }}"""
    elif kind in ("loop", "ended"):
        body, r = _expression(rng, ["s", "q", w], "u", products=products)
        more, e = _expression(rng, ["s", "q", "x"], "v", products=products)
        cond = "c2 = Identity(c)" if kind == "loop" else "cs = ReduceSum <keepdims = 0> (s)  c2 = Less(cs, z)"
        n = int(rng.integers(1, 5))
        text = f"""g (double[4] x) => (y, y2) <{h}, double z = {{0.1}}, int64 n = {{{n}}}, bool t = {{1}}> {{ {before}
          y, y2 = Loop (n, t, x, {w}) <body = b (int64 i, bool c, double[4] s, double[4] q) => (bool c2, double[4] {r}, double[4] {e})
            {{ {cond}  {body}  {more} }}> }}"""
    else:
        before, w = _expression(rng, ["mean"], "w", products=products)
        body, r = _expression(rng, ["s", "u", w], "p", products=products)
        more, e = _expression(rng, ["s", "u", w], "o", products=products)
        text = f"""g (double[3,2] x) => (y, y2) <{h}, int64[1] axes = {{0}}, double[2] i = {{0.5, -0.5}}> {{
          mean = ReduceMean <keepdims = 0> (x, axes)  {before}
          y, y2 = Scan (i, x) <num_scan_inputs = 1,
              body = b (double[2] s, double[2] u) => (double[2] {r}, double[2] {e}) {{ {body}  {more} }}> }}"""
    return parser.parse_model(HEAD + text)


@pytest.mark.parametrize("kind", ["if", "loop", "ended", "scan"])
@pytest.mark.parametrize("seed", range(12))
def test_no_search_beats_the_certificate(kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, len(kind), ord(kind[0])])
    box = (-1.0, 1.0) if seed % 3 else None
    built = _random(rng, kind, products=box is not None)
    f = evaluator(built)
    shape = (3, 2) if kind == "scan" else (4,)
    for norm in NORMS:
        bound = certificate(built, norm, [] if box is None else ["x=-1:1"]).headline
        if bound.status != "finite":
            assert box is None, bound.reasons
            continue
        top, offset = float(bound.slope), float(bound.offset)
        for pair in attack(f, shape, norm, rng, box, points=4):
            assert pair.change <= top * pair.distance + offset, (norm, onnx.printer.to_text(built))


# ---------------------------------------------------------------------- nested bodies, counters


def test_a_counter_in_the_body_is_followed() -> None:
    # s <- (i + 1) s for i = 0, 1, 2, 3: 4! = 24.
    text = """g (double[2] x) => (double[2] y) <int64 n = {4}, bool t = {1}, double one = {1.0}> {
      y = Loop (n, t, x) <body = b (int64 i, bool c, double[2] s) => (bool c2, double[2] s2) {
        c2 = Identity(c)  f = Cast <to = 11> (i)  k = Add(f, one)  s2 = Mul(s, k) }>
    }"""
    for norm in NORMS:
        assert near(slope(certificate(model(text), norm)), 24.0)


def test_a_loop_in_a_loop_and_a_branch_in_both() -> None:
    # The inner loop adds the outer state twice (s <- 3 s), the branch doubles or negates it: at most 6 a turn, two turns.
    text = """g (double[2] x, bool k) => (double[2] y) <int64 n = {2}, bool t = {1}> {
      y = Loop (n, t, x) <body = b (int64 i, bool c, double[2] s) => (bool c2, double[2] s2) {
        c2 = Identity(c)
        a = Loop (n, t, s) <body = d (int64 j, bool e, double[2] p) => (bool e2, double[2] p2) { e2 = Identity(e)  p2 = Add(p, s) }>
        s2 = If (k) <then_branch = u () => (double[2] v) { v = Add(a, a) }, else_branch = w () => (double[2] z) { z = Neg(a) }>
      }>
    }"""
    for norm in NORMS:
        assert near(slope(certificate(model(text), norm)), 36.0)


def test_a_branch_that_reads_its_own_condition() -> None:
    text = """g (double[1] x) => (double[1] y) <double z = {0.0}> {
      k = Greater(x, z)
      y = If (k) <then_branch = a () => (double[1] u) { u = Cast <to = 11> (k) }, else_branch = b () => (double[1] v) { v = Identity(x) }>
    }"""
    built = model(text)
    found = certificate(built, "l2", ["x=-1:1"]).headline
    assert found.status == "finite"
    f = evaluator(built)
    for pair in attack(f, (1,), "l2", np.random.default_rng(0), (-1.0, 1.0)):
        assert pair.change <= float(found.slope) * pair.distance + float(found.offset)
    jump = abs(float(f(np.array([1e-12]))[0]) - float(f(np.array([-1e-12]))[0]))
    assert jump <= float(found.slope) * 2e-12 + float(found.offset)


@pytest.mark.parametrize("seed", range(6))
def test_no_search_beats_nested_bodies(seed: int) -> None:
    rng = np.random.default_rng([seed, 77])
    h = ", ".join(f"double h{k} = {{{rng.uniform(-1.2, 1.2):.4f}}}" for k in range(2))
    inner, p = _expression(rng, ["p", "s", "x"], "u", products=True)
    then, v = _expression(rng, ["a", "s", "x"], "v", products=True)
    other, w = _expression(rng, ["a", "q"], "w", products=True)
    text = f"""g (double[3] x) => (y, y2) <{h}, int64 n = {{2}}, bool t = {{1}}, double z = {{0.2}}> {{
      y, y2 = Loop (n, t, x, x) <body = b (int64 i, bool c, double[3] s, double[3] q) => (bool c2, double[3] s2, double[3] a) {{
        c2 = Identity(c)
        a = Loop (n, t, q) <body = d (int64 j, bool e, double[3] p) => (bool e2, double[3] {p}) {{ e2 = Identity(e)  {inner} }}>
        m = ReduceMax <keepdims = 0> (s)  k = Less(m, z)
        s2 = If (k) <then_branch = f () => (double[3] {v}) {{ {then} }}, else_branch = g2 () => (double[3] {w}) {{ {other} }}>
      }}>
    }}"""
    built = parser.parse_model(HEAD + text)
    f = evaluator(built)
    for norm in NORMS:
        bound = certificate(built, norm, ["x=-1:1"]).headline
        assert bound.status == "finite", bound.reasons
        for pair in attack(f, (3,), norm, rng, (-1.0, 1.0), points=4):
            assert pair.change <= float(bound.slope) * pair.distance + float(bound.offset), (norm, onnx.printer.to_text(built))


# ------------------------------------------------------------------ Scan of opset 8


BATCHED = """<ir_version: 4, opset_import: ["": 8]> g (double[B,2] s, double[B,5,2] x, double[2] w) => (double[B,2] y, double[B,5,2] z) {
  y, z = Scan <num_scan_inputs = 1, body = b (double[2] a, double[2] n) => (double[2] t, double[2] o) <double h = {0.5}> {
    m = Mul(a, h)  v = Add(m, n)  t = Add(v, w)  o = Identity(t) }> ("", s, x) }"""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("samples", [1, 3])
def test_samples_of_an_old_scan_do_not_meet(samples: int, norm: Norm) -> None:
    """Linear in all inputs: the certified gain of each against its exact matrix; a captured value enters every sample."""
    parsed = parser.parse_model(BATCHED.replace("B", str(samples)))
    found = certificate(parsed, norm)
    count, turns = samples * 2, 5
    decay = [0.5**k for k in range(turns + 1)]
    start = np.kron(np.eye(count), np.array(decay[1:])[:, None])
    steps = np.kron(np.eye(count), np.array([[decay[t - s] if s <= t else 0.0 for s in range(turns)] for t in range(turns)]))
    captured = np.kron(np.kron(np.ones((samples, 1)), np.eye(2)), np.cumsum(decay[:-1])[:, None])
    for name, matrix in (("s", start), ("x", steps), ("w", captured)):
        truth = float(np.linalg.norm(matrix, ORDER[norm]))
        bound = found.matrix[name, "z"]
        assert bound.status == "finite" and bound.offset.is_zero
        assert truth * (1 - 1e-12) <= float(bound.slope) <= truth * (1 + (1e-4 if norm == "l2" else 1e-9))


def test_rows_of_a_stack_of_samples() -> None:
    """What holds of the rows of one sample: its first axis becomes an axis of rows, and a stack of numbers is one row."""
    one = Range((3, 2), np.asarray(-1.0), np.asarray(1.0), row=1.0, diameter=0.5)
    assert of_all_samples(one, (4, 3, 2)).row_norm() == 1.0
    assert of_all_samples(one, (4, 3, 2)).row_diameter() == 2.0
    number = Range((), np.asarray(-1.0), np.asarray(1.0), row=1.0, zero_mean=True)
    stack = of_all_samples(number, (4,))
    assert stack.row_norm() >= 2.0
    assert not stack.zero_mean
