"""Softmax and LogSoftmax spelled out with Exp, as ONNX defines them and older exporters write them.

    softmax       e = exp(x - m),  y = e / sum(e)              m is the same along the axis (the largest element, or nothing at all)
    log-softmax   z = x - m,       y = z - log(sum(exp(z)))    the value does not depend on m

Left as they stand, ``exp`` has no bound on all reals and ``sum(e)`` no lower end above 0.
"""

from __future__ import annotations

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View

__all__ = ["softmax"]


def softmax(view: View, exp: Node) -> Match | None:
    """Pivot Exp. None where its result is not summed along one axis."""
    e, passed = view.behind(exp.outputs[0])[0], [exp]
    sums = [user for user in view.users(e) if user.op == "ReduceSum" and not user.domain and user.inputs[0] == e]
    if len(sums) != 1:
        return None
    total, passed = sums[0], [*passed, sums[0]]
    shape = view.shape(e)
    axes = view.axes(total, len(shape)) if shape is not None else None
    if shape is None or axes is None or len(axes) != 1:
        return None
    if not int(total.attrs.get("keepdims", 1)):
        raise Mismatch("the sum of the exponentials loses its axis")
    axis = axes[0]
    quotient = view.sole_user(total.outputs[0])
    if quotient is not None and quotient.op == "Div" and not quotient.domain and quotient.inputs == (e, total.outputs[0]):
        x, before = _shifted(view, exp.inputs[0], axis, (exp.name,))
        return _match(view, "Softmax", x, axis, (*before, *passed, quotient), quotient)
    if quotient is None or quotient.op != "Log" or quotient.domain:
        return None
    log, z = quotient, exp.inputs[0]
    last = view.sole_user(log.outputs[0])
    if last is None or last.op != "Sub" or last.domain or last.inputs != (z, log.outputs[0]):
        return None
    x, before = _shifted(view, z, axis, (exp.name, last.name))
    return _match(view, "LogSoftmax", x, axis, (*before, *passed, log, last), last)


def _shifted(view: View, name: str, axis: int, readers: tuple[str, ...]) -> tuple[str, list[Node]]:
    """The value before the subtraction of something that is the same along ``axis``, and the nodes that only served it."""
    node = view.made_by(name, "Sub")
    if node is None or name in view.outputs or any(user.name not in readers for user in view.users(name)):
        return name, []
    x, shift = node.inputs
    own, other = view.shape(x), view.shape(shift)
    if own is None or other is None or own != view.shape(name) or (len(other) == len(own) and other[axis] != 1):
        return name, []
    if other and len(other) != len(own):
        return name, []
    found = [node]
    largest = view.made_by(shift, "ReduceMax")
    if largest is not None and view.sole_user(shift) is not None:
        found.insert(0, largest)
    return x, found


def _match(view: View, op: str, x: str, axis: int, nodes: tuple[Node, ...], last: Node) -> Match:
    final = last.outputs[0]
    view.same_shape(final, x)
    return Match(Node("", op, (x,), (final,), "", 13, {"axis": axis}), view.close(nodes, final))
