"""Self-gated activations spelled out: SiLU / Swish, HardSwish, Mish.

Swish       y = x sigmoid(alpha x)                          -> ai.onnx::Swish
HardSwish   y = x max(0, min(1, alpha x + beta))            -> ai.onnx::HardSwish (1/6, 1/2), else lipaudit::HardSwish
Mish        y = x tanh(log(1 + exp(x)))                     -> ai.onnx::Mish
"""

from __future__ import annotations

from fractions import Fraction

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, exact_float
from lipaudit.topology.patterns.factors import Scaled, multiples, product

__all__ = ["clip_hard_swish", "hard_swish", "mish", "swish"]

_DEFAULT_ALPHA = 0.20000000298023224  # attributes are float32, their defaults too


def swish(view: View, sigmoid: Node) -> Match | None:
    """Pivot Sigmoid."""
    found = product(view, sigmoid.outputs[0], multiples(view, sigmoid.inputs[0]), Fraction(1))
    if found.k != 1:
        raise Mismatch("the product carries a constant factor")
    alpha = exact_float(found.num / found.den)
    if alpha is None:
        raise Mismatch("the factor of the argument of Sigmoid is no double")
    view.same_shape(found.final, found.x)
    covered = view.close((sigmoid, *found.nodes), found.final)
    return Match(Node("", "Swish", (found.x,), (found.final,), "", 24, {"alpha": alpha}), covered)


def mish(view: View, tanh: Node) -> Match | None:
    """Pivot Tanh of a Softplus."""
    inner, passed = view.behind(tanh.inputs[0])
    nodes = [tanh, *passed]
    softplus = view.made_by(inner, "Softplus")
    if softplus is not None:
        nodes.append(softplus)
        x = softplus.inputs[0]
    else:
        log = view.made_by(inner, "Log")
        one_plus = view.made_by(log.inputs[0], "Add") if log is not None else None
        if log is None or one_plus is None:
            return None
        exps = [operand for operand in one_plus.inputs if view.made_by(operand, "Exp")]
        exp = view.made_by(exps[0], "Exp") if len(exps) == 1 else None
        rest = view.other(one_plus, exps[0]) if exp is not None else None
        if exp is None or rest is None or view.scalar(rest) != 1.0:
            return None
        nodes += [log, one_plus, exp]
        x = exp.inputs[0]
    found = product(view, tanh.outputs[0], [Scaled(x, Fraction(1), Fraction(1))], Fraction(1))
    if found.k != 1:
        raise Mismatch("the product carries a constant factor")
    view.same_shape(found.final, found.x)
    covered = view.close((*nodes, *found.nodes), found.final)
    return Match(Node("", "Mish", (found.x,), (found.final,), "", 18), covered)


def hard_swish(view: View, sigmoid: Node) -> Match | None:
    """Pivot HardSigmoid."""
    alpha, beta = float(sigmoid.attrs.get("alpha", _DEFAULT_ALPHA)), float(sigmoid.attrs.get("beta", 0.5))
    found = product(view, sigmoid.outputs[0], multiples(view, sigmoid.inputs[0]), Fraction(1))
    if found.k != 1:
        raise Mismatch("the product carries a constant factor")
    fused = _hard_swish(found.x, found.final, Fraction(alpha) * found.num / found.den, Fraction(beta))
    view.same_shape(found.final, found.x)
    return Match(fused, view.close((sigmoid, *found.nodes), found.final))


def clip_hard_swish(view: View, clip: Node) -> Match | None:
    """Pivot Clip: ``x clip(x + 3, 0, 6) / 6``, the division anywhere."""
    bounds = _bounds(view, clip)
    if bounds is None or bounds[0] != 0.0 or not bounds[1] > 0:
        return None
    shifted, passed = view.behind(clip.inputs[0])
    nodes = [clip, *passed]
    beta = Fraction(0)
    add = view.made_by(shifted, "Add")
    if add is None:
        return None
    constants = [name for name in add.inputs if view.scalar(name) is not None]
    if len(constants) != 1:
        return None
    beta = Fraction(view.scalar(constants[0]) or 0.0)
    inner = view.other(add, constants[0])
    if inner is None:
        return None
    nodes.append(add)
    top = Fraction(bounds[1])
    found = product(view, clip.outputs[0], multiples(view, inner), 1 / top)
    if found.k * top != 1:
        raise Mismatch(f"the product is divided by {float(1 / found.k):g}, the clip ends at {float(top):g}")
    fused = _hard_swish(found.x, found.final, found.num / found.den / top, beta / top)
    view.same_shape(found.final, found.x)
    return Match(fused, view.close((*nodes, *found.nodes), found.final))


def _hard_swish(x: str, final: str, alpha: Fraction, beta: Fraction) -> Node:
    if alpha <= 0:
        raise Mismatch("the slope of the hard sigmoid is not positive")
    if (alpha, beta) == (Fraction(1, 6), Fraction(1, 2)):
        return Node("", "HardSwish", (x,), (final,), "", 14)
    slope, offset = exact_float(alpha), exact_float(beta)
    if slope is None or offset is None:
        raise Mismatch("a product of its constants is no double")
    return Node("", "HardSwish", (x,), (final,), "lipaudit", 1, {"alpha": slope, "beta": offset})


def _bounds(view: View, clip: Node) -> tuple[float, float] | None:
    """Lower and upper bound of a Clip in its attribute or its input form."""
    if len(clip.inputs) == 1:
        low, high = clip.attrs.get("min"), clip.attrs.get("max")
    else:
        low = view.scalar(clip.inputs[1]) if clip.inputs[1] else None
        high = view.scalar(clip.inputs[2]) if len(clip.inputs) > 2 and clip.inputs[2] else None
    return None if low is None or high is None else (float(low), float(high))
