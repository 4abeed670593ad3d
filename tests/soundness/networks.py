"""Random networks for the soundness tests: float64 graphs drawn step by step from many operators.

Everything is stored and evaluated in float64 (``onnx.reference``), so that what the certificate speaks of and what the
adversary measures are the same function up to binary64 rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Builder", "images", "tokens", "vectors"]

Floats = NDArray[np.float64]
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Builder:
    """A graph in the making: ``value`` has ``shape``; ``kept`` are earlier values that a join may use."""

    rng: np.random.Generator
    value: str
    shape: tuple[int, ...]
    bounded: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    kept: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    input_shape: tuple[int, ...] = ()

    def constant(self, array: Any, dtype: Any = np.float64) -> str:
        """Store a tensor."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def weights(self, *shape: int) -> Floats:
        """Random weights whose scale varies from tensor to tensor."""
        return self.rng.normal(size=shape) * float(np.exp(self.rng.normal() * 0.5))

    def add(self, op: str, *inputs: str, shape: tuple[int, ...] | None = None, outputs: int = 1, **attrs: Any) -> list[str]:
        """Append a node; with one output it becomes the current value."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}_{op}", **attrs))
        if outputs == 1:
            self.value = names[0]
            self.shape = self.shape if shape is None else shape
        return names

    def keep(self) -> None:
        """Remember the current value for a later join."""
        self.kept.append((self.value, self.shape))

    def model(self, outputs: list[str] | None = None) -> onnx.ModelProto:
        """The finished model (opset 18)."""
        names = outputs or [self.value]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, self.input_shape)],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names],
            self.constants,
        )
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def _start(draw: Draw, shape: tuple[int, ...], bounded: bool) -> Builder:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    builder = Builder(rng, "x", shape, bounded, input_shape=shape)
    builder.keep()
    return builder


_ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {"alpha": 0.2}),
    ("LeakyRelu", {"alpha": -0.5}),
    ("Elu", {"alpha": 1.5}),
    ("Selu", {}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("HardSwish", {}),
    ("Erf", {}),
    ("Mish", {}),
    ("Abs", {}),
    ("Neg", {}),
    ("Sin", {}),
    ("Cos", {}),
    ("Atan", {}),
    ("Asinh", {}),
    ("Round", {}),
    ("Floor", {}),
]


def _activation(draw: Draw, b: Builder) -> None:
    op, attrs = draw(st.sampled_from(_ACTIVATIONS))
    b.add(op, b.value, **attrs)


def _box_activation(draw: Draw, b: Builder) -> None:
    """Functions that need a range."""
    op = draw(st.sampled_from(["Exp", "Square", "SelfMul", "Log", "Sqrt", "Cosh", "Sinh", "Pow3", "Reciprocal"]))
    squashed = b.add("Tanh", b.value)[0]
    shifted = b.add("Add", squashed, b.constant(1.5))[0]
    if op == "Square":
        b.add("Pow", squashed, b.constant(2.0))
    elif op == "Pow3":
        b.add("Pow", squashed, b.constant(3.0))
    elif op == "SelfMul":
        b.add("Mul", squashed, squashed)
    else:
        b.add(op, shifted if op in ("Log", "Sqrt", "Reciprocal") else squashed)


def _affine(draw: Draw, b: Builder) -> None:
    """A constant that scales, shifts or divides, with and without broadcasting."""
    last = b.shape[-1]
    scale = b.constant(b.weights(*draw(st.sampled_from([(1,), (last,), b.shape[1:]]))))
    op = draw(st.sampled_from(["Mul", "Add", "Sub", "RSub", "Div"]))
    if op == "RSub":
        b.add("Sub", scale, b.value)
    elif op == "Div":
        b.add("Div", b.value, b.constant(np.sign(b.rng.normal(size=last)) * (0.3 + b.rng.random(last))))
    else:
        b.add(op, b.value, scale)


def _linear(draw: Draw, b: Builder) -> None:
    n = b.shape[-1]
    m = draw(st.integers(1, 6))
    out = (*b.shape[:-1], m)
    if len(b.shape) == 2 and draw(st.booleans()):
        if draw(st.booleans()):
            b.add("Gemm", b.value, b.constant(b.weights(m, n)), b.constant(b.weights(m)), transB=1, alpha=0.7, shape=out)
        else:
            b.add("Gemm", b.value, b.constant(b.weights(n, m)), shape=out)
    else:
        b.add("MatMul", b.value, b.constant(b.weights(n, m)), shape=out)


def _join(draw: Draw, b: Builder) -> None:
    """A residual, a product, a maximum or a concatenation with an earlier value (or with itself)."""
    same = [name for name, shape in b.kept if shape == b.shape]
    other = draw(st.sampled_from(same)) if same else b.value
    ops = ["Add", "Sub", "Concat", "Max", "Min", "Where", "Sum3", "Mean"]
    if b.bounded:
        ops.append("Mul")
    op = draw(st.sampled_from(ops))
    if op == "Concat":
        axis = draw(st.integers(1, len(b.shape) - 1))
        shape = tuple(2 * d if i == axis else d for i, d in enumerate(b.shape))
        b.add("Concat", b.value, other, axis=axis, shape=shape)
    elif op == "Where":
        b.add("Where", b.constant(b.rng.random(b.shape) < 0.5, np.bool_), b.value, other)
    elif op == "Sum3":
        b.add("Sum", b.value, other, b.value)
    else:
        b.add(op, b.value, other)


def _split(draw: Draw, b: Builder) -> None:
    """Split, treat the parts differently, put them together again: in order, doubled or added."""
    axis = len(b.shape) - 1
    n = b.shape[axis]
    if n < 2:
        return
    first = draw(st.integers(1, n - 1))
    parts = b.add("Split", b.value, b.constant([first, n - first], np.int64), axis=axis, outputs=2)
    left = b.add("Tanh", parts[0], shape=(*b.shape[:-1], first))[0]
    order = draw(st.sampled_from(["lr", "rl", "llr", "rr"]))
    names = {"l": left, "r": parts[1]}
    sizes = {"l": first, "r": n - first}
    b.add("Concat", *(names[c] for c in order), axis=axis, shape=(*b.shape[:-1], sum(sizes[c] for c in order)))


def _slices(draw: Draw, b: Builder) -> None:
    """Overlapping slices, or a slice with a step, added or concatenated."""
    axis, n = len(b.shape) - 1, b.shape[-1]
    if n < 3:
        return
    source, width = b.value, n - 1
    one = b.add("Slice", source, b.constant([0], np.int64), b.constant([width], np.int64), b.constant([axis], np.int64))[0]
    two = b.add(
        "Slice", source, b.constant([1], np.int64), b.constant([n], np.int64), b.constant([axis], np.int64), shape=(*b.shape[:-1], width)
    )[0]
    if draw(st.booleans()):
        b.add("Add", one, two)
    else:
        b.add("Concat", one, two, axis=axis, shape=(*b.shape[:-1], 2 * width))


def _gather(draw: Draw, b: Builder) -> None:
    n = b.shape[-1]
    picks = draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=5))
    b.add("Gather", b.value, b.constant(picks, np.int64), axis=len(b.shape) - 1, shape=(*b.shape[:-1], len(picks)))


def _pad(draw: Draw, b: Builder) -> None:
    rank, n = len(b.shape), b.shape[-1]
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
    if mode == "reflect" and max(before, after) >= n:
        return
    pads = [0] * (2 * rank)
    pads[rank - 1], pads[-1] = before, after
    b.add("Pad", b.value, b.constant(pads, np.int64), mode=mode, shape=(*b.shape[:-1], n + before + after))


def _reduce(draw: Draw, b: Builder) -> None:
    op = draw(st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "CumSum"]))
    if op == "CumSum":
        b.add("CumSum", b.value, b.constant(len(b.shape) - 1, np.int64))
        return
    if op == "ReduceSum":
        b.add(op, b.value, b.constant([-1], np.int64), keepdims=1, shape=(*b.shape[:-1], 1))
    else:
        b.add(op, b.value, b.constant([-1], np.int64), keepdims=1, shape=(*b.shape[:-1], 1))


def _softmax(draw: Draw, b: Builder) -> None:
    b.add(draw(st.sampled_from(["Softmax", "LogSoftmax"])), b.value, axis=draw(st.integers(1, len(b.shape) - 1)))


def _layernorm(draw: Draw, b: Builder) -> None:
    n = b.shape[-1]
    eps = float(draw(st.sampled_from([1e-2, 0.1, 1.0])))
    b.add("LayerNormalization", b.value, b.constant(b.weights(n)), b.constant(b.weights(n)), epsilon=eps, axis=-1)


def _expand(draw: Draw, b: Builder) -> None:
    if b.shape[-1] != 1:
        return
    copies = draw(st.integers(2, 4))
    target = (*b.shape[:-1], copies)
    if draw(st.booleans()):
        b.add("Expand", b.value, b.constant(target, np.int64), shape=target)
    else:
        b.add("Add", b.value, b.constant(b.weights(copies)), shape=target)


def _keep(draw: Draw, b: Builder) -> None:
    b.keep()


_VECTOR_STEPS = [_linear, _activation, _affine, _join, _split, _slices, _gather, _pad, _reduce, _softmax, _layernorm, _expand, _keep]


@st.composite
def vectors(draw: Draw, bounded: bool = False) -> onnx.ModelProto:
    """MLP-like graphs on (1, n)."""
    return _finish(draw, _start(draw, (1, draw(st.integers(1, 6))), bounded), _VECTOR_STEPS)


@st.composite
def tokens(draw: Draw, bounded: bool = False) -> onnx.ModelProto:
    """Graphs on (1, tokens, features), with self-attention behind a normalization or on a box."""
    shape = (1, draw(st.integers(1, 4)), draw(st.integers(2, 4)))
    return _finish(draw, _start(draw, shape, bounded), [*_VECTOR_STEPS, _attention, _attention, _token_mixing])


@st.composite
def images(draw: Draw, bounded: bool = False) -> onnx.ModelProto:
    """Small convolutional graphs on (1, c, h, w)."""
    shape = (1, draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(2, 5)))
    return _finish(
        draw, _start(draw, shape, bounded), [_conv, _conv, _pool, _batchnorm, _activation, _join, _keep, _resize, _affine_channels]
    )


def _finish(draw: Draw, b: Builder, steps: list[Callable[[Draw, Builder], None]]) -> onnx.ModelProto:
    known = [*steps, _box_activation] if b.bounded else steps
    for step in draw(st.lists(st.sampled_from(known), min_size=1, max_size=7)):
        step(draw, b)
        if int(np.prod(b.shape)) > 48:
            break
    if not b.nodes:
        b.add("Identity", b.value)
    outputs = [b.value]
    if len(b.kept) > 1 and draw(st.booleans()) and b.kept[-1][0] not in ("x", b.value):
        outputs.append(b.kept[-1][0])
    return b.model(outputs)


def _token_mixing(draw: Draw, b: Builder) -> None:
    n = b.shape[1]
    b.add("MatMul", b.constant(b.weights(n, n)), b.value)


def _attention(draw: Draw, b: Builder) -> None:
    """Dot-product self-attention; behind a LayerNormalization unless the domain is a box."""
    n, d = b.shape[1], b.shape[2]
    if not b.bounded or draw(st.booleans()):
        b.add("LayerNormalization", b.value, b.constant(b.weights(d)), b.constant(b.weights(d)), epsilon=0.1, axis=-1)
    x = b.value
    heads = draw(st.sampled_from([1, 2]))
    width = draw(st.integers(1, 3))
    names: dict[str, str] = {}
    for role in "qkv":
        flat = b.add("MatMul", x, b.constant(b.weights(d, heads * width)), shape=(1, n, heads * width))[0]
        split = b.add("Reshape", flat, b.constant([1, n, heads, width], np.int64), shape=(1, n, heads, width))[0]
        perm = [0, 2, 3, 1] if role == "k" else [0, 2, 1, 3]
        names[role] = b.add("Transpose", split, perm=perm)[0]
    b.add("MatMul", names["q"], names["k"])
    b.add("Mul", b.value, b.constant(1 / np.sqrt(width)))
    if draw(st.booleans()):
        mask = np.where(np.tril(np.ones((n, n))) > 0, 0.0, -np.inf)
        b.add("Add", b.value, b.constant(mask))
    b.add("Softmax", b.value, axis=-1)
    b.add("MatMul", b.value, names["v"])
    b.add("Transpose", b.value, perm=[0, 2, 1, 3])
    b.add("Reshape", b.value, b.constant([1, n, heads * width], np.int64))
    b.add("MatMul", b.value, b.constant(b.weights(heads * width, d)), shape=(1, n, d))


def _conv(draw: Draw, b: Builder) -> None:
    _, c, h, w = b.shape
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    out = tuple(
        (n + pads[i] + pads[i + 2] - (k - 1) * d - 1) // s + 1
        for i, (n, k, s, d) in enumerate(zip((h, w), kernel, stride, dilation, strict=True))
    )
    if min(out) < 1 or max(out) > 7:
        return
    group = c if draw(st.booleans()) else 1
    o = group * draw(st.integers(1, 2))
    weight = b.constant(b.weights(o, c // group, *kernel))
    b.add(
        "Conv",
        b.value,
        weight,
        b.constant(b.weights(o)),
        kernel_shape=kernel,
        strides=stride,
        dilations=dilation,
        pads=pads,
        group=group,
        shape=(1, o, *out),
    )


def _pool(draw: Draw, b: Builder) -> None:
    _, c, h, w = b.shape
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]))
    if op.startswith("Global"):
        b.add(op, b.value, shape=(1, c, 1, 1))
        return
    kernel = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    out = tuple((n + pads[i] + pads[i + 2] - k) // s + 1 for i, (n, k, s) in enumerate(zip((h, w), kernel, stride, strict=True)))
    if min(out) < 1:
        return
    extra = {"count_include_pad": draw(st.integers(0, 1))} if op == "AveragePool" else {}
    b.add(op, b.value, kernel_shape=kernel, strides=stride, pads=pads, shape=(1, c, *out), **extra)


def _batchnorm(draw: Draw, b: Builder) -> None:
    c = b.shape[1]
    stats = (b.weights(c), b.weights(c), b.weights(c), np.abs(b.weights(c)))
    b.add("BatchNormalization", b.value, *(b.constant(s) for s in stats), epsilon=1e-3)


def _resize(draw: Draw, b: Builder) -> None:
    _, c, h, w = b.shape
    if h * w > 9:
        return
    mode = draw(st.sampled_from(["nearest", "linear"]))
    scales = b.constant([1.0, 1.0, 2.0, 2.0], np.float32)
    b.add(
        "Resize",
        b.value,
        "",
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        shape=(1, c, 2 * h, 2 * w),
    )


def _affine_channels(draw: Draw, b: Builder) -> None:
    b.add(draw(st.sampled_from(["Mul", "Add"])), b.value, b.constant(b.weights(b.shape[1], 1, 1)))
