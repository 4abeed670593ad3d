"""What single nodes are for the region tree: linear, a weight layer, a mere rearrangement, an activation, ...

"Moving" operands are those that depend on a source; an operator is called linear in the sense "affine in its moving operand
while the others are held".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lipaudit.graph.ir import Graph, Node

__all__ = ["ACTIVATIONS", "ATTENTION", "NORMALIZATIONS", "RECURRENT", "SKIP_NORMALIZATIONS", "Roles"]


def _onnx(*ops: str) -> frozenset[str]:
    return frozenset(f"ai.onnx::{op}" for op in ops)


def _microsoft(*ops: str) -> frozenset[str]:
    return frozenset(f"com.microsoft::{op}" for op in ops)


ATTENTION = (
    _onnx("Attention")
    | {"lipaudit::Attention", "lipaudit::L2Attention", "lipaudit::LinearAttention", "lipaudit::PairAttention"}
    | _microsoft(
        "Attention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention", "MultiHeadAttention", "PackedAttention", "QAttention"
    )
)
SKIP_NORMALIZATIONS = _microsoft("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
NORMALIZATIONS = (
    _onnx(
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LpNormalization",
        "LRN",
        "MeanVarianceNormalization",
        "RMSNormalization",
    )
    | {
        "lipaudit::Normalization",
        "ai.onnx::SimplifiedLayerNormalization",
        "com.microsoft::SimplifiedLayerNormalization",
        "com.microsoft::GroupNorm",
    }
    | SKIP_NORMALIZATIONS
)
RECURRENT = _onnx("LSTM", "GRU", "RNN") | _microsoft("DynamicQuantizeLSTM")
ACTIVATIONS = (
    _onnx(
        "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu", "LogSoftmax", "Mish",
        "PRelu", "Relu", "Selu", "Shrink", "Sigmoid", "Sin", "Cos", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
    )
    | {"lipaudit::Gelu", "lipaudit::HardSwish"}
    | _microsoft("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "QLinearSigmoid", "QLinearLeakyRelu")
)  # fmt: skip
SATURATING = _onnx("HardSigmoid", "Sigmoid", "Softsign")
_POOLING = _onnx("GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxRoiPool", "ReduceMax", "RoiAlign") | {"lipaudit::Magnitude"}
_AVERAGES = _onnx("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum") | _microsoft(
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean"
)
_REARRANGEMENTS = _onnx(
    "Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Reshape",
    "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_PERMUTATIONS = _onnx("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_QUANTIZERS = _onnx("QuantizeLinear", "DequantizeLinear")
_FIRST_OPERAND = (
    _REARRANGEMENTS
    | _onnx("AveragePool", "CumSum", "DequantizeLinear", "GlobalAveragePool", "Neg", "ReduceMean", "ReduceSum", "Resize", "Upsample")
    | _onnx("Conv", "ConvTranspose", "Div", "BatchNormalization")
    | _microsoft("MatMulNBits", "NhwcConv")
)
_ANY_OPERAND = _onnx("Add", "Sub", "Sum", "Mul", "MatMul", "Gemm", "Where", "Einsum", "Mean") | _microsoft("FusedMatMul")
_LINEAR_JOINS = _onnx("Add", "Sub", "Sum", "Concat", "Mean")
_DENSE = _onnx("Gemm", "MatMul", "Einsum", "MatMulInteger", "QLinearMatMul") | _microsoft(
    "FusedMatMul", "MatMulNBits", "FusedGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"
)
_CONVOLUTIONS = _onnx("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv") | _microsoft(
    "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"
)


@dataclass(frozen=True)
class Roles:
    """Answers about the nodes of one graph, given which values move."""

    graph: Graph
    moving: frozenset[str]
    _reads: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def reads(self, node: Node) -> tuple[str, ...]:
        """Moving values that the node (or a subgraph of it) reads, each once."""
        found = self._reads.get(node.name)
        if found is None:
            captured = self.graph.captured_by(node) if node.attrs else ()
            found = tuple(dict.fromkeys(name for name in (*node.inputs, *captured) if name in self.moving))
            self._reads[node.name] = found
        return found

    def is_linear(self, node: Node) -> bool:
        """Affine in the one moving value that it reads, with one output."""
        reads = self.reads(node)
        if len(reads) != 1 or sum(1 for name in node.outputs if name) != 1 or self.graph.captured_by(node):
            return False
        kind, count = node.kind, node.inputs.count(reads[0])
        if kind in _FIRST_OPERAND:
            if node.op == "BatchNormalization" and int(node.attrs.get("training_mode", 0)):
                return False
            if node.op == "Cast" and not self._is_float(node.outputs[0]):
                return False
            if node.op == "Concat":
                return True
            return count == 1 and node.inputs[0] == reads[0]
        if kind in _ANY_OPERAND:
            if node.op == "Where" and node.inputs[0] == reads[0]:
                return False
            return count == 1 or node.op in ("Add", "Sub", "Sum", "Mean")
        return False

    def is_linear_join(self, node: Node) -> bool:
        """Affine in several moving values together, or a Split."""
        return node.kind in _LINEAR_JOINS or (node.kind == "ai.onnx::Split" and len(self.reads(node)) == 1)

    def is_shortcut(self, node: Node) -> bool:
        """Fit for a shortcut: linear, a quantised form of it, or a pooling."""
        single = len(self.reads(node)) == 1
        return self.is_linear(node) or (
            single and (node.kind in _QUANTIZERS or node.kind in _CONVOLUTIONS or node.kind in _POOLING or node.kind in _AVERAGES)
        )

    def is_identity(self, node: Node) -> bool:
        """Carries its value unchanged up to order, type or quantisation."""
        return node.kind in _PERMUTATIONS | _QUANTIZERS and len(self.reads(node)) == 1

    def is_rearrangement(self, node: Node) -> bool:
        """Moves elements (or copies, drops, pads them) and changes none."""
        return node.kind in _REARRANGEMENTS | _QUANTIZERS and len(self.reads(node)) == 1

    def is_weight_layer(self, node: Node) -> bool:
        """A convolution or a product with a stored matrix (not of two activations); recurrent cells count once."""
        return self.is_dense(node) or node.kind in _CONVOLUTIONS or node.kind in RECURRENT

    def is_dense(self, node: Node) -> bool:
        """A product with a stored matrix."""
        if node.kind not in _DENSE:
            return False
        return sum(1 for name in node.inputs[:2] if name in self.moving) == 1 or node.kind not in _ANY_OPERAND

    def is_carried_sum(self, name: str) -> bool:
        """The sum that a fused residual normalization hands on beside its normalized output."""
        maker = self.graph.producer.get(name)
        return maker is not None and maker.kind in SKIP_NORMALIZATIONS and name in maker.outputs[3:]

    def is_average(self, node: Node) -> bool:
        """An average over positions."""
        return node.kind in _AVERAGES

    def leaf_kind(self, node: Node) -> tuple[str, str]:
        """Kind of a region that is this node alone, and the reason if the kind is "other"."""
        kind = node.kind
        if kind in NORMALIZATIONS or kind == "ai.onnx::BatchNormalization":
            return "normalization", ""
        if kind in ATTENTION:
            return "attention-core", ""
        if kind in RECURRENT:
            return "recurrent", ""
        if kind in ACTIVATIONS:
            return "activation", ""
        if kind in _POOLING or kind in _AVERAGES:
            return "pooling", ""
        if self.is_linear(node) or (node.kind == "ai.onnx::Split" and len(self.reads(node)) == 1):
            return "affine-chain", ""
        if node.kind in _CONVOLUTIONS or node.kind in _DENSE or node.kind in _QUANTIZERS or "Quant" in node.op:
            return "quantized", ""
        if len(self.reads(node)) > 1 and node.kind in _LINEAR_JOINS | _onnx("Mul", "Where", "Max", "Min"):
            return "join", ""
        return "other", f"no kind of region is known for {kind}"

    def _is_float(self, name: str) -> bool:
        value = self.graph.value(name)
        return value.is_float or not value.dtype
