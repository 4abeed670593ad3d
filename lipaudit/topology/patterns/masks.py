"""What can be said for certain about attention masks: which entries are masked whatever the integer inputs are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lipaudit.graph.ir import Constant
from lipaudit.topology.match import View

__all__ = ["is_causal", "lowest_finite", "only_causal"]

Bools = NDArray[np.bool_]
_LIMIT = 24
_LARGEST = 1 << 24


def is_causal(view: View, mask: str, size: int, extra: Mapping[str, Constant]) -> bool:
    """True if every key after its query is masked exactly (False in a boolean mask, -inf in an additive one)."""
    masked = _masked(view, mask, extra)
    if masked is None:
        return False
    try:
        full = np.broadcast_to(masked, np.broadcast_shapes(masked.shape, (size, size)))
    except ValueError:
        return False
    if full.shape[-2:] != (size, size):
        return False
    return bool(np.all(full[..., np.triu(np.ones((size, size), dtype=bool), k=1)]))


def only_causal(view: View, mask: str, size: int, extra: Mapping[str, Constant]) -> bool:
    """True if a stored mask hides every key after its query, nothing else, and adds 0 to the rest."""
    constant = extra.get(mask) or view.constant(mask)
    if constant is None or constant.size > _LARGEST:
        return False
    array = constant.array()
    below = np.tril(np.ones((size, size), dtype=bool))
    if array.ndim < 2 or array.shape[-2:] != (size, size):
        return False
    allowed = array[..., below]
    return bool(np.all(allowed)) if array.dtype == np.bool_ else bool(np.all(np.asarray(allowed, dtype=np.float64) == 0.0))


def lowest_finite(view: View, mask: str) -> float | None:
    """The lowest finite constant that goes into an additive mask; None if there is none below 0."""
    lowest: float | None = None
    stack, seen = [mask], {mask}
    while stack and len(seen) < _LIMIT:
        name = stack.pop()
        constant = view.constant(name)
        if constant is not None:
            if constant.dtype.startswith(("float", "bfloat")) and 0 < constant.size <= _LARGEST:
                values = constant.float64()
                finite = values[np.isfinite(values)]
                if finite.size and finite.min() < 0:
                    lowest = float(finite.min()) if lowest is None else min(lowest, float(finite.min()))
            continue
        node = view.producer(name)
        if node is not None and node.op in ("Where", "Mul", "Add", "Cast", "Expand", "Unsqueeze", "Reshape", "Slice"):
            operands = node.inputs[1:] if node.op == "Where" else node.inputs
            fresh = [operand for operand in operands if operand and operand not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return lowest


def _masked(view: View, mask: str, extra: Mapping[str, Constant]) -> Bools | None:
    """Entries that are surely masked, in a shape that broadcasts to the logits; None if nothing is sure."""
    constant = extra.get(mask) or view.constant(mask)
    if constant is not None:
        if constant.size > _LARGEST:
            return None
        array = constant.array()
        return ~array if array.dtype == np.bool_ else np.asarray(array, dtype=np.float64) == -np.inf
    if view.graph.value(mask).dtype == "bool":
        return _surely(view, mask, False, _LIMIT)
    mask, _ = view.behind(mask)
    node = view.producer(mask)
    if node is None or node.domain:
        return None
    if node.op == "Where":
        yes, no = view.scalar(node.inputs[1]), view.scalar(node.inputs[2])
        if no == -np.inf:
            return _surely(view, node.inputs[0], False, _LIMIT)
        if yes == -np.inf:
            return _surely(view, node.inputs[0], True, _LIMIT)
    if node.op in ("Expand", "Unsqueeze"):
        return _moved(view, node.op, node.inputs, mask, _masked(view, node.inputs[0], extra))
    if node.op == "Add" and len(node.inputs) == 2:
        return _either([_masked(view, name, extra) for name in node.inputs])
    return None


def _surely(view: View, name: str, value: bool, limit: int) -> Bools | None:
    """Entries of a boolean value that are ``value`` for every input. Recursion is bounded by ``limit``."""
    constant = view.constant(name)
    if constant is not None:
        return np.asarray(constant.array(), dtype=bool) == value if constant.size <= _LARGEST else None
    node = view.producer(name)
    if node is None or node.domain or limit == 0:
        return None
    if node.op == "Not":
        return _surely(view, node.inputs[0], not value, limit - 1)
    if node.op == ("Or" if value else "And"):
        return _either([_surely(view, operand, value, limit - 1) for operand in node.inputs])
    if node.op in ("Expand", "Unsqueeze", "Identity"):
        return _moved(view, node.op, node.inputs, name, _surely(view, node.inputs[0], value, limit - 1))
    return None


def _either(parts: list[Bools | None]) -> Bools | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    total = known[0]
    for part in known[1:]:
        try:
            total = total | part
        except ValueError:
            return None
    return total


def _moved(view: View, op: str, inputs: tuple[str, ...], result: str, known: Bools | None) -> Bools | None:
    """Through Expand, Unsqueeze or Identity: the same entries in the shape of the result."""
    shape = view.shape(result)
    if known is None or shape is None or op == "Identity":
        return known
    source = view.shape(inputs[0])
    try:
        if op == "Unsqueeze":
            return np.broadcast_to(known, source).reshape(shape) if source is not None else None
        return np.broadcast_to(known, shape)
    except ValueError:
        return None
