"""Products: MatMul, Gemm, Einsum, Conv, ConvTranspose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipaudit.operators.base import Site
from lipaudit.validate.adjoints.builder import Builder, Local, Maybe, NoDerivative, Rule
from lipaudit.validate.exact.windows import Window, convolution_window, transposed_window

__all__ = ["RULES", "correlate", "correlate_adjoint", "depthwise", "depthwise_adjoint"]


def _swapped(array: NDArray[Any]) -> NDArray[Any]:
    return np.array(np.swapaxes(array, -1, -2), order="C")


def _operand(b: Builder, name: str, shape: tuple[int, ...], *, transposed: bool, column: bool = False) -> str:
    """A factor as a matrix (vectors become a row or a column), transposed now if it is stored."""
    constant = b.stored(name)
    vector = len(shape) == 1
    if constant is not None:

        def change(array: NDArray[Any]) -> NDArray[Any]:
            matrix = array.reshape((-1, 1) if column else (1, -1)) if vector else array
            return _swapped(matrix) if transposed else matrix

        return b.weight(constant, f"matrix {transposed} {column}", change)
    found = b.primal(name)
    if vector:
        found = b.node("Reshape", found, b.ints(*((-1, 1) if column else (1, -1))))
    if not transposed:
        return found
    rank = max(len(shape), 2)
    return b.node("Transpose", found, perm=[*range(rank - 2), rank - 1, rank - 2])


def _uniform(b: Builder, name: str) -> float | None:
    """The value of a uniform stored matrix that is worth not storing."""
    constant = b.stored(name)
    return None if constant is None or constant.fill is None or constant.size < 4096 else float(constant.fill)


def _apply_uniform(b: Builder, t: str, fill: float, size: int, rank: int) -> str:
    """``t @ W`` for W with all elements ``fill`` and ``size`` columns; ``t`` has ``rank`` axes."""
    total = b.node("Mul", b.node("ReduceSum", t, b.ints(rank - 1), keepdims=1), b.number(fill))
    return b.node("Expand", total, b.ints(*(1,) * (rank - 1), size))


def _matmul(b: Builder, site: Site) -> Local:
    left, right = site.node.inputs[:2]
    a_shape, b_shape, out = site.shape(0), site.shape(1), site.out_shape()
    a_matrix = (1, *a_shape) if len(a_shape) == 1 else a_shape
    b_matrix = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    batch = np.broadcast_shapes(a_matrix[:-2], b_matrix[:-2])
    full = (*batch, a_matrix[-2], b_matrix[-1])
    fill = _uniform(b, right) if len(b_shape) == 2 else None

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        terms: list[Maybe] = []
        if ts[0] is not None:
            t = b.reshape(ts[0], a_matrix) if len(a_shape) == 1 else ts[0]
            t = b.lift(t, a_matrix, len(full))
            if fill is not None:
                terms.append(_apply_uniform(b, t, fill, b_matrix[-1], len(full) + 1))
            else:
                terms.append(b.node("MatMul", t, _operand(b, right, b_shape, transposed=False, column=True)))
        if ts[1] is not None:
            t = b.reshape(ts[1], b_matrix) if len(b_shape) == 1 else ts[1]
            terms.append(b.node("MatMul", _operand(b, left, a_shape, transposed=False), b.lift(t, b_matrix, len(full))))
        total = b.sum(terms)
        return [total if total is None or full == out else b.reshape(total, out)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        if cs[0] is None:
            return [None, None]
        c = cs[0] if full == out else b.reshape(cs[0], full)
        results: list[Maybe] = [None, None]
        if site.moving[0]:
            if fill is not None:
                g = _apply_uniform(b, c, fill, a_matrix[-1], len(full) + 1)
            else:
                g = b.node("MatMul", c, _operand(b, right, b_shape, transposed=True, column=True))
            g = b.unbroadcast(g, (*batch, *a_matrix[-2:]), a_matrix)
            results[0] = g if a_matrix == a_shape else b.reshape(g, a_shape)
        if site.moving[1]:
            g = b.node("MatMul", _operand(b, left, a_shape, transposed=True), c)
            g = b.unbroadcast(g, (*batch, *b_matrix[-2:]), b_matrix)
            results[1] = g if b_matrix == b_shape else b.reshape(g, b_shape)
        return results

    return Local(tangent, adjoint)


def _gemm(b: Builder, site: Site) -> Local:
    left, right = site.node.inputs[:2]
    trans_a, trans_b = bool(site.attr("transA", 0)), bool(site.attr("transB", 0))
    alpha, beta = site.attr("alpha", 1.0), site.attr("beta", 1.0)
    out, columns, inner = site.out_shape(), site.out_shape()[1], site.shape(0)[0 if trans_a else 1]
    fill = _uniform(b, right)

    def scaled(t: str, factor: float) -> str:
        return b.times(t, factor)

    def turned(t: str, turn: bool) -> str:
        return b.node("Transpose", t, perm=[0, 2, 1]) if turn else t

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        terms: list[Maybe] = []
        if ts[0] is not None:
            t = turned(ts[0], trans_a)
            if fill is not None:
                product = _apply_uniform(b, t, fill, columns, 3)
            else:
                product = b.node("MatMul", t, _operand(b, right, site.shape(1), transposed=trans_b))
            terms.append(scaled(product, alpha))
        if ts[1] is not None:
            product = b.node("MatMul", _operand(b, left, site.shape(0), transposed=trans_a), turned(ts[1], trans_b))
            terms.append(scaled(product, alpha))
        if len(ts) > 2 and ts[2] is not None:
            terms.append(b.expand(scaled(ts[2], beta), site.shape(2), out))
        return [b.sum(terms)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        c = cs[0]
        if c is None:
            return results
        if site.moving[0]:
            if fill is not None:
                g = _apply_uniform(b, c, fill, inner, 3)
            else:
                g = b.node("MatMul", c, _operand(b, right, site.shape(1), transposed=not trans_b))
            results[0] = scaled(turned(g, trans_a), alpha)
        if site.moving[1]:
            g = b.node("MatMul", _operand(b, left, site.shape(0), transposed=not trans_a), c)
            results[1] = scaled(turned(g, trans_b), alpha)
        if site.has(2) and site.moving[2]:
            results[2] = b.unbroadcast(scaled(c, beta), out, site.shape(2))
        return results

    return Local(tangent, adjoint)


def _einsum(b: Builder, site: Site) -> Local:
    equation = str(site.attr("equation")).replace(" ", "")
    terms, out = equation.split("->") if "->" in equation else (equation, "")
    operands = terms.split(",")
    probe = next(letter for letter in "KZYXWVUTSRQPONMLJIHGFEDCBA" if letter not in equation)
    if "->" not in equation or "." in equation or any(len(set(term)) != len(term) for term in (*operands, out)):
        raise NoDerivative("Einsum with an ellipsis, a diagonal or an implicit output")

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        found: list[Maybe] = []
        for i, t in enumerate(ts):
            if t is None:
                continue
            labels = [probe + term if j == i else term for j, term in enumerate(operands)]
            inputs = [t if j == i else b.primal(name) for j, name in enumerate(site.node.inputs)]
            found.append(b.node("Einsum", *inputs, equation=f"{','.join(labels)}->{probe}{out}"))
        return [b.sum(found)]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(operands)
        if cs[0] is None:
            return results
        for i, term in enumerate(operands):
            if not site.moving[i]:
                continue
            others = [j for j in range(len(operands)) if j != i]
            if not set(term) <= set(out).union(*(operands[j] for j in others)):
                raise NoDerivative("Einsum that sums an index of one operand alone")
            labels = [probe + out, *(operands[j] for j in others)]
            inputs = [cs[0], *(b.primal(site.node.inputs[j]) for j in others)]
            results[i] = b.node("Einsum", *inputs, equation=f"{','.join(labels)}->{probe}{term}")
        return results

    return Local(tangent, adjoint)


def _attributes(window: Window, group: int, after: tuple[int, ...] | None = None) -> dict[str, Any]:
    return {
        "kernel_shape": list(window.kernel), "strides": list(window.strides), "dilations": list(window.dilations),
        "pads": [*window.before, *(window.after if after is None else after)], "group": group,
    }  # fmt: skip


def correlate(b: Builder, t: str, weight: str, window: Window, group: int, source: tuple[int, ...], channels: int) -> str:
    """Convolution of ``[K, N, C, *window.size]`` by ``weight``."""
    folded = b.fold(t, source)
    return b.reshape(b.node("Conv", folded, weight, **_attributes(window, group)), (source[0], channels, *window.out))


def correlate_adjoint(b: Builder, c: str, weight: str, window: Window, group: int, source: tuple[int, ...], channels: int) -> str:
    """Its transpose: ``[K, N, O, *window.out]`` to ``[K, N, channels, *window.size]``."""
    rest = [
        n + p + q - ((o - 1) * s + (k - 1) * d + 1)
        for n, p, q, o, s, k, d in zip(
            window.size, window.before, window.after, window.out, window.strides, window.kernel, window.dilations, strict=True
        )
    ]
    if any(r >= s for r, s in zip(rest, window.strides, strict=True)):
        raise NoDerivative("a convolution that leaves more than one stride at its end")
    attrs = _attributes(window, group) | {"output_padding": rest}
    folded = b.node("ConvTranspose", b.fold(c, source), weight, **attrs)
    return b.reshape(folded, (source[0], channels, *window.size))


def _turned(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """The kernel of a transposed convolution as that of a convolution: mirrored, inputs and outputs of each group exchanged."""
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    mirrored = np.flip(np.swapaxes(grouped, 1, 2), axis=tuple(range(3, grouped.ndim)))
    return np.array(mirrored.reshape(-1, *mirrored.shape[2:]), order="C")


def _backward(b: Builder, c: str, name: str, window: Window, group: int, source: tuple[int, ...], channels: int) -> str:
    """As :func:`correlate_adjoint` for the weight ``name``, by a convolution where one does: onnxruntime runs those faster."""
    constant = b.stored(name)
    before = tuple((k - 1) * d - p for k, d, p in zip(window.kernel, window.dilations, window.before, strict=True))
    after = tuple(n + p - o for n, p, o in zip(window.size, window.before, window.out, strict=True))
    if constant is None or set(window.strides) != {1} or min(*before, *after) < 0:
        return correlate_adjoint(b, c, b.primal(name), window, group, source, channels)
    mirrored = Window(window.out, window.kernel, window.strides, window.dilations, before, after, window.size)
    return correlate(b, c, b.weight(constant, f"turned {group}", lambda w: _turned(w, group)), mirrored, group, source, channels)


def depthwise(b: Builder, t: str, kernel: NDArray[Any], window: Window, shape: tuple[int, ...]) -> str:
    """Correlate every channel of ``[K, *shape]`` with ``kernel``."""
    one = (shape[0] * shape[1], 1, *shape[2:])
    y = correlate(b, t, b.constant(kernel[None, None]), window, 1, one, 1)
    return b.reshape(y, (*shape[:2], *window.out))


def depthwise_adjoint(b: Builder, c: str, kernel: NDArray[Any], window: Window, shape: tuple[int, ...]) -> str:
    """The transpose of :func:`depthwise`."""
    one = (shape[0] * shape[1], 1, *window.out)
    y = correlate_adjoint(b, c, b.constant(kernel[None, None]), window, 1, one, 1)
    return b.reshape(y, shape)


def _channel_sum(b: Builder, t: str, shape: tuple[int, ...], groups: int) -> str:
    grouped = b.reshape(t, (shape[0], groups, shape[1] // groups, *shape[2:]))
    return b.node("ReduceSum", grouped, b.ints(3), keepdims=0)


def _channel_copy(b: Builder, t: str, shape: tuple[int, ...], groups: int, channels: int) -> str:
    """``[K, N, groups, *sp]`` to ``[K, N, channels, *sp]``; ``shape`` is the target's."""
    each = channels // groups
    lifted = b.reshape(t, (shape[0], groups, 1, *shape[2:]))
    spread = b.node("Expand", lifted, b.ints(1, shape[0], groups, each, *shape[2:]))
    return b.reshape(spread, shape)


