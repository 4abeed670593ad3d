"""A product quantised on the fly: DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul by the two scales.

``(Q(x) - z_x) @ (W - z_W)`` times ``s_x s_W`` is x, rounded to a grid of its own spread, times the dequantised W. The parts alone
have no useful bound (the zero point of x jumps); together they are ``com.microsoft::DynamicQuantizeMatMul``.
"""

from __future__ import annotations

from lipaudit.graph.ir import Node
from lipaudit.topology.match import WIDE, Match, Mismatch, View

__all__ = ["dynamic_matmul"]

# 255 * 255 * K stays below 2^31: the int32 sum cannot overflow.
_MOST_TERMS = (2**31 - 1) // 255**2


def dynamic_matmul(view: View, product: Node) -> Match | None:
    """Pivot: MatMulInteger whose first operand DynamicQuantizeLinear computes."""
    quantise = view.made_by(product.inputs[0], "DynamicQuantizeLinear")
    if quantise is None:
        return None
    if len(product.inputs) < 3 or product.inputs[2] != quantise.outputs[2]:
        raise Mismatch("the zero point is not that of the quantised input")
    weight = view.constant(product.inputs[1])
    zero = product.inputs[3] if len(product.inputs) > 3 else ""
    if weight is None or len(weight.shape) != 2 or (zero and view.constant(zero) is None):
        raise Mismatch("the second operand is not a stored matrix with a stored zero point")
    if weight.shape[0] > _MOST_TERMS:
        raise Mismatch("the int32 sum may overflow")
    cast = view.sole_user(product.outputs[0])
    if cast is None or cast.kind != "ai.onnx::Cast" or view.graph.value(cast.outputs[0]).dtype not in WIDE:
        raise Mismatch("the integer product is not converted to float at once")
    scaled = view.sole_user(cast.outputs[0])
    scales_name = view.other(scaled, cast.outputs[0]) if scaled is not None and scaled.kind == "ai.onnx::Mul" else None
    scales = view.made_by(scales_name, "Mul") if scales_name is not None else None
    weight_scale = view.other(scales, quantise.outputs[1]) if scales is not None else None
    stored = view.constant(weight_scale) if weight_scale is not None else None
    if scaled is None or scales is None or weight_scale is None or stored is None:
        raise Mismatch("the product is not multiplied by the scale of the input times a stored scale")
    if stored.size != 1 and stored.shape != (weight.shape[1],):
        raise Mismatch(f"a scale of shape {list(stored.shape)} is not one per column of the weight")
    x, final = quantise.inputs[0], scaled.outputs[0]
    if view.shape(final) != view.shape(product.outputs[0]):
        raise Mismatch("the scales broadcast the product to another shape")
    inputs = (x, product.inputs[1], weight_scale, zero)
    fused = Node(scaled.name, "DynamicQuantizeMatMul", inputs if zero else inputs[:3], (final,), "com.microsoft", 1)
    return Match(fused, view.close((product, cast, scales, scaled), final))
