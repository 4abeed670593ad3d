"""Layer, RMS and L2 normalization spelled out.

    layer   z = P x / s,   s = sqrt(mean((P x)^2) + eps),   P x = x - mean(x)
    rms     z =   x / s,   s = sqrt(mean(x^2) + eps)
    l2      z =   x / s,   s = sqrt(sum(x^2) + eps) | max(|x|, eps) | |x| + eps
    y = scale * z + bias, the affine part optional

The pivot is the root: Sqrt, Pow with exponent 1/2 or -1/2, or ReduceL2. From it the statistic is read backward and the
division forward; the numerator must be the value whose square is averaged, over the same axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import prod, sqrt

from lipaudit.graph.ir import Node
from lipaudit.topology.match import Match, Mismatch, View, float_below

__all__ = ["normalization"]


@dataclass
class _Found:
    """What the walk has read so far."""

    nodes: list[Node]
    x: str = ""
    centred: str = ""
    uncast: str = ""
    casts: list[Node] = field(default_factory=list)
    axes: tuple[int, ...] = ()
    kind: str = ""
    epsilon: float = 0.0
    place: str = ""
    total: bool = False
    unbiased: bool = False
    means: list[str] = field(default_factory=list)
    affine: tuple[str, str] | None = None


def normalization(view: View, root: Node) -> Match | None:
    """Pivot Sqrt, Pow or ReduceL2."""
    found = _Found([root])
    inverse = False
    if root.op == "ReduceL2":
        _statistic_is(view, root, found, root.inputs[0], total=True)
    else:
        if root.op == "Pow":
            exponent = view.scalar(root.inputs[1])
            if exponent not in (0.5, -0.5):
                return None
            inverse = exponent == -0.5
        if not _inside(view, root.inputs[0], found):
            return None
    _centring(view, found)
    inner = _divide(view, root.outputs[0], inverse, found)
    if found.epsilon <= 0:
        raise Mismatch("it has no epsilon: a constant row divides by zero, so it has no finite bound")
    final, scale, bias = _affine(view, inner, found)
    return _match(view, found, final, scale, bias)


def _inside(view: View, name: str, found: _Found) -> bool:
    """What stands under the root: a statistic with or without its epsilon. False if it is no statistic at all."""
    name, passed = view.behind(name)
    node = view.producer(name)
    if node is None or node.domain:
        return False
    pending = [*passed]
    if node.op in ("Add", "Max") and len(node.inputs) == 2:
        constants = [operand for operand in node.inputs if view.scalar(operand) is not None]
        if len(constants) == 1:
            epsilon = view.scalar(constants[0]) or 0.0
            if epsilon <= 0:
                return False
            found.epsilon = epsilon if node.op == "Add" else float_below(Fraction(sqrt(epsilon)) * (1 - Fraction(1, 2**52)))
            found.place = "root" if node.op == "Add" else "max"
            pending.append(node)
            name = view.other(node, constants[0]) or ""
    elif node.op == "Clip" and (low := _lower_bound(view, node)) is not None:
        # x / sqrt(max(s, eps)) = x / max(sqrt s, sqrt eps); the root of eps is rounded down, which only loosens bounds.
        found.epsilon, found.place = float_below(Fraction(sqrt(low)) * (1 - Fraction(1, 2**52))), "max"
        pending.append(node)
        name = node.inputs[0]
    if not _statistic(view, name, found):
        return False
    found.nodes += pending
    return True


def _lower_bound(view: View, clip: Node) -> float | None:
    """The positive lower bound of a Clip without an upper bound that matters."""
    if len(clip.inputs) == 1:
        low, high = clip.attrs.get("min"), clip.attrs.get("max")
    else:
        bounds = (*clip.inputs[1:], "")
        low, high = view.scalar(bounds[0]), view.scalar(bounds[1])
        if bounds[1] and high is None:
            return None
    return float(low) if low is not None and low > 0 and (high is None or high >= 3.4028234663852886e38) else None


def _statistic(view: View, name: str, found: _Found) -> bool:
    """Mean or sum of squares: ReduceMean, ReduceSum, ReduceSumSquare, and their multiples n/(n-1), 1/n, 1/(n-1)."""
    factor, nodes = Fraction(1), []
    for _ in range(4):
        name, passed = view.behind(name)
        nodes += passed
        node = view.producer(name)
        if node is None or node.domain:
            return False
        nodes.append(node)
        if node.op in ("ReduceMean", "ReduceSum", "ReduceSumSquare"):
            break
        if node.op in ("Unsqueeze", "Reshape"):
            name = node.inputs[0]
            continue
        if node.op == "Sub":
            return factor == 1 and _two_moments(view, node, found)
        if node.op not in ("Mul", "Div"):
            return False
        constant = view.scalar(node.inputs[1])
        where = 0
        if constant is None and node.op == "Mul":
            constant, where = view.scalar(node.inputs[0]), 1
        if not constant:
            return False
        factor = factor * Fraction(constant) if node.op == "Mul" else factor / Fraction(constant)
        name = node.inputs[where]
    else:
        return False
    reduce = nodes[-1]
    if reduce.op == "ReduceSumSquare":
        squared, value = [], reduce.inputs[0]
    else:
        read = _square(view, reduce.inputs[0])
        if read is None:
            return False
        value, squared = read
    found.nodes += [*nodes, *squared]
    _statistic_is(view, reduce, found, value, total=reduce.op != "ReduceMean")
    shape = view.shape(value)
    assert shape is not None
    n = prod(shape[a] for a in found.axes)
    share = factor / (1 if found.total else n)  # the statistic is share * sum of squares
    if share == 1:
        found.total = True
    elif share == Fraction(1, n):
        found.total = False
    elif n > 1 and share == Fraction(1, n - 1):
        found.total, found.unbiased = False, True
    else:
        raise Mismatch(f"its statistic is {float(share * n):g} times the mean of squares")
    return True


def _statistic_is(view: View, reduce: Node, found: _Found, value: str, *, total: bool) -> None:
    """Take ``value`` as the numerator and the axes from ``reduce``."""
    found.centred = value
    found.uncast, found.casts = view.behind(value)
    shape = view.shape(value)
    if shape is None:
        raise Mismatch(f"the shape of {value!r} is unknown")
    axes = view.axes(reduce, len(shape))
    if axes is None:
        raise Mismatch(f"the axes of {reduce.name!r} are not constant")
    found.axes, found.total = axes, total


def _square(view: View, name: str) -> tuple[str, list[Node]] | None:
    """The value whose square ``name`` is."""
    name, passed = view.behind(name)
    node = view.producer(name)
    if node is None or node.domain:
        return None
    if node.op == "Pow" and view.scalar(node.inputs[1]) == 2.0:
        return node.inputs[0], [*passed, node]
    if node.op == "Mul" and view.same(node.inputs[0], node.inputs[1]):
        extra = [made for made in (view.producer(node.inputs[1]),) if made is not None and node.inputs[0] != node.inputs[1]]
        return node.inputs[0], [*passed, node, *extra]
    return None


def _two_moments(view: View, sub: Node, found: _Found) -> bool:
    """Variance as ``E[x^2] - E[x]^2``."""
    first, second = view.made_by(sub.inputs[0], "ReduceMean"), _square(view, sub.inputs[1])
    if first is None or second is None:
        return False
    squares, mean = _square(view, first.inputs[0]), view.made_by(second[0], "ReduceMean")
    if squares is None or mean is None or not view.same(squares[0], mean.inputs[0]):
        return False
    found.nodes += [sub, first, *squares[1], *second[1], mean]
    _statistic_is(view, first, found, squares[0], total=False)
    shape = view.shape(found.centred)
    if shape is None or view.axes(mean, len(shape)) != found.axes:
        raise Mismatch("the mean and the mean of squares are over different axes")
    found.kind, found.x = "layer", found.centred
    found.means.append(mean.outputs[0])
    return True


def _centring(view: View, found: _Found) -> None:
    """Whether the squared value is ``x - mean(x)`` over the same axes."""
    if found.kind:
        return
    mean = _mean_removed(view, found.uncast, found.axes)
    if mean is None:
        found.kind, found.x = ("l2" if found.total else "rms"), found.centred
        if found.unbiased:
            raise Mismatch("it divides the sum of squares of an uncentred value by n - 1")
        return
    sub, reduce, passed, x = mean
    found.kind, found.x = "layer", x
    found.nodes += [sub, reduce, *passed, *found.casts]
    found.means.append(sub.inputs[1])


def _per_group(view: View, name: str, value: str, axes: tuple[int, ...]) -> bool:
    """True if ``name``, which holds one number per group in their order, meets the groups of ``value`` when it is broadcast.

    Its shape must be that of ``value`` with ones on ``axes``: a statistic that dropped its axes meets other rows if the shape is square.
    """
    own, shape = view.shape(name), view.shape(value)
    if own is None or shape is None or len(own) > len(shape):
        return False
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return (1,) * (len(shape) - len(own)) + own == kept


def _mean_removed(view: View, name: str, axes: tuple[int, ...]) -> tuple[Node, Node, list[Node], str] | None:
    """The Sub, the ReduceMean, transparent nodes between them and x, if ``name`` is ``x - mean(x)`` over ``axes``."""
    sub = view.made_by(name, "Sub")
    if sub is None:
        return None
    inner, passed = view.behind(sub.inputs[1])
    mean = view.made_by(inner, "ReduceMean")
    shape = view.shape(name)
    if mean is None or shape is None or not view.same(mean.inputs[0], sub.inputs[0]) or view.axes(mean, len(shape)) != axes:
        return None
    if not _per_group(view, inner, sub.inputs[0], axes):
        return None
    return sub, mean, passed, sub.inputs[0]


def _divide(view: View, root: str, inverse: bool, found: _Found) -> str:
    """Forward from the root to the normalised value, whose name is returned."""
    value, aligned = root, False
    for _ in range(6):
        value, passed = view.beyond(value)
        found.nodes += passed
        aligned = aligned or _per_group(view, value, found.centred, found.axes)
        if inverse and aligned and (folded := _folded_affine(view, value, found)) is not None:
            return folded
        user = view.sole_user(value)
        if user is None:
            raise Mismatch(f"the root {value!r} has several readers or is an output")
        found.nodes.append(user)
        if user.domain:
            raise Mismatch(f"its root goes into {user.kind} {user.name!r}")
        if not inverse and _inverts(view, user, value):
            value, inverse = user.outputs[0], True
        elif ((user.op == "Expand" and aligned) or (user.op == "Unsqueeze" and not aligned)) and user.inputs[0] == value:
            value = user.outputs[0]
        elif user.op in ("Add", "Max", "Clip") and not inverse:
            value = _outside(view, user, value, found)
        elif (user.op == "Div" and user.inputs[1] == value and not inverse) or (user.op == "Mul" and inverse):
            if not aligned:
                raise Mismatch(f"the statistic in {user.name!r} does not meet the rows that it was taken from")
            return _numerator(view, user, value, found)
        else:
            raise Mismatch(f"its root goes into {user.op} {user.name!r}, which is no division by it")
    raise Mismatch("no division follows its root")


def _inverts(view: View, user: Node, value: str) -> bool:
    """True for ``1 / value`` in its three spellings."""
    if user.op == "Reciprocal":
        return True
    if user.op == "Pow":
        return user.inputs[0] == value and view.scalar(user.inputs[1]) == -1.0
    return user.op == "Div" and user.inputs[1] == value and view.scalar(user.inputs[0]) == 1.0


def _outside(view: View, user: Node, value: str, found: _Found) -> str:
    """An epsilon after the root."""
    epsilon = _lower_bound(view, user) if user.op == "Clip" else view.scalar(view.other(user, value) or "")
    if not epsilon or epsilon <= 0 or (user.op == "Clip" and user.inputs[0] != value):
        raise Mismatch(f"{user.name!r} after its root adds no positive constant")
    if found.epsilon:
        raise Mismatch("it has an epsilon under the root and another one outside")
    found.epsilon, found.place = epsilon, "outside" if user.op == "Add" else "max"
    return user.outputs[0]


def _numerator(view: View, user: Node, value: str, found: _Found) -> str:
    """The division ``c / s`` or the product ``c * (1/s)``: c must be the value whose squares are averaged."""
    top = user.inputs[0] if user.op == "Div" else view.other(user, value)
    if top is None:
        raise Mismatch(f"{user.name!r} does not divide the value whose squares are averaged")
    plain, passed = view.behind(top)
    if found.kind == "layer":
        removed = _mean_removed(view, plain, found.axes)
        if removed is not None and view.same(removed[3], found.x):
            found.nodes += [removed[0], removed[1], *removed[2], *(node for node in passed if _only_inside(view, node, user))]
            return user.outputs[0]
        raise Mismatch(f"{user.name!r} divides another value than x - mean(x)")
    if top == found.centred:
        return user.outputs[0]
    if view.same(plain, found.uncast):
        found.x = found.uncast
        found.nodes += found.casts
        found.nodes += [node for node in passed if _only_inside(view, node, user)]
        return user.outputs[0]
    raise Mismatch(f"{user.name!r} divides another value than the one whose squares are averaged")


def _only_inside(view: View, node: Node, user: Node) -> bool:
    """A conversion on the way to ``user`` is part of the pattern if nothing else reads it."""
    return view.sole_user(node.outputs[0]) is not None or all(reader.name == user.name for reader in view.users(node.outputs[0]))


def _folded_affine(view: View, value: str, found: _Found) -> str | None:
    """The spelling ``x * m + (beta - mean * m)`` with ``m = gamma / s`` (Keras); gives the final value.

    The affine part is left in ``found.affine``.
    """
    if found.kind != "layer":
        return None
    nodes, scale = [], ""
    user = view.sole_user(value)
    if (
        user is not None
        and not user.domain
        and user.op == "Mul"
        and (other := view.other(user, value))
        and view.constant(other) is not None
    ):
        nodes.append(user)
        scale, value = other, user.outputs[0]
    users = view.users(value)
    if len(users) != 2 or value in view.outputs or any(u.domain or u.op != "Mul" for u in users):
        return None
    others = [view.other(u, value) for u in users]
    for main, shift in ((0, 1), (1, 0)):
        x, mean = others[main], others[shift]
        if x is None or mean is None or not view.same(x, found.x) or not any(view.same(mean, m) for m in found.means):
            continue
        if not _per_group(view, mean, found.x, found.axes):
            continue
        offset = view.sole_user(users[shift].outputs[0])
        final = view.sole_user(users[main].outputs[0])
        if offset is None or final is None:
            return None
        nodes += [users[main], users[shift]]
        if offset.name == final.name and final.op == "Sub" and final.inputs[0] == users[main].outputs[0]:
            bias = ""
        elif offset.op == "Sub" and offset.inputs[1] == users[shift].outputs[0] and view.constant(offset.inputs[0]) is not None:
            bias = offset.inputs[0]
            nodes.append(offset)
            if final.op != "Add" or view.other(final, users[main].outputs[0]) != offset.outputs[0]:
                return None
        else:
            return None
        found.nodes += [*nodes, final]
        found.affine = scale, bias
        return final.outputs[0]
    return None


def _affine(view: View, value: str, found: _Found) -> tuple[str, str, str]:
    """A constant factor and a constant summand after the normalised value, along the normalised axes."""
    if found.affine is not None:
        return value, *found.affine
    scale = bias = ""
    for op in ("Mul", "Add"):
        plain, passed = view.beyond(value)
        user = view.sole_user(plain)
        other = view.other(user, plain) if user is not None and not user.domain and user.op == op else None
        if user is None or other is None or view.constant(other) is None or not _along(view, other, value, found.axes):
            continue
        found.nodes += [*passed, user]
        value = user.outputs[0]
        scale, bias = (other, bias) if op == "Mul" else (scale, other)
    return value, scale, bias


def _along(view: View, parameter: str, value: str, axes: tuple[int, ...]) -> bool:
    """True if a parameter varies along normalised axes only and does not broadcast the value."""
    shape, target = view.shape(parameter), view.shape(value)
    if shape is None or target is None or len(shape) > len(target):
        return False
    offset = len(target) - len(shape)
    return all(d == 1 or (d == target[offset + i] and offset + i in axes) for i, d in enumerate(shape))


def _match(view: View, found: _Found, final: str, scale: str, bias: str) -> Match:
    for parameter in (scale, bias):
        if parameter and not _along(view, parameter, found.x, found.axes):
            raise Mismatch(f"{parameter!r} is not constant outside the normalised axes")
    view.same_shape(final, found.x)
    attrs = {
        "kind": found.kind,
        "axes": found.axes,
        "epsilon": float(found.epsilon),
        "eps_place": found.place,
        "sum": int(found.total),
        "unbiased": int(found.unbiased),
    }
    covered = view.close([node for node in found.nodes if found.x not in node.outputs], final)
    return Match(Node("", "Normalization", (found.x, scale, bias), (final,), "lipaudit", 1, attrs), covered)