def _weight_is_fixed(site: Site) -> None:
    if site.moving[1]:
        raise NoDerivative(f"{site.node.op} with a moving weight")


def _conv(b: Builder, site: Site) -> Local:
    _weight_is_fixed(site)
    shape, out, name = site.shape(0), site.out_shape(), site.node.inputs[1]
    group = site.attr("group", 1)
    window = convolution_window(site, shape[2:], site.shape(1)[2:])
    fill = _uniform(b, name)
    kernel = None if fill is None else np.full(window.kernel, fill)

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        if ts[0] is None:
            return [None]
        if kernel is not None:
            summed = depthwise(b, _channel_sum(b, ts[0], shape, group), kernel, window, (shape[0], group, *shape[2:]))
            return [_channel_copy(b, summed, out, group, out[1])]
        return [correlate(b, ts[0], b.primal(name), window, group, shape, out[1])]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is None:
            return results
        if kernel is not None:
            back = depthwise_adjoint(b, _channel_sum(b, cs[0], out, group), kernel, window, (shape[0], group, *shape[2:]))
            results[0] = _channel_copy(b, back, shape, group, shape[1])
        else:
            results[0] = _backward(b, cs[0], name, window, group, out, shape[1])
        return results

    return Local(tangent, adjoint)


def _conv_transpose(b: Builder, site: Site) -> Local:
    _weight_is_fixed(site)
    shape, out, name = site.shape(0), site.out_shape(), site.node.inputs[1]
    group = site.attr("group", 1)
    window = transposed_window(site, shape[2:], site.shape(1)[2:])

    def tangent(ts: Sequence[Maybe]) -> Sequence[Maybe]:
        return [None if ts[0] is None else _backward(b, ts[0], name, window, group, shape, out[1])]

    def adjoint(cs: Sequence[Maybe]) -> Sequence[Maybe]:
        results: list[Maybe] = [None] * len(site.inputs)
        if cs[0] is not None:
            results[0] = correlate(b, cs[0], b.primal(name), window, group, out, shape[1])
        return results

    return Local(tangent, adjoint)


def _batch_normalization(b: Builder, site: Site) -> Local:
    if site.attr("training_mode", 0):
        raise NoDerivative("BatchNormalization in training mode")
    stored = [site.constant(i) for i in (1, 4)]
    if any(constant is None for constant in stored):
        raise NoDerivative("BatchNormalization with computed statistics")
    scale, variance = (constant.float64() for constant in stored if constant is not None)
    slope = (scale / np.sqrt(variance + site.attr("epsilon", 1e-5))).reshape(-1, *(1,) * (len(site.shape(0)) - 2))

    def apply(t: Maybe) -> Maybe:
        return None if t is None else b.times(t, b.constant(slope))

    return Local(lambda ts: [apply(ts[0])], lambda cs: [apply(cs[0]), *[None] * (len(site.inputs) - 1)])


RULES: Mapping[str, Rule] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
